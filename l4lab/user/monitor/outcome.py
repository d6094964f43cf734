# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest ended, and where. Data only; who decides that it ended is the monitor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class End(Enum):
    """The ways in which a guest ends."""

    POWERED_OFF = "powered off"
    HALTED = "halted with interrupts off"
    RESET = "reset"
    TRIPLE_FAULT = "triple fault"
    STOPPED = "stopped by the monitor"
    PART_FAILED = "stopped, because a part of its monitor failed"

    @property
    def is_clean(self) -> bool:
        """Did the guest end of its own will?"""
        return self in (End.POWERED_OFF, End.HALTED, End.RESET)

    @property
    def is_reset(self) -> bool:
        """Would a PC start again?"""
        return self in (End.RESET, End.TRIPLE_FAULT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a guest ended."""

    end: End
    why: str  # a sentence
    registers: str = ""  # the last fault with its registers, in lines

    def __str__(self) -> str:
        return f"{self.end.value}: {self.why}"
