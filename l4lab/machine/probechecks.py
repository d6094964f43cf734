# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine does, as far as a core relies on it: short programs for the CPU, and what must be found then."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

from l4lab.machine import engine as e
from l4lab.machine.probebench import (
    BLOCK,
    CODE,
    DIRECTORY,
    FRAME,
    GDT,
    GENERAL,
    GUEST_CODE,
    HANDLER,
    STACK,
    TABLE,
    Bench,
    expect,
    peek,
)

_MISSING = 0x00800000  # no page there, when paging is on
_SPIN = b"\xeb\xfe"


def _registers(b: Bench) -> None:
    """Registers and EIP stand where we read and write them, and runs end after exactly so many instructions."""
    b.load(b"\x40\x40\x41\xeb\xfb", eax=0x100)  # inc eax, inc eax, inc ecx, jmp to the first
    for cycles, eip, eax in ((1, 1, 0x101), (2, 3, 0x102), (1, 0, 0x102), (3, 3, 0x104), (6, 1, 0x107)):
        expect("the event", e.EVENT_BUDGET, b.run(cycles))
        expect("EIP", hex(CODE + eip), hex(b.frame(0)))
        expect("EAX", hex(eax), hex(b.frame(9)))
    b.expect(CODE + 1, 13)
    for i, name in enumerate(GENERAL):
        expect(name, b.engine.read_register(name), b.word(8 * i))
    expect("EIP", b.engine.read_register("EIP"), b.word(e.ENV_EIP))
    expect("EFLAGS", b.engine.read_register("EFLAGS"), b.word(e.ENV_EFLAGS))


def _events(b: Bench) -> None:
    """INT n, faults in the midst of a block and unknown instructions say what they are, and what retired is known."""
    b.load(b"\x41\xcd\x30\x41")
    expect("the event of INT 30h", 0x30, b.run(100))
    b.expect(CODE + 3, 2)
    expect("exception_is_int", 1, b.word(e.ENV_IS_INT))
    expect("exception_next_eip", CODE + 3, b.word(e.ENV_NEXT_EIP))
    expect("INFO_IS_INT", 1, b.engine.info[e.INFO_IS_INT])
    b.load(b"\x31\xc9\x41\x49\xf7\xf1\x41", eip=CODE + 0x100)  # xor, inc, dec ecx, div ecx
    expect("the event of a division by zero", 0, b.run(100))
    b.expect(CODE + 0x104, 5)
    expect("exception_is_int", 0, b.word(e.ENV_IS_INT))
    expect("old_exception", 0, b.word(e.ENV_OLD_EXCEPTION))
    b.load(b"\x41\x0f\x0b", eip=CODE + 0x200)
    expect("the event of UD2", 6, b.run(100))
    b.expect(CODE + 0x201, 6)
    b.load(b"\x33\xc9\xb0\x7f\x04\x7f\xf7\xf1", eip=CODE + 0x300)  # xor, an addition that overflows, div ecx
    expect("the event of a division by zero", 0, b.run(100))
    expect("EFLAGS", hex(0x892), hex(b.frame(1)))


def _strings(b: Bench) -> None:
    """The direction of string instructions stands where we read it; repetitions done at once count as all others."""
    code = b"\xfd\x90\xfc\xbf" + struct.pack("<I", DIRECTORY - 8) + b"\xb9\x00\x04\0\0\xf3\xab" + _SPIN
    b.load(code, eax=0x12345678)  # std, nop, cld, mov edi, mov ecx, rep stosd
    for cycles, direction in ((2, -1), (1, 1)):
        b.run(cycles)
        expect("the direction", direction & 0xFFFFFFFF, b.word(e.ENV_DIRECTION))
    b.run(2 + 0x300)
    b.expect(CODE + 13, 5 + 0x300)
    expect("ECX", 0x100, b.frame(8))
    b.run(0x100 + 2)
    b.expect(CODE + len(code) - 2, 5 + 0x400 + 2)
    stored = b.memory.read(DIRECTORY - 8, 0x1008)
    expect("what REP STOSD stores", struct.pack("<I", 0x12345678) * 0x400 + bytes(8), stored)


def _ports(b: Bench) -> None:
    """A port access is stopped before it changes anything."""
    b.load(b"\x41\xe5\x60\x41\xe7\x61", eax=0x12345678)  # inc ecx, in eax, 60h, inc ecx, out 61h, eax
    for event, eip, retired, port, value in (
        (e.EVENT_IN, CODE + 1, 1, 0x60, 0),
        (e.EVENT_OUT, CODE + 4, 2, 0x61, 0x12345678),
    ):
        expect("the event", event, b.run(100))
        b.expect(eip, retired)
        info = b.engine.info
        expect("the port", (port, 4, value), (info[e.INFO_PORT], info[e.INFO_SIZE], info[e.INFO_VALUE]))
        expect("EAX", 0x12345678, b.frame(9))
        b.memory.set_word(FRAME >> 2, CODE + 3)
    b.load(b"\xb0\x7f\x04\x7f\xe5\x60", eip=CODE + 0x100)  # an addition that overflows, in eax, 60h
    expect("the event", e.EVENT_IN, b.run(100))
    expect("EFLAGS", hex(0x892), hex(b.frame(1)))


def _segments(b: Bench) -> None:
    """Segment registers with their hidden parts, LDTR, TR, GDTR and IDTR stand where we read and write them."""
    base, limit = 0x00765432, 0x54321
    low = limit & 0xFFFF | base << 16 & 0xFFFF0000
    high = base >> 16 | limit & 0xF0000 | 0x400000
    entries = {1: (0xFFFF, 0xCF9B00), 2: (0xFFFF, 0xCF9300)}
    entries |= dict.fromkeys((3, 4, 5, 6), (low, high | 0x9300)) | {7: (low, high | 0x8200), 8: (low, high | 0x8900)}
    for index, words in entries.items():
        b.memory.write(GDT + 8 * index, struct.pack("<2I", *words))
    b.engine.write_register("GDTR", (0, GDT, 0x7F, 0))
    b.engine.write_register("IDTR", (0, 0x1234, 0x567, 0))
    loads = b"\xb8\x18\0\0\0\x8e\xc0\xb0\x20\x8e\xd8\xb0\x28\x8e\xe0\xb0\x30\x8e\xe8"  # ES 18, DS 20, FS 28, GS 30
    loads += b"\xb0\x38\x0f\x00\xd0\xb0\x40\x0f\x00\xd8\xb0\x10\x8e\xd0"  # LDTR 38, TR 40, SS 10
    far = struct.pack("<BIH", 0xEA, CODE + len(loads) + 7, 8)  # CS 8
    b.load(loads + far + b"\x90" + _SPIN)
    expect("the event", e.EVENT_BUDGET, b.run(15))
    for name, at, selector in (
        *(("ES", e.ENV_SEGS, 0x18), ("DS", e.ENV_SEGS + 72, 0x20), ("FS", e.ENV_SEGS + 96, 0x28)),
        *(("GS", e.ENV_SEGS + 120, 0x30), ("LDTR", e.ENV_LDT, 0x38), ("TR", e.ENV_TR, 0x40)),
    ):
        found = (b.word(at), b.word(at + 8), b.word(at + 16), b.word(at + 20) >> 15 & 1)
        expect(name, (selector, base, limit, 1), found)
    expect("SS", (0x10, 0, 0xFFFFFFFF), tuple(b.word(e.ENV_SEGS + 48 + n) for n in (0, 8, 16)))
    expect("CS", (8, 0, 0xFFFFFFFF), tuple(b.word(e.ENV_SEGS + 24 + n) for n in (0, 8, 16)))
    expect("GDTR", (GDT, 0x7F), (b.word(e.ENV_GDT + 8), b.word(e.ENV_GDT + 16)))
    expect("IDTR", (0x1234, 0x567), (b.word(e.ENV_IDT + 8), b.word(e.ENV_IDT + 16)))


def _system_registers(b: Bench) -> None:
    """Control registers, debug registers and the MSRs that we keep stand where we read and write them."""
    engine = b.engine
    for n, value in ((2, 0x12345678), (3, 0x5000), (4, 0x610)):
        engine.write_register(f"CR{n}", value)
        expect(f"CR{n}", value, b.word(e.ENV_CR + 8 * n))
    expect("CR0", engine.read_register("CR0"), b.word(e.ENV_CR))
    engine.write_msr(0xC0000080, 1 << 12)
    expect("EFER", 1 << 12, b.word(e.ENV_EFER) & 1 << 12)
    for n, at in enumerate((e.ENV_SYSENTER_CS, e.ENV_SYSENTER_ESP, e.ENV_SYSENTER_EIP)):
        engine.write_msr(0x174 + n, 0x1230 + n)
        expect(f"MSR {0x174 + n:#x}", 0x1230 + n, b.word(at))
    b.load(b"\x0f\x23\xd0\x90" + _SPIN, eax=0x4321)  # mov dr2, eax
    b.run(2)
    expect("DR2", 0x4321, b.word(e.ENV_DR + 16))


def _interrupt_window(b: Bench) -> None:
    """The shadow of STI is a flag of its own, and a run can end at the first instruction that could be interrupted."""
    b.load(b"\x90\xfb\x90\x90" + _SPIN)
    b.run(2)
    expect("HF_INHIBIT_IRQ", e.HF_INHIBIT_IRQ, b.word(e.ENV_HFLAGS) & e.HF_INHIBIT_IRQ)
    b.load(b"\x90\xfb\x90\x90" + _SPIN, eip=CODE + 0x100)
    b.engine.env32[e.ENV_HFLAGS >> 2] &= ~e.HF_INHIBIT_IRQ
    b.engine.set_window(True)
    expect("the event", e.EVENT_WINDOW, b.run(100))
    b.expect(CODE + 0x103, 5)


def _memory(b: Bench) -> None:
    """Page faults give their error code, also those of a fetch; the TLB is where we look; changed code is seen."""
    b.memory.write(DIRECTORY, struct.pack("<I", TABLE | 7))
    b.memory.write(TABLE, struct.pack("<16I", *(page << 12 | 7 for page in range(16))))
    b.engine.write_register("CR3", DIRECTORY)
    b.engine.write_register("CR0", 0x80010011)
    b.load(b"\x41\xa3" + struct.pack("<I", _MISSING))  # inc ecx, mov [missing], eax
    expect("the event of a store to nowhere", 14, b.run(100))
    b.expect(CODE + 1, 1)
    expect("its error code", (2, 2), (b.word(e.ENV_ERROR_CODE), b.engine.info[e.INFO_ERROR_CODE]))
    expect("old_exception", 14, b.word(e.ENV_OLD_EXCEPTION))
    expect("where it came from", True, b.word(e.ENV_RETURN_ADDRESS) != 0)
    b.load(b"\x41\xe9" + struct.pack("<i", _MISSING - CODE - 0x106), eip=CODE + 0x100)  # inc ecx, jmp missing
    expect("the event of a jump to nowhere", 14, b.run(100))
    b.expect(_MISSING, 3)
    expect("where it came from", 0, b.word(e.ENV_RETURN_ADDRESS))
    code = b"\x41\xa3" + struct.pack("<I", STACK) + b"\x41\x41" + _SPIN  # inc ecx, mov [stack], eax, inc ecx twice
    b.load(code, eax=0x77, eip=CODE + 0x200)
    b.run(2)
    if b.engine.kind != "python":
        expect("the code in the TLB", code[:8], b.engine.code_at(CODE + 0x200)[:8])
        expect("a page in the TLB", 1, _tlb_entries(b, STACK & ~0xFFF))
    b.memory.write(CODE + 0x206, b"\x42")
    b.run(1)
    expect("what changed code did", (3, 2), (b.frame(7), b.frame(8)))


def _tlb_entries(b: Bench, page: int) -> int:
    """How many entries map `page` to itself and let it be written, in the form that the native core expects."""
    tables = ctypes.addressof(ctypes.c_char.from_buffer(b.engine.env)) - e.TLB_TABLES
    found = 0
    for mode in range(3):
        mask, first = struct.unpack("<2Q", peek(tables + 16 * mode, 16))
        entry = struct.unpack("<8Q", peek(first + (page >> 12 << 6 & mask), 64))
        found += entry[1] & ~0x400 == page and entry[3] == page
    return found


def _contexts(b: Bench) -> None:
    """The CPU state can be taken out and put back as it is."""
    b.load(b"\x40\x40" + _SPIN, eax=5)
    b.run(1)
    saved = bytearray(e.ENV_SIZE)
    b.engine.swap(saved, b.engine.reset_state)
    expect("EAX", 0, b.engine.read_register("EAX"))
    b.engine.swap(bytearray(e.ENV_SIZE), saved)
    expect("EAX", 6, b.engine.read_register("EAX"))


def _guest_state(b: Bench) -> None:
    """VMRUN leaves the controls of its block where we read and write them."""
    b.enter_guest(b"\xf4")
    expect("HF_GUEST", e.HF_GUEST, b.word(e.ENV_HFLAGS) & e.HF_GUEST)
    for name, at, value in (
        *(("the block", e.ENV_VM_VMCB, BLOCK), ("nested CR3", e.ENV_NESTED_CR3, DIRECTORY)),
        *(("intercepts", e.ENV_INTERCEPT, 0x00040000), ("more intercepts", e.ENV_INTERCEPT + 4, 0x21)),
        *(("of CR", e.ENV_INTERCEPT_CR, 0x00080001), ("of DR", e.ENV_INTERCEPT_DR, 0x00040002)),
        *(("of exceptions", e.ENV_INTERCEPT_EXCEPTIONS, 0x01000000), ("the TSC offset", e.ENV_TSC_OFFSET, 0x23456789)),
    ):
        expect(name, hex(value), hex(b.word(at)))


def _fpu(b: Bench) -> None:
    """The registers of x87 and SSE, and what their arithmetic obeys when a control word is written."""
    b.load(b"\xdb\xe3\xd9\xe8")  # fninit, fld1
    b.run(2)
    expect("TOP", 7, b.word(e.ENV_FPU_TOP))
    expect("the empty ones", [0x01010101, 0x00010101], [b.word(e.ENV_FPU_EMPTY + n) for n in (0, 4)])
    expect("R7", [0, 1 << 31, 0x3FFF], [b.word(e.ENV_FPU_REGISTERS + 7 * 16 + n) for n in (0, 4, 8)])
    b.engine.write_register("FPCW", 0x0E7F)
    expect("FCW", hex(0x0E7F), hex(b.word(e.ENV_FPU_STATUS) >> 16))
    expect("rounding and precision", hex(64 << 24 | 3 << 8), hex(b.word(e.ENV_X87_STATUS) & 0xFF00FF00))
    b.engine.write_register("MXCSR", 0xFFC0)
    expect("MXCSR", hex(0xFFC0), hex(b.word(e.ENV_MXCSR)))
    expect("SSE's rounding", hex(3 << 8), hex(b.word(e.ENV_SSE_STATUS) & 0xFF00))
    expect("what is flushed", (1, 1 << 8), (b.word(e.ENV_X87_STATUS + 4), b.word(e.ENV_SSE_STATUS + 4) & 0xFF00))
    b.engine.write_register("XMM7", 0x1234567)
    expect("XMM7", hex(0x1234567), hex(b.word(e.ENV_XMM + 7 * 64)))


def _guest_events(b: Bench) -> None:
    """Events of a guest go through its own table of vectors, and its exits come back as numbers from 100h."""
    hlt = 1 << 24  # the intercept
    b.enter_guest(b"\x40\xcd\x21")  # inc ax, int 21h
    b.engine.env32[e.ENV_INTERCEPT >> 2] |= hlt
    b.memory.set_word(FRAME >> 2, GUEST_CODE)
    expect("the event", e.VM_EXIT + 0x78, b.run(100))
    expect("EIP", hex(HANDLER + 0x21), hex(b.frame(0)))
    expect("instructions retired", 3, b.engine.retired - b.retired)
    for vector, kind, back in ((0x20, 0, 0), (13, 1, 0), (0x22, 2, 2)):
        b.memory.set_word(FRAME >> 2, GUEST_CODE)
        b.engine.inject(vector, kind, 0, back)
        before = b.engine.cycles
        expect(f"the event after injecting {vector:#x}", e.VM_EXIT + 0x78, b.run(100))
        expect("EIP", hex(HANDLER + vector), hex(b.frame(0)))
        expect("what it cost", 1, b.engine.cycles - before)
        pushed = struct.unpack("<H", b.memory.read(b.frame(5), 2))[0]
        expect("the address pushed", hex(GUEST_CODE + back), hex(pushed))


def _guest_nmi(b: Bench) -> None:
    """Whether NMIs are blocked is a bit of the CPU state, which IRET clears."""
    b.enter_guest(b"\xfd\xcf")  # STD, because the engine keeps DF in a word of its own close by
    b.memory.write(b.frame(5), struct.pack("<3H", GUEST_CODE, 0, 2))
    b.memory.set_word(FRAME >> 2, GUEST_CODE)
    b.engine.env32[e.ENV_HFLAGS2 >> 2] |= e.HF2_NMI
    b.run(1)
    expect("what is above its flags", 0, b.word(e.ENV_HFLAGS2) & ~0xFF)
    b.run(1)
    expect("blocking by NMI", 0, b.word(e.ENV_HFLAGS2) & e.HF2_NMI)


def _guest_specials(b: Bench) -> None:
    """The engine stops before INS of a guest when asked to, wherever in a block it is."""
    b.enter_guest(b"\x40\x40\x6c\x40")  # inc ax, inc ax, insb, inc ax
    b.memory.set_word(FRAME >> 2, GUEST_CODE)
    for retired in (2, 0):
        before = b.engine.retired
        expect("the event", e.EVENT_BEFORE, b.run(100))
        expect("EIP", hex(GUEST_CODE + 2), hex(b.frame(0)))
        expect("instructions retired", retired, b.engine.retired - before)
    b.engine.go_on()
    expect("the event after going on", e.EVENT_IN, b.run(100))


CHECKS: tuple[Callable[[Bench], None], ...] = (
    *(
        _registers,
        _events,
        _strings,
        _ports,
        _segments,
        _system_registers,
        _interrupt_window,
        _memory,
        _contexts,
    ),
    *(_guest_state, _fpu, _guest_events, _guest_nmi, _guest_specials),
)
