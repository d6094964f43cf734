# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables in machine memory, as software builds them: one page directory and the tables it points to.

What lives here: putting entries into machine memory and taking them out, and nothing but machine memory says what is
mapped. What does not: the format of an entry and the CPU's walk (`mmu.py`), and who may map what to whom
(`kernel/memory/mapping.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from l4lab.errors import KernelPanic
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import (
    FRAME,
    LARGE_FRAME,
    LARGE_LOG2,
    PAGE_LOG2,
    PS,
    RW,
    TRACKED,
    US,
    WRITABLE,
    A,
    D,
    G,
    P,
    used,
)

EMPTY_TABLE: Final = bytes(PAGE_SIZE)
_CHUNK: Final = 128  # bytes of a table that are looked at together
_EMPTY_CHUNK: Final = bytes(_CHUNK)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One present entry that maps a page."""

    va: int  # of the page's first byte
    pa: int
    log2: int  # size: 12 or 22
    writable: bool
    user: bool
    accessed: bool
    dirty: bool


class PageTables:
    """A page directory, and the second-level tables that come and go with what is mapped.

    `generation` counts the changes after which the TLB may hold too much: an entry removed, reduced or replaced, or
    its A or D bit cleared. Who runs on these tables flushes when the number differs from the one last seen.
    With `tracks` they are the second level of nested paging, whose entries open as they are used (see `mmu.TRACKED`).
    """

    def __init__(self, memory: Memory, allocate: Callable[[], int], free: Callable[[int], None]) -> None:
        self._memory = memory
        self._allocate = allocate  # a frame of 4 KB filled with zeros
        self._free = free
        self.cr3 = allocate()
        self.generation = 0
        self.tracks = False

    def __repr__(self) -> str:
        return f"PageTables(cr3={self.cr3:#x})"

    def lookup(self, va: int) -> Mapping | None:
        """What maps the page that holds `va`."""
        entry, log2 = self.entry(va)
        return _mapping(va >> log2 << log2, entry, log2)

    def entry(self, va: int) -> tuple[int, int]:
        """The entry that decides about `va`, and the size of page that it maps, or would map (as a power of two)."""
        slot, log2 = self._slot(va)
        return self._memory.u32[slot], log2

    def entries(self) -> Iterator[Mapping]:
        """All present mappings, by rising address."""
        for i, pde in self._nonzero(self.cr3):
            if not pde & P:
                continue
            if pde & PS:
                candidates = [_mapping(i << 22, pde, LARGE_LOG2)]
            else:
                candidates = [_mapping(i << 22 | j << 12, pte, PAGE_LOG2) for j, pte in self._nonzero(pde & FRAME)]
            yield from (mapping for mapping in candidates if mapping)

    def _nonzero(self, table: int) -> list[tuple[int, int]]:
        """The entries of a table or directory that are not zero, each with its index: usually few, side by side."""
        contents = self._memory.u8[table : table + PAGE_SIZE].tobytes()
        found: list[tuple[int, int]] = []
        for start in range(0, PAGE_SIZE, _CHUNK):
            if contents[start : start + _CHUNK] != _EMPTY_CHUNK:
                first = table + start >> 2
                words = self._memory.u32[first : first + (_CHUNK >> 2)].tolist()
                found += [(n, entry) for n, entry in enumerate(words, start >> 2) if entry]
        return found

    def map(self, va: int, pa: int, log2: int, writable: bool, user: bool = True, global_: bool = False) -> None:
        """Map the page at `va` to `pa`. An entry of the same size is replaced, A and D start at 0; other sizes must go
        first, since only the caller knows who else has to hear of it."""
        assert log2 in (PAGE_LOG2, LARGE_LOG2), f"no page has size 2^{log2}"
        assert not (va | pa) & (1 << log2) - 1, f"{va:#x} -> {pa:#x} is not aligned to 2^{log2}"
        if self.tracks:
            entry = pa | P | TRACKED | (WRITABLE if writable else 0)
        else:
            entry = pa | P | (RW if writable else 0) | (US if user else 0) | (G if global_ else 0)
        slot, found = self._slot(va)
        present = self._memory.u32[slot] & P
        if found != log2:
            if present:
                raise KernelPanic(f"{va:#x}: a page of size 2^{found} is in the way of one of 2^{log2}")
            if log2 == LARGE_LOG2:
                raise KernelPanic(f"{va:#x}: a table of small pages is in the way of a page of 4 MB")
            # Rights are the last level's business: a PDE that points to a table allows everything.
            table = self._allocate()
            self._memory.set_word(slot, table | P | RW | US)
            slot = (table >> 2) + (va >> 12 & 0x3FF)
        elif present:
            self.generation += 1
        self._memory.set_word(slot, entry | PS if log2 == LARGE_LOG2 else entry)

    def protect(self, va: int, writable: bool) -> None:
        """Make the page at `va` writable or read-only. Its A and D bits stay."""
        slot = self._present(va)
        entry = self._memory.u32[slot]
        if entry & RW and not writable:
            self.generation += 1
        if entry & TRACKED:
            entry = entry | WRITABLE if writable else entry & ~WRITABLE
            writable = writable and bool(entry & D)
        self._memory.set_word(slot, entry | RW if writable else entry & ~RW)

    def track(self) -> None:
        """From now on, and for what is mapped already, these are the tables of a second level."""
        self.tracks = True
        u32 = self._memory.u32
        for page in list(self.entries()):
            slot = self._present(page.va)
            entry = u32[slot] & ~(US | RW) | TRACKED | (WRITABLE if page.writable else 0)
            self._memory.set_word(slot, used(entry, page.dirty) if page.accessed else entry)
        self.generation += 1

    def touch(self, va: int, write: bool) -> bool:
        """The CPU may not access the page at `va`: if it may but for tracking, note the access. Is it open now?"""
        slot, _ = self._slot(va)
        entry = self._memory.u32[slot]
        if not entry & P or not entry & TRACKED:
            return False
        after = used(entry, write)
        self._memory.set_word(slot, after)
        return after != entry

    def unmap(self, va: int, log2: int) -> int:
        """Take out the page of size `log2` at `va`; a table that held nothing else is freed. Its A and D bits."""
        u32 = self._memory.u32
        slot, found = self._slot(va)
        entry = u32[slot]
        if not entry & P or found != log2:
            raise KernelPanic(f"no page of size 2^{log2} at {va:#x} to take out")
        self._memory.set_word(slot, 0)
        self.generation += 1
        # Pages mostly lie side by side, and a neighbour is looked at faster than a whole table.
        if log2 == PAGE_LOG2 and not (u32[slot ^ 1] or (slot & 1023 and u32[slot - 1])):
            table = slot >> 10 << 12
            if self._memory.u8[table : table + PAGE_SIZE].tobytes() == EMPTY_TABLE:
                self._memory.set_word((self.cr3 >> 2) + (va >> 22), 0)
                self._free(table)
        return entry & (A | D)

    def reference_bits(self, va: int) -> int:
        """The A and D bits of the page at `va`."""
        return self._memory.u32[self._present(va)] & (A | D)

    def clear_reference_bits(self, va: int) -> int:
        """Read the A and D bits of the page at `va` and clear them, so that they tell of what happens from now on."""
        slot = self._present(va)
        entry = self._memory.u32[slot]
        if entry & (A | D):
            self._memory.set_word(slot, entry & ~(A | D | US | RW if entry & TRACKED else A | D))
            self.generation += 1  # the TLB would go on without telling
        return entry & (A | D)

    def frames(self) -> list[int]:
        """The frames that hold the directory and the tables."""
        start = self.cr3 >> 2
        entries = self._memory.u32[start : start + 1024].tolist()
        return [self.cr3, *(pde & FRAME for pde in entries if pde & P and not pde & PS)]

    def release(self) -> None:
        """Free the tables and the directory. The object is of no use afterwards."""
        for frame in self.frames():
            self._free(frame)
        self.generation += 1

    def _slot(self, va: int) -> tuple[int, int]:
        """The word of memory whose entry decides about `va`, and the size of page it maps, or would map."""
        slot = (self.cr3 >> 2) + (va >> 22)
        pde = self._memory.u32[slot]
        if pde & P and not pde & PS:
            return (pde >> 12 << 10) + (va >> 12 & 0x3FF), PAGE_LOG2
        return slot, LARGE_LOG2

    def _present(self, va: int) -> int:
        slot, _ = self._slot(va)
        if not self._memory.u32[slot] & P:
            raise KernelPanic(f"nothing is mapped at {va:#x}")
        return slot


def frame_of(entry: int, log2: int) -> int:
    """The physical address of the page of this size that a present entry maps."""
    return entry & (FRAME if log2 == PAGE_LOG2 else LARGE_FRAME)


def is_writable(entry: int) -> bool:
    """May the page that a present entry maps be written to?"""
    return bool(entry & (WRITABLE if entry & TRACKED else RW))


def _mapping(va: int, entry: int, log2: int) -> Mapping | None:
    if not entry & P:
        return None
    user, used, written = bool(entry & (TRACKED | US)), bool(entry & A), bool(entry & D)
    return Mapping(va, frame_of(entry, log2), log2, is_writable(entry), user, used, written)
