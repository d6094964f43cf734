# SPDX-License-Identifier: GPL-2.0-or-later
"""Time values: never shorter than asked, hardly longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi.time import (
    FARTHEST_POINT,
    LONGEST_PERIOD,
    NEVER,
    ZERO,
    TimePeriod,
    instant,
    microseconds,
    period,
    point,
    timeouts,
)
from l4lab.errors import LabError


def test_the_special_times_have_their_words() -> None:
    """never is 0, zero is 0x400."""
    assert (NEVER, ZERO, period(0)) == (0, 0x400, 0x400)
    assert microseconds(NEVER) is None
    assert microseconds(ZERO) == 0


@given(st.integers(1, LONGEST_PERIOD))
def test_a_period_is_rounded_up_by_less_than_one_part_in_512(us: int) -> None:
    """Nobody wakes early, and nobody much too late."""
    lasts = microseconds(period(us))

    assert lasts is not None
    assert us <= lasts
    assert (lasts - us) * 512 < us
    assert period(us) <= 0x7FFF


@given(st.integers(1, 0x7FFF).filter(lambda word: word & 0x3FF))
def test_encoding_a_period_finds_the_shortest_exponent(word: int) -> None:
    """What a period lasts is encoded exactly, with an exponent no larger than it had."""
    us = microseconds(word)
    assert us is not None
    again = period(us)

    assert us == microseconds(again)
    assert again.exponent <= TimePeriod(word).exponent


@given(st.integers(0, 1 << 40), st.integers(0, FARTHEST_POINT - 1), st.floats(0, 1))
def test_a_point_names_the_same_instant_until_it_is_reached(clock: int, ahead: int, when: float) -> None:
    """Whoever reads a point before its time, or at it, finds the instant, rounded up by less than one part in 512."""
    deadline = clock + ahead
    word = point(clock, deadline)
    reached = instant(word, clock)

    assert 0 <= reached - deadline < 1 << word.exponent
    assert word & 0x8000
    assert word <= 0xFFFF
    assert reached == instant(word, clock + int(when * ahead))


def test_times_that_cannot_be_encoded_are_refused() -> None:
    """The message says what can."""
    with pytest.raises(LabError, match="NEVER"):
        period(LONGEST_PERIOD + 1)
    with pytest.raises(LabError, match=r"use period\(\)"):
        point(1000, 999)
    with pytest.raises(ValueError, match="a point"):
        microseconds(point(0, 5))
    with pytest.raises(ValueError, match="a period"):
        instant(period(5), 0)


def test_timeouts_put_send_above_receive() -> None:
    """Send is the high half; the repr says both."""
    assert timeouts(ZERO, NEVER) == 0x0400_0000
    assert repr(timeouts(ZERO, period(1000))) == "Timeouts(send=0us, receive=1000us)"
