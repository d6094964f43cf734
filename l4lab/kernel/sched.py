# SPDX-License-Identifier: GPL-2.0-or-later
"""Scheduling: 256 priorities, round robin within each, time slices, and who waits until when.

What lives here: the ready queues and the timer queue. When a slice ends and what wakes a thread is found out by the
main loop in `kernel.py`. (X.2 manual, section Schedule; reference section 7.)
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from l4lab.kernel.thread import NEVER_ENDS, Tcb, ThreadState

PRIORITIES = 256


class Scheduler:
    """Who runs next. Queue order depends on nothing but the order of calls, so equal runs schedule equally."""

    def __init__(self) -> None:
        self._ready: list[deque[Tcb]] = [deque() for _ in range(PRIORITIES)]
        self._levels = 0  # bit n: somebody is ready at priority n
        self._timers: list[tuple[int, int, Tcb, int]] = []  # (cycle, order of setting, thread, its ticket then)
        self._set = 0

    # -- ready queues ------------------------------------------------------------------------------------------------

    def add(self, thread: Tcb) -> None:
        """The thread can run: to the end of its queue."""
        self._ready[thread.priority].append(thread)
        self._levels |= 1 << thread.priority

    def add_first(self, thread: Tcb) -> None:
        """The thread can run, and before the others of its priority: it was preempted, or a message came for it."""
        self._ready[thread.priority].appendleft(thread)
        self._levels |= 1 << thread.priority

    def remove(self, thread: Tcb) -> None:
        """The thread cannot run any more, whether or not it was in a queue."""
        queue = self._ready[thread.priority]
        if thread in queue:
            queue.remove(thread)
        if not queue:
            self._levels &= ~(1 << thread.priority)

    def pick(self) -> Tcb | None:
        """Take the next thread out of the queues; None if nobody is ready."""
        if not self._levels:
            return None
        level = self._levels.bit_length() - 1
        queue = self._ready[level]
        thread = queue.popleft()
        if not queue:
            self._levels &= ~(1 << level)
        return thread

    @property
    def highest(self) -> int:
        """The highest priority at which somebody is ready, -1 if nobody is."""
        return self._levels.bit_length() - 1

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

    def wake_at(self, cycle: int, thread: Tcb) -> None:
        """Wake the thread at `cycle`, unless it blocks anew or goes on before."""
        self._set += 1
        heappush(self._timers, (cycle, self._set, thread, thread.wake_ticket))

    def next_timer(self) -> int:
        """When the next timer expires."""
        timers = self._timers
        while timers and timers[0][2].wake_ticket != timers[0][3]:
            heappop(timers)  # stale: the thread went on before
        return timers[0][0] if timers else NEVER_ENDS

    def with_timers(self) -> list[Tcb]:
        """All that some timer will wake."""
        return [thread for _, _, thread, ticket in self._timers if thread.wake_ticket == ticket]

    def expire(self) -> Tcb:
        """Take out the thread whose timer is the next; the caller has seen that its time has come."""
        thread = heappop(self._timers)[2]
        assert thread.state in (ThreadState.WAITING, ThreadState.POLLING), f"{thread!r} has a timer"
        return thread
