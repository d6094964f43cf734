/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the engine calls when something happens: exceptions, software interrupts and VM exits; ports; memory that is not
 * there. Each is noted for Python, at the instruction, before it changes anything.
 */
#include "core.h"

enum { SINGLE_STEP = 1, EXIT_SINGLE_STEP = 0x100 + 0x41, EXIT_RDTSC = 0x100 + 0x6E, EXIT_NESTED_FAULT = 0x100 + 0x400 };
/* From UC_MEM_READ_UNMAPPED and the two that follow to UC_ERR_READ_UNMAPPED and the two that follow. */
#define ERROR_OF_ACCESS(type) ((uint32_t)(type) - 19 + 6)

/* RDTSC of a guest whose controls leave it alone: the clock, exact to the instruction, and on with the guest. */
static bool read_time(Core *c)
{
    uint64_t pc = linear_eip(c), reached = 0, next;
    uint8_t *tb = LAST(c);
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

void on_interrupt(void *uc, uint32_t number, void *opaque)
{
    Core *c = opaque;
    settle(c);
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
    bool stepped = number == SINGLE_STEP || number == EXIT_SINGLE_STEP;
    if (!is_int && !stepped)    /* a single-step trap comes after the instruction, even where that jumps to itself */
        take_back(c, linear_eip(c));
    else if (is_int && LAST(c)) {
        /* EIP is behind INT n, which ended its block, or INTO, which need not have */
        c->software_at = (uint32_t)(instruction_before(c, LAST(c), linear_eip(c)) - CS_BASE(c));
        take_back(c, linear_eip(c));
    }
    LAST(c) = NULL;
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
bool on_invalid(void *uc, void *opaque)
{
    Core *c = opaque;
    if (ENV(c, O_IS_INT, int32_t)) {
        ENV(c, O_EIP, uint64_t) = ENV(c, O_NEXT_EIP, uint64_t);     /* as the engine has done for the others */
        on_interrupt(uc, UNDEFINED_OPCODE, opaque);
        return true;
    }
    settle(c);
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
    settle(c);
    take_back(c, linear_eip(c));
    c->info[INFO_PORT] = port;
    c->info[INFO_SIZE] = size;
    c->info[INFO_VALUE] = value;
    stop(c, event);
    ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
}

uint32_t on_in(void *uc, uint32_t port, int size, void *opaque)
{
    on_port(opaque, EVENT_IN, port, size, 0);
    return 0;
}

void on_out(void *uc, uint32_t port, int size, uint32_t value, void *opaque)
{
    on_port(opaque, EVENT_OUT, port, size, value);
}

/* SYSENTER, which the engine leaves to its user: a guest's is done in Python; in a program it is a #GP. */
void on_sysenter(void *uc, void *opaque)
{
    Core *c = opaque;
    settle(c);
    take_back(c, linear_eip(c));
    bool guest = ENV(c, O_HFLAGS, uint32_t) & HF_GUEST;
    c->info[INFO_VECTOR] = GENERAL_PROTECTION;
    c->info[INFO_ERROR_CODE] = c->info[INFO_IS_INT] = 0;
    stop(c, guest ? EVENT_SYSENTER : GENERAL_PROTECTION);
    ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
}

/* CPUID of a program, which nothing intercepts: the engine would tell of its own CPU. Of a guest it is a VM exit. */
int on_cpuid(void *uc, void *opaque)
{
    Core *c = opaque;
    settle(c);
    take_back(c, linear_eip(c));
    stop(c, EVENT_CPUID);
    ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
    return 1;
}

/* An access to where no RAM is. The engine would finish the block before it gives up at a store. */
bool on_unmapped(void *uc, int type, uint64_t address, int size, int64_t value, void *opaque)
{
    Core *c = opaque;
    settle(c);
    take_back(c, linear_eip(c));
    c->info[INFO_UC_ERROR] = ERROR_OF_ACCESS(type);
    stop(c, EVENT_ERROR);
    ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
    return false;
}
