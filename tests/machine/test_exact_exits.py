# SPDX-License-Identifier: GPL-2.0-or-later
"""Exits to the letter of the SDM, on both cores: VMX instructions, task switches, debugging, and what comes first.

Source of what is expected: SDM vol. 3, chapters "VM Exits" (qualification, instruction information, IDT-vectoring) and
"VMX Non-Root Operation" (which exits, and what is checked before). `test_guestmode.py` has the frequent exits.
"""

from __future__ import annotations

import struct

import pytest

from l4lab.abi.frame import EAX, EBX, ECX, EDI, EFLAGS, EIP, ESP
from l4lab.abi.vm import ExitReason as R
from l4lab.machine.vtx import MONITOR_EXITING, MOV_DR_EXITING, MWAIT_EXITING

from .guestbench import CODE, CODE_0, DATA, DATA_0, GDT, HANDLERS, IDT, MISSING, STACK, Guest

VALID, WITH_CODE, RF, TF = 1 << 31, 1 << 11, 1 << 16, 1 << 8
TSS, OTHER_TSS, TSS_SELECTOR, OTHER_SELECTOR = DATA, DATA + 0x100, 0x18, 0x20


@pytest.fixture(params=["native", "python"], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Which core runs the guest."""
    name: str = request.param
    return name


# -- VMX instructions


@pytest.mark.parametrize(
    ("code", "reason", "displacement", "information"),
    [
        ("0f 01 c1", R.VMCALL, 0, 0),
        ("0f 01 c4", R.VMXOFF, 0, 0),
        ("0f c7 30", R.VMPTRLD, 0, 1 << 7 | 3 << 15 | 1 << 22),
        ("66 0f c7 70 f8", R.VMCLEAR, 0xFFFFFFF8, 1 << 7 | 3 << 15 | 1 << 22),
        ("f3 0f c7 74 8d 10", R.VMXON, 0x10, 2 | 1 << 7 | 2 << 15 | 1 << 18 | 5 << 23),
        ("64 0f c7 3d 44 33 22 11", R.VMPTRST, 0x11223344, 1 << 7 | 4 << 15 | 1 << 22 | 1 << 27),
        ("0f 78 d8", R.VMREAD, 0, 3 << 28 | 1 << 10),
        ("0f 78 0b", R.VMREAD, 0, 1 << 28 | 1 << 7 | 3 << 15 | 1 << 22 | 3 << 23),
        ("0f 79 f9", R.VMWRITE, 0, 7 << 28 | 1 << 10 | 1 << 3),
        ("67 0f 79 50 02", R.VMWRITE, 2, 2 << 28 | 3 << 15 | 6 << 18 | 3 << 23),
    ],
)
def test_a_vmx_instruction_names_its_operands(
    kind: str, code: str, reason: R, displacement: int, information: int
) -> None:
    """Are displacement and instruction information those of the tables, for every form of operand?"""
    data = bytes.fromhex(code)
    guest = Guest(kind, f"at: .byte {', '.join(map(str, data))}\n hlt")

    assert (reason, len(data)) == (guest.enter(), guest.vmcs.exit_length)
    found = guest.vmcs.exit_qualification, guest.vmcs.instruction_info
    assert (displacement, information) == (found[0], found[1])


@pytest.mark.parametrize("code", ["0x0f, 0x78, 0xd8", "0x0f, 0x01, 0xc2"])
def test_vmx_instructions_do_not_exist_in_real_mode(kind: str, code: str) -> None:
    """Is what is no VMCALL undefined without protection?"""
    guest = Guest(kind, f"at: .byte {code}", bits=16)
    guest.vmcs.exception_bitmap = 1 << 6

    assert (R.EXCEPTION_OR_NMI, VALID | 3 << 8 | 6) == (guest.enter(), guest.vmcs.exit_info)


# -- task switches


def tasks(kind: str, source: str) -> Guest:
    """A guest with TR loaded, and another task to switch to."""
    guest = Guest(kind, source)
    for selector, base in ((TSS_SELECTOR, TSS), (OTHER_SELECTOR, OTHER_TSS)):
        guest.memory.write(GDT + selector, struct.pack("<Q", 0x0000_8900_0000_0067 | base << 16))
    guest.vmcs.set_segment("tr", TSS_SELECTOR, TSS, 0x67, 0x8B)
    guest.memory.write(TSS, bytes(0x200))
    return guest


FAR = f".long 0\n .word {OTHER_SELECTOR}"


@pytest.mark.parametrize(
    ("source", "origin", "length", "vectoring"),
    [
        (f"at: .byte 0x9a\n {FAR}", 0, 7, 0),
        (f"at: .byte 0xea\n {FAR}", 2, 7, 0),
        (f"nop\n inc eax\n at: .byte 0x3e, 0xff, 0x2d\n .long where\n where: {FAR}", 2, 7, 0),
        ("at: int 0x30", 3, 2, VALID | 4 << 8 | 0x30),
        ("at: ud2", 3, 0, VALID | 3 << 8 | 6),
    ],
)
def test_a_task_switch_exits_before_it(kind: str, source: str, origin: int, length: int, vectoring: int) -> None:
    """Are new task, source and interrupted event told, with nothing written to either task's segment?"""
    guest = tasks(kind, source)
    for vector in (0x30, 6):
        guest.memory.write(IDT + 8 * vector, struct.pack("<4H", 0, OTHER_SELECTOR, 0x8500, 0))
    before = guest.memory.read(GDT, 0x40), guest.memory.read(TSS, 0x200)

    assert (R.TASK_SWITCH, guest.at) == (guest.enter(), guest.frame[EIP])
    assert (OTHER_SELECTOR | origin << 30, length, vectoring) == (
        guest.vmcs.exit_qualification,
        guest.vmcs.exit_length,
        guest.vmcs.idt_info,
    )
    assert before == (guest.memory.read(GDT, 0x40), guest.memory.read(TSS, 0x200))


def test_a_return_to_the_calling_task_exits(kind: str) -> None:
    """With NT set and the back link to a busy task: is IRET a task switch?"""
    guest = tasks(kind, "at: iretd")
    guest.memory.write(TSS, struct.pack("<H", OTHER_SELECTOR))
    access = GDT + OTHER_SELECTOR + 5
    guest.memory.write(access, bytes((guest.memory.u8[access] | 2,)))
    guest.frame[EFLAGS] |= 1 << 14

    assert (R.TASK_SWITCH, OTHER_SELECTOR | 1 << 30) == (guest.enter(), guest.vmcs.exit_qualification)
    assert 1 == guest.vmcs.exit_length


# -- debugging


def test_a_single_step_that_the_monitor_wants(kind: str) -> None:
    """Is BS in the qualification, and DR6 left alone?"""
    guest = Guest(kind, "inc eax\n at: inc eax")
    guest.frame[EFLAGS] |= TF
    guest.vmcs.exception_bitmap = 1 << 1

    assert (R.EXCEPTION_OR_NMI, VALID | 3 << 8 | 1) == (guest.enter(), guest.vmcs.exit_info)
    assert (1 << 14, 0xFFFF0FF0, guest.at) == (
        guest.vmcs.exit_qualification,
        guest.vmcs.debug_register(6),
        guest.frame[EIP],
    )


@pytest.mark.parametrize("source", ["mov eax, cr0", "rdtsc", "mov eax, dr7", "smsw eax"])
def test_a_step_over_what_is_done_for_the_guest(kind: str, source: str) -> None:
    """Does an instruction that never reaches the monitor end in a single step all the same?"""
    guest = Guest(kind, f"{source}\n at: nop")
    guest.frame[EFLAGS] |= TF
    guest.vmcs.cr0_mask, guest.vmcs.cr0_shadow = 0x20, 0x20

    assert (R.HLT, HANDLERS + 1) == (guest.enter(), guest.frame[EIP])
    assert guest.at == guest.memory.u32[guest.frame[ESP] >> 2]
    assert 1 << 14 == guest.vmcs.debug_register(6) & 1 << 14


def test_a_breakpoint_that_the_monitor_wants(kind: str) -> None:
    """Is a breakpoint on execution a fault with its bit in the qualification, and passed over with RF?"""
    guest = Guest(kind, "inc eax\n at: inc eax\n hlt")
    guest.vmcs.set_debug_register(2, guest.at)
    guest.vmcs.set_debug_register(7, 0x420)
    guest.vmcs.exception_bitmap = 1 << 1

    assert (R.EXCEPTION_OR_NMI, 4, guest.at) == (guest.enter(), guest.vmcs.exit_qualification, guest.frame[EIP])
    guest.frame[EFLAGS] |= RF
    assert (R.HLT, 2) == (guest.enter(), guest.frame[EAX])


def test_general_detect(kind: str) -> None:
    """With DR7.GD: is any use of a debug register a #DB with BD, once? (QEMU has none.)"""
    guest = Guest(kind, "at: mov eax, dr0")
    guest.vmcs.set_debug_register(7, 0x2400)

    assert (R.HLT, HANDLERS + 1) == (guest.enter(), guest.frame[EIP])
    assert (1 << 13, 0x400) == (guest.vmcs.debug_register(6) & 1 << 13, guest.vmcs.debug_register(7))
    assert guest.at == guest.memory.u32[guest.frame[ESP] >> 2]


@pytest.mark.parametrize("bitmap", [0, 1 << 1])
def test_int1(kind: str, bitmap: int) -> None:
    """Is INT1 a privileged software exception with its length, or the guest's own #DB behind it?"""
    guest = Guest(kind, "at: .byte 0xf1\n after: nop")
    guest.vmcs.exception_bitmap = bitmap
    if bitmap:
        assert (R.EXCEPTION_OR_NMI, VALID | 5 << 8 | 1, 1) == (
            guest.enter(),
            guest.vmcs.exit_info,
            guest.vmcs.exit_length,
        )
    else:
        assert (R.HLT, guest.program.address("after")) == (guest.enter(), guest.memory.u32[guest.frame[ESP] >> 2])


# -- ring 3


def in_ring_3(guest: Guest) -> None:
    """Its code runs in ring 3 from now on, with a TSS for the way back."""
    guest.memory.write(GDT + 0x28, struct.pack("<2Q", 0x00CFFB000000FFFF, 0x00CFF3000000FFFF))
    guest.memory.write(TSS, struct.pack("<3I", 0, STACK + 0x800, DATA_0).ljust(0x66, b"\0") + struct.pack("<H", 0x68))
    guest.vmcs.set_segment("cs", 0x2B, 0, 0xFFFFFFFF, 0xC0FB)
    for name in ("ss", "ds", "es"):
        guest.vmcs.set_segment(name, 0x33, 0, 0xFFFFFFFF, 0xC0F3)
    guest.vmcs.set_segment("tr", TSS_SELECTOR, TSS, 0x8A, 0x8B)


def test_mov_dr_exits_before_privilege_is_checked(kind: str) -> None:
    """In ring 3: is MOV DR an exit with MOV-DR exiting, and a #GP without?"""
    for controls in (MOV_DR_EXITING, 0):
        guest = Guest(kind, "at: mov ecx, dr7")
        in_ring_3(guest)
        guest.vmcs.cpu_controls |= controls
        if controls:
            assert (R.DR_ACCESS, 7 | 16 | 1 << 8, 3) == (
                guest.enter(),
                guest.vmcs.exit_qualification,
                guest.vmcs.exit_length,
            )
        else:
            assert (R.HLT, HANDLERS + 13) == (guest.enter(), guest.frame[EIP])


@pytest.mark.parametrize(
    ("port", "iopl", "exits"), [(0x10, 0, True), (0x11, 0, False), (0x11, 3, True), (0x400, 0, False)]
)
def test_the_permission_map_of_ports_comes_first(kind: str, port: int, iopl: int, exits: bool) -> None:
    """In ring 3: does a port exit only if IOPL or the TSS allow it, and is it a #GP otherwise?"""
    guest = Guest(kind, f"mov dx, {port}\n at: in al, dx")
    in_ring_3(guest)
    guest.memory.write(TSS + 0x68, b"\0\0\xfe\xff".ljust(0x22, b"\xff"))
    guest.frame[EFLAGS] |= iopl << 12

    reason = guest.enter()
    assert (R.IO_INSTRUCTION if exits else R.HLT) == reason
    assert exits or HANDLERS + 13 == guest.frame[EIP]


def test_sysenter_and_sysexit(kind: str) -> None:
    """Does SYSENTER reach ring 0 as its registers say, with IF clear, and SYSEXIT get back?"""
    guest = Guest(
        kind,
        "sysenter\n .space 14, 0x90\n kernel: mov ebx, esp\n mov edx, there\n mov ecx, 0x7777\n sysexit\n there: int3",
    )
    in_ring_3(guest)
    for register, value in enumerate((CODE_0, STACK + 0x700, guest.program.address("kernel"))):
        guest.vmcs.set_sysenter(register, value)
    guest.frame[EFLAGS] |= 1 << 9
    guest.vmcs.exception_bitmap = 1 << 3

    assert (R.EXCEPTION_OR_NMI, VALID | 6 << 8 | 3) == (guest.enter(), guest.vmcs.exit_info)
    assert (STACK + 0x700, 0x7777, 0) == (guest.frame[EBX], guest.frame[ESP], guest.frame[EFLAGS] & 1 << 9)
    assert (CODE_0 + 19, CODE_0 + 27) == (guest.vmcs.segment("cs")[0], guest.vmcs.segment("ss")[0])


def test_sysenter_that_is_not_set_up(kind: str) -> None:
    """Is SYSENTER a #GP while its code segment is null?"""
    guest = Guest(kind, "at: sysenter")
    guest.vmcs.set_sysenter(0, 0)

    assert (R.HLT, HANDLERS + 13) == (guest.enter(), guest.frame[EIP])


# -- the rest


def test_a_double_fault_of_the_bitmap(kind: str) -> None:
    """Does a fault in the delivery of another one exit as #DF, naming the first, if only that bit is set?"""
    guest = Guest(kind, "mov eax, 0x200\n at: mov ds, eax")
    guest.memory.write(IDT + 8 * 13, struct.pack("<4H", HANDLERS, CODE_0, 0x0E00, 0))
    guest.vmcs.exception_bitmap = 1 << 8

    assert (R.EXCEPTION_OR_NMI, VALID | WITH_CODE | 3 << 8 | 8, 0) == (
        guest.enter(),
        guest.vmcs.exit_info,
        guest.vmcs.exit_error,
    )
    assert (VALID | WITH_CODE | 3 << 8 | 13, 0x200, guest.at) == (
        guest.vmcs.idt_info,
        guest.vmcs.idt_error,
        guest.frame[EIP],
    )


def test_ins_has_not_touched_its_destination(kind: str) -> None:
    """Does INS exit before it writes, wherever in a block it is?"""
    guest = Guest(kind, f"mov edi, {DATA}\n inc eax\n at: insd\n hlt")
    guest.memory.fill(DATA, 8, 0x5A)

    assert (R.IO_INSTRUCTION, guest.at, DATA) == (guest.enter(), guest.frame[EIP], guest.frame[EDI])
    assert b"\x5a" * 8 == guest.memory.read(DATA, 8)


@pytest.mark.parametrize(
    ("source", "write"), [("inc dword ptr [X]", 3), ("cmp dword ptr [X], 1", 1), ("xchg [X], eax", 3)]
)
def test_what_is_read_and_written_is_a_write(kind: str, source: str, write: int) -> None:
    """Is a missing page told as written where the instruction would have written it, too?"""
    guest = Guest(kind, source.replace("X", str(MISSING)))

    assert (R.EPT_VIOLATION, write) == (guest.enter(), guest.vmcs.exit_qualification)


@pytest.mark.parametrize(
    ("source", "control", "reason"),
    [("monitor", MONITOR_EXITING, R.MONITOR), ("mwait", MWAIT_EXITING, R.MWAIT)],
)
def test_monitor_and_mwait(kind: str, source: str, control: int, reason: R) -> None:
    """Do they exit if asked for, and pass if not?"""
    for controls, expected in ((control, reason), (0, R.HLT)):
        guest = Guest(kind, f"at: {source}\n hlt")
        guest.vmcs.cpu_controls |= controls
        assert expected == guest.enter()


def test_an_injected_nmi_blocks_others_until_iret(kind: str) -> None:
    """Is blocking by NMI told in the handler, and gone behind its IRET?"""
    guest = Guest(kind, "at: hlt")
    guest.memory.write(HANDLERS + 2, b"\xcf")
    guest.memory.write(IDT + 16, struct.pack("<4H", CODE + 0x100, CODE_0, 0x8E00, 0))
    guest.memory.write(CODE + 0x100, b"\xf4\xcf")
    guest.vmcs.entry_info = VALID | 2 << 8 | 2

    assert (R.HLT, CODE + 0x100, 8) == (guest.enter(), guest.frame[EIP], guest.vmcs.interruptibility)
    guest.frame[EIP] += 1
    assert (R.HLT, guest.at, 0) == (guest.enter(), guest.frame[EIP], guest.vmcs.interruptibility)


def test_lmsw_looks_at_four_bits_only(kind: str) -> None:
    """Does LMSW exit for the bits it may change, and not for others that the shadow shows differently?"""
    for value, reason in ((0x1, R.HLT), (0x9, R.CR_ACCESS)):
        guest = Guest(kind, "at: lmsw ax\n hlt")
        guest.vmcs.cr0_mask, guest.vmcs.cr0_shadow = 0xFFFFFFFF, 0x60000011
        guest.frame[EAX], guest.frame[ECX] = value, 0
        assert reason == guest.enter()


def test_a_breakpoint_interrupted_half_way_has_its_length(kind: str) -> None:
    """When the stack for INT3 is missing: is it told as a software exception, with its length?"""
    guest = Guest(kind, f"mov esp, {MISSING + 0x100}\n at: int3")

    assert R.EPT_VIOLATION == guest.enter()
    assert (VALID | 6 << 8 | 3, 1) == (guest.vmcs.idt_info, guest.vmcs.exit_length)


def test_paging_without_protection_is_refused(kind: str) -> None:
    """Is setting PG while PE is clear a #GP, also where the monitor has masked nothing? (QEMU lets it be.)"""
    guest = Guest(kind, "mov eax, 0x80000000\n at: mov cr0, eax")
    guest.vmcs.exception_bitmap = 1 << 13

    assert (R.EXCEPTION_OR_NMI, VALID | WITH_CODE | 3 << 8 | 13) == (guest.enter(), guest.vmcs.exit_info)
    assert (guest.at, 0x11) == (guest.frame[EIP], guest.vmcs.control_register(0))


@pytest.mark.parametrize("value", [1 << 5, 1 << 11, 1 << 31])
def test_bits_of_cr4_that_the_cpu_has_not_cannot_be_set(kind: str, value: int) -> None:
    """Is a guest that sets PAE, or another such bit, given a #GP, as CPUID has told it?"""
    guest = Guest(kind, f"mov eax, {value}\n at: mov cr4, eax")
    guest.vmcs.exception_bitmap = 1 << 13

    assert (R.EXCEPTION_OR_NMI, VALID | WITH_CODE | 3 << 8 | 13) == (guest.enter(), guest.vmcs.exit_info)
    assert guest.at == guest.frame[EIP]
