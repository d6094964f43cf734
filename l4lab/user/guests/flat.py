# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest as bytes at addresses: what every module of this package builds, and how another machine can be given it.

A guest starts as the Multiboot specification and Linux's 32-bit boot protocol start one: protected mode, flat
segments, paging off, interrupts off, EIP at the entry. Nothing else is promised: not the stack, not the other
registers, not the contents of GDTR. What the guests do is in the modules beside this one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from l4lab.user.asm import Program

# The first page above 1 MiB stays free: a Multiboot header can lie there without touching the ROM area below.
ORIGIN = 0x101000
RAM_SIZE = 16 << 20  # what a guest may rely on

COM1 = {"COM1": 0x3F8, "COM1_LSR": 0x3FD, "LSR_EMPTY": 0x20}  # names for greetings: data, line status, may send


@dataclass(frozen=True, slots=True)
class FlatGuest:
    """A system in memory, ready to be entered."""

    pieces: tuple[tuple[int, bytes], ...]  # guest-physical address, contents
    entry: int  # guest-physical, paging is off
    symbols: dict[str, int]  # addresses as the code sees them, for breakpoints and listings
    description: str  # one sentence

    @staticmethod
    def of(program: Program, description: str) -> FlatGuest:
        """The usual case: one program, run where it lies, entered at its first byte."""
        return FlatGuest(((program.origin, program.code),), program.origin, program.symbols, description)


def multiboot_image(guest: FlatGuest) -> bytes:
    """The guest as a file that any Multiboot loader takes, `qemu-system-i386 -kernel` among them.

    The header with load addresses (Multiboot 0.6.96, section 3.1.3) spares us an ELF file; it lies right in front of
    the lowest piece, and gaps between the pieces are filled with zeros.
    """
    start = min(address for address, _ in guest.pieces)
    end = max(address + len(contents) for address, contents in guest.pieces)
    memory = bytearray(end - start)
    for address, contents in guest.pieces:
        memory[address - start : address - start + len(contents)] = contents

    magic, flags = 0x1BADB002, 1 << 16  # bit 16: the address fields are valid
    checksum = -(magic + flags) & 0xFFFFFFFF
    header_at = start - 32
    #                                               header     load       load end  bss end  entry
    header = struct.pack("<8I", magic, flags, checksum, header_at, header_at, end, end, guest.entry)
    return header + bytes(memory)
