# SPDX-License-Identifier: GPL-2.0-or-later
"""Which images are those of diskettes, and how their sectors are named by cylinder, head and sector.

An image is a diskette's if it has the size of one, or if its boot sector says so in the block that DOS keeps there,
however much of the rest is missing: builders leave away what is empty. Nothing tells other short images from hard
disks; they have to be named. Source: Ralf Brown's Interrupt List, INT 13, 08; Microsoft FAT specification, 3.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from l4lab.errors import LabError

SECTOR: Final = 512


@dataclass(frozen=True, slots=True)
class Geometry:
    """How sectors are named by cylinder, head and sector."""

    cylinders: int
    heads: int
    sectors: int
    drive_type: int = 0  # of a diskette drive, as INT 13, 08 tells it

    @property
    def size(self) -> int:
        """All sectors."""
        return self.cylinders * self.heads * self.sectors


_USUAL: Final = {
    geometry.size: geometry
    for geometry in (
        Geometry(40, 1, 8, 1), Geometry(40, 1, 9, 1), Geometry(40, 2, 8, 1), Geometry(40, 2, 9, 1),
        Geometry(80, 2, 9, 3), Geometry(80, 2, 15, 2), Geometry(80, 2, 18, 4), Geometry(80, 2, 36, 6),
    )
}  # fmt: skip
_BY_DEFAULT: Final = (2880, 5760)  # sectors of what an image is taken for that has another size: most suppose the first
_MOST_CYLINDERS, _MOST_SECTORS = 86, 36  # that drives can do
_HARD_DISK: Final = 0xF8  # as media descriptor; F0 and those above are diskettes


def told_by_contents(boot_sector: bytes, size: int) -> Geometry | None:
    """The geometry of what is a diskette for sure: an image of so many bytes that begins with this sector."""
    sectors = -(-size // SECTOR)
    described = _described(boot_sector)
    if described is not None and sectors <= described.size:
        return described
    return _USUAL.get(sectors)


def as_diskette(boot_sector: bytes, size: int, name: str) -> Geometry:
    """The geometry of what somebody says is a diskette: the smallest usual one in which it has room, if need be."""
    if (found := told_by_contents(boot_sector, size)) is not None:
        return found
    for sectors in _BY_DEFAULT:
        if size <= sectors * SECTOR:
            return _USUAL[sectors]
    most = _BY_DEFAULT[-1] * SECTOR >> 10
    raise LabError(f"{name} has {size >> 10} KiB, and a diskette {most} at most; boot it by --kind bootsector")


def _described(boot_sector: bytes) -> Geometry | None:
    """What the BIOS parameter block of a boot sector says, if it is one and describes a diskette."""
    if len(boot_sector) < SECTOR:
        return None
    bytes_, in_cluster, total, media, track, heads = struct.unpack_from("<HB5xHB2xHH", boot_sector, 11)
    if bytes_ != SECTOR or not in_cluster or media < 0xF0 or media == _HARD_DISK:
        return None
    if not (1 <= track <= _MOST_SECTORS and heads in (1, 2)) or not total or total % (track * heads):
        return None
    cylinders = total // (track * heads)
    if cylinders > _MOST_CYLINDERS:
        return None
    usual = _USUAL.get(total)
    return Geometry(cylinders, heads, track, usual.drive_type if usual else _USUAL[_BY_DEFAULT[0]].drive_type)
