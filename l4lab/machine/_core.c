/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The native half of engine.py: what must run at the speed of translated code.
 *
 * Here live the callbacks that Unicorn calls while the CPU runs (a block begins, an exception or VM exit happened, a
 * port is accessed) and the loop that runs the CPU for an exact number of instructions. Nothing here knows of the
 * kernel, and nothing here decides anything that a student should read: exits are noted and handed to Python.
 *
 * Exact counting. The engine calls on_block() from the translated code of each block, so the callback's return address
 * lies in that code, and the engine keeps its description of a block (TranslationBlock) directly in front of the code.
 * From there we read how many instructions the block holds. Where a run must end inside a block we ask the engine, by
 * the field that it uses itself for self-modifying code (cflags_next_tb), to translate a shorter one. When a trap
 * happens inside a block, what did not retire is taken back: the engine stores behind the code, for its own use, where
 * each instruction of the block begins.
 *
 * All offsets into the engine's private structures come from engine.py, which probes them at start-up.
 */
#define _GNU_SOURCE /* dladdr1 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __linux__
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#ifdef _MSC_VER
#include <intrin.h>
#define RETURN_ADDRESS() ((uintptr_t)_ReturnAddress())
#else
#define RETURN_ADDRESS() ((uintptr_t)__builtin_return_address(0))
#endif

/* What run() returns when it is not an exception (0..255) or a VM exit (256 + AMD exit code). */
enum { EVENT_BUDGET = -1, EVENT_ERROR = -2, EVENT_WINDOW = -3, EVENT_IN = -4, EVENT_OUT = -5, EVENT_DELIVER = -6,
       EVENT_BEFORE = -7, EVENT_SYSENTER = -8, EVENT_CPUID = -9, EVENT_NONE = -100 };

/* The engine's own functions, by the order in which engine.py hands them over. */
enum { F_EMU_START, F_EMU_STOP, F_DO_INTERRUPT, F_HARD_INTERRUPT, F_LOOP_EXIT, F_TLB_FLUSH, F_EXEC_INTERRUPT,
       F_INVALIDATE, F_RESET_DIRTY, F_TLB_FLUSH_PAGE, F_LOAD, F_NEW_TEMPORARY, FUNCTIONS };

/* Offsets into private structures, likewise. */
enum {
    O_CPU, O_ENV, O_CFLAGS, O_INTERRUPT_REQUEST, O_EXCEPTION_INDEX, O_CLASS,  /* from uc, from cpu (the last five) */
    O_EIP, O_EFLAGS, O_HFLAGS, O_SEGS, O_CR, O_ERROR_CODE, O_IS_INT, O_NEXT_EIP, O_OLD_EXCEPTION, /* from env */
    O_TR, O_VMCB, O_IDT, O_DIRECTION,
    ENV_SIZE,
    TB_PC, TB_SIZE, TB_ICOUNT, TB_CFLAGS, TB_CODE, TB_CODE_SIZE, TB_PAGES, TB_STRUCT,   /* from a TranslationBlock */
    TLB_TABLES,                                                               /* backwards from env */
    TCG_TEMPORARIES, TCG_OPERATIONS,                                          /* from the translator's state */
    OFFSETS
};

/* Fields of an entry of the engine's TLB, which is 64 bytes long, and the flag that sends stores the slow way. */
enum { TLB_MODES = 3, TLB_ENTRY = 64, TLB_READ = 0, TLB_WRITE = 8, TLB_EXECUTE = 16, TLB_ADDEND = 32, TLB_PADDR = 24, TLB_NOTDIRTY = 0x400, SWEEP_BLOCKS = 4096 };
enum { LOOK_BLOCKS = 256, LONGEST_RUN_MS = 100, YIELD_MS = 5 };
enum { EXIT_RDTSC = 0x100 + 0x6E };
enum { HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_CS32 = 1 << 4, HF_TF = 1 << 8, HF_GUEST = 1 << 21, TF_MASK = 1 << 8, IF_MASK = 1 << 9, NT_MASK = 1 << 14,
       RF_MASK = 1 << 16, VM_MASK = 1 << 17, CR0_PE = 1 };
enum { CF_COUNT_MASK = 0x7fff, REQUEST = 1 << 11 };
enum { CF_SEEN = 1 << 20, CF_SPECIAL = 1 << 21, CF_REPEATS = 1 << 22 };  /* ours: bits of a block's flags that the engine has no use for */
enum { USER_ACCESS = 1, KERNEL_ACCESS = 2, TASK_GATE = 5 };
enum { SINGLE_STEP = 1, EXIT_SINGLE_STEP = 0x100 + 0x41, BLOCK_EVENT = 0xA8, DESCRIPTOR_PRESENT = 1 << 15 };
enum { TYPE_EXTERNAL = 0, TYPE_NMI = 2, TYPE_EXCEPTION = 3, TYPE_SOFTWARE = 4, UNDEFINED_OPCODE = 6, GENERAL_PROTECTION = 13 };
enum { KIND_EXTERNAL, KIND_EXCEPTION, KIND_SOFTWARE, KIND_NMI };
static const int type_of_kind[] = {TYPE_EXTERNAL, TYPE_EXCEPTION, TYPE_SOFTWARE, TYPE_NMI};
#define EVENT_HAS_ERROR ((uint32_t)1 << 11)
#define WITH_ERROR_CODE ((uint32_t)(1 << 8 | 0x1F << 10 | 1 << 17) & ~(uint32_t)(1 << 9))
#define EXIT_NESTED_FAULT (0x100 + 0x400)
#define NO_FAULTS ((uint32_t)(1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 18))  /* traps, NMI, aborts */
#define EVENT_VALID ((uint32_t)1 << 31)
enum { INFO_VECTOR, INFO_ERROR_CODE, INFO_IS_INT, INFO_PORT, INFO_SIZE, INFO_VALUE, INFO_UC_ERROR, INFO_WORDS };

typedef int (*emu_start_fn)(void *, uint64_t, uint64_t, uint64_t, size_t);
typedef int (*emu_stop_fn)(void *);
typedef void (*cpu_fn)(void *);
typedef void (*hard_interrupt_fn)(void *, int, int);
typedef void (*invalidate_fn)(void *, uint64_t, uint64_t);
typedef void (*flush_page_fn)(void *, uint64_t);
typedef uint32_t (*load_fn)(void *, uint64_t, int, uintptr_t);
typedef void (*reset_dirty_fn)(void *, uint64_t, uint64_t);

typedef struct Core {
    PyObject_HEAD
    struct Core *next;          /* all live cores: exec_interrupt() is given a CPU only */
    PyObject *owner;            /* Python's object of the engine: when the last reference to it goes, the engine is freed */
    bool closed;                /* nothing runs any more; the engine is freed with the last view on its state */
    Py_ssize_t views;           /* on the CPU state, and not yet released */
    void *uc;
    uint8_t *cpu, *env, *ram;
    uint64_t ram_size;
    uint8_t *has_code;          /* a byte per page of RAM, of Memory's: code was translated there */
    int until_sweep;            /* blocks */
    void *fn[FUNCTIONS];
    int64_t off[OFFSETS];
    /* of the current run */
    int64_t left;               /* instructions still allowed */
    int event;
    int until_look;             /* blocks until we look at the host's clock */
    int64_t return_at;          /* by the host's clock */
    int64_t yield_at;           /* the same: when to let other threads run */
    bool paused;                /* that time has come */
    uint64_t software_at;       /* EIP of the INT n that is being delivered, or 0 */
    int split;                  /* the next block was ordered shorter by us, not by self-modification */
    int64_t cut;                /* order it to have so many instructions at most, if not 0 */
    bool pass;                  /* the instruction that we stopped before may be executed now */
    struct { bool under_way, injected; int vector, kind; uint32_t error, at, back, rf; } delivery;
    uint8_t *last;              /* the block that began last, or NULL */
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

static Core *cores;

#define FIELD(base, offset, type) (*(type *)((base) + (offset)))
#define ENV(c, o, type) FIELD((c)->env, (c)->off[o], type)
#define CPU(c, o, type) FIELD((c)->cpu, (c)->off[o], type)

static void stop(Core *c, int event)
{
    c->event = event;
    ((emu_stop_fn)c->fn[F_EMU_STOP])(c->uc);
}

/* The number of the instruction at linear address `pc` among the first `count` of block `tb`, or `count` if none begins
 * there; the address of the last instruction looked at goes to `reached`. The engine's table holds, per instruction, three
 * differences to the row before in signed LEB128. */
typedef struct {
    const uint8_t *row;
    uint64_t at;                /* linear address of the instruction before */
} Walk;

static Walk walk_from(const Core *c, const uint8_t *tb)
{
    return (Walk){FIELD(tb, c->off[TB_CODE], const uint8_t *) + FIELD(tb, c->off[TB_CODE_SIZE], size_t),
                  FIELD(tb, c->off[TB_PC], const uint64_t)};
}

static uint64_t next_instruction(Walk *walk)
{
    for (int column = 0; column < 3; column++) {
        int64_t value = 0;
        int shift = 0;
        uint8_t byte;
        do {
            byte = *walk->row++;
            value |= (int64_t)(byte & 0x7f) << shift;
            shift += 7;
        } while (byte & 0x80);
        if (shift < 64 && (byte & 0x40))
            value |= -((int64_t)1 << shift);
        if (column == 0)
            walk->at += value;
    }
    return walk->at;
}

static int64_t walk_block(const Core *c, const uint8_t *tb, uint64_t pc, int64_t count, uint64_t *reached)
{
    Walk walk = walk_from(c, tb);
    for (int64_t i = 0; i < count; i++)
        if ((*reached = next_instruction(&walk)) == pc)
            return i;
    return count;
}

static int64_t index_in_block(const Core *c, const uint8_t *tb, uint64_t pc, uint64_t *reached)
{
    return walk_block(c, tb, pc, FIELD(tb, c->off[TB_ICOUNT], const uint16_t), reached);
}

/* The address behind instruction number `index` of the block. */
static uint64_t instruction_after(const Core *c, const uint8_t *tb, int64_t index)
{
    uint64_t end = FIELD(tb, c->off[TB_PC], const uint64_t) + FIELD(tb, c->off[TB_SIZE], const uint16_t);
    if (index + 1 >= FIELD(tb, c->off[TB_ICOUNT], const uint16_t))
        return end;
    uint64_t reached = end;
    walk_block(c, tb, ~(uint64_t)0, index + 2, &reached);
    return reached;
}

/* A trap happened with EIP at an instruction of the last block: it and those after it have not retired. */
static void take_back(Core *c, uint64_t pc)
{
    if (c->last) {
        uint64_t first = FIELD(c->last, c->off[TB_PC], uint64_t);
        if (pc >= first && pc < first + FIELD(c->last, c->off[TB_SIZE], uint16_t)) {
            uint64_t reached;
            int64_t undone = FIELD(c->last, c->off[TB_ICOUNT], uint16_t) - index_in_block(c, c->last, pc, &reached);
            c->left += undone;
            c->retired -= undone;
        }
        c->last = NULL;
    }
}

static uint64_t linear_eip(Core *c)
{
    return (uint32_t)(ENV(c, O_EIP, uint64_t) + FIELD(c->env, c->off[O_SEGS] + 24 + 8, uint64_t));
}

/* Stores. The engine sends each store to a page that may be executed the slow way, to find out whether it changes code
 * that it has translated; without NX that is every store. We let it do so only where code was executed in fact: on_block
 * notes such pages, and now and then we clear the flag in the TLB entries of all others. Python's stores go by the same
 * notes (see memory.py). */
static void note_code(Core *c, uint64_t page_address)
{
    uint64_t page = page_address >> 12;
    if (page_address < c->ram_size && !c->has_code[page]) {
        c->has_code[page] = 1;
        ((reset_dirty_fn)c->fn[F_RESET_DIRTY])(c->cpu, (uintptr_t)c->ram + (page << 12), 4096);
    }
}

static void sweep_entry(const Core *c, uint8_t *entry)
{
    uint64_t write = FIELD(entry, TLB_WRITE, uint64_t), page = FIELD(entry, TLB_PADDR, uint64_t);
    if ((write & 0xFFF) == TLB_NOTDIRTY && page < c->ram_size && !c->has_code[page >> 12])
        FIELD(entry, TLB_WRITE, uint64_t) = write & ~(uint64_t)TLB_NOTDIRTY;
}

static void sweep_tlb(Core *c)
{
    int64_t entries = 0;
    for (int mode = 0; mode < TLB_MODES; mode++) {
        uint8_t *description = c->env - c->off[TLB_TABLES] + 16 * mode;
        uint64_t mask = FIELD(description, 0, uint64_t);
        uint8_t *entry = FIELD(description, 8, uint8_t *), *end = entry + mask + TLB_ENTRY;
        entries += (end - entry) / TLB_ENTRY;
        for (; entry < end; entry += TLB_ENTRY)
            sweep_entry(c, entry);
    }
    c->until_sweep = entries * 4 > SWEEP_BLOCKS ? (int)entries * 4 : SWEEP_BLOCKS;
}

/* May an interrupt be taken here, and has somebody asked to be told? */
static bool window_open(Core *c)
{
    return c->window && (ENV(c, O_EFLAGS, uint64_t) & IF_MASK) && !(ENV(c, O_HFLAGS, uint32_t) & HF_INHIBIT_IRQ);
}

/* Milliseconds by the host's clock. */
static int64_t host_ms(void)
{
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Now and then: sweep the TLB, and see whether the run has taken so long that somebody may want to stop it. A guest that
 * writes into its own code executes a thousand times slower than others, so the number of instructions says nothing. To
 * come back here changes nothing in the run: it is as if the budget had been smaller. */
static bool taken_long(Core *c)
{
    c->until_look = LOOK_BLOCKS;
    if ((c->until_sweep -= LOOK_BLOCKS) <= 0)
        sweep_tlb(c);
    c->paused = host_ms() >= c->return_at;
    return c->paused;
}

/* Instructions that the engine does not do as we need them: it switches tasks without a VM exit, INS has written its
 * destination before it asks for the port, and PUSHFD stores EFLAGS.VM. So we stop before INS in any guest, before a far
 * jump, call or return that may be a task switch, before PUSHFD in virtual-8086 mode, and let Python look. They are
 * looked for when a block begins for the first time. (To a block in another mode another description belongs.) */
enum { NOTHING, PORT_INPUT, FAR_TRANSFER, INTERRUPT_RETURN, PUSH_FLAGS };
enum { OPERAND_SIZE = 0x66 };

static uint8_t code_byte(const Core *c, const uint8_t *tb, uint64_t linear)
{
    int page = (linear ^ FIELD(tb, c->off[TB_PC], const uint64_t)) >> 12 != 0;
    uint64_t at = FIELD(tb, c->off[TB_PAGES] + 8 * page, const uint64_t) + (linear & 0xFFF);
    return at < c->ram_size ? c->ram[at] : 0;
}

static int classify(const Core *c, const uint8_t *tb, uint64_t at)
{
    bool wide = false;          /* in virtual-8086 mode, where code is 16 bits wide */
    for (int i = 0; i < 15; i++, at++)
        switch (code_byte(c, tb, at)) {
        case OPERAND_SIZE:
            wide = true;
            continue;
        case 0x26: case 0x2E: case 0x36: case 0x3E: case 0x64: case 0x65: case 0x67: case 0xF0: case 0xF2: case 0xF3:
            continue;
        case 0x9C:
            return wide && ENV(c, O_EFLAGS, uint64_t) & VM_MASK ? PUSH_FLAGS : NOTHING;
        case 0x6C: case 0x6D:
            return PORT_INPUT;
        case 0x9A: case 0xEA:
            return FAR_TRANSFER;
        case 0xCF:
            return INTERRUPT_RETURN;
        case 0xFF: {
            int operation = code_byte(c, tb, at + 1) >> 3 & 7;
            return operation == 3 || operation == 5 ? FAR_TRANSFER : NOTHING;
        }
        default:
            return NOTHING;
        }
    return NOTHING;
}

/* The first such instruction of the block and, in `kind`, what it is. */
static int64_t special_instruction(const Core *c, const uint8_t *tb, int *kind)
{
    int64_t count = FIELD(tb, c->off[TB_ICOUNT], const uint16_t);
    Walk walk = walk_from(c, tb);
    for (int64_t i = 0; i < count; i++)
        if ((*kind = classify(c, tb, next_instruction(&walk))) != NOTHING)
            return i;
    return -1;
}

/* Repeated stores. The engine makes each repetition of REP STOS and REP MOVS a block of its own, and a system that clears
 * or copies pages executes little else. So where such a block begins, we do at once all repetitions but the last which
 * stay in pages of plain memory that the TLB has. They retire one by one as ever; nothing but the time it takes differs. */
enum { REPEAT = 0xF3, MOVS_BYTE = 0xA4, MOVS = 0xA5, STOS_BYTE = 0xAA, STOS = 0xAB };
enum { ECX = 8, ESI = 48, EDI = 56, ES = 0, DS = 72 };  /* where the engine has them: registers, segments */

static bool is_repeated(const Core *c, const uint8_t *tb)
{
    uint64_t pc = FIELD(tb, c->off[TB_PC], const uint64_t);
    int code = code_byte(c, tb, pc + 1);
    return FIELD(tb, c->off[TB_SIZE], const uint16_t) == 2 && FIELD(tb, c->off[TB_ICOUNT], const uint16_t) == 1
           && code_byte(c, tb, pc) == REPEAT && (code == MOVS_BYTE || code == MOVS || code == STOS_BYTE || code == STOS);
}

/* The host's address of a linear one, if the TLB has its page for such an access and it is plain memory; or NULL. */
static uint8_t *host_address(const Core *c, uint32_t linear, int access)
{
    int mode = (ENV(c, O_HFLAGS, uint32_t) & HF_CPL) == 3 ? USER_ACCESS : KERNEL_ACCESS;
    uint8_t *description = c->env - c->off[TLB_TABLES] + 16 * mode;
    uint64_t page = linear & ~(uint64_t)0xFFF;
    uint8_t *entry = FIELD(description, 8, uint8_t *) + (page >> 12 << 6 & FIELD(description, 0, uint64_t));
    sweep_entry(c, entry);
    if (FIELD(entry, access, uint64_t) != page)
        return NULL;
    return (uint8_t *)(uintptr_t)(linear + FIELD(entry, TLB_ADDEND, uint64_t));
}

/* How many elements of `size` bytes lie between a linear address and the end of its page. */
static int64_t left_in_page(uint32_t linear, int size)
{
    return (4096 - (linear & 0xFFF)) / size;
}

static void repeat(Core *c, int code)
{
    uint32_t hflags = ENV(c, O_HFLAGS, uint32_t);
    if (!(hflags & HF_CS32) || hflags & (HF_TF | HF_INHIBIT_IRQ) || ENV(c, O_DIRECTION, int32_t) != 1)
        return;
    uint64_t *ecx = &FIELD(c->env, ECX, uint64_t), *esi = &FIELD(c->env, ESI, uint64_t), *edi = &FIELD(c->env, EDI, uint64_t);
    const uint8_t *segments = c->env + c->off[O_SEGS] + 8;
    int size = code & 1 ? 4 : 1;
    uint32_t to = (uint32_t)(*edi + FIELD(segments, ES, const uint64_t));
    int64_t count = (int64_t)(uint32_t)*ecx - 1;
    if (count > c->left - 1)
        count = c->left - 1;
    if (count > left_in_page(to, size))
        count = left_in_page(to, size);
    uint8_t *target = host_address(c, to, TLB_WRITE);
    if (count <= 0 || !target)
        return;
    if (code == STOS_BYTE)
        memset(target, FIELD(c->env, 0, uint8_t), count);
    else if (code == STOS) {
        uint32_t eax = FIELD(c->env, 0, uint32_t);
        for (int64_t i = 0; i < count; i++)
            memcpy(target + 4 * i, &eax, 4);
    } else {
        uint32_t from = (uint32_t)(*esi + FIELD(segments, DS, const uint64_t));
        if (count > left_in_page(from, size))
            count = left_in_page(from, size);
        uint8_t *source = host_address(c, from, TLB_READ);
        if (count <= 0 || !source)
            return;
        for (int64_t i = 0; i < count; i++) /* one by one: what was just written may be read next */
            memmove(target + i * size, source + i * size, size);
        *esi = (uint32_t)(*esi + count * size);
    }
    *edi = (uint32_t)(*edi + count * size);
    *ecx = (uint32_t)(*ecx - count);
    c->left -= count;
    c->retired += count;
}

/* A block that has one, or is new. True if we have stopped: before the instruction, or to have the block cut there. */
static bool stop_before(Core *c, uint8_t *tb)
{
    uint32_t *flags = &FIELD(tb, c->off[TB_CFLAGS], uint32_t);
    int kind = NOTHING;
    if (!(*flags & CF_SEEN)) {
        if (is_repeated(c, tb))
            *flags |= CF_REPEATS;
        bool resumes = ENV(c, O_EFLAGS, uint64_t) & RF_MASK;
        *flags |= special_instruction(c, tb, &kind) < 0 && !resumes ? CF_SEEN : CF_SEEN | CF_SPECIAL;
    }
    ENV(c, O_EFLAGS, uint32_t) &= ~RF_MASK; /* the engine would keep it, and PUSHF store it, to the end of some block */
    if (!(*flags & CF_SPECIAL) || !(ENV(c, O_HFLAGS, uint32_t) & HF_GUEST))
        return false;
    int64_t index = special_instruction(c, tb, &kind);
    uint64_t eflags = ENV(c, O_EFLAGS, uint64_t);
    if (kind == NOTHING)        /* overwritten since; the engine will notice */
        return false;
    bool may_switch_tasks = kind == FAR_TRANSFER || kind == INTERRUPT_RETURN;
    if (may_switch_tasks && (!(ENV(c, O_CR, uint64_t) & CR0_PE) || eflags & VM_MASK))
        return false;
    if (kind == INTERRUPT_RETURN && !(eflags & NT_MASK))
        return false;
    if (index == 0 && c->pass) {
        c->pass = false;
        return false;
    }
    c->last = NULL;
    c->cut = index;
    stop(c, index == 0 ? EVENT_BEFORE : EVENT_BUDGET);
    return true;
}

/* A block that is new, cut or special, or one before which we may have to stop. True if we have. */
static bool stop_at(Core *c, uint8_t *tb, uint64_t pc)
{
    if ((FIELD(tb, c->off[TB_CFLAGS], uint32_t) & CF_COUNT_MASK) && !c->split)
        take_back(c, pc);       /* the last block overwrote itself: the engine left it at this instruction */
    c->split = 0;
    if (!(FIELD(tb, c->off[TB_CFLAGS], uint32_t) & CF_SEEN)) {      /* also if it does not run now: it is translated */
        note_code(c, FIELD(tb, c->off[TB_PAGES], uint64_t));
        note_code(c, FIELD(tb, c->off[TB_PAGES] + 8, uint64_t));    /* all ones if there is no second page */
    }
    if (window_open(c)) {       /* the shadow of STI ended with a jump, behind which the engine does not look */
        c->last = NULL;
        stop(c, EVENT_WINDOW);
        return true;
    }
    if (FIELD(tb, c->off[TB_ICOUNT], uint16_t) > c->left || (c->until_look <= 0 && taken_long(c))) {
        c->last = NULL;
        stop(c, EVENT_BUDGET);
        return true;
    }
    if ((FIELD(tb, c->off[TB_CFLAGS], uint32_t) & (CF_SEEN | CF_SPECIAL)) != CF_SEEN && stop_before(c, tb))
        return true;
    if (FIELD(tb, c->off[TB_CFLAGS], uint32_t) & CF_REPEATS)
        repeat(c, code_byte(c, tb, pc + 1));
    return false;
}

/* The hottest function of all: what a block in the middle of a run needs comes first, everything else in `stop_at`. */
static void on_block(void *uc, uint64_t pc, uint32_t size, void *opaque)
{
    Core *c = opaque;
    uintptr_t code = (RETURN_ADDRESS() - 1) & ~(uintptr_t)63;
    uint8_t *tb = NULL;
    for (int tries = 0; tries < 4; tries++, code -= 64) {
        uint8_t *candidate = (uint8_t *)code - c->off[TB_STRUCT];
        if (FIELD(candidate, c->off[TB_CODE], uintptr_t) == code && FIELD(candidate, c->off[TB_PC], uint64_t) == pc) {
            tb = candidate;
            break;
        }
    }
    if (!tb) {                  /* the probe at start-up makes this impossible; never count wrongly all the same */
        c->info[INFO_UC_ERROR] = 0xFFFF;
        stop(c, EVENT_ERROR);
        return;
    }
    int64_t count = FIELD(tb, c->off[TB_ICOUNT], uint16_t);
    bool everyday = (FIELD(tb, c->off[TB_CFLAGS], uint32_t) & (CF_COUNT_MASK | CF_SEEN | CF_SPECIAL | CF_REPEATS))
        == CF_SEEN;
    if ((--c->until_look <= 0 || !everyday || count > c->left || c->split || c->window) && stop_at(c, tb, pc))
        return;
    c->left -= count;
    c->retired += count;
    c->last = tb;
}

/* A TR that names no TSS becomes one with limit 0: reading a stack from it is #TS then. The engine would abort(). */
static void forget_unusable_tss(Core *c)
{
    uint8_t *tr = c->env + c->off[O_TR];
    uint32_t flags = FIELD(tr, 20, uint32_t);
    if (!(flags & DESCRIPTOR_PRESENT) || (flags >> 8 & 7) != 1) {
        FIELD(tr, 16, uint32_t) = 0;
        FIELD(tr, 20, uint32_t) = DESCRIPTOR_PRESENT | 9 << 8;
    }
}

/* Note the event in delivery in the control block, where it is found if a missing page ends the guest's run half-way.
 * The engine would name some wrongly: an external interrupt an exception, and INT 13 one with an error code. */
static void name_event(Core *c, int type, int vector, uint32_t error)
{
    uint8_t *event = c->ram + ENV(c, O_VMCB, uint32_t) + BLOCK_EVENT;
    bool has_error = type == TYPE_EXCEPTION && WITH_ERROR_CODE >> vector & 1 && ENV(c, O_CR, uint64_t) & CR0_PE;
    FIELD(event, 0, uint32_t) = EVENT_VALID | (has_error ? EVENT_HAS_ERROR : 0) | (uint32_t)type << 8 | (uint32_t)vector;
    if (has_error)
        FIELD(event, 4, uint32_t) = error;
}

/* An event is about to be delivered, for one cycle. False if Python is to do it: the gate is a task gate. */
static bool begin_delivery(Core *c, int kind, int vector, uint32_t error, uint32_t at, uint32_t back)
{
    c->left -= 1;               /* so that a guest which only faults cannot stop the clock */
    c->deliveries += 1;
    c->delivery.under_way = true;
    c->delivery.kind = kind;
    c->delivery.vector = vector;
    c->delivery.error = error;
    c->delivery.at = at;
    c->delivery.back = back;
    c->delivery.rf = ENV(c, O_EFLAGS, uint32_t) & RF_MASK;
    forget_unusable_tss(c);
    name_event(c, type_of_kind[kind], vector, error);
    uint8_t *idt = c->env + c->off[O_IDT];
    if (!(ENV(c, O_CR, uint64_t) & CR0_PE) || (uint32_t)vector * 8 + 7 > FIELD(idt, 16, uint32_t))
        return true;
    uint32_t gate = FIELD(idt, 8, uint32_t) + (uint32_t)vector * 8;
    load_fn load = (load_fn)c->fn[F_LOAD];      /* as the engine will: may leave by longjmp */
    load(c->env, gate, KERNEL_ACCESS, 0);
    return (load(c->env, gate + 4, KERNEL_ACCESS, 0) >> 8 & 31) != TASK_GATE;
}

/* What is simple and frequent the engine delivers; where it failed, or the gate is a task gate, Python begins anew. */
static void hand_over_delivery(Core *c)
{
    c->left += 1;
    c->deliveries -= 1;
    c->delivery.under_way = false;
    ENV(c, O_EIP, uint64_t) = c->delivery.at;
    ENV(c, O_EFLAGS, uint32_t) = (ENV(c, O_EFLAGS, uint32_t) & ~RF_MASK) | c->delivery.rf;
    ENV(c, O_OLD_EXCEPTION, int32_t) = -1;
    ENV(c, O_IS_INT, int32_t) = 0;
    FIELD(c->ram, ENV(c, O_VMCB, uint32_t) + BLOCK_EVENT, uint32_t) = 0;
    c->software_at = 0;
    c->last = NULL;
    c->info[INFO_VECTOR] = c->delivery.vector;
    c->info[INFO_ERROR_CODE] = c->delivery.error;
    c->info[INFO_IS_INT] = c->delivery.kind;
    c->info[INFO_VALUE] = c->delivery.back;
    c->info[INFO_SIZE] = c->delivery.injected;
    stop(c, EVENT_DELIVER);
}

/* Deliver an exception through the guest's IDT, as the CPU would; the engine knows how but leaves it to its user. */
static void deliver(Core *c)
{
    int vector = CPU(c, O_EXCEPTION_INDEX, int32_t);
    bool is_int = ENV(c, O_IS_INT, int32_t);
    uint32_t eip = ENV(c, O_EIP, uint32_t);
    c->delivery.injected = false;
    if (!begin_delivery(c, is_int ? KIND_SOFTWARE : KIND_EXCEPTION, vector, ENV(c, O_ERROR_CODE, uint32_t),
                        is_int ? (uint32_t)c->software_at : eip, eip)) {
        hand_over_delivery(c);
        return;
    }
    if (is_int)
        ENV(c, O_EFLAGS, uint32_t) &= ~RF_MASK; /* the engine clears it at the end of a block only */
    else if (!(NO_FAULTS >> vector & 1))
        ENV(c, O_EFLAGS, uint32_t) |= RF_MASK;  /* in the frame that is pushed, not behind it */
    ((cpu_fn)c->fn[F_DO_INTERRUPT])(c->cpu);    /* may leave by longjmp when the delivery faults itself */
    c->delivery.under_way = false;
    ENV(c, O_IS_INT, int32_t) = 0;              /* the engine would move EIP by it at the next VM exit */
    c->software_at = 0;
    if (c->left <= 0)
        stop(c, EVENT_BUDGET);
}

/* RDTSC of a guest whose controls leave it alone: the clock, exact to the instruction, and on with the guest. */
static bool read_time(Core *c)
{
    uint64_t pc = linear_eip(c), reached = 0, next;
    uint8_t *tb = c->last;
    if (!tb)
        return false;
    int64_t index = index_in_block(c, tb, pc, &reached);
    if (reached != pc)
        return false;
    next = instruction_after(c, tb, index);
    take_back(c, pc);
    uint64_t ticks = c->retired + c->deliveries + c->charged + c->time_offset;
    FIELD(c->env, 0, uint64_t) = (uint32_t)ticks;
    FIELD(c->env, 16, uint64_t) = (uint32_t)(ticks >> 32);
    ENV(c, O_EIP, uint64_t) = (uint32_t)(ENV(c, O_EIP, uint64_t) + (next - pc));
    ENV(c, O_HFLAGS, uint32_t) &= ~HF_INHIBIT_IRQ;
    c->left -= 1;
    c->retired += 1;
    if (c->left <= 0)
        stop(c, EVENT_BUDGET);
    return true;
}

static void on_interrupt(void *uc, uint32_t number, void *opaque)
{
    Core *c = opaque;
    if (c->delivery.under_way) {
        if (number != EXIT_NESTED_FAULT) {
            hand_over_delivery(c);
            return;
        }
        c->delivery.under_way = false;
        ENV(c, O_EIP, uint64_t) = c->delivery.at;
        ENV(c, O_EFLAGS, uint32_t) = (ENV(c, O_EFLAGS, uint32_t) & ~RF_MASK) | c->delivery.rf;
    }
    int is_int = ENV(c, O_IS_INT, int32_t) != 0;
    if (number >= 0x100)
        ENV(c, O_IS_INT, int32_t) = is_int = 0;
    if (c->software_at)         /* a fault or an exit while INT n was delivered: it is at INT n */
        ENV(c, O_EIP, uint64_t) = c->software_at;
    c->software_at = 0;
    if (number == EXIT_RDTSC && c->native_time && !(ENV(c, O_EFLAGS, uint32_t) & TF_MASK) && read_time(c))
        return;
    bool stepped = (number == SINGLE_STEP || number == EXIT_SINGLE_STEP) && ENV(c, O_EFLAGS, uint64_t) & TF_MASK;
    if (!is_int && !stepped)    /* a single-step trap comes after the instruction, even where that jumps to itself */
        take_back(c, linear_eip(c));
    else if (is_int && c->last) {
        uint64_t at = 0, reached;   /* EIP is behind INT n, which ended its block, or INTO, which need not have */
        walk_block(c, c->last, ~(uint64_t)0, index_in_block(c, c->last, linear_eip(c), &reached), &at);
        c->software_at = (uint32_t)(at - FIELD(c->env, c->off[O_SEGS] + 24 + 8, uint64_t));
        take_back(c, linear_eip(c));
    }
    c->last = NULL;
    if (number < 0x100 && (ENV(c, O_HFLAGS, uint32_t) & HF_GUEST)) {
        deliver(c);
        return;
    }
    c->info[INFO_VECTOR] = number;
    c->info[INFO_ERROR_CODE] = ENV(c, O_ERROR_CODE, uint32_t);
    c->info[INFO_IS_INT] = is_int;
    stop(c, (int)number);
}

/* #UD. In guest mode too it is for Python: VMX instructions, which the engine does not know, are VM exits. The engine
 * goes by the number alone, so INT 6 comes here as well: it is a software interrupt as any other. */
static bool on_invalid(void *uc, void *opaque)
{
    Core *c = opaque;
    if (ENV(c, O_IS_INT, int32_t)) {
        ENV(c, O_EIP, uint64_t) = ENV(c, O_NEXT_EIP, uint64_t);     /* as the engine has done for the others */
        on_interrupt(uc, UNDEFINED_OPCODE, opaque);
        return true;
    }
    take_back(c, linear_eip(c));
    c->info[INFO_VECTOR] = UNDEFINED_OPCODE;
    c->info[INFO_ERROR_CODE] = 0;
    c->info[INFO_IS_INT] = 0;
    stop(c, UNDEFINED_OPCODE);
    return true;
}

/* Port accesses stop before they happen: the engine has just made its state exact, so we leave from inside. */
static void on_port(Core *c, int event, uint32_t port, int size, uint32_t value)
{
    take_back(c, linear_eip(c));
    c->info[INFO_PORT] = port;
    c->info[INFO_SIZE] = size;
    c->info[INFO_VALUE] = value;
    stop(c, event);
    ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
}

static uint32_t on_in(void *uc, uint32_t port, int size, void *opaque)
{
    on_port(opaque, EVENT_IN, port, size, 0);
    return 0;
}

static void on_out(void *uc, uint32_t port, int size, uint32_t value, void *opaque)
{
    on_port(opaque, EVENT_OUT, port, size, value);
}

/* SYSENTER, which the engine leaves to its user: a guest's is done in Python; in a program it is a #GP. */
static void on_sysenter(void *uc, void *opaque)
{
    Core *c = opaque;
    take_back(c, linear_eip(c));
    bool guest = ENV(c, O_HFLAGS, uint32_t) & HF_GUEST;
    c->info[INFO_VECTOR] = GENERAL_PROTECTION;
    c->info[INFO_ERROR_CODE] = c->info[INFO_IS_INT] = 0;
    stop(c, guest ? EVENT_SYSENTER : GENERAL_PROTECTION);
    ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
}

/* CPUID of a program, which nothing intercepts: the engine would tell of its own CPU. Of a guest it is a VM exit. */
static int on_cpuid(void *uc, void *opaque)
{
    Core *c = opaque;
    take_back(c, linear_eip(c));
    stop(c, EVENT_CPUID);
    ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
    return 1;
}

/* Stands in for the engine's own: called between blocks while interrupt_request is set. */
static bool exec_interrupt(void *cpu, int request)
{
    Core *c = cores;
    while (c && c->cpu != cpu)
        c = c->next;
    if (!c)
        return false;
    bool injected = c->inject >= 0;
    if (injected) {
        int vector = c->inject, kind = c->inject_kind;
        uint32_t eip = ENV(c, O_EIP, uint32_t), next = eip;
        if (kind == KIND_EXCEPTION || kind == KIND_SOFTWARE)
            next += c->inject_length;
        c->inject = -1;
        if (!c->window)
            CPU(c, O_INTERRUPT_REQUEST, uint32_t) &= ~REQUEST;
        c->last = NULL;
        c->delivery.injected = true;
        if (!begin_delivery(c, kind, vector, c->inject_error, eip, next)) {
            hand_over_delivery(c);
            return true;
        }
        if (kind == KIND_EXTERNAL || kind == KIND_NMI)
            ((hard_interrupt_fn)c->fn[F_HARD_INTERRUPT])(c->env, vector, 1);
        else {
            CPU(c, O_EXCEPTION_INDEX, int32_t) = vector;
            ENV(c, O_ERROR_CODE, uint32_t) = c->inject_error;
            ENV(c, O_IS_INT, int32_t) = kind == KIND_SOFTWARE;
            c->software_at = kind == KIND_SOFTWARE ? eip : 0;
            ENV(c, O_NEXT_EIP, uint64_t) = next;
            if (kind == KIND_EXCEPTION) {
                ENV(c, O_EIP, uint64_t) = next;
                ENV(c, O_OLD_EXCEPTION, int32_t) = vector;      /* a fault while delivering it is a double fault */
            }
            ((cpu_fn)c->fn[F_DO_INTERRUPT])(c->cpu);
            ENV(c, O_IS_INT, int32_t) = 0;
            c->software_at = 0;
        }
        c->delivery.under_way = false;
    }
    if (injected && c->left <= 0)
        stop(c, EVENT_BUDGET);
    if (window_open(c) && (c->event == EVENT_NONE || c->event == EVENT_BUDGET)) {
        c->last = NULL;
        stop(c, EVENT_WINDOW);
    }
    return injected;
}

/* Temporaries. The engine's translator has room for 512 of them in a block and does not look whether they are used up; for
 * some instructions it forgets to give them back (those that a guest's intercepts concern, x87 and SSE with an operand in
 * the opcode). A few hundred of such in a row would overwrite its state. So we take the place of its function that makes
 * one, and when a block has many, tell the translator that its other buffer is full: it ends the block there. */
enum { MOST_TEMPORARIES = 256, OPERATIONS_FULL = 4000 };
typedef void *(*new_temporary_fn)(uint8_t *, int, bool);
static new_temporary_fn new_temporary;
static int64_t temporaries_at, operations_at;
static int most_temporaries;    /* that a block had since a core was made */

static void *limited_new_temporary(uint8_t *translator, int type, bool local)
{
    int count = FIELD(translator, temporaries_at, int32_t);
    if (count > most_temporaries)
        most_temporaries = count;
    if (count > MOST_TEMPORARIES)
        FIELD(translator, operations_at, int32_t) = OPERATIONS_FULL;
    return new_temporary(translator, type, local);
}

/* Have the library that `function` is in call `instead`: in its table of what it imports, itself included (System V ABI,
 * "Procedure Linkage Table"). Elsewhere than on Linux the limit is missing. */
static void interpose(void *function, void *instead)
{
#ifdef __linux__
    Dl_info info;
    struct link_map *map;
    if (!dladdr1(function, &info, (void **)&map, RTLD_DL_LINKMAP) || !info.dli_sname)
        return;
    const ElfW(Rela) *imports = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    size_t size = 0;
    for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++)
        switch (entry->d_tag) {
        case DT_JMPREL: imports = (const ElfW(Rela) *)entry->d_un.d_ptr; break;
        case DT_PLTRELSZ: size = entry->d_un.d_val; break;
        case DT_SYMTAB: symbols = (const ElfW(Sym) *)entry->d_un.d_ptr; break;
        case DT_STRTAB: names = (const char *)entry->d_un.d_ptr; break;
        }
    if (!imports || !symbols || !names)
        return;
    uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < size / sizeof *imports; i++)
        if (strcmp(names + symbols[imports[i].r_info >> 32].st_name, info.dli_sname) == 0) {
            uintptr_t slot = map->l_addr + imports[i].r_offset;
            if (mprotect((void *)(slot & ~(page_size - 1)), page_size, PROT_READ | PROT_WRITE) == 0)
                *(void **)slot = instead;
        }
#endif
}

static void load_frame(Core *c, const uint32_t *frame)
{
    ENV(c, O_EIP, uint64_t) = frame[0];
    ENV(c, O_EFLAGS, uint64_t) = frame[1] | 2;
    for (int i = 0; i < 8; i++)
        FIELD(c->env, 8 * (7 - i), uint64_t) = frame[2 + i];
}

static void store_frame(Core *c, uint32_t *frame)
{
    frame[0] = (uint32_t)ENV(c, O_EIP, uint64_t);
    frame[1] = (uint32_t)ENV(c, O_EFLAGS, uint64_t);
    if (ENV(c, O_HFLAGS, uint32_t) & HF_GUEST)
        frame[1] &= ~RF_MASK;   /* it is about one instruction: who looks at each, in Python, keeps it */
    for (int i = 0; i < 8; i++)
        frame[2 + i] = (uint32_t)FIELD(c->env, 8 * (7 - i), uint64_t);
}

/* Freeing. An engine takes a gigabyte of address space, so it is freed when somebody says so. But views on the CPU state
 * lead into the engine: while there is one, the engine stays, though nobody can run it any more. */
static bool is_open(Core *c)
{
    if (c->closed)
        PyErr_SetString(PyExc_RuntimeError, "this engine was closed");
    return !c->closed;
}

static void unlink_core(Core *c)
{
    for (Core **p = &cores; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
}

static void free_unless_seen(Core *c)
{
    if (c->closed && !c->views)
        Py_CLEAR(c->owner);
}

static PyObject *core_close(Core *c, PyObject *unused)
{
    c->closed = true;
    unlink_core(c);
    free_unless_seen(c);
    Py_RETURN_NONE;
}

static int core_get_buffer(Core *c, Py_buffer *view, int flags)
{
    if (!is_open(c)) {
        view->obj = NULL;
        return -1;
    }
    if (PyBuffer_FillInfo(view, (PyObject *)c, c->env, (Py_ssize_t)c->off[ENV_SIZE], 0, flags) < 0)
        return -1;
    c->views++;
    return 0;
}

static void core_release_buffer(Core *c, Py_buffer *view)
{
    c->views--;
    free_unless_seen(c);
}

static PyObject *core_run(Core *c, PyObject *args)
{
    Py_ssize_t frame_at;
    long long deadline;
    if (!PyArg_ParseTuple(args, "nL", &frame_at, &deadline))
        return NULL;
    int64_t now = host_ms();
    if (now >= c->yield_at) {                                   /* compiled callers never let other threads run */
        PyEval_RestoreThread(PyEval_SaveThread());
        c->yield_at = now + YIELD_MS;
    }
    if (!is_open(c))
        return NULL;
    uint32_t *frame = (uint32_t *)(c->ram + frame_at);
    load_frame(c, frame);
    c->left = deadline - (int64_t)(c->retired + c->deliveries + c->charged);
    c->event = EVENT_NONE;
    c->until_look = LOOK_BLOCKS;
    c->return_at = now + LONGEST_RUN_MS;
    c->paused = false;
    ENV(c, O_OLD_EXCEPTION, int32_t) = -1;
    ENV(c, O_IS_INT, int32_t) = 0;
    c->software_at = 0;
    c->delivery.under_way = false;
    while (c->left > 0 && c->event == EVENT_NONE) {
        c->last = NULL;
        c->cut = 0;
        if (c->inject >= 0 || c->window)
            CPU(c, O_INTERRUPT_REQUEST, uint32_t) |= REQUEST;
        int error = ((emu_start_fn)c->fn[F_EMU_START])(c->uc, (uint32_t)ENV(c, O_EIP, uint64_t), 0, 0, 0);
        CPU(c, O_INTERRUPT_REQUEST, uint32_t) &= ~REQUEST;
        if (error) {
            c->info[INFO_UC_ERROR] = error;
            c->event = EVENT_ERROR;
        } else if (c->event == EVENT_BUDGET && c->left > 0 && !c->paused) {
            c->event = EVENT_NONE;                              /* the next block is too long: have it cut */
            CPU(c, O_CFLAGS, uint32_t) = c->left < 0x7000 ? (uint32_t)c->left : 0x7000;
            if (c->cut && c->cut < c->left)
                CPU(c, O_CFLAGS, uint32_t) = (uint32_t)c->cut;
            c->split = 1;
        } else if (c->event == EVENT_NONE) {
            c->info[INFO_UC_ERROR] = 0xFFFE;                    /* it came back for no reason of ours */
            c->event = EVENT_ERROR;
        }
    }
    if (c->event == EVENT_NONE)
        c->event = EVENT_BUDGET;
    c->pass = false;
    CPU(c, O_CFLAGS, uint32_t) = 0xFFFFFFFF;
    store_frame(c, frame);
    if (PyErr_CheckSignals())                                   /* nobody else looks while compiled code runs */
        return NULL;
    return PyLong_FromLong(c->event);
}

static PyObject *core_swap(Core *c, PyObject *args)
{
    Py_buffer save, load;
    if (!is_open(c) || !PyArg_ParseTuple(args, "w*y*", &save, &load))
        return NULL;
    Py_ssize_t size = (Py_ssize_t)c->off[ENV_SIZE];
    int fits = save.len == size && load.len == size;
    if (fits) {
        memcpy(save.buf, c->env, size);
        memcpy(c->env, load.buf, size);
        ((cpu_fn)c->fn[F_TLB_FLUSH])(c->cpu);
    }
    PyBuffer_Release(&save);
    PyBuffer_Release(&load);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "a CPU context has the size that the engine's probe found");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *core_charge(Core *c, PyObject *value)
{
    long long cycles = PyLong_AsLongLong(value);
    if (PyErr_Occurred())
        return NULL;
    c->charged += cycles;
    return PyLong_FromUnsignedLongLong(c->retired + c->deliveries + c->charged);
}

static PyObject *core_flush_tlb(Core *c, PyObject *unused)
{
    if (!is_open(c))
        return NULL;
    ((cpu_fn)c->fn[F_TLB_FLUSH])(c->cpu);
    Py_RETURN_NONE;
}

static PyObject *core_flush_page(Core *c, PyObject *address)
{
    unsigned long linear = PyLong_AsUnsignedLong(address);
    if (PyErr_Occurred() || !is_open(c))
        return NULL;
    ((flush_page_fn)c->fn[F_TLB_FLUSH_PAGE])(c->cpu, linear & ~0xFFFUL);
    Py_RETURN_NONE;
}

static PyObject *core_forget_code(Core *c, PyObject *args)
{
    unsigned long long begin, end;
    if (!PyArg_ParseTuple(args, "KK", &begin, &end) || !is_open(c))
        return NULL;
    ((invalidate_fn)c->fn[F_INVALIDATE])(c->uc, begin, end);
    for (uint64_t page = (begin + 4095) >> 12; page < end >> 12 && page < c->ram_size >> 12; page++)
        c->has_code[page] = 0;  /* of a whole page nothing is left */
    Py_RETURN_NONE;
}

/* The up to 15 bytes at a linear address, through the TLB that the CPU has just fetched them with. */
static PyObject *core_code_at(Core *c, PyObject *address)
{
    unsigned long linear = PyLong_AsUnsignedLong(address);
    if (PyErr_Occurred() || !is_open(c))
        return NULL;
    uint64_t page = linear & ~0xFFFUL;
    for (int mode = 0; mode < TLB_MODES; mode++) {
        uint8_t *description = c->env - c->off[TLB_TABLES] + 16 * mode;
        uint64_t mask = FIELD(description, 0, uint64_t);
        uint8_t *entry = FIELD(description, 8, uint8_t *) + (page >> 12 << 6 & mask);
        if (FIELD(entry, TLB_EXECUTE, uint64_t) == page && FIELD(entry, TLB_PADDR, uint64_t) < c->ram_size) {
            Py_ssize_t size = 4096 - (linear - page) < 15 ? (Py_ssize_t)(4096 - (linear - page)) : 15;
            return PyBytes_FromStringAndSize((char *)(linear + FIELD(entry, TLB_ADDEND, uint64_t)), size);
        }
    }
    return PyBytes_FromStringAndSize(NULL, 0);
}

static PyObject *core_set_cr3(Core *c, PyObject *value)
{
    unsigned long cr3 = PyLong_AsUnsignedLong(value);
    if (PyErr_Occurred() || !is_open(c))
        return NULL;
    FIELD(c->env, c->off[O_CR] + 24, uint64_t) = cr3;
    ((cpu_fn)c->fn[F_TLB_FLUSH])(c->cpu);
    Py_RETURN_NONE;
}

static PyObject *core_inject(Core *c, PyObject *args)
{
    unsigned int error = 0, length = 0;
    int vector, kind;
    if (!PyArg_ParseTuple(args, "iiII", &vector, &kind, &error, &length))
        return NULL;
    c->inject = vector;
    c->inject_kind = kind;
    c->inject_error = error;
    c->inject_length = length;
    Py_RETURN_NONE;
}

static PyObject *core_go_on(Core *c, PyObject *unused)
{
    c->pass = true;
    Py_RETURN_NONE;
}

static PyObject *core_set_window(Core *c, PyObject *value)
{
    c->window = PyObject_IsTrue(value);
    Py_RETURN_NONE;
}

static PyObject *core_set_time(Core *c, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "pK", &c->native_time, &c->time_offset))
        return NULL;
    Py_RETURN_NONE;
}

static int core_init(Core *c, PyObject *args, PyObject *kwargs)
{
    unsigned long long uc, ram, ram_size, has_code;
    PyObject *functions, *offsets, *owner;
    if (!PyArg_ParseTuple(args, "KKKKO!O!O", &uc, &ram, &ram_size, &has_code, &PyTuple_Type, &functions, &PyTuple_Type, &offsets, &owner))
        return -1;
    if (PyTuple_Size(functions) != FUNCTIONS || PyTuple_Size(offsets) != OFFSETS) {
        PyErr_SetString(PyExc_ValueError, "engine.py and _core.c disagree; build the package again");
        return -1;
    }
    for (int i = 0; i < FUNCTIONS; i++)
        c->fn[i] = PyLong_AsVoidPtr(PyTuple_GetItem(functions, i));
    for (int i = 0; i < OFFSETS; i++)
        c->off[i] = PyLong_AsLongLong(PyTuple_GetItem(offsets, i));
    if (PyErr_Occurred())
        return -1;
    c->info_bytes = PyByteArray_FromStringAndSize(NULL, INFO_WORDS * sizeof *c->info);
    if (!c->info_bytes)
        return -1;
    c->info = (uint32_t *)PyByteArray_AsString(c->info_bytes);
    memset(c->info, 0, INFO_WORDS * sizeof *c->info);
    c->owner = Py_NewRef(owner);
    c->uc = (void *)(uintptr_t)uc;
    c->ram = (uint8_t *)(uintptr_t)ram;
    c->cpu = FIELD((uint8_t *)c->uc, c->off[O_CPU], uint8_t *);
    c->env = c->cpu + c->off[O_ENV];
    c->inject = -1;
    c->ram_size = ram_size;
    c->has_code = (uint8_t *)(uintptr_t)has_code;
    uintptr_t *class = CPU(c, O_CLASS, uintptr_t *);
    for (int i = 0; i < 64; i++)        /* a table of functions: take over the one that looks for interrupts */
        if (class[i] == (uintptr_t)c->fn[F_EXEC_INTERRUPT])
            class[i] = (uintptr_t)exec_interrupt;
    temporaries_at = c->off[TCG_TEMPORARIES];
    operations_at = c->off[TCG_OPERATIONS];
    most_temporaries = 0;
    if (!new_temporary) {
        new_temporary = (new_temporary_fn)c->fn[F_NEW_TEMPORARY];
        interpose(c->fn[F_NEW_TEMPORARY], (void *)limited_new_temporary);
    }
    c->next = cores;
    cores = c;
    return 0;
}

static void core_dealloc(Core *c)
{
    unlink_core(c);
    Py_XDECREF(c->owner);
    Py_XDECREF(c->info_bytes);
    PyTypeObject *type = Py_TYPE((PyObject *)c);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(c);
    Py_DECREF(type);
}

static PyObject *get_retired(Core *c, void *unused) { return PyLong_FromUnsignedLongLong(c->retired); }
static PyObject *get_deliveries(Core *c, void *unused) { return PyLong_FromUnsignedLongLong(c->deliveries); }
static PyObject *get_cycles(Core *c, void *unused)
{
    return PyLong_FromUnsignedLongLong(c->retired + c->deliveries + c->charged);
}
static PyObject *get_temporaries(Core *c, void *unused) { return PyLong_FromLong(most_temporaries); }
static PyObject *get_pending(Core *c, void *unused) { return PyLong_FromLong(c->inject); }

static PyObject *get_info(Core *c, void *unused)
{
    return PyMemoryView_FromObject(c->info_bytes);
}

static PyObject *get_env(Core *c, void *unused)
{
    return PyMemoryView_FromObject((PyObject *)c);
}

static PyObject *get_callbacks(Core *c, void *unused)
{
    return Py_BuildValue("(KKKKKKKK)", (unsigned long long)(uintptr_t)c, (unsigned long long)(uintptr_t)on_block,
                         (unsigned long long)(uintptr_t)on_interrupt, (unsigned long long)(uintptr_t)on_invalid,
                         (unsigned long long)(uintptr_t)on_in, (unsigned long long)(uintptr_t)on_out,
                         (unsigned long long)(uintptr_t)on_sysenter, (unsigned long long)(uintptr_t)on_cpuid);
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)core_run, METH_VARARGS, "run(frame, deadline): run until the clock reads `deadline` or something happens, or for some time; the event"},
    {"close", (PyCFunction)core_close, METH_NOARGS, "close(): nothing runs any more; the engine is freed once nobody has a view on its state"},
    {"swap", (PyCFunction)core_swap, METH_VARARGS, "swap(save, load): exchange the whole CPU state, flush the TLB"},
    {"charge", (PyCFunction)core_charge, METH_O, "charge(cycles): move the clock without running; what it reads then"},
    {"flush_tlb", (PyCFunction)core_flush_tlb, METH_NOARGS, "flush_tlb(): forget all translations"},
    {"flush_page", (PyCFunction)core_flush_page, METH_O, "flush_page(linear): forget the translation of one page"},
    {"forget_code", (PyCFunction)core_forget_code, METH_VARARGS, "forget_code(begin, end): Python wrote to this RAM"},
    {"code_at", (PyCFunction)core_code_at, METH_O, "code_at(linear): bytes of the instruction just fetched there, or none"},
    {"set_cr3", (PyCFunction)core_set_cr3, METH_O, "set_cr3(address): load CR3, flush the TLB"},
    {"inject", (PyCFunction)core_inject, METH_VARARGS, "inject(vector, kind, error, length): deliver before the next instruction"},
    {"go_on", (PyCFunction)core_go_on, METH_NOARGS, "go_on(): execute the instruction that the last run stopped before"},
    {"set_time", (PyCFunction)core_set_time, METH_VARARGS, "set_time(native, offset): how a guest's RDTSC is answered"},
    {"set_window", (PyCFunction)core_set_window, METH_O, "set_window(on): stop when an interrupt could be taken"},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef getset[] = {
    {"retired", (getter)get_retired, NULL, "instructions retired since the core was made", NULL},
    {"deliveries", (getter)get_deliveries, NULL, "events delivered through the guest's IDT", NULL},
    {"cycles", (getter)get_cycles, NULL, "the clock: retired + deliveries + charged", NULL},
    {"pending", (getter)get_pending, NULL, "the vector that waits to be injected, or -1", NULL},
    {"temporaries", (getter)get_temporaries, NULL, "the most that the translator needed for a block since a core was made", NULL},
    {"info", (getter)get_info, NULL, "what the last event was about", NULL},
    {"env", (getter)get_env, NULL, "the engine's CPU state, live", NULL},
    {"callbacks", (getter)get_callbacks, NULL, "addresses to register with the engine", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {{Py_tp_init, core_init}, {Py_tp_dealloc, core_dealloc}, {Py_tp_methods, methods},
                              {Py_tp_getset, getset}, {Py_tp_new, PyType_GenericNew}, {Py_bf_getbuffer, core_get_buffer},
                              {Py_bf_releasebuffer, core_release_buffer}, {0, NULL}};

static PyType_Spec spec = {"l4lab.machine._core.Core", sizeof(Core), 0, Py_TPFLAGS_DEFAULT, slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_core", "The native half of engine.py.", -1, NULL,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *m = PyModule_Create(&module);
    PyObject *type = PyType_FromSpec(&spec);
    if (!m || !type || PyModule_AddObjectRef(m, "Core", type) < 0)
        return NULL;
    Py_DECREF(type);
    return m;
}
