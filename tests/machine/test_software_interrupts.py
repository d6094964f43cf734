# SPDX-License-Identifier: GPL-2.0-or-later
"""INT n for every n, through every kind of gate and from every mode, against QEMU's CPU.

A program executes INT 0 to INT 255, one behind the other. Its handlers write down the frame that they find, so that a
run compares 256 deliveries: what is pushed, how wide, with which flags. Where a gate refuses, the handler of the fault
writes down its error code and goes on behind the instruction.
"""

from __future__ import annotations

import struct

import pytest

from l4lab.abi.exceptions import BREAKPOINT, OVERFLOW, UNDEFINED_OPCODE
from l4lab.abi.vm import ExitReason
from l4lab.user.asm import assemble

from .oracle import (
    CODE,
    CODE_0,
    DATA,
    DATA_0,
    HANDLERS,
    IDT,
    STACK_0,
    TSS_A,
    TSS_B,
    B,
    Case,
    Guest,
    Qemu,
    differences,
    gate,
    run_here,
    tss,
)
from .oracle_cases import IF, IOPL_3, LTR, PAGING, VM, ring_3, v8086
from .oracle_vm import all_of_ours

LOG = DATA  # three words for each interrupt
WIDE, NARROW, REFUSED, LIMIT = CODE + 0xC00, CODE + 0xC40, CODE + 0xC80, CODE + 0xCC0
INTERRUPT, TRAP, INTERRUPT_16, TRAP_16 = 0x8E, 0x8F, 0x86, 0x87
FOR_RING_3, PRESENT = 0x60, 0x80
EVERY_INT = ".byte " + ", ".join(f"0xcd, {vector}" for vector in range(256))


def code(source: str, at: int, bits: int = 32) -> dict[int, bytes]:
    """A piece of a program at a place of its own."""
    return {at: assemble(source, at, bits).code}


# The last of them ends the case. SS is the only segment register that is always as it should be.
NEXT = f"add edi, 12\n cmp edi, {LOG + 12 * 256}\n jae {HANDLERS}"
HANDLING = {
    **code(
        f"""push eax
        mov eax, [esp + 4]
        mov ss:[edi], eax
        mov eax, [esp + 8]
        mov ss:[edi + 4], eax
        mov eax, [esp + 12]
        mov ss:[edi + 8], eax
        pop eax
        {NEXT}
        iretd""",
        WIDE,
    ),
    # A gate of 16 bits pushes half as much.
    **code(
        f"""push eax
        mov eax, [esp + 4]
        mov ss:[edi], eax
        mov ax, [esp + 8]
        mov ss:[edi + 8], eax
        pop eax
        {NEXT}
        .byte 0x66
        iretd""",
        NARROW,
    ),
    # The fault of an INT n that is refused: its error code, and on behind the two bytes.
    **code(
        f"""pop eax
        mov ss:[edi], eax
        mov eax, [esp]
        mov ss:[edi + 4], eax
        add dword ptr [esp], 2
        {NEXT}
        iretd""",
        REFUSED,
    ),
}
REAL_HANDLER = code(
    f"""push bp
    mov bp, sp
    mov eax, [bp + 2]
    mov [di], eax
    mov ax, [bp + 6]
    mov [di + 4], ax
    pop bp
    add di, 12
    cmp di, {LOG + 12 * 256}
    jae {HANDLERS}
    iret""",
    WIDE,
    16,
)


def begin(skipped: int = 0) -> str:
    """Load the table that is in memory; the first places of the log stay empty where fewer are executed."""
    return f"lidt cs:[{LIMIT}]\n mov edi, {LOG + 12 * skipped}\n"


def table(*kinds: int, fault: int | None = None, vectors: int = 256) -> dict[int, bytes]:
    """An IDT in which the kinds of gates take turns; the fault of a refused INT has a handler of its own."""
    gates = [kinds[vector % len(kinds)] for vector in range(256)]
    entries = [gate(CODE_0, WIDE if kind & 8 else NARROW, kind) for kind in gates]
    if fault is not None:
        entries[fault] = gate(CODE_0, REFUSED, INTERRUPT)
    return {**HANDLING, IDT: b"".join(entries), LIMIT: struct.pack("<HI", 8 * vectors - 1, IDT)}


def turned(by: int, mask: int = 0) -> list[int]:
    """The four kinds in another order: in four programs each vector meets each of them."""
    kinds = (INTERRUPT, TRAP, INTERRUPT_16, TRAP_16)
    return [kind | mask for kind in (*kinds[by:], *kinds[:by])]


PROGRAMS = {
    "real mode": Case(
        f"{begin()} sti\n {EVERY_INT}",
        bits=16,
        memory={IDT: struct.pack("<2H", WIDE, 0) * 256, LIMIT: struct.pack("<HI", 4 * 256 - 1, IDT), **REAL_HANDLER},
    ),
    **{f"ring 0, order {n}": Case(f"{begin()} sti\n {EVERY_INT}", memory=table(*turned(n))) for n in range(4)},
    **{
        f"ring 3, order {n}": Case(begin() + ring_3(EVERY_INT, IF | 2), memory=table(*turned(n, FOR_RING_3)))
        for n in range(4)
    },
    "paging": Case(f"{PAGING}\n {begin()} sti\n {EVERY_INT}", memory=table(*turned(0))),
    **{
        f"virtual-8086 mode, {name} gates": Case(
            begin() + v8086(EVERY_INT, VM | IOPL_3 | IF | 2), memory=table(kind | FOR_RING_3)
        )
        for name, kind in (("interrupt", INTERRUPT), ("trap", TRAP))
    },
    "gates not for ring 3": Case(begin() + ring_3(EVERY_INT), memory=table(*turned(0), fault=13)),
    "gates not for virtual-8086 mode": Case(
        begin() + v8086(EVERY_INT, VM | IOPL_3 | 2), memory=table(*turned(0), fault=13)
    ),
    "gates not present": Case(  # but that of the fault, through which INT 11 would come without an error code
        f"{begin(skipped=1)} {EVERY_INT.replace(' 0xcd, 11,', '')}",
        memory=table(*(kind & ~PRESENT for kind in turned(0)), fault=11),
    ),
    "gates beyond the table": Case(
        f"{begin(skipped=14)} {EVERY_INT.replace(', '.join(f'0xcd, {n}' for n in range(14)) + ', ', '')}",
        memory=table(INTERRUPT, fault=13, vectors=14),
    ),
    "task gates": Case(
        f"{LTR}\n {begin()} {EVERY_INT}",
        memory=table(INTERRUPT)
        | {
            IDT: gate(B, 0, 0x85) * 256,
            TSS_B: tss(es=DATA_0, cs=CODE_0, ss=DATA_0, ds=DATA_0, eip=WIDE, esp=STACK_0 + 0x800, edi=LOG),
            # A task goes on behind its IRET when it is called again.
            **code(f"next: mov eax, [{TSS_A + 0x20}]\n mov [edi], eax\n {NEXT}\n iretd\n jmp next", WIDE),
        },
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_interrupt_ends_as_in_qemu(qemu: Qemu, name: str) -> None:
    """Do INT 0 to INT 255 push what they push in QEMU, on both cores and under both ways of paging?"""
    case = PROGRAMS[name]
    theirs = qemu.run(case)

    assert not theirs.shut_down
    for ours, state in all_of_ours(case):
        assert [] == differences(state, theirs, case.manual), ours


@pytest.mark.parametrize("kind", ["native", "python"])
@pytest.mark.parametrize("name", ["real mode", "ring 3, order 0", "gates not for ring 3"])
def test_a_monitor_that_asks_for_int3_changes_no_other(kind: str, name: str) -> None:
    """Are INT 0 to INT 255 the same where the exception bitmap has the engine stop at every INT, for INT3's sake?"""
    without = run_here(kind, PROGRAMS[name])
    guest = Guest(kind, PROGRAMS[name])
    guest.vmcs.exception_bitmap = 1 << BREAKPOINT | 1 << OVERFLOW | 1 << UNDEFINED_OPCODE
    guest.vmcs.stale = True

    assert guest.enter() is ExitReason.HLT
    assert without == guest.state
