/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Running the CPU: from a register frame, for an exact number of instructions, into the frame.
 */
#include "core.h"

enum { LONGEST_RUN_MS = 100 };

Core *cores, *running;

void stop(Core *c, int event)
{
    c->event = event;
    ((emu_stop_fn)c->fn[F_EMU_STOP])(c->uc);
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

/* Run until the clock reads `deadline` or something happens, or for some time; the event. */
int run(Core *c, uint32_t *frame, int64_t deadline, int64_t now)
{
    load_frame(c, frame);
    c->left = deadline - (int64_t)(c->retired + c->deliveries + c->charged);
    c->event = EVENT_NONE;
    c->until_look = LOOK;
    c->return_at = now + LONGEST_RUN_MS;
    c->paused = false;
    ENV(c, O_OLD_EXCEPTION, int32_t) = -1;
    ENV(c, O_IS_INT, int32_t) = 0;
    c->software_at = 0;
    c->delivery.under_way = false;
    running = c;
    while (c->left > 0 && c->event == EVENT_NONE) {
        LAST(c) = NULL;
        c->cut = 0;
        if (c->inject >= 0 || c->window)
            CPU(c, O_INTERRUPT_REQUEST, uint32_t) |= REQUEST;
        int error = ((emu_start_fn)c->fn[F_EMU_START])(c->uc, (uint32_t)ENV(c, O_EIP, uint64_t), 0, 0, 0);
        settle(c);
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
    running = NULL;
    if (c->event == EVENT_NONE)
        c->event = EVENT_BUDGET;
    c->pass = false;
    CPU(c, O_CFLAGS, uint32_t) = 0xFFFFFFFF;
    store_frame(c, frame);
    return c->event;
}
