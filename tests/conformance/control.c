/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chapters 7 and 8: ThreadControl, SpaceControl, ExchangeRegisters; MemoryControl and ProcessorControl of chapter 4. */
#include "check.h"

#define NIL L4_nilthread
#define KEEP L4_UTCB_UNCHANGED
#define INACTIVE 3 /* workers' numbers */
#define FRESH 4

static L4_Word_t refused(L4_Word_t result, L4_Word_t error) { return result == 0 && L4_ErrorCode() == error; }

/* Everything that only privileged threads may do, from a worker that is none. */
static L4_Word_t errors[6];

static L4_Word_t without_privilege(L4_Word_t nothing)
{
    static const L4_Word_t none[4];
    L4_ThreadId_t me = L4_Myself();
    L4_Set_MsgTag(L4_Niltag);
    errors[0] = refused(L4_ThreadControl(me, me, NIL, NIL, KEEP), L4_ErrNoPrivilege);
    errors[1] = refused(L4_SpaceControl(me, 0, L4_Nilpage, L4_Nilpage, NIL, 0), L4_ErrNoPrivilege);
    errors[2] = refused(L4_MemoryControl(0, none), L4_ErrNoPrivilege);
    errors[3] = refused(L4_ProcessorControl(0, 0, 0, 0), L4_ErrNoPrivilege);
    errors[4] = refused(L4_Set_Priority(main_thread, 10), L4_ErrNoPrivilege);
    errors[5] = L4_ExchangeRegisters(main_thread, 0, 0, 0, 0, 0, NIL, 0, 0, 0, 0, 0, 0).raw == 0 &&
                L4_ErrorCode() == L4_ErrInvalidThread;
    return nothing;
}

static void privileges(void)
{
    start_apart(1);
    let(1, without_privilege, 0);
    CHECK("8.1", "ThreadControl without privilege: error 1", errors[0]);
    CHECK("8.2", "SpaceControl without privilege: error 1", errors[1]);
    CHECK("4.2", "MemoryControl without privilege: error 1", errors[2]);
    CHECK("14", "Q1: ProcessorControl has a result", errors[3] && L4_ProcessorControl(0, 0, 0, 0) == 1);
    CHECK("7", "Schedule by another than the scheduler: error 1", errors[4]);
    CHECK("8.3", "ExchangeRegisters in a foreign space: error 2", errors[5]);
    stop(1);
}

static void threads(void)
{
    L4_ThreadId_t me = main_thread, t = worker(INACTIVE), renamed = L4_GlobalId(L4_ThreadNo(t), 2);
    L4_ThreadId_t kernels = L4_GlobalId(20, 1);
    struct ipc i;
    CHECK("8.1", "create without a scheduler: error 2", refused(L4_ThreadControl(t, me, NIL, me, utcb_of(3)), 2));
    CHECK("8.1", "create active in a fresh space: error 3", refused(L4_ThreadControl(t, t, me, me, utcb_of(3)), 3));
    CHECK("8.1", "create in nobody's space: error 3", refused(L4_ThreadControl(t, nobody(), me, me, utcb_of(3)), 3));
    CHECK("8.1", "create active without a UTCB: error 6", refused(L4_ThreadControl(t, me, me, me, KEEP), 6));
    CHECK("8.1", "create active with a UTCB elsewhere: error 6",
          refused(L4_ThreadControl(t, me, me, me, (void *)0x10000000), 6));
    CHECK("8.1", "a thread of the kernel's: error 2", refused(L4_ThreadControl(kernels, me, me, me, utcb_of(3)), 2));
    CHECK("8.1", "delete nobody: done", delete(t) == 1);
    CHECK("8.1", "delete oneself: error 2", refused(delete(me), 2));

    CHECK("8.1", "create inactive", L4_ThreadControl(t, me, me, NIL, KEEP) == 1);
    CHECK("7", "an inactive thread is dead to Schedule", state_of(t) == 1);
    CHECK("8.3", "ExchangeRegisters of an inactive thread: error 2",
          refused(L4_ExchangeRegisters(t, 0, 0, 0, 0, 0, NIL, 0, 0, 0, 0, 0, 0).raw, 2));
    CHECK("8.1", "activate without a UTCB: error 6", refused(L4_ThreadControl(t, me, NIL, me, KEEP), 6));
    CHECK("8.1", "set the UTCB of an inactive thread", L4_ThreadControl(t, me, NIL, NIL, utcb_of(3)) == 1);
    CHECK("8.1", "activate", L4_ThreadControl(t, me, NIL, me, KEEP) == 1 && state_of(t) == 6);
    CHECK("8.1", "move the UTCB of an active thread: error 6",
          refused(L4_ThreadControl(t, me, NIL, NIL, utcb_of(4)), 6));
    CHECK("8.1", "modify with nobody's space: error 3", refused(L4_ThreadControl(t, nobody(), NIL, NIL, KEEP), 3));
    start_at(t, work, stacks[3] + STACK);
    settle();
    CHECK("8.1", "another version", L4_ThreadControl(renamed, me, NIL, NIL, KEEP) == 1);
    CHECK("8.1", "is the name from now on", state_of(renamed) != 0 && state_of(t) == 0);
    CHECK("8.1", "and is in the UTCB", ((volatile L4_Word_t *)local_worker(3).raw)[-15] == renamed.raw);
    i = (struct ipc){.to = t, .timeouts = NOT_WAITING};
    run(&i);
    CHECK("8.1", "nobody has the old name", i.error == 4);
    delete(renamed);
    CHECK("8.1", "a deleted thread is nobody", state_of(renamed) == 0 && L4_ErrorCode() == L4_ErrInvalidThread);
}

static L4_Word_t where(L4_Word_t nothing)
{
    (void)nothing;
    return (L4_Word_t)L4_KernelInterface(0, 0, 0);
}

static void spaces(void)
{
    L4_ThreadId_t me = main_thread, t = worker(FRESH);
    L4_Fpage_t kip = L4_FpageLog2(0x00c00000, 12), utcbs = L4_FpageLog2(0x00800000, 14);
    L4_Word_t old = ~0UL;
    L4_ThreadControl(t, t, me, NIL, (void *)0x00800000);
    CHECK("8.2", "nobody's space: error 3", refused(L4_SpaceControl(nobody(), 0, kip, utcbs, NIL, 0), 3));
    CHECK("8.2", "a UTCB area of less than a page: error 6",
          refused(L4_SpaceControl(t, 0, kip, L4_FpageLog2(0x00800000, 11), NIL, 0), 6));
    CHECK("8.2", "a UTCB area of the kernel's: error 6",
          refused(L4_SpaceControl(t, 0, kip, L4_FpageLog2(0xf0000000, 14), NIL, 0), 6));
    CHECK("8.2", "a KIP area of less than a page: error 7",
          refused(L4_SpaceControl(t, 0, L4_FpageLog2(0x00c00000, 10), utcbs, NIL, 0), 7));
    CHECK("8.2", "a KIP area of the kernel's: error 7",
          refused(L4_SpaceControl(t, 0, L4_FpageLog2(0xf0000000, 12), utcbs, NIL, 0), 7));
    CHECK("8.2", "a KIP area within the UTCB area: error 7",
          refused(L4_SpaceControl(t, 0, L4_FpageLog2(0x00801000, 12), utcbs, NIL, 0), 7));
    CHECK("8.1", "activate in a space without areas: error 3", refused(L4_ThreadControl(t, t, NIL, me, KEEP), 3));
    CHECK("8.2", "areas anywhere", L4_SpaceControl(t, 0, kip, utcbs, NIL, &old) == 1);
    CHECK("8.2", "the old control word is zero", old == 0);
    CHECK("8.1", "activate in a space with areas", L4_ThreadControl(t, t, NIL, pager_thread, KEEP) == 1);
    stop(FRESH);
    CHECK("8.1", "the last thread takes the space along",
          refused(L4_SpaceControl(t, 0, kip, utcbs, NIL, 0), L4_ErrInvalidSpace));

    start_apart(1);
    CHECK("3.2", "each space is told where its KIP is", let(1, where, 0) == (L4_Word_t)l4_kip);
    CHECK("8.1", "two threads in one space that is not the root server's",
          L4_ThreadControl(t, worker(1), me, pager_thread, (void *)(UTCB_AREA + 512)) == 1);
    CHECK("8.1", "its UTCB area is full after eight",
          refused(L4_ThreadControl(worker(5), worker(1), me, pager_thread, (void *)(UTCB_AREA + 4096)), 6));
    stop(FRESH);
    stop(1);
}

/* A thread moves from the space of worker 1 to main's. */
static L4_Word_t remember(L4_Word_t handle)
{
    L4_Set_UserDefinedHandle(handle);
    return 0;
}

static L4_Word_t recall(L4_Word_t nothing) { return L4_UserDefinedHandle() + nothing; }

static void migration(void)
{
    struct ipc waiting = {.from = worker(1)}, after = {.to = main_thread, .mr = {1, 3}};
    struct ipc take = {.from = worker(FRESH), .timeouts = L4_TimePeriod(1000).raw};
    L4_ThreadId_t t = worker(FRESH);
    start_apart(1);
    L4_ThreadControl(t, worker(1), main_thread, pager_thread, utcb_of(FRESH));
    start_by_pager(FRESH);
    let(FRESH, remember, 0x1991);
    begin_ipc(FRESH, &after);
    run(&take);
    finish(FRESH);
    CHECK("8.1", "two threads share a space, and main is elsewhere", take.partner.raw == t.raw);
    CHECK("8.1", "migrate where its UTCB would be another's: error 6",
          refused(L4_ThreadControl(worker(1), main_thread, NIL, NIL, KEEP), 6));
    begin_ipc(FRESH, &waiting);
    CHECK("8.1", "migrate", L4_ThreadControl(t, main_thread, NIL, NIL, KEEP) == 1);
    finish(FRESH);
    CHECK("8.1", "a migration aborts an IPC", waiting.error == 7);
    CHECK("8.1", "a migration takes the UTCB along", let(FRESH, recall, 0) == 0x1991);
    after = (struct ipc){.to = main_thread, .mr = {1, 4}};
    take.timeouts = L4_TimePeriod(1000).raw;
    take.from = t;
    begin_ipc(FRESH, &after);
    run(&take);
    finish(FRESH);
    CHECK("8.1", "a migrant is at home where it is", take.partner.raw == local_worker(FRESH).raw && take.mr[1] == 4);
    CHECK("8.1", "and sees what is there", let(FRESH, where, 0) == (L4_Word_t)l4_kip);
    stop(FRESH);
    stop(1);
}

/* ExchangeRegisters */

static L4_Word_t old_control, old_sp, old_ip, old_flags, old_handle;
static L4_ThreadId_t old_pager;
static volatile L4_Word_t counter;

static L4_Word_t exchange(L4_ThreadId_t t, L4_Word_t control, L4_Word_t sp, L4_Word_t ip, L4_Word_t flags,
                          L4_Word_t handle, L4_ThreadId_t of_pager)
{
    return L4_ExchangeRegisters(t, control, sp, ip, flags, handle, of_pager, &old_control, &old_sp, &old_ip, &old_flags,
                                &old_handle, &old_pager)
        .raw;
}

static void count(void)
{
    for (;;)
        counter++;
}

static L4_Word_t grows(void)
{
    L4_Word_t before = counter;
    L4_Sleep(L4_TimePeriod(200));
    return counter != before;
}

static void registers(void)
{
    L4_ThreadId_t me = main_thread, t = worker(INACTIVE);
    L4_Word_t stack = (L4_Word_t)stacks[3] + STACK;
    L4_ThreadControl(t, me, me, me, utcb_of(3));
    exchange(t, 0, 0, 0, 0, 0, NIL);
    CHECK("8.3", "a new thread's pager", old_pager.raw == me.raw);
    CHECK("4.4", "a new thread's EFLAGS: interrupts on, no I/O privilege", (old_flags & 0x3200) == 0x200);
    CHECK("8.3", "R: it waits for its pager", (old_control & 7) == 2);
    exchange(t, 1 << 6, 1, 2, 3, 0xcafe, NIL);
    exchange(t, 0, 0, 0, 0, 0, NIL);
    CHECK("8.3", "u writes the handle and nothing else",
          old_handle == 0xcafe && old_sp != 1 && old_ip != 2 && old_pager.raw == me.raw);
    exchange(t, 1 << 7, 0, 0, 0, 0, pager_thread);
    exchange(t, 0, 0, 0, 0, 0, NIL);
    CHECK("8.3", "p writes the pager", old_pager.raw == pager_thread.raw && old_handle == 0xcafe);
    exchange(t, 1 << 7, 0, 0, 0, 0, me);
    exchange(t, 1 << 3, 0x1000, 0x2000, 0, 0, NIL);
    exchange(t, 1 << 4, 0x3000, 0x4000, 0, 0, NIL);
    CHECK("8.3", "s writes SP only", old_sp == 0x1000 && old_ip != 0x2000);
    exchange(t, 1 << 5, 0, 0, ~0UL, 0, NIL);
    CHECK("8.3", "i writes IP only", old_sp == 0x1000 && old_ip == 0x4000);
    exchange(t, 1 << 5, 0, 0, 0, 0, NIL);
    CHECK("8.3", "f writes the arithmetic flags only", (old_flags & ~2UL) == (0x8d5 | 0x200));

    exchange(t, 0x1e, stack, (L4_Word_t)count, 0, 0, NIL);
    CHECK("8.3", "S, R, s and i start a thread without a message", grows() && state_of(t) == 3);
    exchange(t, 1 << 8 | 1, 0, 0, 0, 0, NIL);
    CHECK("8.3", "H halts it", !grows());
    CHECK("7", "a halted thread is inactive to Schedule", state_of(t) == 2);
    exchange(t, 0, 0, 0, 0, 0, NIL);
    CHECK("8.3", "and is shown as halted", (old_control & 1) == 1);
    exchange(t, 1, 0, 0, 0, 0, NIL);
    CHECK("8.3", "H without h does nothing", !grows());
    exchange(t, 1 << 8, 0, 0, 0, 0, NIL);
    CHECK("8.3", "h without H resumes it", grows());
    exchange(t, 0, 0, 0, 0, 0, NIL);
    CHECK("8.3", "it is not halted any more", (old_control & 1) == 0 && old_ip - (L4_Word_t)count < 64);
    stop(INACTIVE);
    CHECK("8.3", "a wrong version is nobody: error 2",
          refused(exchange(L4_GlobalId(L4_ThreadNo(me), 2), 0, 0, 0, 0, 0, NIL), 2));
}

static L4_Word_t on_oneself(L4_Word_t nothing)
{
    L4_ThreadId_t me = L4_Myself();
    exchange(me, 1 << 6 | 1 << 7, 0, 0, 0, 0xabcd, pager_thread);
    if (L4_UserDefinedHandle() != 0xabcd || L4_Pager().raw != pager_thread.raw)
        return 0;
    exchange(me, 1 << 8 | 1, 0, 0, 0, 0, NIL);
    return 1 + nothing;
}

static void oneself(void)
{
    start(INACTIVE);
    begin(INACTIVE, on_oneself, 0);
    CHECK("8.3", "a thread halts itself", state_of(worker(INACTIVE)) == 2);
    exchange(worker(INACTIVE), 1 << 8, 0, 0, 0, 0, NIL);
    CHECK("8.3", "a thread sets its own handle and pager, and goes on when resumed", finish(INACTIVE) == 1);
    stop(INACTIVE);
}

/* MemoryControl */

static L4_Word_t memory_control(L4_Word_t control, L4_Word_t fpage, L4_Word_t attribute)
{
    L4_Word_t attributes[4] = {attribute};
    L4_Set_MsgTag((L4_MsgTag_t){fpage});
    return L4_MemoryControl(control, attributes);
}

static void attributes(void)
{
    L4_Word_t page = L4_FpageLog2((L4_Word_t)filler, PAGE_LOG2).raw;
    CHECK("4.2", "MemoryControl: write-back", memory_control(0, page, 1) == 1);
    CHECK("4.2", "MemoryControl: uncacheable", memory_control(0, page, 4) == 1);
    CHECK("4.2", "MemoryControl: write-protected", memory_control(0, page, 8) == 1);
    CHECK("4.2", "MemoryControl: no such attribute: error 5", refused(memory_control(0, page, 6), 5));
    CHECK("4.2", "MemoryControl: an attribute out of range: error 5", refused(memory_control(0, page, 100), 5));
    CHECK("4.2", "MemoryControl: 64 fpages: error 5", refused(memory_control(64, page, 0), 5));
    CHECK("4.2", "MemoryControl: nil fpages are skipped", memory_control(0, 0, 6) == 1);
    memory_control(0, page, 0);
}

int main(void)
{
    hello();
    privileges();
    threads();
    spaces();
    migration();
    registers();
    oneself();
    attributes();
    return goodbye();
}
