# SPDX-License-Identifier: GPL-2.0-or-later
"""The mapping database: what map, grant, unmap and flush do, one sentence each. All of them: test_mapping_model.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi.fpage import Fpage
from l4lab.abi.message import GrantItem, MapItem
from l4lab.errors import Refused
from l4lab.kernel.memory.mapping import Change, HandedOn, MappingDatabase, send_window
from l4lab.kernel.objects.frames import FrameAllocator
from l4lab.kernel.objects.space import MappedSpace
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import USER, WRITE, WalkFault, walk
from l4lab.machine.pagetables import PageTables
from l4lab.words import Rights

MB4 = 1 << 22
RWX, RX = 7, 5


Page = tuple[int, int, int]  # address, physical address, log2 of the size


class FakeSpace(MappedSpace):
    """An address space whose reserved areas a test chooses."""

    def __init__(self, name: str, tables: PageTables, is_sigma0: bool = False) -> None:
        super().__init__(0, name, tables)
        self.is_sigma0 = is_sigma0
        self.user_limit = 0xC0000000
        self.reserved: list[tuple[int, int]] = []

    def is_reserved(self, va: int, size: int) -> bool:
        return any(va < start + length and start < va + size for start, length in self.reserved)


class World:
    """sigma0, three spaces, and a database."""

    def __init__(self, frames: int = 64) -> None:
        self.memory = Memory(32 << 20)
        self.frames = FrameAllocator(self.memory, self.memory.size - frames * 4096, frames * 4096)
        self.db = MappingDatabase()
        self.sigma0 = self.space("sigma0", is_sigma0=True)
        self.a, self.b, self.c = (self.space(name) for name in "abc")

    def space(self, name: str, is_sigma0: bool = False) -> FakeSpace:
        return FakeSpace(name, PageTables(self.memory, self.frames.allocate, self.frames.free), is_sigma0)

    def give(
        self, src: FakeSpace, va: int, dst: FakeSpace, to: int, rights: int = RWX, log2: int = 12, grant: bool = False
    ) -> list[Page]:
        """Map the page at `va` to `to`. The pages that the taker got, or got more rights to."""
        return self.map(src, Fpage.at(va, log2, Rights(rights)), 0, dst, Fpage.at(to, log2), grant)

    def map(self, src: FakeSpace, fpage: Fpage, base: int, dst: FakeSpace, window: Fpage, grant: bool) -> list[Page]:
        changes: list[Change] = []
        self.db.map(src, (GrantItem if grant else MapItem).at(base), fpage, dst, window, changes)
        return [(page.va, page.pa, page.log2) for page in changes if isinstance(page, HandedOn)]

    def take(self, space: FakeSpace, va: int, rights: int = RWX, log2: int = 12, flush: bool = False) -> int:
        return self.db.unmap(space, va, log2, rights, flush).status

    def touch(self, space: FakeSpace, va: int, write: bool = False) -> int:
        return walk(self.memory, space.tables.cr3, va, USER | (WRITE if write else 0))

    def can(self, space: FakeSpace, va: int, write: bool = False) -> bool:
        try:
            walk(self.memory, space.tables.cr3, va, USER | (WRITE if write else 0), set_ad=False)
        except WalkFault:
            return False
        return True


@pytest.fixture
def world() -> World:
    return World()


@given(st.integers(12, 32), st.integers(12, 32), *[st.integers(0, 0xFFFFFFFF)] * 3)
def test_send_base_picks_the_part_of_the_larger(s: int, r: int, send: int, window: int, base: int) -> None:
    """Both ends are aligned pieces of the smaller size, inside fpage and window, where the send base says."""
    source, target, log2 = send_window(send, s, base, window, r)

    assert min(s, r) == log2
    assert source % (1 << log2) == target % (1 << log2) == 0
    assert source >> s == send >> s
    assert target >> r == window >> r
    larger, at = (s, source) if s > r else (r, target)
    assert (base & (1 << larger) - 1) >> log2 == (at & (1 << larger) - 1) >> log2


def test_sigma0_owns_all_memory_idempotently(world: World) -> None:
    """Mapping from sigma0 needs nothing in its page table: address = physical address."""
    assert [(0x8000, 0x5000, 12)] == world.give(world.sigma0, 0x5000, world.a, 0x8000)
    assert 0x5123 == world.touch(world.a, 0x8123, write=True)


def test_of_what_reaches_beyond_sigma0s_memory_the_rest_is_mapped(world: World) -> None:
    """Does a map item that begins in sigma0's memory and ends in the kernel's map what is sigma0's, page by page?"""
    end = 2 * MB4 + 0x3000
    world.db = MappingDatabase(end)
    installed = world.give(world.sigma0, 0, world.a, 0, log2=24)

    assert {(0, 22), (MB4, 22)} | {(2 * MB4 + n, 12) for n in range(0, 0x3000, 0x1000)} == {
        (pa, log2) for _, pa, log2 in installed
    }
    assert [] == world.give(world.sigma0, end, world.b, 0)


def test_map_never_widens_rights(world: World) -> None:
    """Does mapping rwx out of a page held r-x hand over only r-x (Q6)?"""
    world.give(world.sigma0, 0x5000, world.a, 0x8000, RX)
    world.give(world.a, 0x8000, world.b, 0x9000, RWX)

    assert world.can(world.b, 0x9000)
    assert not world.can(world.b, 0x9000, write=True)


def test_same_frame_again_extends_rights(world: World) -> None:
    """A page mapped r-x and then rwx is rwx, and r-x afterwards takes nothing away."""
    world.give(world.sigma0, 0x5000, world.a, 0x8000, RX)

    assert [(0x8000, 0x5000, 12)] == world.give(world.sigma0, 0x5000, world.a, 0x8000, RWX)
    assert [] == world.give(world.sigma0, 0x5000, world.a, 0x8000, RX)
    assert world.can(world.a, 0x8000, write=True)


def test_another_frame_replaces_and_flushes(world: World) -> None:
    """Mapping another frame over a page takes the old one from all who had it from there."""
    world.give(world.sigma0, 0x5000, world.a, 0x8000)
    world.give(world.a, 0x8000, world.b, 0x9000)
    world.give(world.sigma0, 0x6000, world.a, 0x8000)

    assert 0x6000 == world.touch(world.a, 0x8000)
    assert not world.can(world.b, 0x9000)


def test_large_page_in_small_pieces(world: World) -> None:
    """A 4 MB page is mapped on in 4 KB pieces, and each piece is taken back alone."""
    assert [(MB4, 2 * MB4, 22)] == world.give(world.sigma0, 2 * MB4, world.a, MB4, log2=22)
    world.give(world.a, MB4 + 0x3000, world.b, 0x3000)
    world.give(world.a, MB4 + 0x4000, world.b, 0x4000)
    world.take(world.a, MB4 + 0x3000)

    assert not world.can(world.b, 0x3000)
    assert 2 * MB4 + 0x4000 == world.touch(world.b, 0x4000)
    assert world.can(world.a, MB4 + 0x3000)


def test_large_request_copies_small_entries(world: World) -> None:
    """A 4 MB request out of a table of small pages hands over those that are there; holes stay holes."""
    for page in (0, 5, 1023):
        world.give(world.sigma0, 0x100000 + page * 4096, world.a, MB4 + page * 4096)

    installed = world.give(world.a, MB4, world.b, 3 * MB4, log2=22)
    assert [3 * MB4, 3 * MB4 + 0x5000, 3 * MB4 + 0x3FF000] == [va for va, _, _ in installed]
    assert not world.can(world.b, 3 * MB4 + 0x1000)


def test_small_pages_give_way_to_a_large_one_but_not_the_reverse(world: World) -> None:
    """4 MB over a table replaces it; 4 KB into a 4 MB page is left alone."""
    world.give(world.sigma0, 0x5000, world.a, MB4 + 0x1000)
    world.give(world.sigma0, MB4, world.a, MB4, log2=22)

    assert MB4 + 0x1000 == world.touch(world.a, MB4 + 0x1000)
    assert [] == world.give(world.sigma0, 0x5000, world.a, MB4 + 0x1000)
    assert MB4 + 0x1000 == world.touch(world.a, MB4 + 0x1000)


def test_reserved_areas_are_no_target(world: World) -> None:
    """A 4 MB map around the KIP arrives in small pieces, without the KIP's page and without a way to unmap it."""
    world.b.reserved = [(MB4 + 0x2000, 0x1000)]
    world.b.tables.map(MB4 + 0x2000, 0x7000, 12, writable=False)
    world.give(world.sigma0, 2 * MB4, world.a, MB4, log2=22)

    assert 1023 == len(world.give(world.a, MB4, world.b, MB4, log2=22))
    assert 0x7000 == world.touch(world.b, MB4 + 0x2000)
    world.take(world.b, 0, log2=32, flush=True)
    assert [MB4 + 0x2000] == [page.va for page in world.b.tables.entries()]


def test_a_guests_tables_hold_small_pages_only(world: World) -> None:
    """Where 4 MB pages are not allowed, a 4 MB map arrives as 1024 pages, and goes again as one."""
    world.b.large_pages = False

    assert len(world.give(world.sigma0, MB4, world.b, 0, log2=22)) == 1024
    assert {page.log2 for page in world.b.tables.entries()} == {12}
    assert world.touch(world.b, 0x3FFFFF) == MB4 + 0x3FFFFF
    world.take(world.sigma0, MB4, log2=22)
    assert world.db.nodes(world.b) == []


def test_kernel_area_is_no_target(world: World) -> None:
    """Nothing arrives at or above the user limit."""
    world.a.user_limit = 2 * MB4

    assert [] == world.give(world.sigma0, 0x5000, world.a, 2 * MB4)
    assert [0, MB4] == [va for va, _, _ in world.give(world.sigma0, 0, world.a, 0, log2=24)]


def test_grant_moves_the_page(world: World) -> None:
    """The granter loses the page, its children stay, and its own mapper can take it from the new holder."""
    world.give(world.sigma0, 0x5000, world.a, 0x8000)
    world.give(world.a, 0x8000, world.b, 0x9000)
    world.give(world.b, 0x9000, world.c, 0xA000)
    world.give(world.b, 0x9000, world.c, 0xB000, grant=True)

    assert not world.can(world.b, 0x9000)
    assert [True, True] == [world.can(world.c, va) for va in (0xA000, 0xB000)]
    world.take(world.a, 0x8000)
    assert [False, False] == [world.can(world.c, va) for va in (0xA000, 0xB000)]


def test_grant_back_to_the_mapper(world: World) -> None:
    """A page granted to whoever mapped it leaves one holder, and the granter's children are its children now."""
    world.give(world.sigma0, 0x5000, world.a, 0x8000)
    world.give(world.a, 0x8000, world.b, 0x9000)
    world.give(world.b, 0x9000, world.c, 0xA000)
    world.give(world.b, 0x9000, world.a, 0x8000, grant=True)

    assert not world.can(world.b, 0x9000)
    world.take(world.a, 0x8000)
    assert [True, False] == [world.can(world.a, 0x8000), world.can(world.c, 0xA000)]


def test_granting_a_piece_costs_the_large_page(world: World) -> None:
    """A 4 KB piece of a 4 MB page can be granted; the rest of the page is lost to the granter."""
    world.give(world.sigma0, MB4, world.a, MB4, log2=22)
    world.give(world.a, MB4 + 0x5000, world.b, 0x9000, grant=True)

    assert MB4 + 0x5000 == world.touch(world.b, 0x9000)
    assert not world.can(world.a, MB4)
    world.take(world.sigma0, MB4, log2=22)
    assert not world.can(world.b, 0x9000)


def test_granting_more_than_the_window_flushes_the_rest(world: World) -> None:
    """Four pages granted into a window of one: one arrives, the granter keeps none."""
    for page in range(4):
        world.give(world.sigma0, 0x10000 + page * 4096, world.a, 0x8000 + page * 4096)
    installed = world.map(world.a, Fpage.at(0x8000, 14), 0x2000, world.b, Fpage.at(0x9000), grant=True)

    assert [(0x9000, 0x12000, 12)] == installed
    assert [] == world.db.nodes(world.a)


def test_unmap_takes_from_others_and_flush_also_from_me(world: World) -> None:
    """Without f my own mapping stays; with f it goes."""
    world.give(world.sigma0, 0x5000, world.a, 0x8000)
    world.give(world.a, 0x8000, world.b, 0x9000)

    (theirs,) = world.db.unmap(world.a, 0x8000, 12, RWX, flush=False).pages
    (mine,) = world.db.unmap(world.a, 0x8000, 12, RWX, flush=True).pages
    assert (world.b, 0x9000, 0x5000, 12) == (theirs.space, theirs.va, theirs.pa, theirs.log2)
    assert (world.a, 0x8000, 0x5000, 12) == (mine.space, mine.va, mine.pa, mine.log2)


def test_revoking_write_leaves_the_page(world: World) -> None:
    """Unmapping only w makes everything derived read-only, at every depth."""
    world.give(world.sigma0, 0x5000, world.a, 0x8000)
    world.give(world.a, 0x8000, world.b, 0x9000)
    world.give(world.b, 0x9000, world.c, 0xA000)
    generation = world.c.tables.generation
    world.take(world.a, 0x8000, rights=2)

    assert world.can(world.a, 0x8000, write=True)
    assert [True, True] == [world.can(world.b, 0x9000), world.can(world.c, 0xA000)]
    assert [False, False] == [world.can(world.b, 0x9000, write=True), world.can(world.c, 0xA000, write=True)]
    assert generation < world.c.tables.generation


def test_status_is_collected_once_by_each_who_asks(world: World) -> None:
    """A query tells what derived pages did since the last query, and a mapper further up still hears of it."""
    world.give(world.sigma0, 0x5000, world.a, 0x8000)
    world.give(world.a, 0x8000, world.b, 0x9000)
    world.give(world.b, 0x9000, world.c, 0xA000)
    world.touch(world.c, 0xA000)

    assert 5 == world.take(world.b, 0x9000, rights=0)
    assert 0 == world.take(world.b, 0x9000, rights=0)
    assert 5 == world.take(world.a, 0x8000, rights=0)
    world.touch(world.b, 0x9000, write=True)
    assert 7 == world.take(world.a, 0x8000, rights=RWX)
    assert 7 == world.take(world.a, 0x8000, rights=0, flush=True)


def test_unmap_of_a_piece_reaches_large_derived_pages(world: World) -> None:
    """Taking back 4 KB of a 4 MB page takes the whole of a derived 4 MB page, since less cannot be taken from it."""
    world.give(world.sigma0, MB4, world.a, MB4, log2=22)
    world.give(world.a, MB4, world.b, 2 * MB4, log2=22)
    world.take(world.a, MB4 + 0x7000)

    assert [True, False] == [world.can(world.a, MB4), world.can(world.b, 2 * MB4)]


def test_sigma0_flushes_its_own_touches(world: World) -> None:
    """Sigma0's page table fills by its faults; a flush empties it, status reported, and the next fault fills it."""
    world.db.own_page(world.sigma0, 0x5123)
    world.touch(world.sigma0, 0x5000, write=True)
    world.give(world.sigma0, 0x5000, world.a, 0x8000)

    assert 7 == world.take(world.sigma0, 0x4000, log2=13, flush=True)
    assert [False, False] == [world.can(world.sigma0, 0x5000), world.can(world.a, 0x8000)]


def test_forget_leaves_no_trace(world: World) -> None:
    """Deleting a space takes its pages and all derived from them, and gives every frame back."""
    used = world.frames.used
    world.give(world.sigma0, 0x5000, world.a, 0x8000)
    world.give(world.a, 0x8000, world.b, 0x9000)
    world.give(world.b, 0x9000, world.a, 0xA000)
    pages = world.db.forget(world.a)

    assert {("a", 0x8000), ("b", 0x9000), ("a", 0xA000)} == {(page.space.name, page.va) for page in pages}
    assert used == world.frames.used
    assert [] == world.db.nodes(world.b)


def test_out_of_kernel_memory_is_refused_and_harmless() -> None:
    """When no frame is left for a page table, error 8, and what was there before still works."""
    world = World(frames=5)
    world.give(world.sigma0, 0x5000, world.a, 0x8000)

    with pytest.raises(Refused):
        world.give(world.sigma0, 0x5000, world.b, 0x8000)
    assert world.can(world.a, 0x8000)
    world.db.forget(world.a)
    assert world.give(world.sigma0, 0x5000, world.b, 0x8000)
