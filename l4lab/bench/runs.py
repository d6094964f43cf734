# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of the bench as a file, and two runs compared: what became worse?

Ratios can be compared between runs, and even between computers, as far as anything can; figures in seconds or MiB only
on one and the same. A file says which format it has, so that one of another lab is told from one that is damaged.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from l4lab import files
from l4lab.bench.figures import LESS, Figure
from l4lab.errors import LabError

FORMAT: Final = 2  # 1 did not say so
TOLERANCE: Final = 0.10  # what is worse by more than this is named
_INSTEAD: Final = "a file that was written by: l4lab bench --json FILE"
_GIVE: Final = f"give {_INSTEAD}"


class Computer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it was measured."""

    cpus: int
    python: str
    system: str

    @staticmethod
    def this() -> Computer:
        """The one we run on."""
        return Computer(os.cpu_count() or 1, platform.python_version(), platform.platform())


class SavedRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All the figures of one run."""

    machine: Computer
    figures: tuple[Figure, ...]
    format: int = FORMAT


class _Any(msgspec.Struct):
    """As much as every format has."""

    figures: list[msgspec.Raw]
    format: int = 1


def write(path: Path, run: SavedRun) -> None:
    """Save a run."""
    files.write(path, [msgspec.json.format(msgspec.json.encode(run), indent=2), b"\n"])


def read(path: Path) -> SavedRun:
    """A run that was saved; one line says why if there is none."""
    data = files.read(path, _INSTEAD)
    try:
        known = msgspec.json.decode(data, type=_Any).format
        if known < FORMAT:
            raise LabError(f"{path} was written by an older lab, which measured otherwise; measure again, or {_GIVE}")
        if known > FORMAT:
            raise LabError(f"{path} was written by a newer lab (format {known}, this one knows {FORMAT}); {_GIVE}")
        run = msgspec.json.decode(data, type=SavedRun)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LabError(f"{path} holds no figures of the bench, or is damaged ({error}); {_GIVE}") from error
    if any(not math.isfinite(figure.value) for figure in run.figures):
        raise LabError(f"{path} is damaged: one of its figures is no number; {_GIVE}")
    return run


@dataclass(frozen=True, slots=True)
class Change:
    """A figure that both runs have."""

    before: Figure
    now: Figure

    @property
    def worsening(self) -> float:
        """By what part it is worse, 0.1 for ten per cent; negative if it is better."""
        before, now = self.before.value, self.now.value
        if before == now:
            return 0.0
        if self.now.better != LESS:
            before, now = now, before
        return now / before - 1 if before > 0 else 0.0  # of nothing there are no per cents

    @property
    def worse(self) -> bool:
        """Is it worse by more than is put down to chance?"""
        return self.worsening > TOLERANCE

    @property
    def percent(self) -> str:
        """The change in words."""
        part = f"{abs(self.worsening):.0%}"
        return "same" if part == "0%" else f"{part} {'worse' if self.worsening > 0 else 'better'}"

    @property
    def told(self) -> str:
        """For a line of text."""
        return f"{self.now.name}: {self.now.told}, was {self.before.told} ({self.percent})"


def compare(before: Iterable[Figure], now: Sequence[Figure]) -> list[Change]:
    """The figures that both have, in the order of the later run."""
    earlier = {figure.name: figure for figure in before}
    return [Change(earlier[figure.name], figure) for figure in now if figure.name in earlier]
