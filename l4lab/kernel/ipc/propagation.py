# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that are not what they seem: sent in another's name (propagation), or to another than meant (redirection).

A thread may send in the name of another one of its space, of the receiver's space, or of a space whose redirector it
is; the receiver then answers to that one. A space with a redirector has all messages that would leave it go there
instead; the redirector passes them on by propagation. Both are settled before the send phase: who the message goes to,
and in whose name. The kernel's own messages, faults and interrupts, go to whom the thread's registers name.
A space whose redirector is gone, or has another name, stays confined: what would leave it has no partner, until
SpaceControl names a redirector that exists. (The manual leaves that open; to let go would set a space free by an
accident of its guard.)
(X.2 manual, sections Propagation and SpaceControl; reference section 5.2, quirk Q3.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from l4lab.abi import utcb as u
from l4lab.abi.frame import ESI
from l4lab.abi.ids import NIL_THREAD
from l4lab.kernel.events import Blocked
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.waits import OWN_IPC
from l4lab.kernel.state import State

if TYPE_CHECKING:
    from l4lab.kernel.objects.space import Space

_PROPAGATED: Final = 1 << 12  # of the tag
LONGEST_CHAIN: Final = 32  # redirectors of redirectors


def address(k: State, sender: Tcb, to: int) -> int:
    """Settle in whose name the sender sends, and who gets the message. The receiver's identifier."""
    receiver = k.find(to, sender)
    if receiver is None:
        return to
    if sender.regs[ESI] & _PROPAGATED:
        virtual = k.find(sender.tcr(u.VIRTUAL_SENDER), sender)
        if virtual is not None and _may_speak_for(k, sender, virtual, receiver):
            sender.virtual_sender = virtual.word
    if may_send_to(k, sender, receiver):
        return to
    redirector = redirector_of(k, sender.space)
    if redirector is None:
        return NIL_THREAD
    sender.intended_receiver = receiver.word
    return redirector.word


def may_send_to(k: State, sender: Tcb, receiver: Tcb) -> bool:
    """Does a message go straight to the receiver: because the sender's space has no redirector, or the message does not
    leave the space and the redirector's?"""
    space = sender.space
    if not space.redirector or receiver.space is space:
        return True
    redirector = redirector_of(k, space)
    return redirector is not None and receiver.space is redirector.space


def redirector_of(k: State, space: Space) -> Tcb | None:
    """The redirector of a space that has one, if that thread is still there."""
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
    waits = virtual.state is ThreadState.WAITING and virtual.wait_for == sender.word and virtual.wait is OWN_IPC
    if waits and virtual is not receiver:  # the receiver's wait is over
        virtual.wait_for = receiver.word
        k.note(Blocked(k.now, virtual.word, "WAITING", receiver.word, OWN_IPC.name))
        k.unsettle(virtual)
    return virtual
