# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is woken when: one queue of timers, the earliest first.

What lives here: the queue. What a timeout means is `ipc/ipc.py`; the main loop in `kernel.py` looks what is due.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, Protocol

from l4lab.kernel.objects.thread import NEVER_ENDS, ThreadState


class Sleeper(Protocol):
    """Whoever can have a timer: a thread, or a transfer of strings."""

    state: ThreadState
    wake_ticket: int


Timer = tuple[int, int, Any, int]  # (cycle, order of setting, whose, its ticket then)


class Timers:
    """All timers. Nobody takes one out when its thread goes on before: it is stale, and passed by."""

    def __init__(self) -> None:
        self._timers: list[Timer] = []
        self._set = 0  # timers so far: of two for the same cycle, the one that was set first expires first

    def wake_at(self, cycle: int, sleeper: Sleeper) -> None:
        """Wake the sleeper at `cycle`, unless it blocks anew or goes on before."""
        self._set += 1
        heappush(self._timers, (cycle, self._set, sleeper, sleeper.wake_ticket))

    def next(self) -> int:
        """When the next timer expires; NEVER_ENDS if there is none."""
        timers = self._timers
        while timers and not _waits(timers[0]):
            heappop(timers)  # stale
        return timers[0][0] if timers else NEVER_ENDS

    def expire(self) -> Any:
        """Take out the sleeper whose timer is the next; the caller has seen that its time has come."""
        return heappop(self._timers)[2]

    def sleepers(self) -> list[Sleeper]:
        """All that some timer will wake."""
        return [timer[2] for timer in self._timers if _waits(timer)]


def _waits(timer: Timer) -> bool:
    """Is the sleeper still in the wait for which the timer was set?"""
    _, _, sleeper, ticket = timer
    return sleeper.wake_ticket == ticket and sleeper.state in (ThreadState.WAITING, ThreadState.POLLING)
