# SPDX-License-Identifier: GPL-2.0-or-later
"""Priorities, time slices, total quanta and preemption by who wakes up, against a model of 256 round robins.

The threads spin. Slices are whole units of time. The root task, which changes priorities, wakes between: the i-th time
2^i ticks after a unit began: so no two of all the moments that follow are ever close, and what the kernel itself takes
does not decide who runs. (X.2 manual, section Schedule.)
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.calls import TimeControl
from l4lab.abi.ids import ThreadId
from l4lab.abi.protocols import thread_start
from l4lab.abi.time import NEVER, period
from l4lab.kernel import events, invariants
from l4lab.testing import Root, System

TICK = 62_000  # cycles
TICKS = 16
UNIT = TICKS * TICK
LENGTH = 20  # units
CHANGES = 4
SLACK = 30_000  # cycles: what setting up and all of root's wakings take
Change = tuple[int, int, int]  # in which unit, which thread, which priority
Run = tuple[int, int]  # thread, ticks or cycles


@dataclass
class Spinner:
    """A thread as the model sees it: times are in ticks."""

    number: int
    priority: int
    slice: int
    quantum: int | None

    def __post_init__(self) -> None:
        self.left = 0
        self.renew()

    def renew(self) -> bool:
        """A new slice, if the quantum has one left."""
        self.left = self.slice if self.quantum is None else min(self.slice, self.quantum)
        if self.quantum is not None:
            self.quantum -= self.left
        return self.left > 0


def expected_runs(spinners: list[Spinner], changes: list[Change]) -> list[Run]:
    """Who runs for how many ticks."""
    queue = list(reversed(spinners))  # in the order of their turns: who was started last is first
    due = {TICKS * unit + (1 << i): (number, priority) for i, (unit, number, priority) in enumerate(changes)}
    runs: list[Run] = []
    for now in range(TICKS * LENGTH):
        if now in due:  # preempted by root: everybody keeps the place, but whose priority is set goes to the end
            number, priority = due[now]
            thread = spinners[number]
            thread.priority = priority
            if thread in queue:
                queue.remove(thread)
                queue.append(thread)
        if not queue:
            continue
        current = max(queue, key=lambda thread: thread.priority)  # the first of those with the highest
        if runs and runs[-1][0] == current.number:
            runs[-1] = current.number, runs[-1][1] + 1
        else:
            runs.append((current.number, 1))
        current.left -= 1
        if current.left == 0:
            queue.remove(current)
            if current.renew():
                queue.append(current)
    return runs


SPINNERS = st.lists(
    st.tuples(st.integers(10, 12), st.integers(1, 4), st.none() | st.integers(1, 12)), min_size=1, max_size=4
)
SOME_CHANGES = st.lists(
    st.tuples(st.integers(0, LENGTH - 2), st.integers(0, 3), st.integers(9, 13)),
    max_size=CHANGES,
    unique_by=lambda change: change[0],
)


@settings(max_examples=25)
@given(SPINNERS, SOME_CHANGES)
def test_who_runs_when(kinds: list[tuple[int, int, int | None]], changes: list[Change]) -> None:
    """Do threads run in the order, and for as long, as priorities, slices, quanta and priority changes say?"""
    changes = sorted((unit, number % len(kinds), priority) for unit, number, priority in changes)
    ids: list[ThreadId] = []
    begin: list[int] = []

    def root(r: Root) -> None:
        programs = [r.native("again:\n" + "nop\n" * 60 + "jmp again", start=False) for _ in kinds]
        ids.extend(program.id for program in programs)
        for program, (priority, length, quantum) in zip(programs, kinds, strict=True):
            total = NEVER if quantum is None else period(quantum * UNIT // 1000)
            time = TimeControl.make(time_slice=period(length * UNIT // 1000), total_quantum=total)
            r.schedule(program.id, priority=priority, time=time)
        for program in programs:
            r.send(program.id, thread_start(program.at("again"), program.stack))
        begin.append(r.time_stamp())
        for i, (unit, number, priority) in enumerate(changes):
            r.sleep((begin[0] + unit * UNIT + TICK * (1 << i) - r.time_stamp()) // 1000)
            r.schedule(ids[number], priority=priority)
        r.receive(r.my_id)

    system = System(root, check=False)
    system.run(LENGTH * UNIT)
    invariants.check(system.kernel)

    names = {int(id_): number for number, id_ in enumerate(ids)}
    seen: list[Run] = []
    end = system.machine.clock.cycles
    switches = [e for e in system.trace.of(events.Switched) if e.at >= begin[0]]
    ends = [*(e.at for e in switches[1:]), end]
    for switched, until in zip(switches, ends, strict=True):
        if switched.thread in names:
            number, cycles = names[switched.thread], until - switched.at
            if seen and seen[-1][0] == number:
                seen[-1] = number, seen[-1][1] + cycles
            else:
                seen.append((number, cycles))
    model = [Spinner(n, p, TICKS * s, None if q is None else TICKS * q) for n, (p, s, q) in enumerate(kinds)]
    expected = expected_runs(model, changes)
    last = len(expected) - 1
    assert [number for number, _ in expected[:last]] == [number for number, _ in seen[:last]]
    for (_, ticks), (_, cycles) in zip(expected[:last], seen, strict=False):
        assert abs(ticks * TICK - cycles) < SLACK
