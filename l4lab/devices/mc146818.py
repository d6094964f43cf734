# SPDX-License-Identifier: GPL-2.0-or-later
"""The MC146818 real-time clock of a PC, and the CMOS memory behind the same two ports.

Lives here: time of day as a fixed epoch plus virtual time, alarm, periodic and update interrupts, and the bytes in
which a BIOS would note the size of memory. Does not live here: the wall clock. Two equal runs read equal times.
Source: Motorola MC146818A data sheet; memory-size and century bytes as in every PC BIOS since the AT.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import ClassVar

from l4lab.devices.device import ANY_NUMBER, NS_PER_SECOND, TIME, Device, Limits, Line, Now

EPOCH = 1_704_067_200  # 2024-01-01 00:00:00 UTC, in seconds since 1970
FIRST, LAST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999: what a calendar can show
CRYSTAL = 32_768
UPDATE_NS = 8 * NS_PER_SECOND // CRYSTAL  # UIP is set so long before an update

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
ALARM_SECONDS, ALARM_MINUTES, ALARM_HOURS = 1, 3, 5
A, B, C, D, CENTURY = 10, 11, 12, 13, 0x32
TIME_BYTES = frozenset((SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY))

A_UIP = 0x80
B_SET, B_BINARY, B_24H, B_UPDATE = 0x80, 0x04, 0x02, 0x10
PERIODIC, ALARM, UPDATE = 0x40, 0x20, 0x10  # enables in register B, flags in register C
C_IRQ = 0x80
DAY_SECONDS = 86_400


class Mc146818(Device):
    """The real-time clock with CMOS memory."""

    name = "rtc"
    ports = (range(0x70, 0x72),)
    saved = ("cmos", "index", "base", "origin", "seen_second", "seen_period", "level")
    may_be: ClassVar[Limits] = {
        "index": range(128), "base": range(-(1 << 40), 1 << 40), "origin": ANY_NUMBER, "seen_second": ANY_NUMBER,
        "seen_period": TIME,
    }  # fmt: skip

    def __init__(self, now: Now, irq: Line, ram_bytes: int, epoch: int = EPOCH) -> None:
        self.now, self.irq = now, irq
        self.cmos = bytearray(128)
        self.index = 0
        self.base = epoch  # what the clock showed ...
        self.origin = 0  # ... at this time; it is also where seconds begin
        self.cmos[A], self.cmos[B], self.cmos[D] = 0x26, B_24H, 0x80  # D: the battery is good
        self.seen_second = 0  # seconds since `origin`, up to which flags in C are true
        self.seen_period = 0
        self.level = False
        self._note_memory(ram_bytes)

    def _note_memory(self, ram_bytes: int) -> None:
        """Sizes as a BIOS notes them: KiB below 1 MiB, KiB above it twice, 64 KiB units above 16 MiB."""
        above_1m = min(max(ram_bytes - (1 << 20) >> 10, 0), 0xFFFF)
        above_16m = min(max(ram_bytes - (16 << 20) >> 16, 0), 0xFFFF)
        for place, value in ((0x15, 640), (0x17, above_1m), (0x30, above_1m), (0x34, above_16m)):
            self.cmos[place : place + 2] = value.to_bytes(2, "little")

    # Time

    def _runs(self) -> bool:
        return not self.cmos[B] & B_SET and self.cmos[A] & 0x60 != 0x60  # 11x holds the divider in reset

    def _second(self) -> int:
        """Whole seconds since `origin`."""
        return (self.now() - self.origin) // NS_PER_SECOND

    def _period(self) -> int | None:
        """Length of the periodic interrupt in crystal ticks; rates 1 and 2 are those of 8 and 9."""
        rate = self.cmos[A] & 0x0F
        return None if rate == 0 else 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _ticks(self) -> int:
        return self.now() * CRYSTAL // NS_PER_SECOND

    def _encode(self, value: int) -> int:
        return value if self.cmos[B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, byte: int) -> int:
        return byte if self.cmos[B] & B_BINARY else (byte >> 4) * 10 + (byte & 0xF)

    def _decode_hour(self, byte: int) -> int:
        if self.cmos[B] & B_24H:
            return self._decode(byte)
        return self._decode(byte & 0x7F) % 12 + (12 if byte & 0x80 else 0)

    def _show(self) -> None:
        """Bring the time registers up to date. Their format is that of register B now, not when they were set."""
        shown = datetime.fromtimestamp(min(max(self.base + self._second(), FIRST), LAST), UTC)
        hour = self._encode(shown.hour)
        if not self.cmos[B] & B_24H:
            hour = self._encode(shown.hour % 12 or 12) | (0x80 if shown.hour >= 12 else 0)
        self.cmos[HOURS] = hour
        for place, value in (
            (SECONDS, shown.second), (MINUTES, shown.minute), (WEEKDAY, shown.isoweekday() % 7 + 1),
            (DAY, shown.day), (MONTH, shown.month), (YEAR, shown.year % 100), (CENTURY, shown.year // 100),
        ):  # fmt: skip
            self.cmos[place] = self._encode(value)

    def _set(self) -> None:
        """Take over the time registers; where within its second the clock is stays as it was."""
        field = {place: self._decode(self.cmos[place]) for place in TIME_BYTES}
        year = min(max(field[CENTURY] * 100 + field[YEAR], 2), 9998)
        month = min(max(field[MONTH], 1), 12)
        midnight = datetime(year, month, 1, tzinfo=UTC) + timedelta(days=field[DAY] - 1)
        hour = self._decode_hour(self.cmos[HOURS])
        shown = midnight + timedelta(hours=hour, minutes=field[MINUTES], seconds=field[SECONDS])
        self.base = int(shown.timestamp()) - self._second()

    def _seconds_to_alarm(self, time_of_day: int) -> int | None:
        """Seconds from a time of day to the next one that the alarm matches; 0xC0 and above match anything."""
        first_minute, first_second = divmod(time_of_day + 1, 60)
        hour, minute, second = (self.cmos[place] for place in (ALARM_HOURS, ALARM_MINUTES, ALARM_SECONDS))
        wanted_hour = None if hour >= 0xC0 else self._decode_hour(hour)
        wanted_minute = None if minute >= 0xC0 else self._decode(minute)
        wanted_second = None if second >= 0xC0 else self._decode(second)
        if wanted_second is not None and wanted_second > 59:
            return None
        for distance in range(DAY_SECONDS // 60 + 1):
            hour, minute = divmod((first_minute + distance) % (DAY_SECONDS // 60), 60)
            if wanted_hour in (None, hour) and wanted_minute in (None, minute):
                earliest = first_second if distance == 0 else 0
                found = earliest if wanted_second is None else wanted_second
                if found >= earliest:
                    return (first_minute + distance) * 60 + found - time_of_day
        return None

    def _alarm_after(self, second: int) -> int | None:
        """The first second since `origin`, later than the given one, at which the alarm matches."""
        distance = self._seconds_to_alarm((self.base + second) % DAY_SECONDS)
        return None if distance is None else second + distance

    # Interrupts

    def advance(self) -> None:
        """Set the flags of what happened since the last time."""
        if self._runs() and (second := self._second()) > self.seen_second:
            self.cmos[C] |= UPDATE
            alarm = self._alarm_after(self.seen_second)
            if alarm is not None and alarm <= second:
                self.cmos[C] |= ALARM
            self.seen_second = second
        period = self._period()
        ticks = self._ticks()
        if period is not None and ticks // period > self.seen_period // period:
            self.cmos[C] |= PERIODIC
        self.seen_period = ticks
        self._update()

    def _update(self) -> None:
        level = bool(self.cmos[B] & self.cmos[C] & (PERIODIC | ALARM | UPDATE))
        self.cmos[C] = self.cmos[C] & ~C_IRQ | (C_IRQ if level else 0)
        if level != self.level:
            self.level = level
            self.irq(level)

    def deadline(self) -> int | None:
        """The next interrupt. A flag that is set already changes nothing until register C is read."""
        awaited = self.cmos[B] & ~self.cmos[C]
        due: list[int] = []
        period = self._period()
        if awaited & PERIODIC and period is not None:
            tick = (self.seen_period // period + 1) * period
            due.append(-(-tick * NS_PER_SECOND // CRYSTAL))
        if self._runs():
            if awaited & UPDATE:
                due.append(self.origin + (self.seen_second + 1) * NS_PER_SECOND)
            if awaited & ALARM and (second := self._alarm_after(self.seen_second)) is not None:
                due.append(self.origin + second * NS_PER_SECOND)
        return min(due, default=None)

    # Ports

    def read(self, port: int, size: int) -> int:
        if port == 0x70:
            return 0xFF  # write-only
        self.advance()
        if self.index in TIME_BYTES and self._runs():
            self._show()
        value = self.cmos[self.index]
        if self.index == A and self._runs():
            within = (self.now() - self.origin) % NS_PER_SECOND
            value |= A_UIP if within >= NS_PER_SECOND - UPDATE_NS else 0
        elif self.index == C:
            self.cmos[C] = 0
            self._update()
        return value

    def write(self, port: int, size: int, value: int) -> None:
        if port == 0x70:
            self.index = value & 0x7F  # bit 7 masks NMI, of which there is none
            return
        self.advance()
        match self.index:
            case 10:  # A
                self._write_a(value)
            case 11:  # B
                self._write_b(value)
            case 12 | 13:  # C and D are for reading
                pass
            case place if place in TIME_BYTES and self._runs():
                self._show()
                self.cmos[place] = value
                self._set()
            case place:
                self.cmos[place] = value
        self._update()

    def _write_a(self, value: int) -> None:
        held_before = self.cmos[A] & 0x60 == 0x60
        held = value & 0x60 == 0x60
        if held and self._runs():
            self._show()
        self.cmos[A] = value & ~A_UIP
        if held_before and not held:
            # "the first update cycle begins one-half second later"
            self.origin = self.now() - NS_PER_SECOND // 2
            self.seen_second = 0
            self._set()

    def _write_b(self, value: int) -> None:
        ran = self._runs()
        if value & B_SET:
            if ran:
                self._show()
            value &= ~B_UPDATE  # setting the clock switches its update interrupt off
        self.cmos[B] = value
        if not ran and self._runs():
            self._set()
            self.seen_second = self._second()
