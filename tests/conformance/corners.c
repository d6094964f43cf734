/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chapters 5 to 8 where two rules meet: what each of them says alone, other programs of this suite look at. */
#include "check.h"

#define HERE 0 /* two workers in main's space, whose pager is main ... */
#define THERE 1
#define APART 2 /* ... and two in spaces of their own, whose pager is the pager */
#define BEYOND 3
#define SPARE 4
#define P (1UL << 12)
#define STRING(length) ((L4_Word_t)(length) << 10)
#define MORE 1UL
#define MAP 0x8UL
#define GRANT 0xaUL
#define MS 1000UL

static char text[PAGE] __attribute__((aligned(4096))), buffer[PAGE] __attribute__((aligned(4096)));
static L4_Word_t pages[4][PAGE / 4] __attribute__((aligned(4 * 4096)));
static struct ipc sent, got;

static L4_Word_t fpage(L4_Word_t base, L4_Word_t log2, L4_Word_t rights) { return base | log2 << 4 | rights; }
static L4_Word_t period(L4_Word_t us) { return L4_TimePeriod(us).raw; }
static L4_Word64_t now(void) { return L4_SystemClock().raw; }

static L4_Word_t point(L4_Word64_t at)
{
    return 1 << 15 | 5 << 11 | ((L4_Word_t)(at >> 15) & 1) << 10 | ((L4_Word_t)(at >> 5) & 0x3ff);
}

static L4_Word_t exchange(L4_ThreadId_t t, L4_Word_t control, L4_Word_t sp, L4_Word_t ip, L4_Word_t *old)
{
    return L4_ExchangeRegisters(t, control, sp, ip, 0, 0, L4_nilthread, old, 0, 0, 0, 0, 0).raw;
}

static L4_Word_t unmap(L4_Word_t of)
{
    L4_Set_MsgTag((L4_MsgTag_t){of});
    L4_Unmap(0);
    return L4_MsgTag().raw;
}

static L4_Word_t flush(L4_Word_t of)
{
    L4_Set_MsgTag((L4_MsgTag_t){of});
    L4_Unmap(1 << 6);
    return L4_MsgTag().raw;
}

/* From main to a worker of another space. */
static void give(L4_Word_t n, L4_Word_t window, L4_Word_t kind, L4_Word_t base, L4_Word_t of)
{
    got = (struct ipc){.from = main_thread, .br = {window}};
    begin_ipc(n, &got);
    sent = (struct ipc){.to = worker(n), .timeouts = NOT_WAITING, .mr = {2 << 6, base | kind, of}};
    run(&sent);
    finish(n);
}

static void hand_on(L4_Word_t window, L4_Word_t kind, L4_Word_t base, L4_Word_t of)
{
    got = (struct ipc){.from = worker(APART), .br = {window}};
    begin_ipc(BEYOND, &got);
    sent = (struct ipc){.to = worker(BEYOND), .timeouts = NOT_WAITING, .mr = {2 << 6, base | kind, of}};
    begin_ipc(APART, &sent);
    finish(APART);
    finish(BEYOND);
}

/* 1. Two timeouts in one Ipc. */
static void timeouts(void)
{
    struct ipc call = {.to = main_thread, .from = main_thread, .timeouts = period(4 * MS) << 16 | period(20 * MS)};
    struct ipc take = {.from = worker(HERE), .timeouts = ZERO}, answer = {.to = worker(HERE), .mr = {1, 3}};
    L4_Word64_t started;
    begin_ipc(HERE, &call);
    L4_Sleep(L4_TimePeriod(2 * MS));
    run(&take);
    L4_Sleep(L4_TimePeriod(10 * MS));
    answer.timeouts = NOT_WAITING;
    run(&answer);
    finish(HERE);
    CHECK("5.4", "after the message is taken, the send timeout is forgotten", call.error == 0 && call.mr[1] == 3);

    call.timeouts = period(50 * MS) << 16 | period(4 * MS);
    begin_ipc(HERE, &call);
    L4_Sleep(L4_TimePeriod(10 * MS));
    run(&take);
    settle();
    L4_Sleep(L4_TimePeriod(2 * MS));
    run(&answer);
    finish(HERE);
    CHECK("5.4", "a receive timeout counts from the receive phase on", take.error == 0 && call.error == 0);

    started = now();
    call = (struct ipc){.to = main_thread, .from = main_thread, .timeouts = point(started + 8 * MS) * 0x10001UL};
    begin_ipc(HERE, &call);
    L4_Sleep(L4_TimePeriod(4 * MS));
    take.error = 0;
    run(&take);
    L4_Sleep(L4_TimePeriod(8 * MS));
    CHECK("5.4", "one point of time for both phases", take.error == 0 && call.error == 3);
    finish(HERE);
    call = (struct ipc){.to = main_thread, .from = main_thread, .timeouts = period(2 * MS) << 16 | period(9 * MS)};
    started = now();
    run(&call);
    CHECK("5.4", "of a call that is not taken only the send timeout passes",
          call.error == 2 && now() < started + 6 * MS);
}

/* 2. How far a message got: bytes of all strings together, and items before them. */
static void offsets(void)
{
    for (L4_Word_t i = 0; i < PAGE; i++)
        text[i] = (char)(i % 251 + 1), buffer[i] = 0;
    pages[0][0] = 0x50;
    got = (struct ipc){.from = worker(HERE), .br = {0x11, STRING(500) | MORE, (L4_Word_t)buffer, STRING(30),
                                                    (L4_Word_t)buffer + 600}};
    sent = (struct ipc){.to = worker(APART),
                        .timeouts = NOT_WAITING,
                        .mr = {1 | 6 << 6, 9, ROOM | MAP, fpage((L4_Word_t)pages[0], 12, 4), STRING(70),
                               (L4_Word_t)text, STRING(50), (L4_Word_t)text + 100}};
    begin_ipc(APART, &got);
    begin_ipc(HERE, &sent);
    finish(HERE);
    finish(APART);
    CHECK("5.3", "an offset counts all strings", sent.error == (8 | 100 << 4) && got.error == (9 | 100 << 4));
    CHECK("5.5", "what came before the cut has come", got.mr[1] == 9 && let(APART, peek, ROOM) == 0x50);
    CHECK("5.5", "and bytes up to it", buffer[69] == text[69] && buffer[629] == text[129] && !buffer[630]);
    CHECK("5.2", "From of a message that was cut is the receiver, to the sender", sent.partner.raw == sent.to.raw);
    unmap(fpage((L4_Word_t)pages[0], 12, ALL));

    sent = (struct ipc){.to = worker(THERE), .timeouts = NOT_WAITING, .xfer = ZERO << 16 | ZERO,
                        .mr = {2 << 6, STRING(90), (L4_Word_t)text}};
    got = (struct ipc){.from = worker(HERE), .xfer = ZERO << 16 | ZERO, .br = {1, STRING(90), (L4_Word_t)buffer}};
    begin_ipc(THERE, &got);
    begin_ipc(HERE, &sent);
    finish(HERE);
    finish(THERE);
    CHECK("5.5", "transfer timeouts of zero matter to faults only", sent.error == 0 && got.error == 0);
}

static L4_Word_t out_of_buffers(L4_Word_t nothing)
{
    for (L4_Word_t i = 1; i < 33; i++)
        L4_LoadBR(i, (L4_Word_t)buffer);
    L4_LoadBR(0, 1);
    L4_LoadBR(1, STRING(1) | 30UL << 4 | 1UL << 9); /* 31 pieces, and more to come: in BR33 */
    L4_Receive(worker(HERE));
    L4_LoadBR(0, 0);
    return L4_ErrorCode() + nothing;
}

static void buffers(void)
{
    sent = (struct ipc){.to = worker(THERE), .timeouts = NOT_WAITING, .mr = {2 << 6, STRING(90), (L4_Word_t)text}};
    begin(THERE, out_of_buffers, 0);
    begin_ipc(HERE, &sent);
    finish(HERE);
    CHECK("5.6", "there is no buffer register behind BR32", (finish(THERE) & 15) == 9 && (sent.error & 15) == 8);
}

/* 3. Propagation and redirection with everything else. */
static void in_anothers_name(void)
{
    struct ipc call = {.to = main_thread, .from = main_thread, .mr = {1, 1}}, speak, take;
    begin_ipc(HERE, &call);
    take = (struct ipc){.from = worker(HERE), .timeouts = ZERO};
    run(&take);
    settle();
    speak = (struct ipc){.to = worker(HERE), .mr = {P | 1, 77}, .virtual_sender = main_thread};
    begin_ipc(THERE, &speak);
    finish(THERE);
    finish(HERE);
    CHECK("5.2", "an answer in the server's name", call.error == 0 && call.mr[1] == 77 && speak.error == 0 &&
                                                       call.actual_sender.raw == worker(THERE).raw);

    begin(HERE, peek, ROOM + 4); /* its pager is main, and gets the fault */
    take = (struct ipc){.from = worker(HERE), .timeouts = ZERO};
    run(&take);
    filler[1] = 0x1357;
    speak = (struct ipc){.to = worker(HERE), .timeouts = NOT_WAITING, .virtual_sender = main_thread,
                         .mr = {P | 2 << 6, ROOM | MAP, fpage((L4_Word_t)filler, PAGE_LOG2, ALL)}};
    begin_ipc(THERE, &speak);
    finish(THERE);
    CHECK("5.2", "a page fault is answered in the pager's name", speak.error == 0 && finish(HERE) == 0x1357);
    flush(fpage(ROOM, PAGE_LOG2, ALL));

    speak = (struct ipc){.to = main_thread, .mr = {P | 1, 5}, .virtual_sender = worker(SPARE)};
    L4_ThreadControl(worker(SPARE), main_thread, main_thread, main_thread, utcb_of(SPARE));
    begin_ipc(THERE, &speak);
    stop(SPARE);
    take = (struct ipc){.from = L4_anythread, .timeouts = ZERO};
    run(&take);
    finish(THERE);
    CHECK("5.2", "in the name of one who is gone meanwhile: in one's own",
          take.error == 0 && take.mr[1] == 5 && take.partner.raw == local_worker(THERE).raw);

    speak = (struct ipc){.to = main_thread, .timeouts = period(MS) << 16, .mr = {P}, .virtual_sender = worker(HERE)};
    begin_ipc(THERE, &speak);
    L4_Sleep(L4_TimePeriod(2 * MS));
    finish(THERE);
    CHECK("5.3", "a message in another's name has its sender's timeout", speak.error == 2);
}

static L4_Word_t redirect(L4_Word_t n, L4_ThreadId_t to)
{
    return L4_SpaceControl(worker(n), 0, L4_Nilpage, L4_Nilpage, to, 0);
}

static void redirection(void)
{
    struct ipc take = {.from = L4_anythread, .timeouts = ZERO};
    L4_Word_t before = fault.count;
    redirect(APART, worker(THERE));
    sent = (struct ipc){.to = worker(BEYOND), .timeouts = period(MS) << 16};
    begin_ipc(APART, &sent);
    L4_Sleep(L4_TimePeriod(2 * MS));
    finish(APART);
    CHECK("5.3", "a redirected message has its sender's timeout", sent.error == 2);
    let(APART, peek, ROOM);
    CHECK("8.2", "a page fault is not redirected", fault.count == before + 1);
    let(APART, readable, ROOM);
    sent = (struct ipc){.to = nobody(), .timeouts = period(MS) << 16};
    begin_ipc(APART, &sent);
    finish(APART);
    CHECK("5.3", "to nobody is to nobody, redirected or not", sent.error == 4);
    redirect(APART, worker(BEYOND));
    redirect(BEYOND, main_thread);
    sent = (struct ipc){.to = worker(HERE), .mr = {1, 8}};
    begin_ipc(APART, &sent);
    run(&take);
    CHECK("8.2", "a redirector's redirector is not asked", take.error == 3 && state_of(worker(APART)) == 4);
    take = (struct ipc){.from = worker(APART)};
    redirect(APART, L4_anythread);
    begin_ipc(BEYOND, &take);
    finish(BEYOND);
    finish(APART);
    CHECK("8.2", "but the redirector is, the one there was when it was sent",
          take.error == 0 && take.intended_receiver.raw == worker(HERE).raw);
    redirect(BEYOND, L4_anythread);
}

/* 4. ExchangeRegisters: several bits at once, and on whom. */
static volatile L4_Word_t counter;

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

L4_Word_t jumped;
void behind(void);
__asm__("behind: movl $1, jumped\n jmp behind_done\n");
L4_Word_t jump_over(L4_Word_t);
__asm__("jump_over: pushal\n movl %esp, jump_sp\n pushl $behind\n call jump_now\n"
        "behind_done: movl jump_sp, %esp\n popal\n movl $4, %eax\n ret\n");
L4_Word_t jump_sp;
void jump_now(L4_Word_t to);
void jump_now(L4_Word_t to) { exchange(L4_Myself(), 1 << 4, 0, to, 0); }

static void registers(void)
{
    L4_ThreadId_t t = worker(SPARE);
    L4_Word_t old, stack = (L4_Word_t)stacks[SPARE] + STACK;
    L4_ThreadControl(t, main_thread, main_thread, main_thread, utcb_of(SPARE));
    exchange(t, 0x1e | 1 << 8 | 1, stack, (L4_Word_t)count, &old);
    CHECK("8.3", "aborted, set and halted at once: it does not run", !grows() && state_of(t) == 2 && (old & 7) == 2);
    exchange(t, 0, 0, 0, &old);
    CHECK("8.3", "halted, and in no IPC", (old & 7) == 1);
    exchange(t, 6, 0, 0, &old);
    CHECK("8.3", "S and R do not resume", !grows());
    exchange(t, 1 << 8, 0, 0, 0);
    CHECK("8.3", "it begins where it was set, when resumed", grows());
    L4_LoadMR(1, 0xfff0002c); /* as if it were a configuration of items */
    exchange(t, 1 << 9, 0, 0, &old);
    CHECK("14", "Q11: bit 9 delivers all the same", (old & 7) == 0 && grows());
    L4_LoadMR(1, 0x0000002c);
    exchange(t, 1 << 9, 0, 0, 0);
    stop(SPARE);
    CHECK("8.3", "a thread sets its own IP: it goes on there", let(HERE, jump_over, 0) == 4 && jumped == 1);

    got = (struct ipc){.from = main_thread};
    begin_ipc(HERE, &got);
    exchange(worker(HERE), 1 << 8 | 1, 0, 0, &old);
    exchange(worker(HERE), 0, 0, 0, &old);
    CHECK("8.3", "halted in the midst of a receive: both are told", (old & 7) == 3);
    L4_Set_Timeslice(worker(HERE), L4_TimePeriod(10 * MS), L4_Never);
    exchange(worker(HERE), 1 << 1, 0, 0, 0);
    settle();
    CHECK("8.3", "its receive is aborted, and it does not run, whatever time it was given meanwhile",
          state_of(worker(HERE)) == 2 && got.error == 0);
    exchange(worker(HERE), 1 << 8, 0, 0, 0);
    finish(HERE);
    CHECK("8.3", "what it finds when resumed", got.error == 7);
}

/* 5. Schedule: states that are short-lived, time that is left, priorities of those who run. */
static volatile L4_Word_t steps[3];

static L4_Word_t lower_oneself(L4_Word_t nothing)
{
    steps[0] = counter;
    L4_Set_Priority(L4_Myself(), 40);
    steps[1] = counter;
    return nothing;
}

static void scheduling(void)
{
    L4_ThreadId_t t = worker(SPARE);
    L4_Word_t left = 0;
    sent = (struct ipc){.to = main_thread};
    begin_ipc(HERE, &sent);
    CHECK("7", "a thread that waits to send: pending send", state_of(worker(HERE)) == 4);
    got = (struct ipc){.from = worker(HERE), .timeouts = ZERO};
    run(&got);
    finish(HERE);
    L4_Set_Timeslice(worker(HERE), L4_TimePeriod(2 * MS), L4_TimePeriod(16 * MS));
    L4_Schedule(worker(HERE), ~0UL, ~0UL, ~0UL, ~0UL, &left);
    CHECK("7", "what is left of the slice is above, of the quantum below",
          left >> 16 == 2 * MS && (left & 0xffff) == 16 * MS);
    L4_Set_Timeslice(worker(HERE), L4_TimePeriod(10 * MS), L4_Never);

    L4_ThreadControl(t, main_thread, main_thread, main_thread, utcb_of(SPARE));
    L4_Set_Priority(t, 50);
    start_at(t, count, stacks[SPARE] + STACK);
    begin(APART, lower_oneself, 0);
    L4_Sleep(L4_TimePeriod(MS));
    CHECK("7", "who lowers its own priority, and is no scheduler: refused", steps[0] == steps[1]);
    finish(APART);
    steps[0] = steps[1] = 0;
    begin(HERE, lower_oneself, 0);
    L4_Sleep(L4_TimePeriod(MS));
    CHECK("7", "who lowers its own priority below another's is preempted at once", steps[0] && !steps[1]);
    L4_Set_Priority(worker(HERE), 100);
    finish(HERE);
    CHECK("7", "and goes on later", steps[1] > steps[0]);
    stop(SPARE);
}

static volatile L4_Word_t pending_seen, switched, ends;

static L4_Word_t delay_until_pending(L4_Word_t nothing)
{
    volatile L4_Word8_t *flags = l4_preemption_flags();
    pending_seen = 0;
    *flags = 0x40;
    while (!(*flags & 0x80))
        ;
    pending_seen = 1;
    L4_Yield();
    switched = counter;
    pending_seen += *flags & 0x80 ? 0 : 1;
    *flags = 0;
    return nothing;
}

static L4_Word_t delay_for_ever(L4_Word_t nothing)
{
    *(volatile L4_Word8_t *)l4_preemption_flags() = 0x40;
    for (;;)
        ends = (L4_Word_t)now();
    return nothing;
}

/* A worker of priority 120 wakes while one of 100 delays. */
static L4_Word_t wake_and_note(L4_Word_t us)
{
    L4_Sleep(L4_TimePeriod(us));
    steps[2] = (L4_Word_t)now();
    counter++;
    return 0;
}

static void delays(void)
{
    L4_Word_t due;
    L4_Schedule(worker(THERE), ~0UL, ~0UL, 120, ~0UL, 0);
    L4_Schedule(worker(HERE), ~0UL, ~0UL, ~0UL, 130UL << 16 | 3000, 0);
    counter = 0;
    begin(THERE, wake_and_note, 2 * MS);
    begin(HERE, delay_until_pending, 0);
    L4_Sleep(L4_TimePeriod(8 * MS));
    finish(HERE);
    finish(THERE);
    CHECK("7", "who delays sees I, calls ThreadSwitch, and the other one has run", pending_seen == 2 && switched == 1);

    due = (L4_Word_t)now() + 3 * MS;
    begin(THERE, wake_and_note, 3 * MS);
    begin(HERE, delay_for_ever, 0);
    L4_Sleep(L4_TimePeriod(20 * MS));
    finish(THERE);
    CHECK("7", "at the end of the delay the preemption happens in any case",
          steps[2] > due + 2 * MS && steps[2] < due + 4 * MS);
    L4_Schedule(worker(HERE), ~0UL, ~0UL, ~0UL, 110UL << 16 | 3000, 0);
    due = (L4_Word_t)now() + 3 * MS;
    begin(THERE, wake_and_note, 3 * MS);
    L4_Sleep(L4_TimePeriod(20 * MS));
    finish(THERE);
    CHECK("7", "a preempter above the sensitive priority does not wait", steps[2] < due + MS);
    stop(HERE);
    L4_Set_Priority(worker(THERE), 100);
    start(HERE);
    settle();
}

/* 6. Memory: rights one at a time, status that two ask for, grants. */
static void memory(void)
{
    L4_Word_t query = fpage((L4_Word_t)pages[0], 12, 0), kip = (L4_Word_t)l4_kip;
    pages[0][0] = 100, pages[1][0] = 101, pages[2][0] = 102, pages[3][0] = 103;
    give(APART, 0x10, MAP, ROOM, fpage((L4_Word_t)pages[0], 12, ALL));
    hand_on(0x10, MAP, ROOM, fpage(ROOM, 12, ALL));
    unmap(query | 5);
    CHECK("6.3", "without r and x alone a page can be read still: IA-32 has but w",
          let(BEYOND, readable, ROOM) && let(BEYOND, writable, ROOM));
    unmap(query | 2);
    CHECK("6.3", "w is taken from all who got it, however far",
          let(BEYOND, readable, ROOM) && !let(APART, writable, ROOM) && !let(BEYOND, writable, ROOM));
    give(APART, 0x10, MAP, ROOM, fpage((L4_Word_t)pages[0], 12, ALL));
    hand_on(0x10, MAP, ROOM, fpage(ROOM, 12, ALL));
    unmap(query);
    let(BEYOND, writable, ROOM);
    CHECK("6.3", "one asks for the status", let(APART, unmap, fpage(ROOM, 12, 0)) == fpage(ROOM, 12, 7));
    CHECK("6.3", "and does not take it from the one above", unmap(query) == (query | 7));
    CHECK("6.3", "who asks again has none", unmap(query) == query);
    let(BEYOND, writable, ROOM);
    let(APART, flush, fpage(ROOM, 12, ALL));
    CHECK("6.3", "pages that are gone have their status told above", unmap(query) == (query | 7));

    give(APART, 0x10, MAP, ROOM, fpage((L4_Word_t)pages[0], 14, ALL));
    hand_on(ROOM | 12 << 4, GRANT, 0x1000, fpage(ROOM, 14, ALL));
    CHECK("6.2", "of a grant that is larger than the window, the window's part arrives",
          let(BEYOND, readable, ROOM) && let(BEYOND, peek, ROOM) == 101);
    CHECK("6.2", "and the granter has nothing of it any more",
          !let(APART, readable, ROOM) && !let(APART, readable, ROOM + 0x1000) && !let(APART, readable, ROOM + 0x3000));
    unmap(fpage((L4_Word_t)pages[0], 14, ALL));

    give(APART, 0x10, MAP, ROOM, fpage((L4_Word_t)pages[0], 12, ALL));
    hand_on(0x10, MAP, ROOM, fpage(ROOM, 12, ALL));
    pages[0][0] = 100;
    hand_on(0x10, MAP, ROOM + 0x1000, fpage(ROOM, 12, 4));
    hand_on(0x10, GRANT, ROOM + 0x2000, fpage(ROOM, 12, ALL));
    CHECK("6.2", "what the granter mapped on stays", let(BEYOND, peek, ROOM) == 100 && let(BEYOND, peek, ROOM + 0x1000));
    let(BEYOND, unmap, fpage(ROOM + 0x2000, 12, ALL));
    CHECK("6.2", "and is derived from the grant from then on",
          !let(BEYOND, readable, ROOM) && !let(BEYOND, readable, ROOM + 0x1000) &&
              let(BEYOND, readable, ROOM + 0x2000));
    unmap(fpage((L4_Word_t)pages[0], 14, ALL));

    give(APART, (kip & ~0x3fffUL) | 14 << 4, MAP, 0, fpage((L4_Word_t)pages[0], 14, ALL));
    CHECK("6.2", "a window around the KIP: pages beside it arrive, and no other",
          got.error == 0 && let(APART, peek, (kip & ~0x3fffUL) + 0x1000) == 101 &&
              let(APART, peek, (L4_Word_t)l4_kip) == 0x4be6344c);
    unmap(fpage((L4_Word_t)pages[0], 14, ALL));
}

/* 7. An answer to an exception, by whom the thread accepts what. */
static L4_Word_t with_window(L4_Word_t acceptor)
{
    L4_Word_t word = 0;
    L4_Set_ExceptionHandler(main_thread);
    L4_LoadBR(0, acceptor);
    __asm__ volatile("ud2");
    L4_LoadBR(0, 0);
    if (acceptor)
        word = *(volatile L4_Word_t *)ROOM;
    return word;
}

static L4_Word_t answer_with_a_page(L4_Word_t n, L4_Word_t acceptor)
{
    struct ipc hear = {.from = worker(n)}, answer = {.to = worker(n), .timeouts = NOT_WAITING};
    begin(n, with_window, acceptor);
    run(&hear);
    answer.mr[0] = 1 | 2 << 6;
    answer.mr[1] = hear.mr[1] + 2;
    answer.mr[2] = ROOM | MAP;
    answer.mr[3] = fpage((L4_Word_t)pages[3], 12, 4);
    run(&answer);
    return answer.error;
}

static void exceptions(void)
{
    L4_Word_t count_before = fault.count;
    CHECK("5.7", "an answer to an exception maps as the thread's own acceptor says",
          answer_with_a_page(APART, 0x10) == 0 && finish(APART) == 103 && fault.count == count_before);
    unmap(fpage((L4_Word_t)pages[3], 12, ALL));
    CHECK("5.7", "without a window it overflows", answer_with_a_page(APART, 0) == 8);
    CHECK("6.5", "and the thread goes on as the words say", finish(APART) == 0);
}

/* 8. ThreadControl: all at once, and threads that do not run. */
static void moving(void)
{
    L4_ThreadId_t t = worker(SPARE), renamed = L4_GlobalId(L4_ThreadNo(worker(SPARE)), 3), pager_was;
    L4_Word_t old;
    L4_ThreadControl(t, worker(APART), main_thread, pager_thread, utcb_of(SPARE));
    exchange(t, 0x1e | 1 << 8 | 1, (L4_Word_t)stacks[SPARE] + STACK, (L4_Word_t)count, 0);
    CHECK("8.1", "a new name, space, scheduler and pager in one call",
          L4_ThreadControl(renamed, main_thread, worker(HERE), main_thread, L4_UTCB_UNCHANGED) == 1);
    L4_ExchangeRegisters(renamed, 0, 0, 0, 0, 0, L4_nilthread, &old, 0, 0, 0, 0, &pager_was);
    CHECK("8.1", "who was halted is halted there", (old & 7) == 1 && pager_was.raw == main_thread.raw && !grows());
    exchange(renamed, 1 << 8, 0, 0, 0);
    CHECK("8.1", "and runs there when resumed", grows() && ((L4_Word_t *)local_worker(SPARE).raw)[-15] == renamed.raw);
    L4_ThreadControl(worker(5), worker(5), main_thread, L4_nilthread, utcb_of(5));
    CHECK("8.1", "into a space without areas: error 6",
          L4_ThreadControl(renamed, worker(5), L4_nilthread, L4_nilthread, L4_UTCB_UNCHANGED) == 0 &&
              L4_ErrorCode() == L4_ErrUtcbArea && grows());
    CHECK("8.2", "areas move while nobody is active",
          L4_SpaceControl(worker(5), 0, L4_FpageLog2(0x00c00000, 12), L4_FpageLog2(0x00800000, 13), L4_nilthread, 0) &&
              L4_SpaceControl(worker(5), 0, L4_FpageLog2((L4_Word_t)l4_kip, 12), L4_FpageLog2(UTCB_AREA, 13),
                              L4_nilthread, 0) &&
              L4_ThreadControl(worker(5), worker(5), L4_nilthread, main_thread, L4_UTCB_UNCHANGED) == 1);
    CHECK("8.2", "and are left alone afterwards",
          L4_SpaceControl(worker(5), 0, L4_Nilpage, L4_FpageLog2(0x00800000, 13), L4_nilthread, 0) == 1);
    delete(renamed);
    stop(5);
}

int main(void)
{
    hello();
    start(HERE);
    start(THERE);
    start_apart(APART);
    start_apart(BEYOND);
    settle();
    timeouts();
    offsets();
    buffers();
    in_anothers_name();
    redirection();
    registers();
    scheduling();
    delays();
    memory();
    exceptions();
    moving();
    return goodbye();
}
