# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor whose loop somebody else wrote, and what is checked of it.

What lives here: what the loop is given, `GuestToServe`. The monitor of this guest is as any other, but for the loop; it
saves its guest only while that waits for an answer, since the loop has to see each of the guest's messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId
from l4lab.abi.message import Message
from l4lab.abi.protocols import INTERRUPT
from l4lab.errors import PartFailed
from l4lab.user.l4 import REPLY, IpcFailed, Received
from l4lab.user.monitor.fault import MASK, Fault, Reply
from l4lab.user.monitor.guarded_part import GuardedPart
from l4lab.user.monitor.monitor import SAVE_IRQ, Answer, Monitor
from l4lab.user.monitor.monitor_parts import GuestToServe, ServingLoop


class LoopedMonitor(Monitor):
    """A monitor with a loop that is given to it."""

    def _serve(self, first: Answer) -> None:
        make = self.parts.loop
        assert make is not None
        loop = GuardedPart(ServingLoop, ("run",), self.part_failed, make, ())
        loop.ask("run", _Served(self, loop, first))
        if self.outcome is None:
            raise loop.failed(".run() came back, and the guest has not ended.")

    def wait(self, to: ThreadId, words: Sequence[int] | None, until: int | None) -> Received | None:
        """Send, and wait for a message until a device's time; None if none has come."""
        if until is not None and until != self._due:
            times = self._until(until)
        else:
            times = REPLY if until is None else self._times
        if to == self.vcpu.id:
            self._unanswered = None
        try:
            return self.l4.ipc(to, ANY_THREAD, words, times)
        except IpcFailed as failed:
            self._after_failure(failed.error)
            return None

    def remember(self, fault: Fault, reply: Reply) -> None:
        """The guest waits in this fault."""
        self._last = fault
        self._unanswered = fault, reply

    def answer(self, fault: Fault, reply: Reply) -> None:
        """Have the parts answer it."""
        self.remember(fault, reply)
        self._handle(fault, reply)

    def other(self, received: Received) -> bool:
        """A message of somebody else. False: the guest is to be saved, and can be when its next fault is answered."""
        if received.sender == SAVE_IRQ:
            self.vcpu.halt()
            sending = self.vcpu.is_sending()
            self.vcpu.resume()
            if sending:
                return False
        self._take(received)
        return True

    def save_now(self) -> None:
        """It waits for an answer: now it can be saved."""
        self.saved = self.save()
        self.l4.send(SAVE_IRQ, Message(INTERRUPT))

    def due(self) -> int | None:
        """When a device next does something, as of the last answer or advance."""
        return self._due

    def advance(self) -> None:
        """Let the devices do what is due."""
        self._let_devices_work()


class _Served(GuestToServe):
    """What the loop is given."""

    def __init__(self, monitor: LoopedMonitor, loop: GuardedPart, first: Answer) -> None:
        self._monitor = monitor
        self._loop = loop
        self.cpu = monitor.vcpu.id
        self.first = first
        self._starts = first[0] == self.cpu  # does the first message start it?
        self._asked = False  # does the guest wait for an answer?
        self._reply: Reply | None = None  # that is being written
        self._save = False  # somebody has asked to save the guest

    @property
    def ended(self) -> bool:
        return self._monitor.outcome is not None

    def exchange(self, to: int, words: Sequence[int] | None, until: int | None = None) -> Received | None:
        self._step()
        self._loop.restart()
        if self.ended:
            raise self._failed("goes on after the guest has ended.")
        if to == NIL_THREAD:
            reply = self._reply
            if self._starts or (self._asked and (reply is None or not reply.hold or reply.injects)):
                raise self._failed("waits for a message, and the guest waits for an answer that nothing holds back.")
        elif to != self.cpu:
            raise self._failed(f"sends to {to!r}, which is not the guest's CPU.")
        elif not self._asked and not self._starts:
            raise self._failed("sends an answer to the guest, which has not asked: it runs.")
        else:
            self._check(words)
            if self._save and self._reply is not None:
                self._save = False
                self._monitor.save_now()
            self._starts = self._asked = False
            self._reply = None
        received = self._monitor.wait(ThreadId(to), words if to != NIL_THREAD else None, until)
        if received is not None and received.sender == self.cpu:
            self._asked = True
        return received

    def answer(self, fault: Fault, reply: Reply) -> None:
        self._expect("answer()")
        self._reply = reply
        self._monitor.answer(fault, reply)

    def deliver(self, fault: Fault, reply: Reply) -> None:
        self._expect("deliver()")
        self._reply = reply
        self._monitor.remember(fault, reply)
        self._monitor.interrupts.deliver(fault, reply)

    def kick(self) -> None:
        self._step()
        if self._asked or self._starts:
            raise self._failed("calls kick(), and the guest waits for an answer: deliver() is for that.")
        self._monitor.interrupts.kick()

    def other(self, received: Received) -> None:
        self._step()
        if received.sender == self.cpu:
            raise self._failed("gives a fault of the guest to other(); answer() is for those.")
        if not self._monitor.other(received):
            self._save = True

    def due(self) -> int | None:
        self._step()
        return self._monitor.due()

    def advance(self) -> None:
        self._step()
        self._monitor.advance()

    def _expect(self, call: str) -> None:
        self._step()
        if not self._asked:
            raise self._failed(f"calls {call}, and no fault of the guest waits for an answer.")

    def _check(self, words: Any) -> None:
        """Is it a message?"""
        if not (
            isinstance(words, list | tuple)
            and words
            and all(isinstance(word, int) and 0 <= word <= MASK for word in words)
            and 1 + (words[0] & 0x3F) + (words[0] >> 6 & 0x3F) == len(words)
        ):
            raise self._failed(f"sends {words!r}, which is no message: Reply.words() makes one.")

    def _step(self) -> None:
        self._loop.step("run")

    def _failed(self, what: str) -> PartFailed:
        return self._loop.failed(f".run() {what}")
