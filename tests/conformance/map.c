/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sections 5.5, 5.6 and 6.1 to 6.3: map and grant items, receive windows, rights, Unmap. */
#include "check.h"

#define A 0 /* two workers, each in a space of its own */
#define B 1
#define PAGES 8
#define WINDOW(log2) (ROOM | (log2) << 4)
#define COMPLETE 0x10UL
#define MAP 0x8UL
#define GRANT 0xaUL

static L4_Word_t pages[PAGES][PAGE / 4] __attribute__((aligned(PAGES * 4096)));
static struct ipc sent, got;

static L4_Word_t page(L4_Word_t n) { return (L4_Word_t)pages[n]; }
static L4_Word_t fpage(L4_Word_t base, L4_Word_t log2, L4_Word_t rights) { return base | log2 << 4 | rights; }

/* From main to a worker, which accepts this. */
static void give(L4_Word_t n, L4_Word_t window, L4_Word_t kind, L4_Word_t base, L4_Word_t of)
{
    got = (struct ipc){.from = main_thread, .br = {window}};
    begin_ipc(n, &got);
    sent = (struct ipc){.to = worker(n), .timeouts = NOT_WAITING, .mr = {2 << 6, base | kind, of}};
    run(&sent);
    finish(n);
}

/* From A to B; where it is with A it will be with B. */
static void hand_on(L4_Word_t kind, L4_Word_t base, L4_Word_t of)
{
    got = (struct ipc){.from = worker(A), .br = {COMPLETE}};
    begin_ipc(B, &got);
    sent = (struct ipc){.to = worker(B), .timeouts = NOT_WAITING, .mr = {2 << 6, base | kind, of}};
    begin_ipc(A, &sent);
    finish(A);
    finish(B);
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

static void take_all_back(void)
{
    for (L4_Word_t n = 0; n < PAGES; n++) {
        unmap(fpage(page(n), 12, ALL));
        pages[n][0] = 100 + n;
    }
}

static L4_Word_t sees(L4_Word_t n, L4_Word_t at) { return let(n, readable, at) ? let(n, peek, at) : 0; }

static void mapping(void)
{
    give(A, WINDOW(12), MAP, 0, fpage(page(0), 12, ALL));
    CHECK("6.2", "map a page", sent.error == 0 && got.error == 0 && sees(A, ROOM) == 100);
    CHECK("5.5", "a map item's words arrive", got.mr[0] == 2 << 6 && got.mr[1] == MAP && got.mr[2] == sent.mr[2]);
    CHECK("6.2", "what is written is seen by the mapper", let(A, writable, ROOM) && pages[0][0] == ROOM);
    pages[0][0] = 55;
    CHECK("6.2", "and the other way round", sees(A, ROOM) == 55);
    take_all_back();

    give(A, WINDOW(12), MAP, 0, fpage(page(1), 12, 4));
    CHECK("6.2", "map for reading: it can be read", sees(A, ROOM) == 101);
    CHECK("6.2", "map for reading: it cannot be written", !let(A, writable, ROOM) && fault.label == 0xffe2);
    give(A, WINDOW(12), MAP, 0, fpage(page(1), 12, 4));
    give(A, WINDOW(12), MAP, 0, fpage(page(1), 12, ALL));
    CHECK("6.2", "mapped again with more rights", let(A, writable, ROOM));
    give(A, WINDOW(12), MAP, 0, fpage(page(1), 12, 4));
    CHECK("6.2", "mapped again with fewer: rights are not lost", let(A, writable, ROOM));
    give(A, WINDOW(12), MAP, 0, fpage(page(2), 12, ALL));
    CHECK("6.2", "another page takes the place of the first", sees(A, ROOM) == 102);
    unmap(fpage(page(1), 12, ALL));
    CHECK("6.2", "which is out of it", sees(A, ROOM) == 102);
    take_all_back();
}

static void windows(void)
{
    give(A, 0, MAP, 0, fpage(page(0), 12, ALL));
    CHECK("5.5", "no window: overflow, to the sender", sent.error == 8 && sent.mr[0] & 0x8000);
    CHECK("5.5", "no window: overflow, to the receiver", got.error == 9 && got.mr[0] & 0x8000);
    CHECK("5.5", "no window: nothing is mapped", !let(A, readable, ROOM));

    give(A, WINDOW(14), MAP, 0x2000, fpage(page(0), 12, ALL));
    CHECK("6.2", "the send base chooses a place in the window", sees(A, ROOM + 0x2000) == 100);
    CHECK("6.2", "and no other", !let(A, readable, ROOM) && !let(A, readable, ROOM + 0x3000));
    give(A, WINDOW(14), MAP, 0x5000, fpage(page(1), 12, ALL));
    CHECK("6.2", "the send base is taken modulo the window", sees(A, ROOM + 0x1000) == 101);
    take_all_back();
    give(A, WINDOW(12), MAP, 0x3000, fpage(page(0), 14, ALL));
    CHECK("6.2", "the send base chooses from a larger fpage", sees(A, ROOM) == 103);
    CHECK("6.2", "and no more than the window holds", !let(A, readable, ROOM + 0x1000));
    take_all_back();
    give(A, WINDOW(12), MAP, 0x7000, fpage(page(0), 14, ALL));
    CHECK("6.2", "modulo the fpage", sees(A, ROOM) == 103);
    take_all_back();
    give(A, WINDOW(14), MAP, 0, fpage(page(4), 14, ALL));
    CHECK("6.2", "four pages at once", sees(A, ROOM) == 104 && sees(A, ROOM + 0x3000) == 107);
    take_all_back();
    give(A, COMPLETE, MAP, ROOM + 0x5000, fpage(page(5), 12, ALL));
    CHECK("5.6", "the complete window: the send base is the address", sees(A, ROOM + 0x5000) == 105);
    give(A, WINDOW(12) | 0x200000, MAP, 0, fpage(page(6) + 0x400, 12, ALL));
    CHECK("6.1", "an fpage begins at a multiple of its size", sees(A, ROOM + 0x200000) == 106);
    take_all_back();
}

static void odd_items(void)
{
    give(A, WINDOW(12), MAP, 0, fpage(page(0), 11, ALL));
    CHECK("6.2", "less than a page is not mapped", got.error == 0 && !let(A, readable, ROOM));
    give(A, WINDOW(12), MAP, 0, 0);
    CHECK("6.2", "nilpage maps nothing", got.error == 0 && got.mr[2] == 0 && !let(A, readable, ROOM));
    give(A, WINDOW(12), MAP, 0, fpage(ROOM + 0x100000, 12, ALL));
    CHECK("6.2", "where the sender has nothing, nothing is mapped", got.error == 0 && !let(A, readable, ROOM));
    give(A, WINDOW(12), 0xe, 0, fpage(page(0), 12, ALL));
    CHECK("5.5", "an unknown item: overflow", sent.error == 8 && got.error == 9);

    got = (struct ipc){.from = main_thread, .br = {COMPLETE}};
    begin_ipc(A, &got);
    sent = (struct ipc){.to = worker(A), .timeouts = NOT_WAITING, .mr = {1 << 6, MAP}};
    run(&sent);
    finish(A);
    CHECK("5.5", "half a map item: overflow", sent.error == 8 && got.error == 9);

    got = (struct ipc){.from = main_thread, .br = {COMPLETE}};
    begin_ipc(A, &got);
    sent = (struct ipc){.to = worker(A),
                        .timeouts = NOT_WAITING,
                        .mr = {2 | 4 << 6, 11, 12, ROOM | MAP, fpage(page(0), 12, ALL), (ROOM + PAGE) | MAP | 1,
                               fpage(page(1), 12, 4)}};
    run(&sent);
    finish(A);
    CHECK("5.5", "words before two items", got.error == 0 && got.mr[1] == 11 && got.mr[2] == 12);
    CHECK("5.5", "two items' words arrive where they were", got.mr[3] == (ROOM | MAP) && got.mr[6] == sent.mr[6]);
    CHECK("5.5", "both items are mapped", sees(A, ROOM) == 100 && sees(A, ROOM + PAGE) == 101);
    take_all_back();
}

static void chains(void)
{
    give(A, COMPLETE, MAP, ROOM, fpage(page(0), 12, 4));
    hand_on(MAP, ROOM, fpage(ROOM, 12, ALL));
    CHECK("6.2", "what one has, one hands on", got.error == 0 && sees(B, ROOM) == 100);
    CHECK("14", "Q6: nobody hands on rights that he has not", !let(B, writable, ROOM));
    take_all_back();

    give(A, COMPLETE, MAP, ROOM, fpage(page(0), 12, ALL));
    hand_on(MAP, ROOM, fpage(ROOM, 12, ALL));
    CHECK("6.2", "all hold the same page", let(B, writable, ROOM) && sees(A, ROOM) == ROOM && pages[0][0] == ROOM);
    let(A, unmap, fpage(ROOM, 12, ALL));
    CHECK("6.3", "unmap: who got it from me has it no more", !let(B, readable, ROOM));
    CHECK("6.3", "unmap: I have it still", let(A, readable, ROOM));
    hand_on(MAP, ROOM, fpage(ROOM, 12, ALL));
    let(A, flush, fpage(ROOM, 12, ALL));
    CHECK("6.3", "flush: I have it no more either", !let(B, readable, ROOM) && !let(A, readable, ROOM));
    CHECK("6.3", "flush: who gave it to me has it still", pages[0][0] == ROOM);
    give(A, COMPLETE, MAP, ROOM, fpage(page(0), 12, ALL));
    hand_on(MAP, ROOM, fpage(ROOM, 12, ALL));
    take_all_back();
    CHECK("6.3", "unmap reaches all who got it from those who got it",
          !let(A, readable, ROOM) && !let(B, readable, ROOM));

    give(A, COMPLETE, MAP, ROOM, fpage(page(0), 12, ALL));
    hand_on(GRANT, ROOM, fpage(ROOM, 12, ALL));
    CHECK("5.5", "a grant item's words arrive", got.mr[1] == (ROOM | GRANT) && got.mr[2] == fpage(ROOM, 12, ALL));
    CHECK("6.2", "what is granted is there", sees(B, ROOM) == 100 && let(B, writable, ROOM));
    CHECK("6.2", "and is no more here", !let(A, readable, ROOM));
    take_all_back();
    CHECK("6.2", "the first mapper takes a granted page back", !let(B, readable, ROOM));

    give(A, COMPLETE, MAP, ROOM, fpage(page(0), 12, 4));
    hand_on(GRANT, ROOM, fpage(ROOM, 12, ALL));
    CHECK("6.2", "a grant adds no rights", sees(B, ROOM) == 100 && !let(B, writable, ROOM));
    take_all_back();
}

static void rights(void)
{
    L4_Word_t query = fpage(page(0), 12, 0), f[3];
    give(A, WINDOW(12), MAP, 0, fpage(page(0), 12, ALL));
    unmap(fpage(page(0), 12, 2));
    CHECK("6.3", "the right to write is taken back alone", sees(A, ROOM) == 100 && !let(A, writable, ROOM));

    give(A, WINDOW(12), MAP, 0, fpage(page(0), 12, ALL));
    unmap(query);
    CHECK("6.3", "status of an untouched page: nothing", unmap(query) == query);
    let(A, peek, ROOM);
    CHECK("6.3", "status of a page that was read: r and x", unmap(query) == (query | 5));
    CHECK("6.3", "to ask is to reset", unmap(query) == query);
    let(A, writable, ROOM);
    CHECK("6.3", "status of a page that was written: w too", unmap(query) == (query | 7));
    CHECK("6.3", "a status query takes nothing", let(A, writable, ROOM));
    CHECK("6.3", "an unmap tells the status too", unmap(fpage(page(0), 12, ALL)) == (query | 7));

    give(A, WINDOW(13), MAP, 0, fpage(page(0), 13, ALL));
    let(A, peek, ROOM);
    let(A, writable, ROOM + PAGE);
    f[0] = fpage(page(0), 12, 0);
    f[1] = 0;
    f[2] = fpage(page(1), 12, ALL);
    L4_LoadMRs(0, 3, f);
    L4_Unmap(2);
    L4_StoreMRs(0, 3, f);
    CHECK("6.3", "several fpages, each with its own status", (f[0] & 7) == 5 && f[1] == 0 && (f[2] & 7) == 7);
    CHECK("6.3", "and each with its own rights", let(A, readable, ROOM) && !let(A, readable, ROOM + PAGE));
    unmap(fpage(page(0), 10, ALL));
    CHECK("6.3", "less than a page is a page", !let(A, readable, ROOM));
    give(A, WINDOW(14), MAP, 0, fpage(page(0), 14, ALL));
    unmap(fpage(page(0), 13, ALL));
    CHECK("6.3", "two of four pages at once",
          !let(A, readable, ROOM) && !let(A, readable, ROOM + 0x1000) && let(A, readable, ROOM + 0x2000));
    let(A, flush, fpage(ROOM + 0x2000, 12, 2));
    CHECK("6.3", "flush takes rights from oneself",
          let(A, readable, ROOM + 0x2000) && !let(A, writable, ROOM + 0x2000));
    take_all_back();
}

static void many(void)
{
    L4_Word_t good = 1;
    give(A, WINDOW(15), MAP, 0, fpage(page(0), 15, ALL));
    for (L4_Word_t n = 0; n < PAGES; n++)
        let(A, n % 2 ? peek : writable, ROOM + n * PAGE);
    for (L4_Word_t i = 0; i < 64; i++)
        L4_LoadMR(i, i % 8 ? 0 : fpage(page(i / 8), 12, ALL));
    L4_Unmap(63);
    for (L4_Word_t i = 0, status; i < 64; i++) {
        L4_StoreMR(i, &status);
        good &= i % 8 ? status == 0 : (status & 7) == (i / 8 % 2 ? 5 : 7);
    }
    CHECK("6.3", "64 fpages at once", good && !let(A, readable, ROOM) && !let(A, readable, ROOM + 7 * PAGE));
    take_all_back();
    give(A, WINDOW(15), MAP, 0, fpage(page(0), 15, ALL));
    let(A, writable, ROOM + 3 * PAGE);
    CHECK("6.3", "one status for many pages", unmap(fpage(page(0), 15, 0)) == fpage(page(0), 15, 7));
    hand_on(MAP, ROOM, fpage(ROOM, 15, 4));
    let(B, peek, ROOM + 5 * PAGE);
    CHECK("6.3", "status of pages that were handed on", unmap(fpage(page(0), 15, 0)) == fpage(page(0), 15, 5));
    let(A, writable, ROOM);
    CHECK("6.3", "flush tells of one's own use", let(A, flush, fpage(ROOM, 12, 0)) == fpage(ROOM, 12, 7));
    take_all_back();
}

static L4_Word_t magic(L4_Word_t nothing) { return l4_kip->magic + nothing; }

static void kernel_areas(void)
{
    L4_Word_t kip = (L4_Word_t)l4_kip;
    give(A, WINDOW(12), MAP, 0, fpage(kip, 12, ALL));
    CHECK("6.2", "the KIP cannot be mapped", got.error == 0 && !let(A, readable, ROOM));
    give(A, WINDOW(12), MAP, 0, fpage(UTCB_AREA, 12, ALL));
    CHECK("2", "UTCBs cannot be mapped", got.error == 0 && !let(A, readable, ROOM));
    give(A, COMPLETE, MAP, kip, fpage(page(0), 12, ALL));
    CHECK("6.2", "nothing is mapped over the KIP", let(A, magic, 0) == 0x4be6344c);
    give(A, COMPLETE, MAP, UTCB_AREA, fpage(page(0), 12, ALL));
    CHECK("2", "nothing is mapped over UTCBs", pages[0][0] == 100 && let(A, magic, 1) == 0x4be6344d);
    let(A, flush, fpage(kip, 12, ALL));
    let(A, flush, fpage(UTCB_AREA, 12, ALL));
    CHECK("6.3", "KIP and UTCBs cannot be unmapped", let(A, magic, 2) == 0x4be6344e);
    give(A, COMPLETE, MAP, 0xf0000000, fpage(page(0), 12, ALL));
    CHECK("6.2", "only the user area takes part", got.error == 0 && pages[0][0] == 100);
    take_all_back();
}

int main(void)
{
    hello();
    start_apart(A);
    start_apart(B);
    take_all_back();
    mapping();
    windows();
    odd_items();
    chains();
    rights();
    many();
    kernel_areas();
    return goodbye();
}
