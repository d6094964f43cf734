# SPDX-License-Identifier: GPL-2.0-or-later
"""Shadow page tables around a `ShadowFill`: the simplest that are right, for who writes the filling.

One directory, pages of 4 KB, and each load of CR0, CR3 or CR4 drops everything, as a TLB flush does. What lives here:
linking what a fill returns, dropping it, and refusing what no fill may return. The kernel's own, which keep the tables
of several guest address spaces, are `vtlb.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from l4lab.kernel.objects.frames import FrameAllocator
from l4lab.kernel.objects.outside import OutsidePart, Passing
from l4lab.kernel.parts import Fill, GuestFault, GuestTables, Miss, ShadowPaging
from l4lab.kernel.virtual.shadowtables import OutOfFrames, ShadowFrames
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import FRAME, LARGE_FRAME, PS, RW, US, USER, WRITE, A, D, P
from l4lab.machine.vmcs import CR0_PG, CR0_WP, Vmcs

MOST_REPEATS: Final = 50  # times that the same miss may come again before the fill is called stuck


class _Missing(Passing):
    """Guest-physical memory that the pager has to bring."""

    def __init__(self, address: int, write: bool) -> None:
        super().__init__(address, write)
        self.address = address
        self.write = write


class Tables(GuestTables):
    """The guest's tables, and its memory as the page directory `host` maps it."""

    def __init__(self, memory: Memory, vmcs: Vmcs, host: int) -> None:
        self._u32 = memory.u32
        self._memory = memory
        self._host = host >> 2
        self.cr3 = vmcs.control_register(3) & FRAME
        self.wp = bool(vmcs.control_register(0) & CR0_WP)

    def read(self, gpa: int) -> int:
        return self._u32[self._physical(gpa, False) >> 2]

    def write(self, gpa: int, word: int) -> None:
        if self.read(gpa) != word:
            self._memory.set_word(self._physical(gpa, True) >> 2, word)

    def host(self, gpa: int, write: bool) -> tuple[int, bool]:
        u32 = self._u32
        slot = self._host + (gpa >> 22)
        entry = u32[slot]
        large = bool(entry & PS)
        if entry & P and not large:
            slot = (entry >> 12 << 10) + (gpa >> 12 & 0x3FF)
            entry = u32[slot]
        if not entry & P or not entry & US or (write and not entry & RW):
            raise _Missing(gpa, write)
        entry |= A | D if write else A
        self._memory.set_word(slot, entry)  # so that Unmap can tell who used the page
        frame = entry & LARGE_FRAME | gpa & 0x3FF000 if large else entry & FRAME
        return frame, bool(entry & RW and entry & D)

    def _physical(self, gpa: int, write: bool) -> int:
        return self.host(gpa, write)[0] | gpa & 0xFFC


class FilledTables(ShadowPaging):
    """The shadow tables of one virtual CPU, of which each entry comes from a `ShadowFill`."""

    def __init__(self, memory: Memory, frames: FrameAllocator, vmcs: Vmcs, host: int, fill: OutsidePart) -> None:
        super().__init__()
        self._memory = memory
        self._u32 = memory.u32
        self._frames = ShadowFrames(memory, frames)
        self._vmcs = vmcs
        self._host = host
        self._fill = fill
        self._root = self._frames.take()
        self._tables: dict[int, int] = {}  # by the number of the directory's entry: the frame of the table
        self._last = (-1, -1)  # the last miss
        self._repeats = 0

    def activate(self) -> None:
        self._empty()
        self._vmcs.set_shadow_root(self._root)

    def drop_all(self, generation: int) -> None:
        self.generation = generation
        self.activate()

    def drop_page(self, linear: int) -> None:
        table = self._tables.get(linear >> 22)
        if table is not None:
            slot = (table >> 2) + (linear >> 12 & 0x3FF)
            self.dropped += bool(self._u32[slot])
            self._memory.set_word(slot, 0)

    def release(self) -> None:
        self._empty()
        self._frames.give_back(self._root)
        self._frames.release()

    def frames(self) -> Iterator[int]:
        yield from self._frames.spare
        yield self._root
        yield from self._tables.values()

    def reached(self) -> Iterator[tuple[int, int, bool]]:
        for table in self._tables.values():
            for entry in self._entries(table):
                yield entry & FRAME, PAGE_SIZE, bool(entry & RW)

    def miss(self, linear: int, error: int) -> Miss:
        self._bound(linear, error)
        guest = Tables(self._memory, self._vmcs, self._host)
        write = bool(error & WRITE)
        try:
            if self._vmcs.control_register(0) & CR0_PG:
                filled = self._fill.ask("fill", guest, linear, write, bool(error & USER))
            else:
                filled = Fill(*guest.host(linear, write), user=True)
        except _Missing as missing:
            self.missing, self.missing_write = missing.address, missing.write
            return Miss.MISSING
        if isinstance(filled, GuestFault):
            self.error_code = filled.code
            return Miss.GUEST_FAULT
        self._enter(linear, self._checked(filled))
        return Miss.FILLED

    def _bound(self, linear: int, error: int) -> None:
        """A fill that the CPU cannot use makes the same miss again: after some, say so rather than go on for ever."""
        miss = (linear, error)
        self._repeats = self._repeats + 1 if miss == self._last else 0
        self._last = miss
        if self._repeats > MOST_REPEATS:
            access = "write" if error & WRITE else "read"
            raise self._fill.failed(
                f".fill() is stuck: the CPU's {access} of {linear:#x} misses for the {self._repeats}th time. Look at "
                "what it returns there: does the entry allow that access?"
            )

    def _checked(self, filled: object) -> Fill:
        """A fill can return anything; what the CPU walks must stay inside RAM."""
        if not isinstance(filled, Fill):
            raise self._fill.failed(f".fill() returned {filled!r}, which is neither a Fill nor a GuestFault.")
        answer: Any = filled  # a field may hold anything
        frame = answer.frame
        shown = f"{frame:#x}" if isinstance(frame, int) else repr(frame)
        if not isinstance(frame, int) or frame % PAGE_SIZE or not 0 <= frame < self._memory.size:
            raise self._fill.failed(
                f".fill() returned frame {shown}, which is no page of the machine: guest.host() gives its address."
            )
        return Fill(frame, bool(answer.writable), bool(answer.user))

    def _enter(self, linear: int, filled: Fill) -> None:
        index = linear >> 22
        if index not in self._tables:
            try:
                table = self._frames.take()
            except OutOfFrames:
                self._empty()
                table = self._frames.take()
            self._tables[index] = table
            self._memory.set_word((self._root >> 2) + index, table | P | RW | US)
        flags = P | A | (RW | D if filled.writable else 0) | (US if filled.user else 0)
        self._memory.set_word((self._tables[index] >> 2) + (linear >> 12 & 0x3FF), filled.frame | flags)

    def _empty(self) -> None:
        for index, table in self._tables.items():
            self.dropped += len(self._entries(table))
            self._memory.set_word((self._root >> 2) + index, 0)
            self._frames.give_back(table)
        self._tables.clear()

    def _entries(self, table: int) -> list[int]:
        return [entry for entry in self._u32[table >> 2 : (table >> 2) + 1024].tolist() if entry & P]
