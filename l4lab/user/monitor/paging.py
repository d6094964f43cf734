# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own page tables, walked by its monitor where it has to find what an instruction of the guest meant.

Source: Intel SDM vol. 3, chapter "Paging", 32-bit paging with 4 KB and 4 MB pages. The CPU walks the same tables
whenever the guest runs; here it is done for the few instructions that the monitor executes in the guest's stead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from l4lab.abi import vm
from l4lab.abi.vm import ItemId, SegmentAttributes
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory

CR0_WP, CR0_PG, CR4_PSE = 1 << 16, 1 << 31, 1 << 4
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
LARGE_RESERVED: Final = 1 << 21
PAGE: Final = 1 << 12

# Bits of a page fault's error code.
PROTECTION, WRITE, BY_USER, RESERVED = 1, 2, 4, 8


class GuestPageFault(Exception):
    """The guest's tables do not allow an access: the page fault that the guest is to be given."""

    def __init__(self, address: int, error_code: int) -> None:
        super().__init__(f"page fault at {address:#x}, error code {error_code:#x}")
        self.address = address
        self.error_code = error_code


@dataclass(frozen=True, slots=True)
class Paging:
    """The registers that decide where a guest's linear address leads."""

    cr0: int
    cr3: int
    cr4: int
    user: bool  # is the guest in ring 3?

    # What `GuestCpu.read` has to be asked for.
    ITEMS = (ItemId.CREGS, ItemId.CS, ItemId.SS)

    @classmethod
    def of(cls, registers: Mapping[ItemId, Mapping[int, int]]) -> Paging:
        """From the registers in `ITEMS`. A CPU's privilege level is that of its stack segment."""
        control = registers[ItemId.CREGS]
        stack = SegmentAttributes.decode(registers[ItemId.SS][vm.ATTRIBUTES])
        return cls(control[vm.CR0], control[vm.CR3], control[vm.CR4], stack.dpl == 3)

    def translate(self, memory: GuestMemory, linear: int, write: bool = False) -> int:
        """The guest-physical address behind a linear one; accessed and dirty bits are set as the CPU sets them."""
        if not self.cr0 & CR0_PG:
            return linear
        access = (WRITE if write else 0) | (BY_USER if self.user else 0)
        at = (self.cr3 & -PAGE) + 4 * (linear >> 22)
        entry = rights = memory.word(at)
        if not entry & PRESENT:
            raise GuestPageFault(linear, access)
        if entry & LARGE and self.cr4 & CR4_PSE:
            if entry & LARGE_RESERVED:
                raise GuestPageFault(linear, access | PROTECTION | RESERVED)
            # Bits 20..13 are bits 39..32 of the address: memory that no guest of ours has.
            physical = (entry & 0xFFC0_0000 | linear & 0x3F_FFFF) + ((entry >> 13 & 0xFF) << 32)
        else:
            memory.set_word(at, entry | ACCESSED)
            at = (entry & -PAGE) + 4 * (linear >> 12 & 0x3FF)
            entry = memory.word(at)
            rights &= entry
            if not entry & PRESENT:
                raise GuestPageFault(linear, access)
            physical = entry & -PAGE | linear & PAGE - 1
        if (self.user and not rights & USER) or (write and not rights & WRITABLE and (self.user or self.cr0 & CR0_WP)):
            raise GuestPageFault(linear, access | PROTECTION)
        memory.set_word(at, entry | ACCESSED | (DIRTY if write else 0))
        return physical

    def last_entry(self, memory: GuestMemory, linear: int) -> tuple[int, bool]:
        """Where the entry is that leads to the page of a linear address which can be translated; is it a large page?"""
        at = (self.cr3 & -PAGE) + 4 * (linear >> 22)
        entry = memory.word(at)
        if entry & LARGE and self.cr4 & CR4_PSE:
            return at, True
        return (entry & -PAGE) + 4 * (linear >> 12 & 0x3FF), False


def _pieces(memory: GuestMemory, paging: Paging, linear: int, length: int, write: bool) -> Iterator[tuple[int, int]]:
    """Guest-physical address and size of one piece after the other, a page at most."""
    done = 0
    while done < length:
        at = linear + done & 0xFFFF_FFFF
        size = min(length - done, PAGE - at % PAGE)
        yield paging.translate(memory, at, write), size
        done += size


def locate(memory: GuestMemory, paging: Paging, linear: int, length: int, write: bool = False) -> list[tuple[int, int]]:
    """Where `length` bytes at a linear address are: guest-physical address and size of each piece, a page at most."""
    return list(_pieces(memory, paging, linear, length, write))


def locate_some(
    memory: GuestMemory, paging: Paging, linear: int, length: int, write: bool = False
) -> list[tuple[int, int]]:
    """As `locate`, up to the first page that faults."""
    found: list[tuple[int, int]] = []
    with suppress(GuestPageFault):
        for piece in _pieces(memory, paging, linear, length, write):
            found.append(piece)
    return found


def read_linear(memory: GuestMemory, paging: Paging, linear: int, length: int) -> bytes:
    """Guest memory at a linear address."""
    return b"".join(memory.read(physical, size) for physical, size in locate(memory, paging, linear, length))


def write_pieces(memory: GuestMemory, pieces: list[tuple[int, int]], data: bytes) -> None:
    """Write guest memory at what `locate` has found, up to the end of the data."""
    done = 0
    for physical, size in pieces:
        memory.write(physical, data[done : done + size])  # nothing, when the data is at its end
        done += size


def write_linear(memory: GuestMemory, paging: Paging, linear: int, data: bytes) -> None:
    """Write guest memory at a linear address; nothing is written if any page of it faults."""
    write_pieces(memory, locate(memory, paging, linear, len(data), write=True), data)


def read_code(memory: GuestMemory, vcpu: GuestCpu, eip: int, length: int) -> tuple[bytes, int]:
    """As `code_at`, where no registers have been read yet."""
    return code_at(memory, vcpu.read(*Paging.ITEMS), eip, length)


def code_at(
    memory: GuestMemory, registers: Mapping[ItemId, Mapping[int, int]], eip: int, length: int
) -> tuple[bytes, int]:
    """Bytes at the guest's EIP, up to the first page that is missing, and whether its code is 16 or 32 bits wide.

    The registers are those of `Paging.ITEMS`, or more.
    """
    paging, code = Paging.of(registers), registers[ItemId.CS]
    width = 32 if SegmentAttributes.decode(code[vm.ATTRIBUTES]).default_big else 16
    linear = code[vm.BASE] + eip & 0xFFFF_FFFF
    for size in (length, PAGE - linear % PAGE):  # the second attempt stays within the first page
        try:
            return read_linear(memory, paging, linear, min(size, length)), width
        except GuestPageFault:
            pass
    return b"", width
