# SPDX-License-Identifier: GPL-2.0-or-later
"""System control port A of the PS/2 and all later PCs: the fast ways to open A20 and to reset the CPU.

Does not live here: the keyboard controller's slow way to do the same (`i8042.py`); who owns both combines them.
"""

from __future__ import annotations

from collections.abc import Callable

from l4lab.devices.device import Device, Line, no_line

RESET, A20 = 0x01, 0x02


class Port92(Device):
    """Port 92: fast A20 gate and fast reset."""

    name = "port92"
    ports = (range(0x92, 0x93),)
    saved = ("value",)

    def __init__(self, reset: Callable[[], None], a20: Line = no_line) -> None:
        self.reset, self.a20 = reset, a20
        self.value = A20  # open, as a BIOS leaves it

    def read(self, port: int, size: int) -> int:
        return self.value

    def write(self, port: int, size: int, value: int) -> None:
        before, self.value = self.value, value & (RESET | A20)
        self.a20(bool(value & A20))
        if value & ~before & RESET:  # the pulse is made by the change from 0 to 1
            self.reset()

    def set_a20(self, level: bool) -> None:
        """The gate was set by other means: the port shows it."""
        self.value = self.value & ~A20 | (A20 if level else 0)
