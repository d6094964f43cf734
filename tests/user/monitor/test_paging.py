# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's walk of the guest's page tables, against the machine's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.machine import mmu
from l4lab.machine.memory import Memory
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.paging import CR0_PG, CR0_WP, CR4_PSE, GuestPageFault, Paging, read_linear, write_linear
from tests.user.monitor.parts import guest_memory

SIZE = 1 << 20
DIRECTORY, TABLES = 0x1000, (0x2000, 0x3000)

flags = st.integers(0, 0xFF)
frames = st.integers(0, (SIZE >> 12) - 1).map(lambda frame: frame << 12)
entries = st.builds(lambda frame, bits: frame | bits, frames, flags)
directory_entries = st.builds(lambda table, bits: table | bits, st.sampled_from(TABLES), flags)


def plant(memory: Memory, address: int, word: int) -> None:
    memory.set_word(address >> 2, word)


@settings(max_examples=300, deadline=None)
@given(
    pde=directory_entries | st.integers(0, 0xFFFF_FFFF).map(lambda word: word | mmu.PS),
    pte=entries,
    linear=st.integers(0, 0xFFFF_FFFF),
    write=st.booleans(),
    user=st.booleans(),
    wp=st.booleans(),
    pse=st.booleans(),
)
def test_the_walk_agrees_with_the_machines(
    pde: int, pte: int, linear: int, write: bool, user: bool, wp: bool, pse: bool
) -> None:
    """For any tables and access: same address or same fault, and the same accessed and dirty bits left behind?"""
    if pde & mmu.PS and not pse:
        pde = pde & 0xFFF | TABLES[0]  # a table has to be in RAM for the machine's walker
    machine, guest = Memory(SIZE), guest_memory(SIZE)
    for table in TABLES:
        plant(machine, table + 4 * (linear >> 12 & 0x3FF), pte)
    plant(machine, DIRECTORY + 4 * (linear >> 22), pde)
    guest.write(0, bytes(machine.u8[:SIZE]))
    paging = Paging(CR0_PG | (CR0_WP if wp else 0), DIRECTORY, CR4_PSE if pse else 0, user)

    access = (mmu.WRITE if write else 0) | (mmu.USER if user else 0)
    expected: object
    found: object
    try:
        expected = mmu.walk(machine, DIRECTORY, linear, access, wp=wp, pse=pse)
    except mmu.WalkFault as fault:
        expected = (fault.address, fault.error_code)
    try:
        found = paging.translate(guest, linear, write)
    except GuestPageFault as fault:
        found = (fault.address, fault.error_code)

    assert expected == found
    assert bytes(machine.u8[:SIZE]) == guest.read(0, SIZE)


def with_pages(*frames_: int) -> tuple[GuestMemory, Paging]:
    """Memory where linear pages 0, 1, ... lie in these frames; 0 for a page that is missing."""
    guest = guest_memory(SIZE)
    guest.set_word(DIRECTORY, TABLES[0] | 7)
    for page, frame in enumerate(frames_):
        guest.set_word(TABLES[0] + 4 * page, frame | 7 if frame else 0)
    return guest, Paging(CR0_PG, DIRECTORY, 0, user=False)


def test_a_string_of_bytes_may_lie_in_frames_that_do_not_adjoin() -> None:
    """Is what is written across a page boundary found in both frames, and read back whole?"""
    guest, paging = with_pages(0x8000, 0x6000)
    write_linear(guest, paging, 0xFFD, b"abcdef")

    assert (b"abc", b"def") == (guest.read(0x8FFD, 3), guest.read(0x6000, 3))
    assert b"abcdef" == read_linear(guest, paging, 0xFFD, 6)


def test_a_write_that_faults_half_way_writes_nothing() -> None:
    """Does the first page stay as it was when the second one is missing?"""
    guest, paging = with_pages(0x8000, 0)
    with pytest.raises(GuestPageFault) as raised:
        write_linear(guest, paging, 0xFFD, b"abcdef")

    assert (0x1000, mmu.WRITE) == (raised.value.address, raised.value.error_code)
    assert bytes(3) == guest.read(0x8FFD, 3)


def test_beyond_the_end_of_memory_all_is_ones() -> None:
    """Does memory that is not there read as ones and swallow writes, also in part?"""
    guest = guest_memory(0x2000)
    guest.write(0x1FFE, b"abcd")

    assert b"ab\xff\xff" == guest.read(0x1FFE, 4)
    assert b"\xff" * 4 == guest.read(0xFFFF_0000, 4)
