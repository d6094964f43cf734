/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chapter 7: Schedule, ThreadSwitch, who runs when, and the preemption protocol (section 6.5). */
#include "check.h"

static volatile L4_Word_t counters[WORKERS], switches, last;

static L4_Word_t refused(L4_Word_t result, L4_Word_t error) { return result == 0 && L4_ErrorCode() == error; }

static L4_Word_t count(L4_Word_t n)
{
    for (;;) {
        counters[n]++;
        if (last != n) {
            last = n; /* only now: slices may always end at the same instruction */
            switches++;
        }
    }
}

static L4_Word_t run_for(L4_Word_t us)
{
    counters[0] = counters[1] = switches = 0;
    L4_Sleep(L4_TimePeriod(us));
    return counters[0] + counters[1];
}

static L4_Word_t schedule(L4_ThreadId_t t, L4_Word_t time, L4_Word_t prio, L4_Word_t cpu, L4_Word_t delay)
{
    return L4_Schedule(t, time, cpu, prio, delay, 0);
}

static void arguments(void)
{
    L4_Word_t same = ~0UL, time = 0;
    L4_ThreadId_t t = worker(0), wrong = L4_GlobalId(L4_ThreadNo(t), 5);
    CHECK("7", "a waiting thread is waiting", state_of(t) == 6);
    CHECK("7", "the caller is running", state_of(main_thread) == 3);
    l4_utcb()[-9] = 77;
    CHECK("4.1", "Schedule sets ErrorCode to 0", state_of(t) && L4_ErrorCode() == 0);
    CHECK("7", "a wrong version is nobody: error 2", refused(state_of(wrong), L4_ErrInvalidThread));
    CHECK("7", "nobody: error 2", refused(state_of(nobody()), L4_ErrInvalidThread));
    CHECK("7", "no such processor is refused", refused(schedule(t, same, same, 7, same), L4_ErrInvalidParam));
    CHECK("7", "processor 0", schedule(t, same, same, 0, same) == 6);
    CHECK("7", "a sensitive priority below the priority is refused", schedule(t, same, same, same, 10 << 16) == 0);
    CHECK("7", "a sensitive priority above it", schedule(t, same, same, same, 150 << 16 | 1000) == 6);
    CHECK("7", "a point of time as slice is refused", schedule(t, 0x8000UL << 16, same, same, same) == 0);
    CHECK("7", "priority and slice of a privileged caller's choice",
          schedule(t, (L4_Word_t)L4_TimePeriod(4000).raw << 16, 255, same, same) == 6);
    schedule(t, same, 100, same, 100 << 16);
    L4_Schedule(t, same, same, same, same, &time);
    CHECK("14", "Q8: the slice is the upper half", time >> 16 > 3000 && time >> 16 <= 4000 && (time & 0xffff) == 0);
    L4_Schedule(worker(1), same, same, same, same, &time);
    CHECK("7", "a slice is 10 ms by default", time >> 16 > 9000 && time >> 16 <= 10000);
}

static void priorities(void)
{
    L4_Set_Timeslice(worker(0), L4_TimePeriod(1000), L4_Never);
    L4_Set_Timeslice(worker(1), L4_TimePeriod(500), L4_Never);
    begin(0, count, 0);
    begin(1, count, 1);
    run_for(6000);
    CHECK("7", "equal priorities take turns", switches >= 6 && switches <= 10);
    CHECK("7", "slices are as long as they say", counters[0] > counters[1] && counters[0] < 3 * counters[1]);
    CHECK("7", "who runs is running, and so is who could", state_of(worker(0)) == 3 && state_of(worker(1)) == 3);
    L4_Set_Priority(worker(1), 101);
    run_for(2000);
    CHECK("7", "a higher priority has it all", !counters[0] && counters[1]);
    L4_Set_Priority(worker(1), 99);
    run_for(2000);
    CHECK("7", "a lower one has nothing", counters[0] && !counters[1]);
    L4_Set_Priority(worker(1), 100);
    L4_Set_Timeslice(worker(0), L4_Never, L4_Never);
    L4_Set_Timeslice(worker(1), L4_Never, L4_Never);
    run_for(1000);
    run_for(3000);
    CHECK("7", "a slice may never end", switches <= 1);
}

static volatile L4_Word_t turns[2];

static L4_Word_t take_turns(L4_Word_t n)
{
    for (;;) {
        turns[n]++;
        L4_Yield();
    }
}

static L4_Word_t switch_to(L4_Word_t id)
{
    counters[1] = 0;
    L4_ThreadSwitch((L4_ThreadId_t){id});
    return counters[1];
}

static L4_Word_t switch_to_waiting(L4_Word_t id)
{
    L4_ThreadSwitch((L4_ThreadId_t){id});
    return 1;
}

static void switching(void)
{
    L4_Set_Timeslice(worker(1), L4_TimePeriod(1000), L4_Never);
    L4_Set_Priority(worker(1), 50);
    begin(2, take_turns, 0);
    begin(3, take_turns, 1);
    turns[0] = turns[1] = 0;
    L4_Sleep(L4_TimePeriod(1000));
    CHECK("7", "ThreadSwitch to nobody: the next one's turn",
          turns[0] > 2 && turns[0] - turns[1] + 1 <= 2);
    stop(2);
    stop(3);
    L4_Set_Timeslice(worker(4), L4_TimePeriod(2000), L4_Never);
    CHECK("7", "ThreadSwitch lets a lower priority run", let(4, switch_to, worker(1).raw) > 0);
    CHECK("7", "ThreadSwitch to one who waits comes back", let(4, switch_to_waiting, worker(5).raw) == 1);
    CHECK("7", "ThreadSwitch to nobody's id comes back", let(4, switch_to_waiting, nobody().raw) == 1);
}

static void quantum(void)
{
    struct ipc take = {.from = worker(0), .timeouts = L4_TimePeriod(200000).raw}, answer = {.to = worker(0)};
    L4_Word64_t started, when;
    start(0);
    settle();
    L4_Set_Timeslice(worker(0), L4_TimePeriod(1000), L4_TimePeriod(3000));
    started = L4_SystemClock().raw;
    begin(0, count, 0);
    run(&take);
    when = (L4_Word64_t)take.mr[2] << 32 | take.mr[1];
    CHECK("6.5", "an exhausted quantum: a message to the scheduler", take.mr[0] == (0xffd0UL << 16 | 2));
    CHECK("6.5", "it says when", when >= started + 3000 && when <= L4_SystemClock().raw);
    counters[0] = 0;
    settle();
    CHECK("6.5", "until the answer it does not run", counters[0] == 0);
    L4_Set_Timeslice(worker(0), L4_TimePeriod(1000), L4_Never);
    answer.timeouts = NOT_WAITING;
    run(&answer);
    CHECK("6.5", "after the answer it does", answer.error == 0 && run_for(500) > 0);
    stop(0);
}

static L4_Word_t delay_for_a_while(L4_Word_t flags)
{
    volatile L4_Word8_t *byte = l4_preemption_flags();
    L4_Word_t pending = 0;
    *byte = (L4_Word8_t)flags;
    for (;;) {
        counters[0]++;
        if (*byte & 0x80)
            pending = 1;
        counters[1] = pending;
    }
}

static void delays(void)
{
    start(0);
    settle();
    L4_Schedule(worker(0), L4_UNCHANGED, L4_UNCHANGED, L4_UNCHANGED, 255UL << 16 | 2000, 0);
    begin(0, delay_for_a_while, 0x40);
    settle();
    L4_Sleep(L4_TimePeriod(2000));
    CHECK("7", "d delays a preemption, and I says so", counters[1] == 1);
    stop(0);
    start(0);
    settle();
    L4_Schedule(worker(0), L4_UNCHANGED, L4_UNCHANGED, L4_UNCHANGED, 255UL << 16 | 2000, 0);
    begin(0, delay_for_a_while, 0);
    settle();
    L4_Sleep(L4_TimePeriod(2000));
    CHECK("7", "without d there is no delay", counters[1] == 0 && counters[0]);
    stop(0);
}

static L4_Word_t signal_me(L4_Word_t flags)
{
    L4_Set_ExceptionHandler(main_thread);
    *(volatile L4_Word8_t *)l4_preemption_flags() = (L4_Word8_t)flags;
    for (;;)
        counters[0]++;
}

static void signals(void)
{
    struct ipc take = {.from = worker(0), .timeouts = L4_TimePeriod(5000).raw}, answer = {.to = worker(0)};
    start(0);
    settle();
    begin(0, signal_me, 0x20);
    settle();
    run(&take);
    CHECK("2", "s: a preemption is told to the exception handler", take.mr[0] == (0xffd0UL << 16 | 2));
    answer.timeouts = NOT_WAITING;
    run(&answer);
    CHECK("2", "s: who was preempted runs on after the answer", answer.error == 0 && run_for(500) > 0);
    stop(0);
}

/* A worker that is not privileged, with priority 100, is the scheduler of another one. */
static L4_Word_t results[4];

static L4_Word_t as_scheduler(L4_Word_t id)
{
    L4_ThreadId_t t = {id};
    L4_Word_t same = ~0UL;
    results[0] = L4_Set_Priority(t, 90);
    results[1] = refused(L4_Set_Priority(t, 101), L4_ErrNoPrivilege);
    results[2] = schedule(t, same, same, same, 100UL << 16 | 50);
    results[3] = refused(schedule(t, same, same, same, 101UL << 16 | 50), L4_ErrNoPrivilege);
    return 0;
}

static void schedulers(void)
{
    stop(0);
    start_apart(0);
    L4_ThreadControl(worker(1), main_thread, worker(0), L4_nilthread, L4_UTCB_UNCHANGED);
    let(0, as_scheduler, worker(1).raw);
    CHECK("7", "a scheduler needs no privilege", results[0] == 6);
    CHECK("7", "a priority above the caller's: error 1", results[1]);
    CHECK("14", "Q9: a sensitive priority up to the caller's", results[2] == 6);
    CHECK("7", "and no higher", results[3]);
    L4_ThreadControl(worker(1), main_thread, main_thread, L4_nilthread, L4_UTCB_UNCHANGED);
    L4_Set_Priority(worker(1), 100);
    stop(0);
    start(0);
    settle();
}

int main(void)
{
    hello();
    for (L4_Word_t n = 0; n < 6; n++)
        start(n);
    settle();
    arguments();
    schedulers();
    priorities();
    stop(0);
    switching();
    stop(1);
    quantum();
    delays();
    signals();
    return goodbye();
}
