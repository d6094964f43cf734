# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans how a Multiboot kernel and its modules come into a guest's memory.

Source: Multiboot Specification 0.6.96, sections 3.1 and 3.2. What the kernel finds in memory about itself is the
information structure of `multiboot.py`. A misfit is a `LabError` that says what to change.

    0x5000   a GDT and a stack (`loader_area`), and
    0x9000   information structure, if the kernel leaves room there; else behind the modules
    kernel   where its ELF file or its header says
    modules  on pages of their own, behind the kernel and above 1 MiB
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from l4lab.errors import LabError
from l4lab.images import elf
from l4lab.images.loader_area import LoaderArea, loader_area, low_or_high
from l4lab.images.multiboot import MultibootModule, build_info
from l4lab.images.pieces import HIGH_RAM, LOW_RAM_END, Piece, check_command_line, check_fits, check_memory, gap_above
from l4lab.words import PAddr

MAGIC: Final = 0x1BADB002
LOADED: Final = 0x2BADB002  # in EAX: a Multiboot loader was here
SEARCHED: Final = 8192  # bytes of the file in which the header lies
ADDRESSES_VALID: Final = 1 << 16
KNOWN_DEMANDS: Final = 0b111  # flags 0..15 must be met: modules on pages, memory, a video mode (there is no screen)
ALL_DEMANDS: Final = 0xFFFF

INFO_AT: Final = 0x9000
LONGEST_COMMAND_LINE: Final = 4095


@dataclass(frozen=True, slots=True)
class Header:
    """The Multiboot header, in the names of the specification."""

    offset: int  # in the file
    flags: int
    header_addr: int
    load_addr: int
    load_end_addr: int
    bss_end_addr: int
    entry_addr: int


@dataclass(frozen=True, slots=True)
class MultibootPlan:
    """Everything that has to be so when the kernel executes its first instruction. No two pieces overlap."""

    pieces: tuple[Piece, ...]
    entry: PAddr  # EIP; EAX is `LOADED`
    info: PAddr  # EBX
    area: LoaderArea  # GDTR and ESP


def find_header(image: bytes) -> Header | None:
    """The header, if there is one: best on a multiple of four, as it should be; but GRUB at first took any place."""
    found = [offset for offset in _all_offsets(image) if _is_header(image, offset)]
    if not found:
        return None
    offset = min(found, key=lambda at: (at % 4 != 0, at))
    flags, *fields = struct.unpack("<I4x5I", image[offset + 4 : offset + 32].ljust(28, b"\0"))
    return Header(offset, flags, *fields)


def _all_offsets(image: bytes) -> Iterator[int]:
    """Where the magic number is."""
    magic, end = MAGIC.to_bytes(4, "little"), min(len(image), SEARCHED)
    at = image.find(magic, 0, end)
    while at >= 0:
        yield at
        at = image.find(magic, at + 1, end)


def _is_header(image: bytes, offset: int) -> bool:
    """Do magic number, flags and checksum fit, and lie where they are searched?"""
    words = image[offset : min(offset + 12, SEARCHED)]
    return len(words) == 12 and not sum(struct.unpack("<3I", words)) & 0xFFFF_FFFF


def is_whole_kernel(image: bytes) -> bool:
    """Is the file a Multiboot kernel from its first byte on? On a disk, one may lie behind the sector that boots it."""
    header = find_header(image)
    if header is None:
        return False
    if header.flags & ADDRESSES_VALID:
        return header.header_addr - header.load_addr == header.offset
    return image.startswith(elf.MAGIC)


def plan(
    image: bytes, name: str, command_line: str | None, modules: Sequence[tuple[bytes, str]], memory: int
) -> MultibootPlan:
    """How this kernel starts on a guest with so many bytes of memory; modules are contents and command line.

    A kernel that is given no command line finds its name there.
    """
    check_memory(memory)
    header = find_header(image)
    if header is None:
        raise LabError(f"{name} has no Multiboot header in its first {SEARCHED} bytes; give another --kind")
    if unknown := header.flags & ALL_DEMANDS & ~KNOWN_DEMANDS:
        raise LabError(
            f"{name} demands what no Multiboot loader knows (flags {unknown:#x}); give a kernel for Multiboot 1"
        )
    text = check_command_line(name if command_line is None else command_line, LONGEST_COMMAND_LINE, name)
    kernel = _by_header(image, name, header) if header.flags & ADDRESSES_VALID else _by_elf(image, name)
    for begin, end in kernel.areas:
        check_fits(name, end, memory)
        if begin < HIGH_RAM and end > LOW_RAM_END:
            raise LabError(f"{name} wants to lie at {begin:#x}, where a PC has its adapters; link it to 1 MiB")

    taken = list(kernel.areas)
    pieces = list(kernel.pieces)
    loaded = []
    for data, string in modules:
        at = gap_above(max(HIGH_RAM, *(end for _, end in taken)), len(data), ())
        check_fits(f"{name} with its modules", at + len(data), memory)
        pieces.append(Piece(PAddr(at), data, "module"))
        loaded.append(MultibootModule(at, at + len(data), string))
        taken.append((at, at + len(data)))

    line = text[:-1].decode("ascii")
    size = len(build_info(0, memory, loaded, line))
    info = low_or_high(INFO_AT, size, taken)
    check_fits(f"{name} with its modules", info + size, memory)
    taken.append((info, info + size))
    area = loader_area(f"{name} with its modules", taken, memory)
    pieces += [Piece(PAddr(info), build_info(info, memory, loaded, line), "information"), area.piece]
    return MultibootPlan(tuple(sorted(pieces, key=lambda piece: piece.address)), kernel.entry, PAddr(info), area)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """Where a kernel lies."""

    pieces: tuple[Piece, ...]
    areas: tuple[tuple[int, int], ...]  # begin and end in memory, zeroed data included
    entry: PAddr


def _by_elf(image: bytes, name: str) -> _Kernel:
    program = elf.load(image, name)
    segments = [segment for segment in program.segments if segment.memory_size]
    areas = sorted((int(segment.paddr), int(segment.end)) for segment in segments)
    if any(second[0] < first[1] for first, second in pairwise(areas)):
        raise LabError(f"{name} has two segments at the same address; link it again")
    entry = _physical_entry(segments, program.entry)
    if entry is None:
        raise LabError(
            f"{name} is to be entered at {program.entry:#x}, where it has nothing; link it again with an entry point"
        )
    return _Kernel(tuple(Piece(s.paddr, s.data, "kernel") for s in segments if s.data), tuple(areas), entry)


def _physical_entry(segments: Sequence[elf.Segment], entry: int) -> PAddr | None:
    """Where to enter while paging is off: ELF's entry is a virtual address, but some kernels put their physical one."""
    for segment in segments:
        if segment.vaddr <= entry < segment.vaddr + segment.memory_size:
            return PAddr(entry - segment.vaddr + segment.paddr)
    return PAddr(entry) if any(segment.paddr <= entry < segment.end for segment in segments) else None


def _by_header(image: bytes, name: str, header: Header) -> _Kernel:
    """By the address fields, whatever else the file may be. The header itself need not be among what is loaded."""
    begin = header.offset - (header.header_addr - header.load_addr)
    size = header.load_end_addr - header.load_addr if header.load_end_addr else len(image) - begin
    end = max(header.bss_end_addr, header.load_addr + size)
    if begin < 0 or size <= 0 or begin + size > len(image):
        raise LabError(f"{name} is cut short or damaged: its Multiboot header tells addresses outside of the file")
    if not header.load_addr <= header.entry_addr < end:
        raise LabError(f"{name} is damaged: its Multiboot header tells an entry at {header.entry_addr:#x}, outside")
    piece = Piece(PAddr(header.load_addr), image[begin : begin + size], "kernel")
    return _Kernel((piece,), ((header.load_addr, end),), PAddr(header.entry_addr))
