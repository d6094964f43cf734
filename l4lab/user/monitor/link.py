# SPDX-License-Identifier: GPL-2.0-or-later
"""What joins two guests: the serial line between their second serial ports, and a page of memory that both have.

The line's other end is another monitor's as a rule, so its bytes travel by IPC. A monitor must not wait for another
monitor, which may be waiting for the first: it sends with a timeout of zero, and tries again a little later. Whoever
has nothing to do waits for messages, so that one of the next attempts gets through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from l4lab.abi.message import Message
from l4lab.abi.time import ZERO, period
from l4lab.devices.device import WAITING, Limits, Line, Now
from l4lab.devices.uart16550 import Uart16550

COM2: Final = 0x2F8
COM2_IRQ: Final = 3
GATHER_NS: Final = 20_000  # bytes are sent together with those of the next 20 us; so soon is tried again
LINGER: Final = period(10_000)  # how long the end of a guest waits for the other end to listen
MOST_BYTES: Final = 240  # in one message

LINK_LABEL: Final = 0x5E1  # u >= 2: which line of the receiver, number of bytes, and the bytes, four to a word

SHARED_PAGE: Final = 0xD000_0000  # guest-physical: where a guest finds the page that it shares with others

Carry = Callable[[bytes, int], bool]  # takes bytes to the other end, if it takes them within a time


class LinkedUart(Uart16550):
    """A serial port whose line leads to another guest."""

    saved: ClassVar[tuple[str, ...]] = (*Uart16550.saved, "outgoing")
    may_be: ClassVar[Limits] = {**Uart16550.may_be, "outgoing": WAITING}

    def __init__(self, now: Now, irq: Line, carry: Carry) -> None:
        super().__init__(now, irq, self._gather, COM2, "second uart")
        self.carry = carry
        self.outgoing = bytearray()
        self._send_at = 0

    def _gather(self, byte: int) -> None:
        if not self.outgoing:
            self._send_at = self.now() + GATHER_NS
        self.outgoing.append(byte)

    def deadline(self) -> int | None:
        timeout = super().deadline()
        if not self.outgoing:
            return timeout
        return self._send_at if timeout is None else min(timeout, self._send_at)

    def advance(self) -> None:
        super().advance()
        if self.outgoing and self.now() >= self._send_at:
            self._send(ZERO)
            self._send_at = self.now() + GATHER_NS

    def close(self) -> None:
        """The guest has ended: what it has sent before should still arrive, if the other end takes it in time."""
        while self.outgoing and self._send(LINGER):
            pass

    def _send(self, timeout: int) -> bool:
        sent = self.carry(bytes(self.outgoing[:MOST_BYTES]), timeout)
        if sent:
            del self.outgoing[:MOST_BYTES]
        return sent


def link_message(line: int, data: bytes) -> Message:
    """Bytes for one of the receiver's lines."""
    words = (int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))
    return Message(LINK_LABEL).append(line, len(data), *words)


def link_bytes(untyped: Sequence[int]) -> tuple[int, bytes]:
    """Which line, and the bytes; of a message that is not well formed, what there is of them."""
    line, length = (*untyped[:2], 0, 0)[:2]
    return line, b"".join(word.to_bytes(4, "little") for word in untyped[2:])[:length]
