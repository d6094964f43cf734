# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest mode against QEMU's CPU: the same programs end in the same registers, hidden parts and memory, on both cores.

QEMU 7.2 is no authority where it differs from the SDM. What it does otherwise is said where the tests allow for it:
RF in the frames of faults in `oracle.differences`; words in `Case.manual`. Limits of segments neither checks.
General detect (DR7.GD) and the EXT bit of error codes it does not have; `test_exact_exits.py` looks at what is ours.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, ESI

from .oracle import (
    CODE_0,
    DATA,
    DATA_3,
    HIGH,
    MISSING,
    SMALL,
    STACK_0,
    BeyondMemory,
    Case,
    Qemu,
    differences,
)
from .oracle_cases import CASES, END, PAGING, VM, ring_3, v8086
from .oracle_vm import all_of_ours


@pytest.mark.parametrize("name", CASES)
def test_a_program_ends_as_in_qemu(qemu: Qemu, name: str) -> None:
    """Does the program leave the same registers, segments, tables and memory, however it ends?"""
    case = CASES[name]
    theirs = qemu.run(case)
    for ours, state in all_of_ours(case):
        assert [] == differences(state, theirs, case.manual), ours


VALUES = st.sampled_from((0, 1, 2, 0x7F, 0x80, 0xFFFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678))
ADDRESSES = st.sampled_from((DATA, DATA + 0xFFD, DATA + 0x1FF0, HIGH, HIGH + 0x800, MISSING - 6, MISSING, STACK_0))
# Instructions of which the SDM defines all flags that they leave, or none is looked at before it is defined again.
INSTRUCTIONS = (
    *("add eax, ebx", "adc ecx, edx", "sbb eax, ecx", "cmp ebx, eax", "neg edx", "inc cl", "dec bx", "xchg eax, ebx"),
    *("movsb", "movsd", "stosw", "lodsd", "scasb", "cmpsw", "rep movsb", "rep stosd", "repne scasb", "repe cmpsd"),
    *("cld", "std", "clc", "stc", "cmc", "cli", "sti", "pushfd", "popfd", "pushad", "popad", "lahf", "sahf", "cbw"),
    *(
        "push eax",
        "pop ebx",
        "push ds",
        "pop es",
        "mov eax, [esi]",
        "mov [edi], ebx",
        "add [edi], ecx",
        "xadd [esi], eax",
    ),
    *("cmpxchg [edi], edx", "bswap ecx", "movzx eax, byte ptr [esi]", "movsx ebx, word ptr [edi]", "setc al"),
    *("enter 8, 0", "leave", "int3", "into", "int 0x41", "clts", "mov eax, cr0", "mov ebx, cr3", "smsw cx"),
    *("mov eax, ds", "lar eax, ecx", "lsl edx, ebx", "verr ax", "sldt ecx", "str ebx", "mov ds, eax", "mov fs, ecx"),
    *("arpl ax, bx", "ud2", "div ebx", "lock add [esi], eax", "jecxz over", "loop over", "call over", "xlatb"),
)


@st.composite
def programs(draw: st.DrawFn) -> Case:
    """A few instructions on odd values, in some mode of the CPU, at times with single steps."""
    body = draw(st.lists(st.sampled_from(INSTRUCTIONS), min_size=1, max_size=6))
    source = "\n ".join(body) + f"\n over: {END}"
    registers = {index: draw(VALUES) for index in (EAX, EBX, EDX, EBP)}
    registers[ECX] = draw(st.sampled_from((0, 1, 3, 7, SMALL, DATA_3, CODE_0)))
    registers[ESI], registers[EDI] = draw(ADDRESSES), draw(ADDRESSES)
    registers[EFLAGS] = 2 | sum(draw(st.sets(st.sampled_from((0x1, 0x4, 0x10, 0x40, 0x80, 0x200, 0x400, 0x800)))))
    mode = draw(st.sampled_from(("flat", "paging", "ring 3", "ring 3 with paging", "v8086", "step")))
    if "paging" in mode and not _MODIFYING.isdisjoint(body):  # of a missing page QEMU then says that it is read
        registers[ESI] = registers[EDI] = HIGH
    match mode:
        case "paging":
            source = f"push eax\n {PAGING}\n pop eax\n {source}"
        case "ring 3":
            source = ring_3(f"mov eax, {registers[EAX]}\n {source}")
        case "ring 3 with paging":
            source = PAGING + ring_3(f"mov eax, {registers[EAX]}\n {source}", 0x3002)
        case "v8086":
            eip = ".byte 0xcd, 0x40"
            words = [line for line in body if line in _SIXTEEN]
            source = v8086("\n ".join([*words, eip]), VM | draw(st.sampled_from((2, 0x3002))))
        case "step":  # STI keeps QEMU, and not the CPU of the SDM, from the step behind it
            source = source.replace("sti\n", "nop\n")
            source = f"pushfd\n or dword ptr [esp], 0x100\n popfd\n {source}"
    return Case(source, registers=registers)


_MODIFYING = frozenset(("add [edi], ecx", "xadd [esi], eax", "cmpxchg [edi], edx", "lock add [esi], eax"))
_SIXTEEN = frozenset(
    ("movsb", "stosw", "lodsd", "rep movsb", "cld", "std", "cli", "sti", "lahf", "sahf", "cbw", "int3", "ud2")
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(case=programs())
def test_any_program_ends_as_in_qemu(qemu: Qemu, case: Case) -> None:
    """Do odd instructions on odd values, in every mode, leave what they leave in QEMU?"""
    try:
        ours = list(all_of_ours(case))
    except BeyondMemory:
        reject()
    theirs = qemu.run(case)
    for name, state in ours:
        assert [] == differences(state, theirs), name
