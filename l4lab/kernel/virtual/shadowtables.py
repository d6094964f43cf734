# SPDX-License-Identifier: GPL-2.0-or-later
"""What the vTLB is made of: shadow tables and directories, and the frames that they take.

What stands in them, and when it is dropped, is vtlb.py's.
"""

from __future__ import annotations

from typing import Final

from l4lab.errors import Refused
from l4lab.kernel.objects.frames import FrameAllocator
from l4lab.machine.memory import PAGE_SIZE, Memory

MOST_FRAMES: Final = 512  # 2 MiB of tables for each virtual CPU; when they are used up, all is built anew
RESERVE: Final = 10  # frames that a virtual CPU keeps for itself: enough for the pages of any one instruction


class ShadowTable:
    """One shadow page table. `source` is the guest-physical address of the table it shadows, -1 if it splits a page of
    4 MB; `rights` are those of the guest's directory entry, which go into each entry."""

    __slots__ = ("checked", "expected", "frame", "rights", "source", "users")

    def __init__(self, frame: int, source: int, rights: int, now: bytes) -> None:
        self.frame = frame
        self.source = source
        self.rights = rights
        self.expected = bytearray(now)  # per entry that is filled, the guest's entry behind it
        self.users = 0  # directories that lead here
        self.checked = 0  # when it was last compared with the guest's


class Link:
    """A filled entry of a shadow directory: the guest's entry it was made from, and the table, if it leads to one."""

    __slots__ = ("source", "table")

    def __init__(self, source: int, table: ShadowTable | None) -> None:
        self.source = source
        self.table = table


class ShadowDirectory:
    """One shadow page directory: a guest address space, or with `cr3` -1 guest-physical memory as it is."""

    __slots__ = ("cr3", "frame", "links")

    def __init__(self, frame: int, cr3: int) -> None:
        self.frame = frame
        self.cr3 = cr3
        self.links: dict[int, Link] = {}  # by the number of the entry


class OutOfFrames(Exception):
    """No frame is left for a shadow table: everything has to be dropped and filled anew."""


class ShadowFrames:
    """The frames that one virtual CPU's shadow tables take. Some are put by for when the kernel has no more."""

    def __init__(self, memory: Memory, frames: FrameAllocator) -> None:
        self._memory = memory
        self._frames = frames
        self._used = 0
        self.spare = [frames.allocate() for _ in range(RESERVE)]

    def take(self) -> int:
        """A frame full of zeros, or OutOfFrames."""
        if self._used >= MOST_FRAMES:
            raise OutOfFrames
        try:
            frame = self._frames.allocate()
        except Refused:
            if not self.spare:
                raise OutOfFrames from None
            frame = self.spare.pop()
        self._used += 1
        return frame

    def give_back(self, frame: int) -> None:
        """The frame is not used any more; the reserve is filled up first."""
        self._used -= 1
        if len(self.spare) < RESERVE:
            self._memory.fill(frame, PAGE_SIZE)
            self.spare.append(frame)
        else:
            self._frames.free(frame)

    def release(self) -> None:
        """The reserve, too, goes back to the kernel."""
        for frame in self.spare:
            self._frames.free(frame)
