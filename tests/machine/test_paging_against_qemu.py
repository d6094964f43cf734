# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables that no system would write, against QEMU's CPU: accesses from ring 0 and ring 3 through random tables.

A program loads, stores, executes and copies through them, logs each page fault (CR2, error code, and how far a string
instruction had come), changes entries and flushes as the SDM asks for. QEMU's log, and all of memory with accessed and
dirty bits, must be ours: under nested paging, and under shadow page tables.

Left out is what the SDM leaves open (entries that were changed and not flushed), and read-modify-write instructions:
for those QEMU calls a missing page a read.
"""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4lab.machine.mmu import PS, RW, US, A, D, G, P

from .oracle import (
    CODE_0,
    CODE_3,
    DATA,
    DATA_3,
    DIRECTORY,
    HIGH,
    IDT,
    MISSING,
    STACK_0,
    STACK_3,
    TABLE,
    Case,
    Qemu,
    differences,
    gate,
)
from .oracle_cases import END, LTR
from .oracle_vm import all_of_ours

TABLES = (DATA, DATA + 0x1000)
SLOTS = (1, 2, 3)  # of the directory; the first 4 MB are as always
NUMBERS = (MISSING >> 12, HIGH >> 12, (HIGH >> 12) + 1)  # of a table's entries, and of the pages they may lead to
INT_0X41 = 0x800  # where code is in each of these pages
PG, WP, PSE, PGE = 1 << 31, 1 << 16, 1 << 4, 1 << 7

# EBX: where the log, which begins at 0, ends now. EBP: where to go on.
HANDLERS = f"""
    fault:
        mov eax, cr2
        mov [ebx], eax
        pop eax
        or eax, 0x100
        mov [ebx + 4], eax
        mov [ebx + 8], ecx
        mov [ebx + 12], esi
        mov [ebx + 16], edi
        add ebx, 20
    done:
        mov esp, {STACK_0 + 0xF00}
        jmp ebp"""
RELOAD = "mov eax, cr3\n mov cr3, eax"
FLUSH_GLOBAL = f"mov eax, {PSE}\n mov cr4, eax\n mov eax, {PSE | PGE}\n mov cr4, eax"


def access(number: int, body: str, user: bool) -> str:
    """Something that may fault; then EAX, which may be what it has read, is logged."""
    ring_3 = (
        f"push {DATA_3}\n push {STACK_3 + 0xF00}\n push 2\n push {CODE_3}\n push user{number}\n iretd\n user{number}:"
    )
    return f"""
        mov ebp, next{number}
        xor eax, eax
        {ring_3 if user else ""}
        {body}
        int 0x41
    next{number}:
        mov [ebx], eax
        add ebx, 4"""


# What an entry is that nothing else is said of.
USUAL = [(DIRECTORY + 4 * slot, table | P | RW | US) for slot, table in zip(SLOTS, (*TABLES, DIRECTORY), strict=True)]
USUAL += [(table + 4 * number, number << 12 | P | RW | US) for table in TABLES for number in NUMBERS]


def set_page(table: int, number: int, entry: int) -> tuple[str, str]:
    """A table's entry is changed, and each page flushed that it may be for."""
    pages = (slot << 22 | number << 12 for slot in SLOTS)
    return "do", "\n ".join([f"mov dword ptr [{table + 4 * number}], {entry}", *(f"invlpg [{page}]" for page in pages)])


BODIES = (
    "mov eax, [{0}]",
    "mov al, [{0}]",
    "mov eax, {1}\n mov [{0}], eax",
    "mov byte ptr [{0}], 0x5a",
    f"mov eax, {{0}}\n and eax, 0xfffff000\n add eax, {INT_0X41}\n jmp eax",
    "mov esi, {0}\n mov edi, {1}\n mov ecx, 3\n cld\n rep movsd",
    "mov esi, {0}\n mov edi, {1}\n mov ecx, 3\n cld\n repe cmpsb",
    "mov edi, {0}\n mov ecx, 5\n cld\n rep stosw",
    "mov edi, {0}\n mov ecx, 3\n std\n rep stosd",
    "fnstcw word ptr [{0}]",
    "bt dword ptr [{0}], 3\n setc al",
    "push dword ptr [{0}]\n pop eax",
)
# A place in one of the pages, at times at the border of two.
addresses = st.builds(
    lambda slot, place: slot << 22 | place,
    st.sampled_from((1, 1, 1, 2, 2, 2, 3)),
    st.sampled_from([n << 12 | offset for n in NUMBERS for offset in (0, 4, 0xFE0)] + [HIGH | 0xFFE, HIGH | 0xFFD]),
)
# An entry of a table, where a slot leads to the directory and shows it.
shown = st.builds(
    lambda slot, table, number: slot << 22 | table << 12 | 4 * number,
    st.sampled_from((1, 3, 3, 3)), st.sampled_from(SLOTS), st.sampled_from(NUMBERS),
)  # fmt: skip
flags = st.sampled_from(
    (
        *(P | RW | US, P | US, P | RW, P, 0, RW | US, P | RW | US, P | US, P | RW),
        *(P | US | A, P | RW | A, P | RW | US | A | D, P | RW | US | G, P | RW | G, P | US | G),
    )
)
pdes = st.one_of(
    st.builds(lambda table, f: table | f, st.sampled_from((*TABLES, *TABLES, TABLE, DIRECTORY)), flags),
    flags.map(lambda f: f | PS),
)
ptes = st.builds(lambda number, f: number << 12 | f, st.sampled_from(NUMBERS), flags)
entries = st.one_of(
    st.tuples(st.sampled_from([DIRECTORY + 4 * slot for slot in SLOTS]), pdes),
    st.tuples(st.sampled_from([table + 4 * number for table in TABLES for number in NUMBERS]), ptes),
)
bodies = st.builds(str.format, st.sampled_from(BODIES), addresses, addresses)
steps = st.one_of(
    st.tuples(st.sampled_from(("kernel", "user")), bodies),
    st.tuples(st.sampled_from(("kernel", "user")), bodies),
    st.tuples(st.sampled_from(("kernel", "user")), shown.map("mov eax, [{}]".format)),
    st.builds(lambda at, value: ("change", f"mov dword ptr [{at}], {value}"), shown, ptes),
    st.builds(lambda entry: ("set", f"mov dword ptr [{entry[0]}], {entry[1]}"), entries),
    st.builds(set_page, st.sampled_from(TABLES), st.sampled_from(NUMBERS), ptes),
    st.sampled_from((("do", RELOAD), ("do", f"mov eax, cr0\n xor eax, {WP}\n mov cr0, eax"))),
)  # fmt: skip


def program(setup: list[tuple[int, int]], script: list[tuple[str, str]], cr0: int, cr4: int) -> Case:
    """Tables, and what is done with them; with PGE global pages, which only another way of flushing reaches."""
    flush = FLUSH_GLOBAL if cr4 & PGE else RELOAD
    source = [
        f"{LTR}\n fninit\n mov eax, {DATA_3}\n mov ds, eax\n mov es, eax",
        *(f"inc byte ptr [{number << 12 | 0x700}]" for number in NUMBERS),  # written to once, by another way
        f"mov eax, {DIRECTORY}\n mov cr3, eax\n mov eax, {cr4}\n mov cr4, eax\n mov eax, {cr0}\n mov cr0, eax",
    ]
    for number, (kind, text) in enumerate(script):
        match kind:
            case "do":
                source.append(text)
            case "set":
                source.append(f"{text}\n {flush}")
            case "change":
                source.append(f"{access(number, text, False)}\n {flush}")
            case _:
                source.append(access(number, text, kind == "user"))
    case = Case("\n ".join([*source, END, HANDLERS]))
    labels = case.program
    memory = {table: bytes(0x1000) for table in TABLES}  # what comes later lies over it
    memory |= {at: struct.pack("<I", value) for at, value in [*USUAL, *setup]}
    memory |= {number << 12: bytes([number]) * INT_0X41 + b"\xcd\x41" for number in NUMBERS}
    memory[IDT + 8 * 14] = gate(CODE_0, labels.address("fault"), 0x8E)
    memory[IDT + 8 * 0x41] = gate(CODE_0, labels.address("done"), 0xEE)
    return Case(case.source, memory=memory)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    setup=st.lists(entries, max_size=8),
    script=st.lists(steps, min_size=4, max_size=16),
    cr0=st.sampled_from((PG | 0x11, PG | WP | 0x11)),
    cr4=st.sampled_from((PSE, PSE | PGE)),
)
def test_any_tables_translate_as_in_qemu(
    qemu: Qemu, setup: list[tuple[int, int]], script: list[tuple[str, str]], cr0: int, cr4: int
) -> None:
    """Do data, page faults with their error codes, and accessed and dirty bits come out as in QEMU?"""
    case = program(setup, script, cr0, cr4)
    theirs = qemu.run(case)
    for ours, state in all_of_ours(case):
        assert [] == differences(state, theirs), ours
