# SPDX-License-Identifier: GPL-2.0-or-later
"""What VT-x hardware tells about an exiting instruction and the engine does not: its length and its operands.

Decoding itself is Capstone's; here its answer is put into the terms of the exit qualification, and remembered.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 15  # bytes of an IA-32 instruction
REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")  # in the CPU's numbering


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction. Memory operands are (segment, base, index, scale, displacement), names or ''."""

    length: int
    name: str  # Intel mnemonic, without prefixes
    opcode: bytes  # without prefixes and operands, one to three bytes
    register: int  # the general register operand of MOV CR/DR, in the CPU's numbering
    control: int  # the control or debug register's number
    repeat: bool
    memory: tuple[str, str, str, int, int] | None
    operand_size: int
    address_size: int


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
    for operand in found.operands:
        if operand.type == 1:  # a register
            name = found.reg_name(operand.reg)
            if name in REGISTERS:
                register = REGISTERS.index(name)
            elif name[:2] in ("cr", "dr"):
                control = int(name[2:])
        elif operand.type == 3:  # memory
            m = operand.mem
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
        operand_size=found.operands[0].size if found.operands else 0,
        address_size=found.addr_size,
    )


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
