# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that begin in real mode: by a boot sector, by a kernel's setup code, or by a BIOS of somebody else's.

Lives here: what lies in memory at the reset, and the first registers. The lab's BIOS is in `rom` and `bios`.

A BIOS image ends at 1 MiB. A PC has it at the top of 4 GiB too, and its CPU begins there; in this kernel's virtual
machines nothing can be mapped so high, so the CPU begins in the lower copy, where the first far jump leads anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from l4lab.user.monitor.state import Start
from l4lab.words import PAddr

RESET: Start = Start.real_mode(rom.SEGMENT, rom.RESET)
CYLINDER: Final = 16 * 63 * SECTOR  # bytes, of a hard disk


def with_bios(pieces: Sequence[Piece], loaded: Start, memory_size: int) -> GuestProgram:
    """A monitor program for what lies in memory and is started by the lab's BIOS with these registers."""

    def attach(monitor: Monitor) -> None:
        Bios(monitor, loaded, BiosDisks((), _hard_disks(monitor))).power_on()

    return GuestProgram([(piece.address, piece.data) for piece in pieces], RESET, memory_size, attach)


def boot_sector(image: Image, name: str, memory_size: int) -> GuestProgram:
    """A hard disk that begins with a boot sector: the PC's own, unless that is another one.

    What is shorter than a cylinder is filled up with zeros to one: images have no more in them than was written there,
    and loaders read a little further.
    """
    _check_bootable(image, name, memory_size)
    if len(image) < CYLINDER:
        image = bytes(image).ljust(CYLINDER, b"\0")

    def attach(monitor: Monitor) -> None:
        hard_disks = _hard_disks(monitor)
        is_own = bool(hard_disks) and hard_disks[0].image is image
        Bios(monitor, None, BiosDisks((), hard_disks if is_own else [Disk(image), *hard_disks])).power_on()

    program = GuestProgram((), RESET, memory_size, attach)
    program.hardware = Hardware(disk=image)
    return program


def diskette(image: Image, name: str, memory_size: int) -> GuestProgram:
    """A diskette that begins with a boot sector. What the image lacks of it is zeros."""
    _check_bootable(image, name, memory_size)
    geometry = as_diskette(bytes(image[:SECTOR]), len(image), name)

    def attach(monitor: Monitor) -> None:
        in_drive = Diskette(Disk(image, geometry.size), geometry)
        Bios(monitor, None, BiosDisks([in_drive], _hard_disks(monitor))).power_on()

    return GuestProgram((), RESET, memory_size, attach)


def go_on(monitor: Monitor) -> None:
    """Give a saved guest its BIOS again, if it had the lab's: its ROM is in its memory. A diskette's drive is empty."""
    if monitor.memory.read(rom.ROM_AT, rom.STUB_SIZE) == rom.STUB:
        Bios(monitor, None, BiosDisks((), _hard_disks(monitor)))


def _check_bootable(image: Image, name: str, memory_size: int) -> None:
    check_memory(memory_size)
    if bytes(image[SECTOR - 2 : SECTOR]) != BOOT_SIGNATURE:
        raise LabError(f"{name} has no boot sector: bytes 510 and 511 are not 55 AA; give another --kind, or a kernel")


def _hard_disks(monitor: Monitor) -> list[Disk]:
    return [] if monitor.disk is None else [monitor.disk]


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
