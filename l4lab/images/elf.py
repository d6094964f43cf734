# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads an IA-32 executable in ELF: the pieces to put into memory, and where to enter.

Source: System V ABI, Intel386 Architecture Processor Supplement, chapter 5; pyelftools does the parsing. Symbols,
relocations and shared libraries do not live here: kernels and native L4 programs are linked to fixed addresses.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from l4lab.errors import LabError
from l4lab.words import PAddr, VAddr

MAGIC: Final = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of memory: `data`, then zeros up to `memory_size`."""

    paddr: PAddr
    vaddr: VAddr
    data: bytes
    memory_size: int
    text: bool  # code or constants, that is: executable, or not to be written

    @property
    def end(self) -> PAddr:
        """The first physical address after it."""
        return PAddr(self.paddr + self.memory_size)


@dataclass(frozen=True, slots=True)
class Executable:
    """What an ELF file asks its loader to do."""

    segments: tuple[Segment, ...]
    entry: VAddr


def load(data: bytes, name: str = "the program") -> Executable:
    """The loadable segments and the entry point of a 32-bit x86 executable."""
    from elftools.common.exceptions import ELFError  # here, because they cost 15 ms, which not every machine needs
    from elftools.construct import ConstructError
    from elftools.elf.constants import P_FLAGS
    from elftools.elf.elffile import ELFFile

    try:
        file = ELFFile(io.BytesIO(data))
        kind = (file.elfclass, file["e_machine"], file["e_type"])
        headers = [segment.header for segment in file.iter_segments("PT_LOAD")]
        entry = VAddr(file["e_entry"])
    except (ELFError, ConstructError, UnicodeDecodeError) as error:
        raise LabError(f"{name} is not an ELF executable ({error}); build it with: gcc -m32 -static") from error
    if kind != (32, "EM_386", "ET_EXEC"):
        what = f"{kind[0]}-bit {kind[1]} {kind[2]}"
        raise LabError(f"{name} is no 32-bit x86 executable but {what}; build it with: gcc -m32 -static -no-pie")
    segments = []
    for header in headers:
        begin, size = header.p_offset, header.p_filesz
        if begin + size > len(data) or size > header.p_memsz:
            raise LabError(f"{name} is cut short or damaged: a segment lies outside of the file; get it again")
        place = (PAddr(header.p_paddr), VAddr(header.p_vaddr))
        text = bool(header.p_flags & P_FLAGS.PF_X) or not header.p_flags & P_FLAGS.PF_W
        segments.append(Segment(*place, data=data[begin : begin + size], memory_size=header.p_memsz, text=text))
    if not segments:
        raise LabError(f"{name} has nothing to load; build it with: gcc -m32 -static")
    return Executable(tuple(segments), entry)
