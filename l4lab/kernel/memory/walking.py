# SPDX-License-Identifier: GPL-2.0-or-later
"""A page walk that somebody else wrote, and what the kernel checks of it.

The kernel loads and stores in the place of programs: of those written in Python, for string items, for INS. Each such
access walks the program's page tables, as the CPU does for a native program's own. What lives here: asking a `PageWalk`
for the address, setting the A and D bits that it names, and refusing what no walk may answer. The kernel's own is
`machine/mmu.walk`.
"""

from __future__ import annotations

from typing import Any, Final

from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.parts import Found, NoTranslation
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import PROTECTION, RESERVED, USER, WRITE, A, D, WalkFault, walk

MOST_READS: Final = 16  # in one walk; there are two levels


class EntryReader:
    """What a walk is given to read with; it takes note of what was read."""

    def __init__(self, memory: Memory, part: OutsidePart) -> None:
        self._memory = memory
        self._part = part
        self.seen: list[int] = []

    def __repr__(self) -> str:
        return "read"

    def __call__(self, pa: int) -> int:
        """The 32-bit word at a physical address."""
        if not isinstance(pa, int) or pa % 4 or not 0 <= pa < self._memory.size:
            raise self._part.failed(f".walk() called read({_hex(pa)}), where no entry can lie: it is no word of RAM.")
        self.seen.append(pa)
        if len(self.seen) > MOST_READS:
            raise self._part.failed(f".walk() reads on and on, {_hex(pa)} at last. There are two levels of tables.")
        return self._memory.u32[pa >> 2]


class OutsideWalk:
    """Asks the other one, and believes little."""

    def __init__(self, part: OutsidePart, memory: Memory) -> None:
        self._part = part
        self._memory = memory

    def translate(self, cr3: int, va: int, access: int) -> int:
        """As `mmu.walk`: the physical address, or WalkFault; A and D bits are set."""
        return self._walk(cr3, va, access, True)

    def look(self, cr3: int, va: int) -> int:
        """The same for who looks at a program's memory without being the program: nothing is set."""
        return self._walk(cr3, va, USER, False)

    def _walk(self, cr3: int, va: int, access: int, set_ad: bool) -> int:
        read = EntryReader(self._memory, self._part)
        ended = self._part.ask("walk", read, cr3, va, bool(access & WRITE), bool(access & USER), True)
        answer: Any = ended  # a field may hold anything
        if isinstance(ended, Found):
            pa = self._checked(answer.pa, va)
            self._mark(read.seen, answer.set_accessed, A, set_ad)
            self._mark(read.seen, () if answer.set_dirty is None else (answer.set_dirty,), D, set_ad)
            return pa
        if not isinstance(ended, NoTranslation):
            raise self._part.failed(f".walk() returned {ended!r}, which is neither Found nor NoTranslation.")
        code = answer.error_code
        if not isinstance(code, int) or code & ~(PROTECTION | RESERVED) != access or code & 9 == RESERVED:
            raise self._part.failed(
                f".walk() returned error code {_hex(code)}. For this access it is {access:#x}, with bit 0 set if the "
                "entries were present, and bit 3 too if it was for a reserved bit."
            )
        self._mark(read.seen, answer.set_accessed, A, set_ad)
        self._is_fault(cr3, va, access)
        raise WalkFault(va, code)

    def _checked(self, pa: object, va: int) -> int:
        if not isinstance(pa, int) or not 0 <= pa < self._memory.size:
            raise self._part.failed(f".walk() found {_hex(pa)} behind {va:#x}, which is no address of RAM.")
        if (pa ^ va) % PAGE_SIZE:
            raise self._part.failed(f".walk() found {pa:#x} behind {va:#x}: the offset in the page is another one.")
        return pa

    def _mark(self, seen: list[int], entries: object, flag: int, set_ad: bool) -> None:
        """Set a flag in entries that were read."""
        if not isinstance(entries, (list, tuple)):
            raise self._part.failed(f".walk() returned {entries!r} for the entries to mark, which is no list.")
        for pa in entries:
            if pa not in seen:
                name = "A" if flag == A else "D"
                raise self._part.failed(f".walk() wants {name} set at {_hex(pa)}, where it has read no entry.")
            entry = self._memory.u32[pa >> 2]
            if set_ad and not entry & flag:
                self._memory.set_word(pa >> 2, entry | flag)

    def _is_fault(self, cr3: int, va: int, access: int) -> None:
        """A fault that is none would come again for ever, whatever the pager does."""
        try:
            walk(self._memory, cr3, va, access, set_ad=False)
        except WalkFault:
            return
        what = "write" if access & WRITE else "read"
        raise self._part.failed(
            f".walk() returned NoTranslation for a {what} of {va:#x}, and the two entries there allow it."
        )


def _hex(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else repr(value)
