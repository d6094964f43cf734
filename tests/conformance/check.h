/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the programs of this suite have in common: saying what holds, threads that do as they are told, a pager.
 *
 * Each CHECK prints a line, and its text is known from the source: a program that ends early is found out. The first
 * argument is the section of the reference of the interface that says so.
 *
 * Main has priority 255, workers have 100: a worker runs when main waits.
 */
#ifndef CHECK_H
#define CHECK_H

#include <l4/l4.h>

#define PAGE 4096UL
#define UTCB_AREA 0xbf000000UL /* in all spaces */
#define PAGE_LOG2 12
#define ROOM 0x10000000UL /* where nobody has any memory, in all spaces */
#define ALL L4_FullyAccessible
#define UNUSED __attribute__((unused))

#define CHECK(section, what, condition) check(section " " what, (condition) ? 1 : 0)

static void check(const char *what, int holds)
{
    L4_KDB_PrintString(holds ? "ok " : "not ok ");
    L4_KDB_PrintString(what);
    L4_KDB_PrintString("\n");
}

/* One Ipc with all that belongs to it: what goes in, and what came out. */
struct ipc {
    L4_ThreadId_t to, from;
    L4_Word_t timeouts;
    L4_Word_t mr[64]; /* in and out */
    L4_Word_t br[8];
    L4_Word_t xfer;
    L4_ThreadId_t virtual_sender;
    /* out: */
    L4_ThreadId_t partner, actual_sender, intended_receiver;
    L4_Word_t error; /* 0 unless the tag says that there is one */
};

#define ZERO 0x0400UL /* a time */
#define NOT_WAITING (ZERO << 16 | ZERO)

static UNUSED L4_Word_t do_ipc(L4_Word_t argument)
{
    struct ipc *i = (struct ipc *)argument;
    L4_MsgTag_t tag;
    L4_LoadMRs(0, 64, i->mr);
    L4_LoadBRs(0, 8, i->br);
    L4_Set_XferTimeouts(i->xfer);
    L4_Set_VirtualSender(i->virtual_sender);
    tag = L4_Ipc(i->to, i->from, i->timeouts, &i->partner);
    L4_StoreMRs(0, 64, i->mr);
    i->error = L4_IpcFailed(tag) ? L4_ErrorCode() : 0;
    i->actual_sender = L4_ActualSender();
    i->intended_receiver = L4_IntendedReceiver();
    L4_LoadBR(0, 0);
    L4_Set_XferTimeouts(0);
    return 0;
}

static UNUSED void run(struct ipc *i) { do_ipc((L4_Word_t)i); }

/* Workers */

#define WORKERS 6
#define STACK 4096
typedef L4_Word_t (*work_t)(L4_Word_t);

extern char __executable_start[], _end[]; /* the linker's: where this program begins and ends */

static L4_ThreadId_t main_thread, pager_thread;
static char stacks[WORKERS + 1][STACK] __attribute__((aligned(16)));
static char pager_stack[STACK] __attribute__((aligned(16)));
static L4_Word_t filler[PAGE / 4] __attribute__((aligned(4096)));

/* The last page fault outside the program, or of a port. */
static volatile struct {
    L4_Word_t count, label, address, ip, thread;
} fault;

static L4_ThreadId_t worker(L4_Word_t n) { return L4_GlobalId(L4_ThreadNo(main_thread) + 2 + n, 1); }
static UNUSED L4_ThreadId_t nobody(void) { return L4_GlobalId(L4_ThreadNo(main_thread) + 100, 1); }
static void *utcb_of(L4_Word_t n) { return (void *)(UTCB_AREA + (2 + n) * 512); }
static L4_ThreadId_t local_worker(L4_Word_t n) { return (L4_ThreadId_t){(L4_Word_t)utcb_of(n) + 256}; }

/* Let all others run until they wait. */
static void settle(void) { L4_Sleep(L4_TimePeriod(500)); }

/* What workers do: call the function that they are sent, and answer with its result. */
static void work(void)
{
    L4_Receive(main_thread);
    for (;;) {
        L4_Word_t order[2], result;
        L4_StoreMRs(1, 2, order);
        result = ((work_t)order[0])(order[1]);
        L4_Set_MsgTag((L4_MsgTag_t){1});
        L4_LoadMR(1, result);
        L4_Call(main_thread);
    }
}

static void begin(L4_Word_t n, work_t function, L4_Word_t argument)
{
    L4_Set_MsgTag((L4_MsgTag_t){2});
    L4_LoadMR(1, (L4_Word_t)function);
    L4_LoadMR(2, argument);
    L4_Send(worker(n));
    settle();
}

static UNUSED void begin_ipc(L4_Word_t n, struct ipc *i) { begin(n, do_ipc, (L4_Word_t)i); }

static L4_Word_t finish(L4_Word_t n)
{
    L4_Word_t result = 0;
    if (L4_IpcSucceeded(L4_Receive_Timeout(worker(n), L4_TimePeriod(1000000))))
        L4_StoreMR(1, &result);
    else
        print("worker %lu does not come back\n", n);
    return result;
}

static UNUSED L4_Word_t let(L4_Word_t n, work_t function, L4_Word_t argument)
{
    begin(n, function, argument);
    return finish(n);
}

static L4_Word_t state_of(L4_ThreadId_t thread)
{
    return L4_Schedule(thread, L4_UNCHANGED, L4_UNCHANGED, L4_UNCHANGED, L4_UNCHANGED, 0);
}

#define START 1

static int is_program(L4_Word_t address)
{
    return address >= (L4_Word_t)__executable_start && address < (L4_Word_t)_end;
}

/* Programs' own pages are theirs, ports whoever's; elsewhere a page is given out that means nothing. All but the first
 * are noted. */
static void pager(void)
{
    L4_ThreadId_t from;
    L4_MsgTag_t tag = L4_Wait(&from);
    for (;;) {
        L4_Word_t words[3];
        L4_StoreMRs(1, 3, words);
        if (L4_Label(tag) == START) {
            L4_Set_MsgTag((L4_MsgTag_t){2});
            L4_LoadMRs(1, 2, words + 1);
            L4_Send((L4_ThreadId_t){words[0]});
            L4_Set_MsgTag(L4_Niltag);
        } else {
            L4_Word_t page = words[0] & -PAGE;
            L4_MapItem_t item = L4_MapItem(L4_FpageLog2(page, PAGE_LOG2), page);
            if (L4_Label(tag) == L4_LABEL_IO_PAGE_FAULT) {
                fault.label = L4_Label(tag);
                fault.address = words[0];
                fault.count++;
                item = L4_MapItem((L4_Fpage_t){words[0]}, 0);
            } else if (!is_program(words[0])) {
                fault.label = L4_Label(tag);
                fault.address = words[0];
                fault.ip = words[1];
                fault.thread = from.raw;
                fault.count++;
                item = L4_MapItem(L4_FpageLog2((L4_Word_t)filler, PAGE_LOG2), page);
            }
            L4_Set_MsgTag((L4_MsgTag_t){2 << 6});
            L4_LoadMR(1, item.raw[0]);
            L4_LoadMR(2, item.raw[1] | ALL);
        }
        tag = L4_ReplyWait(from, &from);
    }
}

static void start_at(L4_ThreadId_t thread, void (*function)(void), char *stack)
{
    L4_Set_MsgTag((L4_MsgTag_t){2});
    L4_LoadMR(1, (L4_Word_t)function);
    L4_LoadMR(2, (L4_Word_t)stack);
    L4_Send(thread);
}

static UNUSED void hello(void)
{
    main_thread = L4_Myself();
    pager_thread = L4_GlobalId(L4_ThreadNo(main_thread) + 1, 1);
    L4_ThreadControl(pager_thread, main_thread, main_thread, main_thread, (void *)(UTCB_AREA + 512));
    start_at(pager_thread, pager, pager_stack + STACK);
}

static UNUSED int goodbye(void)
{
    L4_KDB_PrintString("end\n");
    return 0;
}

/* A worker in this space, whose pager is main. */
static UNUSED void start(L4_Word_t n)
{
    L4_ThreadControl(worker(n), main_thread, main_thread, main_thread, utcb_of(n));
    start_at(worker(n), work, stacks[n] + STACK);
}

static UNUSED void start_by_pager(L4_Word_t n)
{
    L4_Set_MsgTag((L4_MsgTag_t){START << 16 | 3});
    L4_LoadMR(1, worker(n).raw);
    L4_LoadMR(2, (L4_Word_t)work);
    L4_LoadMR(3, (L4_Word_t)stacks[n] + STACK);
    L4_Call(pager_thread);
    settle();
}

/* A worker in a space of its own, which has this program where it is here. */
static UNUSED void start_apart(L4_Word_t n)
{
    L4_ThreadId_t thread = worker(n);
    L4_Fpage_t kip = L4_FpageLog2((L4_Word_t)l4_kip, PAGE_LOG2), utcbs = L4_FpageLog2(UTCB_AREA, PAGE_LOG2);
    L4_ThreadControl(thread, thread, main_thread, L4_nilthread, (void *)UTCB_AREA);
    L4_SpaceControl(thread, 0, kip, utcbs, L4_nilthread, 0);
    L4_ThreadControl(thread, thread, main_thread, pager_thread, L4_UTCB_UNCHANGED);
    start_by_pager(n);
}

static UNUSED L4_Word_t delete(L4_ThreadId_t thread)
{
    return L4_ThreadControl(thread, L4_nilthread, L4_nilthread, L4_nilthread, L4_UTCB_UNCHANGED);
}

static UNUSED void stop(L4_Word_t n) { delete(worker(n)); }

/* What a worker whose pager is the one above can say of a page; if there was none, there is none afterwards. */
static UNUSED L4_Word_t readable(L4_Word_t address)
{
    L4_Word_t before = fault.count;
    *(volatile L4_Word_t *)address;
    if (fault.count == before)
        return 1;
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(address & -PAGE, PAGE_LOG2), ALL));
    return 0;
}

static UNUSED L4_Word_t writable(L4_Word_t address)
{
    L4_Word_t before = fault.count;
    *(volatile L4_Word_t *)address = address;
    if (fault.count == before)
        return 1;
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(address & -PAGE, PAGE_LOG2), ALL));
    return 0;
}

static UNUSED L4_Word_t peek(L4_Word_t address) { return *(volatile L4_Word_t *)address; }

#endif
