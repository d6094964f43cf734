# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans how a flat image comes into a guest's memory: all of it at one address, and entered at its first byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from l4lab.errors import LabError
from l4lab.images.loader_area import LoaderArea, loader_area
from l4lab.images.pieces import HIGH_RAM, LOW_RAM_END, Piece, check_fits, check_memory
from l4lab.words import PAddr

DEFAULT_LOAD: Final = int(HIGH_RAM)


@dataclass(frozen=True, slots=True)
class FlatPlan:
    """What lies in memory, and where the guest begins."""

    pieces: tuple[Piece, ...]
    entry: PAddr
    area: LoaderArea  # GDTR and ESP


def plan(image: bytes, name: str, load: int, memory: int) -> FlatPlan:
    """How the image starts on a guest with so many bytes of memory."""
    check_memory(memory)
    end = load + len(image)
    if not image:
        raise LabError(f"{name} is empty; give an image with something to execute")
    if load < 0 or (load < HIGH_RAM and end > LOW_RAM_END):
        raise LabError(
            f"{name} cannot lie at {load:#x} to {end:#x}: a PC has RAM up to {LOW_RAM_END:#x} and from 1 MiB on; "
            f"try --load {DEFAULT_LOAD:#x}"
        )
    check_fits(name, end, memory)
    area = loader_area(name, [(load, end)], memory)
    return FlatPlan((Piece(PAddr(load), image, "image"), area.piece), PAddr(load), area)
