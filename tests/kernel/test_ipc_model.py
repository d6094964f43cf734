# SPDX-License-Identifier: GPL-2.0-or-later
"""IPC and thread states against a model: puppets send, receive, are halted, cancelled and deleted, a step at a time.

A puppet is a hosted thread that does what it is told, one Ipc at most in a step, and spins otherwise. Steps are far
apart in time, so the model need not know who runs when: between two steps all that can happen has happened.

Messages may be sent in another's name, and may carry a string whose page is missing at either end. No page is there
twice, so each such message stops, until the root task, which is everybody's pager, is told to bring the page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from l4lab.abi import utcb as u
from l4lab.abi.calls import ExregsControl
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD, NIL_THREAD, ThreadId, global_id
from l4lab.abi.message import IpcErrorCode, Message, StringItem
from l4lab.abi.time import NEVER, ZERO, period, timeouts
from l4lab.kernel import events, invariants
from l4lab.kernel.parts import Parts
from l4lab.testing import Root, System
from l4lab.user.l4 import L4, IpcFailed

PUPPETS = 4
IDS = [global_id(200 + n) for n in range(PUPPETS)]
NUMBERS = {int(id_): number for number, id_ in enumerate(IDS)}
STEP = 80_000  # cycles
SOON = period(120)  # microseconds: expires in the step after the one in which it was set, behind what happens there
ANY, LOCAL, NOBODY = -1, -2, -3
SEND, RECEIVE = 0, 1
E, X = IpcErrorCode, ExregsControl
Result = tuple[str, int, int]  # "got", from whom, word; "sent"; or "failed", code, phase
PROPAGATED = 1 << 12
PAGE, FRESH = 4096, 0x0200_0000
STRING = StringItem.make(length=8)
SOME_MR = 60 * 4  # its place in the UTCB; a message there is never so long
Sent = tuple[int, bool | None, bool]  # in whose name; a string, and is its page missing; is that of the buffer?
MESSAGES = st.tuples(st.sampled_from([*range(4), *[NOBODY] * 4]), st.sampled_from([None, False, True]), st.booleans())
TIMES = st.tuples(*[st.sampled_from([NEVER, NEVER, NEVER, NEVER, ZERO, SOON])] * 2)
SENT: Result = ("sent", 0, 0)


@dataclass
class Puppet:
    """A thread as the model sees it."""

    number: int
    state: str = "idle"  # idle, polling, waiting, dead; sending or receiving a string that stands still
    halted: bool = False
    partner: int = NOBODY  # of this phase
    then: tuple[int, int] = NOBODY, NEVER  # polling: the receive phase to come
    word: int = 0
    name: int = NOBODY  # in whose it sends
    string: bool | None = None  # of the message: does it carry one, and is its page missing?
    missing: bool = False  # the page of its own buffer
    other: Puppet | None = None  # sending, receiving: the other end
    faulting: bool = False  # sending, receiving: is it this one's page that is awaited?
    deadline: int | None = None  # the step in which the timeout expires
    queue: list[Puppet] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


class Model:
    """What the manual says of IPC (sections IPC and ExchangeRegisters), without registers, memory and time slices."""

    def __init__(self) -> None:
        self.puppets = [Puppet(n) for n in range(PUPPETS)]
        self.messages: list[tuple[int, int, int]] = []
        self.step = 0

    def ipc(self, p: Puppet, to: int, from_: int, word: int, times: tuple[int, int], sent: Sent) -> None:
        send, receive = times
        name, p.string, p.missing = sent
        p.name = NOBODY
        if to == NOBODY and from_ == NOBODY:
            p.results.append(SENT)
        elif to == NOBODY:
            self.receive(p, from_, receive)
        else:
            p.word, p.then = word, (from_, receive)
            here = p.number // 2
            if name != NOBODY and self.puppets[name].state != "dead" and here in (name // 2, to // 2):
                p.name = name
            self.send(p, self.puppets[to], send)

    def send(self, p: Puppet, to: Puppet, timeout: int) -> None:
        if to.state == "dead":
            self.fail(p, E.NO_PARTNER, SEND)
        elif to.state == "waiting" and self.accepts(to, p):
            self.deliver(p, to)
        elif timeout == ZERO:
            self.fail(p, E.TIMEOUT, SEND)
        else:
            p.state, p.partner = "polling", to.number
            to.queue.append(p)
            self.set_timer(p, timeout)

    def receive(self, p: Puppet, from_: int, timeout: int) -> None:
        if from_ >= 0 and self.puppets[from_].state == "dead":
            self.fail(p, E.NO_PARTNER, RECEIVE)
            return
        p.state, p.partner, p.deadline = "waiting", from_, None
        for sender in p.queue:
            if self.accepts(p, sender):
                p.queue.remove(sender)
                self.deliver(sender, p)
                return
        if timeout == ZERO:
            self.fail(p, E.TIMEOUT, RECEIVE)
        else:
            self.set_timer(p, timeout)

    def set_timer(self, p: Puppet, timeout: int) -> None:
        p.deadline = None if timeout == NEVER else self.step + 1

    @staticmethod
    def accepts(p: Puppet, sender: Puppet) -> bool:
        if p.partner == LOCAL:
            return p.number // 2 == sender.number // 2
        return p.partner in (ANY, sender.number) or p.partner == sender.name != NOBODY

    def deliver(self, p: Puppet, to: Puppet) -> None:
        self.messages.append((p.number, to.number, p.word))
        if p.string is None or not (p.string or to.missing):
            self.arrive(p, to)
            return
        p.state, to.state, p.other, to.other, p.deadline, to.deadline = "sending", "receiving", to, p, None, None
        p.faulting, to.faulting = p.string, not p.string

    def bring_page(self, p: Puppet) -> None:
        """The page that this one asked for is there."""
        p.faulting = False
        other = p.other
        assert other is not None
        if p.state == "sending" and other.missing:
            other.faulting = True
        else:
            self.arrive(*((p, other) if p.state == "sending" else (other, p)))

    def arrive(self, p: Puppet, to: Puppet) -> None:
        to.state, to.deadline = "idle", None
        named = p
        if p.name != NOBODY and self.puppets[p.name].state != "dead":
            named = self.puppets[p.name]
            if named.state == "waiting" and named.partner == p.number:
                named.partner = to.number  # who will answer in the sender's place
        to.results.append(("got", named.number, p.word))
        p.state, p.deadline = "idle", None
        if p.then[0] == NOBODY:
            p.results.append(SENT)
        else:
            self.receive(p, *p.then)

    def fail(self, p: Puppet, code: int, phase: int) -> None:
        if p.state == "polling":
            self.puppets[p.partner].queue.remove(p)
        p.state, p.deadline, p.faulting, p.name = "idle", None, False, NOBODY
        p.results.append(("failed", code, phase))

    def cancel(self, p: Puppet) -> None:
        if p.state in ("polling", "waiting"):
            self.fail(p, E.CANCELLED, SEND if p.state == "polling" else RECEIVE)
        elif p.state in ("sending", "receiving"):
            assert p.other is not None
            for end in (p, p.other):
                self.fail(end, E.ABORTED, SEND if end.state == "sending" else RECEIVE)

    def delete(self, p: Puppet) -> None:
        self.cancel(p)
        p.state, p.halted = "dead", False
        p.results.clear()
        for sender in list(p.queue):
            self.fail(sender, E.NO_PARTNER, SEND)
        for other in self.puppets:
            if other.state == "waiting" and other.partner == p.number:
                self.cancel(other)

    def expire(self) -> None:
        """The end of a step."""
        for p in self.puppets:
            if p.deadline == self.step:
                self.fail(p, E.TIMEOUT, SEND if p.state == "polling" else RECEIVE)
        self.step += 1

    @staticmethod
    def shown(p: Puppet) -> ExregsControl:
        """The state bits of ExchangeRegisters."""
        sends, receives = p.state in ("polling", "sending"), p.state in ("waiting", "receiving")
        phase = X.ABORT_SEND if sends else X.ABORT_RECEIVE if receives else X(0)
        return phase | (X.HALT if p.halted else X(0))


class IpcMachine(RuleBasedStateMachine):
    parts = Parts()  # of the kernel that is tried

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.orders: list[deque[Callable[[L4], None]]] = [deque() for _ in range(PUPPETS)]
        self.to_root: deque[Callable[[Root], None]] = deque()
        self.results: list[list[Result]] = [[] for _ in range(PUPPETS)]
        self.messages: list[tuple[int, int, int]] = []
        self.spaces: list[ThreadId] = []
        self.word = 0
        self.page = 0  # what the pager gives
        self.system = System(self.root, check=False, parts=self.parts)
        self.run_step(20 * STEP)

    def root(self, r: Root) -> None:
        self.spaces += [r.space(), r.space()]
        self.page = r.room()
        for number in range(PUPPETS):
            self.create(r, number)
        while True:
            while self.to_root:
                self.to_root.popleft()(r)
            r.sleep(10)

    def create(self, r: Root, number: int) -> None:
        def main(l4: L4) -> None:
            while True:
                if self.orders[number]:
                    self.orders[number].popleft()(l4)
                else:
                    l4.thread_switch()

        self.orders[number].clear()
        r.hosted(main, self.spaces[number // 2], id_=IDS[number])

    def run_step(self, cycles: int = STEP) -> None:
        self.system.run(cycles)
        invariants.check(self.system.kernel)

    # -- what can happen in a step

    @precondition(lambda self: self.able("idle"))
    @rule(
        number=st.integers(0, PUPPETS - 1),
        to=st.sampled_from([*range(PUPPETS), NOBODY, NOBODY]),
        from_=st.sampled_from([*range(PUPPETS), ANY, ANY, LOCAL, NOBODY]),
        call=st.booleans(),
        times=TIMES,
        message=MESSAGES,
    )
    def ipc(self, number: int, to: int, from_: int, call: bool, times: tuple[int, int], message: Sent) -> None:
        """A puppet that is idle does an Ipc."""
        idle = self.able("idle")
        self.order(idle[number % len(idle)], to, to if call else from_, times, message)
        self.settle()

    @rule(
        speaker=st.integers(0, PUPPETS - 1),
        hearer=st.integers(0, PUPPETS - 1),
        from_=st.sampled_from([*range(PUPPETS), ANY, LOCAL]),
        then=st.sampled_from([*range(PUPPETS), ANY, LOCAL, NOBODY, NOBODY]),
        call=st.booleans(),
        times=TIMES,
        message=MESSAGES,
    )
    def talk(
        self, speaker: int, hearer: int, from_: int, then: int, call: bool, times: tuple[int, int], message: Sent
    ) -> None:
        """A puppet that is idle sends to one that waits, if there is one of each; there are, if two are idle."""
        idle = self.able("idle")
        if len(idle) > 1 and not self.able("waiting"):
            self.order(idle[hearer % len(idle)], NOBODY, from_, (NEVER, NEVER), message)
            self.settle()
        idle, waiting = self.able("idle"), self.able("waiting")
        if idle and waiting:
            to = waiting[hearer % len(waiting)].number
            self.order(idle[speaker % len(idle)], to, to if call else then, times, message)
        self.settle()

    def able(self, state: str) -> list[Puppet]:
        return [p for p in self.model.puppets if p.state == state and not p.halted]

    def order(self, p: Puppet, to: int, from_: int, times: tuple[int, int], sent: Sent) -> None:
        """Tell a puppet to do an Ipc, and the model that it does."""
        name, string, missing = sent
        self.word += 1
        number, word = p.number, self.word
        names = {ANY: ANY_THREAD, LOCAL: ANY_LOCAL_THREAD, NOBODY: NIL_THREAD} | dict(enumerate(IDS))
        message = [1 | (PROPAGATED if name != NOBODY else 0) | (2 << 6 if string is not None else 0), word]
        nowhere = FRESH + 2 * PAGE * word  # two pages that nobody has had

        def order(l4: L4) -> None:
            utcb = self.system.thread(IDS[number]).local_id
            if name != NOBODY:
                l4.set_tcr(u.VIRTUAL_SENDER, IDS[name])
            typed = [] if string is None else [STRING, nowhere if string else utcb + SOME_MR]
            l4.accept(1, STRING, nowhere + PAGE if missing else utcb + u.THREAD_WORD_1)
            try:
                got = l4.ipc(names[to], names[from_], message + typed, timeouts(*times))
            except IpcFailed as failed:
                self.results[number].append(("failed", failed.error.code, int(failed.error.in_receive)))
            else:
                sender = self.number(got.sender, number)
                self.results[number].append(SENT if sender == NOBODY else ("got", sender, got.untyped[0]))

        self.orders[number].append(order)
        self.model.ipc(p, to, from_, word, times, sent)

    def number(self, word: ThreadId, asker: int) -> int:
        """Whose global identifier it is, or local one in the asker's space."""
        for number, id_ in enumerate(IDS):
            near = number // 2 == asker // 2 and self.alive(number)
            if word == id_ or (near and word == self.system.thread(id_).local_id):
                return number
        return NOBODY

    def alive(self, number: int) -> bool:
        return IDS[number].thread_no in self.system.kernel.threads

    @rule(
        number=st.integers(0, PUPPETS - 1),
        control=st.sampled_from([X(0), X(0), X.ABORT_SEND, X.ABORT_RECEIVE, X.ABORT_SEND | X.ABORT_RECEIVE]),
        halt=st.sampled_from([X(0), X.ACT_ON_HALT, X.ACT_ON_HALT, X.ACT_ON_HALT, X.ACT_ON_HALT | X.HALT]),
    )
    def exchange_registers(self, number: int, control: ExregsControl, halt: ExregsControl) -> None:
        """Somebody looks at a puppet, aborts its IPC, halts or resumes it."""
        p = self.model.puppets[number]
        if p.state != "dead":
            seen: list[ExregsControl] = []
            self.to_root.append(lambda r: seen.append(r.exchange_registers(IDS[number], control | halt)[1]))
            expected = self.model.shown(p)
            if control & expected:
                self.model.cancel(p)
            if halt:
                p.halted = bool(halt & X.HALT)
            self.settle()
            assert [expected] == [bits & (X.HALT | X.ABORT_SEND | X.ABORT_RECEIVE) for bits in seen]

    @precondition(lambda self: any(p.faulting for p in self.model.puppets))
    @rule(choice=st.integers(0, PUPPETS - 1))
    def bring_page(self, choice: int) -> None:
        """The pager answers one of those who wait for a page in the midst of a message."""
        waiting = [p for p in self.model.puppets if p.faulting]
        p = waiting[choice % len(waiting)]

        def answer(r: Root) -> None:
            at = r.receive(IDS[p.number], ZERO).untyped[0]
            r.send(IDS[p.number], Message().append_map(Fpage.at(self.page), at & -PAGE), ZERO)

        self.to_root.append(answer)
        self.model.bring_page(p)
        self.settle()

    @precondition(lambda self: all(p.state != "dead" for p in self.model.puppets))
    @rule(number=st.integers(0, 4 * PUPPETS))
    def delete(self, number: int) -> None:
        """Now and then a puppet goes."""
        if number >= PUPPETS:
            return
        self.to_root.append(lambda r: r.thread_control(IDS[number], NIL_THREAD))
        self.model.delete(self.model.puppets[number])
        self.results[number].clear()
        self.settle()

    @precondition(lambda self: any(p.state == "dead" for p in self.model.puppets))
    @rule()
    def create_again(self) -> None:
        (number,) = (p.number for p in self.model.puppets if p.state == "dead")
        self.to_root.append(lambda r: self.create(r, number))
        self.model.puppets[number].state = "idle"
        self.settle()

    def settle(self) -> None:
        """A step passes; afterwards kernel and model agree."""
        self.run_step()
        self.model.expire()
        for p, results in zip(self.model.puppets, self.results, strict=True):
            assert self.alive(p.number) == (p.state != "dead")
            if not p.halted:
                assert p.results == results, f"puppet {p.number}"
        for e in self.system.trace.of(events.MessageSent):
            if e.sender in NUMBERS and e.receiver in NUMBERS:
                self.messages.append((NUMBERS[e.sender], NUMBERS[e.receiver], e.words[1]))
        self.system.forget_events()
        assert self.model.messages == self.messages

    def teardown(self) -> None:
        for thread in self.system.kernel.threads.values():
            if thread.program is not None:
                thread.program.stop()


IpcMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_kernel_and_model_agree = IpcMachine.TestCase
