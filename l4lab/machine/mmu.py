# SPDX-License-Identifier: GPL-2.0-or-later
"""IA-32 paging as the CPU's page walker does it: two levels of tables, pages of 4 KB and of 4 MB.

Source: Intel SDM vol. 3, chapter "Paging", 32-bit paging; nested walks: AMD64 manual vol. 2, "Nested Paging".
What lives here: the format of an entry, the walk from a virtual to a physical address (plain, nested, explained), and
the faults it ends in. What does not: building tables (`pagetables.py`), and who may map what
(`kernel/memory/mapping.py`).

    virtual address    31        22 21         12 11       0
                      | directory  |  table      | in page  |    a 4 MB page has no table: its offset is bits 21..0
    entry (PDE, PTE)   31                      12 11 9 8 7  6 5 4   3   2  1  0
                      | frame address            |    |G|PS|D|A|PCD|PWT|US|RW|P|     PS in a PDE only
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from l4lab.machine.memory import PAGE_SIZE, Memory

# Flags of an entry, in the names of the SDM.
P: Final = 1 << 0  # present: the other bits mean something
RW: Final = 1 << 1  # writable
US: Final = 1 << 2  # user: reachable from ring 3
PWT: Final = 1 << 3  # cache: write-through
PCD: Final = 1 << 4  # cache: disabled
A: Final = 1 << 5  # accessed: set by the walker
D: Final = 1 << 6  # dirty: set by the walker at the first write; in the entry that maps the page only
PS: Final = 1 << 7  # page size: this PDE maps 4 MB itself
G: Final = 1 << 8  # global: survives a load of CR3
# The engine's walk of a second level sets neither A nor D in the entry that maps a page. So such entries are *tracked*:
# they allow nothing until the page is used and no store until there is one; the exit then sets A, or A and D. US and RW
# say for the CPU what A and D say for everybody, and two bits that the CPU leaves to software say the rest.
TRACKED: Final = 1 << 10
WRITABLE: Final = 1 << 9  # what RW says elsewhere
FLAG_NAMES: Final = {P: "P", RW: "RW", US: "US", PWT: "PWT", PCD: "PCD", A: "A", D: "D", PS: "PS", G: "G"}

FRAME: Final = 0xFFFFF000  # bits of an entry, or of CR3, that give the address of a 4 KB frame
LARGE_FRAME: Final = 0xFFC00000  # bits of a PDE that give the address of a 4 MB page ...
LARGE_FRAME_HIGH: Final = 0x001FE000  # ... and bits 39..32 of that address (PSE-36) ...
LARGE_RESERVED: Final = 0x00200000  # ... and the bit that must be 0

PAGE_LOG2: Final = 12
LARGE_LOG2: Final = 22
LARGE_SIZE: Final = 1 << LARGE_LOG2

# What is tried, and a page fault's error code: the same bits, so an access becomes an error code by or-ing.
READ: Final = 0
PROTECTION: Final = 1 << 0  # error code only: there was a mapping, it forbade the access
WRITE: Final = 1 << 1
USER: Final = 1 << 2  # from ring 3
RESERVED: Final = 1 << 3  # error code only: a reserved bit was set in an entry


def used(entry: int, write: bool) -> int:
    """A tracked entry after such an access: open for it from now on. As it was, if it forbids the access."""
    if not write:
        return entry | A | US
    return entry | A | US | D | RW if entry & WRITABLE else entry


class WalkFault(Exception):
    """#PF: what the CPU would put into CR2, and the error code it would push."""

    def __init__(self, address: int, error_code: int) -> None:
        super().__init__(address, error_code)
        self.address = address
        self.error_code = error_code

    def __str__(self) -> str:
        who = "user" if self.error_code & USER else "supervisor"
        what = "write" if self.error_code & WRITE else "read"
        why = (
            "reserved bit" if self.error_code & RESERVED else "no right" if self.error_code & PROTECTION else "no page"
        )
        return f"page fault at {self.address:#010x}: {who} {what}, {why}"


class NestedPageFault(Exception):
    """The host's tables miss or forbid a guest-physical address: a VM exit, not a fault the guest can see."""

    def __init__(self, address: int, error_code: int, of_table: bool) -> None:
        super().__init__(address, error_code, of_table)
        self.address = address  # guest-physical
        self.error_code = error_code
        self.of_table = of_table  # met while reading a table of the guest, not at the data itself

    def __str__(self) -> str:
        what = "a page table of the guest" if self.of_table else "guest memory"
        return f"nested page fault at guest-physical {self.address:#010x}, {what}, error code {self.error_code:#x}"


def walk(
    memory: Memory, cr3: int, va: int, access: int, *, wp: bool = True, pse: bool = True, set_ad: bool = True
) -> int:
    """The physical address behind `va`, or `PageFault`: what the CPU does on a TLB miss, A and D bits included.

    `access` is READ or WRITE, with USER for ring 3; `wp` and `pse` are CR0.WP and CR4.PSE. Every load and store of
    a hosted thread passes here, hence no calls, and physical tables are taken on trust to lie inside RAM.
    """
    u32 = memory.u32
    slot = (cr3 >> 12 << 10) + (va >> 22)
    entry = rights = u32[slot]
    if not entry & P:
        raise WalkFault(va, access)
    if entry & PS and pse:
        if entry & LARGE_RESERVED:
            raise WalkFault(va, access | PROTECTION | RESERVED)
        pa = entry & LARGE_FRAME | (entry & LARGE_FRAME_HIGH) << 19 | va & 0x3FFFFF
    else:
        if set_ad and not entry & A:
            memory.set_word(slot, entry | A)  # even when the table then turns out to miss the page
        slot = (entry >> 12 << 10) + (va >> 12 & 0x3FF)
        entry = u32[slot]
        if not entry & P:
            raise WalkFault(va, access)
        rights &= entry  # each level can only take away
        pa = entry & FRAME | va & 0xFFF
    if access & USER:
        if not rights & US or (access & WRITE and not rights & RW):
            raise WalkFault(va, access | PROTECTION)
    elif access & WRITE and wp and not rights & RW:
        raise WalkFault(va, access | PROTECTION)
    if set_ad:
        seen = entry | A | D if access & WRITE else entry | A
        if seen != entry:
            memory.set_word(slot, seen)
    return pa


def read_mapped(
    memory: Memory, cr3: int, va: int, length: int, translate: Callable[[int, int], int] | None = None
) -> bytes:
    """Up to `length` bytes as a program in ring 3 would read them, to the first page that it could not. Leaves A alone:
    this is for who looks at a program's memory without being the program. `translate`, of `cr3` and an address, walks
    in the place of `walk`."""
    found = b""
    while len(found) < length:
        at = va + len(found) & 0xFFFFFFFF
        try:
            pa = walk(memory, cr3, at, USER, set_ad=False) if translate is None else translate(cr3, at)
        except WalkFault:
            break
        found += bytes(memory.u8[pa : pa + min(length - len(found), PAGE_SIZE - at % PAGE_SIZE)])
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """One entry read on the way."""

    level: str  # "PDE" or "PTE"
    index: int  # in its table
    address: int  # of the entry, as the tables' owner sees it: physical, or guest-physical in a guest
    physical: int  # of the entry in RAM
    entry: int

    @property
    def flags(self) -> str:
        """The flags set, highest bit first: "PS A US P"."""
        return flag_names(self.entry)


@dataclass(frozen=True, slots=True)
class ExplainedWalk:
    """A walk step by step, and where it ended: an address or a fault, never both."""

    va: int
    steps: tuple[Step, ...]
    pa: int | None
    fault: WalkFault | NestedPageFault | None


def flag_names(entry: int) -> str:
    """The names of the flags set in an entry, highest bit first."""
    return " ".join(name for bit, name in reversed(FLAG_NAMES.items()) if entry & bit)


def explain_walk(
    memory: Memory, cr3: int, va: int, access: int, *, wp: bool = True, pse: bool = True, ncr3: int | None = None
) -> ExplainedWalk:
    """The walk of the same arguments, entry by entry, leaving A and D as they are; with `ncr3`, that of a guest."""
    steps: list[Step] = []
    translate = _identity if ncr3 is None else host_walk(memory, ncr3, pse, set_ad=False)
    try:
        pa = _walk_by_steps(memory, cr3, va, access, wp, pse, False, translate, steps)
    except (WalkFault, NestedPageFault) as fault:
        return ExplainedWalk(va, tuple(steps), None, fault)
    return ExplainedWalk(va, tuple(steps), pa, None)


def walk_nested(
    memory: Memory,
    ncr3: int,
    guest_cr3: int,
    va: int,
    access: int,
    *,
    wp: bool = True,
    pse: bool = True,
    host_pse: bool | None = None,
    set_ad: bool = True,
) -> int:
    """The physical address behind a guest's `va`: each guest-physical address goes through the host's tables.

    `PageFault` is the guest's own fault, `NestedPageFault` the host's. As the engine has it (get_hphys in its MMU):
    tables of the guest must be writable in the host's tables, since the walker may have to set A and D there; and
    `pse`, the *guest's* CR4.PSE, decides for the host's tables too. So a guest that can clear it must not have 4 MB
    pages in its host tables: the walker would take the first 4 KB of such a page, the guest's own data, for a table.
    With shadow tables the CPU never walks both, and the host's entries are what they are: `host_pse` says so.
    """
    translate = host_walk(memory, ncr3, pse if host_pse is None else host_pse, set_ad)
    return _walk_by_steps(memory, guest_cr3, va, access, wp, pse, set_ad, translate, [])


Translate = Callable[[int, int, bool], int]  # address as the walker sees it, access, is it of a table -> physical


def _identity(address: int, access: int, of_table: bool) -> int:
    return address


def host_walk(memory: Memory, ncr3: int, pse: bool, set_ad: bool) -> Translate:
    """Translation of guest-physical addresses by the host's tables at `ncr3`. To them every guest is ring 3."""

    def translate(address: int, access: int, of_table: bool) -> int:
        address &= 0xFFFFFFFF  # a guest's page of 4 MB may lie beyond (PSE-36); the engine looks at 32 bits
        slot = (ncr3 >> 12 << 10) + (address >> 22)
        entry = memory.u32[slot]
        offset = 0x3FFFFF
        if entry & P and not (entry & PS and pse):
            if set_ad:
                memory.set_word(slot, entry | A)  # it sets no A and D in the entry that maps the page
            slot = (entry >> 12 << 10) + (address >> 12 & 0x3FF)
            entry = memory.u32[slot]
            offset = 0xFFF
        if entry & TRACKED:
            if access & WRITE and not entry & WRITABLE:
                raise NestedPageFault(address, WRITE | USER | PROTECTION, of_table)
            if set_ad:
                memory.set_word(slot, used(entry, bool(access & WRITE)))
            return entry & FRAME & ~offset | address & offset
        try:
            return walk(memory, ncr3, address, access & WRITE | USER, pse=pse, set_ad=False)
        except WalkFault as fault:
            raise NestedPageFault(address, fault.error_code, of_table) from None

    return translate


def _walk_by_steps(
    memory: Memory,
    cr3: int,
    va: int,
    access: int,
    wp: bool,
    pse: bool,
    set_ad: bool,
    translate: Translate,
    steps: list[Step],
) -> int:
    """`walk` with each address translated and each entry noted down: slower, and otherwise the same."""

    def read(level: str, table: int, index: int) -> Step:
        address = (table & FRAME) + 4 * index
        physical = translate(address, WRITE, True)
        # A guest may point at addresses without RAM behind them; a PC answers all ones there.
        entry = memory.u32[physical >> 2] if physical < memory.size else 0xFFFFFFFF
        steps.append(Step(level, index, address, physical, entry))
        if not entry & P:
            raise WalkFault(va, access)
        return steps[-1]

    def mark(step: Step, flags: int) -> None:
        if set_ad and step.physical < memory.size:
            memory.set_word(step.physical >> 2, memory.u32[step.physical >> 2] | flags)

    last = read("PDE", cr3, va >> 22)
    rights = last.entry
    if last.entry & PS and pse:
        if last.entry & LARGE_RESERVED:
            raise WalkFault(va, access | PROTECTION | RESERVED)
        address = last.entry & LARGE_FRAME | (last.entry & LARGE_FRAME_HIGH) << 19 | va & 0x3FFFFF
    else:
        mark(last, A)
        last = read("PTE", last.entry, va >> 12 & 0x3FF)
        rights &= last.entry
        address = last.entry & FRAME | va & 0xFFF
    user, write = bool(access & USER), bool(access & WRITE)
    if (user and not rights & US) or (write and not rights & RW and (user or wp)):
        raise WalkFault(va, access | PROTECTION)
    mark(last, A | D if write else A)
    return translate(address, access, False)
