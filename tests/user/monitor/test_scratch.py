# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: E501 - a program is a line, so that the table can be read
"""Instructions of all kinds on device memory and on none. The oracle is the same guest, to which it is plain RAM."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from l4lab.devices.device import Device
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import ORIGIN, FlatGuest
from l4lab.user.l4 import L4
from l4lab.user.monitor import start_flat
from l4lab.user.monitor.monitor import Monitor
from l4lab.user.monitor.outcome import End, Outcome

RAM_SIZE = 8 << 20
IN_RAM, DEVICE, NOWHERE, HIGH = 0x30_0000, 0x4000_0000, 0x5000_0000, 0xFEC0_0000
PAGE = 4096
REPORT, TABLES, IDT, STACK = 0x20_0000, 0x24_0000, 0x28_0000, 0x2F_0000
CONTENTS = bytes(n * 37 + 11 & 0xFF for n in range(2 * PAGE))
# Where the device is, how the guest has its memory translated, and whether with shadow page tables.
PLACES = [
    (at, paging, shadow)
    for at in (DEVICE, HIGH)
    for paging in ("no paging", "paging", "large pages")
    for shadow in (False, True)
]


class RamDevice(Device):
    """A device that is memory, a page at an address."""

    name = "ram device"
    widest = 4

    def __init__(self, base: int, contents: bytes) -> None:
        self.base = base
        self.memory = (range(base, base + len(contents)),)
        self.contents = bytearray(contents)

    def load(self, address: int, size: int) -> int:
        at = address - self.base
        return int.from_bytes(self.contents[at : at + size], "little")

    def store(self, address: int, size: int, value: int) -> None:
        at = address - self.base
        self.contents[at : at + size] = value.to_bytes(size, "little")


# `X` is the address of the memory. What comes of each is all registers, the FPU's included, and the memory.
INSTRUCTIONS = {
    "load and store of the FPU": "fild dword ptr [X]\n fild qword ptr [X + 8]\n fadd dword ptr [X + 16]\n fstp qword ptr [X + 32]\n fistp word ptr [X + 48]",
    "a decimal number": "fld1\n fbstp [X + 64]\n fbld [X + 64]",
    "ten bytes": "fldpi\n fstp tbyte ptr [X + 3]\n fld tbyte ptr [X + 3]",
    "the FPU's control": "fnstcw [X]\n fldcw [X]\n fnstsw [X + 6]\n fnstenv [X + 64]\n fldenv [X + 64]",
    "all of the FPU": "fldpi\n fnsave [X + 128]\n frstor [X + 128]",
    "sse": "movups xmm0, [X]\n addps xmm0, [X + 16]\n movaps [X + 32], xmm0\n stmxcsr [X + 64]\n ldmxcsr [X + 64]\n cvtsi2ss xmm1, dword ptr [X + 4]\n movq [X + 80], xmm0",
    "fxsave": "fldpi\n fxsave [X + 512]\n fninit\n fxrstor [X + 512]",
    "products": "mul dword ptr [X]\n imul byte ptr [X + 4]\n imul ecx, [X + 8]\n imul edx, [X + 12], 5",
    "quotients": "mov edx, 5\n div dword ptr [X]\n mov ax, 77\n idiv byte ptr [X + 5]",
    "division by zero": "mov dword ptr [X], 0\n div dword ptr [X]",
    "shifts": "shl dword ptr [X], 3\n rcr word ptr [X + 4], cl\n sar byte ptr [X + 7], 1\n shld [X + 8], eax, 9\n shrd [X + 12], eax, cl",
    "conditions": "setc byte ptr [X]\n setnz byte ptr [X + 1]\n cmovz eax, [X + 4]\n cmovnz ebx, [X + 8]",
    "scans": "bsf eax, [X]\n bsr ebx, [X + 4]",
    "eight bytes at once": "mov eax, [X]\n mov edx, [X + 4]\n lock cmpxchg8b [X]\n cmpxchg8b [X + 8]",
    "bounds": "mov dword ptr [X], 0\n mov dword ptr [X + 4], 5\n mov eax, 3\n .byte 0x62, 0x05\n .long X\n mov eax, 6\n .byte 0x62, 0x05\n .long X",
    "segments": "mov word ptr [X], 0x10\n mov es, [X]\n mov [X + 2], ds\n mov dword ptr [X + 4], 0x1234\n mov word ptr [X + 8], 0x10\n lgs ecx, [X + 4]",
    "a segment that is not there": "mov word ptr [X], 0x777\n mov fs, [X]",
    "tables": "sgdt [X]\n lgdt [X]\n sidt [X + 8]\n lidt [X + 8]\n sldt [X + 16]\n str [X + 18]\n smsw [X + 20]\n lmsw [X + 20]",
    "rights": "mov word ptr [X], 0x10\n lar eax, [X]\n lsl ebx, [X]\n verr [X]\n verw [X]",
    "jumps": "mov dword ptr [X], a\n jmp [X]\n ud2\n a: mov dword ptr [X], b\n call [X]\n ud2\n b: pop eax",
    "far jumps": "mov dword ptr [X], a\n mov word ptr [X + 4], 8\n .byte 0xff, 0x2d\n .long X\n ud2\n a: mov dword ptr [X], b\n .byte 0xff, 0x1d\n .long X\n ud2\n b: pop eax\n pop ebx",
    "a translation": "mov ebx, X\n mov al, 9\n xlatb\n xor ebx, ebx",
    "the stack": "mov ebp, esp\n mov esp, X + 256\n pushad\n pushfd\n enter 16, 0\n call a\n a: leave\n popfd\n popad\n push dword ptr [X + 4]\n pop ax\n mov esp, ebp",
    "an instruction that is none": ".byte 0x0f, 0xff, 0x05\n .long X",
    "non-temporal": "movnti [X], eax\n prefetchnta [X]",
    "two pages": f"mov eax, [X + {PAGE - 2}]\n shl dword ptr [X + {PAGE - 2}], 3\n fld qword ptr [X + {PAGE - 4}]",
    "stepped": "pushfd\n or dword ptr [esp], 0x100\n popfd\n shl dword ptr [X], 3\n rol byte ptr [X + 4], 1\n pushfd\n and dword ptr [esp], 0xfffffeff\n popfd",
}  # fmt: skip
STACK_USERS = frozenset(("the stack",))  # of which no operand tells a device
READ_BACK = frozenset(("the stack", "tables", "segments", "jumps", "far jumps"))  # which need what they have written


def program(instructions: str, at: int, paging: str) -> FlatGuest:
    """Execute them, and write down what has become of all registers; exceptions too, which skip the rest."""
    tables = {
        "no paging": "",
        "paging": f"""
            mov edi, {TABLES}                   ; directory, a table of the first 4 MiB, a table for X
            mov dword ptr [edi], {TABLES + PAGE + 7}
            mov dword ptr [edi + 4 * {at >> 22}], {TABLES + (2 * PAGE if at >> 22 else PAGE) + 7}
            mov ecx, 0
        t:  mov eax, ecx
            shl eax, 12
            or eax, 7
            mov [edi + {PAGE} + 4 * ecx], eax
            or eax, {at & 0xFFC00000}
            mov [edi + {2 * PAGE} + 4 * ecx], eax
            inc ecx
            cmp ecx, 1024
            jb t""",
        "large pages": f"""
            mov edi, {TABLES}
            mov dword ptr [edi], 0x87
            mov dword ptr [edi + 4 * {at >> 22}], {at & 0xFFC00000 | 0x87:#x}""",
    }[paging]
    on = f"mov eax, {TABLES}\n mov cr3, eax\n mov eax, cr0\n or eax, 0x80010000\n mov cr0, eax" if tables else ""
    handlers = "\n".join(f"mov dword ptr [{REPORT}], {vector}\n jmp done\n .align 16" for vector in range(32))
    step = f"mov dword ptr [{REPORT}], 1\n jmp done\n"  # which is no fault
    handlers = handlers.replace(step, f"inc dword ptr [{REPORT + 48}]\n iretd\n")
    source = f"""
        mov esp, {STACK}
        lgdt [gdtr]
        mov ecx, 0
    g:  mov eax, ecx                            ; each exception goes to a place of its own
        shl eax, 4
        lea ebx, [handlers + eax]
        shr eax, 1
        mov [{IDT} + eax], bx
        mov word ptr [{IDT} + eax + 2], 8
        mov word ptr [{IDT} + eax + 4], 0x8e00
        shr ebx, 16
        mov [{IDT} + eax + 6], bx
        inc ecx
        cmp ecx, 32
        jb g
        lidt [idtr]
        mov eax, cr4
        or eax, 0x210
        mov cr4, eax
        {tables}
        {on}
        jmp begin
        .align 1024                             ; where it stands, however long what comes before is
    begin:
        fninit
        xor eax, eax
        mov ebx, 2
        mov ecx, 3
        mov edx, 4
        mov esi, 5
        mov edi, 6
        mov ebp, 7
        stc
        {instructions}
        mov dword ptr [{REPORT}], 0x100
        jmp done
        .align 16
    handlers:
        {handlers}
    done:
        mov [{REPORT} + 4], eax
        mov [{REPORT} + 8], ebx
        mov [{REPORT} + 12], ecx
        mov [{REPORT} + 16], edx
        mov [{REPORT} + 20], esi
        mov [{REPORT} + 24], edi
        mov [{REPORT} + 28], ebp
        mov [{REPORT} + 32], esp
        mov [{REPORT} + 36], gs
        mov [{REPORT} + 40], es
        fxsave [{REPORT} + 512]
        cli
        hlt
        .align 8
    gdtr: .word 23
        .long gdt
    idtr: .word 255
        .long {IDT}
        .align 8
    gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
    """
    return FlatGuest.of(assemble(source, ORIGIN, constants={"X": at}), "a test's own")


@dataclass
class Result:
    """What the instructions have left: exception, registers, memory."""

    report: bytes
    memory: bytes


def run(name: str, at: int, paging: str = "no paging", shadow: bool = False, device: Device | None = None) -> Result:
    """Execute some of them on memory that is RAM, a device's, or not there."""
    guest = program(INSTRUCTIONS[name], at, paging)
    found: list[Result] = []
    outcomes: list[Outcome] = []

    def main(l4: L4) -> None:
        monitor = Monitor(l4, RAM_SIZE, shadow_paging=shadow, devices=() if device is None else [device])
        monitor.load(guest.pieces)
        if at < RAM_SIZE:
            monitor.load([(at, CONTENTS)])
        outcomes.append(monitor.run(start_flat.start_of(guest)))
        found.append(Result(monitor.memory.read(REPORT, 1024), monitor.memory.read(at, len(CONTENTS))))

    rig = Rig(main, 64 << 20)
    rig.run(10**9)
    assert outcomes, rig.last_stop
    assert outcomes[0].end is End.HALTED, outcomes[0]
    if isinstance(device, RamDevice):
        return Result(found[0].report, bytes(device.contents))
    return found[0]


def differences(one: Result, other: Result) -> list[str]:
    """Where they are not the same."""
    return [
        f"{what} {at:#x}: {mine[at : at + 4].hex()}, {theirs[at : at + 4].hex()}"
        for what, mine, theirs in (("report", one.report, other.report), ("memory", one.memory, other.memory))
        for at in range(0, len(mine), 4)
        if mine[at : at + 4] != theirs[at : at + 4]
    ]


@pytest.mark.parametrize("name", [name for name in INSTRUCTIONS if name not in STACK_USERS])
def test_an_instruction_does_on_a_device_what_it_does_on_memory(name: str) -> None:
    """Are registers, exceptions and what the device has been told those of the same instructions on RAM?"""
    at, paging, shadow = PLACES[sum(name.encode()) % len(PLACES)]
    device = RamDevice(at, CONTENTS)
    theirs = run(name, IN_RAM, paging, shadow)

    found = run(name, at, paging, shadow, device)

    assert [] == differences(theirs, found)


@pytest.mark.parametrize("name", [name for name in INSTRUCTIONS if name not in READ_BACK])
def test_an_instruction_does_something_where_nothing_is(name: str) -> None:
    """Does every instruction end, on ones that nobody can change, and is no exception lost?"""
    at, paging, shadow = PLACES[sum(name.encode()) % len(PLACES)]

    found = run(name, at, paging, shadow)

    assert found.memory == b"\xff" * len(found.memory)
