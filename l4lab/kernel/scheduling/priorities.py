# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own scheduler: 256 priorities, and within each the threads run in turn.

What lives here: the ready queues. What makes a thread ready or takes the processor from it is `processor/dispatch.py`.
(X.2 manual, section Schedule; reference section 7.)
"""

from __future__ import annotations

from collections import deque
from typing import Final

from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.parts import Scheduler, Why

PRIORITIES: Final = 256
HANDED: Final = Why.HANDED
PREEMPTED: Final = Why.PREEMPTED


class Priorities(Scheduler):
    """The highest priority first; among equals, who is in front."""

    def __init__(self) -> None:
        self._queues: list[deque[Tcb]] = [deque() for _ in range(PRIORITIES)]
        self._levels = 0  # bit n: somebody is ready at priority n
        self._highest = -1  # the highest priority at which somebody is ready; -1 if nobody is

    def ready(self, thread: Tcb, why: Why) -> None:
        """Who was preempted, or was sent a message, goes to the front of the queue, everybody else to the end."""
        queue = self._queues[thread.priority]
        if why is PREEMPTED or why is HANDED:
            queue.appendleft(thread)
        else:
            queue.append(thread)
        self._set_levels(self._levels | 1 << thread.priority)

    def gone(self, thread: Tcb) -> None:
        """Take the thread out of its queue, if it is in it."""
        queue = self._queues[thread.priority]
        if thread in queue:
            queue.remove(thread)
            self._left(thread.priority)

    def next(self) -> Tcb | None:
        """The first in the highest queue."""
        level = self._highest
        if level < 0:
            return None
        thread = self._queues[level].popleft()
        self._left(level)
        return thread

    def preempts(self, thread: Tcb) -> bool:
        """Only a higher priority goes before; an equal one waits until the slice ends."""
        return self._highest > thread.level

    def waiting(self) -> list[Tcb]:
        """All queues, from the highest on."""
        return [thread for queue in reversed(self._queues) for thread in queue]

    def _left(self, level: int) -> None:
        """Somebody has left this queue: is it empty now?"""
        if not self._queues[level]:
            self._set_levels(self._levels & ~(1 << level))

    def _set_levels(self, levels: int) -> None:
        self._levels = levels
        self._highest = levels.bit_length() - 1
