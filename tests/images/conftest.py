# SPDX-License-Identifier: GPL-2.0-or-later
"""Images to test with: Debian's real kernel, and small made-up ones whose every field is known."""

from __future__ import annotations

import lzma
from collections.abc import Callable

import pytest

from l4lab.guests import guest

MakeElf = Callable[..., bytes]
MakeBzimage = Callable[..., bytes]


@pytest.fixture(scope="session")
def debian_kernel() -> bytes:
    """The bzImage of Debian's kernel for 32-bit PCs."""
    return guest.get("linux").kernel.read_bytes()


@pytest.fixture(scope="session")
def make_elf() -> MakeElf:
    """Makes a 32-bit x86 executable of one segment."""

    def make(
        data: bytes = b"\xf4", paddr: int = 0x100000, memory_size: int | None = None, machine: int = 3, kind: int = 2
    ) -> bytes:
        header = b"\x7fELF\x01\x01\x01" + bytes(9)  # 32 bits, little-endian, version 1
        for size, value in ((2, kind), (2, machine), (4, 1), (4, paddr), (4, 52), (4, 0), (4, 0)):
            header += value.to_bytes(size, "little")
        for value in (52, 32, 1, 40, 0, 0):  # sizes of header and of a program header, how many, no sections
            header += value.to_bytes(2, "little")
        size_in_memory = len(data) if memory_size is None else memory_size
        for value in (1, 84, 0xC0000000 + paddr, paddr, len(data), size_in_memory, 7, 1):
            header += value.to_bytes(4, "little")
        return header + data

    return make


@pytest.fixture(scope="session")
def make_bzimage(make_elf: MakeElf) -> MakeBzimage:
    """Makes a bzImage around an ELF file; `fields` overrides header fields, as offset to (size, value)."""

    def make(
        elf: bytes | None = None,
        compress: Callable[[bytes], bytes] = lzma.compress,
        fields: dict[int, tuple[int, int]] | None = None,
    ) -> bytes:
        elf = make_elf() if elf is None else elf
        payload = compress(elf) + len(elf).to_bytes(4, "little")
        code = b"unpacker" + payload
        code += bytes(-len(code) % 16)
        setup = bytearray(2 * 512)
        setup[0x202:0x206] = b"HdrS"
        setup[0x300:0x30C] = b"6.1.0-made\0\0"
        known = {
            0x1F1: (1, 1),  # setup_sects
            0x1F4: (4, len(code) // 16),  # syssize
            0x1FE: (2, 0xAA55),  # boot_flag
            0x201: (1, 0x6A),  # the header ends at 0x26c
            0x206: (2, 0x020F),  # protocol
            0x20E: (2, 0x100),  # kernel_version
            0x211: (1, 1),  # loadflags
            0x22C: (4, 0x7FFFFFFF),  # initrd_addr_max
            0x234: (1, 1),  # relocatable_kernel
            0x238: (4, 2047),  # cmdline_size
            0x248: (4, 8),  # payload_offset
            0x24C: (4, len(payload)),  # payload_length
            0x258: (8, 0x100000),  # pref_address
            0x260: (4, 0x200000),  # init_size
        }
        for offset, (size, value) in (known | (fields or {})).items():
            setup[offset : offset + size] = value.to_bytes(size, "little")
        return bytes(setup) + code

    return make
