# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 1A of the lab's BIOS, and waiting by INT 15: the count of ticks, the clock that runs on, its alarm.

A wait counts the clock's periodic interrupts, as BIOSes do since the PC/AT, 1024 a second; so it is exact to a
thousandth of a second. What has to go on while the guest runs is code in the ROM (`rom`): INT 08, INT 70, and the loop
that waits. Source: Ralf Brown's Interrupt List, INT 1A and INT 15, 83 and 86; Motorola MC146818A.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.devices.device import PortBus
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import CARRY, BiosCall
from l4lab.user.monitor.guest_memory import GuestMemory

INDEX, DATA = 0x70, 0x71
SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 7, 8, 9, 0x32  # the clock's registers
ALARM_SECONDS, ALARM_MINUTES, ALARM_HOURS = 1, 3, 5
RATE, CONTROL = 0x0A, 0x0B
USUAL_RATE: Final = 0x26  # 1024 interrupts a second
SET, PERIODIC, ALARM, BY_24_HOURS, SUMMER_TIME = 0x80, 0x40, 0x20, 0x02, 0x01  # bits of the control register
FIRST_MASK, SECOND_MASK, CASCADE, CLOCK_LINE = 0x21, 0xA1, 1 << 2, 1 << 0

BUSY: Final = 0x83  # error code: somebody waits already
ACTIVE: Final = 0x01


class BiosClock:
    """The clock, with its services."""

    def __init__(self, memory: GuestMemory, ports: PortBus) -> None:
        self.memory, self.ports = memory, ports

    def call(self, call: BiosCall) -> None:
        """INT 1A."""
        match call.ah:
            case 0x00:
                ticks = self.memory.word(rom.TICKS)
                call.succeed()
                call.cx, call.dx, call.al = ticks >> 16, ticks, self.memory.byte(rom.MIDNIGHT)
                self.memory.write(rom.MIDNIGHT, b"\0")
            case 0x01:
                self.memory.set_word(rom.TICKS, call.cx << 16 | call.dx)
                self.memory.write(rom.MIDNIGHT, b"\0")
                call.succeed()
            case 0x02:
                call.ch, call.cl, call.dh = map(self._read, (HOURS, MINUTES, SECONDS))
                call.dl = self._read(CONTROL) & SUMMER_TIME
                call.succeed()
            case 0x03:
                self._set(((HOURS, call.ch), (MINUTES, call.cl), (SECONDS, call.dh)), call.dl & SUMMER_TIME)
                call.succeed()
            case 0x04:
                call.ch, call.cl, call.dh, call.dl = map(self._read, (CENTURY, YEAR, MONTH, DAY))
                call.succeed()
            case 0x05:
                values = ((CENTURY, call.ch), (YEAR, call.cl), (MONTH, call.dh), (DAY, call.dl))
                self._set(values, self._read(CONTROL) & SUMMER_TIME)
                call.succeed()
            case 0x06:
                self._set_alarm(call)
            case 0x07:
                self._write(CONTROL, self._read(CONTROL) & ~ALARM)
                call.succeed()
            case _:
                call.refuse()

    def wait(self, call: BiosCall) -> None:
        """INT 15, 86: return when CX:DX microseconds are over."""
        if self.memory.byte(rom.WAIT_ACTIVE) & ACTIVE:
            call.fail(BUSY)
        elif call.cx or call.dx:
            self._begin_wait(call, 0x40, rom.WAIT_ACTIVE - 0x400)
            call.wait_at(rom.program().address("wait15"))
        else:
            call.flag(CARRY, False)

    def wait_for_event(self, call: BiosCall) -> None:
        """INT 15, 83: set bit 7 of the byte at ES:BX when CX:DX microseconds are over; or cancel that."""
        if call.al == 1:
            self._write(CONTROL, self._read(CONTROL) & ~PERIODIC)
            self.memory.write(rom.WAIT_ACTIVE, b"\0")
            call.flag(CARRY, False)
        elif self.memory.byte(rom.WAIT_ACTIVE) & ACTIVE:
            call.fail(BUSY)
        else:
            self._begin_wait(call, call.segments[ItemId.ES][0], call.bx)
            call.flag(CARRY, False)

    def _begin_wait(self, call: BiosCall, segment: int, offset: int) -> None:
        self.memory.set_word(rom.WAIT_FLAG_AT, segment << 16 | offset)
        self.memory.set_word(rom.WAIT_LEFT, call.cx << 16 | call.dx)
        self.memory.write(rom.WAIT_ACTIVE, bytes((ACTIVE,)))
        self._write(RATE, USUAL_RATE)
        self._write(CONTROL, self._read(CONTROL) | PERIODIC)
        self._open_line()

    def _set_alarm(self, call: BiosCall) -> None:
        if self._read(CONTROL) & ALARM:
            call.end(0)
            call.flag(CARRY, True)
            return
        for register, value in ((ALARM_HOURS, call.ch), (ALARM_MINUTES, call.cl), (ALARM_SECONDS, call.dh)):
            self._write(register, value)
        self._write(CONTROL, self._read(CONTROL) & ~SET | ALARM)
        self._open_line()
        call.succeed()

    def _open_line(self) -> None:
        """Let the clock's interrupt through both interrupt controllers."""
        for port, line in ((FIRST_MASK, CASCADE), (SECOND_MASK, CLOCK_LINE)):
            self.ports.write(port, 1, self.ports.read(port, 1) & ~line)

    def _set(self, values: tuple[tuple[int, int], ...], summer_time: int) -> None:
        """Write registers while the clock stands still. Its values are in BCD, as it keeps them."""
        control = self._read(CONTROL) & ~(SET | SUMMER_TIME)
        self._write(CONTROL, control | SET)
        for register, value in values:
            self._write(register, value)
        self._write(CONTROL, control | BY_24_HOURS | summer_time)

    def _read(self, register: int) -> int:
        self.ports.write(INDEX, 1, register)
        return self.ports.read(DATA, 1)

    def _write(self, register: int, value: int) -> None:
        self.ports.write(INDEX, 1, register)
        self.ports.write(DATA, 1, value)
