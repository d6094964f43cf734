# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedulers as students would write them: one that is fair by shares, and one that does what the kernel's own does."""

from __future__ import annotations

import sys
from collections.abc import Callable

from l4lab.abi import utcb as u
from l4lab.abi.calls import TimeControl
from l4lab.abi.ids import NIL_THREAD, ROOT_TASK, global_id
from l4lab.abi.protocols import thread_start
from l4lab.abi.time import NEVER, period
from l4lab.kernel.boot import UTCB_AREA
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.parts import Parts, Scheduler, Why
from l4lab.rig.rig import Rig
from l4lab.rig.trace import Trace
from l4lab.user.l4 import L4

FIRST = (Why.HANDED, Why.PREEMPTED)


class Stride(Scheduler):
    """Each thread runs in proportion to its priority; above 200 there are no shares, such a thread goes before."""

    def __init__(self) -> None:
        self.queue: list[Tcb] = []
        self.passes: dict[Tcb, float] = {}
        self.seen: dict[Tcb, int] = {}  # how much it had run when it was ready last

    def ready(self, thread: Tcb, why: Why) -> None:
        """Charge it for what it ran; a newcomer, and who has slept, begins where the others are."""
        now = min((self.passes[other] for other in self.queue), default=0.0)
        ran = thread.ran - self.seen.get(thread, thread.ran)
        own = self.passes.get(thread, now) + ran / max(thread.priority, 1)
        self.passes[thread] = max(own, now) if why in (Why.WOKE, Why.HANDED) else own
        self.seen[thread] = thread.ran
        self.queue.append(thread)

    def gone(self, thread: Tcb) -> None:
        """Take it out, if it is in."""
        if thread in self.queue:
            self.queue.remove(thread)

    def next(self) -> Tcb | None:
        """The one that is most behind."""
        thread = min(self.queue, key=self._order, default=None)
        if thread is not None:
            self.queue.remove(thread)
            self.seen[thread] = thread.ran
        return thread

    def preempts(self, thread: Tcb) -> bool:
        """Only the urgent do."""
        return any(other.priority > max(200, thread.level) for other in self.queue)

    def _order(self, thread: Tcb) -> tuple[bool, float]:
        return thread.priority <= 200, self.passes[thread]


class Lists(Scheduler):
    """What X.2 says, in the plainest way: one list, sorted by priority."""

    def __init__(self) -> None:
        self.all: list[Tcb] = []

    def ready(self, thread: Tcb, why: Why) -> None:
        """Before or behind its equals."""
        at = sum(o.priority > thread.priority if why in FIRST else o.priority >= thread.priority for o in self.all)
        self.all.insert(at, thread)

    def gone(self, thread: Tcb) -> None:
        """Take it out, if it is in."""
        self.all = [other for other in self.all if other is not thread]

    def next(self) -> Tcb | None:
        """The first."""
        return self.all.pop(0) if self.all else None

    def preempts(self, thread: Tcb) -> bool:
        """Is the first more important?"""
        return bool(self.all) and self.all[0].priority > thread.level

    def waiting(self) -> list[Tcb]:
        """As they stand."""
        return self.all


# -- what they are tried on

WORKERS = [global_id(ROOT_TASK.thread_no + 1 + n) for n in range(3)]


def worker(l4: L4) -> None:
    """Never stop."""
    while True:
        l4.system_clock()


def some_work(l4: L4) -> None:
    """Start three that never stop, sleep while their slices end, delete one that is ready."""
    for n, id_ in enumerate(WORKERS):
        l4.thread_control(id_, l4.my_id, l4.my_id, l4.my_id, UTCB_AREA.base + u.SIZE * (n + 1))
        l4.schedule(id_, 100 - 30 * (n == 2), TimeControl.make(time_slice=period(20), total_quantum=NEVER))
        l4.send(id_, thread_start(0, 0))
    l4.sleep(500)
    l4.thread_control(WORKERS[0], NIL_THREAD)
    l4.sleep(500)


def save_trace(scheduler: Callable[[], Scheduler], path: str) -> None:
    """The trace of that work under this scheduler."""
    trace = Trace()
    parts = Parts(scheduler=scheduler)
    Rig(some_work, 32 << 20, trace=trace, programs=dict.fromkeys(WORKERS, worker), parts=parts).run(5_000_000)
    trace.save(path)


if __name__ == "__main__":
    save_trace({"Stride": Stride, "Lists": Lists}[sys.argv[1]], sys.argv[2])
