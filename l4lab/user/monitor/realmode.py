# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that begin in real mode: by a boot sector, by a kernel's setup code, or by a BIOS of somebody else's.

Lives here: what lies in memory at the reset, and the first registers. The lab's BIOS is in `rom` and `bios`.

A BIOS image ends at 1 MiB. A PC has it at the top of 4 GiB too, and its CPU begins there; in this kernel's virtual
machines nothing can be mapped so high, so the CPU begins in the lower copy, where the first far jump leads anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from l4lab.devices.disk import Disk, Image
from l4lab.errors import LabError
from l4lab.images import linux_realmode
from l4lab.images.kinds import BIOS_SIZES, BOOT_SIGNATURE, SECTOR
from l4lab.images.pieces import HIGH_RAM, Piece, check_memory
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios import Bios
from l4lab.user.monitor.bios_disk import DISKETTE, BiosDisks, number_of
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.monitor import GuestProgram, Monitor
from l4lab.user.monitor.state import Start
from l4lab.words import PAddr

RESET: Start = Start.real_mode(rom.SEGMENT, rom.RESET)


def with_bios(pieces: Sequence[Piece], loaded: Start, memory_size: int) -> GuestProgram:
    """A monitor program for what lies in memory and is started by the lab's BIOS with these registers."""

    def attach(monitor: Monitor) -> None:
        Bios(monitor, loaded, BiosDisks((), _hard_disks(monitor)))

    return GuestProgram([(piece.address, piece.data) for piece in pieces], RESET, memory_size, attach)


def boot_sector(image: Image, name: str, memory_size: int) -> GuestProgram:
    """A disk that begins with a boot sector: the PC's own, unless that is another one, or a diskette."""
    check_memory(memory_size)
    if bytes(image[SECTOR - 2 : SECTOR]) != BOOT_SIGNATURE:
        raise LabError(f"{name} has no boot sector: bytes 510 and 511 are not 55 AA; give another --kind, or a kernel")
    is_diskette = number_of(image) == DISKETTE

    def attach(monitor: Monitor) -> None:
        hard_disks = _hard_disks(monitor)
        if is_diskette:
            disks = BiosDisks([Disk(image)], hard_disks)
        elif hard_disks and hard_disks[0].image is image:
            disks = BiosDisks((), hard_disks)
        else:
            disks = BiosDisks((), [Disk(image), *hard_disks])
        Bios(monitor, None, disks)

    program = GuestProgram((), RESET, memory_size, attach)
    if not is_diskette:
        program.hardware = Hardware(disk=image)
    return program


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
