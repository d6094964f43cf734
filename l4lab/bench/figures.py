# SPDX-License-Identifier: GPL-2.0-or-later
"""A figure: what was measured, against what, and what is wanted of it. And the two ways to come by one.

Which figures there are is in `everything`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from l4lab.errors import LabError

Report = Callable[[str], None]
LESS: Final = "less"
MORE: Final = "more"


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured figure. For a ratio, `value` is the median of ours / theirs over the rounds."""

    name: str
    group: str
    value: float
    unit: str
    better: Literal["less", "more"]
    wanted: float | None = None  # nothing, if nothing is wanted of it
    ours: float = 0.0  # median, seconds; 0 if it is no ratio
    theirs: float = 0.0
    rounds: int = 0
    checksum: str = ""  # of a workload: what it came to, by everybody who ran it

    @property
    def met(self) -> bool:
        """Is it as it is wanted to be?"""
        if self.wanted is None:
            return True
        return self.value <= self.wanted if self.better == LESS else self.value >= self.wanted

    @property
    def target(self) -> str:
        """What is wanted, in words; empty if nothing is."""
        if self.wanted is None:
            return ""
        unit = "" if self.unit == "ratio" else f" {self.unit}"
        return f"at {'most' if self.better == LESS else 'least'} {self.wanted:g}{unit}"

    @property
    def per_second(self) -> float:
        """How often it can be done in a second; 0 if it is no ratio."""
        return 1 / self.ours if self.ours else 0.0

    @property
    def told(self) -> str:
        """The value with its unit."""
        return f"{self.value:.3g}" if self.unit == "ratio" else f"{self.value:.3g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What gives one or several figures when it is done."""

    names: tuple[str, ...]  # of the figures
    take: Callable[[int, Report], Iterator[Figure]]  # with so many rounds
    prepare: Callable[[], object] = lambda: None  # obtain what it needs, before anything is measured


def ratio(
    group: str,
    name: str,
    wanted: float | None,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    better: Literal["less", "more"] = LESS,
    fewer: Callable[[int], int] = lambda rounds: rounds,
) -> Measurement:
    """Seconds of the one over seconds of the other, in pairs."""

    def take(rounds: int, report: Report) -> Iterator[Figure]:
        rounds, pairs = fewer(rounds), []
        for number in range(rounds):
            report(f"{name}: round {number + 1} of {rounds}")
            pairs.append((ours(), theirs()))
        yield ratio_of(group, name, wanted, pairs, better)

    return Measurement((name,), take)


def ratio_of(
    group: str,
    name: str,
    wanted: float | None,
    pairs: list[tuple[float, float]],
    better: Literal["less", "more"] = LESS,
    checksum: str = "",
) -> Figure:
    """The figure of pairs of times, ours and theirs."""
    if any(theirs <= 0 for _, theirs in pairs):
        raise LabError(
            f"{name}: the other side took no time that could be measured; try when the computer is less busy"
        )
    value = statistics.median(a / b for a, b in pairs)
    our_median, their_median = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Figure(name, group, round(value, 3), "ratio", better, wanted, our_median, their_median, len(pairs), checksum)


def single(
    group: str, name: str, wanted: float, unit: str, figure: Callable[[], float], fewer: Callable[[int], int] = int
) -> Measurement:
    """A value that is compared with nothing."""

    def take(rounds: int, report: Report) -> Iterator[Figure]:
        report(name)
        rounds = fewer(rounds)
        value = statistics.median(figure() for _ in range(rounds))
        yield Figure(name, group, round(value, 3), unit, LESS, wanted, rounds=rounds)

    return Measurement((name,), take)
