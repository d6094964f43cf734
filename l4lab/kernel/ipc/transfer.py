# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving one message: untyped words are copied, typed items are acted upon.

Untyped words cannot fail. A map or grant item changes the receiver's address space within the window that its
acceptor (BR0) opens; register items go into the receiver's register state if its acceptor has bit c, else into its
message registers as data. Those of a message that the kernel sent tell of the sender's registers: they are for the
receiver to read, and never go into its own. (X.2 manual, section IPC; reference section 5.5.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi.fpage import COMPLETE_ADDRESS_SPACE, Fpage, IoFpage
from l4lab.abi.message import Acceptor, CtrlXferItem, GrantItem, IpcErrorCode, MapItem, StringItem, typed_item
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.errors import Refused
from l4lab.kernel import events
from l4lab.kernel.ipc import ctrlxfer, strings
from l4lab.kernel.memory.mapping import Change
from l4lab.kernel.memory.ports import ranges
from l4lab.kernel.objects.copying import Copy
from l4lab.kernel.objects.thread import MR, Tcb
from l4lab.kernel.state import State

_TYPED: Final = 0x3F << 6


def transfer(k: State, sender: Tcb, receiver: Tcb, words: tuple[int, ...]) -> int:
    """Put a message into the receiver's message registers. 0, or the error code of the overflow."""
    tag = words[0]
    count = len(words)
    if count == MESSAGE_REGISTERS and (tag & 0x3F) + (tag >> 6 & 0x3F) >= count:
        return IpcErrorCode.MESSAGE_OVERFLOW
    utcb = receiver.utcb
    assert utcb is not None, f"{receiver!r} has no UTCB"
    utcb.put(MR, words)
    if not tag & _TYPED or sender.outgoing is not None:
        return 0  # the kernel's own items are for the receiver to read
    return apply_items(k, sender, receiver, words, Acceptor.decode(utcb.words[MR + u.BR0 // 4]))


def continue_items(k: State, copy: Copy) -> int:
    """The transfer goes on with a string that was interrupted, and what follows it. 0, an error code, or SUSPENDED."""
    receiver = copy.receiver
    assert receiver.utcb is not None, f"{receiver!r} has no UTCB"
    acceptor = Acceptor.decode(receiver.utcb[MR + u.BR0 // 4])
    return strings.advance(k, copy) or apply_items(k, copy.sender, receiver, copy.words, acceptor, copy.at)


def apply_items(k: State, sender: Tcb, receiver: Tcb, words: Sequence[int], acceptor: Acceptor, at: int = 0) -> int:
    """Act upon the typed items of a message, from word `at` on. 0, an error code, or SUSPENDED (see `strings`)."""
    at, end = at or 1 + (words[0] & 0x3F), len(words)
    while at < end:
        item = typed_item(words[at])
        if isinstance(item, CtrlXferItem):
            if acceptor.ctrlxfer and sender.outgoing is None:
                ctrlxfer.write(receiver, item, words[at + 1 : at + item.words])
        elif isinstance(item, MapItem):
            if at + 1 >= end:
                return IpcErrorCode.MESSAGE_OVERFLOW
            if acceptor.window.is_nil and not Fpage.decode(words[at + 1]).is_io:  # ports need no window
                return IpcErrorCode.MESSAGE_OVERFLOW
            try:
                map_item(k, sender, receiver, item, Fpage.decode(words[at + 1]), acceptor.window)
            except Refused:  # no frame is left for a page table
                return IpcErrorCode.MESSAGE_OVERFLOW
        elif isinstance(item, StringItem) and acceptor.strings and sender.outgoing is None:
            copy = sender.copying or strings.begin(sender, receiver, words)
            error = strings.take_up(copy, at) or strings.advance(k, copy)
            if error:
                return error
            at = copy.at
            continue
        else:
            return IpcErrorCode.MESSAGE_OVERFLOW
        at += item.words
    return 0


def map_item(k: State, sender: Tcb, receiver: Tcb, item: MapItem, fpage: Fpage, window: Fpage) -> None:
    """Map or grant an fpage of the sender into the receiver's window."""
    if fpage.is_nil:
        return
    if fpage.is_io:
        moved = k.ports.map(sender.space, receiver.space, IoFpage(fpage), isinstance(item, GrantItem))
        if moved:
            granted = isinstance(item, GrantItem) and not sender.space.is_sigma0
            numbers = sender.space.number, receiver.space.number
            k.trace.append(events.PortsMapped(k.now, *numbers, ranges(moved), granted))
        return
    giver, taker = sender.space, receiver.space
    changes: list[Change] = []
    try:
        k.mappings.map(giver, item, fpage, taker, window, changes)
    finally:
        k.report_changes(giver, taker, changes, isinstance(item, GrantItem))


# What the kernel accepts for a thread that faulted.
EVERYTHING: Final = Acceptor.of(COMPLETE_ADDRESS_SPACE, ctrlxfer=True)
