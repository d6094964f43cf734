/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pager: whoever touches memory that is not mapped makes its pager receive a message, and the answer maps.
 *
 * A thread in an address space of its own reads, writes and adds up a few words. Root answers its page faults: a page
 * for reading when it reads, for writing when it writes; in the midst of it all it takes the pages back.
 * Shows: SpaceControl, the page fault protocol, map items, Unmap. pager.py is the same in Python.
 */
#include <l4/l4.h>

#define PAGE 4096UL
#define WINDOW 0x10000000UL /* where the client has its pages, in its own space */
#define PAGES 3
#define READY 1 /* labels of the client's messages: done with a round ... */
#define RESULT 2 /* ... and with everything */

extern char __executable_start[], _end[]; /* the linker's: where this program begins and ends */

static char pages[PAGES * PAGE] __attribute__((aligned(4096)));
static char stack[4096] __attribute__((aligned(16)));

static void tell(L4_ThreadId_t root, L4_Word_t label, L4_Word_t word)
{
    L4_Set_MsgTag((L4_MsgTag_t){label << 16 | 1});
    L4_LoadMR(1, word);
    L4_Call(root);
}

/* The client. Its code and stack are root's, which root maps too, but does not speak of. */
static void client(void)
{
    L4_ThreadId_t root = L4_Pager();
    volatile L4_Word_t *words = (L4_Word_t *)WINDOW;
    L4_Word_t sum = 0;
    for (int i = 0; i < PAGES; i++)
        words[i * PAGE / 4] = words[i * PAGE / 4] + i + 1; /* a read, then a write */
    tell(root, READY, 0);
    for (int i = 0; i < PAGES; i++)
        sum += words[i * PAGE / 4];
    tell(root, RESULT, sum);
    L4_Sleep(L4_Never);
}

/* The page for an address of the client's: its own in the window, and this program, wherever it is. */
static L4_Fpage_t page_for(L4_Word_t address)
{
    if (address >= WINDOW && address < WINDOW + PAGES * PAGE)
        return L4_FpageLog2((L4_Word_t)pages + ((address - WINDOW) & -PAGE), 12);
    if (address >= ((L4_Word_t)__executable_start & -PAGE) && address < (L4_Word_t)_end)
        return L4_FpageLog2(address & -PAGE, 12);
    return L4_Nilpage;
}

int main(void)
{
    L4_ThreadId_t me = L4_Myself(), thread = L4_GlobalId(L4_ThreadNo(me) + 1, 1);
    L4_Fpage_t kip = L4_FpageLog2((L4_Word_t)l4_kip, L4_KipAreaSizeLog2(l4_kip));
    L4_Fpage_t utcbs = L4_FpageLog2(0xbf000000, L4_UtcbAreaSizeLog2(l4_kip));
    L4_Msg_t msg;

    /* A thread in a space that does not exist yet; the space's areas; then the thread may live. */
    if (!L4_ThreadControl(thread, thread, me, L4_nilthread, (void *)L4_Address(utcbs)) ||
        !L4_SpaceControl(thread, 0, kip, utcbs, L4_nilthread, 0) ||
        !L4_ThreadControl(thread, thread, me, me, L4_UTCB_UNCHANGED)) {
        print("pager: no client, error %lu\n", L4_ErrorCode());
        return 1;
    }
    L4_MsgClear(&msg);
    L4_MsgAppendWord(&msg, (L4_Word_t)client);
    L4_MsgAppendWord(&msg, (L4_Word_t)stack + sizeof stack);

    for (;;) {
        L4_Word_t address, rights;
        L4_Fpage_t page;
        L4_MsgTag_t tag;
        L4_MsgLoad(&msg);
        L4_Send(thread);
        tag = L4_Receive(thread);
        L4_MsgStore(tag, &msg);
        if (L4_Label(tag) == RESULT) {
            print("the client's words add up to %lu\n", L4_MsgWord(&msg, 0));
            break;
        }
        if (L4_Label(tag) == READY) {
            print("the client has been through its pages: they go\n");
            for (int i = 0; i < PAGES; i++) {
                L4_Fpage_t all = L4_FpageAddRights(L4_FpageLog2((L4_Word_t)pages + i * PAGE, 12), 7);
                L4_Fpage_t status = L4_UnmapFpage(all);
                print("page %d was %s\n", i, L4_WasWritten(status) ? "written" : "not written");
            }
            L4_MsgClear(&msg);
            continue;
        }
        address = L4_MsgWord(&msg, 0);
        rights = L4_Label(tag) & 7;
        page = page_for(address);
        if (address >= WINDOW)
            print("page fault at %08lx: %s\n", address, rights & L4_Writable ? "write" : "read");
        if (L4_IsNilFpage(page)) {
            print("pager: nobody has memory there\n");
            break;
        }
        /* Who reads gets the page for reading, and faults again when it writes. Programs' own pages are theirs. */
        if (address < WINDOW)
            rights = L4_FullyAccessible;
        L4_MsgClear(&msg);
        L4_MsgAppendMapItem(&msg, L4_MapItem(L4_FpageAddRights(page, rights | L4_ReadeXecOnly), address & -PAGE));
    }
    print("pager: done\n");
    return 0;
}
