# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that are not what they seem: sent in another's name (propagation), or to another than meant (redirection).

A thread may send in the name of another one of its space, of the receiver's space, or of a space whose redirector it
is; the receiver then answers to that one. A space with a redirector has all messages that would leave it go there
instead; the redirector passes them on by propagation. Both are settled before the send phase: who the message goes to,
and in whose name. The kernel's own messages, faults and interrupts, go to whom the thread's registers name.
(X.2 manual, sections Propagation and SpaceControl; reference section 5.2, quirk Q3.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4lab.abi import utcb as u
from l4lab.abi.frame import ESI
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.waits import OWN_IPC
from l4lab.kernel.state import State

if TYPE_CHECKING:
    from l4lab.kernel.objects.space import Space

_PROPAGATED = 1 << 12  # of the tag
LONGEST_CHAIN = 32  # redirectors of redirectors


def address(k: State, sender: Tcb, to: int) -> int:
    """Settle in whose name the sender sends, and who gets the message. The receiver's identifier."""
    receiver = k.find(to, sender)
    if receiver is None:
        return to
    if sender.regs[ESI] & _PROPAGATED:
        virtual = k.find(sender.tcr(u.VIRTUAL_SENDER), sender)
        if virtual is not None and _may_speak_for(k, sender, virtual, receiver):
            sender.virtual_sender = virtual.word
    redirector = redirector_of(k, sender.space)
    if redirector is None or receiver.space is sender.space or receiver.space is redirector.space:
        return to
    sender.intended_receiver = receiver.word
    return redirector.word


def redirector_of(k: State, space: Space) -> Tcb | None:
    """Who gets the messages that would leave the space; None: whoever they are for."""
    return k.find(space.redirector, None) if space.redirector else None


def _may_speak_for(k: State, sender: Tcb, virtual: Tcb, receiver: Tcb) -> bool:
    if sender.space is virtual.space or sender.space is receiver.space:
        return True
    redirector = redirector_of(k, virtual.space)
    for _ in range(LONGEST_CHAIN):
        if redirector is None or redirector is sender:
            break
        redirector = redirector_of(k, redirector.space)
    return redirector is sender


def named_sender(k: State, sender: Tcb, receiver: Tcb) -> Tcb:
    """The message has arrived: tell the receiver who really sent it and to whom. The thread that it is said to be from.

    Whoever waits for an answer to a message that was propagated in his name waits for its receiver from now on.
    """
    if sender.intended_receiver:
        receiver.set_tcr(u.INTENDED_RECEIVER, sender.intended_receiver)
    virtual = k.find(sender.virtual_sender, None) if sender.virtual_sender else None
    sender.virtual_sender = sender.intended_receiver = 0
    if virtual is None:
        return sender
    receiver.set_tcr(u.ACTUAL_SENDER, sender.word)
    if virtual.state is ThreadState.WAITING and virtual.wait_for == sender.word and virtual.wait is OWN_IPC:
        virtual.wait_for = receiver.word
    return virtual
