# SPDX-License-Identifier: GPL-2.0-or-later
"""The generic boot information: where a boot loader tells the root task what else it has loaded.

The KIP's BootInfo word is the physical address of a header; records follow, each with the distance to the next.
Source: X.2 manual, appendix Generic BootInfo. Lives here: the layout. What is loaded, and where to, is the loader's.

    header   magic  version  size  offset of the first record  number of records  0  0  0
    record   type   version  distance to the next   ...
    module   1      1        distance               address  size  distance to the command line
    program  2      1        distance               text, data, zeros: for each its physical address, virtual
                                                    address, size   entry  flags  label  distance to the command line
    multiboot 0x102 1        distance               address of a Multiboot information structure
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAGIC: Final = 0x14B0_021D
VERSION: Final = 1
MODULE: Final = 0x0001
SIMPLE_EXECUTABLE: Final = 0x0002
MULTIBOOT: Final = 0x0102
# Subtypes of boot-loader specific memory in the KIP.
TABLES: Final = 1
SERVER: Final = 2
MODULES: Final = 3

_HEADER_WORDS = 8
_CLASS_32 = 1  # flags of a program: its ELF class


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A file that lies in memory as it is."""

    start: int
    size: int
    command_line: str


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program in the place at which it runs. Pieces are address and size; one of size 0 is not there."""

    text: tuple[int, int]
    data: tuple[int, int]
    zeros: tuple[int, int]
    entry: int
    command_line: str


def build_boot_info(programs: Sequence[LoadedProgram], modules: Sequence[LoadedModule], multiboot: int) -> bytes:
    """Header and records: the first programs, as loaders of L4 systems have them, then the modules.

    Programs look for the root task's record by its type, or take the second one for it. `multiboot`: physical address
    of the same in Multiboot's format.
    """
    records = b""
    for program in programs:
        pieces = [word for at, size in (program.text, program.data, program.zeros) for word in (at, at, size)]
        records += _record(SIMPLE_EXECUTABLE, [*pieces, program.entry, _CLASS_32, 0], program.command_line)
    for module in modules:
        records += _record(MODULE, [module.start, module.size], module.command_line)
    records += struct.pack("<4I", MULTIBOOT, 1, 16, multiboot)
    header = 4 * _HEADER_WORDS
    words = (MAGIC, VERSION, header + len(records), header, len(programs) + len(modules) + 1, 0, 0, 0)
    return struct.pack("<8I", *words) + records


def _record(kind: int, words: Sequence[int], command_line: str) -> bytes:
    """A record whose last word says where its command line is, which lies behind it."""
    text = command_line.encode() + b"\0"
    text += bytes(-len(text) % 4)
    here = 4 * (len(words) + 4)
    return struct.pack(f"<{len(words) + 4}I", kind, 1, here + len(text), *words, here) + text
