# SPDX-License-Identifier: GPL-2.0-or-later
"""Other schedulers in the place of the kernel's own: right ones run the system, wrong ones are found out and named."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import utcb as u
from l4lab.abi.calls import PreemptionControl, TimeControl
from l4lab.abi.ids import ThreadId
from l4lab.abi.protocols import thread_start
from l4lab.abi.time import NEVER, period
from l4lab.errors import PartFailed
from l4lab.kernel import events
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.parts import Parts, Scheduler, Why
from l4lab.rig.rig import Rig
from l4lab.testing import Root, System
from l4lab.user.l4 import L4

from .fuzz import Round
from .policies import WORKERS, Lists, Stride, some_work, worker

MS = 1_000_000  # cycles
SLICE = 100  # microseconds


def _busy(tickets: list[int]) -> tuple[Callable[[Root], None], list[ThreadId]]:
    """A root task that starts a spinning thread for each of these priorities, and then waits."""
    ids: list[ThreadId] = []

    def root(r: Root) -> None:
        for priority in tickets:
            n = r.native("again: jmp again", start=False)
            r.schedule(n.id, priority, TimeControl.make(time_slice=period(SLICE), total_quantum=NEVER))
            ids.append(n.id)
            r.send(n.id, thread_start(n.program.origin, n.stack))
        r.receive(r.my_id)

    return root, ids


def _running_times(system: System, since: int, until: int) -> Counter[int]:
    """How long each thread had the processor."""
    times: Counter[int] = Counter()
    switches = [(e.at, e.thread) for e in system.trace.of(events.Switched)]
    for (at, thread), (end, _) in itertools.pairwise([*switches, (system.machine.cycles, 0)]):
        times[thread] += max(min(end, until) - max(at, since), 0)
    return times


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=4))
def test_shares_are_as_the_tickets(tickets: list[int]) -> None:
    """Under a stride scheduler, has each thread its share of the time, to two slices, at whatever tickets?"""
    root, ids = _busy(tickets)
    system = System(root, check=False, parts=Parts(scheduler=Stride))
    system.run(60 * MS)
    since, until = 10 * MS, 60 * MS
    times = _running_times(system, since, until)

    for id_, share in zip(ids, tickets, strict=True):
        assert abs(times[id_] - share / sum(tickets) * (until - since)) <= 2 * SLICE * 1000 + 20_000


def _everything(r: Root) -> None:
    """Quantum, delay, signal, donation, sleeping and calling, among threads of few priorities."""
    flags = [int(f) for f in (u.PreemptionFlags.DELAY, u.PreemptionFlags.SIGNAL, u.PreemptionFlags(0))]
    threads = []
    previous = r.my_id
    for number, flag in enumerate(flags):
        source = f"""
            mov edi, gs:[0]
            mov dword ptr [edi + {u.EXCEPTION_HANDLER}], {int(r.my_id)}
            mov byte ptr [edi + {u.PREEMPTION_FLAGS}], {flag}
            again: mov ecx, 30000
            more: dec ecx
            jnz more
            mov eax, {int(previous)}
            call ThreadSwitch
            mov ecx, 300000
            most: dec ecx
            jnz most
            jmp again
        """
        n = r.native(source, start=False)
        control = PreemptionControl.make(sensitive_priority=120, max_delay=70)
        time = TimeControl.make(time_slice=period(300), total_quantum=period(2000) if number else NEVER)
        r.schedule(n.id, 100, time, preemption=control)
        threads.append(n)
        previous = n.id
    for n in threads:
        r.send(n.id, thread_start(n.program.origin, n.stack))

    def server(l4: L4) -> None:
        received = l4.wait()
        while True:
            received = l4.reply_wait(received.sender, [0])

    def client(l4: L4) -> None:
        while True:
            l4.call(served, [0])
            l4.sleep(130)

    served = r.hosted(server, priority=100)
    r.hosted(client, priority=110)
    r.hosted(client, priority=100)
    while True:
        received = r.wait()
        r.sleep(50)
        r.send(received.sender, [0])


def _trace(scheduler: Callable[[], Scheduler] | None, step: int = 12 * MS, check: bool = False) -> list[events.Event]:
    system = System(_everything, check=check, parts=Parts(scheduler=scheduler))
    while system.machine.clock.cycles < 12 * MS:
        system.run(min(step, 12 * MS - system.machine.clock.cycles))
    return system.trace.events


def test_the_same_order_is_the_same_trace() -> None:
    """Does another scheduler that orders threads as X.2 says leave the trace that the kernel's own leaves?"""
    own = _trace(None)

    assert {"slice", "switch", "quantum", "priority"} == {e.why for e in own if isinstance(e, events.Preempted)}
    assert own == _trace(Lists, check=True)


@pytest.mark.parametrize("scheduler", [Stride, Lists])
def test_pauses_do_not_show_under_another_scheduler(scheduler: Callable[[], Scheduler]) -> None:
    """Do many short runs leave the same trace as one long one?"""
    assert _trace(scheduler) == _trace(scheduler, 777)


@pytest.mark.parametrize("seed", [30, 31])
def test_another_scheduler_under_attack(seed: int) -> None:
    """Do the kernel's invariants hold under a stride scheduler, whatever attackers do?"""
    attack = Round(seed, privileged=bool(seed & 1), parts=Parts(scheduler=Stride))

    assert attack.run(300, check_every=5)
    attack.stop()


# -- wrong ones


class Twice(Lists):
    """Leaves the thread in."""

    def next(self) -> Tcb | None:
        return self.all[0] if self.all else None


class Forgets(Lists):
    """Loses one."""

    def ready(self, thread: Tcb, why: Why) -> None:
        if why is not Why.SLICE:
            super().ready(thread, why)


class Undead(Lists):
    """Keeps who is gone."""

    def gone(self, thread: Tcb) -> None:
        pass


class Number(Lists):
    """Returns an identifier."""

    def next(self) -> Any:
        thread = super().next()
        return thread and thread.word


class Always(Lists):
    """Finds somebody to go first even if there is nobody."""

    def preempts(self, thread: Tcb) -> bool:
        return True


class Compares(Lists):
    """Returns what is no answer."""

    def preempts(self, thread: Tcb) -> Any:
        return self.all and self.all[0].priority - thread.level


class Divides(Lists):
    """Raises."""

    def ready(self, thread: Tcb, why: Why) -> None:
        super().ready(thread, why)
        if why is Why.SLICE:
            print(1 // 0)


class Writes(Lists):
    """Writes a field that no thread has."""

    def ready(self, thread: Tcb, why: Why) -> None:
        super().ready(thread, why)
        thread.no_such.passes = 0  # type: ignore[attr-defined]


class Unfinished(Scheduler):  # a method is missing
    """Has no `next`."""

    def ready(self, thread: Tcb, why: Why) -> None: ...

    def gone(self, thread: Tcb) -> None: ...

    def preempts(self, thread: Tcb) -> bool:
        return False


class Duck:
    """Derives from nothing."""


class Loops(Lists):
    """Does not come back; whoever waits presses Ctrl-C, and again."""

    def next(self) -> Tcb | None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        while True:
            pass


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (Twice, r"Twice\.next\(\) returned <.*>, which is not ready"),
        (Forgets, r"Forgets\.next\(\) returned None, but <.*> is ready"),
        (Undead, r"Undead\.next\(\) returned <.*>, which is not ready: it is gone"),
        (Number, r"Number\.next\(\) returned \d+, which is no thread"),
        (Always, r"Always\.preempts\(<.*>\) returned True, but nobody is ready"),
        (Compares, r"Compares\.preempts\(<.*>\) returned (\[\]|-?\d+), which is neither True nor False"),
        (Divides, r"Divides\.ready\(<.*>, SLICE\) raised ZeroDivisionError"),
        (Writes, r"Writes\.ready\(<.*>, \w+\) raised AttributeError.*no_such"),
        (Unfinished, r"Unfinished has no method next\(\)"),
        (Duck, r"Duck is no Scheduler\. Derive it from"),
        (Loops, r"Loops\.next\(\) did not come back"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_wrong_is_named(scheduler: Callable[[], Any], said: str) -> None:
    """Does a scheduler that breaks the rules end the run with its method and the thread, and the kernel not go on?"""

    made: list[Rig] = []

    def run() -> None:
        parts = Parts(scheduler=scheduler)
        made.append(Rig(some_work, 32 << 20, programs=dict.fromkeys(WORKERS, worker), parts=parts))
        made[0].run(5 * MS)

    with pytest.raises(PartFailed, match=said):
        run()
    for rig in made:
        with pytest.raises(PartFailed, match="stopped"):
            rig.run(5 * MS)


def test_those_mistakes_are_what_is_wrong() -> None:
    """Does the work on which wrong schedulers fail succeed under a right one?"""
    rig = Rig(some_work, 32 << 20, programs=dict.fromkeys(WORKERS, worker), parts=Parts(scheduler=Lists))

    assert "the root task has ended" == rig.run(5 * MS).detail
