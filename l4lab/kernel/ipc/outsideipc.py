# SPDX-License-Identifier: GPL-2.0-or-later
"""Send phase and receive phase that somebody else wrote, and what the kernel checks of them.

The other one, a `Rendezvous`, decides who meets whom; it changes threads by hooks only. What lives here: these hooks.
Each thread that the part has in its hands has come so far and no further (`Progress`), and a hook that does not follow
is a `PartFailed` that names hook, thread and rule. So a thread is never in two places, whatever the part does. Moving
the message, strings, the trace and timers are the kernel's own, in `ipc.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD, NIL_THREAD
from l4lab.abi.message import IpcErrorCode
from l4lab.errors import PartFailed
from l4lab.kernel.ipc import ipc
from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.waits import OWN_IPC
from l4lab.kernel.parts import IpcHooks, Rendezvous
from l4lab.kernel.state import IpcPath, State

WAITING: Final = ThreadState.WAITING
POLLING: Final = ThreadState.POLLING
ABORTED: Final = ThreadState.ABORTED
MOST_CALLS: Final = 1000  # of hooks in one call of the part's, and besides ...
MOST_CALLS_EACH: Final = 100  # ... for each thread that there is


class Progress(Enum):
    """How far a thread has come that the part has in its hands. The words follow its name."""

    SENDING = "has still to send"
    TAKEN = "was taken out of a queue, and its message was not delivered"
    SENT = "has sent, and neither receives nor is done"
    RECEIVING = "has still to receive"
    EXPECTING = "expects a message, and neither gets one nor waits"


class InHand:
    """A thread in the part's hands."""

    def __init__(self, progress: Progress, to: int, from_: int, then_timeout: int, told: int) -> None:
        self.progress = progress
        self.to = to  # whom it sends to
        self.from_ = from_  # its receive phase: from whom, ...
        self.then_timeout = then_timeout  # ... and its timeout
        self.told = told  # from whom it receives, as the trace has it already
        self.queued = progress is Progress.TAKEN  # it stood in a queue before


class OutsideIpc(IpcPath):
    """Asks the other one."""

    def __init__(self, k: State, make: Callable[[IpcHooks], Rendezvous]) -> None:
        self._hooks = CheckedHooks(k)
        part = OutsidePart(Rendezvous, ("accepts", "send", "receive"), make, self._hooks)
        k.outside.append(part)
        self._hooks.part = part

    def send(self, sender: Tcb, to: int, timeout: int, from_: int, then_timeout: int) -> None:
        hand = InHand(Progress.SENDING, to, from_, then_timeout, NIL_THREAD)
        self._hooks.phase("send", sender, hand, to, timeout, from_, then_timeout)

    def receive(self, receiver: Tcb, from_: int, timeout: int, told: int) -> None:
        hand = InHand(Progress.RECEIVING, NIL_THREAD, from_, timeout, told)
        self._hooks.phase("receive", receiver, hand, from_, timeout)

    def takes(self, receiver: Tcb, sender: Tcb) -> bool:
        return self._hooks.takes(receiver, sender)


class CheckedHooks(IpcHooks):
    """What the part may do, done only if it follows from what it did before."""

    def __init__(self, k: State) -> None:
        self._k = k
        self.part: OutsidePart | None = None
        self._hands: dict[Tcb, InHand] = {}  # what the part has in its hands in its present call
        self._calls = 0  # of hooks, in that
        self._depth = 0  # a message that arrives may have the kernel send another one, in the midst of a call

    # -- asking ----------------------------------------------------------------------------------------------------

    def phase(self, method: str, thread: Tcb, hand: InHand, *arguments: int) -> None:
        """Have the part do a phase of the thread's."""
        hands = {thread: hand}
        answer = self._ask(method, hands, thread, *arguments)
        if answer is not None:
            raise self._broken(f".{method}() returned {answer!r}, and nobody asks: what it does, it does by hooks.")
        for left, where in hands.items():
            raise self._broken(f".{method}() came back too early: {left!r} {where.progress.value}.")
        if not self._depth:
            self._check_queues(method)

    def takes(self, receiver: Tcb, sender: Tcb) -> bool:
        self._count("takes")
        wanted = receiver.wait_for
        if receiver.state is not WAITING or not receiver.wait.by_message:
            return False
        if wanted == sender.virtual_sender and wanted != NIL_THREAD and sender.outgoing is None:
            return True
        answer = self._ask("accepts", {}, receiver, sender)
        if not isinstance(answer, bool):
            raise self._broken(f".accepts() returned {answer!r}, which is neither True nor False.")
        return answer

    def _ask(self, method: str, hands: dict[Tcb, InHand], *arguments: object) -> object:
        assert self.part is not None, "the part is still being made"
        before, calls = self._hands, self._calls
        self._hands, self._calls = hands, 0
        self._depth += 1
        answer: object = self.part.ask(method, *arguments)
        self._depth -= 1
        self._hands, self._calls = before, calls
        return answer

    # -- looking ---------------------------------------------------------------------------------------------------

    def find(self, identifier: int, asker: Tcb) -> Tcb | None:
        self._count("find")
        return self._k.find(identifier, asker)

    def senders(self, receiver: Tcb) -> Sequence[Tcb]:
        self._count("senders")
        return list(receiver.senders)

    # -- the send phase --------------------------------------------------------------------------------------------

    def deliver(self, sender: Tcb, receiver: Tcb) -> bool:
        k = self._k
        hand = self._in_hand("deliver", sender, Progress.SENDING, Progress.TAKEN)
        if receiver.state is not WAITING or not receiver.wait.by_message:
            raise self._broken(f": deliver: {receiver!r} does not wait for a message.")
        self._check_partner("deliver", sender, hand, receiver)
        then = hand.from_
        if not hand.queued and hand.from_ == hand.to:
            then = receiver.word
        arrived = ipc.deliver(k, sender, receiver, then)
        self._hands.pop(receiver, None)
        if arrived:
            if hand.queued:
                ipc.sent(sender)
            hand.progress = Progress.SENT
            hand.told = then
            return True
        del self._hands[sender]
        if not hand.queued and sender.copying is not None:
            sender.copying.then_receive = hand.from_, hand.then_timeout
        return False

    def poll(self, sender: Tcb, receiver: Tcb, timeout: int) -> None:
        hand = self._in_hand("poll", sender, Progress.SENDING)
        self._check_partner("poll", sender, hand, receiver)
        self._check_time("poll", timeout)
        if receiver.state is ABORTED:
            raise self._broken(f": poll: {receiver!r} was not started yet, and is nobody's partner.")
        ipc.enqueue(self._k, sender, receiver, timeout, (hand.from_, hand.then_timeout))
        del self._hands[sender]

    def done(self, sender: Tcb) -> None:
        hand = self._in_hand("done", sender, Progress.SENT)
        if sender.wait is not OWN_IPC:
            raise self._broken(f": done: {sender!r} has a receive phase to come: it waits for {sender.wait.text}.")
        ipc.done(sender)
        if hand.queued:
            self._k.go_first(sender)
        del self._hands[sender]

    # -- the receive phase -----------------------------------------------------------------------------------------

    def leave_queue(self, sender: Tcb) -> tuple[int, int]:
        self._count("leave_queue")
        receiver, then = sender.send_to, sender.then_receive
        if receiver is None or then is None:
            raise self._broken(f": leave_queue: {sender!r} stands in nobody's queue.")
        hand = self._hands.get(receiver)
        if hand is None or hand.progress is not Progress.EXPECTING:
            raise self._broken(
                f": leave_queue: {sender!r} stands in the queue of {receiver!r}, who expects nothing now."
            )
        ipc.leave_queue(sender)
        self._hands[sender] = InHand(Progress.TAKEN, receiver.word, then[0], then[1], NIL_THREAD)
        return then

    def expect(self, receiver: Tcb, from_: int) -> None:
        hand = self._in_hand("expect", receiver, Progress.RECEIVING, Progress.SENT)
        if from_ not in (ANY_THREAD, ANY_LOCAL_THREAD):
            partner = self._k.find(from_, receiver)
            if partner is None or partner.word != from_:
                raise self._broken(
                    f": expect: {from_:#x} is no thread's `word`. find() gives the thread, if there is one."
                )
        receiver.wait_for = from_
        receiver.state = WAITING
        hand.progress = Progress.EXPECTING

    def wait(self, receiver: Tcb, timeout: int) -> None:
        hand = self._in_hand("wait", receiver, Progress.EXPECTING)
        self._check_time("wait", timeout)
        ipc.block(self._k, receiver, timeout, hand.told)
        del self._hands[receiver]

    def fail(self, thread: Tcb, code: int, in_receive: bool) -> None:
        before = Progress.SENDING, Progress.SENT, Progress.RECEIVING, Progress.EXPECTING
        self._in_hand("fail", thread, *before)
        if code not in list(IpcErrorCode):
            raise self._broken(f": fail: {code!r} is no IpcErrorCode.")
        del self._hands[thread]
        ipc.fail(self._k, thread, code, ipc.RECEIVE if in_receive else ipc.SEND)

    # -- what must be so -------------------------------------------------------------------------------------------

    def _in_hand(self, hook: str, thread: Tcb, *allowed: Progress) -> InHand:
        self._count(hook)
        hand = self._hands.get(thread)
        if hand is None:
            raise self._broken(
                f": {hook}: {thread!r} is not in its hands: it was not asked about it, or is done with it."
            )
        if hand.progress not in allowed:
            raise self._broken(f": {hook}: {thread!r} {hand.progress.value}.")
        return hand

    def _check_partner(self, hook: str, sender: Tcb, hand: InHand, receiver: Tcb) -> None:
        if self._k.find(hand.to, sender) is not receiver:
            raise self._broken(f": {hook}: {sender!r} sends to thread {hand.to:#x}, which {receiver!r} is not.")

    def _check_time(self, hook: str, timeout: int) -> None:
        if not isinstance(timeout, int) or not 0 <= timeout <= 0xFFFF:
            raise self._broken(f": {hook}: {timeout!r} is no time of 16 bits.")

    def _check_queues(self, method: str) -> None:
        """A part that changes threads past the hooks is mostly found here."""
        queues: dict[Tcb, int] = {}
        for thread in self._k.threads.values():
            for sender in thread.senders:
                queues[sender] = queues.get(sender, 0) + 1
                if sender.send_to is not thread or queues[sender] > 1:
                    raise self._broken(
                        f".{method}() has put {sender!r} into the queue of {thread!r}, past the hooks. "
                        "Only they may change threads."
                    )
        for thread in self._k.threads.values():
            if (thread.send_to is not None) != (thread in queues):
                raise self._broken(
                    f".{method}() has changed {thread!r} past the hooks: it stands in nobody's queue. "
                    "Only they may change threads."
                )

    def _count(self, hook: str) -> None:
        self._calls += 1
        if self._calls > MOST_CALLS + MOST_CALLS_EACH * len(self._k.threads):
            raise self._broken(f" calls hooks on and on, {hook} at last. Is there a loop in it that never ends?")

    def _broken(self, what: str) -> PartFailed:
        assert self.part is not None, "the part is still being made"
        return self.part.failed(what)
