# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory of the machine: one flat piece of RAM that starts at physical address 0.

The bytes live in an anonymous mapping of the host, so the CPU engine (by `address`) and Python (by `u8` and `u32`)
look at the same bytes and nothing is ever copied between them. What lives here: plain access by physical address.
What does not: which frame belongs to whom (`kernel/objects/frames.py`,
`kernel/memory/mapping.py`) and virtual addresses (`mmu.py`).
"""

from __future__ import annotations

import ctypes
import mmap

from l4lab.errors import KernelPanic

PAGE_SIZE = 4096


class Memory:
    """RAM from physical address 0 up to `size`.

    `u8` and `u32` are the fast ways in, for code that knows its addresses to be good; `u32` counts words, so the word
    at physical address `pa` is `u32[pa >> 2]`. `read`, `write` and `fill` check, and name the address that is wrong.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise KernelPanic(f"RAM comes in whole pages of {PAGE_SIZE} bytes, not {size:#x}")
        self.size = size
        self._host = mmap.mmap(-1, size)
        self.u8 = memoryview(self._host)
        self.u32 = self.u8.cast("I")
        self.address: int = ctypes.addressof(ctypes.c_char.from_buffer(self._host))  # of byte 0, in the host

    def __repr__(self) -> str:
        return f"Memory({self.size >> 10} KB)"

    def _check(self, pa: int, length: int) -> None:
        if pa < 0 or length < 0 or pa + length > self.size:
            raise KernelPanic(f"physical {pa:#x}, {length:#x} bytes: RAM ends at {self.size:#x}")

    def read(self, pa: int, length: int) -> bytes:
        """A copy of `length` bytes from physical address `pa`."""
        self._check(pa, length)
        return self.u8[pa : pa + length].tobytes()

    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at physical address `pa`. Code that the CPU has run before must be announced to the engine."""
        self._check(pa, len(data))
        self.u8[pa : pa + len(data)] = data

    def fill(self, pa: int, length: int, value: int = 0) -> None:
        """Set `length` bytes from physical address `pa` to `value`."""
        self._check(pa, length)
        self.u8[pa : pa + length] = bytes((value,)) * length
