# SPDX-License-Identifier: GPL-2.0-or-later
"""Is the engine the one we know? Every private offset and habit that a core relies on, checked by behaviour.

Runs once per process, on a small machine of its own, when the first engine is made. Lives here: whether the engine's
structures lie where we look for them. A wrong pointer would end the process before it could be reported, so pointers
are looked at first, through the operating system where it can read memory without believing an address. What the
engine does is checked in probechecks.py. The docstring of each check is the assumption, and ends up in the message when
it does not hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Callable

from l4lab.errors import LabError
from l4lab.machine import engine as e
from l4lab.machine.probebench import (
    CODE,
    GENERAL,
    OWN_MEMORY,
    SIZE,
    Bench,
    Wrong,
    expect,
    peek,
)
from l4lab.machine.probechecks import CHECKS

_MODE_BITS, _MODE = 0x3FFFF, 0xF0  # of a block of flat 32-bit code in ring 0, as the engine comes up


def probe(kind: str) -> None:
    """Check all that the core of this kind (native, python) relies on; LabError if something does not hold."""
    what: Callable[..., None] = _pointers
    try:
        _pointers()
        what = _translator
        _translator(kind)
        if kind != "python":
            what = _blocks
            _blocks()
        bench = Bench(kind)
        for what in CHECKS:
            bench.renew()
            what(bench)
    except (Wrong, RuntimeError) as wrong:
        import unicorn

        other = ", or L4LAB_ENGINE=python, which relies on less" if kind != "python" else ""
        raise LabError(
            f"this build of unicorn ({unicorn.__version__}, {platform.system()} {platform.machine()}) is not the one "
            f"that l4lab's {kind} core knows. It relies on this: {what.__doc__} But {wrong}. "
            "l4lab is tested with the wheels of unicorn 2.1.4 for 64-bit Linux. "
            f"Try: pip install --force-reinstall unicorn==2.1.4{other}."
        ) from None


def _pointers() -> None:
    """The engine's handle leads to its CPU, the CPU to its state, its TLB and its table of functions."""
    from unicorn import x86_const

    uc = e.new_unicorn()
    for i, name in enumerate(GENERAL):
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), 0x1111_0000 + i)
    (cpu,) = struct.unpack("<Q", peek(e.handle_of(uc) + e.UC_CPU, 8))
    registers = struct.unpack("<8Q", peek(cpu + e.CPU_ENV, 64))
    expect("the list of registers", [0x1111_0000 + i for i in range(8)], list(registers))
    (functions,) = struct.unpack("<Q", peek(cpu + e.CPU_CLASS, 8))
    look_out = e.function_addresses()["x86_cpu_exec_interrupt_x86_64"]
    expect("its interrupt function in the table", 1, struct.unpack("<64Q", peek(functions, 512)).count(look_out))
    expect("cflags_next_tb", 0xFFFFFFFF, struct.unpack("<I", peek(cpu + e.CPU_CFLAGS, 4))[0])
    for mode in range(3):
        mask, first = struct.unpack("<2Q", peek(cpu + e.CPU_ENV - e.TLB_TABLES + 16 * mode, 16))
        entries = (mask >> 6) + 1
        expect("the size of a TLB", (0, 0), (mask & 63, entries & entries - 1))
        peek(first + mask, 64)
    expect("interrupt_request", 0, struct.unpack("<I", peek(cpu + e.CPU_INTERRUPT_REQUEST, 4))[0])


def _translator(kind: str) -> None:
    """The engine's handle leads to its translator, whose state and numbers of operations are those we know."""
    import unicorn

    uc = e.new_unicorn()
    uc.mem_map(0, SIZE)
    uc.mem_write(CODE, b"\x40\x41\xcd\x30")  # inc eax, inc ecx, int 30h
    with contextlib.suppress(unicorn.UcError):
        uc.emu_start(CODE, 0)
    handle = e.handle_of(uc)
    (translator,) = struct.unpack("<Q", peek(handle + e.UC_TRANSLATOR, 8))
    expect("the translator's engine", handle, struct.unpack("<Q", peek(translator + e.TCG_UC, 8))[0])
    expect("where it was last", CODE + 2, struct.unpack("<Q", peek(translator + e.TCG_PC_START, 8))[0])
    if kind == "python":  # it writes there
        functions, names = e.function_addresses(), ("tcg_func_start_x86_64", "tcg_emit_op_x86_64")
        begin, emit = (ctypes.PYFUNCTYPE(ctypes.c_void_p, *[ctypes.c_void_p] * 2)(functions[name]) for name in names)
        begin(translator, None)
        for count in range(3):
            at = translator + e.TCG_OPERATIONS
            expect("the number of operations", count, struct.unpack("<I", peek(at, 4))[0])
            emit(translator, None)
        return
    (state,) = struct.unpack("<Q", peek(translator + e.TCG_ENV, 8))
    expect("the name of the CPU's state", b"env", _text(translator + state + e.TEMPORARY_NAME))
    (definitions,) = struct.unpack("<Q", peek(translator + e.TCG_DEFINITIONS, 8))
    for number, name in e.OPERATIONS.items():
        expect(f"operation {number}", name.encode(), _text(definitions + e.DEFINITION_SIZE * number))
    (cpu,) = struct.unpack("<Q", peek(handle + e.UC_CPU, 8))
    (credit,) = struct.unpack("<Q", peek(cpu + e.CPU_CREDIT_POINTER, 8))
    expect("where the credit is", cpu + e.CPU_ENV - e.CREDIT, credit)
    expect("the credit and what is behind it", bytes(e.CREDIT), peek(credit, e.CREDIT))


def _text(pointer: int) -> bytes:
    """The string to which a pointer at this address leads."""
    (address,) = struct.unpack("<Q", peek(pointer, 8))
    return peek(address, 16).split(b"\0")[0]


def _blocks() -> None:
    """The engine describes a block of code directly in front of its translation, and its CPU notes an exception."""
    import unicorn

    if not os.access(OWN_MEMORY, os.R_OK):  # what follows tries pointers that may be none
        return
    uc = e.new_unicorn()
    uc.mem_map(0, SIZE)
    code = b"\x40\xb9\x34\x12\0\0\x41\xcd\x30"  # inc eax, mov ecx, 1234h, inc ecx, int 30h
    uc.mem_write(CODE, code)
    (cpu,) = struct.unpack("<Q", peek(e.handle_of(uc) + e.UC_CPU, 8))
    expect("exception_index", -1, struct.unpack("<i", peek(cpu + e.CPU_EXCEPTION_INDEX, 4))[0])
    with contextlib.suppress(unicorn.UcError):  # INT 30h, which nobody takes here
        uc.emu_start(CODE, 0)
    expect("exception_index", 0x30, struct.unpack("<i", peek(cpu + e.CPU_EXCEPTION_INDEX, 4))[0])
    # The CPU remembers the blocks it ran, in front of its state; the only one is ours.
    words = struct.unpack(f"<{e.CPU_ENV // 8}Q", peek(cpu, e.CPU_ENV & ~7))
    blocks = [word for word in words if _describes_a_block(word)]
    expect("the number of blocks", 1, len(blocks))
    block, at = blocks[0], blocks[0] + e.TB_STRUCT
    expect("a block's PC", CODE, struct.unpack("<Q", peek(block + e.TB_PC, 8))[0])
    expect("a block's CS base", 0, struct.unpack("<Q", peek(block + e.TB_CS_BASE, 8))[0])
    expect("a block's mode", _MODE, struct.unpack("<I", peek(block + e.TB_FLAGS, 4))[0] & _MODE_BITS)
    expect("a block's size", len(code), struct.unpack("<H", peek(block + e.TB_SIZE, 2))[0])
    expect("a block's instructions", 4, struct.unpack("<H", peek(block + e.TB_ICOUNT, 2))[0])
    expect("a block's cflags", 0xFF000000, struct.unpack("<I", peek(block + e.TB_CFLAGS, 4))[0])
    expect("a block's pages", (CODE & ~0xFFF, 2**64 - 1), struct.unpack("<2Q", peek(block + e.TB_PAGES, 16)))
    (size,) = struct.unpack("<Q", peek(block + e.TB_CODE_SIZE, 8))
    # Behind the translation: three numbers an instruction, of which the first is how far it is from the one before.
    expect("where its instructions begin", [0, 1, 5, 1], _numbers(peek(at + size, 48))[:12:3])


def _describes_a_block(address: int) -> bool:
    """Does what lies here, if anything, point to code directly behind itself?"""
    if address < 0x1000:
        return False
    try:
        (code,) = struct.unpack("<Q", peek(address + e.TB_CODE, 8))
    except Wrong:
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
