# SPDX-License-Identifier: GPL-2.0-or-later
"""The real-time clock against QEMU's.

Deliberate differences, which the common scripts mask: the periodic flag of register C is set here also while its
interrupt is off, and no other flag is set while the clock is stopped, both as the data sheet says. (QEMU's timers for
updates and alarms do not notice that it was stopped, nor, afterwards, that seconds begin at another time.) With hours
of 1 to 12, QEMU takes the PM bit of the time for that of the alarm, and reads the bit itself as part of the number, so
that at 11 PM an alarm of 7 AM rings, and at 12 AM one of 4 PM: the scripts set neither.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.devices.mc146818 import Mc146818

from .qemu import RTC_BASE, In, Out, Script, Wait, run, times

SHIFT = 10  # about a million instructions a second
EPOCH = int(datetime.fromisoformat(RTC_BASE).replace(tzinfo=UTC).timestamp())
WRONG_IN_QEMU = (0x07, 0x84)  # alarm hours, in both formats
TIME_PLACES = (0, 2, 4, 6, 7, 8, 9, 0x32)


class Bench:
    """A clock with a clock to turn."""

    def __init__(self, epoch: int = EPOCH, ram_bytes: int = 64 << 20) -> None:
        self.time = 0
        self.level = False
        self.rtc = Mc146818(lambda: self.time, self.irq, ram_bytes, epoch)

    def irq(self, level: bool) -> None:
        self.level = level

    def get(self, place: int) -> int:
        self.rtc.write(0x70, 1, place)
        return self.rtc.read(0x71, 1)

    def put(self, place: int, value: int) -> None:
        self.rtc.write(0x70, 1, place)
        self.rtc.write(0x71, 1, value)


def get(place: int) -> Script:
    return [Out(0x70, place), In(0x71)]


def put(place: int, value: int) -> Script:
    return [Out(0x70, place), Out(0x71, value)]


def random_script(rng: random.Random, length: int, *, stops: bool) -> Script:
    """Reads the time in all formats, waits for alarms; if wanted, stops the clock and sets it."""
    mode = rng.choice((0x02, 0x06, 0x00, 0x04))

    def number(low: int, high: int) -> int:
        value = rng.randint(low, high)
        return value if mode & 4 else value // 10 << 4 | value % 10

    def hour() -> int:
        return number(0, 23) if mode & 2 else number(1, 12) | rng.choice((0, 0x80))

    def alarm_hour() -> int:
        drawn = hour()
        return 0xC0 if not mode & 2 and drawn in WRONG_IN_QEMU else drawn

    script = put(11, mode) + put(10, 0x26)
    while len(script) < length:
        match rng.choice((0, 1, 2, 3, 4, 5, 6, 7) if stops else (0, 1, 2, 3, 5, 7, 8)):
            case 0 | 1:
                script.append(Wait(rng.choice((100, 200_000, 976_000, 1_500_000))))
            case 2 | 3:
                for place in (10, *TIME_PLACES):
                    script += get(place)
            case 4:
                script += put(11, 0x80 | mode)
                for place, value in ((0, number(0, 59)), (2, number(0, 59)), (4, hour()), (7, number(1, 28))):
                    script += put(place, value)
                script += put(8, number(1, 12)) + put(9, number(0, 99)) + [Wait(rng.choice((10, 1_200_000)))]
                script += get(0) + get(4) + put(11, mode | rng.choice((0, 0x10, 0x20)))
            case 5:
                script += put(1, rng.choice((0xC0, number(0, 59)))) + put(3, rng.choice((0xC0, number(0, 59))))
                script += put(5, rng.choice((0xC0, alarm_hour()))) + get(1) + get(3) + get(5)
            case 6:
                script += [*put(10, 0x76), Wait(300_000), *get(0), *put(10, 0x26)]
            case 8:
                script += put(11, mode | rng.choice((0, 0x10, 0x20, 0x30)))
            case _:
                script += get(12) + get(13) + get(11)
    return script


@pytest.mark.parametrize("seed", range(6))
def test_reads_are_those_of_qemu(seed: int) -> None:
    """Do time, formats, UIP, flags and alarms read as QEMU's?"""
    stops = bool(seed % 2)
    script = random_script(random.Random(seed), 700, stops=stops)
    theirs = run(script, SHIFT)

    bench, ours, masks = Bench(), [], []
    for op, bench.time in zip(script, times(script, SHIFT), strict=True):
        match op:
            case In(port):
                masks.append(0xFF if bench.rtc.index != 12 else 0 if stops else 0xBF)
                ours.append(bench.rtc.read(port, 1))
            case Out(port, value):
                bench.rtc.write(port, 1, value)
    assert len(theirs) == len(ours)
    assert [byte & mask for byte, mask in zip(theirs, masks, strict=True)] == [
        byte & mask for byte, mask in zip(ours, masks, strict=True)
    ]


@given(st.integers(3, 15), st.integers(1, 5))
def test_periodic_interrupts_keep_their_rate(rate: int, number: int) -> None:
    """Does the n-th interrupt come at n periods of 2**(rate-1) crystal ticks, if register C is read each time?"""
    bench = Bench()
    bench.put(10, 0x20 | rate)
    bench.put(11, 0x42)
    for _ in range(number):
        due = bench.rtc.deadline()
        assert due is not None
        bench.time = due - 1
        bench.rtc.advance()
        assert not bench.level
        bench.time = due
        bench.rtc.advance()
        assert bench.level
        assert 0xC0 == bench.get(12) & 0xC0
        assert not bench.level

    assert -(-number * (1 << rate - 1) * 10**9 // 32768) == bench.time


@given(st.integers(0, 2**31), st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59)))
def test_the_alarm_rings_at_its_time(epoch: int, alarm: tuple[int, int, int]) -> None:
    """Is the deadline of an alarm the time at which the clock shows it?"""
    bench = Bench(epoch)
    bench.put(11, 0x26)  # binary, 24 hours, alarm on
    for place, value in zip((5, 3, 1), alarm, strict=True):
        bench.put(place, value)
    due = bench.rtc.deadline()
    assert due is not None
    bench.time = due
    bench.rtc.advance()

    assert bench.level
    assert alarm == (bench.get(4), bench.get(2), bench.get(0))
    assert 0 < due <= 86_400 * 10**9


@pytest.mark.parametrize(("hour", "rings"), [(0x07, False), (0x87, False), (0x11, False), (0x91, True), (0xC0, True)])
def test_an_alarm_of_the_other_half_of_the_day_is_silent(hour: int, rings: bool) -> None:
    """At 11 PM with hours of 1 to 12: does only an alarm of 11 PM, or of any hour, ring?"""
    bench = Bench()
    bench.put(11, 0x20)
    for place, value in ((1, 0xC0), (3, 0xC0), (5, hour)):
        bench.put(place, value)
    bench.get(12)
    bench.time += 2_000_000_000

    assert (0x20 if rings else 0) == bench.get(12) & 0x20


def test_memory_size_is_where_a_bios_notes_it() -> None:
    """64 MiB are 640 KiB, 63 MiB above the first one, and 48 MiB above 16 in units of 64 KiB."""
    bench = Bench()

    words = [bench.get(place) | bench.get(place + 1) << 8 for place in (0x15, 0x17, 0x30, 0x34)]
    assert [640, 63 << 10, 63 << 10, 48 << 4] == words
