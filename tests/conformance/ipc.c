/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chapter 5, sections 5.1 to 5.4: untyped messages, whom they come from, timeouts, errors. */
#include "check.h"

#define WRONG_VERSION(id) L4_GlobalId(L4_ThreadNo(id), L4_Version(id) + 1)
#define MS 1000UL

static L4_Word_t period(L4_Word_t us) { return L4_TimePeriod(us).raw; }

static L4_Word64_t lasted(struct ipc *i)
{
    L4_Word64_t before = L4_SystemClock().raw;
    run(i);
    return L4_SystemClock().raw - before;
}

/* So many words from worker 0 to us: do they all arrive, and no more than these? */
static int arrive(L4_Word_t count)
{
    struct ipc send = {.to = main_thread}, take = {.from = worker(0)};
    int good;
    send.mr[0] = 0xbeef0000 | count;
    for (L4_Word_t i = 1; i < 64; i++) {
        send.mr[i] = i * 0x01010101;
        take.mr[i] = ~0UL;
    }
    begin_ipc(0, &send);
    run(&take);
    finish(0);
    good = take.mr[0] == send.mr[0] && take.error == 0;
    for (L4_Word_t i = 1; i < 64; i++)
        good &= take.mr[i] == (i <= count ? i * 0x01010101 : ~0UL);
    return good;
}

static void words(void)
{
    struct ipc send = {.to = main_thread}, take = {.from = worker(0)};
    CHECK("5.1", "no word arrives", arrive(0));
    CHECK("5.1", "one word arrives", arrive(1));
    CHECK("5.1", "two words arrive", arrive(2));
    CHECK("5.1", "three words arrive", arrive(3));
    CHECK("5.1", "16 words arrive", arrive(16));
    CHECK("5.1", "63 words arrive", arrive(63));

    send.mr[0] = 0x1234e000;
    begin_ipc(0, &send);
    run(&take);
    finish(0);
    CHECK("5.1", "error, cross-CPU and redirected bits do not travel", take.mr[0] == 0x12340000);

    send.mr[0] = 60 | 4 << 6;
    begin_ipc(0, &send);
    run(&take);
    finish(0);
    CHECK("5.5", "more than 63 words: overflow, to the sender", send.error == 8 && send.mr[0] & 0x8000);
    CHECK("5.5", "more than 63 words: overflow, to the receiver", take.error == 9 && take.mr[0] & 0x8000);
}

static void partners(void)
{
    struct ipc send = {.to = main_thread}, take = {.from = worker(0)}, call = {.to = main_thread, .from = main_thread};
    begin_ipc(0, &send);
    run(&take);
    finish(0);
    CHECK("5.2", "From is local within a space", take.partner.raw == local_worker(0).raw);
    CHECK("5.2", "a send without receive has From nil", send.partner.raw == 0);

    send = (struct ipc){.to = main_thread, .mr = {1}};
    take = (struct ipc){.from = L4_anythread};
    begin_ipc(1, &send);
    run(&take);
    finish(1);
    CHECK("5.2", "From is global across spaces", take.partner.raw == worker(1).raw);

    send = (struct ipc){.to = L4_MyLocalId(), .mr = {1, 7}};
    take = (struct ipc){.from = local_worker(0)};
    begin_ipc(0, &send);
    run(&take);
    finish(0);
    CHECK("5.2", "local ids for both partners", take.error == 0 && take.mr[1] == 7);

    send = (struct ipc){.to = main_thread, .mr = {1, 8}};
    take = (struct ipc){.from = L4_anylocalthread, .timeouts = ZERO};
    begin_ipc(1, &send);
    run(&take);
    CHECK("5.2", "anylocalthread: nobody of another space", take.error == 3);
    send.mr[1] = 9;
    take = (struct ipc){.from = worker(0), .timeouts = ZERO};
    run(&take);
    CHECK("5.2", "a closed receive leaves others alone", take.error == 3 && state_of(worker(1)) == 4);
    take = (struct ipc){.from = L4_anythread, .timeouts = ZERO};
    run(&take);
    CHECK("5.2", "anythread: whoever has sent", take.error == 0 && take.mr[1] == 8);
    finish(1);

    send = (struct ipc){.to = main_thread, .mr = {1, 10}};
    take = (struct ipc){.from = L4_anylocalthread, .timeouts = ZERO};
    begin_ipc(0, &send);
    run(&take);
    finish(0);
    CHECK("5.2", "anylocalthread: somebody of this space", take.error == 0 && take.mr[1] == 10);

    begin_ipc(0, &call);
    CHECK("5.2", "a call waits to send first", state_of(worker(0)) == 4);
    take = (struct ipc){.from = worker(0)};
    run(&take);
    settle();
    CHECK("5.2", "and then for the answer", state_of(worker(0)) == 6);
    send = (struct ipc){.to = worker(0), .timeouts = NOT_WAITING, .mr = {1, 11}};
    run(&send);
    finish(0);
    CHECK("5.2", "the answer arrives", send.error == 0 && call.mr[1] == 11 && call.partner.raw == L4_MyLocalId().raw);

    send = (struct ipc){.timeouts = NOT_WAITING};
    run(&send);
    CHECK("5.2", "neither send nor receive: nothing happens", send.error == 0 && send.partner.raw == 0);
}

static void order(void)
{
    struct ipc send[3], take;
    L4_Word_t came[3];
    for (L4_Word_t i = 0; i < 3; i++) {
        L4_Set_Priority(worker(i), 100 + i);
        send[i] = (struct ipc){.to = main_thread, .mr = {1, i}};
        begin_ipc(i, &send[i]);
    }
    for (int i = 0; i < 3; i++) {
        take = (struct ipc){.from = L4_anythread, .timeouts = ZERO};
        run(&take);
        came[i] = take.mr[1];
    }
    for (L4_Word_t i = 0; i < 3; i++) {
        finish(i);
        L4_Set_Priority(worker(i), 100);
    }
    CHECK("5.2", "first come, first served, whatever the priority", came[0] == 0 && came[1] == 1 && came[2] == 2);
}

static L4_Word_t lipc(L4_Word_t argument)
{
    L4_ThreadId_t from;
    L4_MsgTag_t tag;
    L4_Set_MsgTag((L4_MsgTag_t){1});
    L4_LoadMR(1, argument);
    tag = L4_Lipc(L4_nilthread, L4_anylocalthread, ZERO, &from);
    if (!L4_IpcFailed(tag) || L4_ErrorCode() != 3)
        return 0;
    L4_Set_MsgTag((L4_MsgTag_t){1});
    L4_LoadMR(1, argument);
    tag = L4_Lipc(main_thread, L4_nilthread, 0, &from);
    return L4_IpcSucceeded(tag);
}

static void by_lipc(void)
{
    struct ipc take = {.from = worker(0)};
    begin(0, lipc, 77);
    run(&take);
    CHECK("4.2", "Lipc sends as Ipc does", take.error == 0 && take.mr[1] == 77);
    CHECK("4.2", "Lipc tells errors as Ipc does", finish(0) == 1);
}

static void timeouts(void)
{
    struct ipc send = {.to = worker(0), .timeouts = NOT_WAITING}, take = {.from = worker(0), .timeouts = ZERO}, i;
    struct ipc away = {.from = worker(2)};
    L4_Word64_t took;
    begin_ipc(0, &away); /* waits for somebody else, so that it takes nothing from us */

    run(&send);
    CHECK("5.3", "send timeout zero: ErrorCode 2", send.error == 2);
    CHECK("5.1", "a failed send leaves 0x8000 in MR0", send.mr[0] == 0x8000);
    CHECK("5.2", "a failed send has From nil", send.partner.raw == 0);
    run(&take);
    CHECK("5.3", "receive timeout zero: ErrorCode 3", take.error == 3);
    CHECK("5.2", "a failed receive has From nil", take.partner.raw == 0);

    send = (struct ipc){.to = worker(0), .timeouts = period(5 * MS) << 16};
    took = lasted(&send);
    CHECK("5.3", "send timeout: ErrorCode 2", send.error == 2);
    CHECK("5.4", "a send timeout lasts as long as it says", took >= 5 * MS && took < 8 * MS);
    took = lasted(&(struct ipc){.from = worker(0), .timeouts = period(5 * MS)});
    CHECK("5.4", "a receive timeout lasts as long as it says", took >= 5 * MS && took < 8 * MS);
    i = (struct ipc){.to = worker(0), .from = worker(0), .timeouts = ZERO << 16};
    run(&i);
    CHECK("5.2", "no receive phase after a failed send", i.error == 2);
    i = (struct ipc){.from = main_thread, .timeouts = period(2 * MS)};
    took = lasted(&i);
    CHECK("13", "to receive from oneself is to sleep", i.error == 3 && took >= 2 * MS && took < 4 * MS);
    took = lasted(&(struct ipc){.from = worker(0), .timeouts = 1 << 10 | 1});
    CHECK("5.4", "a short period is not never", took < 3 * MS);
    took = lasted(&(struct ipc){.from = worker(0), .timeouts = 5 << 10 | 100});
    CHECK("5.4", "a period is mantissa * 2^exponent us", took >= 3200 && took < 5200);

    L4_ExchangeRegisters(worker(0), 0x1 << 1, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    finish(0);

    send = (struct ipc){.to = main_thread, .timeouts = period(500 * MS) << 16, .mr = {1, 3}};
    begin_ipc(0, &send);
    L4_Sleep(L4_TimePeriod(3 * MS));
    take = (struct ipc){.from = worker(0), .timeouts = ZERO};
    run(&take);
    finish(0);
    CHECK("5.2", "a sender waits until its timeout", take.error == 0 && send.error == 0);
    take = (struct ipc){.from = main_thread, .timeouts = period(500 * MS)};
    begin_ipc(0, &take);
    L4_Sleep(L4_TimePeriod(3 * MS));
    send = (struct ipc){.to = worker(0), .timeouts = NOT_WAITING, .mr = {1, 4}};
    run(&send);
    finish(0);
    CHECK("5.2", "a receiver waits until its timeout", take.error == 0 && take.mr[1] == 4);
}

/* Moments: 10 bits of the clock from bit e on, the bit above as carry. */
static void moments(void)
{
    L4_Word64_t now = L4_SystemClock().raw, then = now + 20 * MS;
    L4_Word_t point = 1 << 15 | 5 << 11 | ((L4_Word_t)(then >> 15) & 1) << 10 | ((L4_Word_t)(then >> 5) & 0x3ff);
    struct ipc i = {.from = worker(0), .timeouts = point};
    run(&i);
    now = L4_SystemClock().raw;
    CHECK("5.4", "a point of time ends a receive", i.error == 3);
    CHECK("5.4", "when it has come", now + 32 >= then && now < then + 3 * MS);
    i = (struct ipc){.to = worker(0), .timeouts = point << 16};
    begin_ipc(0, &(struct ipc){.from = worker(2), .timeouts = period(5 * MS)});
    now = L4_SystemClock().raw;
    run(&i);
    CHECK("5.4", "a point of time that is over is now", i.error == 2 && L4_SystemClock().raw < now + MS);
    finish(0);
}

static void missing(void)
{
    struct ipc i = {.to = nobody()};
    run(&i);
    CHECK("5.3", "send to nobody: ErrorCode 4", i.error == 4);
    CHECK("5.2", "send to nobody: From nil", i.partner.raw == 0);
    CHECK("5.1", "send to nobody: 0x8000 in MR0", i.mr[0] == 0x8000);
    i = (struct ipc){.from = nobody()};
    run(&i);
    CHECK("5.3", "receive from nobody: ErrorCode 5", i.error == 5);
    CHECK("5.2", "receive from nobody: From nil", i.partner.raw == 0);
    i = (struct ipc){.to = WRONG_VERSION(worker(0))};
    run(&i);
    CHECK("5.2", "the version is part of whom one sends to", i.error == 4);
    i = (struct ipc){.from = WRONG_VERSION(worker(0))};
    run(&i);
    CHECK("5.2", "the version is part of whom one receives from", i.error == 5);
    L4_ThreadControl(worker(4), main_thread, main_thread, L4_nilthread, utcb_of(4));
    i = (struct ipc){.to = worker(4), .timeouts = NOT_WAITING};
    run(&i);
    CHECK("5.3", "an inactive thread takes no message", i.error == 4 || i.error == 2);
    stop(4);
}

static L4_Word_t aborted(L4_Word_t n, L4_Word_t control)
{
    L4_Word_t state = 0;
    L4_ExchangeRegisters(worker(n), control, 0, 0, 0, 0, L4_nilthread, &state, 0, 0, 0, 0, 0);
    return state & 7;
}

static void cancelled(void)
{
    struct ipc send = {.to = main_thread}, take = {.from = worker(1)};
    begin_ipc(0, &send);
    CHECK("8.3", "S: it was sending", aborted(0, 1 << 1) == 4);
    CHECK("8.3", "R does not abort a send", state_of(worker(0)) == 4);
    aborted(0, 1 << 2);
    finish(0);
    CHECK("5.3", "a send is cancelled: ErrorCode 6", send.error == 6 && send.mr[0] == 0x8000);
    begin_ipc(0, &take);
    CHECK("8.3", "R: it was receiving", aborted(0, 1 << 2) == 2);
    CHECK("8.3", "S does not abort a receive", state_of(worker(0)) == 6);
    aborted(0, 1 << 1);
    finish(0);
    CHECK("5.3", "a receive is cancelled: ErrorCode 7", take.error == 7 && take.mr[0] == 0x8000);

    start(3);
    send = (struct ipc){.to = worker(3), .mr = {0}};
    settle();
    begin(3, do_ipc, (L4_Word_t) & (struct ipc){.from = worker(2)});
    begin_ipc(0, &send);
    take = (struct ipc){.from = worker(3)};
    begin_ipc(1, &take);
    stop(3);
    finish(0);
    CHECK("14", "Q10: a deleted thread's senders are told", send.error == 4 || send.error == 6);
    finish(1);
    CHECK("5.3", "who waits for a deleted thread is told", take.error == 7 || take.error == 5);
}

/* Who waits, or stands in a queue, while something happens to others. */
static void meanwhile(void)
{
    struct ipc call = {.to = main_thread, .from = main_thread}, closed = {.from = worker(2)}, take, send;
    begin_ipc(0, &call);
    run(&(struct ipc){.from = worker(0)});
    settle();
    aborted(0, 1 << 1);
    finish(0);
    CHECK("5.3", "a call whose answer is cancelled: ErrorCode 7", call.error == 7);

    call = (struct ipc){.to = main_thread, .from = main_thread};
    begin_ipc(0, &call);
    aborted(0, 1 << 2);
    finish(0);
    CHECK("5.3", "a call whose send is cancelled: ErrorCode 6", call.error == 6);

    begin_ipc(0, &closed);
    send = (struct ipc){.to = worker(0), .timeouts = period(2 * MS) << 16, .mr = {1, 1}};
    begin_ipc(1, &send);
    send.to = worker(0);
    take = (struct ipc){.to = worker(0), .mr = {1, 2}};
    begin_ipc(2, &take);
    finish(2);
    finish(0);
    CHECK("5.2", "a closed receive takes whom it waits for past others", closed.error == 0 && closed.mr[1] == 2);
    L4_Sleep(L4_TimePeriod(3 * MS));
    finish(1);
    CHECK("5.3", "the others' timeouts end their send", send.error == 2);

    closed = (struct ipc){.from = worker(2)};
    begin_ipc(0, &closed);
    L4_ExchangeRegisters(worker(0), 1 << 8 | 1, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    take = (struct ipc){.to = worker(0), .mr = {1, 5}};
    begin_ipc(2, &take);
    finish(2);
    CHECK("8.3", "a thread that is halted while it waits is inactive", state_of(worker(0)) == 2);
    L4_ExchangeRegisters(worker(0), 1 << 8, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    finish(0);
    CHECK("8.3", "resumed, it has its message", closed.error == 0 && closed.mr[1] == 5);
}

/* What is in the registers after a receive is in the UTCB too, and the other way round. */
static void in_registers(void)
{
    L4_Word_t *mr = l4_utcb();
    struct ipc send = {.to = main_thread, .mr = {0x00070003, 21, 22, 23}};
    L4_Registers_t r = {.edx = worker(0).raw, .edi = (L4_Word_t)mr};
    begin_ipc(0, &send);
    mr[0] = mr[1] = mr[2] = 0;
    l4_system_call(L4_ENTRY(Ipc), &r);
    finish(0);
    CHECK("4.2", "Ipc: EAX is From", r.eax == local_worker(0).raw);
    CHECK("4.2", "Ipc: ESI is MR0", r.esi == 0x00070003);
    CHECK("4.2", "Ipc: EBX is MR1", r.ebx == 21);
    CHECK("4.2", "Ipc: EBP is MR2", r.ebp == 22);
    CHECK("4.2", "Ipc: EDI is the UTCB", r.edi == (L4_Word_t)mr);

    mr[0] = mr[1] = mr[2] = 0;
    begin_ipc(0, &send);
    mr[0] = mr[1] = mr[2] = 0;
    L4_Receive(worker(0));
    CHECK("4.2", "Ipc: MR1 and MR2 are in the UTCB as well", mr[1] == 21 && mr[2] == 22);
    finish(0);

    send = (struct ipc){.from = main_thread};
    begin_ipc(0, &send);
    mr[0] = 0x00ff0000;
    mr[1] = 31;
    mr[2] = 32;
    r = (L4_Registers_t){.eax = worker(0).raw, .esi = 0x00080002, .ebx = 41, .ebp = 42, .edi = (L4_Word_t)mr};
    l4_system_call(L4_ENTRY(Ipc), &r);
    finish(0);
    CHECK("4.2", "Ipc: MR0 is sent from ESI", send.mr[0] == 0x00080002);
    CHECK("4.2", "Ipc: MR1 and MR2 are sent from the UTCB", send.mr[1] == 31 && send.mr[2] == 32);
}

int main(void)
{
    hello();
    start(0);
    start_apart(1);
    start(2);
    settle();
    words();
    partners();
    order();
    by_lipc();
    timeouts();
    moments();
    missing();
    cancelled();
    meanwhile();
    in_registers();
    return goodbye();
}
