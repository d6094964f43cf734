# SPDX-License-Identifier: GPL-2.0-or-later
"""Another rendezvous in the kernel's place: a right one changes nothing, wrong ones are found out and named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from l4lab.abi.ids import NIL_THREAD, ROOT_TASK, ThreadId, global_id
from l4lab.abi.message import IpcErrorCode
from l4lab.abi.protocols import thread_start
from l4lab.abi.time import NEVER, ZERO
from l4lab.errors import KernelPanic, PartFailed
from l4lab.kernel.parts import Parts, Rendezvous
from l4lab.rig.rig import Rig
from l4lab.testing import Root, System
from l4lab.user.l4 import L4, IpcFailed

from .fuzz import Round
from .student_parts import SYSTEMS, Meeting, Walker, mistaken
from .test_ipc_model import ANY, NOBODY, PUPPETS, IpcMachine, Sent
from .test_walk_part import played

PLAIN: Sent = NOBODY, None, False


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_runs_on_it_as_on_the_kernels_own(system: str) -> None:
    """Not a byte of trace or memory tells who lets threads meet; and it is asked."""
    asked = []

    class Counting(Meeting):
        def send(self, sender: Any, to: int, timeout: int, from_: int, then_timeout: int) -> None:
            asked.append(to)
            super().send(sender, to, timeout, from_, then_timeout)

    assert played(SYSTEMS[system], Parts()) == played(SYSTEMS[system], Parts(ipc=Counting))
    assert asked


@pytest.mark.parametrize("seed", [40, 43])
def test_under_attack_it_does_as_the_kernels_own(seed: int) -> None:
    """Whatever attackers do, strings, other names, deletions and faults among it: both kernels do the same."""
    traces: list[list[Any]] = []
    for parts in (Parts(), Parts(ipc=Meeting, walk=Walker)):
        attack = Round(seed, privileged=bool(seed & 1), parts=parts)
        events: list[Any] = []
        traces.append(events)
        forget = attack.system.forget_events

        def keep(events: list[Any] = events, system: System = attack.system, forget: Any = forget) -> None:
            events.extend(system.trace.events)
            forget()

        attack.system.forget_events = keep  # type: ignore[method-assign]
        assert attack.run(100, check_every=5)
        attack.stop()

    assert traces[0] == traces[1]
    assert len(traces[0]) > 200


class Crowd(IpcMachine):
    """What happens by chance too seldom: several stand in one queue."""

    @precondition(lambda self: len(self.able("idle")) > 2)
    @rule(hearer=st.integers(0, PUPPETS - 1))
    def crowd(self, hearer: int) -> None:
        """All that are idle send to one of them, which takes first what came last, and then what else there is."""
        idle = self.able("idle")
        to = idle.pop(hearer % len(idle))
        for p in idle:
            self.order(p, to.number, NOBODY, (NEVER, NEVER), PLAIN)
            self.settle()
        for from_ in (idle.pop().number, *[ANY] * len(idle)):
            self.order(to, NOBODY, from_, (NEVER, NEVER), PLAIN)
            self.settle()


def puppets(kind: Any, examples: int) -> None:
    """The puppets of the model, on a kernel with this rendezvous."""

    class Machine(Crowd):
        parts = Parts(ipc=kind)

    quick = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        print_blob=False,
    )
    run_state_machine_as_test(Machine, settings=quick)  # type: ignore[no-untyped-call]


def test_it_does_as_the_model() -> None:
    """Puppets that send, receive, are halted, cancelled and deleted meet as the manual has it."""
    puppets(Meeting, 8)


ACCEPTS = (
    "return wanted in (ANY_THREAD, sender.word) or (wanted == ANY_LOCAL_THREAD and receiver.space is sender.space)"
)
MISTAKES: dict[str, list[tuple[str, str]]] = {
    "accepts anybody": [(ACCEPTS, "return True")],
    "accepts nobody in particular": [(ACCEPTS, "return wanted == ANY_THREAD or wanted == ANY_LOCAL_THREAD")],
    "accepts the partner only": [(ACCEPTS, "return wanted == sender.word")],
    "takes its neighbours for anybody": [("and receiver.space is sender.space", "")],
    "the newest first": [("in self.hooks.senders(receiver)", "in reversed(self.hooks.senders(receiver))")],
    "zero is never, sending": [
        ("elif timeout == ZERO:", "elif False:"),
        ("receiver, timeout)\n\n", "receiver, 0)\n\n"),
    ],
    "zero is never, receiving": [
        ("        if timeout == ZERO:", "        if False:"),
        ("wait(receiver, timeout)", "wait(receiver, 0)"),
    ],
    "never is zero": [("elif timeout == ZERO:", "elif timeout in (ZERO, 0):")],
    "forgets the receive phase": [
        ("from_, timeout = self.hooks.leave_queue(sender)", "self.hooks.leave_queue(sender)\n            from_ = 0")
    ],
    "forgets the receive phase of a call": [("self.receive(sender, from_, then_timeout)", "self.hooks.done(sender)")],
    "never looks into the queue": [("in self.hooks.senders(receiver)", "in ()")],
    "never looks who waits": [("elif self.hooks.takes(receiver, sender):", "elif False:")],
    "looks at the first in the queue only": [
        ("in self.hooks.senders(receiver)", "in self.hooks.senders(receiver)[:1]")
    ],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_rendezvous_is_told_apart(mistake: str) -> None:
    """The puppets, or the kernel itself, find each mistake."""
    with pytest.raises((AssertionError, KernelPanic, PartFailed)):
        puppets(mistaken(Meeting, *MISTAKES[mistake]), 100)


REFUSALS: dict[str, list[tuple[str, str]]] = {
    "by number": [(ACCEPTS, "return wanted == ANY_THREAD or wanted >> 14 == sender.word >> 14")],
    "the other phase": [("TIMEOUT, in_receive=True", "TIMEOUT, in_receive=False")],
    "the other code": [("sender, TIMEOUT", "sender, NO_PARTNER")],
    "nobody is a partner": [
        ("if wanted is None:", "if False:"),
        ("from_ = wanted.word", "from_ = wanted.word if wanted else ANY_THREAD"),
    ],
}


def refusals(kind: Any) -> list[tuple[int, bool]]:
    """How some Ipcs end that cannot succeed: code, and whether in the receive phase."""
    ends: list[tuple[int, bool]] = []

    def root(r: Root) -> None:
        unborn = global_id(ROOT_TASK.thread_no, ROOT_TASK.version + 1)
        for attempt in (
            lambda: r.send(r.create(pager=unborn), thread_start(0, 0), ZERO),  # it is another one that starts it
            lambda: r.receive(unborn, ZERO),
            lambda: r.receive(r.my_id, ZERO),
            lambda: r.send(r.my_id, [0], ZERO),
            lambda: r.send(unborn, [0]),
        ):
            try:
                attempt()
                ends.append((0, False))
            except IpcFailed as failed:
                ends.append((failed.error.code, failed.error.in_receive))

    System(root, check=False, parts=Parts(ipc=kind)).run(1_000_000)
    return ends


def test_what_cannot_succeed_is_refused() -> None:
    """With the code and the phase of the kernel's own; another version of a partner is another thread."""
    timeout, nobody = IpcErrorCode.TIMEOUT, IpcErrorCode.NO_PARTNER

    assert refusals(None) == refusals(Meeting)
    assert [(timeout, False), (nobody, True), (timeout, True), (timeout, False), (nobody, False)] == refusals(None)


@pytest.mark.parametrize("mistake", REFUSALS)
def test_a_wrong_refusal_is_told_apart(mistake: str) -> None:
    """Each of these mistakes shows in one of those ends."""
    assert refusals(None) != refusals(mistaken(Meeting, *REFUSALS[mistake]))


@pytest.mark.parametrize("parts", [Parts(), Parts(ipc=Meeting)], ids=["own", "another"])
def test_a_chain_can_be_long(parts: Parts) -> None:
    """Of many that stand in each other's queue, all go on when the first one's message is taken."""
    ids = [global_id(200 + n) for n in range(200)]
    gone_on: list[int] = []

    def root(r: Root) -> None:
        def link(number: int) -> Any:
            def main(l4: L4) -> None:
                before = ids[number - 1] if number else r.my_id
                behind = ids[number + 1] if number + 1 < len(ids) else NIL_THREAD
                l4.ipc(before, behind, [1, number])
                gone_on.append(number)

            return main

        for number in range(len(ids)):
            r.hosted(link(number), id_=ids[number])
        r.sleep(10_000)
        assert not gone_on
        r.receive(ids[0])

    System(root, check=False, parts=parts).run(100_000_000)

    assert list(range(len(ids))) == sorted(gone_on)


# -- wrong ones --------------------------------------------------------------------------------------------------------

SEND = "receiver = self.hooks.find(to, sender)"
POLL = "self.hooks.poll(sender, receiver, timeout)"
DELIVER = "if self.hooks.deliver(sender, receiver):"
EXPECT = "self.hooks.expect(receiver, from_)"
LEAVE = "from_, timeout = self.hooks.leave_queue(sender)"
LOOP = (
    "import signal; signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)\n        while True: pass\n"
)


class Unfinished(Rendezvous):
    """Nothing yet."""

    def accepts(self, receiver: Any, sender: Any) -> bool:
        """Anybody."""
        return True


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ([(ACCEPTS, "pass")], r"accepts\(\) returned None, which is neither True nor False"),
        ([(ACCEPTS, "return 1 // 0")], r"accepts\(<.*>, <.*>\) raised ZeroDivisionError"),
        ([(ACCEPTS, "self.hooks.done(sender)")], r"done: <.*> is not in its hands"),
        ([(ACCEPTS, "return self.hooks.takes(receiver, sender)")], r"raised RecursionError|on and on"),
        ([(POLL, "return 7")], r"send\(\) returned 7, and nobody asks"),
        ([(POLL, "pass")], r"send\(\) came back too early: <.*> has still to send"),
        ([(POLL, "self.hooks.deliver(sender, sender)")], r"deliver: <.*> does not wait for a message"),
        ([(POLL, POLL + ";" + POLL)], r"poll: <.*> is not in its hands"),
        ([(POLL, "self.hooks.poll(sender, sender, timeout)")], r"poll: <.*> sends to thread 0x\w+, which <.*> is not"),
        ([(POLL, "self.hooks.poll(sender, receiver, -1)")], r"poll: -1 is no time of 16 bits"),
        ([(POLL, "self.hooks.fail(sender, 99, True)")], r"fail: 99 is no IpcErrorCode"),
        ([(POLL, POLL + "; receiver.senders.append(sender)")], r"has put <.*> into the queue of <.*>, past the hooks"),
        ([(POLL, POLL + "; receiver.senders.clear()")], r"has changed <.*> past the hooks"),
        ([(SEND, SEND + "; self.hooks.deliver(sender, None)")], r"send\(.*\) raised \w+Error"),
        ([(SEND, SEND + "\n        while True: self.hooks.find(to, sender)")], "calls hooks on and on, find at last"),
        ([(SEND, LOOP + "        " + SEND)], r"send\(.*\) did not come back"),
        (
            [(SEND, SEND + "\n        try: self.hooks.done(sender)\n        except Exception: pass")],
            "done: <.*> has still to send",
        ),
        (
            [(DELIVER, DELIVER + "\n                return\n            if False:")],
            "has sent, and neither receives nor is",
        ),
        ([(EXPECT, "pass")], r"(leave_queue: <.*> stands in the queue of <.*>, who expects|wait: <.*> has)"),
        ([(EXPECT, "self.hooks.expect(receiver, 12345)")], "expect: 0x3039 is no thread's `word`"),
        ([("self.hooks.wait(receiver, timeout)", "pass")], "expects a message, and neither gets one nor waits"),
        ([(LEAVE, "pass")], r"deliver: <.*> is not in its hands"),
        ([(LEAVE, LEAVE + "; return")], "came back too early: <.*>"),
        ([(LEAVE, LEAVE + ";" + LEAVE)], "leave_queue: <.*> stands in nobody's queue"),
        ([(LEAVE, LEAVE + "; self.hooks.poll(sender, receiver, 0)")], "poll: <.*> was taken out of a queue, and"),
        (
            [("self.hooks.done(receiver)", "self.hooks.done(receiver); self.hooks.done(receiver)")],
            "done: <.*> is not in",
        ),
        ([(SEND, SEND + "; self.hooks.fail(receiver, TIMEOUT, True)")], "fail: <.*> is not in its hands"),
    ],
    ids=lambda value: value[-1][-1].strip() if isinstance(value, list) else "",
)
def test_a_rendezvous_that_breaks_a_rule_is_named(changes: list[tuple[str, str]], what: str) -> None:
    """It ends the run with hook, thread and rule, and kernel and lab stand."""
    fails(mistaken(Meeting, *changes), what)


def test_what_is_no_rendezvous_is_named() -> None:
    """A method that is missing, and a class of another kind."""
    fails(Unfinished, r"Unfinished has no method send\(\)")
    fails(Walker, r"Walker is no Rendezvous\. Derive it from l4lab\.kernel\.parts\.Rendezvous")


def fails(kind: Any, what: str) -> None:
    """A system in which there are queues, and who sends without receiving, ends so."""
    ids = [ThreadId.decode(global_id(ROOT_TASK.thread_no + 1 + n)) for n in range(2)]

    def client(l4: L4) -> None:
        while True:
            l4.send(ROOT_TASK, [1 << 16, 1])
            l4.call(ROOT_TASK, [1 << 16, 1])

    def root(l4: L4) -> None:
        for n, id_ in enumerate(ids):
            l4.thread_control(id_, l4.my_id, l4.my_id, l4.my_id, 0xBF00_0200 + 0x200 * n)
            l4.send(id_, thread_start(0, 0))
        l4.sleep(500)
        while True:
            l4.reply_wait(l4.wait().sender, [0], ZERO)

    made: list[Rig] = []

    def run() -> None:
        made.append(Rig(root, 16 << 20, programs=dict.fromkeys(ids, client), parts=Parts(ipc=kind)))
        made[0].run(10_000_000)

    with pytest.raises(PartFailed, match=what):
        run()
    if made:
        with pytest.raises(PartFailed, match="for good"):
            made[0].run(1000)
        assert made[0].snapshot().threads
