/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages: the tag, message and buffer registers, typed items, and messages put together in memory.
 * (X.2 manual, sections Message registers, Message tag, Map, Grant and String items, Acceptor.)
 */
#ifndef L4_MESSAGE_H
#define L4_MESSAGE_H

#include <l4/syscall.h>

#define L4_NUM_MRS 64
#define L4_NUM_BRS 33

/*
 * The tag, which is MR0.
 *
 *   31   label   16  15 14 13 12   11  t  6   5  u  0     u untyped words, then t words of typed items
 *                     E  X  r  p                          error, cross-processor, redirected, propagated
 */
typedef union {
    L4_Word_t raw;
} L4_MsgTag_t;

#define L4_Niltag ((L4_MsgTag_t){0})

L4_INLINE L4_Word_t L4_Label(L4_MsgTag_t tag) { return tag.raw >> 16; }
L4_INLINE L4_Word_t L4_UntypedWords(L4_MsgTag_t tag) { return tag.raw & 0x3f; }
L4_INLINE L4_Word_t L4_TypedWords(L4_MsgTag_t tag) { return tag.raw >> 6 & 0x3f; }
L4_INLINE L4_Bool_t L4_IpcFailed(L4_MsgTag_t tag) { return (tag.raw & 1 << 15) != 0; }
L4_INLINE L4_Bool_t L4_IpcSucceeded(L4_MsgTag_t tag) { return !L4_IpcFailed(tag); }
L4_INLINE L4_Bool_t L4_IpcXcpu(L4_MsgTag_t tag) { return (tag.raw & 1 << 14) != 0; }
L4_INLINE L4_Bool_t L4_IpcRedirected(L4_MsgTag_t tag) { return (tag.raw & 1 << 13) != 0; }
L4_INLINE L4_Bool_t L4_IpcPropagated(L4_MsgTag_t tag) { return (tag.raw & 1 << 12) != 0; }
L4_INLINE void L4_Set_Propagation(L4_MsgTag_t *tag) { tag->raw |= 1 << 12; }
L4_INLINE void L4_Set_Label(L4_MsgTag_t *tag, L4_Word_t label) { tag->raw = (tag->raw & 0xffff) | label << 16; }

L4_INLINE L4_MsgTag_t L4_MsgTagAddLabel(L4_MsgTag_t tag, L4_Word_t label)
{
    L4_Set_Label(&tag, label);
    return tag;
}

/* Message registers. */
L4_INLINE void L4_StoreMR(L4_Word_t i, L4_Word_t *word) { *word = l4_utcb()[i]; }
L4_INLINE void L4_LoadMR(L4_Word_t i, L4_Word_t word) { l4_utcb()[i] = word; }
L4_INLINE L4_MsgTag_t L4_MsgTag(void) { return (L4_MsgTag_t){l4_utcb()[0]}; }
L4_INLINE void L4_Set_MsgTag(L4_MsgTag_t tag) { l4_utcb()[0] = tag.raw; }

L4_INLINE void L4_StoreMRs(L4_Word_t i, L4_Word_t count, L4_Word_t *words)
{
    for (L4_Word_t n = 0; n < count; n++)
        words[n] = l4_utcb()[i + n];
}

L4_INLINE void L4_LoadMRs(L4_Word_t i, L4_Word_t count, const L4_Word_t *words)
{
    for (L4_Word_t n = 0; n < count; n++)
        l4_utcb()[i + n] = words[n];
}

/* Buffer registers: they lie below the control registers, BR0 uppermost. */
L4_INLINE void L4_StoreBR(L4_Word_t i, L4_Word_t *word) { *word = *(l4_utcb() - 16 - i); }
L4_INLINE void L4_LoadBR(L4_Word_t i, L4_Word_t word) { *(l4_utcb() - 16 - i) = word; }

L4_INLINE void L4_LoadBRs(L4_Word_t i, L4_Word_t count, const L4_Word_t *words)
{
    for (L4_Word_t n = 0; n < count; n++)
        L4_LoadBR(i + n, words[n]);
}

/* Typed items, two words each. */
typedef union {
    L4_Word_t raw[2];
} L4_MapItem_t;

typedef L4_MapItem_t L4_GrantItem_t;

typedef union {
    L4_Word_t raw[2];
} L4_StringItem_t; /* a simple one: a piece of memory in one part */

L4_INLINE L4_MapItem_t L4_MapItem(L4_Fpage_t f, L4_Word_t send_base)
{
    return (L4_MapItem_t){{(send_base & ~0x3ffUL) | 0x8, f.raw}};
}

L4_INLINE L4_GrantItem_t L4_GrantItem(L4_Fpage_t f, L4_Word_t send_base)
{
    return (L4_GrantItem_t){{(send_base & ~0x3ffUL) | 0xa, f.raw}};
}

L4_INLINE L4_StringItem_t L4_StringItem(L4_Word_t size, void *address)
{
    return (L4_StringItem_t){{size << 10, (L4_Word_t)address}};
}

L4_INLINE L4_Bool_t L4_IsMapItem(L4_MapItem_t item) { return (item.raw[0] & 0xe) == 0x8; }
L4_INLINE L4_Bool_t L4_IsGrantItem(L4_GrantItem_t item) { return (item.raw[0] & 0xe) == 0xa; }
L4_INLINE L4_Bool_t L4_IsStringItem(const L4_StringItem_t *item) { return (item->raw[0] & 0x8) == 0; }
L4_INLINE L4_Fpage_t L4_MapItemSndFpage(L4_MapItem_t item) { return (L4_Fpage_t){item.raw[1]}; }
L4_INLINE L4_Word_t L4_MapItemSndBase(L4_MapItem_t item) { return item.raw[0] & ~0x3ffUL; }

/* What the next receive may bring: BR0 is the acceptor, string buffers follow. */
typedef union {
    L4_Word_t raw;
} L4_Acceptor_t;

typedef struct {
    L4_Word_t words;
    L4_Word_t raw[L4_NUM_BRS];
} L4_MsgBuffer_t;

#define L4_UntypedWordsAcceptor ((L4_Acceptor_t){0})
#define L4_StringItemsAcceptor ((L4_Acceptor_t){1})

L4_INLINE L4_Acceptor_t L4_MapGrantItems(L4_Fpage_t window) { return (L4_Acceptor_t){window.raw & ~0xfUL}; }
L4_INLINE L4_Acceptor_t L4_AddAcceptor(L4_Acceptor_t a, L4_Acceptor_t b) { return (L4_Acceptor_t){a.raw | b.raw}; }
L4_INLINE L4_Bool_t L4_HasStringItems(L4_Acceptor_t a) { return (a.raw & 1) != 0; }
L4_INLINE L4_Bool_t L4_HasMapGrantItems(L4_Acceptor_t a) { return (a.raw & ~0xfUL) != 0; }
L4_INLINE L4_Fpage_t L4_RcvWindow(L4_Acceptor_t a) { return (L4_Fpage_t){a.raw & ~0xfUL}; }
L4_INLINE void L4_Accept(L4_Acceptor_t a) { L4_LoadBR(0, a.raw); }

L4_INLINE L4_Acceptor_t L4_Accepted(void)
{
    L4_Acceptor_t a;
    L4_StoreBR(0, &a.raw);
    return a;
}

L4_INLINE void L4_MsgBufferClear(L4_MsgBuffer_t *buffer) { buffer->words = 0; }

L4_INLINE void L4_MsgBufferAppendSimpleRcvString(L4_MsgBuffer_t *buffer, L4_StringItem_t item)
{
    if (buffer->words)
        buffer->raw[buffer->words - 2] |= 1; /* the one before is not the last any more */
    buffer->raw[buffer->words++] = item.raw[0];
    buffer->raw[buffer->words++] = item.raw[1];
}

L4_INLINE void L4_AcceptStrings(L4_Acceptor_t a, const L4_MsgBuffer_t *buffer)
{
    L4_Accept(a);
    L4_LoadBRs(1, buffer->words, buffer->raw);
}

/* A message in memory. The tag counts what was appended; all untyped words come before the first item. */
typedef union {
    L4_MsgTag_t tag;
    L4_Word_t raw[L4_NUM_MRS];
    L4_Word_t msg[L4_NUM_MRS];
} L4_Msg_t;

L4_INLINE void L4_MsgClear(L4_Msg_t *msg) { msg->tag = L4_Niltag; }
L4_INLINE L4_MsgTag_t L4_MsgMsgTag(const L4_Msg_t *msg) { return msg->tag; }
L4_INLINE void L4_Set_MsgMsgTag(L4_Msg_t *msg, L4_MsgTag_t tag) { msg->tag = tag; }
L4_INLINE L4_Word_t L4_MsgLabel(const L4_Msg_t *msg) { return L4_Label(msg->tag); }
L4_INLINE void L4_Set_MsgLabel(L4_Msg_t *msg, L4_Word_t label) { L4_Set_Label(&msg->tag, label); }
L4_INLINE L4_Word_t L4_MsgWord(const L4_Msg_t *msg, L4_Word_t i) { return msg->raw[i + 1]; }

/* Into the message registers; the tag as well, ready to be sent. */
L4_INLINE void L4_MsgLoad(const L4_Msg_t *msg)
{
    L4_LoadMRs(0, 1 + L4_UntypedWords(msg->tag) + L4_TypedWords(msg->tag), msg->raw);
}

/* Out of the message registers, as the tag of what was received says. */
L4_INLINE void L4_MsgStore(L4_MsgTag_t tag, L4_Msg_t *msg)
{
    L4_StoreMRs(1, L4_UntypedWords(tag) + L4_TypedWords(tag), msg->raw + 1);
    msg->tag = tag;
}

L4_INLINE void L4_MsgAppendWord(L4_Msg_t *msg, L4_Word_t word)
{
    L4_Word_t at = 1 + L4_UntypedWords(msg->tag);
    for (L4_Word_t i = at + L4_TypedWords(msg->tag); i > at; i--)
        msg->raw[i] = msg->raw[i - 1];
    msg->raw[at] = word;
    msg->tag.raw += 1;
}

L4_INLINE void l4_append_item(L4_Msg_t *msg, const L4_Word_t words[2])
{
    L4_Word_t at = 1 + L4_UntypedWords(msg->tag) + L4_TypedWords(msg->tag);
    msg->raw[at] = words[0];
    msg->raw[at + 1] = words[1];
    msg->tag.raw += 2 << 6;
}

L4_INLINE void L4_MsgAppendMapItem(L4_Msg_t *msg, L4_MapItem_t item) { l4_append_item(msg, item.raw); }
L4_INLINE void L4_MsgAppendGrantItem(L4_Msg_t *msg, L4_GrantItem_t item) { l4_append_item(msg, item.raw); }
L4_INLINE void L4_MsgAppendSimpleStringItem(L4_Msg_t *msg, L4_StringItem_t item) { l4_append_item(msg, item.raw); }

#endif
