# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's hardware virtualization, which is AMD's (SVM with nested paging): its numbers, and how it is entered.

Source: AMD64 manual vol. 2, chapter "Secure Virtual Machine" and appendices "VMCB Layout", "SVM Intercept Exit Codes".
Lives here: what of that the engine knows. What Intel's VT-x would have instead is made of it in guestmode.py and the
files that it names.
"""

from __future__ import annotations

import struct
from typing import Final

from l4lab.abi.frame import EAX, EFLAGS, EIP
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.memory import PAGE_SIZE, Memory

# Exit codes. CR and DR: a code for each register; exceptions: for each vector.
CR_READ: Final = 0x00
CR_WRITE: Final = 0x10
DR_READ: Final = 0x20
DR_WRITE: Final = 0x30
EXCEPTION: Final = 0x40
RDTSC: Final = 0x6E
RDPMC: Final = 0x6F
CPUID: Final = 0x72
SOFTWARE: Final = 0x75  # INT n, INT3, INTO
INVD: Final = 0x76
PAUSE: Final = 0x77
HLT: Final = 0x78
INVLPG: Final = 0x79
MSR: Final = 0x7C
TASK_SWITCH: Final = 0x7D
SHUTDOWN: Final = 0x7F
VMRUN: Final = 0x80
SKINIT: Final = 0x86
WBINVD: Final = 0x89
MONITOR: Final = 0x8A
MWAIT: Final = 0x8B
NESTED_FAULT: Final = 0x400
FIRST_INTERCEPT: Final = 0x60  # the exit code of bit 0 of the intercept word

# The control block (VMCB): offsets of what we use.
B_INTERCEPT: Final = 0x0C
B_IOPM: Final = 0x40
B_MSRPM: Final = 0x48
B_ASID: Final = 0x58
B_EXIT_INFO_1: Final = 0x78
B_EXIT_INFO_2: Final = 0x80
B_NESTED_ON: Final = 0x90
B_EVENT: Final = 0xA8
B_EVENT_ERROR: Final = 0xAC
B_NESTED_CR3: Final = 0xB0
B_SAVE: Final = 0x400

REGION_FRAMES: Final = 4  # what the kernel gives the CPU for guest mode: host save area, permission maps
SAVE_AREA: Final = 1  # frames of that region; the first is for code
MSR_MAP: Final = 2  # takes two


def first_vmrun(memory: Memory, engine: Engine, region: int, block: int, nested_cr3: int) -> bytes:
    """Enter guest mode once by the real instruction; the CPU state it leaves is the mould of all virtual CPUs."""
    before = bytearray(e.ENV_SIZE)
    engine.swap(before, engine.reset_state)
    at = region
    engine.write_msr(0xC0000080, 1 << 12)  # EFER.SVME
    engine.write_msr(0xC0010117, at + SAVE_AREA * PAGE_SIZE)  # VM_HSAVE_PA
    engine.write_register("CR0", 0x11)
    memory.write(at, b"\x0f\x01\xd8")  # VMRUN
    memory.fill(block, PAGE_SIZE)
    for offset, form, value in (
        (B_INTERCEPT, "<Q", 1 << VMRUN - FIRST_INTERCEPT),
        (B_IOPM, "<Q", at + MSR_MAP * PAGE_SIZE),
        (B_MSRPM, "<Q", at + MSR_MAP * PAGE_SIZE),
        (B_ASID, "<I", 1),
        (B_NESTED_ON, "<Q", 1),
        (B_NESTED_CR3, "<Q", nested_cr3),
        (B_SAVE + 0xD0, "<Q", 1 << 12),  # EFER
        (B_SAVE + 0x158, "<Q", 0x10),  # CR0: real mode
        (B_SAVE + 0x160, "<Q", 0x400),  # DR7
        (B_SAVE + 0x168, "<Q", 0xFFFF0FF0),  # DR6
        (B_SAVE + 0x170, "<Q", 2),  # RFLAGS
    ):
        memory.write(block + offset, struct.pack(form, value))
    frame = [0] * 10
    frame[EIP], frame[EFLAGS], frame[EAX] = at, 2, block
    scratch = at + PAGE_SIZE - 64
    memory.write(scratch, struct.pack("<10I", *frame))
    for offset in (0x00, 0x10, 0x20, 0x30):  # ES, CS, SS, DS
        memory.write(block + B_SAVE + offset, struct.pack("<HHIQ", 0, 0x93, 0xFFFF, 0))
    event = engine.run(scratch, engine.cycles + 1)
    if not engine.env32[e.ENV_HFLAGS >> 2] & e.HF_GUEST:
        raise RuntimeError(f"VMRUN did not enter guest mode (event {event}): the engine is not the one we probed")
    guest = bytearray(e.ENV_SIZE)
    engine.swap(guest, before)
    memory.fill(at, PAGE_SIZE)
    engine.forget_all_code()
    return bytes(guest)
