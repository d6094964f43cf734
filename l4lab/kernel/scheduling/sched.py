# SPDX-License-Identifier: GPL-2.0-or-later
"""Scheduling: 256 priorities, round robin within each, time slices, and who waits until when.

What lives here: the ready queues and the timer queue. When a slice ends and what wakes a thread is found out by the
main loop in `kernel.py`. (X.2 manual, section Schedule; reference section 7.)
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Any, Protocol

from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb, ThreadState

PRIORITIES = 256


class Sleeper(Protocol):
    """Whoever can have a timer: a thread, or a transfer of strings."""

    state: ThreadState
    wake_ticket: int


Timer = tuple[int, int, Any, int]  # (cycle, order of setting, whose, its ticket then)


class Scheduler:
    """Who runs next. Queue order depends on nothing but the order of calls, so equal runs schedule equally."""

    def __init__(self) -> None:
        self._ready: list[deque[Tcb]] = [deque() for _ in range(PRIORITIES)]
        self._levels = 0  # bit n: somebody is ready at priority n
        self.highest = -1  # the highest priority at which somebody is ready, -1 if nobody is
        self._timers: list[Timer] = []
        self._set = 0

    # -- ready queues ------------------------------------------------------------------------------------------------

    def add(self, thread: Tcb) -> None:
        """The thread can run: to the end of its queue."""
        self._ready[thread.priority].append(thread)
        self._set_levels(self._levels | 1 << thread.priority)

    def add_first(self, thread: Tcb) -> None:
        """The thread can run, and before the others of its priority: it was preempted, or a message came for it."""
        self._ready[thread.priority].appendleft(thread)
        self._set_levels(self._levels | 1 << thread.priority)

    def remove(self, thread: Tcb) -> None:
        """The thread cannot run any more, whether or not it was in a queue."""
        queue = self._ready[thread.priority]
        if thread in queue:
            queue.remove(thread)
        if not queue:
            self._set_levels(self._levels & ~(1 << thread.priority))

    def pick(self) -> Tcb | None:
        """Take the next thread out of the queues; None if nobody is ready."""
        level = self.highest
        if level < 0:
            return None
        queue = self._ready[level]
        thread = queue.popleft()
        if not queue:
            self._set_levels(self._levels & ~(1 << level))
        return thread

    def _set_levels(self, levels: int) -> None:
        self._levels = levels
        self.highest = levels.bit_length() - 1

    def ready(self) -> list[Tcb]:
        """All that are ready, in the order in which they would run."""
        return [thread for queue in reversed(self._ready) for thread in queue]

    def set_priority(self, thread: Tcb, priority: int) -> None:
        """Change a priority, and the queue if it stands in one."""
        queue = self._ready[thread.priority]
        queued = thread in queue
        if queued:
            self.remove(thread)
        thread.priority = priority
        if queued:
            self.add(thread)

    # -- timers --------------------------------------------------------------------------------------------------------

    def wake_at(self, cycle: int, thread: Sleeper) -> None:
        """Wake the thread at `cycle`, unless it blocks anew or goes on before."""
        self._set += 1
        heappush(self._timers, (cycle, self._set, thread, thread.wake_ticket))

    def next_timer(self) -> int:
        """When the next timer expires."""
        timers = self._timers
        while timers and not _waits(timers[0]):
            heappop(timers)  # stale: the thread went on before
        return timers[0][0] if timers else NEVER_ENDS

    def with_timers(self) -> list[Sleeper]:
        """All that some timer will wake."""
        return [timer[2] for timer in self._timers if _waits(timer)]

    def expire(self) -> Any:
        """Take out the thread whose timer is the next; the caller has seen that its time has come."""
        return heappop(self._timers)[2]


def _waits(timer: Timer) -> bool:
    """Is the thread still in the wait for which the timer was set?"""
    _, _, thread, ticket = timer
    return thread.wake_ticket == ticket and thread.state in (ThreadState.WAITING, ThreadState.POLLING)
