# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of the kernel's own: where page tables, UTCBs, register frames and VMCBs live.

The kernel keeps one range at the top of RAM for itself and hands it out in frames of 4 KB. What lives here: the free
list of that range. What does not: memory of the users, which sigma0 hands out and `mapping.py` keeps track of.
"""

from __future__ import annotations

from typing import Final

from l4lab.errors import KernelPanic, Refused
from l4lab.machine.memory import PAGE_SIZE, Memory

OUT_OF_MEMORY: Final = 8  # X.2 error code: the kernel has no memory left for what was asked
_ZEROS: Final = bytes(PAGE_SIZE)


class FrameAllocator:
    """The free frames of `base .. base + size`, the one freed last first out.

    Which frame comes next depends on nothing but the calls made before, so two equal runs build equal page tables.
    """

    def __init__(self, memory: Memory, base: int, size: int) -> None:
        if base % PAGE_SIZE or size % PAGE_SIZE or base < 0 or base + size > memory.size:
            raise KernelPanic(f"kernel memory {base:#x} + {size:#x} is not whole pages inside {memory}")
        self.base = base
        self.size = size
        self._memory = memory
        self._free = list(range(base + size - PAGE_SIZE, base - PAGE_SIZE, -PAGE_SIZE))
        self._used: set[int] = set()

    @property
    def available(self) -> int:
        """How many frames are free."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many frames are out. Whoever creates and deletes something finds the same number before and after."""
        return len(self._used)

    def out(self) -> set[int]:
        """The frames that are out."""
        return set(self._used)

    def require(self, count: int) -> None:
        """Refuse now what will take up to so many frames, rather than half way through."""
        if len(self._free) < count:
            raise Refused(OUT_OF_MEMORY, f"{len(self._free)} frames of the kernel are left, not {count}")

    def allocate(self) -> int:
        """A frame filled with zeros, by its physical address."""
        if not self._free:
            raise Refused(OUT_OF_MEMORY, f"all {self.size // PAGE_SIZE} frames of the kernel are in use")
        pa = self._free.pop()
        self._used.add(pa)
        self._memory.write(pa, _ZEROS)
        return pa

    def free(self, pa: int) -> None:
        """Take a frame back."""
        if pa not in self._used:
            raise KernelPanic(f"frame {pa:#x} is freed, but was not handed out")
        self._used.remove(pa)
        self._free.append(pa)


class RegisterFrames:
    """Register frames of threads: slots of 64 bytes (ten words used), carved out of the kernel's frames."""

    SIZE = 64

    def __init__(self, frames: FrameAllocator) -> None:
        self._frames = frames
        self._free: list[int] = []
        self.pages: list[int] = []  # the frames that are cut into slots

    def allocate(self) -> int:
        """The physical address of a free slot."""
        if not self._free:
            page = self._frames.allocate()
            self.pages.append(page)
            self._free = list(range(page + PAGE_SIZE - self.SIZE, page - self.SIZE, -self.SIZE))
        return self._free.pop()

    def out(self) -> set[int]:
        """The slots that are out."""
        return {slot for page in self.pages for slot in range(page, page + PAGE_SIZE, self.SIZE)} - set(self._free)

    def free(self, slot: int) -> None:
        """Take a slot back. Its page stays with the kernel's register frames."""
        self._free.append(slot)
