/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Exact counting: how many instructions have retired, and where a run must end.
 *
 * Two ways, to the same numbers. *Inline*, translated code counts for itself: each block begins by taking its number of
 * instructions off a credit, and calls slow_block() when the credit does not suffice. What has been used up of the credit
 * is taken into account when somebody looks (`settle`). With the *callback*, the engine calls on_block() from the
 * translated code of each block; the call's return address lies in that code, and in front of it is the block's
 * description.
 *
 * Where a run must end inside a block we ask the engine, by the field that it uses itself for self-modifying code
 * (cflags_next_tb), to translate a shorter one. When a trap happens inside a block, what did not retire is taken back.
 */
#include "core.h"
#include <time.h>

#ifdef _MSC_VER
#include <intrin.h>
#define RETURN_ADDRESS() ((uintptr_t)_ReturnAddress())
#else
#define RETURN_ADDRESS() ((uintptr_t)__builtin_return_address(0))
#endif

enum { ALWAYS_SLOW = 1 << 28 };     /* more than any credit */

/* The credit is the engine's own field for the purpose (icount_decr, as QEMU's -icount has it): whoever wants the CPU to
 * leave translated code makes it negative, by its upper half. */
#define CREDIT(c) FIELD((c)->env - (c)->off[CREDIT_FIELD], 0, int32_t)
#define CREDIT_LOW(c) FIELD((c)->env - (c)->off[CREDIT_FIELD], 0, uint16_t)

static void settle_with(Core *c, int64_t credit)
{
    int64_t used = c->granted - credit;
    c->left -= used;
    c->retired += used;
    c->until_look -= used;
    c->granted = 0;
    CREDIT_LOW(c) = 0;
}

/* Take into account what translated code has used up of its credit. It has none then, until the next block. */
void settle(Core *c)
{
    if (c->granted)
        settle_with(c, CREDIT_LOW(c));
}

/* Nothing is left to translated code where something may have to be done between any two blocks. That is not so already
 * when somebody waits for a window: while interrupts are off none opens, and what turns them on leaves translated code. */
static void grant(Core *c)
{
    int64_t most = c->left < c->until_look ? c->left : c->until_look;
    if (most < 0 || (c->window && (ENV(c, O_EFLAGS, uint64_t) & IF_MASK)))
        most = 0;
    c->granted = most;
    CREDIT_LOW(c) = (uint16_t)most;
}

/* A trap happened with EIP at an instruction of the last block: it and those after it have not retired. */
void take_back(Core *c, uint64_t pc)
{
    uint8_t *tb = LAST(c);
    if (!tb)
        return;
    uint64_t first = TB(c, tb, TB_PC, uint64_t);
    if (pc >= first && pc < first + TB(c, tb, TB_SIZE, uint16_t)) {
        uint64_t reached;
        int64_t undone = TB(c, tb, TB_ICOUNT, uint16_t) - index_in_block(c, tb, pc, &reached);
        c->left += undone;
        c->retired -= undone;
    }
    LAST(c) = NULL;
}

uint64_t linear_eip(const Core *c)
{
    return (uint32_t)(ENV(c, O_EIP, uint64_t) + CS_BASE(c));
}

/* May an interrupt be taken here, and has somebody asked to be told? */
bool window_open(const Core *c)
{
    return c->window && (ENV(c, O_EFLAGS, uint64_t) & IF_MASK) && !(ENV(c, O_HFLAGS, uint32_t) & HF_INHIBIT_IRQ);
}

/* Milliseconds by the host's clock. */
int64_t host_ms(void)
{
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Now and then: sweep the TLB, and see whether the run has taken so long that somebody may want to stop it. To come back
 * here changes nothing in the run: it is as if the budget had been smaller. */
static bool taken_long(Core *c)
{
    c->until_look = LOOK;
    if ((c->until_sweep -= LOOK) <= 0)
        sweep_tlb(c);
    c->paused = host_ms() >= c->return_at;
    return c->paused;
}

/* A block that is new, cut or special, or one before which we may have to stop. True if we have. */
static bool stop_at(Core *c, uint8_t *tb, uint64_t pc)
{
    uint32_t *flags = &TB(c, tb, TB_CFLAGS, uint32_t);
    if ((*flags & CF_COUNT_MASK) && !c->split)
        take_back(c, pc);       /* the last block overwrote itself: the engine left it at this instruction */
    c->split = 0;
    if (!(*flags & CF_SEEN)) {  /* also if it does not run now: it is translated */
        note_code(c, TB(c, tb, TB_PAGES, uint64_t));
        note_code(c, FIELD(tb, c->off[TB_PAGES] + 8, uint64_t));    /* all ones if there is no second page */
    }
    if (window_open(c)) {       /* the shadow of STI ended with a jump, behind which the engine does not look */
        LAST(c) = NULL;
        stop(c, EVENT_WINDOW);
        return true;
    }
    if (TB(c, tb, TB_ICOUNT, uint16_t) > c->left || (c->until_look <= 0 && taken_long(c))) {
        LAST(c) = NULL;
        stop(c, EVENT_BUDGET);
        return true;
    }
    if ((*flags & (CF_SEEN | CF_SPECIAL)) != CF_SEEN && stop_before(c, tb))
        return true;
    if (*flags & CF_REPEATS)
        repeat(c, code_byte(c, tb, pc + 1));
    return false;
}

/* A block begins. True if the run ends before it. What a block in the middle of a run needs comes first. */
static bool begin(Core *c, uint8_t *tb, uint64_t pc)
{
    int64_t count = TB(c, tb, TB_ICOUNT, uint16_t);
    bool everyday = (TB(c, tb, TB_CFLAGS, uint32_t) & (CF_COUNT_MASK | CF_SEEN | CF_SPECIAL | CF_REPEATS)) == CF_SEEN;
    c->until_look -= LOOKED_AT;
    if ((c->until_look <= 0 || !everyday || count > c->left || c->split || c->window) && stop_at(c, tb, pc))
        return true;
    c->left -= count;
    c->retired += count;
    LAST(c) = tb;
    return false;
}

/* The engine calls it from the translated code of each block, and looks whether to stop when we return. */
void on_block(void *uc, uint64_t pc, uint32_t size, void *opaque)
{
    Core *c = opaque;
    uintptr_t code = (RETURN_ADDRESS() - 1) & ~(uintptr_t)63;
    for (int tries = 0; tries < 4; tries++, code -= 64) {
        uint8_t *tb = (uint8_t *)code - c->off[TB_STRUCT];
        if (TB(c, tb, TB_CODE, uintptr_t) == code && TB(c, tb, TB_PC, uint64_t) == pc) {
            begin(c, tb, pc);
            return;
        }
    }
    c->info[INFO_UC_ERROR] = 0xFFFF;    /* the probe at start-up makes this impossible; never count wrongly all the same */
    stop(c, EVENT_ERROR);
}

/* A block calls it that has not the credit it needs, having taken off `cost` all the same. It goes on when we return. */
void slow_block(uint8_t *tb, int32_t cost)
{
    Core *c = running;
    int32_t credit = CREDIT(c) + cost;
    bool asked_to_leave = credit < 0;
    uint64_t pc = TB(c, tb, TB_PC, uint64_t);
    CREDIT(c) = 0;
    settle_with(c, (uint16_t)credit);
    if (asked_to_leave || begin(c, tb, pc)) {
        ENV(c, O_EIP, uint64_t) = pc - TB(c, tb, TB_CS_BASE, uint64_t);
        ((cpu_fn)c->fn[F_LOOP_EXIT])(c->cpu);
    }
    grant(c);
}

/* What a block that is about to be translated is to take off the credit: the number of its instructions, or so much that it
 * always calls slow_block(). Only a block with which there is nothing to do but to count it is left to itself. */
int32_t cost_of_block(Core *c, uint8_t *tb, const uint64_t *instructions, int count)
{
    uint64_t pc = TB(c, tb, TB_PC, uint64_t), *pages = &TB(c, tb, TB_PAGES, uint64_t);
    uint32_t flags = TB(c, tb, TB_FLAGS, uint32_t);     /* of the CPU: HF_ and EFLAGS of the modes that make a difference */
    bool ordered = TB(c, tb, TB_CFLAGS, uint32_t) & (CF_COUNT_MASK | CF_NOCACHE);
    bool one_page = (pc ^ (pc + TB(c, tb, TB_SIZE, uint16_t) - 1)) >> 12 == 0;
    if (ordered || !one_page || flags & (RF_MASK | TF_MASK | HF_INHIBIT_IRQ) || count != TB(c, tb, TB_ICOUNT, uint16_t))
        return ALWAYS_SLOW;
    pages[0] = code_page(c, pc);        /* the engine has not noted them yet */
    pages[1] = ~(uint64_t)0;
    if (pages[0] >= c->ram_size || is_repeated(c, tb))
        return ALWAYS_SLOW;
    if (flags & HF_GUEST)
        for (int i = 0; i < count; i++)
            if (classify(c, tb, instructions[i]) != NOTHING)
                return ALWAYS_SLOW;
    note_code(c, pages[0]);
    TB(c, tb, TB_CFLAGS, uint32_t) |= CF_SEEN;
    return count;
}
