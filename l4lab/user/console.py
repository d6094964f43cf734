# SPDX-License-Identifier: GPL-2.0-or-later
"""Printing for hosted programs: bytes out of the machine's serial port. There is nothing to wait for, it takes all."""

from __future__ import annotations

from typing import Final

from l4lab.user.l4 import L4

COM1: Final = 0x3F8


def say(l4: L4, line: str) -> None:
    """Print a line."""
    for byte in line.encode() + b"\n":
        l4.port_out(COM1, 1, byte)
