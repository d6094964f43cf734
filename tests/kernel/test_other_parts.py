# SPDX-License-Identifier: GPL-2.0-or-later
"""Other trees of pages and other fillings of shadow tables in the place of the kernel's own: right ones carry whole
systems, wrong ones are found out and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD
from l4lab.abi.protocols import thread_start
from l4lab.errors import PartFailed
from l4lab.kernel.objects.space import Space
from l4lab.kernel.parts import Fill, GuestFault, GuestTables, PageHooks, PageTree, Parts, ShadowFill
from l4lab.machine.mmu import PS, RW, US, A, D, P
from l4lab.rig.rig import Rig
from l4lab.testing import MEMORY, Root, System
from l4lab.user.guests import tinyos
from l4lab.user.guests.flat import FlatGuest
from l4lab.user.monitor.hardware import Hardware

SHADOW = Hardware(shadow_paging=True)


@dataclass(eq=False)
class Page:
    """A page in a space, and what was given on from it."""

    space: Space
    va: int
    pa: int
    giver: Page | None = None
    given: list[Page] = field(default_factory=list)


class Tree(PageTree):
    """As a student would write it."""

    def __init__(self, hooks: PageHooks) -> None:
        self.hooks = hooks
        self.pages: dict[tuple[Space, int], Page] = {}

    def own(self, space: Space, va: int, pa: int) -> None:
        """A root."""
        self.pages.setdefault((space, va), Page(space, va, pa))

    def map(self, src: Space, src_va: int, dst: Space, dst_va: int, writable: bool, grant: bool) -> bool:
        """One page more, or a page with more rights, or a page that moves."""
        source, there = self.pages.get((src, src_va)), self.pages.get((dst, dst_va))
        if source is None or there is source:
            return False
        writable = writable and self.hooks.writable(src, src_va)
        if there is not None and there.pa == source.pa and not grant:
            if writable and not self.hooks.writable(dst, dst_va):
                self.hooks.install(dst, dst_va, there.pa, True)
                return True
            return False
        if there is not None:
            self._drop(there)
            if (src, src_va) not in self.pages:  # it was derived from what it is to replace
                return True
        self.hooks.install(dst, dst_va, source.pa, writable)
        if grant:
            self.hooks.remove(src, src_va)
            del self.pages[src, src_va]
            source.space, source.va = dst, dst_va
            self.pages[dst, dst_va] = source
        else:
            page = self.pages[dst, dst_va] = Page(dst, dst_va, source.pa, source)
            source.given.append(page)
        return True

    def unmap(self, space: Space, va: int, rights: int, flush: bool) -> int:
        """From all below; with `flush`, from here too."""
        page = self.pages.get((space, va))
        if page is None:
            return 0
        if flush:
            return self._take(page, rights)
        return self._all(page, rights)

    def _all(self, page: Page, rights: int) -> int:
        status = 0
        for child in list(page.given):
            status |= self._take(child, rights)
        return status

    def _take(self, page: Page, rights: int) -> int:
        status = self._all(page, rights)
        if rights == 7:
            return status | self._drop(page)
        status |= self.hooks.take_status(page.space, page.va)
        if rights & 2:
            self.hooks.take_write(page.space, page.va)
        return status

    def _drop(self, page: Page) -> int:
        status = self._all(page, 7) | self.hooks.remove(page.space, page.va)
        del self.pages[page.space, page.va]
        assert page.giver is not None
        page.giver.given.remove(page)
        return status


class Filling(ShadowFill):
    """The walk of the guest's tables, and one look at the host's."""

    def fill(self, guest: GuestTables, linear: int, write: bool, user: bool) -> Fill | GuestFault:
        """As the CPU walks, each level takes rights away."""
        code = (2 if write else 0) | (4 if user else 0)
        at = guest.cr3 + (linear >> 22) * 4
        entry = rights = guest.read(at)
        if not entry & P:
            return GuestFault(code)
        gpa = entry & 0xFFC0_0000 | linear & 0x3F_F000
        if not entry & PS:
            guest.write(at, entry | A)
            at = (entry & ~0xFFF) + (linear >> 12 & 0x3FF) * 4
            entry = guest.read(at)
            if not entry & P:
                return GuestFault(code)
            rights &= entry
            gpa = entry & ~0xFFF
        if (user and not rights & US) or (write and not rights & RW and (user or guest.wp)):
            return GuestFault(code | 1)
        entry |= A | (D if write else 0)
        guest.write(at, entry)
        frame, host_writable = guest.host(gpa, write)
        writable = bool(rights & RW) or (write and not guest.wp)
        return Fill(frame, writable and bool(entry & D) and host_writable, bool(rights & US))


def life(guest: FlatGuest, hardware: Hardware, parts: Parts) -> tuple[str, str]:
    """What a guest said, and how its run ended."""
    rig = Rig.for_flat_guest(guest, hardware=hardware, parts=parts)
    stop = rig.run(2_000_000_000)
    return rig.console.decode("latin-1"), stop.detail


@pytest.mark.parametrize("hardware", [Hardware(), SHADOW], ids=["nested", "shadow"])
def test_a_tree_of_small_pages_carries_a_guest(hardware: Hardware) -> None:
    """A whole operating system runs on somebody else's tree as on the kernel's, to the same words."""
    assert life(tinyos.build(), hardware, Parts()) == life(tinyos.build(), hardware, Parts(mappings=Tree))


def test_a_filling_carries_a_guest() -> None:
    """A whole operating system under shadow paging runs on somebody else's filling as on the kernel's own."""
    assert life(tinyos.build(), SHADOW, Parts()) == life(tinyos.build(), SHADOW, Parts(shadow=Filling))


def test_both_at_once() -> None:
    """Two parts do not get into each other's way."""
    both = Parts(mappings=Tree, shadow=Filling)

    assert life(tinyos.build(), SHADOW, Parts()) == life(tinyos.build(), SHADOW, both)


def handing_on(r: Root) -> None:
    """Maps, maps on, grants, takes rights, takes back, and deletes spaces; the invariants are checked all along."""
    first, second = r.space(), r.space()
    a, b = r.room(), r.room()
    r.store(a, b"x")
    r.store(b, b"y")
    one, two = r.create(first), r.create(second)
    r.send(one, thread_start(0, 0).append_map(Fpage.at(a), 0x40_0000).append_map(Fpage.at(b), 0x40_1000))
    r.send(two, thread_start(0, 0).append_map(Fpage.at(a), 0x50_0000))
    r.sleep(1000)
    found.append([r.unmap(Fpage(Fpage.at(a) & ~7)), r.unmap(Fpage.at(b, rights="-w-"))])
    r.sleep(1000)
    r.unmap(Fpage.at(a))
    r.sleep(1000)


found: list[object] = []


def test_pages_are_handed_on_and_taken_back_as_by_the_kernels_own() -> None:
    """The page tables at the end, and each status on the way, are those that the kernel's own database leaves."""
    tables = []
    for parts in (Parts(), Parts(mappings=Tree)):
        system = System(handing_on, parts=parts)
        system.run(60_000_000)
        spaces = [
            [(page.va, page.pa, page.writable) for page in space.tables.entries()] for space in system.kernel.spaces
        ]
        small = [[entry for entry in pages if entry[0] < MEMORY.base + 0x200_0000] for pages in spaces]
        tables.append((found.copy(), small[2:]))
        found.clear()

    assert tables[0] == tables[1]


class Stuck(Filling):
    """Never sets D: the CPU's store misses again and again."""

    def fill(self, guest: GuestTables, linear: int, write: bool, user: bool) -> Fill | GuestFault:
        """As above, but read-only."""
        filled = super().fill(guest, linear, write, user)
        return filled._replace(writable=False) if isinstance(filled, Fill) else filled


class Nothing(ShadowFill):
    """Forgets to return."""

    def fill(self, guest: GuestTables, linear: int, write: bool, user: bool) -> Fill | GuestFault:
        """Nothing."""
        return None  # type: ignore[return-value]


class Beyond(ShadowFill):
    """An address for a frame."""

    def fill(self, guest: GuestTables, linear: int, write: bool, user: bool) -> Fill | GuestFault:
        """What lies there belongs to nobody."""
        return Fill(0xFFFF_F000, True, True)


class Text(ShadowFill):
    """A word for an address."""

    def fill(self, guest: GuestTables, linear: int, write: bool, user: bool) -> Fill | GuestFault:
        """As text."""
        return Fill(hex(guest.cr3), True, True)  # type: ignore[arg-type]


class Raises(ShadowFill):
    """A mistake in it."""

    def fill(self, guest: GuestTables, linear: int, write: bool, user: bool) -> Fill | GuestFault:
        """Divides by zero."""
        return Fill(linear // 0, True, True)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Stuck, r"Stuck\.fill\(\) is stuck: the CPU's write of 0x"),
        (Nothing, r"Nothing\.fill\(\) returned None, which is neither a Fill nor a GuestFault"),
        (Beyond, r"Beyond\.fill\(\) returned frame 0xfffff000, which is no page of the machine"),
        (Text, r"Text\.fill\(\) returned frame '0x\w+', which is no page of the machine"),
        (Raises, r"Raises\.fill\(.*\) raised ZeroDivisionError"),
        (Tree, r"Tree is no ShadowFill\. Derive it from l4lab\.kernel\.parts\.ShadowFill"),
    ],
)
def test_a_wrong_filling_is_named(kind: Callable[[], ShadowFill], what: str) -> None:
    """A filling that breaks a rule ends the run with its name and what was wrong, and the kernel does not go on."""
    rig = Rig.for_flat_guest(tinyos.build(), hardware=SHADOW, parts=Parts(shadow=kind))

    with pytest.raises(PartFailed, match=what):
        rig.run(2_000_000_000)
    with pytest.raises(PartFailed):
        rig.run(1000)


class Keeps(Tree):
    """Says that it has unmapped, and has not."""

    def unmap(self, space: Space, va: int, rights: int, flush: bool) -> int:
        """Nothing."""
        return 0


class Twice(Tree):
    """Installs a page where another one is."""

    def map(self, src: Space, src_va: int, dst: Space, dst_va: int, writable: bool, grant: bool) -> bool:
        """Over what is there."""
        self.hooks.install(dst, dst_va, self.pages[src, src_va].pa, True)
        self.hooks.install(dst, dst_va, 0x1000, True)
        return True


class KernelMemory(Tree):
    """Gives the kernel's own memory away."""

    def map(self, src: Space, src_va: int, dst: Space, dst_va: int, writable: bool, grant: bool) -> bool:
        """The last page of RAM."""
        self.hooks.install(dst, dst_va, (64 << 20) - 0x1000, True)
        return True


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Keeps, r"Keeps\.unmap\(\) left 0x"),
        (Twice, r"Twice: install: .* already; remove that first"),
        (KernelMemory, r"KernelMemory: install: 0x\w+ is no page of the users' memory"),
    ],
)
def test_a_wrong_tree_is_named(kind: Callable[[PageHooks], PageTree], what: str) -> None:
    """A tree that breaks a rule ends the run with its name and what was wrong."""

    def root(r: Root) -> None:
        holder = r.space()
        thread = r.native("mov eax, [0x404000]\n stay: jmp stay", holder)
        r.serve(2)
        r.thread_control(thread.id, NIL_THREAD)
        r.thread_control(holder, NIL_THREAD)

    with pytest.raises(PartFailed, match=what):
        System(root, check=False, parts=Parts(mappings=kind)).run(60_000_000)
