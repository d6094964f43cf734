/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the parts of the native core share.
 *
 * The native core is the half of engine.py that must run at the speed of translated code: the callbacks that Unicorn calls
 * while the CPU runs (an exception or VM exit happened, a port is accessed), the counting of instructions, and the loop
 * that runs the CPU for an exact number of them. Nothing here knows of the kernel, and nothing here decides anything that
 * a student should read: exits are noted and handed to Python.
 *
 *   module.c       the Python object: what engine.py sees
 *   run.c          the loop that runs the CPU
 *   counting.c     how many instructions have retired, and where a run must end
 *   translation.c  what the engine's translator is made to do otherwise: where blocks end, and counting inside them
 *   blocks.c       reading the engine's description of a block, and instructions to stop before
 *   stores.c       the TLB: fast stores, repeated stores
 *   events.c       exceptions, VM exits, ports
 *   delivery.c     events go through the guest's IDT
 *
 * All offsets into the engine's private structures come from engine.py, which probes them at start-up.
 */
#ifndef L4LAB_CORE_H
#define L4LAB_CORE_H
#define _GNU_SOURCE /* dladdr1 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What run() returns when it is not an exception (0..255) or a VM exit (256 + AMD exit code). */
enum { EVENT_BUDGET = -1, EVENT_ERROR = -2, EVENT_WINDOW = -3, EVENT_IN = -4, EVENT_OUT = -5, EVENT_DELIVER = -6,
       EVENT_BEFORE = -7, EVENT_SYSENTER = -8, EVENT_CPUID = -9, EVENT_NONE = -100 };

/* The engine's own functions, by the order in which engine.py hands them over. */
enum { F_EMU_START, F_EMU_STOP, F_DO_INTERRUPT, F_HARD_INTERRUPT, F_LOOP_EXIT, F_TLB_FLUSH, F_EXEC_INTERRUPT,
       F_INVALIDATE, F_RESET_DIRTY, F_TLB_FLUSH_PAGE, F_LOAD,
       F_TRANSLATE, F_BEGIN_TRANSLATION, F_FETCH_8, F_FETCH_16, F_FETCH_32,     /* where blocks end */
       F_GENERATE, F_CALL, F_CHECK, F_CHECK_HELPER, F_EXIT_BLOCK, F_EMIT, F_BRANCH, F_NEW_LABEL, F_NEW_TEMPORARY,
       F_FREE_TEMPORARY,                                                       /* counting inside blocks */
       FUNCTIONS };

/* Offsets into private structures, likewise. */
enum {
    O_CPU, O_TRANSLATOR, O_ENV, O_CFLAGS, O_INTERRUPT_REQUEST, O_EXCEPTION_INDEX, O_CLASS,
    /* the first two from uc, the others from cpu */
    O_EIP, O_EFLAGS, O_HFLAGS, O_SEGS, O_CR, O_ERROR_CODE, O_IS_INT, O_NEXT_EIP, O_OLD_EXCEPTION, /* from env */
    O_TR, O_VMCB, O_IDT, O_DIRECTION,
    ENV_SIZE,
    TB_PC, TB_CS_BASE, TB_FLAGS, TB_SIZE, TB_ICOUNT, TB_CFLAGS, TB_CODE, TB_CODE_SIZE, TB_PAGES, TB_STRUCT,
    TLB_TABLES, CREDIT_FIELD, LAST_BLOCK,                                       /* backwards from env */
    TCG_PC_START, TCG_ENV,                                                      /* from the translator's state */
    OFFSETS
};

/* Fields of an entry of the engine's TLB, which is 64 bytes long, and the flag that sends stores the slow way. */
enum { TLB_MODES = 3, TLB_ENTRY = 64, TLB_READ = 0, TLB_WRITE = 8, TLB_EXECUTE = 16, TLB_ADDEND = 32, TLB_PADDR = 24,
       TLB_NOTDIRTY = 0x400 };
enum { USER_ACCESS = 1, KERNEL_ACCESS = 2 };    /* modes of it */
enum { HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_CS32 = 1 << 4, HF_GUEST = 1 << 21, TF_MASK = 1 << 8,
       IF_MASK = 1 << 9, NT_MASK = 1 << 14, RF_MASK = 1 << 16, VM_MASK = 1 << 17, CR0_PE = 1 };
enum { CF_COUNT_MASK = 0x7fff, CF_NOCACHE = 1 << 16, REQUEST = 1 << 11 };
/* Ours: bits of a block's flags that the engine has no use for. */
enum { CF_SEEN = 1 << 20, CF_SPECIAL = 1 << 21, CF_REPEATS = 1 << 22 };
enum { KIND_EXTERNAL, KIND_EXCEPTION, KIND_SOFTWARE, KIND_NMI };
enum { UNDEFINED_OPCODE = 6, GENERAL_PROTECTION = 13 };
enum { INFO_VECTOR, INFO_ERROR_CODE, INFO_IS_INT, INFO_PORT, INFO_SIZE, INFO_VALUE, INFO_UC_ERROR, INFO_WORDS };

typedef int (*emu_start_fn)(void *, uint64_t, uint64_t, uint64_t, size_t);
typedef int (*emu_stop_fn)(void *);
typedef void (*cpu_fn)(void *);

typedef struct Core {
    PyObject_HEAD
    struct Core *next;          /* all live cores: exec_interrupt() is given a CPU only */
    PyObject *owner;            /* Python's object of the engine: when the last reference to it goes, the engine is freed */
    bool closed;                /* nothing runs any more; the engine is freed with the last view on its state */
    Py_ssize_t views;           /* on the CPU state, and not yet released */
    void *uc;
    uint8_t *cpu, *env, *translator, *ram;
    uint64_t ram_size;
    uint8_t *has_code;          /* a byte per page of RAM, of Memory's: code was translated there */
    void *fn[FUNCTIONS];
    int64_t off[OFFSETS];
    bool inlined;               /* blocks count for themselves; otherwise the engine calls on_block() for each */
    /* of the current run */
    int64_t left;               /* instructions still allowed */
    int64_t granted;            /* of them, what translated code may use up by itself; see counting.c */
    int64_t until_look;         /* instructions until we look at the host's clock */
    int event;
    int64_t return_at;          /* by the host's clock */
    int64_t yield_at;           /* the same: when to let other threads run */
    bool paused;                /* that time has come */
    uint64_t software_at;       /* EIP of the INT n that is being delivered, or 0 */
    int split;                  /* the next block was ordered shorter by us, not by self-modification */
    int64_t cut;                /* order it to have so many instructions at most, if not 0 */
    bool pass;                  /* the instruction that we stopped before may be executed now */
    struct { bool under_way, injected; int vector, kind; uint32_t error, at, back, rf; } delivery;
    uint8_t **last, *last_block;    /* where it is noted which block began last, or NULL; in the CPU or here */
    int64_t until_sweep;        /* instructions */
    /* of all runs */
    uint64_t retired, deliveries, charged;  /* their sum is the clock */
    /* orders for the next run */
    int window;                 /* stop at the first instruction boundary at which an interrupt could be taken */
    int native_time;            /* RDTSC in guest mode gives the clock plus `time_offset`, without an exit */
    uint64_t time_offset;
    int inject;                 /* deliver this event first: vector, or -1 */
    int inject_kind;            /* KIND_... */
    uint32_t inject_error, inject_length;
    PyObject *info_bytes;       /* a bytearray: who holds a view on `info` keeps it */
    uint32_t *info;
} Core;

#define FIELD(base, offset, type) (*(type *)((base) + (offset)))
#define ENV(c, o, type) FIELD((c)->env, (c)->off[o], type)
#define CPU(c, o, type) FIELD((c)->cpu, (c)->off[o], type)
#define TB(c, tb, o, type) FIELD(tb, (c)->off[o], type)
#define LAST(c) (*(c)->last)
#define CS_BASE(c) FIELD((c)->env, (c)->off[O_SEGS] + 24 + 8, uint64_t)

/* run.c */
extern Core *cores;             /* all that are not closed */
extern Core *running;           /* the one that runs now, or NULL: it keeps Python's lock */
void stop(Core *c, int event);
int run(Core *c, uint32_t *frame, int64_t deadline, int64_t now);

/* counting.c */
/* We look at the host's clock after so many instructions. A block that is looked at counts for many: a guest that writes
 * into its own code executes a thousand times slower than others. */
enum { LOOK = 32000, LOOKED_AT = LOOK / 256 };
void settle(Core *c);
void take_back(Core *c, uint64_t pc);
uint64_t linear_eip(const Core *c);
bool window_open(const Core *c);
int64_t host_ms(void);
void on_block(void *uc, uint64_t pc, uint32_t size, void *opaque);
void slow_block(uint8_t *tb, int32_t cost);
int32_t cost_of_block(Core *c, uint8_t *tb, const uint64_t *instructions, int count);

/* translation.c */
bool take_over_translator(Core *c);

/* blocks.c */
enum { NOTHING, PORT_INPUT, FAR_TRANSFER, INTERRUPT_RETURN, PUSH_FLAGS };
int64_t index_in_block(const Core *c, const uint8_t *tb, uint64_t pc, uint64_t *reached);
uint64_t instruction_before(const Core *c, const uint8_t *tb, uint64_t pc);
uint64_t instruction_after(const Core *c, const uint8_t *tb, int64_t index);
uint8_t code_byte(const Core *c, const uint8_t *tb, uint64_t linear);
int classify(const Core *c, const uint8_t *tb, uint64_t at);
bool stop_before(Core *c, uint8_t *tb);

/* stores.c */
void note_code(Core *c, uint64_t page_address);
uint64_t code_page(const Core *c, uint64_t linear);
uint8_t *tlb_entry(const Core *c, int mode, uint64_t linear);
void sweep_tlb(Core *c);
bool is_repeated(const Core *c, const uint8_t *tb);
void repeat(Core *c, int code);

/* delivery.c */
void deliver(Core *c);
void hand_over_delivery(Core *c);
bool exec_interrupt(void *cpu, int request);

/* events.c */
void on_interrupt(void *uc, uint32_t number, void *opaque);
bool on_invalid(void *uc, void *opaque);
uint32_t on_in(void *uc, uint32_t port, int size, void *opaque);
void on_out(void *uc, uint32_t port, int size, uint32_t value, void *opaque);
void on_sysenter(void *uc, void *opaque);
int on_cpuid(void *uc, void *opaque);
bool on_unmapped(void *uc, int type, uint64_t address, int size, int64_t value, void *opaque);

#endif
