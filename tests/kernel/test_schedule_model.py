# SPDX-License-Identifier: GPL-2.0-or-later
"""Priorities, time slices, total quanta, donated time and delayed preemption, against a model of 256 round robins.

The threads spin, and after so many ticks of their own some call ThreadSwitch. Slices are whole units of time. The root
task, which changes priorities, wakes between: the i-th time 2^i ticks after a unit began. An example in which two
moments meet is passed by: so what the kernel itself takes does not decide who runs. (X.2 manual, sections Schedule,
ThreadSwitch and Preemption protocol.)
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l4lab.abi import utcb as u
from l4lab.abi.calls import PreemptionControl, TimeControl
from l4lab.abi.ids import ThreadId
from l4lab.abi.protocols import thread_start
from l4lab.abi.time import NEVER, period
from l4lab.abi.utcb import PreemptionFlags
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
Switch = tuple[int, int | None]  # after how many more ticks of its own, to which thread; None: to whoever is next


@dataclass
class Kind:
    """How a thread is set up: times in units, but for the delay, which is in ticks."""

    priority: int
    slice: int
    quantum: int | None
    delay: int  # 0: it does not ask for one
    sensitive: int
    switches: list[Switch]


class Spinner:
    """A thread as the model sees it: times are in ticks."""

    def __init__(self, number: int, kind: Kind) -> None:
        self.number = number
        self.priority, self.slice = kind.priority, TICKS * kind.slice
        self.quantum = None if kind.quantum is None else TICKS * kind.quantum
        self.delay, self.sensitive = kind.delay, kind.sensitive
        self.switches = list(kind.switches)
        self.ran = 0  # since the last switch
        self.donated = 0  # is spent first
        self.left = 0  # of its own slice, or of the delay
        self.delays = False
        self.lent = -1  # a priority,
        self.stretch = 0  # for so long, unless somebody else gets the processor
        self.renew()

    def renew(self) -> bool:
        """A new slice, if the quantum has one left."""
        self.delays = False
        self.lent, self.stretch = -1, 0
        self.left = self.slice if self.quantum is None else max(min(self.slice, self.quantum), 0)
        self.charge(self.left)
        return self.left > 0

    def charge(self, ticks: int) -> None:
        """Take it from the total quantum."""
        if self.quantum is not None:
            self.quantum -= ticks


class Model:
    """One processor. `queue`: all that can run, each before those of its priority whose turn is later."""

    def __init__(self, spinners: list[Spinner], changes: list[Change]) -> None:
        self.spinners = spinners
        self.queue = list(reversed(spinners))  # who was started last is first
        self.due = {TICKS * unit + (1 << i): change for i, (unit, *change) in enumerate(changes)}
        self.runs: list[Run] = []
        self.clash = False  # did two moments meet?

    def play(self) -> None:
        """All ticks."""
        for now in range(TICKS * LENGTH):
            if now in self.due:
                self.root_runs(*self.due[now])
            if self.queue and not self.clash:
                self.tick(self.chosen(), now + 1)

    def root_runs(self, number: int, priority: int) -> None:
        """Everybody keeps the place, but whose priority is set goes to the end; nobody competes with a lent one."""
        thread = self.spinners[number]
        thread.priority = priority
        if thread in self.queue:
            self.to_the_end(thread)
        for other in self.spinners:
            other.lent = -1

    def chosen(self) -> Spinner:
        """The first of those with the highest priority, but for one who has the processor with a lent one."""
        best = max(self.queue, key=lambda thread: thread.priority)
        for holder in self.queue:
            if holder.lent >= 0 and best.priority <= max(holder.lent, holder.priority):
                return holder
            holder.lent = -1
        return best

    def to_the_end(self, thread: Spinner) -> None:
        self.queue.remove(thread)
        self.queue.append(thread)

    def tick(self, thread: Spinner, then: int) -> None:
        """The thread runs for one, until `then`."""
        if self.runs and self.runs[-1][0] == thread.number:
            self.runs[-1] = thread.number, self.runs[-1][1] + 1
        else:
            self.runs.append((thread.number, 1))
        thread.ran += 1
        ended = False
        if thread.donated:
            thread.donated -= 1
        else:
            thread.left -= 1
        if thread.stretch:
            thread.stretch -= 1
            if not thread.stretch:
                thread.lent, ended = -1, True
        if not thread.left:
            self.slice_ends(thread)
            ended = True
        switches = bool(thread.switches) and thread.ran == thread.switches[0][0]
        self.clash |= (ended and switches) or ((ended or switches) and then in self.due)
        if switches and not self.clash:
            self.switch(thread)

    def slice_ends(self, thread: Spinner) -> None:
        """It goes to the end, unless it keeps the processor for its delay."""
        may_delay = thread.delay and not thread.delays
        if not thread.renew():
            self.queue.remove(thread)
            return
        self.to_the_end(thread)
        follower = max(self.queue, key=lambda thread: thread.priority)
        if may_delay and follower is not thread and follower.priority <= thread.sensitive:
            thread.charge(thread.delay - thread.left)
            thread.left, thread.delays, thread.lent = thread.delay, True, thread.sensitive
            self.to_the_front(thread)

    def to_the_front(self, thread: Spinner) -> None:
        self.queue.remove(thread)
        self.queue.insert(0, thread)

    def switch(self, thread: Spinner) -> None:
        """It gives all its time to the other, or keeps of its quantum what is its own."""
        _, to = thread.switches.pop(0)
        thread.ran = 0
        taker = None if to is None else self.spinners[to]
        if taker is None or taker is thread or taker not in self.queue:
            thread.charge(-thread.left)
        else:
            taker.stretch = thread.left + thread.donated
            taker.donated += taker.stretch
            taker.lent, taker.delays = thread.priority, False
            self.to_the_front(taker)
        thread.donated = 0
        if thread.renew():
            self.to_the_end(thread)
        else:
            self.queue.remove(thread)


KINDS = st.builds(
    Kind,
    priority=st.integers(10, 12),
    slice=st.integers(1, 4),
    quantum=st.integers(1, 5) | st.integers(1, 12) | st.none(),
    delay=st.sampled_from((0, 3, 7, 21)),
    sensitive=st.integers(10, 12),
    switches=st.lists(st.tuples(st.integers(1, 2 * TICKS), st.integers(0, 3) | st.none()), max_size=3),
)
SOME_CHANGES = st.lists(
    st.tuples(st.integers(0, LENGTH - 2), st.integers(0, 3), st.integers(9, 13)),
    max_size=CHANGES,
    unique_by=lambda change: change[0],
)


def source(kind: Kind, ids: list[ThreadId]) -> str:
    """A spinner's program: a cycle for each instruction."""
    lines = ["mov edi, gs:[0]"]
    if kind.delay:
        lines.append(f"mov byte ptr [edi + {u.PREEMPTION_FLAGS}], {int(PreemptionFlags.DELAY)}")
    for i, (ticks, to) in enumerate(kind.switches):
        lines += [f"mov ecx, {ticks * TICK // 2}", f"spin{i}: dec ecx", f"jnz spin{i}"]
        lines += [f"mov eax, {0 if to is None else int(ids[to])}", "call ThreadSwitch"]
    return "\n".join([*lines, "again:", *["nop"] * 60, "jmp again"])


@settings(max_examples=80)
@given(st.lists(KINDS, min_size=1, max_size=3), SOME_CHANGES)
def test_who_runs_when(kinds: list[Kind], changes: list[Change]) -> None:
    """Do threads run in the order, and for as long, as priorities, slices, quanta, donations and delays say?"""
    changes = sorted((unit, number % len(kinds), priority) for unit, number, priority in changes)
    for kind in kinds:
        kind.sensitive = max(kind.sensitive, kind.priority)
        kind.switches = [(ticks, None if to is None else to % len(kinds)) for ticks, to in kind.switches]
    model = Model([Spinner(number, kind) for number, kind in enumerate(kinds)], changes)
    model.play()
    assume(not model.clash)
    ids: list[ThreadId] = []
    begin: list[int] = []

    def root(r: Root) -> None:
        ids.extend(r.new_id() for _ in kinds)
        programs = [r.native(source(kind, ids), start=False, id_=id_) for kind, id_ in zip(kinds, ids, strict=True)]
        for program, kind in zip(programs, kinds, strict=True):
            total = NEVER if kind.quantum is None else period(kind.quantum * UNIT // 1000)
            time = TimeControl.make(time_slice=period(kind.slice * UNIT // 1000), total_quantum=total)
            delay = PreemptionControl.make(sensitive_priority=kind.sensitive, max_delay=kind.delay * TICK // 1000)
            r.schedule(program.id, priority=kind.priority, time=time, preemption=delay)
        for program in programs:
            r.send(program.id, thread_start(program.program.origin, program.stack))
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
    expected = model.runs
    last = len(expected) - 1
    assert [number for number, _ in expected[:last]] == [number for number, _ in seen[:last]]
    for (_, ticks), (_, cycles) in zip(expected[:last], seen, strict=False):
        assert abs(ticks * TICK - cycles) < SLACK
