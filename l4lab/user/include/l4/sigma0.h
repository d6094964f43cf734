/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Asking sigma0 for memory or ports, and the labels of the kernel's protocols (X.2 manual, section Protocols). */
#ifndef L4_SIGMA0_H
#define L4_SIGMA0_H

#include <l4/ipc.h>

#define L4_LABEL_INTERRUPT 0xfff0
#define L4_LABEL_PAGE_FAULT 0xffe0 /* bits 0 to 2: the rights wanted; two words: address, IP */
#define L4_LABEL_PREEMPTION 0xffd0
#define L4_LABEL_EXCEPTION 0xffb0
#define L4_LABEL_SIGMA0 0xffa0
#define L4_LABEL_IO_PAGE_FAULT 0xff86

/* The first programs, known before any of them runs. */
L4_INLINE L4_ThreadId_t L4_Sigma0(void) { return L4_GlobalId(L4_ThreadIdUserBase(l4_kip), 1); }
L4_INLINE L4_ThreadId_t L4_RootTask(void) { return L4_GlobalId(L4_ThreadIdUserBase(l4_kip) + 2, 1); }

/* A piece of memory or of ports, to be mapped into a window of mine. Nilpage if sigma0 refused. */
L4_INLINE L4_Fpage_t L4_Sigma0_GetPage_RcvWindow(L4_ThreadId_t sigma0, L4_Fpage_t wanted, L4_Fpage_t window)
{
    L4_Msg_t msg;
    L4_Acceptor_t before = L4_Accepted();
    L4_MsgTag_t tag;
    L4_MsgClear(&msg);
    L4_Set_MsgLabel(&msg, L4_LABEL_SIGMA0);
    L4_MsgAppendWord(&msg, wanted.raw);
    L4_MsgAppendWord(&msg, 0); /* an attribute: leave it as it is */
    L4_MsgLoad(&msg);
    L4_Accept(L4_MapGrantItems(window));
    tag = L4_Call(L4_IsNilThread(sigma0) ? L4_Sigma0() : sigma0);
    L4_Accept(before);
    if (L4_IpcFailed(tag) || L4_TypedWords(tag) != 2)
        return L4_Nilpage;
    L4_MsgStore(tag, &msg);
    return (L4_Fpage_t){msg.raw[L4_UntypedWords(tag) + 2]};
}

/* The same, mapped to where it is in physical memory. */
L4_INLINE L4_Fpage_t L4_Sigma0_GetPage(L4_ThreadId_t sigma0, L4_Fpage_t wanted)
{
    return L4_Sigma0_GetPage_RcvWindow(sigma0, wanted, L4_CompleteAddressSpace);
}

/* Any conventional memory of a size. */
L4_INLINE L4_Fpage_t L4_Sigma0_GetAny(L4_ThreadId_t sigma0, L4_Word_t log2, L4_Fpage_t window)
{
    return L4_Sigma0_GetPage_RcvWindow(sigma0, L4_FpageLog2(~0UL, log2), window);
}

#endif
