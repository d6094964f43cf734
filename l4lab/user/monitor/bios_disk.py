# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 13 of the lab's BIOS: reading and writing the guest's disks.

A hard disk of the PC's is the very one that its controller shows, so whoever reads it by the BIOS and then by a driver
finds what was written by either. The medium that was booted may have no controller; the BIOS knows it all the same.
What a call asks for is checked as SeaBIOS checks it; its last result is kept in the data area.
Source: Ralf Brown's Interrupt List, INT 13; BIOS Enhanced Disk Drive Specification 1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.devices.disk import SECTOR, Disk
from l4lab.images.diskette import Geometry
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import BiosCall

HARD_DISK, DISKETTE = 0x80, 0x00  # the first of each
BAD_COMMAND, NOT_FOUND, CHANGED, ACROSS_64K, BAD_TRACK = 0x01, 0x04, 0x06, 0x09, 0x0C  # error codes in AH
EDD_VERSION: Final = 0x01
EDD_PACKETS: Final = 1 << 0  # of what EDD has: reading and writing by sector number
PACKET_SIZE, RESULT_SIZE = 16, 26  # bytes; of a result, at least
MOST_SECTORS: Final = 128  # of one call by cylinder and head
DMA_PAGE: Final = 0x10000  # the diskette controller's transfers stay within one

_READ, _WRITE, _VERIFY = 0x02, 0x03, 0x04  # functions; those by packets are 40 higher
_MOST_CYLINDERS: Final = 1024


def geometry_of(sectors: int) -> Geometry:
    """Of a hard disk: what most tools suppose."""
    heads = 16 if sectors <= _MOST_CYLINDERS * 16 * 63 else 255
    return Geometry(min(max(sectors // (heads * 63), 1), _MOST_CYLINDERS), heads, 63)


@dataclass(frozen=True, slots=True)
class Diskette:
    """A diskette in its drive."""

    disk: Disk
    geometry: Geometry


class BiosDisks:
    """All disks of a guest by their numbers, with the services."""

    def __init__(self, diskettes: Sequence[Diskette], hard_disks: Sequence[Disk]) -> None:
        self.diskettes, self.hard_disks = len(diskettes), len(hard_disks)
        self.by_number: dict[int, BiosDisk] = {
            DISKETTE + i: DisketteDrive(diskette.disk, DISKETTE + i, len(diskettes), diskette.geometry)
            for i, diskette in enumerate(diskettes)
        }
        for i, disk in enumerate(hard_disks):
            self.by_number[HARD_DISK + i] = HardDisk(disk, HARD_DISK + i, len(hard_disks), geometry_of(disk.sectors))

    @property
    def to_boot(self) -> BiosDisk | None:
        """The disk to boot from: the first diskette, or the first hard disk."""
        return self.by_number.get(DISKETTE) or self.by_number.get(HARD_DISK)

    def call(self, call: BiosCall) -> None:
        """INT 13. How it went is kept for who asks later, apart for diskettes and for hard disks."""
        disk = self.by_number.get(call.dl)
        status_at = rom.DISKETTE_STATUS if call.dl < HARD_DISK else rom.DISK_STATUS
        if disk is None:
            call.fail(BAD_COMMAND)
        elif call.ah == 0x01:
            call.end(call.memory.byte(status_at))
            return
        else:
            disk.call(call)
        call.memory.write(status_at, bytes((call.ah if call.failed else 0,)))


class BiosDisk:
    """One disk, which is number `number`; `of_its_kind` are diskettes or hard disks."""

    beyond = NOT_FOUND  # the error where the disk ends among the sectors that are wanted

    def __init__(self, disk: Disk, number: int, of_its_kind: int, geometry: Geometry) -> None:
        self.disk, self.number, self.of_its_kind, self.geometry = disk, number, of_its_kind, geometry

    def call(self, call: BiosCall) -> None:
        """INT 13 for this disk."""
        match call.ah:
            case 0x00:
                call.succeed()
            case 0x02 | 0x03 | 0x04:
                self._by_geometry(call)
            case 0x08:
                self._parameters(call)
            case _:
                call.fail(BAD_COMMAND)

    def _by_geometry(self, call: BiosCall) -> None:
        cylinder, head, sector = call.ch | (call.cl & 0xC0) << 2, call.dh, call.cl & 0x3F
        geometry, count, address = self.geometry, call.al, call.base(ItemId.ES) + call.bx
        is_there = cylinder < geometry.cylinders and head < geometry.heads and 1 <= sector <= geometry.sectors
        if not is_there or not 1 <= count <= MOST_SECTORS:
            call.fail(BAD_COMMAND)
        elif call.ah != _VERIFY and self._cannot_reach(address, count):
            call.al = 0
            call.fail(ACROSS_64K)
        else:
            first = (cylinder * geometry.heads + head) * geometry.sectors + sector - 1
            call.al = self._transfer(call, call.ah, first, count, address)

    def _cannot_reach(self, address: int, count: int) -> bool:
        """Can these sectors not be transferred to this address in memory?"""
        return False

    def _transfer(self, call: BiosCall, function: int, first: int, wanted: int, address: int) -> int:
        """Move sectors between the disk and memory, or only see whether they are there; how many there are."""
        count = min(wanted, max(self.disk.sectors - first, 0))
        if function == _READ:
            call.memory.write(address, self.disk.read(first, count))
        elif function == _WRITE:
            self.disk.write(first, call.memory.read(address, count * SECTOR))
        call.end(0 if count == wanted else self.beyond)
        return count

    def _parameters(self, call: BiosCall) -> None:
        geometry = self.geometry
        last = geometry.cylinders - 1
        call.succeed()
        call.al = 0
        call.ch, call.cl = last, last >> 2 & 0xC0 | geometry.sectors
        call.dh, call.dl = geometry.heads - 1, self.of_its_kind


class DisketteDrive(BiosDisk):
    """A drive with a diskette, which nobody changes."""

    def call(self, call: BiosCall) -> None:
        match call.ah:
            case 0x15:
                call.succeed(1)  # a drive that does not notice when the diskette is changed
            case 0x16:
                call.fail(CHANGED)  # so it may have been
            case _:
                super().call(call)

    def _cannot_reach(self, address: int, count: int) -> bool:
        return address // DMA_PAGE != (address + count * SECTOR - 1) // DMA_PAGE

    def _parameters(self, call: BiosCall) -> None:
        super()._parameters(call)
        call.bx = self.geometry.drive_type
        call.point(ItemId.ES, rom.SEGMENT)
        call.di = rom.program().address("diskette")


class HardDisk(BiosDisk):
    """A hard disk."""

    beyond = BAD_TRACK

    def call(self, call: BiosCall) -> None:
        match call.ah:
            case 0x09 | 0x0C | 0x0D | 0x10 | 0x11 | 0x14:  # set up, seek, reset, ready?, recalibrate, diagnose
                call.succeed()
            case 0x15:
                call.succeed(3)
                call.cx, call.dx = self.disk.sectors >> 16, self.disk.sectors
            case 0x41:
                call.succeed(EDD_VERSION)
                call.bx, call.cx = 0xAA55, EDD_PACKETS
            case 0x42 | 0x43 | 0x44 | 0x47:
                self._by_packet(call)
            case 0x48:
                self._describe(call)
            case _:
                super().call(call)

    def _by_packet(self, call: BiosCall) -> None:
        packet_at = call.base(ItemId.DS) + call.si
        count, offset, segment, first = struct.unpack("<2x3HQ", call.memory.read(packet_at, PACKET_SIZE))
        if first >= self.disk.sectors:
            call.fail(BAD_COMMAND)
            return
        done = self._transfer(call, call.ah - 0x40, first, count, (segment << 4) + offset)
        call.memory.write(packet_at + 2, done.to_bytes(2, "little"))

    def _describe(self, call: BiosCall) -> None:
        geometry, result_at = self.geometry, call.base(ItemId.DS) + call.si
        if call.memory.half(result_at) < RESULT_SIZE:
            call.fail(BAD_COMMAND)
            return
        flags = 1 << 1  # the geometry is valid
        numbers = (RESULT_SIZE, flags, geometry.cylinders, geometry.heads, geometry.sectors, self.disk.sectors, SECTOR)
        call.memory.write(result_at, struct.pack("<HHIIIQH", *numbers))
        call.succeed()
