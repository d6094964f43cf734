/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A device driver: a thread that hears of the serial port's interrupts as messages, and sends each line to root.
 *
 * Shows: ports, interrupts by ThreadControl and Ipc, a string in message registers. serial.py is the same in Python.
 */
#include <l4/l4.h>

#define COM1 0x3f8
#define DATA (COM1 + 0)
#define INTERRUPTS (COM1 + 1)
#define FIFO (COM1 + 2)
#define MODEM (COM1 + 4)
#define STATUS (COM1 + 5)
#define LINE 4 /* the port's interrupt line */
#define LONGEST 200 /* characters of a line that are kept; they fit into a message */

static char stack[4096] __attribute__((aligned(16)));

static void driver(void)
{
    L4_ThreadId_t root = L4_Pager(), interrupt = L4_GlobalId(LINE, 1);
    char line[4 * 63];
    int length = 0;

    l4_out8(FIFO, 0x01); /* 16 bytes each way */
    l4_out8(INTERRUPTS, 0x01); /* one when something was received */
    l4_out8(MODEM, 0x0b); /* ready; OUT2 lets interrupts through to the controller */
    L4_Receive(interrupt);
    for (;;) {
        while (l4_in8(STATUS) & 1) {
            char c = (char)l4_in8(DATA);
            if (c != '\r' && c != '\n') {
                if (length < LONGEST)
                    line[length++] = c;
                continue;
            }
            line[length] = 0;
            L4_Set_MsgTag((L4_MsgTag_t){(L4_Word_t)length / 4 + 1});
            L4_LoadMRs(1, (L4_Word_t)length / 4 + 1, (L4_Word_t *)(void *)line);
            L4_Call(root);
            length = 0;
        }
        L4_Set_MsgTag(L4_Niltag); /* whatever it says: the line may interrupt again */
        L4_Call(interrupt);
    }
}

static int is(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

int main(void)
{
    L4_ThreadId_t me = L4_Myself(), thread = L4_GlobalId(L4_ThreadNo(me) + 1, 1), from;
    L4_Word_t size = L4_UtcbSize(l4_kip), utcb = (L4_MyLocalId().raw & -size) + size;
    L4_Word_t words[64];
    L4_MsgTag_t tag;

    /* Where ports are given out like memory, they are sigma0's, too. */
    L4_Sigma0_GetPage(L4_nilthread, L4_IoFpageLog2(COM1, 3));
    if (!L4_ThreadControl(thread, me, me, me, (void *)utcb) || !L4_AssociateInterrupt(L4_GlobalId(LINE, 1), thread)) {
        print("serial: no driver, error %lu\n", L4_ErrorCode());
        return 1;
    }
    L4_Set_MsgTag((L4_MsgTag_t){2});
    L4_LoadMR(1, (L4_Word_t)driver);
    L4_LoadMR(2, (L4_Word_t)stack + sizeof stack);
    L4_Send(thread);
    print("say something, or quit\n");

    for (tag = L4_Wait(&from);; tag = L4_ReplyWait(from, &from)) {
        const char *line = (const char *)words;
        int length = 0;
        L4_StoreMRs(1, L4_UntypedWords(tag), words);
        if (is(line, "quit"))
            break;
        while (line[length])
            length++;
        print("%d characters: %s\n", length, line);
        L4_Set_MsgTag(L4_Niltag);
    }
    L4_DeassociateInterrupt(L4_GlobalId(LINE, 1));
    print("serial: done\n");
    return 0;
}
