# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling diskettes by size and by what their boot sector says of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.images.diskette import SECTOR, Geometry, as_diskette, told_by_contents
from l4lab.images.kinds import Kind, recognise

PLAIN = bytes(510) + b"\x55\xaa"


def described(total: int, track: int, heads: int, media: int = 0xF0, bytes_: int = SECTOR, cluster: int = 1) -> bytes:
    """A boot sector with a BIOS parameter block."""
    block = struct.pack("<HBHBHHBHHH", bytes_, cluster, 1, 2, 224, total, media, 9, track, heads)
    return (b"\xeb\x3c\x90MSDOS5.0" + block).ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize(
    ("kib", "geometry"),
    [
        *((160, (40, 1, 8)), (180, (40, 1, 9)), (320, (40, 2, 8)), (360, (40, 2, 9)), (720, (80, 2, 9))),
        *((1200, (80, 2, 15)), (1440, (80, 2, 18)), (2880, (80, 2, 36))),
    ],
)
def test_the_usual_sizes_are_diskettes(kib: int, geometry: tuple[int, int, int]) -> None:
    """Has an image of each size, whatever is in it, the geometry that goes with it?"""
    found = told_by_contents(PLAIN, kib << 10)

    assert found is not None
    assert geometry == (found.cylinders, found.heads, found.sectors)
    assert kib << 10 == found.size * SECTOR


def test_a_short_image_of_a_formatted_diskette_is_one() -> None:
    """Is the rest of a diskette, of usual size or not, known from its boot sector; and is a larger image none?"""
    usual, unusual = described(2880, 18, 2), described(3360, 21, 2, media=0xF9)

    assert Geometry(80, 2, 18, 4) == told_by_contents(usual, 3 * SECTOR)
    assert Geometry(80, 2, 21, 4) == told_by_contents(unusual, 3 * SECTOR)
    assert Geometry(80, 2, 36, 6) == told_by_contents(usual, 2880 << 10)  # by its size
    assert told_by_contents(usual, (2880 << 10) + 1) is None
    assert Kind.DISKETTE is recognise(usual, "it")


@pytest.mark.parametrize(
    "sector",
    [
        PLAIN,
        described(2880, 18, 2, media=0xF8),  # a hard disk's
        described(2880, 18, 2, media=0x12),
        described(2880, 18, 2, bytes_=1024),
        described(2880, 18, 2, cluster=0),
        described(2881, 18, 2),
        described(0, 18, 2),
        described(2880, 0, 2),
        described(2880, 18, 0),
        described(60480, 63, 16),
    ],
)
def test_what_does_not_say_that_it_is_a_diskette_is_a_hard_disk(sector: bytes) -> None:
    """Without a block that describes one, in every field: is a short image a disk, unless somebody says otherwise?"""
    assert told_by_contents(sector, 26 * SECTOR) is None
    assert Kind.BOOTSECTOR is recognise(sector, "it")
    assert Geometry(80, 2, 18, 4) == as_diskette(sector, 26 * SECTOR, "it")
    assert Geometry(80, 2, 36, 6) == as_diskette(sector, 2881 * SECTOR, "it")


def test_a_diskette_that_is_too_large_is_refused() -> None:
    """Does the message say how much there may be, and what to do?"""
    with pytest.raises(LabError, match="it has 2880 KiB, and a diskette 2880 at most; boot it by --kind bootsector"):
        as_diskette(PLAIN, (2880 << 10) + 1, "it")


@given(st.binary(min_size=510, max_size=510), st.integers(SECTOR, 3 << 20))
def test_whatever_is_called_a_diskette_has_room(noise: bytes, size: int) -> None:
    """For any boot sector and size: is the diskette not smaller than its image, and its geometry one that drives do?"""
    found = told_by_contents(noise + b"\x55\xaa", size)

    if found is not None:
        assert size <= found.size * SECTOR
        assert found.cylinders <= 86
        assert found.heads <= 2
        assert found.sectors <= 36
