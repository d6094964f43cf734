# SPDX-License-Identifier: GPL-2.0-or-later
"""Is the engine the one we know? Every private offset and habit that a core relies on, checked by behaviour.

Runs once per process, on a small machine of its own, when the first engine is made. Each check is a short program for
the emulated CPU and what must be found afterwards; its docstring is the assumption, and ends up in the message when it
does not hold. A wrong pointer would end the process before it could be reported, so pointers are looked at first,
through the operating system where it can read memory without believing an address.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable

from l4lab.errors import LabError
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.memory import Memory

_CODE, _FRAME, _STACK, _GDT, _DIRECTORY, _TABLE = 0x1000, 0x2000, 0x2F00, 0x3000, 0x4000, 0x5000
_SAVE_AREA, _BLOCK, _MAP, _GUEST_CODE, _HANDLER = 0x6000, 0x7000, 0x8000, 0xC000, 0xD000  # the map takes 3 pages
_SIZE = 0x10000
_MISSING = 0x00800000  # no page there, when paging is on
_GENERAL = ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI")  # the engine's order
_SPIN = b"\xeb\xfe"
_OWN_MEMORY = "/proc/self/mem"


class _Wrong(Exception):
    """Something is not as expected."""


def probe(kind: str) -> None:
    """Check all that the core of this kind (native, python) relies on; LabError if something does not hold."""
    what: Callable[..., None] = _pointers
    try:
        _pointers()
        if kind == "native":
            what = _blocks
            _blocks()
        bench = _Bench(kind)
        for what in _CHECKS:
            bench.renew()
            what(bench)
    except (_Wrong, RuntimeError) as wrong:
        import unicorn

        other = ", or L4LAB_ENGINE=python, which relies on less" if kind == "native" else ""
        raise LabError(
            f"this build of unicorn ({unicorn.__version__}, {platform.system()} {platform.machine()}) is not the one "
            f"that l4lab's {kind} core knows. It relies on this: {what.__doc__} But {wrong}. "
            "l4lab is tested with the wheels of unicorn 2.1.4 for 64-bit Linux. "
            f"Try: pip install --force-reinstall unicorn==2.1.4{other}."
        ) from None


def _expect(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise _Wrong(f"{what} is {found!r} and should be {expected!r}")


def _peek(address: int, size: int) -> bytes:
    """Memory of this process, at an address that may be wrong."""
    try:
        handle = os.open(_OWN_MEMORY, os.O_RDONLY)
    except OSError:  # not Linux: the pinned version has to be enough
        return ctypes.string_at(address, size)
    try:
        found = os.pread(handle, size, address)
    except (OSError, OverflowError):
        found = b""
    finally:
        os.close(handle)
    if len(found) < size:
        raise _Wrong(f"there is no memory at {address + len(found):#x}")
    return found


def _pointers() -> None:
    """The engine's handle leads to its CPU, the CPU to its state, its TLB and its table of functions."""
    from unicorn import x86_const

    uc = e.new_unicorn()
    for i, name in enumerate(_GENERAL):
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), 0x1111_0000 + i)
    (cpu,) = struct.unpack("<Q", _peek(e.handle_of(uc) + e.UC_CPU, 8))
    registers = struct.unpack("<8Q", _peek(cpu + e.CPU_ENV, 64))
    _expect("the list of registers", [0x1111_0000 + i for i in range(8)], list(registers))
    (functions,) = struct.unpack("<Q", _peek(cpu + e.CPU_CLASS, 8))
    look_out = e.function_addresses()["x86_cpu_exec_interrupt_x86_64"]
    _expect("its interrupt function in the table", 1, struct.unpack("<64Q", _peek(functions, 512)).count(look_out))
    _expect("cflags_next_tb", 0xFFFFFFFF, struct.unpack("<I", _peek(cpu + e.CPU_CFLAGS, 4))[0])
    for mode in range(3):
        mask, first = struct.unpack("<2Q", _peek(cpu + e.CPU_ENV - e.TLB_TABLES + 16 * mode, 16))
        entries = (mask >> 6) + 1
        _expect("the size of a TLB", (0, 0), (mask & 63, entries & entries - 1))
        _peek(first + mask, 64)
    _expect("interrupt_request", 0, struct.unpack("<I", _peek(cpu + e.CPU_INTERRUPT_REQUEST, 4))[0])


def _blocks() -> None:
    """The engine describes a block of code directly in front of its translation, and its CPU notes an exception."""
    import unicorn

    if not os.access(_OWN_MEMORY, os.R_OK):  # what follows tries pointers that may be none
        return
    uc = e.new_unicorn()
    uc.mem_map(0, _SIZE)
    code = b"\x40\xb9\x34\x12\0\0\x41\xcd\x30"  # inc eax, mov ecx, 1234h, inc ecx, int 30h
    uc.mem_write(_CODE, code)
    (cpu,) = struct.unpack("<Q", _peek(e.handle_of(uc) + e.UC_CPU, 8))
    _expect("exception_index", -1, struct.unpack("<i", _peek(cpu + e.CPU_EXCEPTION_INDEX, 4))[0])
    with contextlib.suppress(unicorn.UcError):  # INT 30h, which nobody takes here
        uc.emu_start(_CODE, 0)
    _expect("exception_index", 0x30, struct.unpack("<i", _peek(cpu + e.CPU_EXCEPTION_INDEX, 4))[0])
    # The CPU remembers the blocks it ran, in front of its state; the only one is ours.
    words = struct.unpack(f"<{e.CPU_ENV // 8}Q", _peek(cpu, e.CPU_ENV & ~7))
    blocks = [word for word in words if _describes_a_block(word)]
    _expect("the number of blocks", 1, len(blocks))
    block, at = blocks[0], blocks[0] + e.TB_STRUCT
    _expect("a block's PC", _CODE, struct.unpack("<Q", _peek(block + e.TB_PC, 8))[0])
    _expect("a block's size", len(code), struct.unpack("<H", _peek(block + e.TB_SIZE, 2))[0])
    _expect("a block's instructions", 4, struct.unpack("<H", _peek(block + e.TB_ICOUNT, 2))[0])
    _expect("a block's cflags", 0xFF000000, struct.unpack("<I", _peek(block + e.TB_CFLAGS, 4))[0])
    _expect("a block's pages", (_CODE & ~0xFFF, 2**64 - 1), struct.unpack("<2Q", _peek(block + e.TB_PAGES, 16)))
    (size,) = struct.unpack("<Q", _peek(block + e.TB_CODE_SIZE, 8))
    # Behind the translation: three numbers an instruction, of which the first is how far it is from the one before.
    _expect("where its instructions begin", [0, 1, 5, 1], _numbers(_peek(at + size, 48))[:12:3])


def _describes_a_block(address: int) -> bool:
    """Does what lies here, if anything, point to code directly behind itself?"""
    if address < 0x1000:
        return False
    try:
        (code,) = struct.unpack("<Q", _peek(address + e.TB_CODE, 8))
    except _Wrong:
        return False
    return bool(code == address + e.TB_STRUCT)


def _numbers(data: bytes) -> list[int]:
    """Signed LEB128: seven bits a byte, low ones first; the top bit says that more follow."""
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value - (byte >> 6 << shift))
            value = shift = 0
    return numbers


class _Bench:
    """A small machine in flat protected mode, to run a few instructions on."""

    def __init__(self, kind: str) -> None:
        self.memory = Memory(_SIZE)
        self.engine = Engine(self.memory, kind)
        self.retired = 0

    def renew(self) -> None:
        """As it was in the beginning, but for the clock."""
        self.memory.fill(0, _SIZE)
        self.engine.swap(bytearray(e.ENV_SIZE), self.engine.reset_state)
        self.engine.forget_all_code()
        self.engine.set_window(False)
        self.retired = self.engine.retired

    def load(self, code: bytes, eax: int = 0, eflags: int = 2, eip: int = _CODE) -> None:
        """Put code into memory and start values into the register frame."""
        self.memory.write(eip, code)
        self.memory.write(_FRAME, struct.pack("<10I", eip, eflags, 7, 6, 5, _STACK, 3, 2, 1, eax))

    def run(self, cycles: int) -> int:
        """Go on for so many cycles; the event."""
        event: int = self.engine.run(_FRAME, self.engine.cycles + cycles)
        return event

    def word(self, offset: int) -> int:
        """A word of the CPU state."""
        if offset >= e.ENV_SIZE:
            raise _Wrong(f"the CPU state ends before {offset}")
        return self.engine.env32[offset >> 2]

    def frame(self, index: int) -> int:
        """A word of the register frame."""
        return self.memory.u32[(_FRAME >> 2) + index]

    def expect(self, eip: int, retired: int) -> None:
        """Where the last run ended, and how many instructions have retired since the machine was made new."""
        _expect("EIP", hex(eip), hex(self.frame(0)))
        _expect("the number of instructions", retired, self.engine.retired - self.retired)

    def enter_guest(self, code: bytes) -> None:
        """VMRUN to a guest in real mode at _GUEST_CODE, over tables that map each page to itself."""
        memory, engine = self.memory, self.engine
        memory.write(_DIRECTORY, struct.pack("<I", _TABLE | 7))
        memory.write(_TABLE, struct.pack("<16I", *(page << 12 | 7 for page in range(16))))
        memory.fill(_MAP, 3 * 4096, 0xFF)
        engine.write_msr(0xC0000080, 1 << 12)  # EFER.SVME
        engine.write_msr(0xC0010117, _SAVE_AREA)
        for offset, form, value in (
            *((0x00, "<I", 0x00080001), (0x04, "<I", 0x00040002), (0x08, "<I", 0x01000000)),  # CR, DR, exceptions
            *((0x0C, "<Q", 0x21_0004_0000), (0x40, "<Q", _MAP), (0x48, "<Q", _MAP), (0x50, "<Q", 0x123456789)),
            *((0x58, "<I", 1), (0x90, "<Q", 1), (0xB0, "<Q", _DIRECTORY)),
            *((0x400 + 0xD0, "<Q", 1 << 12), (0x400 + 0x158, "<Q", 0x10), (0x400 + 0x170, "<Q", 2)),
            *((0x400 + 0x178, "<Q", _GUEST_CODE), (0x400 + 0x1D8, "<Q", _STACK), (0x400 + 0x84, "<I", 0x3FF)),  # IDTR
            *((0x400 + 0x168, "<Q", 0xFFFF0FF0), (0x400 + 0x160, "<Q", 0x400)),
        ):
            struct.pack_into(form, memory.u8, _BLOCK + offset, value)
        for segment in (0x00, 0x10, 0x20, 0x30):
            struct.pack_into("<HHIQ", memory.u8, _BLOCK + 0x400 + segment, 0, 0x93, 0xFFFF, 0)
        for vector in range(64):  # each handler is one HLT
            memory.write(4 * vector, struct.pack("<HH", _HANDLER + vector, 0))
        memory.fill(_HANDLER, 64, 0xF4)
        memory.write(_GUEST_CODE, code)
        self.load(b"\x0f\x01\xd8", eax=_BLOCK)
        _expect("what VMRUN ends in", e.EVENT_BUDGET, self.run(1))


# -- the checks --------------------------------------------------------------------------------------------------------


def _registers(b: _Bench) -> None:
    """Registers and EIP stand where we read and write them, and runs end after exactly so many instructions."""
    b.load(b"\x40\x40\x41\xeb\xfb", eax=0x100)  # inc eax, inc eax, inc ecx, jmp to the first
    for cycles, eip, eax in ((1, 1, 0x101), (2, 3, 0x102), (1, 0, 0x102), (3, 3, 0x104), (6, 1, 0x107)):
        _expect("the event", e.EVENT_BUDGET, b.run(cycles))
        _expect("EIP", hex(_CODE + eip), hex(b.frame(0)))
        _expect("EAX", hex(eax), hex(b.frame(9)))
    b.expect(_CODE + 1, 13)
    for i, name in enumerate(_GENERAL):
        _expect(name, b.engine.read_register(name), b.word(8 * i))
    _expect("EIP", b.engine.read_register("EIP"), b.word(e.ENV_EIP))
    _expect("EFLAGS", b.engine.read_register("EFLAGS"), b.word(e.ENV_EFLAGS))


def _events(b: _Bench) -> None:
    """INT n, faults in the midst of a block and unknown instructions say what they are, and what retired is known."""
    b.load(b"\x41\xcd\x30\x41")
    _expect("the event of INT 30h", 0x30, b.run(100))
    b.expect(_CODE + 3, 2)
    _expect("exception_is_int", 1, b.word(e.ENV_IS_INT))
    _expect("exception_next_eip", _CODE + 3, b.word(e.ENV_NEXT_EIP))
    _expect("INFO_IS_INT", 1, b.engine.info[e.INFO_IS_INT])
    b.load(b"\x31\xc9\x41\x49\xf7\xf1\x41", eip=_CODE + 0x100)  # xor, inc, dec ecx, div ecx
    _expect("the event of a division by zero", 0, b.run(100))
    b.expect(_CODE + 0x104, 5)
    _expect("exception_is_int", 0, b.word(e.ENV_IS_INT))
    _expect("old_exception", 0, b.word(e.ENV_OLD_EXCEPTION))
    b.load(b"\x41\x0f\x0b", eip=_CODE + 0x200)
    _expect("the event of UD2", 6, b.run(100))
    b.expect(_CODE + 0x201, 6)
    b.load(b"\x33\xc9\xb0\x7f\x04\x7f\xf7\xf1", eip=_CODE + 0x300)  # xor, an addition that overflows, div ecx
    _expect("the event of a division by zero", 0, b.run(100))
    _expect("EFLAGS", hex(0x892), hex(b.frame(1)))


def _strings(b: _Bench) -> None:
    """The direction of string instructions stands where we read it; repetitions done at once count as all others."""
    code = b"\xfd\x90\xfc\xbf" + struct.pack("<I", _DIRECTORY - 8) + b"\xb9\x00\x04\0\0\xf3\xab" + _SPIN
    b.load(code, eax=0x12345678)  # std, nop, cld, mov edi, mov ecx, rep stosd
    for cycles, direction in ((2, -1), (1, 1)):
        b.run(cycles)
        _expect("the direction", direction & 0xFFFFFFFF, b.word(e.ENV_DIRECTION))
    b.run(2 + 0x300)
    b.expect(_CODE + 13, 5 + 0x300)
    _expect("ECX", 0x100, b.frame(8))
    b.run(0x100 + 2)
    b.expect(_CODE + len(code) - 2, 5 + 0x400 + 2)
    stored = b.memory.read(_DIRECTORY - 8, 0x1008)
    _expect("what REP STOSD stores", struct.pack("<I", 0x12345678) * 0x400 + bytes(8), stored)


def _temporaries(b: _Bench) -> None:
    """A block for which the translator would need too many temporaries is cut."""
    if b.engine.kind != "native" or not sys.platform.startswith("linux"):
        return
    b.load(b"\xd9\xc9" * 300 + _SPIN)  # fxch st(1): one each, never given back
    b.run(301)
    b.expect(_CODE + 600, 301)
    _expect("the number of temporaries", True, 256 < b.engine.temporaries < 300)


def _ports(b: _Bench) -> None:
    """A port access is stopped before it changes anything."""
    b.load(b"\x41\xe5\x60\x41\xe7\x61", eax=0x12345678)  # inc ecx, in eax, 60h, inc ecx, out 61h, eax
    for event, eip, retired, port, value in (
        (e.EVENT_IN, _CODE + 1, 1, 0x60, 0),
        (e.EVENT_OUT, _CODE + 4, 2, 0x61, 0x12345678),
    ):
        _expect("the event", event, b.run(100))
        b.expect(eip, retired)
        info = b.engine.info
        _expect("the port", (port, 4, value), (info[e.INFO_PORT], info[e.INFO_SIZE], info[e.INFO_VALUE]))
        _expect("EAX", 0x12345678, b.frame(9))
        b.memory.u32[_FRAME >> 2] = _CODE + 3
    b.load(b"\xb0\x7f\x04\x7f\xe5\x60", eip=_CODE + 0x100)  # an addition that overflows, in eax, 60h
    _expect("the event", e.EVENT_IN, b.run(100))
    _expect("EFLAGS", hex(0x892), hex(b.frame(1)))


def _segments(b: _Bench) -> None:
    """Segment registers with their hidden parts, LDTR, TR, GDTR and IDTR stand where we read and write them."""
    base, limit = 0x00765432, 0x54321
    low = limit & 0xFFFF | base << 16 & 0xFFFF0000
    high = base >> 16 | limit & 0xF0000 | 0x400000
    entries = {1: (0xFFFF, 0xCF9B00), 2: (0xFFFF, 0xCF9300)}
    entries |= dict.fromkeys((3, 4, 5, 6), (low, high | 0x9300)) | {7: (low, high | 0x8200), 8: (low, high | 0x8900)}
    for index, words in entries.items():
        b.memory.write(_GDT + 8 * index, struct.pack("<2I", *words))
    b.engine.write_register("GDTR", (0, _GDT, 0x7F, 0))
    b.engine.write_register("IDTR", (0, 0x1234, 0x567, 0))
    loads = b"\xb8\x18\0\0\0\x8e\xc0\xb0\x20\x8e\xd8\xb0\x28\x8e\xe0\xb0\x30\x8e\xe8"  # ES 18, DS 20, FS 28, GS 30
    loads += b"\xb0\x38\x0f\x00\xd0\xb0\x40\x0f\x00\xd8\xb0\x10\x8e\xd0"  # LDTR 38, TR 40, SS 10
    far = struct.pack("<BIH", 0xEA, _CODE + len(loads) + 7, 8)  # CS 8
    b.load(loads + far + b"\x90" + _SPIN)
    _expect("the event", e.EVENT_BUDGET, b.run(15))
    for name, at, selector in (
        *(("ES", e.ENV_SEGS, 0x18), ("DS", e.ENV_SEGS + 72, 0x20), ("FS", e.ENV_SEGS + 96, 0x28)),
        *(("GS", e.ENV_SEGS + 120, 0x30), ("LDTR", e.ENV_LDT, 0x38), ("TR", e.ENV_TR, 0x40)),
    ):
        found = (b.word(at), b.word(at + 8), b.word(at + 16), b.word(at + 20) >> 15 & 1)
        _expect(name, (selector, base, limit, 1), found)
    _expect("SS", (0x10, 0, 0xFFFFFFFF), tuple(b.word(e.ENV_SEGS + 48 + n) for n in (0, 8, 16)))
    _expect("CS", (8, 0, 0xFFFFFFFF), tuple(b.word(e.ENV_SEGS + 24 + n) for n in (0, 8, 16)))
    _expect("GDTR", (_GDT, 0x7F), (b.word(e.ENV_GDT + 8), b.word(e.ENV_GDT + 16)))
    _expect("IDTR", (0x1234, 0x567), (b.word(e.ENV_IDT + 8), b.word(e.ENV_IDT + 16)))


def _system_registers(b: _Bench) -> None:
    """Control registers, debug registers and the MSRs that we keep stand where we read and write them."""
    engine = b.engine
    for n, value in ((2, 0x12345678), (3, 0x5000), (4, 0x610)):
        engine.write_register(f"CR{n}", value)
        _expect(f"CR{n}", value, b.word(e.ENV_CR + 8 * n))
    _expect("CR0", engine.read_register("CR0"), b.word(e.ENV_CR))
    engine.write_msr(0xC0000080, 1 << 12)
    _expect("EFER", 1 << 12, b.word(e.ENV_EFER) & 1 << 12)
    for n, at in enumerate((e.ENV_SYSENTER_CS, e.ENV_SYSENTER_ESP, e.ENV_SYSENTER_EIP)):
        engine.write_msr(0x174 + n, 0x1230 + n)
        _expect(f"MSR {0x174 + n:#x}", 0x1230 + n, b.word(at))
    b.load(b"\x0f\x23\xd0\x90" + _SPIN, eax=0x4321)  # mov dr2, eax
    b.run(2)
    _expect("DR2", 0x4321, b.word(e.ENV_DR + 16))


def _interrupt_window(b: _Bench) -> None:
    """The shadow of STI is a flag of its own, and a run can end at the first instruction that could be interrupted."""
    b.load(b"\x90\xfb\x90\x90" + _SPIN)
    b.run(2)
    _expect("HF_INHIBIT_IRQ", e.HF_INHIBIT_IRQ, b.word(e.ENV_HFLAGS) & e.HF_INHIBIT_IRQ)
    b.load(b"\x90\xfb\x90\x90" + _SPIN, eip=_CODE + 0x100)
    b.engine.env32[e.ENV_HFLAGS >> 2] &= ~e.HF_INHIBIT_IRQ
    b.engine.set_window(True)
    _expect("the event", e.EVENT_WINDOW, b.run(100))
    b.expect(_CODE + 0x103, 5)


def _memory(b: _Bench) -> None:
    """Page faults give their error code, also those of a fetch; the TLB is where we look; changed code is seen."""
    b.memory.write(_DIRECTORY, struct.pack("<I", _TABLE | 7))
    b.memory.write(_TABLE, struct.pack("<16I", *(page << 12 | 7 for page in range(16))))
    b.engine.write_register("CR3", _DIRECTORY)
    b.engine.write_register("CR0", 0x80010011)
    b.load(b"\x41\xa3" + struct.pack("<I", _MISSING))  # inc ecx, mov [missing], eax
    _expect("the event of a store to nowhere", 14, b.run(100))
    b.expect(_CODE + 1, 1)
    _expect("its error code", (2, 2), (b.word(e.ENV_ERROR_CODE), b.engine.info[e.INFO_ERROR_CODE]))
    _expect("old_exception", 14, b.word(e.ENV_OLD_EXCEPTION))
    _expect("where it came from", True, b.word(e.ENV_RETURN_ADDRESS) != 0)
    b.load(b"\x41\xe9" + struct.pack("<i", _MISSING - _CODE - 0x106), eip=_CODE + 0x100)  # inc ecx, jmp missing
    _expect("the event of a jump to nowhere", 14, b.run(100))
    b.expect(_MISSING, 3)
    _expect("where it came from", 0, b.word(e.ENV_RETURN_ADDRESS))
    code = b"\x41\xa3" + struct.pack("<I", _STACK) + b"\x41\x41" + _SPIN  # inc ecx, mov [stack], eax, inc ecx twice
    b.load(code, eax=0x77, eip=_CODE + 0x200)
    b.run(2)
    if b.engine.kind == "native":
        _expect("the code in the TLB", code[:8], b.engine.code_at(_CODE + 0x200)[:8])
        _expect("a page in the TLB", 1, _tlb_entries(b, _STACK & ~0xFFF))
    b.memory.write(_CODE + 0x206, b"\x42")
    b.engine.forget_code(_CODE + 0x206, _CODE + 0x207)
    b.run(1)
    _expect("what changed code did", (3, 2), (b.frame(7), b.frame(8)))


def _tlb_entries(b: _Bench, page: int) -> int:
    """How many entries map `page` to itself and let it be written, in the form that the native core expects."""
    tables = ctypes.addressof(ctypes.c_char.from_buffer(b.engine.env)) - e.TLB_TABLES
    found = 0
    for mode in range(3):
        mask, first = struct.unpack("<2Q", _peek(tables + 16 * mode, 16))
        entry = struct.unpack("<8Q", _peek(first + (page >> 12 << 6 & mask), 64))
        found += entry[1] & ~0x400 == page and entry[3] == page
    return found


def _contexts(b: _Bench) -> None:
    """The CPU state can be taken out and put back as it is."""
    b.load(b"\x40\x40" + _SPIN, eax=5)
    b.run(1)
    saved = bytearray(e.ENV_SIZE)
    b.engine.swap(saved, b.engine.reset_state)
    _expect("EAX", 0, b.engine.read_register("EAX"))
    b.engine.swap(bytearray(e.ENV_SIZE), saved)
    _expect("EAX", 6, b.engine.read_register("EAX"))


def _guest_state(b: _Bench) -> None:
    """VMRUN leaves the controls of its block where we read and write them."""
    b.enter_guest(b"\xf4")
    _expect("HF_GUEST", e.HF_GUEST, b.word(e.ENV_HFLAGS) & e.HF_GUEST)
    for name, at, value in (
        *(("the block", e.ENV_VM_VMCB, _BLOCK), ("nested CR3", e.ENV_NESTED_CR3, _DIRECTORY)),
        *(("intercepts", e.ENV_INTERCEPT, 0x00040000), ("more intercepts", e.ENV_INTERCEPT + 4, 0x21)),
        *(("of CR", e.ENV_INTERCEPT_CR, 0x00080001), ("of DR", e.ENV_INTERCEPT_DR, 0x00040002)),
        *(("of exceptions", e.ENV_INTERCEPT_EXCEPTIONS, 0x01000000), ("the TSC offset", e.ENV_TSC_OFFSET, 0x23456789)),
    ):
        _expect(name, hex(value), hex(b.word(at)))


def _fpu(b: _Bench) -> None:
    """The registers of x87 and SSE, and what their arithmetic obeys when a control word is written."""
    b.load(b"\xdb\xe3\xd9\xe8")  # fninit, fld1
    b.run(2)
    _expect("TOP", 7, b.word(e.ENV_FPU_TOP))
    _expect("the empty ones", [0x01010101, 0x00010101], [b.word(e.ENV_FPU_EMPTY + n) for n in (0, 4)])
    _expect("R7", [0, 1 << 31, 0x3FFF], [b.word(e.ENV_FPU_REGISTERS + 7 * 16 + n) for n in (0, 4, 8)])
    b.engine.write_register("FPCW", 0x0E7F)
    _expect("FCW", hex(0x0E7F), hex(b.word(e.ENV_FPU_STATUS) >> 16))
    _expect("rounding and precision", hex(64 << 24 | 3 << 8), hex(b.word(e.ENV_X87_STATUS) & 0xFF00FF00))
    b.engine.write_register("MXCSR", 0xFFC0)
    _expect("MXCSR", hex(0xFFC0), hex(b.word(e.ENV_MXCSR)))
    _expect("SSE's rounding", hex(3 << 8), hex(b.word(e.ENV_SSE_STATUS) & 0xFF00))
    _expect("what is flushed", (1, 1 << 8), (b.word(e.ENV_X87_STATUS + 4), b.word(e.ENV_SSE_STATUS + 4) & 0xFF00))
    b.engine.write_register("XMM7", 0x1234567)
    _expect("XMM7", hex(0x1234567), hex(b.word(e.ENV_XMM + 7 * 64)))


def _guest_events(b: _Bench) -> None:
    """Events of a guest go through its own table of vectors, and its exits come back as numbers from 100h."""
    hlt = 1 << 24  # the intercept
    b.enter_guest(b"\x40\xcd\x21")  # inc ax, int 21h
    b.engine.env32[e.ENV_INTERCEPT >> 2] |= hlt
    b.memory.u32[_FRAME >> 2] = _GUEST_CODE
    _expect("the event", e.VM_EXIT + 0x78, b.run(100))
    _expect("EIP", hex(_HANDLER + 0x21), hex(b.frame(0)))
    _expect("instructions retired", 3, b.engine.retired - b.retired)
    for vector, kind, back in ((0x20, 0, 0), (13, 1, 0), (0x22, 2, 2)):
        b.memory.u32[_FRAME >> 2] = _GUEST_CODE
        b.engine.inject(vector, kind, 0, back)
        before = b.engine.cycles
        _expect(f"the event after injecting {vector:#x}", e.VM_EXIT + 0x78, b.run(100))
        _expect("EIP", hex(_HANDLER + vector), hex(b.frame(0)))
        _expect("what it cost", 1, b.engine.cycles - before)
        pushed = struct.unpack("<H", b.memory.read(b.frame(5), 2))[0]
        _expect("the address pushed", hex(_GUEST_CODE + back), hex(pushed))


def _guest_nmi(b: _Bench) -> None:
    """Whether NMIs are blocked is a bit of the CPU state, which IRET clears."""
    b.enter_guest(b"\xfd\xcf")  # STD, because the engine keeps DF in a word of its own close by
    b.memory.write(b.frame(5), struct.pack("<3H", _GUEST_CODE, 0, 2))
    b.memory.u32[_FRAME >> 2] = _GUEST_CODE
    b.engine.env32[e.ENV_HFLAGS2 >> 2] |= e.HF2_NMI
    b.run(1)
    _expect("what is above its flags", 0, b.word(e.ENV_HFLAGS2) & ~0xFF)
    b.run(1)
    _expect("blocking by NMI", 0, b.word(e.ENV_HFLAGS2) & e.HF2_NMI)


def _guest_specials(b: _Bench) -> None:
    """The engine stops before INS of a guest when asked to, wherever in a block it is."""
    b.enter_guest(b"\x40\x40\x6c\x40")  # inc ax, inc ax, insb, inc ax
    b.memory.u32[_FRAME >> 2] = _GUEST_CODE
    for retired in (2, 0):
        before = b.engine.retired
        _expect("the event", e.EVENT_BEFORE, b.run(100))
        _expect("EIP", hex(_GUEST_CODE + 2), hex(b.frame(0)))
        _expect("instructions retired", retired, b.engine.retired - before)
    b.engine.go_on()
    _expect("the event after going on", e.EVENT_IN, b.run(100))


_CHECKS: tuple[Callable[[_Bench], None], ...] = (
    *(
        _registers,
        _events,
        _strings,
        _temporaries,
        _ports,
        _segments,
        _system_registers,
        _interrupt_window,
        _memory,
        _contexts,
    ),
    *(_guest_state, _fpu, _guest_events, _guest_nmi, _guest_specials),
)
