# SPDX-License-Identifier: GPL-2.0-or-later
"""Time values: 16 bits that say how long, or until when.

Lives here: encoding and decoding. The clock itself, and what expires when, are the kernel's.
"""

from __future__ import annotations

from typing import Final

from l4lab.errors import LabError
from l4lab.words import Word, bit, bits

LONGEST_PERIOD: Final = 1023 << 31  # microseconds; about 25 days
FARTHEST_POINT: Final = (1 << 25) - (1 << 15)  # microseconds: one round at the largest exponent, less the rounding up


class TimePeriod(Word):
    """A duration of mantissa * 2**exponent microseconds, in 16 bits (X.2 manual, section Time)."""

    point = bit(15)  # 0: a period
    exponent = bits(14, 10)
    mantissa = bits(9, 0)


class TimePoint(Word):
    """An instant near the clock's present value, in 16 bits (X.2 manual, section Time).

    The word holds ten bits of the instant and one more, `carry`, that tells this round of those ten bits from the next.
    """

    point = bit(15)  # 1: a point
    exponent = bits(14, 11)
    carry = bits(10, 10)
    mantissa = bits(9, 0)


class Timeouts(Word):
    """The timeouts of one IPC (X.2 manual, section IPC); also the layout of the UTCB's XferTimeouts."""

    send = bits(31, 16)
    receive = bits(15, 0)

    def __repr__(self) -> str:
        return f"Timeouts(send={time_text(self.send)}, receive={time_text(self.receive)})"


NEVER: Final = TimePeriod(0)
ZERO: Final = TimePeriod.make(exponent=1)  # compared as this bit pattern; mantissa 0 with exponent 0 would be NEVER


def period(us: int) -> TimePeriod:
    """The shortest period of at least `us` microseconds; 0 is ZERO (X.2 manual, section Time).

    Exact up to 1023; above, rounded up by less than one part in 512, so that nobody wakes early.
    """
    if not 0 <= us <= LONGEST_PERIOD:
        raise LabError(f"No period lasts {us} us. Use 0 to {LONGEST_PERIOD}, or NEVER.")
    if us == 0:
        return ZERO
    exponent = 0
    while (mantissa := -(-us >> exponent)) > 1023:  # the shift of the negated value rounds up
        exponent += 1
    return TimePeriod.make(exponent=exponent, mantissa=mantissa)


def microseconds(word: int) -> int | None:
    """How long a period lasts; None for NEVER."""
    if word == NEVER:
        return None
    time = TimePeriod.decode(word)
    if time.point:
        raise ValueError(f"{word:#x} is a point in time, not a period")
    return time.mantissa << time.exponent


def point(clock: int, deadline: int) -> TimePoint:
    """The word for the instant `deadline`, to be used while the clock is near `clock`, both in microseconds.

    Takes the finest exponent that reaches so far, and rounds up, by less than 2**exponent microseconds.
    """
    if not clock <= deadline < clock + FARTHEST_POINT:
        raise LabError(
            f"A point in time must lie less than {FARTHEST_POINT} us ahead of the clock, not {deadline - clock}. "
            "For a longer wait use period()."
        )
    for exponent in range(16):
        ticks = -(-deadline >> exponent)
        if (ticks >> 10) - (clock >> exponent + 10) <= 1:  # in this round of the mantissa or in the next
            return TimePoint.make(point=1, exponent=exponent, carry=ticks >> 10 & 1, mantissa=ticks & 0x3FF)
    raise AssertionError("FARTHEST_POINT is one round at the largest exponent")


def instant(word: int, clock: int) -> int:
    """The instant, in microseconds, that a point names for whoever reads it while the clock shows `clock`."""
    time = TimePoint.decode(word)
    if not time.point:
        raise ValueError(f"{word:#x} is a period, not a point in time")
    this_round = clock >> time.exponent + 10
    round_ = this_round if this_round & 1 == time.carry else this_round + 1
    return (round_ << 10 | time.mantissa) << time.exponent


def timeouts(send: int, receive: int) -> Timeouts:
    """The timeouts word of an IPC from two 16-bit times: `timeouts(NEVER, period(1000))`."""
    return Timeouts.make(send=send, receive=receive)


def time_text(word: int) -> str:
    """A time as a person reads it: never, 0, 1000us, point(...)."""
    if word & 0x8000:
        return repr(TimePoint.decode(word))
    us = microseconds(word)
    return "never" if us is None else f"{us}us"
