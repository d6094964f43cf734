/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memory server: it has a few pages from sigma0 and lends them to clients in address spaces of their own.
 *
 * A client asks for a page to be mapped where it likes, uses it, and gives it back or does not. What it has at its end
 * is taken back. Root is the server, and starts one client after the other.
 * Shows: asking sigma0, map items in answers, receive windows, Unmap, deleting a space. memserver.py is the same in
 * Python.
 */
#include <l4/l4.h>

#define PAGE 4096UL
#define POOL 2 /* pages that there are */
#define WINDOW 0x20000000UL /* where clients want their pages */
#define CLIENTS 2
enum { ALLOCATE = 1, RELEASE, FINISHED }; /* labels of requests; a page's number goes with RELEASE */

extern char __executable_start[], _end[];

static L4_Word_t pool; /* where the pages are */
static L4_ThreadId_t owner[POOL];
static char stack[4096] __attribute__((aligned(16)));

/* The answer's tag: no typed words, if the request was refused. */
static L4_MsgTag_t request(L4_Word_t label, L4_Word_t word, L4_Word_t window)
{
    L4_Accept(window ? L4_MapGrantItems(L4_FpageLog2(window, 12)) : L4_UntypedWordsAcceptor);
    L4_Set_MsgTag((L4_MsgTag_t){label << 16 | 1});
    L4_LoadMR(1, word);
    return L4_Call(L4_Pager());
}

/* A client: takes pages until there are no more, writes to each, gives the first one back and takes it once more. */
static void client(void)
{
    L4_Word_t count = 0, first = 0, word;
    while (L4_TypedWords(request(ALLOCATE, 0, WINDOW + count * PAGE))) {
        L4_StoreMR(1, &word);
        if (!count)
            first = word;
        *(volatile L4_Word_t *)(WINDOW + count * PAGE) = 0x1000 + count;
        count++;
    }
    print("client: %lu pages, and no more\n", count);
    request(RELEASE, first, 0);
    print("client: again, %s\n", L4_TypedWords(request(ALLOCATE, 0, WINDOW)) ? "yes" : "no");
    print("client: the page is %s\n", *(volatile L4_Word_t *)WINDOW ? "as it was" : "clean");
    request(FINISHED, 0, 0);
}

static void clear(L4_Word_t page)
{
    for (L4_Word_t i = 0; i < PAGE / 4; i++)
        ((L4_Word_t *)page)[i] = 0;
}

static void release(L4_Word_t number)
{
    L4_UnmapFpage(L4_FpageAddRights(L4_FpageLog2(pool + number * PAGE, 12), L4_FullyAccessible));
    owner[number] = L4_nilthread;
}

/* What to answer. */
static void serve(L4_ThreadId_t from, L4_Msg_t *msg)
{
    L4_Word_t label = L4_MsgLabel(msg), word = L4_MsgWord(msg, 0);
    L4_MsgClear(msg);
    if ((label & ~7UL) == L4_LABEL_PAGE_FAULT) { /* code and stack: the client runs in this very program */
        if (word >= (L4_Word_t)__executable_start && word < (L4_Word_t)_end)
            L4_MsgAppendMapItem(msg, L4_MapItem(L4_FpageAddRights(L4_FpageLog2(word & -PAGE, 12), 7), word & -PAGE));
    } else if (label == ALLOCATE) {
        for (L4_Word_t i = 0; i < POOL; i++) {
            if (!L4_IsNilThread(owner[i]))
                continue;
            owner[i] = from;
            clear(pool + i * PAGE);
            print("server: page %lu is lent\n", i);
            L4_MsgAppendWord(msg, i);
            L4_MsgAppendMapItem(msg, L4_MapItem(L4_FpageAddRights(L4_FpageLog2(pool + i * PAGE, 12), 7), 0));
            return;
        }
        print("server: nothing is left\n");
    } else if (label == RELEASE && word < POOL && L4_IsThreadEqual(owner[word], from)) {
        print("server: page %lu comes back\n", word);
        release(word);
    }
}

static int run_client(L4_ThreadId_t me, L4_ThreadId_t thread)
{
    L4_Fpage_t kip = L4_FpageLog2((L4_Word_t)l4_kip, L4_KipAreaSizeLog2(l4_kip));
    L4_Fpage_t utcbs = L4_FpageLog2(0xbf000000, L4_UtcbAreaSizeLog2(l4_kip));
    L4_Msg_t msg;
    L4_MsgTag_t tag;

    if (!L4_ThreadControl(thread, thread, me, L4_nilthread, (void *)L4_Address(utcbs)) ||
        !L4_SpaceControl(thread, 0, kip, utcbs, L4_nilthread, 0) ||
        !L4_ThreadControl(thread, thread, me, me, L4_UTCB_UNCHANGED))
        return 0;
    L4_MsgClear(&msg);
    L4_MsgAppendWord(&msg, (L4_Word_t)client);
    L4_MsgAppendWord(&msg, (L4_Word_t)stack + sizeof stack);
    for (;;) {
        L4_MsgLoad(&msg);
        L4_Send(thread);
        tag = L4_Receive(thread);
        L4_MsgStore(tag, &msg);
        if (L4_Label(tag) == FINISHED)
            break;
        serve(thread, &msg);
    }
    for (L4_Word_t i = 0; i < POOL; i++) {
        if (L4_IsThreadEqual(owner[i], thread)) {
            print("server: page %lu is taken back\n", i);
            release(i);
        }
    }
    L4_ThreadControl(thread, L4_nilthread, L4_nilthread, L4_nilthread, L4_UTCB_UNCHANGED);
    return 1;
}

int main(void)
{
    L4_ThreadId_t me = L4_Myself();
    L4_Fpage_t got = L4_Sigma0_GetAny(L4_nilthread, 13, L4_FpageLog2(0x30000000, 13));

    if (L4_IsNilFpage(got)) {
        print("server: sigma0 has nothing left\n");
        return 1;
    }
    pool = 0x30000000;
    for (L4_Word_t i = 1; i <= CLIENTS; i++) {
        print("server: client %lu begins\n", i);
        if (!run_client(me, L4_GlobalId(L4_ThreadNo(me) + i, 1))) {
            print("server: no client, error %lu\n", L4_ErrorCode());
            return 1;
        }
    }
    print("memserver: done\n");
    return 0;
}
