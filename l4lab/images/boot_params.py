# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds `struct boot_params`, the "zero page" by which a boot loader tells Linux what it has found and done.

Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst. Which addresses are told is decided in `linux.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from l4lab.images.bzimage import HEADER_BEGIN
from l4lab.words import PAddr

SIZE = 4096
UNKNOWN_LOADER = 0xFF  # type_of_loader of everyone without a number of their own
CAN_USE_HEAP = 1 << 7  # loadflags: heap_end_ptr is valid; only the setup code, which we skip, would use it

# screen_info of a VGA in mode 3 with an empty screen: mode, columns, EGA memory, lines, "it is a VGA", font height.
VGA_TEXT = {0x06: 3, 0x07: 80, 0x0A: 3, 0x0E: 25, 0x0F: 1, 0x10: 16}


class RegionKind(IntEnum):
    """What a piece of physical memory is: the types of the BIOS call E820."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True, slots=True)
class E820Region:
    """One line of the memory map."""

    begin: PAddr
    end: PAddr
    kind: RegionKind


def build(
    setup_header: bytes,
    memory_map: list[E820Region],
    command_line: PAddr,
    ramdisk: PAddr,
    ramdisk_size: int,
    screen: bool = False,
) -> bytes:
    """The page; all that is not said in it stays zero, which for `screen_info` means: there is no screen."""
    page = bytearray(SIZE)

    def put(offset: int, size: int, value: int) -> None:
        page[offset : offset + size] = value.to_bytes(size, "little")

    page[HEADER_BEGIN : HEADER_BEGIN + len(setup_header)] = setup_header
    put(0x210, 1, UNKNOWN_LOADER)
    put(0x211, 1, page[0x211] & ~CAN_USE_HEAP)
    put(0x218, 4, ramdisk)
    put(0x21C, 4, ramdisk_size)
    put(0x228, 4, command_line)
    put(0x1E8, 1, len(memory_map))  # e820_entries
    if screen:
        for offset, value in VGA_TEXT.items():
            put(offset, 1, value)
    for number, region in enumerate(memory_map):
        entry = 0x2D0 + 20 * number  # e820_table: address, size, type, packed
        put(entry, 8, region.begin)
        put(entry + 8, 8, region.end - region.begin)
        put(entry + 16, 4, region.kind)
    return bytes(page)
