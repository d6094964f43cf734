# SPDX-License-Identifier: GPL-2.0-or-later
"""What the disk says of itself: the 256 words of IDENTIFY DEVICE. Tables only.

Source: ATA/ATAPI-6 (T13 1410D), 8.15, whose names the comments use.
"""

from __future__ import annotations

import struct
from typing import Final

HEADS, TRACK = 16, 63  # of the default geometry, in which all disks of more than 8 GB are equally large
MULTIPLE_MAX: Final = 16  # sectors with one interrupt
MOST_CYLINDERS: Final = 16383
MOST_LBA28: Final = (1 << 28) - 1

LBA, IORDY = 1 << 9, 1 << 11
FLUSH, FLUSH_EXT, LBA48, VALID = 1 << 12, 1 << 13, 1 << 10, 1 << 14
WRITE_CACHE: Final = 1 << 5
ATA_4_TO_6: Final = 0x70


def identify(sectors: int, heads: int, track: int, multiple: int) -> bytes:
    """The words for a disk of so many sectors; heads and track length are the current ones, as is `multiple`."""
    cylinders = min(sectors // (HEADS * TRACK), MOST_CYLINDERS)
    now_cylinders = min(sectors // (heads * track), 0xFFFF)
    now = min(now_cylinders * heads * track, 0xFFFF_FFFF)
    words: dict[int, int] = {
        0: 0x0040,  # general configuration: an ATA device, not removable
        1: cylinders, 3: HEADS, 6: TRACK,
        47: 0x8000 | MULTIPLE_MAX,
        49: LBA | IORDY,
        51: 0x0200,  # PIO timing, of old
        53: 0x0003,  # words 54 to 58 and 64 to 70 are valid
        54: now_cylinders, 55: heads, 56: track, 57: now & 0xFFFF, 58: now >> 16,
        59: 0x0100 | multiple,
        64: 0x0003,  # PIO modes 3 and 4
        67: 120, 68: 120,  # their cycle times
        80: ATA_4_TO_6,
        82: WRITE_CACHE, 83: VALID | FLUSH_EXT | FLUSH | LBA48, 84: VALID,  # supported
        85: WRITE_CACHE, 86: FLUSH_EXT | FLUSH | LBA48, 87: VALID,  # enabled
    }  # fmt: skip
    lba28 = min(sectors, MOST_LBA28)
    words |= {60: lba28 & 0xFFFF, 61: lba28 >> 16}
    words |= {100 + i: sectors >> 16 * i & 0xFFFF for i in range(4)}
    for first, size, text in ((10, 20, "L4LAB-0001"), (23, 8, "1.0"), (27, 40, "L4LAB DISK")):
        words |= _text(first, text.ljust(size))
    return struct.pack("<256H", *(words.get(number, 0) for number in range(256)))


def _text(first: int, text: str) -> dict[int, int]:
    """Two characters a word, the first in its high byte."""
    return {first + i // 2: ord(text[i]) << 8 | ord(text[i + 1]) for i in range(0, len(text), 2)}
