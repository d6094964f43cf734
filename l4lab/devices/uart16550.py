# SPDX-License-Identifier: GPL-2.0-or-later
"""A 16550A serial port as PCs have it.

Lives here: registers, FIFOs, interrupts, loopback. Does not live here: a line. Bytes go to the callable `transmit` at
once, however long a real line would take; bytes given to `receive` wait, in any number, until the program takes them.
Source: National Semiconductor PC16550D data sheet; of the PC's wiring, see `_update`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from l4lab.devices.device import NS_PER_SECOND, TIME, WAITING, Device, Limits, Line, Now, OrNone

BASE_RATE = 115_200  # bits per second at divisor 1
FIFO_SIZE = 16
TRIGGERS = (1, 4, 8, 14)  # FIFO levels that interrupt, by FCR bits 7..6
TIMEOUT_CHARACTERS = 4  # bytes below the trigger level are announced after so many characters' time

IER_RECEIVED, IER_EMPTY, IER_LINE, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_MODEM, IIR_NONE, IIR_EMPTY, IIR_RECEIVED, IIR_LINE, IIR_TIMEOUT = 0x00, 0x01, 0x02, 0x04, 0x06, 0x0C
IIR_FIFOS = 0xC0  # set while FIFOs are on: by this a 16550A is told from a 16450
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 0x01, 0x02, 0x04
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_READY, LSR_OVERRUN, LSR_EMPTY, LSR_IDLE = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD  # somebody listens at the other end, always


class Uart16550(Device):
    """A serial port with FIFOs (16550A)."""

    saved: ClassVar[tuple[str, ...]] = (
        "ier", "fcr", "lcr", "mcr", "scr", "divisor", "overrun", "empty_pending", "timeout_pending", "timeout_at",
        "modem_delta", "fifo", "holding", "waiting",
    )  # fmt: skip
    may_be: ClassVar[Limits] = {
        "divisor": range(0x10000), "timeout_at": OrNone(TIME), "fifo": range(FIFO_SIZE + 1), "waiting": WAITING,
    }  # fmt: skip

    def __init__(
        self, now: Now, irq: Line, transmit: Callable[[int], None], base: int = 0x3F8, name: str = "uart"
    ) -> None:
        self.name = name
        self.now, self.irq, self.transmit = now, irq, transmit
        self.ports = (range(base, base + 8),)
        self.ier = self.fcr = self.lcr = self.mcr = self.scr = 0
        self.divisor = 12  # 9600 bits per second
        self.overrun = False
        self.empty_pending = False  # the transmitter became empty, and IIR has not said so yet
        self.timeout_pending = False
        self.timeout_at: int | None = None
        self.modem_delta = 0  # MSR bits 3..0: what changed since it was read
        self.fifo = bytearray()  # received; at most one byte while FIFOs are off
        self.polls = 0  # how often somebody has looked for a byte, and there was none
        self.holding = 0  # the last byte received without FIFOs; reading it again returns it again
        self.waiting = bytearray()  # received from the host, not yet in the FIFO
        self._readers = (
            self._read_data, self._read_ier, self._read_iir, lambda: self.lcr, lambda: self.mcr,
            self._read_lsr, self._read_msr, lambda: self.scr,
        )  # fmt: skip
        self._writers = (
            self._write_data, self._write_ier, self._write_fcr, self._write_lcr, self._write_mcr,
            self._ignore, self._ignore, self._write_scr,
        )  # fmt: skip

    def receive(self, data: bytes) -> None:
        """Bytes from the other end. They are never lost, unless the program clears the FIFO they are in."""
        self.advance()
        self.waiting += data
        self._feed()

    def read(self, port: int, size: int) -> int:
        if self.timeout_at is not None:
            self.advance()
        return self._readers[port & 7]()

    def write(self, port: int, size: int, value: int) -> None:
        if self.timeout_at is not None:
            self.advance()
        self._writers[port & 7](value)

    def deadline(self) -> int | None:
        """When bytes below the trigger level must be announced."""
        return self.timeout_at if self.ier & IER_RECEIVED else None

    def advance(self) -> None:
        if self.timeout_at is not None and self.now() >= self.timeout_at:
            self.timeout_at, self.timeout_pending = None, bool(self.fifo)
            self._update()

    # The receiver

    def _feed(self) -> None:
        """Move waiting bytes into the FIFO; in loopback the line is disconnected and they wait."""
        room = (FIFO_SIZE if self.fcr & FCR_ENABLE else 1) - len(self.fifo)
        if self.waiting and room > 0 and not self.mcr & MCR_LOOP:
            self.fifo += self.waiting[:room]
            del self.waiting[:room]
            self._hold()
            self._restart_timeout()
        self._update()

    def _loop_back(self, byte: int) -> None:
        """A byte from our own transmitter; unlike the host, that one does not wait for room."""
        if self.fcr & FCR_ENABLE:
            if len(self.fifo) < FIFO_SIZE:
                self.fifo.append(byte)
            else:
                self.overrun = True
        else:
            self.overrun = self.overrun or bool(self.fifo)
            self.fifo[:] = bytes((byte,))  # without FIFOs the new byte destroys the old one
        self._hold()
        self._restart_timeout()

    def _hold(self) -> None:
        if not self.fcr & FCR_ENABLE:
            self.holding = self.fifo[0]

    def _restart_timeout(self) -> None:
        if self.fcr & FCR_ENABLE:
            data, stop, parity = 5 + (self.lcr & 3), 1 + (self.lcr >> 2 & 1), self.lcr >> 3 & 1
            bits = TIMEOUT_CHARACTERS * (1 + data + parity + stop)
            self.timeout_at = self.now() + bits * NS_PER_SECOND * (self.divisor or 1) // BASE_RATE

    # Interrupts

    def _identity(self) -> int:
        """The most urgent enabled interrupt, in the order of the data sheet's table of priorities."""
        if self.ier & IER_LINE and self.overrun:
            return IIR_LINE
        if self.ier & IER_RECEIVED:
            if self.timeout_pending:
                return IIR_TIMEOUT
            if len(self.fifo) >= (TRIGGERS[self.fcr >> 6] if self.fcr & FCR_ENABLE else 1):
                return IIR_RECEIVED
        if self.ier & IER_EMPTY and self.empty_pending:
            return IIR_EMPTY
        if self.ier & IER_MODEM and self.modem_delta:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        # A PC leads the interrupt through a gate that OUT2 opens. Emulated PCs, QEMU's among them, have it open always,
        # and xv6 and other small systems that grew up there never touch OUT2: with the gate, what one types to them
        # would be lost without a word. Only loopback closes it here, which takes the OUT2 pin away: a driver that tests
        # the chip looks at its registers.
        self.irq(not self.mcr & MCR_LOOP and self._identity() != IIR_NONE)

    # Registers, by offset

    def _read_data(self) -> int:
        if self.lcr & LCR_DLAB:
            return self.divisor & 0xFF
        empty = 0 if self.fcr & FCR_ENABLE else self.holding
        byte = self.fifo.pop(0) if self.fifo else empty
        self.timeout_pending = False
        self.timeout_at = None
        if self.fifo:
            self._restart_timeout()
        else:
            self._update()  # the line falls before the next byte raises it, as it does while that is on its way
        self._feed()
        return byte

    def _write_data(self, value: int) -> None:
        if self.lcr & LCR_DLAB:
            self.divisor = self.divisor & 0xFF00 | value
            return
        # Two steps, so that the line falls and rises: the controller needs an edge for each time it becomes empty.
        self.empty_pending = False
        self._update()
        if self.mcr & MCR_LOOP:
            self._loop_back(value)
        else:
            self.transmit(value)
        self.empty_pending = True
        self._update()

    def _read_ier(self) -> int:
        return self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier

    def _write_ier(self, value: int) -> None:
        if self.lcr & LCR_DLAB:
            self.divisor = value << 8 | self.divisor & 0xFF
            return
        if (self.ier ^ value) & IER_EMPTY:
            # Switching it on interrupts at once if the transmitter is empty, as ours always is. Not in the data sheet,
            # but chips do it and drivers test for it.
            self.empty_pending = bool(value & IER_EMPTY)
        self.ier = value & 0x0F
        self._update()

    def _read_iir(self) -> int:
        identity = self._identity()
        if identity == IIR_EMPTY:
            self.empty_pending = False
            self._update()
        return identity | (IIR_FIFOS if self.fcr & FCR_ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        if (value ^ self.fcr) & FCR_ENABLE:
            value |= FCR_CLEAR_RX | FCR_CLEAR_TX
        if value & FCR_CLEAR_RX:
            self.fifo.clear()
            self.timeout_pending, self.timeout_at = False, None
        if value & FCR_CLEAR_TX:
            self.empty_pending = True
        self.fcr = value & 0xC9
        self._feed()

    def _write_lcr(self, value: int) -> None:
        self.lcr = value

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self.mcr = value & 0x1F
        after = self._modem_lines()
        changed = (before ^ after) & ~MSR_RI | before & ~after & MSR_RI  # of RI only the end is noted
        self.modem_delta |= changed >> 4
        self._feed()

    def _read_lsr(self) -> int:
        lsr = LSR_EMPTY | LSR_IDLE
        if self.fifo:
            lsr |= LSR_READY
        else:
            self.polls += 1
        if self.overrun:
            lsr |= LSR_OVERRUN
            self.overrun = False
            self._update()
        return lsr

    def _modem_lines(self) -> int:
        """MSR bits 7..4. In loopback the outputs are wired to the inputs, each to its counterpart."""
        if not self.mcr & MCR_LOOP:
            return CONNECTED
        pairs = ((MCR_DTR, MSR_DSR), (MCR_RTS, MSR_CTS), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(msr for mcr, msr in pairs if self.mcr & mcr)

    def _read_msr(self) -> int:
        msr = self._modem_lines() | self.modem_delta
        if self.modem_delta:
            self.modem_delta = 0
            self._update()
        return msr

    def _write_scr(self, value: int) -> None:
        self.scr = value

    def _ignore(self, value: int) -> None:
        """LSR and MSR are for reading."""
