/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Section 5.5: string items. Where they come from, where they go, how far they get. */
#include "check.h"

#define FROM 0 /* two workers in this space ... */
#define INTO 1
#define APART 2 /* ... and one elsewhere */
#define STRING(length) ((L4_Word_t)(length) << 10)
#define MORE 1UL /* C: another buffer follows */
#define COMPOUND (1UL << 9)
#define POINTERS(n) (((L4_Word_t)(n) - 1) << 4)

static char text[3 * PAGE] __attribute__((aligned(4096))), buffer[3 * PAGE] __attribute__((aligned(4096)));
static struct ipc sent, got;

static void prepare(void)
{
    for (L4_Word_t i = 0; i < sizeof text; i++) {
        text[i] = (char)(i % 251 + 1);
        buffer[i] = 0;
    }
    sent = (struct ipc){.to = worker(INTO), .timeouts = NOT_WAITING};
    got = (struct ipc){.from = worker(FROM), .br = {1}};
}

static void transfer(void)
{
    begin_ipc(INTO, &got);
    begin_ipc(FROM, &sent);
    finish(FROM);
    finish(INTO);
}

/* Are there so many bytes of the text from `from` on in the buffer at `at`, and none behind? */
static int copied(L4_Word_t at, L4_Word_t from, L4_Word_t count)
{
    for (L4_Word_t i = 0; i < count; i++)
        if (buffer[at + i] != text[from + i])
            return 0;
    return at + count == sizeof buffer || buffer[at + count] == 0;
}

static int fine(void) { return sent.error == 0 && got.error == 0; }

static void simple(void)
{
    prepare();
    sent.mr[0] = 1 | 2 << 6;
    sent.mr[1] = 42;
    sent.mr[2] = STRING(100);
    sent.mr[3] = (L4_Word_t)text;
    got.br[1] = STRING(200);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "a string arrives", fine() && copied(0, 0, 100));
    CHECK("5.5", "words before it arrive too", got.mr[0] == (1 | 2 << 6) && got.mr[1] == 42);
    CHECK("5.5", "its header arrives and says how long it is", got.mr[2] == STRING(100));

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(1);
    sent.mr[2] = (L4_Word_t)text + 5;
    got.br[1] = STRING(1);
    got.br[2] = (L4_Word_t)buffer + 3;
    transfer();
    CHECK("5.5", "one byte, from anywhere to anywhere", fine() && copied(3, 5, 1));

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(0);
    got.br[1] = STRING(10);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "an empty string arrives", fine() && copied(0, 0, 0));

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(9000);
    sent.mr[2] = (L4_Word_t)text + 1001;
    got.br[1] = STRING(9000);
    got.br[2] = (L4_Word_t)buffer + 17;
    transfer();
    CHECK("5.5", "a string across pages", fine() && copied(17, 1001, 9000));
}

static void pieces(void)
{
    prepare();
    sent.mr[0] = 4 << 6;
    sent.mr[1] = STRING(50) | POINTERS(3);
    sent.mr[2] = (L4_Word_t)text;
    sent.mr[3] = (L4_Word_t)text + 500;
    sent.mr[4] = (L4_Word_t)text + 200;
    got.br[1] = STRING(1000);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "gather: pieces of one length", fine() && copied(100, 200, 50) && buffer[50] == text[500]);

    prepare();
    sent.mr[0] = 4 << 6;
    sent.mr[1] = STRING(30) | COMPOUND;
    sent.mr[2] = (L4_Word_t)text;
    sent.mr[3] = STRING(70);
    sent.mr[4] = (L4_Word_t)text + 30;
    got.br[1] = STRING(1000);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "gather: pieces of any length", fine() && copied(0, 0, 100));

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(100);
    sent.mr[2] = (L4_Word_t)text;
    got.br[1] = STRING(40) | POINTERS(3);
    got.br[2] = (L4_Word_t)buffer;
    got.br[3] = (L4_Word_t)buffer + 1000;
    got.br[4] = (L4_Word_t)buffer + 500;
    transfer();
    CHECK("5.5", "scatter: pieces of one length",
          fine() && copied(0, 0, 40) && copied(1000, 40, 40) && copied(500, 80, 20));

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(100);
    sent.mr[2] = (L4_Word_t)text;
    got.br[1] = STRING(10) | COMPOUND;
    got.br[2] = (L4_Word_t)buffer;
    got.br[3] = STRING(300);
    got.br[4] = (L4_Word_t)buffer + 100;
    transfer();
    CHECK("5.5", "scatter: pieces of any length", fine() && copied(0, 0, 10) && copied(100, 10, 90));

    prepare();
    sent.mr[0] = 4 << 6;
    sent.mr[1] = STRING(60);
    sent.mr[2] = (L4_Word_t)text;
    sent.mr[3] = STRING(80);
    sent.mr[4] = (L4_Word_t)text + 1000;
    got.br[1] = STRING(100) | MORE;
    got.br[2] = (L4_Word_t)buffer;
    got.br[3] = STRING(100);
    got.br[4] = (L4_Word_t)buffer + 2000;
    transfer();
    CHECK("5.5", "two strings into two buffers", fine() && copied(0, 0, 60) && copied(2000, 1000, 80));
}

static void hints(void)
{
    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(20) | 3 << 1;
    sent.mr[2] = (L4_Word_t)text;
    got.br[1] = STRING(20) | 1 << 1;
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "cache hints do not matter", fine() && copied(0, 0, 20) && got.mr[1] == sent.mr[1]);

    prepare();
    sent.mr[0] = 61 | 2 << 6;
    sent.mr[61] = 0x61;
    sent.mr[62] = STRING(20);
    sent.mr[63] = (L4_Word_t)text;
    got.br[1] = STRING(20);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "a message that fills all message registers", fine() && copied(0, 0, 20) && got.mr[61] == 0x61);

    prepare();
    sent.mr[0] = 4 << 6;
    sent.mr[1] = ROOM | 8;
    sent.mr[2] = (L4_Word_t)filler | PAGE_LOG2 << 4 | ALL;
    sent.mr[3] = STRING(20);
    sent.mr[4] = (L4_Word_t)text;
    got.br[0] = 0x10 | 1;
    got.br[1] = STRING(20);
    got.br[2] = (L4_Word_t)buffer;
    sent.to = worker(APART);
    begin_ipc(APART, &got);
    begin_ipc(FROM, &sent);
    finish(FROM), finish(APART);
    filler[1] = 0x4711;
    CHECK("5.5", "a map item and a string in one message",
          fine() && copied(0, 0, 20) && let(APART, peek, ROOM + 4) == 0x4711);
    L4_UnmapFpage((L4_Fpage_t){sent.mr[2]});
}

static void overflows(void)
{
    prepare();
    sent.mr[0] = 1 | 2 << 6;
    sent.mr[1] = 7;
    sent.mr[2] = STRING(100);
    sent.mr[3] = (L4_Word_t)text;
    got.br[0] = 0;
    transfer();
    CHECK("5.3", "no strings accepted: overflow at 0, to the sender", sent.error == 8 && sent.mr[0] & 0x8000);
    CHECK("5.3", "no strings accepted: overflow at 0, to the receiver", got.error == 9 && got.mr[0] & 0x8000);
    CHECK("5.5", "untyped words cannot fail", got.mr[1] == 7);

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(100);
    sent.mr[2] = (L4_Word_t)text;
    got.br[1] = STRING(60);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.3", "a short buffer: overflow at its length, to the sender", sent.error == (8 | 60 << 4));
    CHECK("5.3", "a short buffer: overflow at its length, to the receiver", got.error == (9 | 60 << 4));
    CHECK("5.5", "a short buffer: it is filled", copied(0, 0, 60));

    prepare();
    sent.mr[0] = 4 << 6;
    sent.mr[1] = STRING(128);
    sent.mr[2] = (L4_Word_t)text;
    sent.mr[3] = STRING(10);
    sent.mr[4] = (L4_Word_t)text;
    got.br[1] = STRING(500);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("13", "no second buffer: overflow behind the first string",
          sent.error == (8 | 128 << 4) && got.error == (9 | 128 << 4));

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(100) | POINTERS(3);
    sent.mr[2] = (L4_Word_t)text;
    got.br[1] = STRING(500);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "a string item cut short by the tag: overflow", (sent.error & 15) == 8 && (got.error & 15) == 9);

    prepare();
    sent.mr[0] = 2 << 6;
    sent.mr[1] = STRING(100);
    sent.mr[2] = 0xf0000000;
    got.br[1] = STRING(500);
    got.br[2] = (L4_Word_t)buffer;
    transfer();
    CHECK("5.5", "a string beyond the user area: overflow", sent.error == 8 && got.error == 9 && buffer[0] == 0);
}

static L4_Word_t period(L4_Word_t us) { return L4_TimePeriod(us).raw; }

/* A string whose end is where its sender has no memory, or whose buffer's end is. */
static void cut(L4_Word_t of_sender, L4_Word_t of_receiver, int at_sender)
{
    prepare();
    sent.xfer = of_sender << 16;
    got.xfer = of_receiver;
    sent.mr[0] = 4 << 6;
    sent.mr[1] = STRING(100) | COMPOUND;
    sent.mr[2] = (L4_Word_t)text;
    sent.mr[3] = STRING(50);
    sent.mr[4] = at_sender ? ROOM : (L4_Word_t)text;
    got.br[1] = STRING(100) | COMPOUND;
    got.br[2] = (L4_Word_t)buffer;
    got.br[3] = STRING(50);
    got.br[4] = at_sender ? (L4_Word_t)buffer + 100 : ROOM;
    begin_ipc(INTO, &got);
    begin_ipc(FROM, &sent);
}

static void timeouts(void)
{
    cut(ZERO, 0, 1);
    finish(FROM), finish(INTO);
    CHECK("5.3", "sender's transfer timeout zero: own, to the sender", sent.error == (10 | 100 << 4));
    CHECK("5.3", "sender's transfer timeout zero: partner's, to the receiver", got.error == (13 | 100 << 4));
    cut(0, ZERO, 0);
    finish(FROM), finish(INTO);
    CHECK("5.3", "receiver's transfer timeout zero: partner's, to the sender", sent.error == (12 | 100 << 4));
    CHECK("5.3", "receiver's transfer timeout zero: own, to the receiver", got.error == (11 | 100 << 4));
    cut(ZERO, 0, 0);
    finish(FROM), finish(INTO);
    CHECK("5.5", "a fault on either side starts either timeout", sent.error == (10 | 100 << 4));
    cut(0, period(2000), 1);
    L4_Sleep(L4_TimePeriod(1000));
    CHECK("7", "in the midst of a message: sending and receiving",
          state_of(worker(FROM)) == 5 && state_of(worker(INTO)) == 7);
    L4_Sleep(L4_TimePeriod(3000));
    finish(FROM), finish(INTO);
    CHECK("5.3", "a transfer timeout while a pager is asked",
          sent.error == (12 | 100 << 4) && got.error == (11 | 100 << 4));
    cut(period(2000), period(2000), 1);
    L4_Sleep(L4_TimePeriod(4000));
    finish(FROM), finish(INTO);
    CHECK("5.5", "of equal timeouts it is the sender's", sent.error == (10 | 100 << 4) && got.error == (13 | 100 << 4));
}

static void aborts(void)
{
    cut(0, 0, 1);
    L4_ExchangeRegisters(worker(FROM), 1 << 1 | 1 << 2, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    finish(FROM), finish(INTO);
    CHECK("5.3", "aborted by the sender's ExchangeRegisters",
          sent.error == (14 | 100 << 4) && got.error == (15 | 100 << 4));
    cut(0, 0, 0);
    L4_ExchangeRegisters(worker(INTO), 1 << 1 | 1 << 2, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    finish(FROM), finish(INTO);
    CHECK("5.3", "aborted by the receiver's ExchangeRegisters",
          sent.error == (14 | 100 << 4) && got.error == (15 | 100 << 4));
}

static void deletions(void)
{
    cut(0, 0, 1);
    stop(FROM);
    finish(INTO);
    CHECK("5.3", "the sender is deleted in the midst of a message: aborted", got.error == (15 | 100 << 4));
    start(FROM);
    settle();
    cut(0, 0, 0);
    stop(INTO);
    finish(FROM);
    CHECK("5.3", "the receiver is deleted in the midst of a message: aborted", sent.error == (14 | 100 << 4));
    start(INTO);
    settle();
}

/* Page faults in the midst of a message, as their pager sees them: main does not answer, the pager does. */
static void faults(void)
{
    L4_Word_t words[2];
    L4_MsgTag_t tag;
    struct ipc answer = {.timeouts = NOT_WAITING};
    cut(0, 0, 0);
    tag = L4_Receive_Timeout(worker(INTO), L4_TimePeriod(1000));
    L4_StoreMRs(1, 2, words);
    CHECK("6.5", "the receiver's fault is a write at its buffer", tag.raw == (0xffe2UL << 16 | 2) && words[0] == ROOM);
    CHECK("6.5", "and its IP is -1", words[1] == ~0UL);
    L4_ExchangeRegisters(worker(INTO), 1 << 1 | 1 << 2, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    finish(FROM), finish(INTO);
    cut(0, 0, 1);
    tag = L4_Receive_Timeout(worker(FROM), L4_TimePeriod(1000));
    L4_StoreMRs(1, 2, words);
    CHECK("6.5", "the sender's fault is a read at its string", tag.raw == (0xffe5UL << 16 | 2) && words[0] == ROOM);
    filler[0] = 0x04030201;
    answer.to = worker(FROM);
    answer.mr[0] = 2 << 6;
    answer.mr[1] = ROOM | 8;
    answer.mr[2] = (L4_Word_t)filler | PAGE_LOG2 << 4 | ALL;
    run(&answer);
    settle();
    finish(FROM), finish(INTO);
    CHECK("6.5", "the pager's answer lets the message go on",
          answer.error == 0 && fine() && buffer[100] == 1 && buffer[103] == 4);
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(ROOM, PAGE_LOG2), ALL));
}

static void across(void)
{
    L4_Word_t before = fault.count;
    prepare();
    filler[0] = filler[1] = 0;
    sent.to = worker(APART);
    sent.mr[0] = 4 << 6;
    sent.mr[1] = STRING(6000);
    sent.mr[2] = (L4_Word_t)text;
    sent.mr[3] = STRING(8);
    sent.mr[4] = (L4_Word_t)text + 8;
    got.br[1] = STRING(6000) | MORE;
    got.br[2] = (L4_Word_t)buffer;
    got.br[3] = STRING(100);
    got.br[4] = ROOM + 0x5000;
    begin_ipc(APART, &got);
    begin_ipc(FROM, &sent);
    finish(FROM);
    finish(APART);
    CHECK("5.5", "a string into another space", fine() && copied(0, 0, 6000));
    CHECK("5.5", "a page that is missing there is asked for",
          fault.count == before + 1 && fault.address == ROOM + 0x5000);
    CHECK("5.5", "and then the string goes on", ((char *)filler)[0] == text[8] && ((char *)filler)[7] == text[15]);
    CHECK("5.5", "the fault is in the receiver's name", fault.thread == worker(APART).raw && fault.ip == ~0UL);
}

int main(void)
{
    hello();
    start(FROM);
    start(INTO);
    start_apart(APART);
    settle();
    simple();
    pieces();
    hints();
    overflows();
    timeouts();
    aborts();
    deletions();
    faults();
    across();
    return goodbye();
}
