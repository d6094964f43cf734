/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ipc: one system call that sends, receives, or does one after the other (X.2 manual, section Ipc).
 *
 * What is sent is what lies in the message registers, the tag in MR0. What the tag says afterwards, is returned.
 */
#ifndef L4_IPC_H
#define L4_IPC_H

#include <l4/message.h>
#include <l4/thread.h>

L4_INLINE L4_MsgTag_t l4_ipc(L4_Word_t entry, L4_ThreadId_t to, L4_ThreadId_t from_specifier, L4_Word_t timeouts,
                             L4_ThreadId_t *from)
{
    L4_Word_t *mr = l4_utcb();
    L4_Registers_t r = {
        .eax = to.raw, .ecx = timeouts, .edx = from_specifier.raw, .esi = mr[0], .edi = (L4_Word_t)mr};
    l4_system_call(entry, &r);
    mr[0] = r.esi; /* MR1 and MR2, which come in EBX and EBP, lie in their places too */
    if (from)
        from->raw = r.eax;
    return (L4_MsgTag_t){r.esi};
}

L4_INLINE L4_MsgTag_t L4_Ipc(L4_ThreadId_t to, L4_ThreadId_t from_specifier, L4_Word_t timeouts, L4_ThreadId_t *from)
{
    return l4_ipc(L4_ENTRY(Ipc), to, from_specifier, timeouts, from);
}

/* The same for partners in the same address space. */
L4_INLINE L4_MsgTag_t L4_Lipc(L4_ThreadId_t to, L4_ThreadId_t from_specifier, L4_Word_t timeouts, L4_ThreadId_t *from)
{
    return l4_ipc(L4_ENTRY(Lipc), to, from_specifier, timeouts, from);
}

L4_INLINE L4_MsgTag_t L4_Send_Timeout(L4_ThreadId_t to, L4_Time_t send)
{
    return L4_Ipc(to, L4_nilthread, L4_Timeouts(send, L4_ZeroTime), 0);
}

L4_INLINE L4_MsgTag_t L4_Send(L4_ThreadId_t to) { return L4_Send_Timeout(to, L4_Never); }

/* Send only if the receiver waits already. */
L4_INLINE L4_MsgTag_t L4_Reply(L4_ThreadId_t to) { return L4_Send_Timeout(to, L4_ZeroTime); }

L4_INLINE L4_MsgTag_t L4_Receive_Timeout(L4_ThreadId_t from, L4_Time_t receive)
{
    return L4_Ipc(L4_nilthread, from, L4_Timeouts(L4_ZeroTime, receive), 0);
}

L4_INLINE L4_MsgTag_t L4_Receive(L4_ThreadId_t from) { return L4_Receive_Timeout(from, L4_Never); }

L4_INLINE L4_MsgTag_t L4_Wait_Timeout(L4_Time_t receive, L4_ThreadId_t *from)
{
    return L4_Ipc(L4_nilthread, L4_anythread, L4_Timeouts(L4_ZeroTime, receive), from);
}

L4_INLINE L4_MsgTag_t L4_Wait(L4_ThreadId_t *from) { return L4_Wait_Timeout(L4_Never, from); }

L4_INLINE L4_MsgTag_t L4_Call_Timeouts(L4_ThreadId_t to, L4_Time_t send, L4_Time_t receive)
{
    return L4_Ipc(to, to, L4_Timeouts(send, receive), 0);
}

L4_INLINE L4_MsgTag_t L4_Call(L4_ThreadId_t to) { return L4_Call_Timeouts(to, L4_Never, L4_Never); }
L4_INLINE L4_MsgTag_t L4_Lcall(L4_ThreadId_t to) { return L4_Lipc(to, to, L4_Timeouts(L4_Never, L4_Never), 0); }

L4_INLINE L4_MsgTag_t L4_ReplyWait_Timeout(L4_ThreadId_t to, L4_Time_t receive, L4_ThreadId_t *from)
{
    return L4_Ipc(to, L4_anythread, L4_Timeouts(L4_ZeroTime, receive), from);
}

/* Answer a client, then wait for the next: the loop of every server. */
L4_INLINE L4_MsgTag_t L4_ReplyWait(L4_ThreadId_t to, L4_ThreadId_t *from)
{
    return L4_ReplyWait_Timeout(to, L4_Never, from);
}

L4_INLINE L4_MsgTag_t L4_LreplyWait(L4_ThreadId_t to, L4_ThreadId_t *from)
{
    return L4_Lipc(to, L4_anylocalthread, L4_Timeouts(L4_ZeroTime, L4_Never), from);
}

/* Receive from oneself, which never happens. */
L4_INLINE void L4_Sleep(L4_Time_t time)
{
    L4_Receive_Timeout(L4_MyGlobalId(), time);
}

#endif
