# SPDX-License-Identifier: GPL-2.0-or-later
"""The mapping database against a naive model, in random order, thousands of steps.

The model is a plain list of pages, searched from end to end for every question. After each step both must show the same
pages, parents, rights, A and D bits, and the page tables must lead there and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from l4lab.abi.fpage import Fpage
from l4lab.kernel.memory.mapping import MappingDatabase, send_window
from l4lab.kernel.memory.mappingtree import Node
from l4lab.machine.mmu import USER, WRITE, WalkFault, walk
from tests.kernel.test_mapping import FakeSpace, World

LARGE = 1 << 22
KIP = 3 * LARGE  # one page of each space's fourth region, the last that users can have
SIZES = [12, 12, 12, 13, 21, 22, 22, 23]


@dataclass(eq=False)
class Page:
    """One mapping in the model. A parent of None stands for sigma0."""

    space: FakeSpace
    va: int
    pa: int
    size: int
    parent: Page | None
    writable: bool
    status: int = 0  # of the page itself: 5, 6
    remembered: int = 0
    gone: list[tuple[int, int, int]] = field(default_factory=list)  # pa, size, status of children of which nobody told


class Model:
    def __init__(self) -> None:
        self.pages: list[Page] = []

    def overlapping(self, space: FakeSpace, va: int, size: int) -> list[Page]:
        found = [p for p in self.pages if p.space is space and p.va < va + size and va < p.va + p.size]
        return sorted(found, key=lambda p: p.va)

    def children(self, page: Page) -> list[Page]:
        return [p for p in self.pages if p.parent is page]

    def revoke(self, page: Page, rights: int, told: bool = False) -> int:
        status = self.revoke_below(page, rights)
        if page.parent:
            page.parent.remembered |= status
            if not told:
                page.parent.gone.append((page.pa, page.size, status))
        return status

    def revoke_below(self, page: Page, rights: int) -> int:
        status = page.status | page.remembered
        page.status = page.remembered = 0
        page.gone.clear()
        for child in self.children(page):
            status |= self.revoke_below(child, rights)
        page.writable = page.writable and not rights & 2
        if rights == 7:
            self.pages.remove(page)
        return status

    def map(self, src: FakeSpace, start: int, size: int, rights: int, dst: FakeSpace, target: int, grant: bool) -> None:
        pieces: list[tuple[Page | None, int, int, int]] = []  # source page, va, pa, size
        if src.is_sigma0:
            step = min(size, LARGE) if size >= LARGE else 4096
            pieces = [(None, va, va, step) for va in range(start, start + size, step)]
        for page in self.overlapping(src, start, size):
            if page.size <= size:
                pieces.append((page, page.va, page.pa, page.size))
            else:
                pieces += [(page, va, page.pa + va - page.va, 4096) for va in range(start, start + size, 4096)]
        broken = []
        for source, va, pa, piece in pieces:
            if source and (source not in self.pages or source.space is not src):
                continue
            at = target + va - start
            if at + piece > dst.user_limit or dst.is_reserved(at, piece):
                continue
            if self.hand_over(source, pa, piece, rights, dst, at, grant) and source and piece < source.size:
                broken.append(source)
        for source in broken if grant else []:
            if source in self.pages:
                self.revoke(source, 7)

    def hand_over(
        self, source: Page | None, pa: int, size: int, rights: int, dst: FakeSpace, va: int, grant: bool
    ) -> bool:
        there = self.overlapping(dst, va, size)
        if source in there or any(p.size > size for p in there):
            return False
        writable = bool(rights & 2) and (source is None or source.writable)
        if source is None or not grant:
            grant, parent = False, source
        else:
            parent = source.parent
        if len(there) == 1 and (there[0].pa, there[0].size) == (pa, size):
            old = there[0]
            if not grant:
                old.writable = old.writable or writable
                return True
            writable = writable or old.writable
            for child in self.children(old):
                child.parent = old.parent
            if old.parent:
                old.parent.remembered |= old.status | old.remembered
                old.parent.gone.append((old.pa, old.size, old.status | old.remembered))
            self.pages.remove(old)
            parent = source.parent if source else None
        else:
            for old in there:
                if old in self.pages:
                    self.revoke(old, 7)
        if grant and source and source.size == size:
            source.remembered |= source.status
            source.space, source.va, source.writable, source.status = dst, va, writable, 0
        else:
            self.pages.append(Page(dst, va, pa, size, parent, writable))
        return True

    def unmap(self, space: FakeSpace, va: int, size: int, rights: int, flush: bool) -> int:
        status = 0
        if space.is_sigma0:
            top = [p for p in self.pages if p.parent is None and p.pa < va + size and va < p.pa + p.size]
            for page in top:
                status |= self.revoke(page, rights) if page in self.pages else 0
            return status
        for page in self.overlapping(space, va, size):
            if page not in self.pages:
                continue
            first = page.pa + max(va - page.va, 0)
            reached = [p for p in self.children(page) if p.pa < first + size and first < p.pa + p.size]
            for top_page in [page] if flush else reached:
                status |= self.revoke(top_page, rights, told=not flush) if top_page in self.pages else 0
            if not flush:
                heard = [g for g in page.gone if g[0] < first + size and first < g[0] + g[1]]
                page.gone = [g for g in page.gone if g not in heard]
                for _, _, left in heard:
                    status |= left
        return status


class MappingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(frames=200)
        self.db: MappingDatabase = self.world.db
        self.model = Model()
        self.spaces = [self.world.a, self.world.b, self.world.c]
        self.used = self.world.frames.used
        for space in self.spaces:
            space.user_limit = KIP + LARGE
            space.reserved = [(KIP, 4096)]
            space.tables.map(KIP, 0x3000, 12, writable=False)

    def pick(self, number: int) -> FakeSpace:
        return [*self.spaces, self.world.sigma0][number]

    @rule(
        src=st.sampled_from([0, 1, 2, 3, 3]),
        dst=st.integers(0, 2),
        region=st.integers(0, 2),
        to=st.integers(0, 3),
        page=st.sampled_from([0, 1, 2, 1023]),
        to_page=st.sampled_from([0, 1, 2, 1023]),
        sizes=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
        base=st.sampled_from([0, 0x1000, 0x2000, LARGE, LARGE + 0x1000, 0x201000]),
        rights=st.sampled_from([7, 7, 5, 0, 2]),
        grant=st.sampled_from([False, False, True]),
    )
    def map(
        self, src: int, dst: int, region: int, to: int, page: int, to_page: int, sizes: tuple[int, int], base: int,
        rights: int, grant: bool,
    ) -> None:  # fmt: skip
        """Map or grant something; a 4 MB piece never meets a KIP, where it would fall into 1023 pieces."""
        send_log2, win_log2 = sizes
        if min(sizes) > 13:
            to %= 2
        if min(sizes) == 21:
            send_log2 = win_log2 = 22  # 512 small pieces at a time tell no more than two do
            to %= 2
        source, target = self.pick(src), self.pick(dst)
        send, window = region << 22 | page << 12, to << 22 | to_page << 12
        start, at, log2 = send_window(send, send_log2, base, window, win_log2)
        fpage = Fpage.make(b=send >> 10, s=send_log2, rights=rights)
        self.world.map(source, fpage, base, target, Fpage.make(b=window >> 10, s=win_log2), grant)
        self.model.map(source, start, 1 << log2, rights, target, at, grant)
        if grant and send_log2 > win_log2 and not source.is_sigma0:
            self.model.unmap(source, send >> send_log2 << send_log2, 1 << send_log2, 7, flush=True)

    @rule(
        number=st.integers(0, 3),
        region=st.integers(0, 3),
        page=st.sampled_from([0, 1, 2, 1023]),
        log2=st.sampled_from([0, *SIZES, 24, 32]),
        rights=st.sampled_from([7, 7, 2, 0, 5]),
        flush=st.booleans(),
    )
    def unmap(self, number: int, region: int, page: int, log2: int, rights: int, flush: bool) -> None:
        space = self.pick(number)
        base = region << 22 | page << 12
        size = max(log2, 12)
        expected = self.model.unmap(space, base >> size << size, 1 << size, rights, flush)
        assert expected == self.db.unmap(space, base, log2, rights, flush).status

    @rule(number=st.integers(0, 2), choice=st.integers(0, 50), write=st.booleans())
    def touch(self, number: int, choice: int, write: bool) -> None:
        """A user reads or writes a page it has."""
        pages = self.model.overlapping(self.spaces[number], 0, 1 << 32)
        if pages:
            page = pages[choice % len(pages)]
            if page.writable or not write:
                self.world.touch(page.space, page.va, write)
                page.status |= 7 if write else 5

    @rule(number=st.integers(0, 2))
    def forget(self, number: int) -> None:
        self.db.forget(self.spaces[number])
        for page in self.model.overlapping(self.spaces[number], 0, 1 << 32):
            if page in self.model.pages:
                self.model.revoke(page, 7)

    @invariant()
    def same_pages(self) -> None:
        """Model, nodes and page tables tell the same story, page by page."""
        for space in self.spaces:
            expected = {p.va: p for p in self.model.overlapping(space, 0, 1 << 32)}
            nodes = self.db.nodes(space)
            assert list(expected) == [node.va for node in nodes]
            for node in nodes:
                self.same_page(expected[node.va], node)
            shown = {m.va: m for m in space.tables.entries()}
            assert shown.pop(KIP).pa == 0x3000
            assert list(expected) == list(shown)
            for va, page in expected.items():
                mapping = shown[va]
                assert (page.pa, page.size, page.writable) == (mapping.pa, 1 << mapping.log2, mapping.writable)
                assert page.status == (5 if mapping.accessed else 0) | (6 if mapping.dirty else 0)
                assert page.pa + page.size - 1 == self.outcome(space, va + page.size - 1, USER)
                assert page.writable == (self.outcome(space, va, USER | WRITE) == page.pa)
            for va in (0, 0x1000, LARGE, 2 * LARGE + 0x2000, KIP + 0x1000):
                if not self.model.overlapping(space, va, 1):
                    assert self.outcome(space, va, USER) is None

    def same_page(self, page: Page, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        assert node in parent.children[node.pa]
        assert parent.pa <= node.pa
        assert node.pa + (1 << node.log2) <= parent.pa + (1 << parent.log2)
        assert (page.pa, page.size, page.remembered) == (node.pa, 1 << node.log2, node.remembered)
        if page.parent is None:
            assert parent.space is self.world.sigma0
        else:
            assert (page.parent.space, page.parent.va) == (parent.space, parent.va)

    def outcome(self, space: FakeSpace, va: int, access: int) -> int | None:
        try:
            return walk(self.world.memory, space.tables.cr3, va, access, set_ad=False)
        except WalkFault:
            return None

    def teardown(self) -> None:
        """When all spaces are forgotten and released, every frame is back."""
        for space in self.spaces:
            self.db.forget(space)
            space.tables.release()
        assert all(not root.children for root in self.db.nodes(self.world.sigma0))
        assert self.world.frames.used == self.used - len(self.spaces)


MappingMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
test_database_and_model_agree = MappingMachine.TestCase
