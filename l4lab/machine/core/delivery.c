/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Events of a guest go through its IDT. The engine knows how, but leaves it to its user: what is simple and frequent it is
 * made to do here, at once. All else is handed over to Python (delivery.py).
 */
#include "core.h"

typedef void (*hard_interrupt_fn)(void *, int, int);
typedef uint32_t (*load_fn)(void *, uint64_t, int, uintptr_t);
enum { TASK_GATE = 5, BLOCK_EVENT = 0xA8, DESCRIPTOR_PRESENT = 1 << 15 };
enum { TYPE_EXTERNAL = 0, TYPE_NMI = 2, TYPE_EXCEPTION = 3, TYPE_SOFTWARE = 4 };
static const int type_of_kind[] = {TYPE_EXTERNAL, TYPE_EXCEPTION, TYPE_SOFTWARE, TYPE_NMI};
#define EVENT_HAS_ERROR ((uint32_t)1 << 11)
#define EVENT_VALID ((uint32_t)1 << 31)
#define WITH_ERROR_CODE ((uint32_t)(1 << 8 | 0x1F << 10 | 1 << 17) & ~(uint32_t)(1 << 9))
#define NO_FAULTS ((uint32_t)(1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 18))  /* traps, NMI, aborts */

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
void hand_over_delivery(Core *c)
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
    LAST(c) = NULL;
    c->info[INFO_VECTOR] = c->delivery.vector;
    c->info[INFO_ERROR_CODE] = c->delivery.error;
    c->info[INFO_IS_INT] = c->delivery.kind;
    c->info[INFO_VALUE] = c->delivery.back;
    c->info[INFO_SIZE] = c->delivery.injected;
    stop(c, EVENT_DELIVER);
}

/* Deliver an exception through the guest's IDT, as the CPU would; the engine knows how but leaves it to its user. */
void deliver(Core *c)
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

/* Stands in for the engine's own: called between blocks while interrupt_request is set. */
bool exec_interrupt(void *cpu, int request)
{
    Core *c = cores;
    while (c && c->cpu != cpu)
        c = c->next;
    if (!c)
        return false;
    settle(c);
    bool injected = c->inject >= 0;
    if (injected) {
        int vector = c->inject, kind = c->inject_kind;
        uint32_t eip = ENV(c, O_EIP, uint32_t), next = eip;
        if (kind == KIND_EXCEPTION || kind == KIND_SOFTWARE)
            next += c->inject_length;
        c->inject = -1;
        if (!c->window)
            CPU(c, O_INTERRUPT_REQUEST, uint32_t) &= ~REQUEST;
        LAST(c) = NULL;
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
        LAST(c) = NULL;
        stop(c, EVENT_WINDOW);
    }
    return injected;
}
