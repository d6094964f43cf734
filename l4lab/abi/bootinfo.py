# SPDX-License-Identifier: GPL-2.0-or-later
"""The generic boot information: where a boot loader tells the root task what else it has loaded.

The KIP's BootInfo word is the physical address of a header; records follow, each with the distance to the next.
Source: X.2 manual, appendix Generic BootInfo. Lives here: the layout. What is loaded, and where to, is the loader's.

    header   magic  version  size  offset of the first record  number of records  0  0  0
    record   type   version  distance to the next   ...
    module   1      1        distance               address  size  distance to the command line
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
MULTIBOOT: Final = 0x0102
# Subtypes of boot-loader specific memory in the KIP.
TABLES: Final = 1
SERVER: Final = 2
MODULES: Final = 3

_HEADER_WORDS, _MODULE_WORDS = 8, 6


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A file that lies in memory as it is."""

    start: int
    size: int
    command_line: str


def build_boot_info(modules: Sequence[LoadedModule], multiboot: int) -> bytes:
    """Header and records. `multiboot`: physical address of the same in Multiboot's format."""
    records = b""
    for module in modules:
        text = module.command_line.encode() + b"\0"
        text += bytes(-len(text) % 4)
        here = 4 * _MODULE_WORDS
        records += struct.pack("<6I", MODULE, 1, here + len(text), module.start, module.size, here) + text
    records += struct.pack("<4I", MULTIBOOT, 1, 16, multiboot)
    header = 4 * _HEADER_WORDS
    words = (MAGIC, VERSION, header + len(records), header, len(modules) + 1, 0, 0, 0)
    return struct.pack("<8I", *words) + records
