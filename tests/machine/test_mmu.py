# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks and page tables, with a real CPU as the oracle: Unicorn loads and stores in ring 3 through the same RAM.

This is the one test that talks to the engine directly: it must not depend on `machine/engine.py` being right.
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
from l4lab.machine.mmu import (
    RW,
    US,
    USER,
    WRITE,
    A,
    D,
    P,
    WalkFault,
    explain_walk,
    walk,
)

RAM = 16 << 20
STUB, GDT, STACK = 0x1000, 0x2000, 0x3000  # all in the page-mapped first 16 KB, supervisor only
CODE = 0x4000  # ring 3: `mov al, [ebx]` and `mov [ebx], al`
VMCB, SAVE_AREA = 0x5000, 0x6000
DIRECTORY, TABLES = 0x10000, 0x11000  # the tables under test: 8 of them, first one the harness's own
HOST_DIRECTORY, HOST_TABLES = 0x20000, 0x21000
ERROR_CODE = 40 + 5384  # in a saved context, see the notes on the engine
LOAD, STORE = bytes([0x8A, 0x03, 0xF4]), bytes([0x88, 0x03, 0xF4])  # then hlt: #GP from ring 3, an exit from a guest


def descriptor(access: int) -> bytes:
    """A flat 4 GB segment."""
    return struct.pack("<HHBBBB", 0xFFFF, 0, 0, access, 0xCF, 0)


class Cpu:
    """Unicorn over `memory`, doing one load or store at a time."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.uc = Uc(UC_ARCH_X86, UC_MODE_32)
        self.uc.ctl_set_cpu_model(x86.UC_CPU_X86_QEMU64)
        self.uc.mem_map_ptr(0, memory.size, UC_PROT_ALL, memory.address)
        self.uc.ctl_exits_enabled(True)
        self.uc.ctl_set_exits([])
        gdt = bytes(8) + descriptor(0x9A) + descriptor(0x92) + descriptor(0xFA) + descriptor(0xF2)
        memory.write(GDT, gdt)
        self.uc.reg_write(x86.UC_X86_REG_GDTR, (0, GDT, len(gdt) - 1, 0))
        self.trap: tuple[int, int, int] | None = None
        self.uc.hook_add(UC_HOOK_INTR, self._on_trap)
        self.ring0 = self.uc.context_save()

    def _on_trap(self, uc: Uc, number: int, _: object) -> None:
        context = bytes(uc.context_save())
        self.trap = number, uc.reg_read(x86.UC_X86_REG_CR2), struct.unpack_from("<I", context, ERROR_CODE)[0]
        uc.emu_stop()

    def run(self, start: int) -> tuple[int, int, int]:
        self.trap = None
        self.uc.emu_start(start, 0xFFFFFFFF)
        assert self.trap is not None, "the CPU came to a stop without a trap"
        return self.trap

    def access(self, cr3: int, va: int, access: int, wp: bool, pse: bool) -> int | tuple[int, int]:
        """Do it in ring 3 or ring 0: the byte loaded (or 0 after a store of 0x5A), or (CR2, error code)."""
        self.uc.context_restore(self.ring0)
        self.memory.write(CODE, STORE if access & WRITE else LOAD)
        self.memory.write(STUB, b"\xcf")  # iret
        self.uc.ctl_flush_tb()
        self.uc.reg_write(x86.UC_X86_REG_CR4, 0x10 if pse else 0)
        self.uc.reg_write(x86.UC_X86_REG_CR3, cr3)
        self.uc.reg_write(x86.UC_X86_REG_CR0, 0x80000011 | (0x10000 if wp else 0))
        code, data = (0x1B, 0x23) if access & USER else (0x08, 0x10)
        self.memory.write(STACK, struct.pack("<5I", CODE, code, 2, STACK, data))
        for register, selector in ((x86.UC_X86_REG_CS, 0x08), (x86.UC_X86_REG_SS, 0x10)):
            self.uc.reg_write(register, selector)
        for register in (x86.UC_X86_REG_DS, x86.UC_X86_REG_ES):
            self.uc.reg_write(register, data)
        self.uc.reg_write(x86.UC_X86_REG_ESP, STACK)
        self.uc.reg_write(x86.UC_X86_REG_EBX, va)
        self.uc.reg_write(x86.UC_X86_REG_EAX, 0x5A)
        if access & USER:
            number, cr2, error = self.run(STUB)
        else:  # ring 0 has no trap after the access, so its `hlt` is made an `int3`
            self.memory.write(CODE + 2, b"\xcc")
            number, cr2, error = self.run(CODE)
        if number == 14:
            return cr2, error
        assert number == (13 if access & USER else 3), f"trap {number}"
        return 0 if access & WRITE else self.uc.reg_read(x86.UC_X86_REG_EAX) & 0xFF


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return Cpu(Memory(RAM))


# Directory slots 1..7 are under test; each is empty, a 4 MB page, or a table. Addresses stay above the harness.
flags = st.integers(0, 0x3F).map(lambda n: (n & 7) | (n & 0x18) << 2 | (n & 0x20) << 3)  # P RW US, A D, G
some_flags = st.one_of(flags, st.just(P | RW | US), st.just(P | US), flags.map(lambda f: f | P))
large = st.builds(
    lambda f, n, odd: f | mmu.PS | n << 22 | odd,
    some_flags,
    st.integers(1, 3),
    st.sampled_from([0] * 6 + [1 << 21, 0x1000]),
)
table = st.builds(lambda f, n: f | TABLES + (n << 12), some_flags, st.integers(1, 4))
pte = st.builds(lambda f, n: f | n << 12, some_flags | some_flags.map(lambda f: f | mmu.PS), st.integers(0x400, 0xFFF))
places = st.sampled_from([0, 1, 0x3FF])  # the few pages per table that are looked at
offsets = st.sampled_from([0, 1, 0xABC, 0xFFF])


@st.composite
def page_tables(draw: st.DrawFn) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """Directory slot -> PDE, and (table, index) -> PTE."""
    directory = draw(st.dictionaries(st.integers(1, 7), st.one_of(large, table), min_size=2))
    ptes = draw(st.dictionaries(st.tuples(st.integers(1, 4), places), pte, min_size=2))
    return directory, ptes


addresses = st.builds(lambda d, t, o: d << 22 | t << 12 | o, st.integers(1, 7), places, offsets)
accesses = st.sampled_from([0, WRITE, USER, USER | WRITE])


def write_tables(memory: Memory, directory: dict[int, int], ptes: dict[tuple[int, int], int]) -> None:
    """Put tables under test into RAM; slot 0 maps the harness: its own pages supervisor, the code for ring 3."""
    memory.fill(DIRECTORY, 0x1000)
    memory.fill(TABLES, 0x5000)
    memory.set_word(DIRECTORY >> 2, TABLES | P | RW | US | A)
    for page in range(16):
        memory.set_word((TABLES >> 2) + page, page << 12 | P | RW | A | D | (US if page << 12 == CODE else 0))
    for slot, entry in directory.items():
        memory.set_word((DIRECTORY >> 2) + slot, entry)
    for (number, index), entry in ptes.items():
        memory.set_word((TABLES >> 2) + (number << 10) + index, entry)


def tables_of(memory: Memory) -> bytes:
    return memory.read(DIRECTORY, 0x6000)


@settings(max_examples=1500, deadline=None)
@given(page_tables(), st.lists(st.tuples(addresses, accesses), min_size=1, max_size=4), st.booleans(), st.booleans())
@example(({1: 0x400000 | mmu.PS | P | US | RW | 1 << 21}, {}), [(0x400000, USER)], True, True)
def test_our_walk_agrees_with_the_mmu(
    cpu: Cpu,
    tables: tuple[dict[int, int], dict[tuple[int, int], int]],
    tries: list[tuple[int, int]],
    wp: bool,
    pse: bool,
) -> None:
    """For any tables and access: same byte or same fault, and the same A and D bits in every entry after it."""
    memory = cpu.memory
    for va, access in tries:
        write_tables(memory, *tables)
        before = tables_of(memory)
        explained = explain_walk(memory, DIRECTORY, va, access, wp=wp, pse=pse)
        assert before == tables_of(memory), "explaining changed the tables"
        ours: int | tuple[int, int]
        try:
            ours = walk(memory, DIRECTORY, va, access, wp=wp, pse=pse)
        except WalkFault as fault:
            ours = fault.address, fault.error_code
        after = tables_of(memory)
        if isinstance(ours, int):
            assert (ours, None) == (explained.pa, explained.fault)
            if ours >= memory.size:
                continue  # no RAM there: the CPU's bus has nothing to agree on
            memory.write(ours, b"\xc3" if not access & WRITE else b"\0")
        else:
            assert isinstance(explained.fault, WalkFault)
            assert ours == (explained.fault.address, explained.fault.error_code)

        memory.write(DIRECTORY, before)
        theirs = cpu.access(DIRECTORY, va, access, wp, pse)

        if isinstance(ours, tuple):
            assert ours == theirs
        else:
            assert not isinstance(theirs, tuple), theirs
            assert 0x5A == memory.u8[ours] if access & WRITE else theirs == 0xC3
        assert after == tables_of(memory), "A and D bits differ"
