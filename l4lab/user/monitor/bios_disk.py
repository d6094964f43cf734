# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 13 of the lab's BIOS: reading and writing the disk that the guest was booted from.

The disk is a copy of the image, in the monitor; what the guest writes ends with it. Source: Ralf Brown's Interrupt
List, INT 13; BIOS Enhanced Disk Drive Specification 1.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.user.monitor.bios_call import BiosCall

SECTOR: Final = 512
HARD_DISK, DISKETTE = 0x80, 0x00  # the first of each
BAD_COMMAND, BAD_ADDRESS = 0x01, 0x04  # error codes in AH
EDD_VERSION: Final = 0x01
EDD_PACKETS: Final = 1 << 0  # of what EDD has: reading and writing by sector number

# Diskettes are told by their size in sectors: cylinders, heads, sectors of a track, drive type of INT 13, 08.
_DISKETTES: Final = {
    320: (40, 1, 8, 1), 360: (40, 1, 9, 1), 640: (40, 2, 8, 1), 720: (40, 2, 9, 1), 1440: (80, 2, 9, 3),
    2400: (80, 2, 15, 2), 2880: (80, 2, 18, 4), 5760: (80, 2, 36, 6),
}  # fmt: skip
_MOST_CYLINDERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Geometry:
    """How sectors are named by cylinder, head and sector."""

    cylinders: int
    heads: int
    sectors: int
    drive_type: int = 0  # of a diskette drive


def geometry_of(sectors: int) -> Geometry:
    """A diskette if it has the size of one, else a hard disk in the geometry that most tools suppose."""
    if sectors in _DISKETTES:
        return Geometry(*_DISKETTES[sectors])
    heads = 16 if sectors <= _MOST_CYLINDERS * 16 * 63 else 255
    return Geometry(min(max(sectors // (heads * 63), 1), _MOST_CYLINDERS), heads, 63)


def number_of(image: bytes) -> int:
    """The number by which programs know a disk with this image."""
    return DISKETTE if -(-len(image) // SECTOR) in _DISKETTES else HARD_DISK


class BiosDisk:
    """The only disk, with its services."""

    def __init__(self, image: bytes) -> None:
        self.data = bytearray(image)
        self.data += bytes(-len(image) % SECTOR)
        self.sectors = len(self.data) // SECTOR
        self.geometry = geometry_of(self.sectors)
        self.number = number_of(image)

    def call(self, call: BiosCall) -> None:
        """INT 13."""
        if call.dl != self.number:
            if call.ah == 0x08 and call.dl < 0x80:  # "how many diskette drives are there?"
                call.cx = call.dx = call.bx = 0
                call.succeed()
            elif call.ah == 0x15:
                call.succeed(0)  # no such drive
            else:
                call.fail(BAD_COMMAND)
            return
        match call.ah:
            case 0x00 | 0x01 | 0x0C | 0x0D | 0x10 | 0x11:  # reset, status, seek, ready?
                call.succeed()
            case 0x02 | 0x03 | 0x04:
                self._by_geometry(call)
            case 0x08:
                self._parameters(call)
            case 0x15:
                self._type(call)
            case 0x41 if self.number >= HARD_DISK:
                call.bx, call.cx = 0xAA55, EDD_PACKETS
                call.succeed(EDD_VERSION)
            case 0x42 | 0x43 | 0x44 | 0x47 if self.number >= HARD_DISK:
                self._by_packet(call)
            case 0x48 if self.number >= HARD_DISK:
                self._describe(call)
            case _:
                call.fail(BAD_COMMAND)

    def _by_geometry(self, call: BiosCall) -> None:
        cylinder, head, sector = call.ch | (call.cl & 0xC0) << 2, call.dh, call.cl & 0x3F
        geometry = self.geometry
        if not 1 <= sector <= geometry.sectors or head >= geometry.heads:
            call.fail(BAD_ADDRESS)
            return
        first = (cylinder * geometry.heads + head) * geometry.sectors + sector - 1
        self._transfer(call, first, call.al, call.base(ItemId.ES) + call.bx, {2: "read", 3: "write"}.get(call.ah))

    def _by_packet(self, call: BiosCall) -> None:
        packet_at = call.base(ItemId.DS) + call.si
        _, _, count, offset, segment, first = struct.unpack("<BBHHHQ", call.memory.read(packet_at, 16))
        self._transfer(call, first, count, (segment << 4) + offset, {0x42: "read", 0x43: "write"}.get(call.ah))

    def _transfer(self, call: BiosCall, first: int, count: int, address: int, how: str | None) -> None:
        """Move sectors between the disk and memory, or only see whether they are there."""
        begin, end = first * SECTOR, (first + count) * SECTOR
        if end > len(self.data):
            call.fail(BAD_ADDRESS)
            return
        if how == "read":
            call.memory.write(address, bytes(self.data[begin:end]))
        elif how == "write":
            self.data[begin:end] = call.memory.read(address, end - begin)
        al = call.al
        call.succeed()
        call.al = al

    def _parameters(self, call: BiosCall) -> None:
        geometry = self.geometry
        last = geometry.cylinders - 1
        call.succeed()
        call.al, call.bl = 0, geometry.drive_type
        call.ch, call.cl = last, last >> 2 & 0xC0 | geometry.sectors
        call.dh, call.dl = geometry.heads - 1, 1

    def _type(self, call: BiosCall) -> None:
        if self.number < HARD_DISK:
            call.succeed(1)  # a diskette that cannot be changed
        else:
            call.succeed(3)
            call.cx, call.dx = self.sectors >> 16, self.sectors

    def _describe(self, call: BiosCall) -> None:
        geometry = self.geometry
        size, flags = 26, 1 << 1  # the geometry is valid
        call.memory.write(
            call.base(ItemId.DS) + call.si,
            struct.pack(
                "<HHIIIQH",
                *(size, flags, geometry.cylinders, geometry.heads, geometry.sectors, self.sectors, SECTOR),
            ),
        )
        call.succeed()
