# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's serial port, for hosted programs: lines out, and what is typed in. (PC16550D data sheet.)

There is nothing to wait for when printing, the port takes all. What arrives is announced by an interrupt.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.ids import interrupt_id
from l4lab.abi.message import Message
from l4lab.abi.protocols import INTERRUPT
from l4lab.user.l4 import L4

COM1: Final = 0x3F8
CONSOLE_IRQ: Final = interrupt_id(4)
INTERRUPT_ENABLE, FIFO_CONTROL, MODEM_CONTROL, LINE_STATUS = 1, 2, 4, 5  # registers, from its first port


def say(l4: L4, line: str) -> None:
    """Print a line."""
    for byte in line.encode() + b"\n":
        l4.port_out(COM1, 1, byte)


def listen(l4: L4) -> None:
    """Have received bytes announced to this thread, by messages of `CONSOLE_IRQ`."""
    l4.thread_control(CONSOLE_IRQ, CONSOLE_IRQ, pager=l4.my_id)
    l4.port_out(COM1 + FIFO_CONTROL, 1, 0x07)  # on, both cleared, announce each byte
    l4.port_out(COM1 + MODEM_CONTROL, 1, 0x0B)  # DTR, RTS, and OUT2, which lets interrupts through
    l4.port_out(COM1 + INTERRUPT_ENABLE, 1, 0x01)


def stop_listening(l4: L4) -> None:
    """The console's interrupt is nobody's any more."""
    l4.thread_control(CONSOLE_IRQ, CONSOLE_IRQ, pager=CONSOLE_IRQ)


def typed(l4: L4) -> bytes:
    """What has arrived since the last time; the next interrupt may come."""
    data = bytearray()
    while l4.port_in(COM1 + LINE_STATUS, 1) & 1:
        data.append(l4.port_in(COM1, 1))
    l4.send(CONSOLE_IRQ, Message(INTERRUPT))
    return bytes(data)
