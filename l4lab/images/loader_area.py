# SPDX-License-Identifier: GPL-2.0-or-later
"""What a boot loader leaves a 32-bit kernel to stand on until it has its own: a GDT of flat segments, and a stack.

Boot protocols promise neither the GDT nor the stack, yet every loader has both, and kernels count on them: they push at
their entry, and load a segment register with what another one holds. Lives here: what is in that area of memory, and
where there is room for it beside a kernel.

    +0       GDT: null, flat code at selector 8, flat data at selector 10
    +0x4000  the end of the area, from where the stack grows down
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from l4lab.images.pieces import HIGH_RAM, LOW_RAM_END, Piece, check_fits, gap_above
from l4lab.words import PAddr

FLAT_CODE: Final = 0x00CF9B000000FFFF  # base 0, limit 4 GiB, 32-bit, execute and read, ring 0, accessed
FLAT_DATA: Final = 0x00CF93000000FFFF  # base 0, limit 4 GiB, 32-bit, read and write, ring 0, accessed
CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10
GDT: Final = struct.pack("<3Q", 0, FLAT_CODE, FLAT_DATA)

SIZE: Final = 0x4000
USUALLY_AT: Final = 0x5000  # below what loaders use for their information, and above what a BIOS keeps


@dataclass(frozen=True, slots=True)
class LoaderArea:
    """Where the area lies."""

    address: PAddr

    @property
    def piece(self) -> Piece:
        """The whole area; the stack is zeros."""
        return Piece(self.address, GDT.ljust(SIZE, b"\0"), "GDT and stack")

    @property
    def gdt(self) -> tuple[int, int]:
        """Base and limit, as GDTR holds them."""
        return self.address, len(GDT) - 1

    @property
    def stack(self) -> int:
        """ESP of an empty stack."""
        return self.address + SIZE


def loader_area(name: str, taken: Sequence[tuple[int, int]], memory: int) -> LoaderArea:
    """The area for the image called `name`, where it overlaps nothing that is taken (begin, end)."""
    at = low_or_high(USUALLY_AT, SIZE, taken)
    check_fits(name, at + SIZE, memory)
    return LoaderArea(PAddr(at))


def low_or_high(begin: int, size: int, taken: Sequence[tuple[int, int]]) -> int:
    """A place for so many bytes from `begin` on in conventional memory, or above 1 MiB if there is none."""
    at = gap_above(begin, size, taken)
    return at if at + size <= LOW_RAM_END else gap_above(HIGH_RAM, size, taken)
