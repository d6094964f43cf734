# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest mode from outside, in VT-x terms, on both cores: what an exit says, and what is done without one.

The exits that a monitor sees as messages are in `tests/kernel/test_vm.py`; here is what needs no kernel: segments in
the address of string I/O, masks and shadows, time, second-level faults, and exits in the midst of a delivery.
Source of what is expected: SDM vol. 3, chapters "VM Exits" and "VM Entries". Rarer exits are in
`test_exact_exits.py`, and `test_against_qemu.py` compares whole programs.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi.frame import EAX, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESP
from l4lab.abi.vm import ExitReason as R
from l4lab.machine.guestmode import Pause
from l4lab.machine.vtx import EPT_WRITE, HLT_EXITING, RDTSC_EXITING, TSC_OFFSETTING

from .guestbench import CODE, CODE_0, DATA, DIRECTORY, HANDLERS, IDT, MISSING, PE, READ_ONLY, TABLE, Guest

VALID, WITH_CODE = 1 << 31, 1 << 11
STRING, IN, REP = 16, 8, 32


@pytest.fixture(params=["native", "python"], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Which core runs the guest."""
    name: str = request.param
    return name


# -- exits


@pytest.mark.parametrize(
    ("bits", "source", "qualification", "length", "linear"),
    [
        (16, "mov ax, 0x800\n mov es, ax\n mov di, 0x12\n at: insb", STRING | IN, 1, 0x8012),
        (16, "mov ax, 0x800\n mov ds, ax\n mov esi, 0x10020\n at: outsw", STRING | 1, 1, 0x8020),
        (16, "mov ax, 0x800\n mov fs, ax\n mov si, 4\n at: .byte 0x64, 0x6e", STRING, 2, 0x8004),
        (16, "mov ax, 0x800\n mov ds, ax\n at: .byte 0xf3, 0x66, 0x6f", STRING | REP | 3, 3, 0x8000),
        (32, "mov edi, 0x18010\n at: .byte 0x67, 0x6c", STRING | IN, 2, 0x8010),
        (32, "mov esi, 0x8004\n mov edx, 0xfff0\n at: outsd", 0xFFF0 << 16 | STRING | 3, 1, 0x8004),
        (16, "mov dx, 0x3f8\n at: in eax, dx", 0x3F8 << 16 | IN | 3, 2, 0),
        (16, "at: out 0x80, ax", 0x80 << 16 | 64 | 1, 2, 0),
    ],
)
def test_a_port_exit_says_what_and_where(
    kind: str, bits: int, source: str, qualification: int, length: int, linear: int
) -> None:
    """Are direction, size, string and REP told, is a string's address linear, and has nothing been moved?"""
    guest = Guest(kind, source, bits=bits)
    guest.frame[ECX] = 3
    guest.memory.fill(DATA, 64, 0x5A)

    assert R.IO_INSTRUCTION == guest.enter()
    assert (qualification, length, linear) == (
        guest.vmcs.exit_qualification,
        guest.vmcs.exit_length,
        guest.vmcs.guest_linear,
    )
    assert (guest.at, 3) == (guest.frame[EIP], guest.frame[ECX])
    assert qualification & IN or b"\x5a" * 64 == guest.memory.read(DATA, 64)


@pytest.mark.parametrize(
    ("source", "reason", "length"),
    [
        ("at: rdmsr", R.RDMSR, 2),
        ("at: wrmsr", R.WRMSR, 2),
        ("at: cpuid", R.CPUID, 2),
        ("at: .byte 0x66, 0x0f, 0xa2", R.CPUID, 3),
        ("at: .byte 0xf3, 0xf4", R.HLT, 2),
        ("at: vmlaunch", R.VMLAUNCH, 3),
        ("at: vmresume", R.VMRESUME, 3),
        ("at: .byte 0x0f, 0x78, 0x05, 0, 0, 0, 0", R.VMREAD, 7),
        ("at: .byte 0x0f, 0xc7, 0x30", R.VMPTRLD, 3),
    ],
)
def test_an_exit_is_before_its_instruction(kind: str, source: str, reason: R, length: int) -> None:
    """Does the guest stand at the instruction, nothing done, nothing counted, and go on behind it when told to?"""
    guest = Guest(kind, f"inc ebx\n {source}\n inc ebx\n hlt")

    assert reason == guest.enter()
    assert (guest.at, length) == (guest.frame[EIP], guest.vmcs.exit_length)
    assert (1, [0, 1, 0, 0]) == (guest.engine.cycles - guest.begin, [guest.frame[n] for n in (EAX, EBX, ECX, EDX)])
    guest.frame[EIP] += length
    assert (R.HLT, 2) == (guest.enter(), guest.frame[EBX])


@pytest.mark.parametrize(("source", "shadowed"), [("sti\n hlt", 1), ("sti\n nop\n hlt", 0), ("nop\n hlt", 0)])
def test_the_shadow_of_sti_is_told(kind: str, source: str, shadowed: int) -> None:
    """Does an exit directly behind STI say that interrupts are still blocked, and one further on that they are not?"""
    guest = Guest(kind, source)

    assert (R.HLT, shadowed) == (guest.enter(), guest.vmcs.interruptibility)


# -- control registers

CR0_BITS = st.sets(st.sampled_from((1, 2, 3, 5, 16, 18))).map(lambda bits: sum(1 << bit for bit in bits))


@given(mask=CR0_BITS, shadow=CR0_BITS, value=CR0_BITS)
def test_masks_and_shadows_of_cr0(kind: str, mask: int, shadow: int, value: int) -> None:
    """Is the shadow read where the mask is set, and does a write exit exactly when it differs from the shadow there?"""
    guest = Guest(kind, "mov ebx, cr0\n smsw ecx\n at: mov cr0, eax\n hlt")
    real = guest.vmcs.control_register(0)
    value |= real
    guest.vmcs.cr0_mask, guest.vmcs.cr0_shadow = mask, shadow
    guest.frame[EAX] = value

    exits = bool((value ^ shadow) & mask)
    assert (R.CR_ACCESS if exits else R.HLT) == guest.enter()
    seen = shadow & mask | real & ~mask
    assert (seen, seen & 0xFFFF) == (guest.frame[EBX], guest.frame[ECX] & 0xFFFF)
    assert real if exits else real & mask | value & ~mask == guest.vmcs.control_register(0)
    if exits:
        assert (guest.at, 0, 3) == (guest.frame[EIP], guest.vmcs.exit_qualification, guest.vmcs.exit_length)


@pytest.mark.parametrize(
    ("source", "qualification", "length"),
    [
        ("at: mov cr0, ebx", 3 << 8, 3),
        ("at: clts", 2 << 4, 2),
        ("at: lmsw ax", 3 << 4 | 0x7 << 16, 3),
        ("at: mov cr4, edi", 4 | 7 << 8, 3),
    ],
)
def test_a_write_that_the_masks_catch(kind: str, source: str, qualification: int, length: int) -> None:
    """Does the qualification name register, access, source and LMSW's operand?"""
    guest = Guest(kind, source)
    guest.vmcs.cr0_mask, guest.vmcs.cr0_shadow = 0x8, 0x8
    guest.vmcs.cr4_mask, guest.vmcs.cr4_shadow = 0x20, 0
    guest.frame[EAX], guest.frame[EBX], guest.frame[EDI] = 0x7, 0x11, 0x20

    assert R.CR_ACCESS == guest.enter()
    assert (qualification, length) == (guest.vmcs.exit_qualification, guest.vmcs.exit_length)


def test_paging_without_protection_is_refused(kind: str) -> None:
    """Is setting PG without PE the guest's own #GP, in real mode without an error code?"""
    guest = Guest(kind, "at: mov cr0, eax\n hlt", bits=16)
    guest.vmcs.cr0_mask, guest.vmcs.cr0_shadow = PE, 0
    guest.vmcs.exception_bitmap = 1 << 13
    guest.frame[EAX] = 0x8000_0010

    assert (R.EXCEPTION_OR_NMI, VALID | WITH_CODE & 0 | 3 << 8 | 13) == (
        guest.enter(),
        guest.vmcs.exit_info & ~WITH_CODE,
    )
    assert (guest.at, 0) == (guest.frame[EIP], guest.vmcs.exit_error)


# -- time


@pytest.mark.parametrize("offset", [0, 1000, 2**64 - 5, 1 << 40])
@pytest.mark.parametrize("offsetting", [False, True])
def test_time_without_an_exit(kind: str, offset: int, offsetting: bool) -> None:
    """Does RDTSC give the clock at that instruction, plus the offset if that control is on?"""
    guest = Guest(kind, "nop\n nop\n rdtsc\n nop\n hlt")
    guest.vmcs.cpu_controls |= TSC_OFFSETTING if offsetting else 0
    guest.vmcs.tsc_offset = offset

    assert R.HLT == guest.enter()
    clock = guest.begin + 2 + (offset if offsetting else 0)
    assert clock % 2**64 == guest.frame[EDX] << 32 | guest.frame[EAX]
    assert guest.begin + 4 == guest.engine.cycles


def test_time_with_an_exit(kind: str) -> None:
    """With RDTSC exiting, does it exit whether or not there is an offset, EAX and EDX untouched?"""
    guest = Guest(kind, "nop\n at: rdtsc\n hlt")
    guest.vmcs.cpu_controls = HLT_EXITING | RDTSC_EXITING | TSC_OFFSETTING

    assert (R.RDTSC, 2, guest.at) == (guest.enter(), guest.vmcs.exit_length, guest.frame[EIP])
    assert (0, 0) == (guest.frame[EAX], guest.frame[EDX])


# -- exceptions


@pytest.mark.parametrize(
    ("source", "vector", "error"),
    [
        ("xor ecx, ecx\n at: div ecx", 0, None),
        ("mov al, 127\n add al, 127\n at: into", 4, None),
        ("at: .byte 0x0f, 0x01, 0xd8", 6, None),  # VMRUN, an instruction of other CPUs
        ("mov eax, 0x200\n at: mov ds, eax", 13, 0x200),
        ("at: mov eax, [0x18000]", 14, 0),
        ("at: mov [0x18000], eax", 14, 2),
        ("at: int3", 3, None),
    ],
)
def test_an_exception_exits_if_its_bit_is_set(kind: str, source: str, vector: int, error: int | None) -> None:
    """Is interruption information complete for an exception of the bitmap, and is any other the guest's own?"""
    others = ~(1 << vector) & 0xFFFFFFFF
    for bitmap in (1 << vector, others):
        guest = Guest(kind, source + "\n hlt", paging=True)
        guest.memory.set_word((TABLE >> 2) + 0x18, 0)
        guest.vmcs.exception_bitmap = bitmap
        reason = guest.enter()
        if bitmap == 1 << vector:
            code = 0 if error is None else WITH_CODE
            exit_kind = 6 if vector in (3, 4) else 3
            assert (R.EXCEPTION_OR_NMI, VALID | code | exit_kind << 8 | vector) == (reason, guest.vmcs.exit_info)
            assert (error or 0, 0) == (guest.vmcs.exit_error, guest.vmcs.idt_info)
            assert (0x18000 if vector == 14 else 0) == guest.vmcs.exit_qualification
        else:
            assert (R.HLT, HANDLERS + vector, 0) == (reason, guest.frame[EIP], guest.vmcs.exit_info)


# -- the second level


@pytest.mark.parametrize(
    ("source", "qualification", "physical"),
    [
        (f"at: mov eax, [{MISSING + 0x123:#x}]", 1, MISSING + 0x123),
        (f"at: mov [{MISSING + 0x123:#x}], al", 2, MISSING + 0x123),
        (f"at: push dword ptr [{MISSING:#x}]", 1, MISSING),
        (f"at: mov eax, [{MISSING - 2:#x}]", 1, MISSING),
        (f"at: mov [{READ_ONLY + 8:#x}], eax", 2, READ_ONLY + 8),
        (f"mov eax, [{READ_ONLY:#x}]\n mov edi, {READ_ONLY + 4:#x}\n at: stosd", 2, READ_ONLY + 4),
    ],
)
def test_a_second_level_fault_is_an_ept_violation(kind: str, source: str, qualification: int, physical: int) -> None:
    """Are guest-physical address and kind of access told, and does the instruction succeed when the page is there?"""
    guest = Guest(kind, source + "\n hlt")

    assert R.EPT_VIOLATION == guest.enter()
    assert (qualification, physical) == (guest.vmcs.exit_qualification, guest.vmcs.guest_physical)
    assert guest.at == guest.frame[EIP]
    guest.map(physical, physical & ~0xFFF | 7)
    assert R.HLT == guest.enter()


def test_a_fetch_from_a_missing_page(kind: str) -> None:
    """Is a jump to a page that is not there an EPT violation at the new EIP, told as a read?"""
    guest = Guest(kind, f"mov eax, {MISSING:#x}\n jmp eax")

    assert R.EPT_VIOLATION == guest.enter()
    assert (1, MISSING, MISSING) == (guest.vmcs.exit_qualification, guest.vmcs.guest_physical, guest.frame[EIP])
    assert 2 == guest.engine.cycles - guest.begin


def test_a_page_table_that_is_missing(kind: str) -> None:
    """Is a guest's page-table walk through a missing page an EPT violation that names the table's entry?"""
    guest = Guest(kind, "at: mov eax, [0x400000]\n hlt", paging=True)
    guest.memory.set_word((TABLE >> 2) - 1024 + 1, MISSING | 7)

    assert R.EPT_VIOLATION == guest.enter()
    assert (MISSING, guest.at) == (guest.vmcs.guest_physical, guest.frame[EIP])


# -- events on their way


@pytest.mark.parametrize(
    ("source", "info", "error", "length"),
    [
        ("at: int 0x30", VALID | 4 << 8 | 0x30, 0, 2),
        ("at: int3", VALID | 6 << 8 | 3, 0, 1),
        ("at: ud2", VALID | 3 << 8 | 6, 0, 0),
        ("mov eax, 0x200\n at: mov ds, eax", VALID | WITH_CODE | 3 << 8 | 13, 0x200, 0),
    ],
)
def test_a_delivery_that_meets_a_missing_stack(kind: str, source: str, info: int, error: int, length: int) -> None:
    """Does IDT-vectoring information name the event, EIP still at its cause, and does it arrive when injected again?"""
    guest = Guest(kind, f"mov esp, {MISSING + 0x100:#x}\n" + source)

    assert R.EPT_VIOLATION == guest.enter()
    assert (info, error) == (guest.vmcs.idt_info, guest.vmcs.idt_error)
    assert (guest.at, MISSING + 0x100) == (guest.frame[EIP], guest.frame[ESP])
    assert (2, MISSING) == (guest.vmcs.exit_qualification, guest.vmcs.guest_physical & ~0xFFF)
    guest.map(MISSING, MISSING | 7)
    guest.vmcs.entry_info, guest.vmcs.entry_error, guest.vmcs.entry_length = info, error, length
    assert (R.HLT, HANDLERS + (info & 0xFF)) == (guest.enter(), guest.frame[EIP])
    pushed = struct.unpack("<4I", guest.memory.read(guest.frame[ESP], 16))
    assert ((error,) if info & WITH_CODE else ()) + (guest.at + length, CODE_0) == pushed[
        : 3 if info & WITH_CODE else 2
    ]
    assert (0, 0) == (guest.vmcs.idt_info, guest.vmcs.entry_info & VALID)


def test_an_interrupt_that_meets_a_missing_stack(kind: str) -> None:
    """Is an external interrupt that could not be pushed told as one, the guest where it was?"""
    guest = Guest(kind, "at: hlt")
    guest.frame[ESP], guest.frame[EFLAGS] = MISSING + 0x100, 0x202
    guest.vmcs.entry_info = VALID | 0x20

    assert R.EPT_VIOLATION == guest.enter()
    assert (VALID | 0x20, guest.at, 0x202) == (guest.vmcs.idt_info, guest.frame[EIP], guest.frame[EFLAGS])


def test_a_fault_in_a_delivery_names_both(kind: str) -> None:
    """When INT n meets a gate that is not present: is #NP the exit, and INT n the event that it interrupted?"""
    guest = Guest(kind, "at: int 0x30")
    guest.memory.write(IDT + 8 * 0x30, struct.pack("<4H", HANDLERS, CODE_0, 0x0E00, 0))
    guest.vmcs.exception_bitmap = 1 << 11

    assert R.EXCEPTION_OR_NMI == guest.enter()
    assert (VALID | WITH_CODE | 3 << 8 | 11, 0x30 << 3 | 2) == (guest.vmcs.exit_info, guest.vmcs.exit_error)
    assert (VALID | 4 << 8 | 0x30, guest.at) == (guest.vmcs.idt_info, guest.frame[EIP])


def test_a_guest_without_gates_ends_in_a_triple_fault(kind: str) -> None:
    """Is a fault that no gate can take a triple fault, told at the instruction that began it?"""
    guest = Guest(kind, "nop\n at: ud2")
    guest.vmcs.set_table("idtr", IDT, 0)

    assert (R.TRIPLE_FAULT, 0) == (guest.enter(), guest.vmcs.exit_info)
    assert guest.at == guest.frame[EIP]


# -- code that changes

CHANGING = {
    "the instruction right behind the store": ("mov byte ptr [W + at + 1], 9\n at: mov eax, 5\n hlt", 9),
    "one further on in the block": ("mov byte ptr [W + at + 1], 9\n nop\n inc ebx\n at: mov eax, 5\n hlt", 9),
    "code that has run": ("call f\n mov byte ptr [W + f + 1], 9\n call f\n hlt\n f: mov eax, 5\n ret", 9),
    "code in front, in a loop": (
        "mov ecx, 5\n again: mov edx, 0\n add eax, edx\n inc byte ptr [W + again + 1]\n loop again\n hlt",
        10,
    ),
    "code behind, in a loop": (
        "mov ecx, 5\n again: inc byte ptr [W + at + 1]\n at: mov edx, 0\n add eax, edx\n loop again\n hlt",
        15,
    ),
    "two instructions by one store": ("mov dword ptr [W + at], 0x40404040\n at: nop\n nop\n nop\n nop\n hlt", 4),
    "many by a string": (
        "mov edi, W + at\n mov al, 0x43\n mov ecx, 6\n rep stosb\n at: .space 6, 0x90\n mov eax, ebx\n hlt",
        6,
    ),
    "the stack": ("mov ebp, esp\n mov esp, W + at + 5\n push 0x44444444\n at: .byte 0xb8\n .long 5\n hlt", 0x44444444),
    "data beside the code": ("mov eax, 7\n mov [W + data], eax\n mov eax, [W + data]\n hlt\n data: .long 0", 7),
}


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("alias", [False, True])
def test_a_guest_that_changes_its_code_runs_the_new(kind: str, name: str, alias: bool) -> None:
    """Is what a guest stored what it executes next, also through another address, and the same when stepped?"""
    source, result = CHANGING[name]
    offset = 0x1F000 - CODE if alias else 0
    source = source.replace("W + ", f"{offset:#x} + ")
    whole = Guest(kind, source, paging=True)
    assert (R.HLT, result) == (whole.enter(), whole.frame[EAX])

    stepped, steps = Guest(kind, source, paging=True), 0
    while isinstance(reason := stepped.enter(1), Pause):
        steps += 1
        assert steps == stepped.engine.cycles - stepped.begin

    assert R.HLT == reason
    assert whole.state == stepped.state


PIECES = (
    *(
        "inc byte ptr [one + 1]",
        "add dword ptr [two + 1], ebx",
        "inc ebx",
        "nop",
        "push eax\n pop ecx",
        "xchg eax, edx",
    ),
    *("mov byte ptr [op], 0x40", "mov byte ptr [op], 0x4b", "mov eax, [two + 1]", "one: mov eax, 1", "two: mov edx, 2"),
)


@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_a_run_may_be_cut_where_code_changes(kind: str, pieces: list[str], cuts: list[int]) -> None:
    """For any code that rewrites itself, in a loop: is the end the same in one run, in steps and in other pieces?"""
    labels = [name for name in ("one", "two") if not any(piece.startswith(name) for piece in pieces)]
    seen = dict.fromkeys(pieces)  # a label is defined once
    body = "\n".join([*seen, *(f"{name}: mov ebp, 1" for name in labels)])
    source = f"mov ecx, 3\n mov esi, 6\n again:\n{body}\n op: inc edx\n dec esi\n jnz again\n hlt"
    states = []
    for lengths in ([100_000], [1], cuts):
        guest, n = Guest(kind, source), 0
        while isinstance(reason := guest.enter(lengths[n % len(lengths)]), Pause):
            n += 1
        assert R.HLT == reason
        states.append(guest.state)

    assert [states[0]] * 3 == states


# -- long blocks


@pytest.mark.parametrize(
    "instruction",
    [
        "wbinvd",
        "mov eax, cr0",
        "mov eax, dr0",
        "smsw ax",
        "str ax",
        "sgdt [0x8000]",
        "fxch st(1)",
        "pshufd xmm0, xmm1, 4",
    ],
)
def test_a_block_may_hold_any_instruction_any_number_of_times(instruction: str) -> None:
    """Does a page full of instructions for which the engine's translator wastes its room run to the end?

    Without a limit the engine writes beyond its memory, and the process ends.
    """
    guest = Guest("native", "\n".join([instruction] * 500) + "\n at: hlt")
    guest.vmcs.set_control_register(4, 0x600)

    while isinstance(reason := guest.enter(), Pause):
        pass
    assert R.HLT == reason
    assert (guest.at, 500) == (guest.frame[EIP], guest.engine.cycles - guest.begin)


def test_a_page_beyond_4_gib_is_where_the_engine_takes_it_to_be(kind: str) -> None:
    """A guest whose page of 4 MB has address bits above 31 (PSE-36): do we find its code where the engine does?"""
    guest = Guest(kind, "inc ecx\n at: hlt", paging=True)
    guest.memory.set_word(DIRECTORY >> 2, 1 << 13 | 0x83)
    guest.frame[ECX] = 6

    assert R.HLT == guest.enter()
    assert (guest.at, 7) == (guest.frame[EIP], guest.frame[ECX])
    assert CODE == guest.mode.view.translate(guest.vmcs, CODE)


@pytest.mark.parametrize("kind", ["native", "python"])
def test_what_is_modified_is_written(kind: str) -> None:
    """Is an access to a missing page a write, for the exit, wherever the instruction changes its operand?"""
    operand = f"[{MISSING + 8}]"
    by_two = ("add", "adc", "sub", "sbb", "and", "or", "xor", "xadd", "cmpxchg", "bts", "btr", "btc", "xchg")
    by_one = ("rol", "ror", "rcl", "rcr", "shl", "shr", "sar")
    written = [
        *(f"{name} dword ptr {operand}, ebx" for name in by_two),
        *(f"{name} dword ptr {operand}, 3" for name in by_one),
        *(f"{name} word ptr {operand}, cl" for name in by_one),
        *(f"{name} byte ptr {operand}" for name in ("inc", "dec", "not", "neg", "setc")),
        *(f"cmpxchg8b {operand}", f"lock cmpxchg8b {operand}", f"shld {operand}, ebx, 3", f"arpl {operand}, bx"),
    ]
    read = [f"cmp dword ptr {operand}, ebx", f"test byte ptr {operand}, 1", f"bt dword ptr {operand}, 3"]
    read += [f"mov eax, {operand}", f"fld dword ptr {operand}", f"mul dword ptr {operand}"]
    for source in (*written, *read):
        guest = Guest(kind, source)

        assert R.EPT_VIOLATION is guest.enter(), source
        assert (source in written) == bool(guest.vmcs.exit_qualification & EPT_WRITE), source
