# SPDX-License-Identifier: GPL-2.0-or-later
"""Building page tables: what was mapped is found, what was unmapped is gone, and no table stays behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.errors import KernelPanic
from l4lab.kernel.objects.frames import FrameAllocator
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import USER, WRITE, A, D, WalkFault, flag_names, read_mapped, walk
from l4lab.machine.pagetables import Mapping, PageTables

LARGE = 1 << 22


@pytest.fixture
def frames() -> FrameAllocator:
    return FrameAllocator(Memory(1 << 20), 0x80000, 0x20000)


@pytest.fixture
def tables(frames: FrameAllocator) -> PageTables:
    return PageTables(frames._memory, frames.allocate, frames.free)


pages = st.one_of(
    st.tuples(st.builds(lambda d, t: d << 22 | t << 12, st.integers(0, 5), st.sampled_from([0, 1, 1023])), st.just(12)),
    st.tuples(st.integers(6, 9).map(lambda d: d << 22), st.just(22)),
)
steps = st.tuples(pages, st.sampled_from(["map", "map", "unmap", "protect"]), st.integers(0, 0x3FF), st.booleans())


@settings(deadline=None)
@given(st.lists(steps, max_size=40))
def test_entries_are_what_was_mapped(todo: list[tuple[tuple[int, int], str, int, bool]]) -> None:
    """After any sequence, `entries`, `lookup` and the walk show what a plain dict shows, and release frees it all."""
    frames = FrameAllocator(Memory(1 << 20), 0x80000, 0x20000)
    tables = PageTables(frames._memory, frames.allocate, frames.free)
    expected: dict[int, Mapping] = {}
    for (va, log2), what, frame, writable in todo:
        generation, before = tables.generation, expected.get(va)
        if what == "map":
            expected[va] = Mapping(va, frame << log2 & 0xFFFFFFFF, log2, writable, True, False, False)
            tables.map(va, expected[va].pa, log2, writable)
            assert before is None or tables.generation > generation
        elif before and what == "unmap":
            del expected[va]
            tables.unmap(va, log2)
            assert tables.generation > generation
        elif before:
            expected[va] = Mapping(va, before.pa, log2, writable, True, False, False)
            tables.protect(va, writable)
            assert (tables.generation > generation) == (before.writable and not writable)

    assert list(tables.entries()) == [expected[va] for va in sorted(expected)]
    assert frames.used == 1 + len({va >> 22 for va, page in expected.items() if page.log2 == 12})
    for va, page in expected.items():
        last = va + (1 << page.log2) - 1
        assert tables.lookup(last) == page
        assert walk(frames._memory, tables.cr3, last, USER, set_ad=False) == page.pa + (last - va)
    tables.release()
    assert frames.used == 0


def test_reference_bits_tell_what_happened_since(frames: FrameAllocator, tables: PageTables) -> None:
    """A read sets A, a write also D; clearing returns them and makes the TLB stale."""
    tables.map(0x5000, 0x1000, 12, writable=True)
    walk(frames._memory, tables.cr3, 0x5000, USER)
    assert tables.reference_bits(0x5000) == A
    walk(frames._memory, tables.cr3, 0x5000, USER | WRITE)
    generation = tables.generation

    assert tables.clear_reference_bits(0x5000) == A | D
    assert tables.generation > generation
    assert tables.clear_reference_bits(0x5000) == 0


def test_kernel_pages_are_closed_to_users(frames: FrameAllocator, tables: PageTables) -> None:
    """A page mapped with user=False is the kernel's: ring 3 gets a protection fault."""
    tables.map(0xC0000000, 0, 22, writable=True, user=False, global_=True)

    assert walk(frames._memory, tables.cr3, 0xC0012345, WRITE) == 0x12345
    with pytest.raises(WalkFault) as fault:
        walk(frames._memory, tables.cr3, 0xC0012345, USER)
    assert (fault.value.address, fault.value.error_code) == (0xC0012345, 5)
    assert str(fault.value) == "page fault at 0xc0012345: user read, no right"
    assert flag_names(frames._memory.u32[(tables.cr3 >> 2) + 0x300]) == "G PS D A RW P"


def test_sizes_do_not_mix(tables: PageTables) -> None:
    """A page of one size in the place of the other is a bug of ours, and named."""
    tables.map(0x5000, 0x1000, 12, writable=True)
    tables.map(LARGE, LARGE, 22, writable=True)

    for va, log2 in ((0, 22), (LARGE + 0x1000, 12)):
        with pytest.raises(KernelPanic, match="in the way"):
            tables.map(va, 0, log2, writable=True)
    for va, log2 in ((0, 22), (LARGE, 12), (0x6000, 12)):
        with pytest.raises(KernelPanic, match="to take out"):
            tables.unmap(va, log2)


@settings(deadline=None)
@given(st.sets(st.integers(0, 3)), st.integers(0, 3 * 4096), st.integers(0, 3 * 4096))
def test_a_programs_memory_is_read_to_the_first_page_that_is_missing(there: set[int], offset: int, length: int) -> None:
    """Is what is read, in one go, what the walk finds byte by byte, also across the end of the address space?"""
    frames = FrameAllocator(Memory(1 << 20), 0x80000, 0x20000)
    memory = frames._memory
    tables = PageTables(memory, frames.allocate, frames.free)
    for page in there:
        tables.map((0xFFFF_E000 + page * 4096) & 0xFFFFFFFF, page << 12, 12, writable=False)
        memory.write(page << 12, bytes((page * 64 + i) & 0xFF for i in range(4096)))
    start, expected = 0xFFFF_E000 + offset, b""
    for i in range(length):
        try:
            expected += bytes((memory.u8[walk(memory, tables.cr3, start + i & 0xFFFFFFFF, USER)],))
        except WalkFault:
            break
    for page in tables.entries():
        tables.clear_reference_bits(page.va)

    assert expected == read_mapped(memory, tables.cr3, start, length)
    assert not any(page.accessed for page in tables.entries())
