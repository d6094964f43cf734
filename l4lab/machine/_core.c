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
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef _MSC_VER
#include <intrin.h>
#define RETURN_ADDRESS() ((uintptr_t)_ReturnAddress())
#else
#define RETURN_ADDRESS() ((uintptr_t)__builtin_return_address(0))
#endif

/* What run() returns when it is not an exception (0..255) or a VM exit (256 + AMD exit code). */
enum { EVENT_BUDGET = -1, EVENT_ERROR = -2, EVENT_WINDOW = -3, EVENT_IN = -4, EVENT_OUT = -5, EVENT_NONE = -100 };

/* The engine's own functions, by the order in which engine.py hands them over. */
enum { F_EMU_START, F_EMU_STOP, F_DO_INTERRUPT, F_HARD_INTERRUPT, F_LOOP_EXIT, F_TLB_FLUSH, F_EXEC_INTERRUPT,
       F_INVALIDATE, F_RESET_DIRTY, F_TLB_FLUSH_PAGE, FUNCTIONS };

/* Offsets into private structures, likewise. */
enum {
    O_CPU, O_ENV, O_CFLAGS, O_INTERRUPT_REQUEST, O_EXCEPTION_INDEX, O_CLASS,  /* from uc, from cpu (the last five) */
    O_EIP, O_EFLAGS, O_HFLAGS, O_SEGS, O_CR, O_ERROR_CODE, O_IS_INT, O_NEXT_EIP, O_OLD_EXCEPTION, /* from env */
    O_TR, O_VMCB,
    ENV_SIZE,
    TB_PC, TB_SIZE, TB_ICOUNT, TB_CFLAGS, TB_CODE, TB_CODE_SIZE, TB_PAGES, TB_STRUCT,   /* from a TranslationBlock */
    TLB_TABLES,                                                               /* backwards from env */
    OFFSETS
};

/* Fields of an entry of the engine's TLB, which is 64 bytes long, and the flag that sends stores the slow way. */
enum { TLB_MODES = 3, TLB_ENTRY = 64, TLB_WRITE = 8, TLB_EXECUTE = 16, TLB_ADDEND = 32, TLB_PADDR = 24, TLB_NOTDIRTY = 0x400, SWEEP_BLOCKS = 4096 };
enum { LOOK_BLOCKS = 256, LONGEST_RUN_MS = 100, YIELD_MS = 5 };
enum { EXIT_RDTSC = 0x100 + 0x6E };
enum { HF_INHIBIT_IRQ = 1 << 3, HF_GUEST = 1 << 21, TF_MASK = 1 << 8, IF_MASK = 1 << 9 };
enum { CF_COUNT_MASK = 0x7fff, REQUEST = 1 << 11 };
enum { SINGLE_STEP = 1, EXIT_SINGLE_STEP = 0x100 + 0x41, BLOCK_EVENT = 0xA8, DESCRIPTOR_PRESENT = 1 << 15 };
enum { TYPE_EXTERNAL = 0, TYPE_SOFTWARE = 4 };
#define EVENT_VALID ((uint32_t)1 << 31)
enum { INFO_VECTOR, INFO_ERROR_CODE, INFO_IS_INT, INFO_PORT, INFO_SIZE, INFO_VALUE, INFO_UC_ERROR, INFO_WORDS };

typedef int (*emu_start_fn)(void *, uint64_t, uint64_t, uint64_t, size_t);
typedef int (*emu_stop_fn)(void *);
typedef void (*cpu_fn)(void *);
typedef void (*hard_interrupt_fn)(void *, int, int);
typedef void (*invalidate_fn)(void *, uint64_t, uint64_t);
typedef void (*flush_page_fn)(void *, uint64_t);
typedef void (*reset_dirty_fn)(void *, uint64_t, uint64_t);

typedef struct Core {
    PyObject_HEAD
    struct Core *next;          /* all live cores: exec_interrupt() is given a CPU only */
    void *uc;
    uint8_t *cpu, *env, *ram;
    uint64_t ram_size;
    uint8_t *has_code;          /* a byte per page of RAM: code was executed there */
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
    uint8_t *last;              /* the block that began last, or NULL */
    /* of all runs */
    uint64_t retired, deliveries, charged;  /* their sum is the clock */
    /* orders for the next run */
    int window;                 /* stop at the first instruction boundary at which an interrupt could be taken */
    int native_time;            /* RDTSC in guest mode gives the clock plus `time_offset`, without an exit */
    uint64_t time_offset;
    int inject;                 /* deliver this event first: vector, or -1 */
    int inject_kind;            /* 0 external interrupt, 1 exception, 2 software interrupt */
    uint32_t inject_error, inject_length;
    uint32_t info[INFO_WORDS];
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
static int64_t walk_block(const Core *c, const uint8_t *tb, uint64_t pc, int64_t count, uint64_t *reached)
{
    const uint8_t *p = FIELD(tb, c->off[TB_CODE], const uint8_t *) + FIELD(tb, c->off[TB_CODE_SIZE], size_t);
    uint64_t at = FIELD(tb, c->off[TB_PC], const uint64_t);
    for (int64_t i = 0; i < count; i++) {
        for (int column = 0; column < 3; column++) {
            int64_t value = 0;
            int shift = 0;
            uint8_t byte;
            do {
                byte = *p++;
                value |= (int64_t)(byte & 0x7f) << shift;
                shift += 7;
            } while (byte & 0x80);
            if (shift < 64 && (byte & 0x40))
                value |= -((int64_t)1 << shift);
            if (column == 0)
                at += value;
        }
        *reached = at;
        if (at == pc)
            return i;
    }
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
 * notes such pages, and now and then we clear the flag in the TLB entries of all others. */
static void note_code(Core *c, uint64_t page_address)
{
    uint64_t page = page_address >> 12;
    if (page_address < c->ram_size && !c->has_code[page]) {
        c->has_code[page] = 1;
        ((reset_dirty_fn)c->fn[F_RESET_DIRTY])(c->cpu, (uintptr_t)c->ram + (page << 12), 4096);
    }
}

static void sweep_tlb(Core *c)
{
    int64_t entries = 0;
    for (int mode = 0; mode < TLB_MODES; mode++) {
        uint8_t *description = c->env - c->off[TLB_TABLES] + 16 * mode;
        uint64_t mask = FIELD(description, 0, uint64_t);
        uint8_t *entry = FIELD(description, 8, uint8_t *), *end = entry + mask + TLB_ENTRY;
        entries += (end - entry) / TLB_ENTRY;
        for (; entry < end; entry += TLB_ENTRY) {
            uint64_t write = FIELD(entry, TLB_WRITE, uint64_t), page = FIELD(entry, TLB_PADDR, uint64_t);
            if ((write & 0xFFF) == TLB_NOTDIRTY && page < c->ram_size && !c->has_code[page >> 12])
                FIELD(entry, TLB_WRITE, uint64_t) = write & ~(uint64_t)TLB_NOTDIRTY;
        }
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

/* Has the run taken so long that somebody may want to stop it? A guest that writes into its own code executes a thousand
 * times slower than others, so the number of instructions says nothing. To come back here changes nothing in the run:
 * it is as if the budget had been smaller. */
static bool taken_long(Core *c)
{
    c->until_look = LOOK_BLOCKS;
    c->paused = host_ms() >= c->return_at;
    return c->paused;
}

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
    if ((FIELD(tb, c->off[TB_CFLAGS], uint32_t) & CF_COUNT_MASK) && !c->split)
        take_back(c, pc);       /* the last block overwrote itself: the engine left it at this instruction */
    c->split = 0;
    if (window_open(c)) {       /* the shadow of STI ended with a jump, behind which the engine does not look */
        c->last = NULL;
        stop(c, EVENT_WINDOW);
        return;
    }
    if (count > c->left || (--c->until_look <= 0 && taken_long(c))) {
        c->last = NULL;
        stop(c, EVENT_BUDGET);
        return;
    }
    c->left -= count;
    c->retired += count;
    c->last = tb;
    note_code(c, FIELD(tb, c->off[TB_PAGES], uint64_t));
    note_code(c, FIELD(tb, c->off[TB_PAGES] + 8, uint64_t));    /* all ones if there is no second page */
    if (--c->until_sweep <= 0)
        sweep_tlb(c);
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

/* The event in delivery, as the control block names it, where the engine would name it wrongly: it takes an external
 * interrupt for an exception, and gives INT 13 an error code. */
static void name_event(Core *c, int type, int vector)
{
    FIELD(c->ram, ENV(c, O_VMCB, uint32_t) + BLOCK_EVENT, uint32_t) = EVENT_VALID | (uint32_t)type << 8 | (uint32_t)vector;
}

/* Deliver an exception through the guest's IDT, as the CPU would; the engine knows how but leaves it to its user. */
static void deliver(Core *c)
{
    c->left -= 1;               /* so that a guest which only faults cannot stop the clock */
    c->deliveries += 1;
    forget_unusable_tss(c);
    if (ENV(c, O_IS_INT, int32_t))
        name_event(c, TYPE_SOFTWARE, CPU(c, O_EXCEPTION_INDEX, int32_t));
    ((cpu_fn)c->fn[F_DO_INTERRUPT])(c->cpu);    /* may leave by longjmp when the delivery faults itself */
    ENV(c, O_IS_INT, int32_t) = 0;              /* the engine would move EIP by it at the next VM exit */
    c->software_at = 0;
    if (c->left <= 0)
        stop(c, EVENT_BUDGET);
}

/* RDTSC of a guest whose controls leave it alone: the clock, exact to the instruction, and on with the guest. */
static bool read_time(Core *c)
{
    uint64_t pc = linear_eip(c), reached, next;
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
    int is_int = ENV(c, O_IS_INT, int32_t) != 0;
    if (number >= 0x100)
        ENV(c, O_IS_INT, int32_t) = is_int = 0;
    if (c->software_at)         /* a fault or an exit while INT n was delivered: it is at INT n */
        ENV(c, O_EIP, uint64_t) = c->software_at;
    c->software_at = 0;
    if (number == EXIT_RDTSC && c->native_time && read_time(c))
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

/* #UD. In guest mode too it is for Python: VMX instructions, which the engine does not know, are VM exits. */
static bool on_invalid(void *uc, void *opaque)
{
    Core *c = opaque;
    take_back(c, linear_eip(c));
    c->info[INFO_VECTOR] = 6;
    c->info[INFO_ERROR_CODE] = 0;
    c->info[INFO_IS_INT] = 0;
    stop(c, 6);
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
        int vector = c->inject;
        c->inject = -1;
        if (!c->window)
            CPU(c, O_INTERRUPT_REQUEST, uint32_t) &= ~REQUEST;
        c->left -= 1;
        c->deliveries += 1;
        c->last = NULL;
        forget_unusable_tss(c);
        if (c->inject_kind == 0) {
            name_event(c, TYPE_EXTERNAL, vector);
            ((hard_interrupt_fn)c->fn[F_HARD_INTERRUPT])(c->env, vector, 1);
        } else {
            CPU(c, O_EXCEPTION_INDEX, int32_t) = vector;
            ENV(c, O_ERROR_CODE, uint32_t) = c->inject_error;
            ENV(c, O_IS_INT, int32_t) = c->inject_kind == 2;
            c->software_at = c->inject_kind == 2 ? ENV(c, O_EIP, uint64_t) : 0;
            ENV(c, O_NEXT_EIP, uint64_t) = (uint32_t)(ENV(c, O_EIP, uint64_t) + c->inject_length);
            if (c->inject_kind == 2)
                name_event(c, TYPE_SOFTWARE, vector);
            if (c->inject_kind == 1)
                ENV(c, O_OLD_EXCEPTION, int32_t) = vector;      /* a fault while delivering it is a double fault */
            ((cpu_fn)c->fn[F_DO_INTERRUPT])(c->cpu);
            ENV(c, O_IS_INT, int32_t) = 0;
            c->software_at = 0;
        }
    }
    if (injected && c->left <= 0)
        stop(c, EVENT_BUDGET);
    if (window_open(c) && (c->event == EVENT_NONE || c->event == EVENT_BUDGET)) {
        c->last = NULL;
        stop(c, EVENT_WINDOW);
    }
    return injected;
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
    for (int i = 0; i < 8; i++)
        frame[2 + i] = (uint32_t)FIELD(c->env, 8 * (7 - i), uint64_t);
}

static PyObject *core_run(Core *c, PyObject *args)
{
    Py_ssize_t frame_at;
    long long deadline;
    if (!PyArg_ParseTuple(args, "nL", &frame_at, &deadline))
        return NULL;
    uint32_t *frame = (uint32_t *)(c->ram + frame_at);
    load_frame(c, frame);
    c->left = deadline - (int64_t)(c->retired + c->deliveries + c->charged);
    c->event = EVENT_NONE;
    c->until_look = LOOK_BLOCKS;
    int64_t now = host_ms();
    if (now >= c->yield_at) {                                   /* compiled callers never let other threads run */
        PyEval_RestoreThread(PyEval_SaveThread());
        c->yield_at = now + YIELD_MS;
    }
    c->return_at = now + LONGEST_RUN_MS;
    c->paused = false;
    ENV(c, O_OLD_EXCEPTION, int32_t) = -1;
    ENV(c, O_IS_INT, int32_t) = 0;
    c->software_at = 0;
    while (c->left > 0 && c->event == EVENT_NONE) {
        c->last = NULL;
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
            c->split = 1;
        } else if (c->event == EVENT_NONE) {
            c->info[INFO_UC_ERROR] = 0xFFFE;                    /* it came back for no reason of ours */
            c->event = EVENT_ERROR;
        }
    }
    if (c->event == EVENT_NONE)
        c->event = EVENT_BUDGET;
    CPU(c, O_CFLAGS, uint32_t) = 0xFFFFFFFF;
    store_frame(c, frame);
    if (PyErr_CheckSignals())                                   /* nobody else looks while compiled code runs */
        return NULL;
    return PyLong_FromLong(c->event);
}

static PyObject *core_swap(Core *c, PyObject *args)
{
    Py_buffer save, load;
    if (!PyArg_ParseTuple(args, "w*y*", &save, &load))
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
    ((cpu_fn)c->fn[F_TLB_FLUSH])(c->cpu);
    Py_RETURN_NONE;
}

static PyObject *core_flush_page(Core *c, PyObject *address)
{
    unsigned long linear = PyLong_AsUnsignedLong(address);
    if (PyErr_Occurred())
        return NULL;
    ((flush_page_fn)c->fn[F_TLB_FLUSH_PAGE])(c->cpu, linear & ~0xFFFUL);
    Py_RETURN_NONE;
}

static PyObject *core_forget_code(Core *c, PyObject *args)
{
    unsigned long long begin, end;
    if (!PyArg_ParseTuple(args, "KK", &begin, &end))
        return NULL;
    ((invalidate_fn)c->fn[F_INVALIDATE])(c->uc, begin, end);
    Py_RETURN_NONE;
}

/* The up to 15 bytes at a linear address, through the TLB that the CPU has just fetched them with. */
static PyObject *core_code_at(Core *c, PyObject *address)
{
    unsigned long linear = PyLong_AsUnsignedLong(address);
    if (PyErr_Occurred())
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
    if (PyErr_Occurred())
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
    unsigned long long uc, ram, ram_size;
    PyObject *functions, *offsets;
    if (!PyArg_ParseTuple(args, "KKKO!O!", &uc, &ram, &ram_size, &PyTuple_Type, &functions, &PyTuple_Type, &offsets))
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
    c->uc = (void *)(uintptr_t)uc;
    c->ram = (uint8_t *)(uintptr_t)ram;
    c->cpu = FIELD((uint8_t *)c->uc, c->off[O_CPU], uint8_t *);
    c->env = c->cpu + c->off[O_ENV];
    c->inject = -1;
    c->ram_size = ram_size;
    c->has_code = calloc(ram_size >> 12, 1);
    if (!c->has_code) {
        PyErr_NoMemory();
        return -1;
    }
    uintptr_t *class = CPU(c, O_CLASS, uintptr_t *);
    for (int i = 0; i < 64; i++)        /* a table of functions: take over the one that looks for interrupts */
        if (class[i] == (uintptr_t)c->fn[F_EXEC_INTERRUPT])
            class[i] = (uintptr_t)exec_interrupt;
    c->next = cores;
    cores = c;
    return 0;
}

static void core_dealloc(Core *c)
{
    for (Core **p = &cores; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    free(c->has_code);
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
static PyObject *get_pending(Core *c, void *unused) { return PyLong_FromLong(c->inject); }

static PyObject *get_info(Core *c, void *unused)
{
    return PyMemoryView_FromMemory((char *)c->info, sizeof c->info, PyBUF_READ);
}

static PyObject *get_env(Core *c, void *unused)
{
    return PyMemoryView_FromMemory((char *)c->env, (Py_ssize_t)c->off[ENV_SIZE], PyBUF_WRITE);
}

static PyObject *get_callbacks(Core *c, void *unused)
{
    return Py_BuildValue("(KKKKKK)", (unsigned long long)(uintptr_t)c, (unsigned long long)(uintptr_t)on_block,
                         (unsigned long long)(uintptr_t)on_interrupt, (unsigned long long)(uintptr_t)on_invalid,
                         (unsigned long long)(uintptr_t)on_in, (unsigned long long)(uintptr_t)on_out);
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)core_run, METH_VARARGS, "run(frame, deadline): run until the clock reads `deadline` or something happens, or for some time; the event"},
    {"swap", (PyCFunction)core_swap, METH_VARARGS, "swap(save, load): exchange the whole CPU state, flush the TLB"},
    {"charge", (PyCFunction)core_charge, METH_O, "charge(cycles): move the clock without running; what it reads then"},
    {"flush_tlb", (PyCFunction)core_flush_tlb, METH_NOARGS, "flush_tlb(): forget all translations"},
    {"flush_page", (PyCFunction)core_flush_page, METH_O, "flush_page(linear): forget the translation of one page"},
    {"forget_code", (PyCFunction)core_forget_code, METH_VARARGS, "forget_code(begin, end): Python wrote to this RAM"},
    {"code_at", (PyCFunction)core_code_at, METH_O, "code_at(linear): bytes of the instruction just fetched there, or none"},
    {"set_cr3", (PyCFunction)core_set_cr3, METH_O, "set_cr3(address): load CR3, flush the TLB"},
    {"inject", (PyCFunction)core_inject, METH_VARARGS, "inject(vector, kind, error, length): deliver before the next instruction"},
    {"set_time", (PyCFunction)core_set_time, METH_VARARGS, "set_time(native, offset): how a guest's RDTSC is answered"},
    {"set_window", (PyCFunction)core_set_window, METH_O, "set_window(on): stop when an interrupt could be taken"},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef getset[] = {
    {"retired", (getter)get_retired, NULL, "instructions retired since the core was made", NULL},
    {"deliveries", (getter)get_deliveries, NULL, "events delivered through the guest's IDT", NULL},
    {"cycles", (getter)get_cycles, NULL, "the clock: retired + deliveries + charged", NULL},
    {"pending", (getter)get_pending, NULL, "the vector that waits to be injected, or -1", NULL},
    {"info", (getter)get_info, NULL, "what the last event was about", NULL},
    {"env", (getter)get_env, NULL, "the engine's CPU state, live", NULL},
    {"callbacks", (getter)get_callbacks, NULL, "addresses to register with the engine", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {{Py_tp_init, core_init}, {Py_tp_dealloc, core_dealloc}, {Py_tp_methods, methods},
                              {Py_tp_getset, getset}, {Py_tp_new, PyType_GenericNew}, {0, NULL}};

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
