# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings around a `PageTree`: everything in pages of 4 KB, for who writes the tree.

What lives here: cutting fpages and windows into pages, keeping them out of reserved areas, and what a tree may do to
page tables, checked. The kernel's own, which has large pages too, is `mapping.py`.
"""

from __future__ import annotations

from l4lab.abi.fpage import Fpage
from l4lab.abi.message import GrantItem, MapItem
from l4lab.kernel.memory.mapping import (
    ALL_RIGHTS,
    RIGHT_W,
    Change,
    HandedOn,
    Mappings,
    Revocation,
    Revoked,
    send_window,
    status_of,
)
from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.objects.space import MappedSpace
from l4lab.kernel.parts import PageHooks
from l4lab.machine.memory import PAGE_SIZE
from l4lab.machine.mmu import PAGE_LOG2


class Hooks(PageHooks):
    """What a tree may do, and what it did since somebody asked."""

    def __init__(self, kernel_memory: int) -> None:
        """`kernel_memory`: where physical memory ceases to be the users'."""
        self.kernel_memory = kernel_memory
        self.part: OutsidePart | None = None  # the tree
        self.removed: list[Revoked] = []
        self.installed: list[tuple[MappedSpace, int, int, bool]] = []

    def install(self, space: MappedSpace, va: int, pa: int, writable: bool) -> None:
        self._check(space, va)
        if pa % PAGE_SIZE or not 0 <= pa < self.kernel_memory:
            raise self._failed(f"install: {pa:#x} is no page of the users' memory")
        here = space.tables.lookup(va)
        if here is None:
            space.tables.map(va, pa, PAGE_LOG2, writable)
        elif here.pa == pa:
            space.tables.protect(va, writable)
        else:
            raise self._failed(f"install: {space!r} has {here.pa:#x} at {va:#x} already; remove that first")
        self.installed.append((space, va, pa, writable))

    def remove(self, space: MappedSpace, va: int) -> int:
        self._check(space, va)
        here = space.tables.lookup(va)
        if here is None:
            raise self._failed(f"remove: {space!r} has nothing at {va:#x}")
        self.removed.append(Revoked(space, va, here.pa, PAGE_LOG2))
        return status_of(space.tables.unmap(va, PAGE_LOG2))

    def writable(self, space: MappedSpace, va: int) -> bool:
        if space.is_sigma0:
            return True
        here = space.tables.lookup(va)
        return here is not None and here.writable

    def take_write(self, space: MappedSpace, va: int) -> None:
        self._check(space, va)
        here = space.tables.lookup(va)
        if here is None:
            raise self._failed(f"take_write: {space!r} has nothing at {va:#x}")
        if here.writable:
            space.tables.protect(va, False)
            self.removed.append(Revoked(space, va, here.pa, PAGE_LOG2))

    def take_status(self, space: MappedSpace, va: int) -> int:
        if space.tables.lookup(va) is None:
            raise self._failed(f"take_status: {space!r} has nothing at {va:#x}")
        return status_of(space.tables.clear_reference_bits(va))

    def _check(self, space: MappedSpace, va: int) -> None:
        if space.is_sigma0:
            raise self._failed(f"{space!r} has its pages by nature: they are neither installed nor removed")
        if va % PAGE_SIZE or not 0 <= va < space.user_limit or space.is_reserved(va, PAGE_SIZE):
            raise self._failed(f"{va:#x} is no page of {space!r} that anybody may map")

    def _failed(self, what: str) -> Exception:
        assert self.part is not None, "nobody has asked the tree yet"
        return self.part.failed(f": {what}.")


class SmallPages(Mappings):
    """Asks a `PageTree`, page by page."""

    def __init__(self, part: OutsidePart, hooks: Hooks) -> None:
        self._part = part
        self._hooks = hooks
        hooks.part = part
        # For pictures: from whom a space has each of its pages.
        self._givers: dict[MappedSpace, dict[int, MappedSpace]] = {}

    def giver(self, space: MappedSpace, va: int) -> MappedSpace | None:
        givers = self._givers.get(space)
        return givers.get(va & -PAGE_SIZE) if givers else None

    def own_page(self, sigma0: MappedSpace, va: int) -> HandedOn:
        page = va & -PAGE_SIZE
        sigma0.tables.map(page, page, PAGE_LOG2, writable=True)
        return HandedOn(page, page, page, PAGE_LOG2, True)

    def map(
        self,
        giver: MappedSpace,
        item: MapItem,
        fpage: Fpage,
        taker: MappedSpace,
        window: Fpage,
        changes: list[Change],
    ) -> None:
        start, target, log2 = send_window(fpage.base, fpage.log2, item.base, window.base, window.log2)
        if log2 < PAGE_LOG2 or taker.is_sigma0:
            return
        grant = isinstance(item, GrantItem) and not giver.is_sigma0
        writable = bool(fpage & RIGHT_W)
        for offset in range(0, 1 << log2, PAGE_SIZE):
            va, to = start + offset, target + offset
            if to + PAGE_SIZE > taker.user_limit or taker.is_reserved(to, PAGE_SIZE):
                continue
            if giver.is_sigma0:
                if va >= self._hooks.kernel_memory or giver.is_reserved(va, PAGE_SIZE):
                    continue
                self._part.ask("own", giver, va, va)
            elif giver.tables.lookup(va) is None:
                continue
            changed = self._part.ask("map", giver, va, taker, to, writable, grant)
            if not isinstance(changed, bool):
                raise self._part.failed(f".map() returned {changed!r}, which is neither True nor False.")
            self._report(changes)
            for space, at, pa, granted in self._hooks.installed:
                changes.append(HandedOn(va, at, pa, PAGE_LOG2, granted))
                self._givers.setdefault(space, {})[at] = giver
            self._hooks.installed.clear()

    def unmap(self, space: MappedSpace, base: int, log2: int, rights: int, flush: bool) -> Revocation:
        size = 1 << max(log2, PAGE_LOG2)
        start = base & -size
        status = 0
        pages: list[Change] = []
        for va in self._pages(space, start, start + size):
            status |= self._take(space, va, rights, flush and not space.is_sigma0)
        if flush and space.is_sigma0:
            status |= self._flush_sigma0(space, start, start + size, rights)
        self._report(pages)
        return Revocation(status, [page for page in pages if isinstance(page, Revoked)])

    def forget(self, space: MappedSpace) -> list[Revoked]:
        for va in self._pages(space, 0, space.user_limit):
            self._take(space, va, ALL_RIGHTS, True)
        left = list(self._pages(space, 0, space.user_limit))
        if left:
            raise self._part.failed(f".unmap() left {left[0]:#x} in {space!r}, which is being deleted.")
        self._givers.pop(space, None)
        pages: list[Change] = []
        self._report(pages)
        return [page for page in pages if isinstance(page, Revoked)]

    def _pages(self, space: MappedSpace, begin: int, end: int) -> list[int]:
        """The pages of the space between two addresses; sigma0 has all of the users' memory."""
        if space.is_sigma0:
            return list(range(begin, min(end, self._hooks.kernel_memory), PAGE_SIZE))
        found = (page.va for page in space.tables.entries())
        return [va for va in found if begin <= va < min(end, space.user_limit) and not space.is_reserved(va, PAGE_SIZE)]

    def _take(self, space: MappedSpace, va: int, rights: int, flush: bool) -> int:
        """Ask the tree to take rights away. An earlier page of the same fpage may have taken this one along."""
        if not space.is_sigma0 and space.tables.lookup(va) is None:
            return 0
        status = self._part.ask("unmap", space, va, rights, flush)
        if not isinstance(status, int) or not 0 <= status <= ALL_RIGHTS:
            raise self._part.failed(f".unmap() returned {status!r}, which is no status: 0 to 7.")
        return status

    def _flush_sigma0(self, sigma0: MappedSpace, begin: int, end: int, rights: int) -> int:
        """The pages that sigma0 has touched are in its page table only."""
        status = 0
        for page in [page for page in sigma0.tables.entries() if begin <= page.va < min(end, sigma0.user_limit)]:
            if sigma0.is_reserved(page.va, PAGE_SIZE):
                continue
            status |= status_of(sigma0.tables.clear_reference_bits(page.va))
            if rights == ALL_RIGHTS:
                sigma0.tables.unmap(page.va, PAGE_LOG2)
            elif rights & RIGHT_W and page.writable:
                sigma0.tables.protect(page.va, False)
            else:
                continue
            self._hooks.removed.append(Revoked(sigma0, page.va, page.pa, PAGE_LOG2))
        return status

    def _report(self, changes: list[Change]) -> None:
        """What the tree has taken out of page tables."""
        for gone in self._hooks.removed:
            if gone.space.tables.lookup(gone.va) is None:
                self._givers.setdefault(gone.space, {}).pop(gone.va, None)
        changes.extend(self._hooks.removed)
        self._hooks.removed.clear()
