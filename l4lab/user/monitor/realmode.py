# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that begin in real mode: by a boot sector, by a kernel's setup code, or by a BIOS of somebody else's.

Lives here: what lies in memory at the reset, and the first registers. The lab's BIOS is in `rom` and `bios`.

A BIOS image ends at 1 MiB. A PC has it at the top of 4 GiB too, and its CPU begins there; in this kernel's virtual
machines nothing can be mapped so high, so the CPU begins in the lower copy, where the first far jump leads anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from l4lab.devices.disk import SECTOR, Disk, Image
from l4lab.errors import LabError
from l4lab.images import linux_realmode
from l4lab.images.diskette import as_diskette
from l4lab.images.kinds import BIOS_SIZES, BOOT_SIGNATURE
from l4lab.images.pieces import HIGH_RAM, Piece, check_memory
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios import Bios
from l4lab.user.monitor.bios_disk import BiosDisks, Diskette
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.monitor import GuestProgram, Monitor
from l4lab.user.monitor.start import Start
from l4lab.words import PAddr

RESET: Start = Start.real_mode(rom.SEGMENT, rom.RESET)
CYLINDER: Final = 16 * 63 * SECTOR  # bytes, of a hard disk


@dataclass(frozen=True, slots=True)
class LabBios:
    """The lab's BIOS for a guest: what a guest's program attaches to its monitor."""

    loaded: Start | None = None  # what lies in memory is started with these registers; None: it boots from a disk
    diskette: Image | None = None  # in the drive
    hard_disk: Image | None = None  # boots: the PC's own, or one in front of it
    goes_on: bool = False  # a saved guest's: its ROM is in its memory, if it had the lab's BIOS, and it has begun

    def __call__(self, monitor: Monitor) -> None:
        """Give it to the monitor."""
        if self.goes_on and monitor.memory.read(rom.ROM_AT, rom.STUB_SIZE) != rom.STUB:
            return
        hard_disks = [] if monitor.disk is None else [monitor.disk]
        if self.hard_disk is not None and not (hard_disks and hard_disks[0].image is self.hard_disk):
            hard_disks.insert(0, Disk(self.hard_disk))
        bios = Bios(monitor, self.loaded, BiosDisks(self._drives(), hard_disks))
        if not self.goes_on:
            bios.power_on()

    def _drives(self) -> list[Diskette]:
        if self.diskette is None:
            return []
        geometry = as_diskette(bytes(self.diskette[:SECTOR]), len(self.diskette), "the diskette")
        return [Diskette(Disk(self.diskette, geometry.size), geometry)]


GO_ON = LabBios(goes_on=True)  # a saved guest's; its diskette drive is empty


def with_bios(pieces: Sequence[Piece], loaded: Start, memory_size: int) -> GuestProgram:
    """A monitor program for what lies in memory and is started by the lab's BIOS with these registers."""

    contents = [(piece.address, piece.data) for piece in pieces]
    return GuestProgram(contents, RESET, memory_size, LabBios(loaded))


def boot_sector(image: Image, name: str, memory_size: int) -> GuestProgram:
    """A hard disk that begins with a boot sector: the PC's own, unless that is another one.

    What is shorter than a cylinder is filled up with zeros to one: images have no more in them than was written there,
    and loaders read a little further.
    """
    _check_bootable(image, name, memory_size)
    if len(image) < CYLINDER:
        image = bytes(image).ljust(CYLINDER, b"\0")

    program = GuestProgram((), RESET, memory_size, LabBios(hard_disk=image))
    program.hardware = Hardware(disk=image)
    return program


def diskette(image: Image, name: str, memory_size: int) -> GuestProgram:
    """A diskette that begins with a boot sector. What the image lacks of it is zeros."""
    _check_bootable(image, name, memory_size)
    as_diskette(bytes(image[:SECTOR]), len(image), name)
    return GuestProgram((), RESET, memory_size, LabBios(diskette=image))


def _check_bootable(image: Image, name: str, memory_size: int) -> None:
    check_memory(memory_size)
    if bytes(image[SECTOR - 2 : SECTOR]) != BOOT_SIGNATURE:
        raise LabError(f"{name} has no boot sector: bytes 510 and 511 are not 55 AA; give another --kind, or a kernel")


def setup_code(image: bytes, name: str, initrd: bytes | None, cmdline: str, memory_size: int) -> GuestProgram:
    """A program in Linux's image format that begins with its setup code."""
    pieces = linux_realmode.plan(image, name, initrd, cmdline, memory_size)
    segment, stack = linux_realmode.SEGMENT, linux_realmode.STACK
    return with_bios(pieces, Start.real_mode(linux_realmode.SETUP_SEGMENT, 0, segment, stack), memory_size)


def bios_image(image: bytes, name: str, memory_size: int) -> GuestProgram:
    """A BIOS."""
    check_memory(memory_size)
    if len(image) not in BIOS_SIZES:
        sizes = ", ".join(f"{size >> 10}" for size in BIOS_SIZES)
        raise LabError(f"{name} has {len(image)} bytes, and a BIOS has {sizes} KiB; give another --kind")
    return GuestProgram([(PAddr(HIGH_RAM - len(image)), image)], RESET, memory_size)
