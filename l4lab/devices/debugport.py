# SPDX-License-Identifier: GPL-2.0-or-later
"""Port 0xE9, by which a guest says something before it has any driver. Not a device of real PCs; Bochs invented it."""

from __future__ import annotations

from collections.abc import Callable

from l4lab.devices.device import Device


class DebugPort(Device):
    """Port E9: each byte written is shown."""

    name = "debugport"
    ports = (range(0xE9, 0xEA),)

    def __init__(self, transmit: Callable[[int], None]) -> None:
        self.transmit = transmit

    def read(self, port: int, size: int) -> int:
        return 0xE9  # by which a program tells that the port is there

    def write(self, port: int, size: int, value: int) -> None:
        self.transmit(value)
