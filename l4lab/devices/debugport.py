# SPDX-License-Identifier: GPL-2.0-or-later
"""Port 0xE9, by which a guest says something before it has any driver. Not a device of real PCs; Bochs invented it.

The BIOSes that were written for emulators write to port 0x402 in the same manner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from l4lab.devices.device import Device, Limits

KEPT = 4096  # bytes at least


class DebugPort(Device):
    """Ports E9 and 402: each byte written is shown, and the latest are kept."""

    name = "debugport"
    ports = (range(0xE9, 0xEA), range(0x402, 0x403))

    saved = ("said",)
    may_be: ClassVar[Limits] = {"said": range(2 * KEPT + 1)}

    def __init__(self, transmit: Callable[[int], None]) -> None:
        self.transmit = transmit
        self.said = bytearray()

    def read(self, port: int, size: int) -> int:
        return 0xE9  # by which a program tells that the port is there

    def write(self, port: int, size: int, value: int) -> None:
        self.transmit(value)
        self.said.append(value)
        if len(self.said) > 2 * KEPT:
            del self.said[:-KEPT]
