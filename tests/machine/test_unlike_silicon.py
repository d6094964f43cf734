# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: E501 - a program is a line, so that the table can be read
"""What the engine does otherwise than a CPU: the table of docs/unlike-silicon.md, measured.

Each program says with which vector the SDM has it end, and with which it ends here; 0x40 is the end of a program in
which nothing has faulted. When an engine comes that does better, a test fails, and the table gets shorter.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from .oracle import DATA, GDT, HANDLERS, READ_ONLY, SMALL, BeyondMemory, Case, descriptor, run_here
from .oracle_cases import AC, END, ring_3

GENERAL_PROTECTION, STACK_FAULT, UNDEFINED, ALIGNMENT, NOTHING = 13, 12, 6, 17, 0x40
EXECUTE_ONLY = 0xA0
MORE = {GDT + EXECUTE_ONLY: descriptor(0, 0xFFFFF, 0x99, 12)}
REAL_END = "int 0x40"
ODD = ring_3(f"push {AC | 2}\n popfd\n mov eax, [{DATA + 1}]\n {END}")
ALIGNMENT_CHECKS = f"mov eax, cr0\n or eax, 0x40000\n mov cr0, eax\n {ODD}"


class Unlike(NamedTuple):
    """A program, and the two vectors."""

    source: str
    manual: int
    here: int = NOTHING
    bits: int = 32


PROGRAMS = {
    "a load beyond a segment's limit": Unlike(f"mov eax, {SMALL}\n mov ds, eax\n mov eax, [0x100]\n {END}", GENERAL_PROTECTION),
    "a store beyond a segment's limit": Unlike(f"mov eax, {SMALL}\n mov ds, eax\n mov [0x100], eax\n {END}", GENERAL_PROTECTION),
    "a load through a null selector": Unlike(f"xor eax, eax\n mov fs, eax\n mov eax, fs:[{DATA}]\n {END}", GENERAL_PROTECTION),
    "a store through a null selector": Unlike(f"xor eax, eax\n mov es, eax\n mov es:[{DATA}], eax\n {END}", GENERAL_PROTECTION),
    "a store into a read-only segment": Unlike(f"mov eax, {READ_ONLY}\n mov ds, eax\n mov [{DATA}], eax\n {END}", GENERAL_PROTECTION),
    "a store into a code segment": Unlike(f"mov cs:[{DATA}], eax\n {END}", GENERAL_PROTECTION),
    "a load from a code segment that cannot be read": Unlike(f".byte 0xea\n .long at\n .word {EXECUTE_ONLY}\n at: mov eax, cs:[{DATA}]\n {END}", GENERAL_PROTECTION),
    "a word at the end of a real-mode segment": Unlike(f"mov ax, [0xffff]\n {REAL_END}", GENERAL_PROTECTION, bits=16),
    "a real-mode address beyond 64 KiB": Unlike(f"mov ebx, 0x10000\n mov eax, [ebx - 0x8000]\n mov ecx, 0x18000\n mov al, [ecx - 0x3000]\n {REAL_END}", GENERAL_PROTECTION, bits=16),
    "a push at offset 1": Unlike(f"mov sp, 1\n push ax\n mov sp, 0x9000\n {REAL_END}", STACK_FAULT, bits=16),
    "test by f6 /1": Unlike(f"mov al, 3\n .byte 0xf6, 0xc8, 0x01\n {END}", NOTHING, UNDEFINED),
    "test by f7 /1": Unlike(f"mov eax, 3\n .byte 0xf7, 0xc8\n .long 1\n {END}", NOTHING, UNDEFINED),
    "pop by 8f /1": Unlike(f"push 5\n .byte 0x8f, 0xc8\n {END}", UNDEFINED),
    "mov by c7 /7": Unlike(f".byte 0xc7, 0xf9\n .long 5\n {END}", UNDEFINED),
    "lock before what cannot have it": Unlike(f".byte 0xf0\n mov eax, ebx\n {END}", UNDEFINED),
    "an odd address with alignment checks": Unlike(ALIGNMENT_CHECKS, ALIGNMENT),
}  # fmt: skip


def vector_of(kind: str, program: Unlike) -> int:
    """With which vector a program ends; one that has gone beyond 64 KiB has not been stopped either."""
    try:
        state = run_here(kind, Case(program.source, program.bits, memory=MORE if program.bits == 32 else {}))
    except BeyondMemory:
        return NOTHING
    eip = state.registers["EIP"]
    assert isinstance(eip, int)
    return eip - HANDLERS


@pytest.mark.parametrize("kind", ["native", "python"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_differs_is_what_the_table_says(kind: str, name: str) -> None:
    """Does the program end as the table has it, which is not as the manual has it?"""
    program = PROGRAMS[name]

    assert program.here == vector_of(kind, program)
    assert program.here != program.manual


def test_the_page_names_every_difference() -> None:
    """Is each program's name a line of docs/unlike-silicon.md?"""
    page = (Path(__file__).parents[2] / "docs" / "unlike-silicon.md").read_text()

    assert [] == [name for name in PROGRAMS if f"| {name} |" not in page]
