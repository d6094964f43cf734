# SPDX-License-Identifier: GPL-2.0-or-later
"""Instants of a run, and input, which comes from outside at one of them.

An instant is the cycle, how many kernel entries there were so far, and how many events since the last of them. Several
events of one entry are several instants: *the state at event N* is the state after what event N reports, and before
what event N + 1 reports. Where a run can stop there is never a kernel entry half done: it stops between two turns of
the main loop, before what devices and timers do at that cycle.

A run is a function of its plan and its input, so an input names its instant, and is applied in one place: in
`Kernel.run`, at the first turn at which cycle and entries have come, after all that devices and timers do at that cycle
and when it is known who would run. Where and why the run stopped before, and how often, makes no difference.
"""

from __future__ import annotations

from bisect import insort
from typing import Final, NamedTuple

SERIAL: Final = "serial"  # bytes that arrive at the serial port
KEYBOARD: Final = "keyboard"  # scan codes of set 1
BUTTON: Final = "button"  # the machine's button was pressed; no data
DEVICES: Final = (SERIAL, KEYBOARD, BUTTON)


class Instant(NamedTuple):
    """An address in time. Instants of one run are ordered as they came."""

    cycle: int
    entry: int = 0  # kernel entries before
    event: int = 0  # events since the last of them


class Input(NamedTuple):
    """What comes into the machine, and when. Its place among the events of that cycle is behind all others."""

    at: Instant
    device: str  # one of DEVICES
    data: bytes


class InputQueue:
    """Input that has not come yet, by instant; of one instant, in the order in which it was given."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, int, Input]] = []
        self._given = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, given: Input) -> None:
        """Have this come at its instant, or at once if that is over."""
        self._given += 1
        insort(self._waiting, (given.at.cycle, given.at.entry, self._given, given))

    def next_cycle(self, now: int) -> int:
        """When to look for input again, if none is due now; for ever away if nothing waits."""
        return max(self._waiting[0][0], now + 1) if self._waiting else 1 << 62

    def is_due(self, now: int, entries: int) -> bool:
        """Has the instant of something come?"""
        return bool(self._waiting) and self._waiting[0][:2] <= (now, entries)

    def take(self, now: int, entries: int) -> list[Input]:
        """All that is due."""
        due = []
        while self.is_due(now, entries):
            due.append(self._waiting.pop(0)[3])
        return due
