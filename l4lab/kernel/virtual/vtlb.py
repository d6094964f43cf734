# SPDX-License-Identifier: GPL-2.0-or-later
"""The vTLB: shadow page tables, for virtual machines whose second level the CPU does not walk itself.

The CPU translates by one set of tables only. So for each virtual CPU the kernel keeps tables that lead from the guest's
linear addresses straight to physical memory, made from two others: the guest's own page tables, and the mappings of
its address space. They are filled by page faults, entry by entry, as a TLB is, and as a TLB they may be out of date
until the guest says that it has changed its tables. (The paper, section 4.2; reference section 10.)

                                 guest's tables                      mappings of the space
      guest-linear  --------------------------->  guest-physical  --------------------------->  physical
                    `------------------------------ shadow tables ---------------------------------^

Better than flushing everything at each load of CR3: the tables of the last few guest address spaces are kept, each
entry with the guest's entry that it was made from (`expected`). A load of CR3 compares those with what the guest's
tables say now, and drops what differs. What is left is what a walk would find, so nothing can be told from a flush.

What lives here: filling the shadow tables and dropping what is in them. What they are made of is in shadowtables.py;
when to fill and drop, and who is told, is vmthread.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from l4lab.kernel.objects.frames import FrameAllocator
from l4lab.kernel.parts import Miss, ShadowPaging
from l4lab.kernel.virtual.shadowtables import Link, OutOfFrames, ShadowDirectory, ShadowFrames, ShadowTable
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import (
    FRAME,
    LARGE_FRAME,
    LARGE_FRAME_HIGH,
    LARGE_RESERVED,
    PROTECTION,
    PS,
    RESERVED,
    RW,
    US,
    USER,
    WRITE,
    A,
    D,
    P,
)
from l4lab.machine.vmcs import CR0_PG, CR0_WP, Vmcs

MOST_DIRECTORIES: Final = 16  # guest address spaces whose tables are kept
_CHUNK: Final = 128  # bytes compared at once, where a table has changed
_KEPT: Final = FRAME | PS | RW | US | P  # bits of a guest's directory entry on which a table below it depends


FILLED: Final = Miss.FILLED
GUEST_FAULT: Final = Miss.GUEST_FAULT
MISSING: Final = Miss.MISSING


class Vtlb(ShadowPaging):
    """The shadow tables of one virtual CPU. `host` is the page directory of its address space."""

    def __init__(self, memory: Memory, frames: FrameAllocator, vmcs: Vmcs, host: int) -> None:
        super().__init__()
        self._memory = memory
        self._u32 = memory.u32
        self._frames = ShadowFrames(memory, frames)
        self._vmcs = vmcs
        self._host = host >> 2
        self._wp = True
        self._clock = 0  # counts loads of CR3
        self._tables: dict[int, ShadowTable] = {}  # those that shadow a table, by its address and rights
        self._directories: dict[int, ShadowDirectory] = {}  # the least recently used first
        self._active = self._unpaged = ShadowDirectory(self._frames.take(), -1)

    # -- switching -----------------------------------------------------------------------------------------------------

    def activate(self) -> None:
        """CR0, CR3 or CR4 was loaded: have the CPU walk the right directory, and drop what a flush would drop that is
        no longer true. The caller flushes the TLB."""
        vmcs = self._vmcs
        cr0 = vmcs.control_register(0)
        wp = bool(cr0 & CR0_WP)
        if wp is not self._wp:  # entries depend on it
            self._drop_paged()
            self._wp = wp
        if cr0 & CR0_PG:
            cr3 = vmcs.control_register(3) & FRAME
            try:
                self._active = self._directory(cr3)
            except OutOfFrames:
                self._drop_paged()
                self._active = self._directory(cr3)
            self._check(self._active)
        else:
            self._active = self._unpaged
        vmcs.set_shadow_root(self._active.frame)

    def drop_all(self, generation: int) -> None:
        """The mappings of the space have changed: nothing that was derived from them is kept."""
        self.generation = generation
        self._drop_paged()
        self._empty(self._unpaged)
        self.activate()

    def drop_page(self, linear: int) -> None:
        """INVLPG: drop the translation of one linear address. The caller flushes the TLB.

        Other directories than the active one may hold a global page there; they are compared before they are used.
        """
        link = self._active.links.get(linear >> 22)
        if link is None:
            return
        table = link.table
        if table is None or table.source < 0:  # a page of 4 MB goes as a whole
            self._unlink(self._active, linear >> 22)
        else:
            slot = (table.frame >> 2) + (linear >> 12 & 0x3FF)
            if self._u32[slot]:
                self._memory.set_word(slot, 0)
                self.dropped += 1

    def release(self) -> None:
        """Give all frames back."""
        self._drop_paged()
        self._empty(self._unpaged)
        self._frames.give_back(self._unpaged.frame)
        self._frames.release()

    def frames(self) -> Iterator[int]:
        """All frames in use, each once."""
        yield from self._frames.spare
        for directory in (self._unpaged, *self._directories.values()):
            yield directory.frame
            yield from (link.table.frame for link in directory.links.values() if link.table and link.table.source < 0)
        yield from (table.frame for table in self._tables.values())

    def reached(self) -> Iterator[tuple[int, int, bool]]:
        """The physical memory that the tables lead to: address, size, and whether it can be written."""
        for directory in (self._unpaged, *self._directories.values()):
            for pde in self._entries(directory.frame):
                if pde & PS:
                    yield pde & LARGE_FRAME, PAGE_SIZE << 10, bool(pde & RW)
                else:
                    yield from ((pte & FRAME, PAGE_SIZE, bool(pte & RW)) for pte in self._entries(pde & FRAME))

    def _entries(self, table: int) -> list[int]:
        return [entry for entry in self._u32[table >> 2 : (table >> 2) + 1024].tolist() if entry & P]

    # -- filling (reference sections 10.2 and 10.3) --------------------------------------------------------------------

    def miss(self, linear: int, error: int) -> Miss:
        """The CPU found no translation for `linear`, or one that forbids the access that `error` names."""
        try:
            return self._fill(linear, error)
        except OutOfFrames:
            self._drop_paged()
            self._empty(self._unpaged)
            self.activate()
            return self._fill(linear, error)

    def _fill(self, linear: int, error: int) -> Miss:
        vmcs, u32 = self._vmcs, self._u32
        write, user = bool(error & WRITE), bool(error & USER)
        if not vmcs.control_register(0) & CR0_PG:
            return self._insert(linear, linear, linear & LARGE_FRAME, -1, P | RW | US | PS | D, write)
        address = (vmcs.control_register(3) & FRAME) + (linear >> 22 << 2)
        at = self._physical(address, False)
        if at < 0:
            return MISSING
        pde = u32[at >> 2]
        self.error_code = error & (WRITE | USER)
        if not pde & P:
            return GUEST_FAULT
        source = -1
        entry = rights = pde
        if pde & PS:
            if pde & (LARGE_RESERVED | LARGE_FRAME_HIGH):
                self.error_code |= PROTECTION | RESERVED
                return GUEST_FAULT
            physical = pde & LARGE_FRAME | linear & 0x3FFFFF
        else:
            if not pde & A:  # even when the table then turns out to miss the page
                if self._physical(address, True) < 0:
                    return MISSING
                pde = pde | A
                self._memory.set_word(at >> 2, pde)
            source = pde & FRAME
            address = source + (linear >> 10 & 0xFFC)
            at = self._physical(address, False)
            if at < 0:
                return MISSING
            entry = u32[at >> 2]
            if not entry & P:
                return GUEST_FAULT
            rights = pde & entry & ~PS  # that bit means another thing in a PTE
            physical = entry & FRAME | linear & 0xFFF
        if (user and not rights & US) or (write and not rights & RW and (user or self._wp)):
            self.error_code |= PROTECTION
            return GUEST_FAULT
        seen = entry | A | D if write else entry | A
        if seen != entry:
            if self._physical(address, True) < 0:
                return MISSING
            self._memory.set_word(at >> 2, seen)
            if source < 0:
                pde = seen
        flags = rights & (RW | US | PS) | seen & D
        if write and not rights & RW:  # CR0.WP is clear: the guest's kernel may, and its user must not even read then
            flags = flags & ~US | RW
        return self._insert(linear, physical, pde, source, flags, write, seen)

    def _insert(self, linear: int, physical: int, pde: int, source: int, flags: int, write: bool, pte: int = 0) -> Miss:
        """Enter guest-physical address `physical` for `linear`. `pde`, `pte`: the guest's entries; `flags`: what they
        allow together, with D if the guest knows of a write already, and PS if the guest's page has 4 MB."""
        u32 = self._u32
        host_slot = self._host + (physical >> 22)
        host = u32[host_slot]
        large = bool(host & PS)
        if host & P and not large:
            host_slot = (host >> 12 << 10) + (physical >> 12 & 0x3FF)
            host = u32[host_slot]
        if not host & P or not host & US or (write and not host & RW):
            self.missing, self.missing_write = physical, write
            return MISSING
        host = host | A | D if write else host | A  # so that Unmap can tell who used the page
        self._memory.set_word(host_slot, host)
        entry = P | A | flags & US
        if flags & RW and flags & D and host & RW and host & D:  # else the first write must come here, to be noted
            entry |= RW | D
        index = linear >> 22
        if flags & PS and large:
            self._link(index, pde, None)
            self._memory.set_word((self._active.frame >> 2) + index, entry | PS | host & LARGE_FRAME)
            return FILLED
        table = self._table(index, pde, source)
        number = linear >> 12 & 0x3FF
        if source >= 0:
            table.expected[4 * number : 4 * number + 4] = pte.to_bytes(4, "little")
        frame = host & LARGE_FRAME | physical & 0x3FF000 if large else host & FRAME
        self._memory.set_word((table.frame >> 2) + number, entry | frame)
        return FILLED

    def _physical(self, address: int, write: bool) -> int:
        """Where guest-physical memory lies, for the kernel's own accesses to guest tables; -1 if it is missing."""
        u32 = self._u32
        slot = self._host + (address >> 22)
        host = u32[slot]
        offset = 0x3FFFFF
        if host & P and not host & PS:
            slot = (host >> 12 << 10) + (address >> 12 & 0x3FF)
            host = u32[slot]
            offset = 0xFFF
        if not host & P or not host & US or (write and not host & RW):
            self.missing, self.missing_write = address, write
            return -1
        self._memory.set_word(slot, host | A | D if write else host | A)
        return host & ~offset & FRAME | address & offset

    # -- tables and directories ----------------------------------------------------------------------------------------

    def _table(self, index: int, pde: int, source: int) -> ShadowTable:
        """The table that entry `index` of the active directory leads to; made, or taken from another directory."""
        link = self._active.links.get(index)
        if link is not None and link.table is not None and not (link.source ^ pde) & _KEPT:
            link.source = pde
            return link.table
        rights = pde & (RW | US)
        table = self._tables.get(source | rights) if source >= 0 else None
        if table is None:
            now = b"" if source < 0 else self._contents(source) or bytes(PAGE_SIZE)
            table = ShadowTable(self._frames.take(), source, rights, now)
            table.checked = self._clock
            if source >= 0:
                self._tables[source | rights] = table
        elif table.checked != self._clock:
            self._check_table(table)
        self._link(index, pde, table)
        self._memory.set_word((self._active.frame >> 2) + index, table.frame | P | RW | US)
        return table

    def _link(self, index: int, pde: int, table: ShadowTable | None) -> None:
        if table is not None:
            table.users += 1
        if index in self._active.links:
            self._unlink(self._active, index)
        self._active.links[index] = Link(pde, table)

    def _unlink(self, directory: ShadowDirectory, index: int) -> None:
        table = directory.links.pop(index).table
        self._memory.set_word((directory.frame >> 2) + index, 0)
        self.dropped += 1
        if table is not None:
            table.users -= 1
            if not table.users:
                if table.source >= 0:
                    del self._tables[table.source | table.rights]
                self._frames.give_back(table.frame)

    def _directory(self, cr3: int) -> ShadowDirectory:
        """The directory for a guest's CR3, which is now the most recently used."""
        found = self._directories.pop(cr3, None)
        if found is None:
            if len(self._directories) >= MOST_DIRECTORIES:
                self._drop(next(iter(self._directories)))
            found = ShadowDirectory(self._frames.take(), cr3)
        self._directories[cr3] = found
        return found

    def _drop(self, cr3: int) -> None:
        directory = self._directories.pop(cr3)
        self._empty(directory)
        self._frames.give_back(directory.frame)

    def _drop_paged(self) -> None:
        for cr3 in list(self._directories):
            self._drop(cr3)
        self._active = self._unpaged

    def _empty(self, directory: ShadowDirectory) -> None:
        for index in list(directory.links):
            self._unlink(directory, index)

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _contents(self, source: int) -> bytes | None:
        """A table of the guest, as it is now; None if its memory is not mapped."""
        at = self._physical(source, False)
        return None if at < 0 else bytes(self._memory.u8[at : at + PAGE_SIZE])

    def _check(self, directory: ShadowDirectory) -> None:
        """Drop what the guest's tables no longer say."""
        self._clock += 1
        at = self._physical(directory.cr3, False)
        if at < 0:
            self._empty(directory)
            return
        slot = at >> 2
        for index, link in list(directory.links.items()):
            table = link.table
            if self._u32[slot + index] != link.source:
                self._unlink(directory, index)
            elif table is not None and table.source >= 0 and table.checked != self._clock:
                self._check_table(table)

    def _check_table(self, table: ShadowTable) -> None:
        table.checked = self._clock
        now = self._contents(table.source)
        expected = table.expected
        if now is None:
            self._memory.fill(table.frame, PAGE_SIZE)
            return
        if expected == now:
            return
        slot = table.frame >> 2
        for start in range(0, PAGE_SIZE, _CHUNK):
            if now[start : start + _CHUNK] == expected[start : start + _CHUNK]:
                continue
            for at in range(start, start + _CHUNK, 4):
                if now[at : at + 4] != expected[at : at + 4] and self._u32[slot + (at >> 2)]:
                    self._memory.set_word(slot + (at >> 2), 0)
                    self.dropped += 1
        table.expected = bytearray(now)
