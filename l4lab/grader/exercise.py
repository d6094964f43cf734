# SPDX-License-Identifier: GPL-2.0-or-later
"""What the exercises are: the records of `exercises/exercises.toml`, and where their files lie."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import msgspec

from l4lab.errors import LabError


class Exercise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One exercise."""

    name: str
    file: str  # below exercises/ as the student gets it, below solutions/ as we would write it
    goal: str
    hint: str
    guest: str  # what runs; see `scene`
    functions: tuple[str, ...]  # what the file must define, as in "cpuid(fault, reply)"
    checks: tuple[str, ...]  # functions of `checks`, in the order in which they are asked
    seconds: float  # CPU time of the student's file
    memory_mib: int  # beyond what the lab itself takes

    @property
    def path(self) -> Path:
        """The student's copy in the lab's own directory."""
        return directory() / self.file


class _Listing(msgspec.Struct, forbid_unknown_fields=True):
    exercise: list[Exercise]


@cache
def directory() -> Path:
    """Where the exercises lie: in a checkout beside the package; else where the installation has put them."""
    places = [Path(__file__).parents[2] / "exercises", Path(sys.prefix) / "share" / "l4lab" / "exercises"]
    for place in places:
        if (place / "exercises.toml").is_file():
            return place
    raise LabError("the lab's exercises are not here; run this from a checkout of l4lab")


@cache
def exercises() -> tuple[Exercise, ...]:
    """All exercises, in the order in which they are best done."""
    file = directory() / "exercises.toml"
    try:
        return tuple(msgspec.toml.decode(file.read_bytes(), type=_Listing).exercise)
    except (msgspec.MsgspecError, ValueError) as error:
        raise LabError(f"{file} is not a list of exercises: {error}; compare it with the original") from error


def find(name: str) -> Exercise:
    """The exercise of that name."""
    for exercise in exercises():
        if exercise.name == name:
            return exercise
    names = ", ".join(exercise.name for exercise in exercises())
    raise LabError(f"there is no exercise named {name!r}; there is: {names}")
