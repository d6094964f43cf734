# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory of the machine: one flat piece of RAM that starts at physical address 0, and the one door to it.

The bytes live in an anonymous mapping of the host, so the CPU engine (by `address`) and Python look at the same bytes
and nothing is ever copied between them. The engine translates code, and cannot see when Python changes what it has
translated. So whoever stores to RAM, be it kernel, program, loader or device, passes through the methods here: they
tell the engine when there was code. All views for reading are read-only, so that there is no other way.

What lives here: access by physical address. What does not: which frame belongs to whom (`kernel/objects/frames.py`,
`kernel/memory/mapping.py`) and virtual addresses (`mmu.py`).
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Final

from l4lab.abi.utcb import WORDS
from l4lab.errors import KernelPanic

PAGE_SIZE: Final = 4096
FRAME_WORDS: Final = 10  # of a register frame


class Memory:
    """RAM from physical address 0 up to `size`.

    `u8` and `u32` are the fast ways to read, for code that knows its addresses to be good; `u32` counts words, so the
    word at physical address `pa` is `u32[pa >> 2]`, and `set_word(pa >> 2, value)` writes it. `read`, `write` and
    `fill` check, and name the address that is wrong.

    `code` has a byte for each page, which the engine sets when it translates code there: a store to a page without
    code costs a look at that byte.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise KernelPanic(f"RAM comes in whole pages of {PAGE_SIZE} bytes, not {size:#x}")
        self.size = size
        self._host = _mapping(size)
        self._u8 = memoryview(self._host)
        self._u32 = self._u8.cast("I")
        self.u8 = self._u8.toreadonly()
        self.u32 = self._u32.toreadonly()
        self.address: int = ctypes.addressof(ctypes.c_char.from_buffer(self._host))  # of byte 0, in the host
        self.code = bytearray(size // PAGE_SIZE)
        self._code_pinned = ctypes.c_char.from_buffer(self.code)  # it stays where it is: the engine writes to it
        self.code_address: int = ctypes.addressof(self._code_pinned)
        self._forget: Callable[[int, int], object] = _nothing_is_translated

    def __repr__(self) -> str:
        return f"Memory({self.size >> 10} KB)"

    def translated_no_more(self) -> None:
        """The engine is gone."""
        self._translator, self._forget = None, _nothing_is_translated

    def translated_by(self, forget: Callable[[int, int], object]) -> None:
        """From now on code is translated from here: `forget(begin, end)` drops what was, and keeps who translates."""
        self._forget = forget

    def close(self) -> None:
        """Give the memory back to the host."""
        self.translated_no_more()
        for view in (self.u32, self.u8, self._u32, self._u8):
            view.release()
        try:
            self._host.close()
        except (
            BufferError
        ):  # somebody has a view on a piece of it: the addresses go with the last one, what is there now
            if hasattr(mmap, "MADV_DONTNEED"):
                self._host.madvise(mmap.MADV_DONTNEED)

    def _check(self, pa: int, length: int) -> None:
        if pa < 0 or length < 0 or pa + length > self.size:
            raise KernelPanic(f"physical {pa:#x}, {length:#x} bytes: RAM ends at {self.size:#x}")

    def read(self, pa: int, length: int) -> bytes:
        """A copy of `length` bytes from physical address `pa`."""
        self._check(pa, length)
        return self.u8[pa : pa + length].tobytes()

    # -- stores --------------------------------------------------------------------------------------------------------

    def set_word(self, index: int, value: int) -> None:
        """Write the word at physical address 4 * `index`."""
        self._u32[index] = value
        if self.code[index >> 10]:
            self._forget(index << 2, (index << 2) + 4)

    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at physical address `pa`."""
        end = pa + len(data)
        self._check(pa, len(data))
        self._u8[pa:end] = data
        self.changed(pa, end)

    def fill(self, pa: int, length: int, value: int = 0) -> None:
        """Set `length` bytes from physical address `pa` to `value`."""
        self.write(pa, bytes((value,)) * length)

    def changed(self, begin: int, end: int) -> None:
        """These bytes were stored to: have the engine forget what it translated from them."""
        if self.code.find(1, begin >> 12, (end + 0xFFF) >> 12) >= 0:
            self._forget(begin, end)

    # -- what is given out for storing ---------------------------------------------------------------------------------

    def register_frame(self, pa: int) -> memoryview:
        """The ten words of the register frame at `pa`, to be written as a CPU writes its registers.

        A frame lies in a page of the kernel's own that no program can reach, and so no CPU executes: `allocate` has
        cleared the page, and what was translated from it. Hence no store to it needs to be told.
        """
        self._check(pa, 4 * FRAME_WORDS)
        return self._u32[pa >> 2 : (pa >> 2) + FRAME_WORDS]

    def shared_words(self, pa: int, size: int) -> SharedWords:
        """`size` bytes at `pa`, within a page, that kernel and program both write, and the program may execute."""
        self._check(pa, size)
        assert pa >> 12 == pa + size - 1 >> 12, f"{pa:#x}, {size:#x} bytes: not within a page"
        return SharedWords(self, pa, self._u8[pa : pa + size])


class SharedWords:
    """Words of RAM that kernel and program share, a UTCB for example. Stores tell the engine, as those of `Memory`.

    `words` is for reading many at once.
    """

    def __init__(self, memory: Memory, pa: int, view: memoryview) -> None:
        self.pa = pa
        self._u8 = view
        self._u32 = view.cast("I")
        self.words = self._u32.toreadonly()
        self._memory = memory
        self._code = memory.code
        self._page = pa >> 12

    def __getitem__(self, index: int) -> int:
        return self._u32[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._u32[index] = value
        if self._code[self._page]:
            self._memory.changed(self.pa + 4 * index, self.pa + 4 * index + 4)

    def release(self) -> None:
        """Nobody reads or writes here any more."""
        for view in (self.words, self._u32, self._u8):
            view.release()

    def put(self, index: int, words: Sequence[int]) -> None:
        """Write up to 64 words from `index` on."""
        WORDS[len(words)].pack_into(self._u8, 4 * index, *words)
        if self._code[self._page]:
            self._memory.changed(self.pa, self.pa + len(self._u8))


def _mapping(size: int) -> mmap.mmap:
    """Memory of this process alone: one that is forked has a copy, and neither writes the other's."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)  # where there is no fork


def _nothing_is_translated(begin: int, end: int) -> None:
    """There is no engine."""
