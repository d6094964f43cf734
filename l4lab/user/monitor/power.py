# SPDX-License-Identifier: GPL-2.0-or-later
"""The ports by which a guest without ACPI tables turns its machine off or resets it."""

from __future__ import annotations

from collections.abc import Callable

from l4lab.devices.device import Device

POWER_CONTROL, RESET_CONTROL = 0x604, 0xCF9
SLEEP_ENABLE = 1 << 13  # in the ACPI register; the sleep type beside it is 0, which is "off"
RESET_CPU = 1 << 2


class Power(Device):
    """Ports 604 (ACPI power control, where common emulators have it) and CF9 (reset control of PC chipsets)."""

    name = "power"
    ports = (range(POWER_CONTROL, POWER_CONTROL + 2), range(RESET_CONTROL, RESET_CONTROL + 1))
    widest = 2
    saved = ("control",)

    def __init__(self, off: Callable[[], None], reset: Callable[[], None]) -> None:
        self.off, self.reset = off, reset
        self.control = 0

    def read(self, port: int, size: int) -> int:
        return self.control if port == RESET_CONTROL else 0

    def write(self, port: int, size: int, value: int) -> None:
        if port == RESET_CONTROL:
            before, self.control = self.control, value & 0xFF
            if value & ~before & RESET_CPU:  # the change from 0 to 1 resets
                self.reset()
        elif port == POWER_CONTROL and value & SLEEP_ENABLE:
            self.off()
