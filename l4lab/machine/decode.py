# SPDX-License-Identifier: GPL-2.0-or-later
"""What VT-x hardware tells about an exiting instruction and the engine does not: its length and its operands.

Decoding itself is Capstone's; here its answer is put into the terms of the exit qualification, and remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_LENGTH = 15  # bytes of an IA-32 instruction
REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")  # in the CPU's numbering


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction. Memory operands are (segment, base, index, scale, displacement), names or ''."""

    length: int
    name: str  # Intel mnemonic, without prefixes
    opcode: bytes  # without prefixes and operands, one to three bytes
    register: int  # the general register operand of MOV CR/DR, LMSW and SMSW, in the CPU's numbering
    control: int  # the control or debug register's number
    repeat: bool
    memory: tuple[str, str, str, int, int] | None
    operand_size: int  # 2 or 4
    address_size: int
    register_field: int  # of its ModRM byte: for some opcodes part of them
    modifies: bool  # its memory operand is read and written: where it may not be written, that is a write


# Of these Capstone says that they only read their operand.
_MODIFYING = frozenset(("cmpxchg", "cmpxchg8b", "rol", "ror", "rcl", "rcr", "arpl"))


@functools.cache
def _disassembler(bits: int) -> Any:
    import capstone

    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32 if bits == 32 else capstone.CS_MODE_16)
    disassembler.detail = True
    return disassembler


@functools.lru_cache(maxsize=65536)
def decode(code: bytes, bits: int = 32) -> Instruction | None:
    """Decode the first instruction of `code` (up to 15 bytes); None if there is none."""
    found = next(_disassembler(bits).disasm(code, 0, 1), None)
    if found is None:
        return None
    register = control = 0
    memory = None
    modifies = False
    for operand in found.operands:
        if operand.type == 1:  # a register
            name = found.reg_name(operand.reg)
            if name in REGISTERS or f"e{name}" in REGISTERS:  # LMSW and SMSW have them of 16 bits
                register = REGISTERS.index(name if name in REGISTERS else f"e{name}")
            elif name[:2] in ("cr", "dr"):
                control = int(name[2:])
        elif operand.type == 3:  # memory
            m = operand.mem
            modifies = operand.access & 3 == 3 or found.mnemonic.split()[-1] in _MODIFYING
            memory = (
                found.reg_name(m.segment) or "",
                found.reg_name(m.base) or "",
                found.reg_name(m.index) or "",
                m.scale,
                m.disp,
            )
    return Instruction(
        length=found.size,
        name=found.mnemonic.split()[-1],
        opcode=bytes(byte for byte in found.opcode if byte) or bytes(found.opcode[:1]),
        register=register,
        control=control,
        repeat=found.prefix[0] in (0xF2, 0xF3),
        memory=memory,
        operand_size=_operand_size(found, bits),
        address_size=found.addr_size,
        register_field=found.modrm >> 3 & 7,
        modifies=modifies,
    )


def _operand_size(found: Any, bits: int) -> int:
    """16 or 32 bits: 66 in front turns it around. (Capstone knows of far pointers and of stacks only how wide.)"""
    return 2 if (bits == 32) is (found.prefix[2] == 0x66) else 4


class Access(NamedTuple):
    """Memory that an instruction reads or writes, in registers as they are before it."""

    segment: str
    base: str
    scaled: str
    scale: int
    displacement: int
    size: int
    writes: bool
    mask: int  # of the offset
    on_stack: bool  # then the stack's width decides instead


_PUSHES = {"push": 1, "call": 1, "pushf": 1, "pushfd": 1, "pushaw": 8, "pushal": 8, "enter": 1, "lcall": 2}
_POPS = {"pop": 1, "ret": 1, "popf": 1, "popfd": 1, "popaw": 8, "popal": 8, "retf": 2, "iret": 3, "iretd": 3}
_NO_ACCESS = frozenset(("lea", "nop", "invlpg", "prefetch", "prefetchw", "prefetchnta", "clflush"))


@functools.lru_cache(maxsize=4096)
def accesses(code: bytes, bits: int) -> tuple[Access, ...]:
    """What memory the first instruction of `code` touches, but for descriptor tables and task-state segments."""
    found = next(_disassembler(bits).disasm(code, 0, 1), None)
    if found is None:
        return ()
    name = found.mnemonic.split()[-1]
    mask = 0xFFFF if found.addr_size == 2 else 0xFFFFFFFF
    touched: list[Access] = []
    for operand in found.operands:
        if operand.type == 3 and name not in _NO_ACCESS:
            m = operand.mem
            base, index = found.reg_name(m.base) or "", found.reg_name(m.index) or ""
            segment = found.reg_name(m.segment) or ("ss" if base in ("esp", "ebp", "bp") else "ds")
            writes = bool(operand.access & 2)
            touched.append(Access(segment, base, index, m.scale, m.disp, operand.size, writes, mask, False))
    width = _operand_size(found, bits)  # that of a stack slot, too
    if name in _PUSHES:
        size = width * _PUSHES[name]
        touched.append(Access("ss", "esp", "", 1, -size, size, True, mask, True))
    elif name in _POPS:
        touched.append(Access("ss", "esp", "", 1, 0, width * _POPS[name], False, mask, True))
    elif name == "leave":
        touched.append(Access("ss", "ebp", "", 1, 0, width, False, mask, True))
    return tuple(touched)


_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
_OPERAND_SIZE = 0x66
CMPXCHG8B = b"\x0f\xc7"


def _instructions(code: bytes, bits: int) -> Iterator[tuple[int, bytes]]:
    """Each with where it begins, as the engine takes them: it minds no prefix that the instruction cannot have."""
    begin = at = 0
    while at < len(code):
        for offset, size, _, _ in _disassembler(bits).disasm_lite(code[at:], at):
            yield begin, code[begin : offset + size]
            begin = at = offset + size
        if code[at : at + 1] not in (bytes([prefix]) for prefix in _PREFIXES):
            return
        at += 1


def special_instructions(code: bytes, bits: int, guest: bool, v8086: bool) -> list[int]:
    """Where in a block of code there is CMPXCHG8B; of a guest's, also INS, IRET, and far jumps and calls.

    In virtual-8086 mode, PUSHFD too.
    """
    found = []
    for at, whole in _instructions(code, bits):
        instruction = whole.lstrip(_PREFIXES)
        far = len(instruction) > 1 and instruction[0] == 0xFF and instruction[1] >> 3 & 7 in (3, 5)
        pushes_flags = v8086 and instruction == b"\x9c" and _OPERAND_SIZE in whole
        stops = far or pushes_flags or instruction[:1] in (b"\x6c", b"\x6d", b"\x9a", b"\xea", b"\xcf")
        if (stops and guest) or instruction[:2] == CMPXCHG8B:
            found.append(at)
    return found


def disassemble(code: bytes, address: int, bits: int = 32, count: int = 16) -> list[tuple[int, bytes, str]]:
    """Up to `count` instructions as (address, bytes, text); a byte that is none is shown as `db`."""
    lines: list[tuple[int, bytes, str]] = []
    at = 0
    while at < len(code) and len(lines) < count:
        found = next(_disassembler(bits).disasm(code[at:], address + at, 1), None)
        if found is None:
            lines.append((address + at, code[at : at + 1], f"db 0x{code[at]:02x}"))
            at += 1
        else:
            lines.append((address + at, bytes(found.bytes), f"{found.mnemonic} {found.op_str}".strip()))
            at += found.size
    return lines
