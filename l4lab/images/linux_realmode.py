# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans how a program in Linux's image format comes into memory by the 16-bit boot protocol.

For images that `bzimage` cannot unpack: old kernels, and memory testers and network loaders that merely look like a
kernel to a boot loader. They begin with their setup code in real mode, and ask the BIOS for what they want to know.
Source: Linux, Documentation/arch/x86/boot.rst, "Loading The Rest of The Kernel", "Running the Kernel".

    0x10000  boot sector and setup code, behind it its heap, then its stack down from 0x1e000
    0x1e000  command line
    0x100000 protected-mode code       top of memory  initrd, unless the code is going to overwrite it there

iPXE unpacks itself, before it moves to where it wants to be, to the end of the memory that INT 15, 88 tells, without
a look at what lies there. So an initrd stays out of that memory's last piece.
"""

from __future__ import annotations

from typing import Final

from l4lab.errors import LabError
from l4lab.images.boot_params import CAN_USE_HEAP, UNKNOWN_LOADER
from l4lab.images.bzimage import LOADED_HIGH, setup_size_of
from l4lab.images.pieces import (
    HIGH_RAM,
    KIB,
    MIB,
    MOST_TOLD_KB,
    PAGE,
    Piece,
    check_command_line,
    check_fits,
    check_memory,
)
from l4lab.words import PAddr

SEGMENT: Final = 0x1000
SETUP_AT: Final = SEGMENT << 4
SETUP_SEGMENT: Final = SEGMENT + 0x20  # behind the boot sector
STACK: Final = 0xE000  # offset of its end; there the command line begins
WITH_COMMAND_LINE_POINTER, WITH_LARGEST_COMMAND_LINE = 0x0202, 0x0206  # protocols
OLD_COMMAND_LINE: Final = 255
INITRD_END: Final = 0x37FF_FFFF + 1  # where protocols before 2.03 have their initrd at most
WITH_INITRD_END: Final = 0x0203
SCRATCH: Final = 2 * MIB  # what is left free for such code


def plan(image: bytes, name: str, initrd: bytes | None, cmdline: str, memory: int) -> list[Piece]:
    """What lies in memory when the setup code starts, at `SETUP_SEGMENT`:0 with all data segments at `SEGMENT`."""

    def field(offset: int, size: int) -> int:
        return int.from_bytes(image[offset : offset + size], "little")

    check_memory(memory)
    protocol, loadflags, setup_size = field(0x206, 2), field(0x211, 1), setup_size_of(image)
    if protocol < WITH_COMMAND_LINE_POINTER or not loadflags & LOADED_HIGH or setup_size > STACK - 0x1000:
        raise LabError(
            f"{name} is too old a Linux kernel (boot protocol {protocol >> 8}.{protocol & 0xFF:02}, a zImage or before "
            "2.02); give a bzImage, or the one of: l4lab guest get linux"
        )
    if len(image) <= setup_size:
        raise LabError(f"{name} is cut short: it ends within its setup code; get the file again")
    code = image[setup_size:]
    code_end = HIGH_RAM + len(code)
    check_fits(name, code_end, memory)
    longest = field(0x238, 4) if protocol >= WITH_LARGEST_COMMAND_LINE else OLD_COMMAND_LINE
    text = check_command_line(cmdline, min(longest, 0xFFF), name)
    setup = bytearray(image[:setup_size])

    def put(offset: int, size: int, value: int) -> None:
        setup[offset : offset + size] = value.to_bytes(size, "little")

    put(0x210, 1, UNKNOWN_LOADER)
    put(0x211, 1, loadflags | CAN_USE_HEAP)
    put(0x224, 2, STACK - 0x200)  # heap_end_ptr
    put(0x228, 4, SETUP_AT + STACK)  # cmd_line_ptr
    pieces = [
        Piece(PAddr(SETUP_AT + STACK), text, "command line"),
        Piece(HIGH_RAM, code, "kernel"),
    ]
    if initrd:
        end = min(memory, field(0x22C, 4) + 1 if protocol >= WITH_INITRD_END else INITRD_END)
        at = _initrd_at(len(initrd), code_end, end, memory)
        check_fits(f"{name} with its initrd", memory if at >= code_end else code_end + len(initrd) + PAGE, memory)
        put(0x218, 4, at)
        put(0x21C, 4, len(initrd))
        pieces.append(Piece(PAddr(at), initrd, "initrd"))
    pieces.append(Piece(PAddr(SETUP_AT), bytes(setup), "setup code"))
    return sorted(pieces, key=lambda piece: piece.address)


def _initrd_at(size: int, begin: int, end: int, memory: int) -> int:
    """The highest page at which it ends before `end`; below the scratch area, if there is room from `begin` on."""
    at = (end - size) & -PAGE
    scratch_end = min(memory, HIGH_RAM + MOST_TOLD_KB * KIB)
    below = (scratch_end - SCRATCH - size) & -PAGE
    return below if at < scratch_end and below >= begin else at
