# SPDX-License-Identifier: GPL-2.0-or-later
"""What is on a disk: an image that is never written, and over it the sectors that were.

Lives here: sectors. Does not live here: the controller (`ide`), and where the image comes from. The image is an input
that is given when the machine is built, as its memory's contents are, so that equal runs find equal disks.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

SECTOR: Final = 512
MOST_SECTORS: Final = 1 << 48  # more than commands have numbers for

Image = bytes | bytearray | memoryview | mmap.mmap


class Disk:
    """A disk of whole sectors, `least` at least; where the image has ended there are zeros."""

    def __init__(self, image: Image, least: int = 0) -> None:
        self.image = image
        self.sectors = max(-(-len(image) // SECTOR), least)
        self.written: dict[int, bytes] = {}  # sectors that differ from the image's, by number

    def read(self, first: int, count: int) -> bytes:
        """Sectors, as they are now."""
        data = bytes(self.image[first * SECTOR : (first + count) * SECTOR]).ljust(count * SECTOR, b"\0")
        if not self.written:
            return data
        return b"".join(self.written.get(first + i, data[i * SECTOR : (i + 1) * SECTOR]) for i in range(count))

    def write(self, first: int, data: bytes) -> None:
        """Overwrite whole sectors."""
        for i in range(len(data) // SECTOR):
            self.written[first + i] = data[i * SECTOR : (i + 1) * SECTOR]

    def contents(self) -> bytes:
        """The whole disk, for whoever wants to keep it."""
        return self.read(0, self.sectors)

    def save(self) -> dict[str, Any]:
        """How large it is, and what was written. The image is not part of the state."""
        return {"sectors": self.sectors, "written": [[number, data] for number, data in sorted(self.written.items())]}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `save` returned, over the same image; ValueError if it returned no such thing."""
        match state:
            case {"sectors": int(sectors), "written": list(written)} if sectors in range(
                -(-len(self.image) // SECTOR), MOST_SECTORS
            ) and all(_is_sector(each, sectors) for each in written):
                self.sectors = sectors
                self.written = {number: bytes(data) for number, data in written}
            case _:
                raise ValueError("the disk's sectors cannot be those")


def _is_sector(written: Any, sectors: int) -> bool:
    """Is this the number and the contents of one of so many?"""
    match written:
        case [int(number), bytes(data)]:
            return number in range(sectors) and len(data) == SECTOR
        case _:
            return False
