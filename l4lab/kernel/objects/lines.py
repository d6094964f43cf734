# SPDX-License-Identifier: GPL-2.0-or-later
"""The interrupt lines, as the kernel keeps them: which have a thread and a handler, and which are masked.

What lives here: the record. What an interrupt does is `devices/interrupts.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from l4lab.abi.ids import ThreadId

if TYPE_CHECKING:
    from l4lab.kernel.objects.thread import Tcb

CASCADE: Final = 2  # where the second controller is connected to the first


class InterruptLines:
    """Written by `devices/interrupts.py` only."""

    def __init__(self) -> None:
        self.threads: dict[int, Tcb] = {}  # line -> its thread, while a handler is associated
        self.handlers: dict[int, ThreadId] = {}
        self.masked = 0xFFFF & ~(1 << CASCADE)

    def listens(self, number: int) -> bool:
        """Would an interrupt on this line be delivered now?"""
        return number in self.handlers and not self.masked >> number & 1
