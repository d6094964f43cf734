# SPDX-License-Identifier: GPL-2.0-or-later
"""Nested walks, with the engine's guest mode as the oracle: a guest's load or store through both sets of tables.

Talks to the engine directly, as test_mmu.py does, and for the same reason.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_32, UC_PROT_ALL, Uc
from unicorn import x86_const as x86

from l4lab.machine import mmu
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import RW, US, USER, WRITE, A, D, NestedPageFault, P, WalkFault, explain_walk, walk_nested

RAM = 24 << 20
STUB, SAVE_AREA, VMCB = 0x1000, 0x3000, 0x4000  # physical
HOST_DIRECTORY, HOST_TABLES = 0x20000, 0x21000
GUEST = 4 << 20  # guest-physical 0 .. 4 MB are here, in pages of 4 KB
CODE, DIRECTORY, TABLES = 0x4000, 0x10000, 0x11000  # guest-physical
LOAD, STORE = bytes([0x8A, 0x03, 0xF4]), bytes([0x88, 0x03, 0xF4])  # mov al, [ebx]; mov [ebx], al; hlt
NESTED_FAULT = 0x500

Outcome = tuple[str, int, int]  # "byte" and its value; "fault" or "nested" with address and error code
Entries = dict[int, int]  # word number -> entry


class GuestCpu:
    """Unicorn, entering a guest for one load or store at a time."""

    def __init__(self) -> None:
        self.memory = Memory(RAM)
        self.uc = Uc(UC_ARCH_X86, UC_MODE_32)
        self.uc.ctl_set_cpu_model(x86.UC_CPU_X86_QEMU64)
        self.uc.mem_map_ptr(0, RAM, UC_PROT_ALL, self.memory.address)
        self.uc.ctl_exits_enabled(True)
        self.uc.ctl_set_exits([])
        self.uc.reg_write(x86.UC_X86_REG_MSR, (0xC0000080, 1 << 12))
        self.uc.reg_write(x86.UC_X86_REG_MSR, (0xC0010117, SAVE_AREA))
        self.uc.reg_write(x86.UC_X86_REG_CR0, 0x11)
        self.uc.reg_write(x86.UC_X86_REG_CR4, 0x10)
        self.memory.write(STUB, b"\x0f\x01\xd8")  # vmrun
        self.trap: tuple[int, int, int] | None = None
        self.uc.hook_add(UC_HOOK_INTR, self._on_trap)
        self.host = self.uc.context_save()

    def _on_trap(self, uc: Uc, number: int, _: object) -> None:
        error = struct.unpack_from("<I", bytes(uc.context_save()), 40 + 5384)[0]
        self.trap = number, uc.reg_read(x86.UC_X86_REG_CR2), error
        uc.emu_stop()

    def put(self, offset: int, layout: str, value: int) -> None:
        self.memory.write(VMCB + offset, struct.pack(layout, value))

    def access(self, va: int, access: int, wp: bool, pse: bool) -> Outcome:
        memory = self.memory
        memory.fill(VMCB, 0x1000)
        memory.write(GUEST + CODE, STORE if access & WRITE else LOAD)
        self.uc.context_restore(self.host)
        self.uc.ctl_flush_tb()
        self.uc.reg_write(x86.UC_X86_REG_CR3, 0)  # flushes the TLB
        for offset, layout, value in (
            (0x00C, "<Q", 1 << 0x18 | 1 << 0x20), (0x058, "<I", 1), (0x090, "<Q", 1), (0x0B0, "<Q", HOST_DIRECTORY),
            (0x4D0, "<Q", 1 << 12), (0x548, "<Q", 0x10 if pse else 0), (0x550, "<Q", DIRECTORY),
            (0x558, "<Q", 0x80000011 | (0x10000 if wp else 0)), (0x560, "<Q", 0x400), (0x568, "<Q", 0xFFFF0FF0),
            (0x570, "<Q", 2), (0x578, "<Q", CODE), (0x5D8, "<Q", 0x8000), (0x5F8, "<Q", 0x5A),
        ):  # fmt: skip
            self.put(offset, layout, value)
        ring = 3 if access & USER else 0
        for offset, kind in ((0x400, 0xC93), (0x410, 0xC9B), (0x420, 0xC93), (0x430, 0xC93)):
            selector = (8 if offset == 0x410 else 0x10) | ring
            memory.write(VMCB + offset, struct.pack("<HHIQ", selector, kind | ring << 5, 0xFFFFFFFF, 0))
        memory.write(VMCB + 0x4CB, bytes([ring]))
        self.uc.reg_write(x86.UC_X86_REG_EAX, VMCB)
        self.uc.reg_write(x86.UC_X86_REG_EBX, va)
        self.trap = None
        self.uc.emu_start(STUB, 0xFFFFFFFF)
        assert self.trap is not None, "the CPU came to a stop without a trap"
        number, cr2, error = self.trap
        if number == 14:
            return "fault", cr2, error
        if number == NESTED_FAULT:
            return "nested", struct.unpack("<Q", memory.read(VMCB + 0x80, 8))[0], error
        assert number == (13 if ring else 0x178), f"trap {number:#x}"
        return "byte", 0, 0 if access & WRITE else self.uc.reg_read(x86.UC_X86_REG_EAX) & 0xFF


@pytest.fixture(scope="module")
def cpu() -> GuestCpu:
    return GuestCpu()


flags = st.integers(0, 31).map(lambda n: n & 7 | (n & 0x18) << 2)  # P RW US, A D
some_flags = st.one_of(flags, *[st.just(P | RW | US)] * 3, flags.map(lambda f: f | P | US))
places = st.sampled_from([0, 1, 0x3FF])
guest_pages = st.builds(lambda slot, place: slot << 10 | place, st.integers(1, 3), places)
# Guest: directory slots 1..3, tables 1 and 2. A PTE may also point at the guest's own tables.
guest_pde = st.one_of(
    st.builds(lambda f, n: f | TABLES + (n << 12), some_flags, st.integers(1, 2)),
    st.builds(lambda f, n: f | mmu.PS | n << 22, some_flags, st.integers(1, 3)),
    st.builds(lambda f, page: f | page << 12, some_flags, guest_pages),
)
guest_entries = st.tuples(
    st.dictionaries(st.integers(1, 3), guest_pde, min_size=2),
    st.dictionaries(
        st.builds(lambda t, i: t << 10 | i, st.integers(1, 2), places),
        st.builds(lambda f, page: f | page << 12, some_flags, guest_pages),
        min_size=3,
    ),
)
# Host: slots 1..3 behind the guest's data; and, for the pages of the guest's tables, other rights than full ones.
odd_bits = st.sampled_from([0, 0, 0, 1 << 21])  # reserved in a 4 MB page
host_pde = st.one_of(
    st.builds(lambda f, n: f | HOST_TABLES + (n << 12), some_flags, st.integers(1, 2)),
    st.builds(lambda f, n, odd: f | mmu.PS | n << 22 | odd, some_flags, st.integers(2, 5), odd_bits),
)
host_entries = st.tuples(
    st.dictionaries(st.integers(1, 3), host_pde, min_size=2),
    st.dictionaries(
        st.builds(lambda t, i: t << 10 | i, st.integers(1, 2), places),
        st.builds(lambda f, n: f | n << 12, some_flags, st.integers(0x800, 0x17FF)),
        min_size=3,
    ),
    st.dictionaries(st.integers(TABLES >> 12, (TABLES >> 12) + 2), flags, max_size=1),
)
addresses = st.builds(lambda page, offset: page << 12 | offset, guest_pages, st.sampled_from([0, 1, 0xFFF]))


def write_tables(memory: Memory, guest: tuple[Entries, Entries], host: tuple[Entries, Entries, Entries]) -> None:
    """Slot 0 of both directories is the harness: the guest's code and tables, mapped one to one and in full."""

    def put(base: int, entries: Entries) -> None:
        for number, entry in entries.items():
            memory.set_word((base >> 2) + number, entry)

    for base in (GUEST + DIRECTORY, HOST_DIRECTORY):
        memory.fill(base, 0x4000)
        memory.set_word(base >> 2, (TABLES if base == GUEST + DIRECTORY else HOST_TABLES) | P | RW | US | A)
    put(GUEST + TABLES, {page: page << 12 | P | RW | US | A | D for page in range(16)})
    put(HOST_TABLES, {page: GUEST + (page << 12) | P | RW | US | A | D for page in range(1024)})
    put(GUEST + DIRECTORY, guest[0])
    put(GUEST + TABLES, guest[1])
    put(HOST_DIRECTORY, host[0])
    put(HOST_TABLES, host[1])
    put(HOST_TABLES, {page: GUEST + (page << 12) | rights for page, rights in host[2].items() if page > TABLES >> 12})


@settings(max_examples=800, deadline=None)
@given(
    guest_entries,
    host_entries,
    addresses,
    st.sampled_from([0, WRITE, USER, USER | WRITE]),
    st.booleans(),
    st.booleans(),
)
@example(({1: TABLES + 0x1000 | 7}, {1024: 0x400007}), ({1: 0x800087}, {}, {}), 0x400000, USER, True, False)
def test_our_nested_walk_agrees_with_guest_mode(
    cpu: GuestCpu,
    guest: tuple[Entries, Entries],
    host: tuple[Entries, Entries, Entries],
    va: int,
    access: int,
    wp: bool,
    pse: bool,
) -> None:
    """For any guest and host tables: same byte, guest fault or VM exit; the same A and D bits in both."""
    memory = cpu.memory

    def tables() -> bytes:
        return memory.read(GUEST + DIRECTORY, 0x4000) + memory.read(HOST_DIRECTORY, 0x4000)

    write_tables(memory, guest, host)
    before = tables()
    explained = explain_walk(memory, DIRECTORY, va, access, wp=wp, pse=pse, ncr3=HOST_DIRECTORY)
    assert before == tables()
    pa = None
    try:
        pa = walk_nested(memory, HOST_DIRECTORY, DIRECTORY, va, access, wp=wp, pse=pse)
        ours: Outcome = "byte", 0, 0 if access & WRITE else 0xC3
        memory.write(pa, b"\xc3")
    except WalkFault as fault:
        ours = "fault", fault.address, fault.error_code
    except NestedPageFault as fault:
        ours = "nested", fault.address, fault.error_code
    assert explained.pa == pa
    assert (explained.fault is None) == (pa is not None)
    after = tables()

    write_tables(memory, guest, host)
    assert ours == cpu.access(va, access, wp, pse)
    assert pa is None or not access & WRITE or memory.u8[pa] == 0x5A
    assert after == tables(), "A and D bits differ"
