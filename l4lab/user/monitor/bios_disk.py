# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 13 of the lab's BIOS: reading and writing the guest's disks.

A hard disk of the PC's is the very one that its controller shows, so whoever reads it by the BIOS and then by a driver
finds what was written by either. The medium that was booted may have no controller; the BIOS knows it all the same.
Source: Ralf Brown's Interrupt List, INT 13; BIOS Enhanced Disk Drive Specification 1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.devices.disk import SECTOR, Disk, Image
from l4lab.user.monitor.bios_call import BiosCall

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


def geometry_of(sectors: int, number: int) -> Geometry:
    """Of a diskette it goes with the size; a hard disk has the geometry that most tools suppose."""
    if number < HARD_DISK:
        return Geometry(*_DISKETTES[sectors])
    heads = 16 if sectors <= _MOST_CYLINDERS * 16 * 63 else 255
    return Geometry(min(max(sectors // (heads * 63), 1), _MOST_CYLINDERS), heads, 63)


def number_of(image: Image) -> int:
    """The number of what is booted from an image: the first diskette if it has the size of one, else a hard disk."""
    return DISKETTE if -(-len(image) // SECTOR) in _DISKETTES else HARD_DISK


class BiosDisks:
    """All disks of a guest by their numbers, with the services."""

    def __init__(self, diskettes: Sequence[Disk], hard_disks: Sequence[Disk]) -> None:
        self.diskettes, self.hard_disks = len(diskettes), len(hard_disks)
        self.by_number = {
            first + i: BiosDisk(disk, first + i, len(disks))
            for first, disks in ((DISKETTE, diskettes), (HARD_DISK, hard_disks))
            for i, disk in enumerate(disks)
        }

    @property
    def to_boot(self) -> BiosDisk | None:
        """The disk to boot from: the first diskette, or the first hard disk."""
        return self.by_number.get(DISKETTE) or self.by_number.get(HARD_DISK)

    def call(self, call: BiosCall) -> None:
        """INT 13."""
        disk = self.by_number.get(call.dl)
        if disk is not None:
            disk.call(call)
        elif call.ah == 0x08 and call.dl < HARD_DISK:  # "how many diskette drives are there?"
            call.cx = call.bx = 0
            call.dx = self.diskettes
            call.succeed()
        elif call.ah == 0x15:
            call.succeed(0)  # no such drive
        else:
            call.fail(BAD_COMMAND)


class BiosDisk:
    """One disk, which is number `number`; `of_its_kind` are diskettes or hard disks."""

    def __init__(self, disk: Disk, number: int, of_its_kind: int) -> None:
        self.disk, self.number, self.of_its_kind = disk, number, of_its_kind
        self.geometry = geometry_of(disk.sectors, number)

    def call(self, call: BiosCall) -> None:
        """INT 13 for this disk."""
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
        if first + count > self.disk.sectors:
            call.fail(BAD_ADDRESS)
            return
        if how == "read":
            call.memory.write(address, self.disk.read(first, count))
        elif how == "write":
            self.disk.write(first, call.memory.read(address, count * SECTOR))
        al = call.al
        call.succeed()
        call.al = al

    def _parameters(self, call: BiosCall) -> None:
        geometry = self.geometry
        last = geometry.cylinders - 1
        call.succeed()
        call.al, call.bl = 0, geometry.drive_type
        call.ch, call.cl = last, last >> 2 & 0xC0 | geometry.sectors
        call.dh, call.dl = geometry.heads - 1, self.of_its_kind

    def _type(self, call: BiosCall) -> None:
        if self.number < HARD_DISK:
            call.succeed(1)  # a diskette that cannot be changed
        else:
            call.succeed(3)
            call.cx, call.dx = self.disk.sectors >> 16, self.disk.sectors

    def _describe(self, call: BiosCall) -> None:
        geometry = self.geometry
        size, flags = 26, 1 << 1  # the geometry is valid
        call.memory.write(
            call.base(ItemId.DS) + call.si,
            struct.pack(
                "<HHIIIQH",
                *(size, flags, geometry.cylinders, geometry.heads, geometry.sectors, self.disk.sectors, SECTOR),
            ),
        )
        call.succeed()
