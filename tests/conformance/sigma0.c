/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sections 6.4, 6.5 and 6.1: what sigma0 gives to whom, and I/O ports as fpages. */
#include "check.h"

#define APART 1
#define REQUEST 0xffa0UL
#define MB (1UL << 20)

static struct ipc ask;

/* Somebody asks for something; the answer is in `ask`. */
static void request(L4_Word_t label, L4_Word_t wanted, L4_Word_t words, L4_Word_t window)
{
    ask = (struct ipc){.to = L4_Sigma0(),
                       .from = L4_Sigma0(),
                       .timeouts = L4_TimePeriod(100000).raw,
                       .mr = {label << 16 | words, wanted},
                       .br = {window}};
}

static void want(L4_Word_t base, L4_Word_t log2)
{
    request(REQUEST, base | log2 << 4, 2, ROOM | log2 << 4);
    run(&ask);
}

static int refused(void) { return ask.error == 0 && ask.mr[0] == 2 << 6 && ask.mr[1] == 8 && ask.mr[2] == 0; }

static L4_Word_t memory_of(L4_Word_t type)
{
    L4_Word_t found = 0;
    for (L4_Word_t i = 0; i < L4_NumMemoryDescriptors(l4_kip); i++) {
        L4_MemoryDesc_t *d = L4_MemoryDesc(l4_kip, i);
        if (!L4_IsMemoryDescVirtual(d) && L4_MemoryDescType(d) == type && L4_MemoryDescLow(d))
            found = L4_MemoryDescLow(d);
    }
    return found;
}

static void memory(void)
{
    volatile L4_Word_t *room = (L4_Word_t *)ROOM;
    L4_Word_t address;
    want(0xfffffc00, 12);
    address = ask.mr[2] & -PAGE;
    CHECK("6.4", "any page: label 0, one map item", ask.error == 0 && ask.mr[0] == 2 << 6 && (ask.mr[1] & 0xf) == 8);
    CHECK("6.4", "with all rights, its send base its address",
          (ask.mr[2] & 0x3ff) == (12 << 4 | ALL) && (ask.mr[1] & ~0x3ffUL) == address);
    room[0] = 0x600d;
    CHECK("6.4", "it is there", room[0] == 0x600d);
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(ROOM, PAGE_LOG2), ALL));
    want(address, 12);
    CHECK("6.4", "whom it belongs to may ask again", ask.mr[2] == (address | 12 << 4 | ALL) && room[0] == 0x600d);
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(ROOM, PAGE_LOG2), ALL));
    request(REQUEST, address | 12 << 4, 2, 0x10);
    let(0, do_ipc, (L4_Word_t)&ask);
    CHECK("6.4", "nobody else gets it, not even in the same space", refused());
    want(memory_of(L4_ReservedMemoryType), 12);
    CHECK("6.4", "the kernel's memory is nobody's", refused());
    want(0x80000000, 12);
    CHECK("6.4", "what is no memory is nobody's", refused());
    want(0xfffffc00, 31);
    CHECK("6.4", "more than there is", refused());
    want(0xa0000, 12);
    CHECK("6.4", "shared memory", ask.mr[2] == (0xa0000 | 12 << 4 | ALL));
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(ROOM, PAGE_LOG2), ALL));
    request(REQUEST, 0xa0000 | 12 << 4, 2, 0x10);
    let(0, do_ipc, (L4_Word_t)&ask);
    CHECK("6.4", "is for all", ask.mr[2] == (0xa0000 | 12 << 4 | ALL));
    request(REQUEST, (L4_Word_t)filler | 12 << 4, 2, 0x10);
    let(0, do_ipc, (L4_Word_t)&ask);
    CHECK("6.4", "the root server's memory is the root server's", refused());

    want(0xfffffc00, 22);
    CHECK("6.4", "4 MB at once", (ask.mr[2] & 0x3ff) == (22 << 4 | ALL) && (ask.mr[2] & (4 * MB - 1) & ~0x3ffUL) == 0);
    room[0] = 1;
    room[MB - 1] = 2;
    CHECK("6.1", "a page of 4 MB is there from end to end", room[0] == 1 && room[MB - 1] == 2);
    ask = (struct ipc){.to = worker(APART), .timeouts = NOT_WAITING, .mr = {2 << 6, (ROOM + 0x5000) | 8}};
    ask.mr[2] = (ROOM + 0x5000) | 12 << 4 | ALL;
    room[0x5000 / 4] = 0x5555;
    begin(APART, do_ipc, (L4_Word_t) & (struct ipc){.from = main_thread, .br = {0x10}});
    run(&ask);
    finish(APART);
    CHECK("6.2", "a piece of it can be mapped",
          let(APART, peek, ROOM + 0x5000) == 0x5555 && !let(APART, readable, ROOM + 0x6000));
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(ROOM, 22), ALL));
    CHECK("6.3", "and goes with it", !let(APART, readable, ROOM + 0x5000));
}

static void hand_on(L4_Word_t base, L4_Word_t log2, L4_Word_t kind)
{
    struct ipc take = {.from = main_thread, .br = {0x10}};
    ask = (struct ipc){.to = worker(APART), .timeouts = NOT_WAITING};
    ask.mr[0] = 2 << 6;
    ask.mr[1] = base | kind;
    ask.mr[2] = base | log2 << 4 | ALL;
    begin(APART, do_ipc, (L4_Word_t)&take);
    run(&ask);
    finish(APART);
}

/* Pages of 4 MB and their pieces. */
static void large_pages(void)
{
    volatile L4_Word_t *room = (L4_Word_t *)ROOM;
    L4_ExchangeRegisters(worker(0), 1 << 7, 0, 0, 0, 0, pager_thread, 0, 0, 0, 0, 0, 0);
    want(0xfffffc00, 22);
    room[0] = 0xa;
    room[MB - 1] = 0xb;
    hand_on(ROOM, 22, 8);
    CHECK("6.2", "4 MB are mapped on at once",
          let(APART, peek, ROOM) == 0xa && let(APART, peek, ROOM + 4 * MB - 4) == 0xb);
    CHECK("6.3", "status of 4 MB: r and x", L4_UnmapFpage(L4_FpageLog2(ROOM, 22)).raw == (ROOM | 22 << 4 | 5));
    L4_UnmapFpage(L4_FpageAddRights(L4_FpageLog2(ROOM, 22), ALL));
    hand_on(ROOM + 0x5000, 12, 8);
    hand_on(ROOM + 0x7000, 12, 8);
    L4_UnmapFpage(L4_FpageAddRights(L4_FpageLog2(ROOM + 0x5000, 12), ALL));
    CHECK("6.3", "one piece of 4 MB is unmapped",
          !let(APART, readable, ROOM + 0x5000) && let(APART, readable, ROOM + 0x7000));
    CHECK("6.3", "and they stay whole where they are", room[0] == 0xa && room[MB - 1] == 0xb);
    L4_Flush(L4_FpageAddRights(L4_FpageLog2(ROOM + 0x100000, 12), ALL));
    CHECK("6.3", "a flush of a piece is one of the whole page",
          !let(0, readable, ROOM) && !let(APART, readable, ROOM + 0x7000));
    L4_ExchangeRegisters(worker(0), 1 << 7, 0, 0, 0, 0, main_thread, 0, 0, 0, 0, 0, 0);
}

static void other_requests(void)
{
    L4_Word_t address = 0x02400000; /* conventional, and asked for by nobody */
    request(0x4240, 0, 2, 0x10);
    run(&ask);
    CHECK("6.4", "an unknown label has no answer", ask.error == 3);
    request(REQUEST, 0xfffffc00 | 12 << 4, 1, 0x10);
    run(&ask);
    CHECK("6.4", "a request of one word has no answer", ask.error == 3);
    request(0xffe5, address + 0x123, 2, 0x10);
    run(&ask);
    CHECK("6.4", "a page fault is answered with its page", ask.error == 0 && ask.mr[2] == (address | 12 << 4 | ALL));
    CHECK("6.4", "where it is", ask.mr[1] == (address | 8));
    CHECK("6.5", "a page fault of the root server is sigma0's to answer",
          (*(volatile L4_Word_t *)(address + PAGE) = 9) == 9 && *(volatile L4_Word_t *)(address + PAGE) == 9);
    request(0xc170, 1, 2, 0x10);
    let(0, do_ipc, (L4_Word_t)&ask);
    CHECK("6.4", "the extended protocol is not for everybody", ask.error == 3);
}

/* Ports: the second serial port's, where nobody is. */

#define PORT 0x2f8
#define PORT_FPAGE(port, log2) ((L4_Word_t)(port) << 16 | (L4_Word_t)(log2) << 10 | 2 << 4)

static L4_Word_t in8(L4_Word_t port) { return l4_in8((L4_Word16_t)port); }

static L4_Word_t in16(L4_Word_t port)
{
    L4_Word16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "d"((L4_Word16_t)port));
    return value;
}

static L4_Word_t in32(L4_Word_t port)
{
    L4_Word_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "d"((L4_Word16_t)port));
    return value;
}

static L4_Word_t out8(L4_Word_t port)
{
    l4_out8((L4_Word16_t)port, 0);
    return 0;
}

/* Does the worker have the port? Its pager gives it out at once: so we take it back. */
static int has(work_t access, L4_Word_t port, L4_Word_t of)
{
    L4_Word_t before = fault.count;
    let(APART, access, port);
    if (fault.count == before)
        return 1;
    L4_UnmapFpage((L4_Fpage_t){of});
    return 0;
}

static L4_Word_t flush(L4_Word_t of)
{
    L4_Flush((L4_Fpage_t){of});
    return 0;
}

static void give(L4_Word_t of)
{
    struct ipc take = {.from = main_thread};
    ask = (struct ipc){.to = worker(APART), .timeouts = NOT_WAITING, .mr = {2 << 6, 8, of}};
    begin(APART, do_ipc, (L4_Word_t)&take);
    run(&ask);
    finish(APART);
    ask.error |= take.error;
}

static void ports(void)
{
    L4_Word_t all = PORT_FPAGE(PORT, 3), address;
    struct ipc take = {.from = worker(0), .timeouts = L4_TimePeriod(5000).raw};
    begin(0, in8, PORT + 1);
    run(&take);
    CHECK("6.5", "an I/O page fault: label -8 with 6, two words", take.mr[0] == (0xff86UL << 16 | 2));
    CHECK("6.5", "it says which port", take.mr[1] == PORT_FPAGE(PORT + 1, 0));
    CHECK("6.5", "it says at which instruction", take.mr[2] - (L4_Word_t)in8 < 16);
    request(REQUEST, all, 2, 0);
    run(&ask);
    CHECK("6.4", "ports are sigma0's to give",
          ask.error == 0 && ask.mr[0] == 2 << 6 && (ask.mr[2] & ~7UL) == (all & ~7UL));
    CHECK("5.6", "they need no receive window", ask.error == 0);
    ask = (struct ipc){.to = worker(0), .timeouts = NOT_WAITING};
    run(&ask);
    address = finish(0);
    CHECK("6.5", "then the access goes on", ask.error == 0 && address <= 0xff);
    CHECK("6.5", "all threads of the space have them", l4_in8(PORT) <= 0xff);
    request(REQUEST, all, 2, 0x10);
    let(0, do_ipc, (L4_Word_t)&ask);
    CHECK("6.4", "ports that are somebody's are refused", refused());

    CHECK("6.5", "other spaces have none", !has(in8, PORT, all));
    CHECK("6.5", "a byte is one port", fault.label == 0xff86 && fault.address == PORT_FPAGE(PORT, 0));
    CHECK("6.5", "a word is two", !has(in16, PORT, all) && fault.address == PORT_FPAGE(PORT, 1));
    CHECK("6.5", "a double word is four", !has(in32, PORT + 4, all) && fault.address == PORT_FPAGE(PORT + 4, 2));
    CHECK("6.5", "OUT faults as IN does", !has(out8, PORT + 3, all) && fault.address == PORT_FPAGE(PORT + 3, 0));
    give(PORT_FPAGE(PORT, 1));
    CHECK("6.1", "ports are mapped on, without a window",
          ask.error == 0 && has(in8, PORT, all) && has(in16, PORT, all));
    CHECK("6.1", "those of the fpage and no more", !has(in8, PORT + 2, all));
    give(all);
    L4_UnmapFpage((L4_Fpage_t){PORT_FPAGE(PORT, 0)});
    CHECK("6.3", "ports are unmapped", !has(in8, PORT, PORT_FPAGE(PORT, 0)) && has(in8, PORT + 1, all));
    let(APART, flush, all);
    CHECK("6.3", "ports are flushed", !has(in8, PORT + 1, all));
}

int main(void)
{
    hello();
    start(0);
    start_apart(APART);
    settle();
    memory();
    large_pages();
    other_requests();
    ports();
    return goodbye();
}
