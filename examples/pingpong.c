/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two threads in one address space that call each other: messages of several lengths there and back.
 *
 * Shows: ThreadControl, starting a thread, Ipc with message registers. pingpong.py is the same in Python.
 */
#include <l4/l4.h>

#define ROUNDS 100

static char stack[4096] __attribute__((aligned(16)));

/* Pong adds one to each word and sends it back. */
static void pong(void)
{
    L4_ThreadId_t partner;
    L4_MsgTag_t tag = L4_Wait(&partner);
    for (;;) {
        L4_Msg_t msg;
        L4_MsgStore(tag, &msg);
        for (L4_Word_t i = 1; i <= L4_UntypedWords(tag); i++)
            msg.raw[i]++;
        L4_MsgLoad(&msg);
        tag = L4_ReplyWait(partner, &partner);
    }
}

int main(void)
{
    static const L4_Word_t sizes[] = {0, 1, 16, 63};
    L4_ThreadId_t me = L4_Myself(), partner = L4_GlobalId(L4_ThreadNo(me) + 1, 1);
    /* The UTCB beside mine; L4_MyLocalId() points into mine. */
    L4_Word_t size = L4_UtcbSize(l4_kip), utcb = (L4_MyLocalId().raw & -size) + size;

    if (!L4_ThreadControl(partner, me, me, me, (void *)utcb)) {
        print("pingpong: no thread, error %lu\n", L4_ErrorCode());
        return 1;
    }
    /* A new thread waits for its pager's message: where to begin, and where its stack ends. */
    L4_LoadMR(0, 2);
    L4_LoadMR(1, (L4_Word_t)pong);
    L4_LoadMR(2, (L4_Word_t)stack + sizeof stack);
    L4_Send(partner);

    for (unsigned int n = 0; n < sizeof sizes / sizeof sizes[0]; n++) {
        L4_Word_t words[63] = {0}, sum = 0;
        for (int round = 0; round < ROUNDS; round++) {
            L4_Set_MsgTag((L4_MsgTag_t){sizes[n]});
            L4_LoadMRs(1, sizes[n], words);
            if (L4_IpcFailed(L4_Call(partner))) {
                print("pingpong: error %lu\n", L4_ErrorCode());
                return 1;
            }
            L4_StoreMRs(1, sizes[n], words);
        }
        for (L4_Word_t i = 0; i < sizes[n]; i++)
            sum += words[i];
        print("%d round trips with %lu words: the words add up to %lu\n", ROUNDS, sizes[n], sum);
    }
    print("pingpong: done\n");
    return 0;
}
