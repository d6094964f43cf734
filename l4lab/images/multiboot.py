# SPDX-License-Identifier: GPL-2.0-or-later
"""The Multiboot information structure: memory and modules, as a PC's boot loader describes them.

Source: Multiboot Specification 0.6.96, section 3.3. Lives here: its layout. Nothing here loads anything.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SIZE: Final = 88
LOADER_NAME: Final = b"l4lab\0"
# flags: which fields count
_MEMORY, _COMMAND_LINE, _MODULES, _MEMORY_MAP, _NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_LOW_END, _HIGH_BEGIN = 640 << 10, 1 << 20
_AVAILABLE = 1


@dataclass(frozen=True, slots=True)
class MultibootModule:
    """A file in memory, and the text that came with it."""

    start: int
    end: int
    text: str


def build_info(
    address: int, memory_end: int, modules: Sequence[MultibootModule], command_line: str | None = None
) -> bytes:
    """The structure and all that it points to, to be put at `address`; RAM is what a PC has of it up to an end."""
    flags = _MEMORY | _MODULES | _MEMORY_MAP | _NAME
    memory_map = b"".join(
        struct.pack("<IQQI", 20, begin, end - begin, _AVAILABLE)
        for begin, end in ((0, _LOW_END), (_HIGH_BEGIN, memory_end))
    )
    map_at = address + SIZE
    modules_at = map_at + len(memory_map)
    name_at = modules_at + 16 * len(modules)
    table, strings = b"", LOADER_NAME
    for module in modules:
        table += struct.pack("<4I", module.start, module.end, name_at + len(strings), 0)
        strings += module.text.encode("utf-8", "surrogateescape") + b"\0"
    command_line_at = 0
    if command_line is not None:
        flags |= _COMMAND_LINE
        command_line_at = name_at + len(strings)
        strings += command_line.encode("utf-8", "surrogateescape") + b"\0"
    info = bytearray(SIZE)
    for offset, *words in (
        (0, flags, _LOW_END >> 10, memory_end - _HIGH_BEGIN >> 10),
        (16, command_line_at, len(modules), modules_at),
        (44, len(memory_map), map_at),
        (64, name_at),
    ):
        struct.pack_into(f"<{len(words)}I", info, offset, *words)
    return bytes(info) + memory_map + table + strings
