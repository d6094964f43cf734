# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM exit says about a VMX instruction of the guest: which it is, its operands, the displacement.

Source: Intel SDM vol. 3, section "Information for VM Exits Due to Instruction Execution", table "Format of the
VM-Exit Instruction-Information Field", and vol. 2 for the opcodes. What is done about the exit is instructions.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

from l4lab.abi.vm import ExitReason
from l4lab.machine.decode import REGISTERS

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf2\xf3")
_WITHOUT_OPERAND = {
    b"\x0f\x01\xc1": ExitReason.VMCALL,
    b"\x0f\x01\xc2": ExitReason.VMLAUNCH,
    b"\x0f\x01\xc3": ExitReason.VMRESUME,
    b"\x0f\x01\xc4": ExitReason.VMXOFF,
}
# 0F C7 /6 by its mandatory prefix
_GROUP_9 = {0: ExitReason.VMPTRLD, 0x66: ExitReason.VMCLEAR, 0xF3: ExitReason.VMXON}
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_REGISTER_OPERAND, _NO_INDEX, _NO_BASE = 1 << 10, 1 << 22, 1 << 27
# 16-bit addresses: base and index by the r/m field
_BASE_16 = ("ebx", "ebx", "ebp", "ebp", "esi", "edi", "ebp", "ebx")
_INDEX_16 = ("esi", "edi", "esi", "edi", "", "", "", "")


@dataclass(frozen=True, slots=True)
class VmxInstruction:
    """Everything an exit tells about it. Other than VMCALL they exist in protected mode only."""

    reason: ExitReason
    length: int
    qualification: int  # the displacement
    information: int


def vmx_instruction(code: bytes, bits: int) -> VmxInstruction | None:
    """The VMX instruction at the beginning of `code`, if it is one."""
    at = 0
    address_size, mandatory, segment = bits // 16, 0, ""
    while at < len(code) and code[at] in _PREFIXES:
        prefix = code[at]
        if prefix == 0x67:
            address_size = 3 - address_size
        elif prefix in (0x66, 0xF2, 0xF3):
            mandatory = prefix if mandatory not in (0xF2, 0xF3) else mandatory
        else:
            segment = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}[prefix]
        at += 1
    reason = _WITHOUT_OPERAND.get(code[at : at + 3])
    if reason is not None:
        return VmxInstruction(reason, at + 3, 0, 0) if mandatory == 0 else None
    if len(code) < at + 3 or code[at] != 0x0F:
        return None
    mode, register, rm = code[at + 2] >> 6, code[at + 2] >> 3 & 7, code[at + 2] & 7
    opcode = code[at + 1]
    if opcode in (0x78, 0x79) and not mandatory:
        reason = ExitReason.VMREAD if opcode == 0x78 else ExitReason.VMWRITE
        if mode == 3:
            return VmxInstruction(reason, at + 3, 0, register << 28 | rm << 3 | _REGISTER_OPERAND)
        information = register << 28
    elif opcode == 0xC7 and mode != 3 and register == 6 and mandatory in _GROUP_9:
        reason, information = _GROUP_9[mandatory], 0
    elif opcode == 0xC7 and mode != 3 and register == 7 and not mandatory:
        reason, information = ExitReason.VMPTRST, 0
    else:
        return None
    operand = _memory_operand(code[at + 2 :], address_size)
    if operand is None:
        return None
    base, index, scale, displacement, size = operand
    segment = segment or ("ss" if base in ("ebp", "esp") else "ds")
    information |= scale | (address_size - 1) << 7 | _SEGMENTS.index(segment) << 15
    information |= REGISTERS.index(index) << 18 if index else _NO_INDEX
    information |= REGISTERS.index(base) << 23 if base else _NO_BASE
    return VmxInstruction(reason, at + 2 + size, displacement, information)


def _memory_operand(code: bytes, address_size: int) -> tuple[str, str, int, int, int] | None:
    """Base, index, scale as a power of two, displacement, and the bytes from ModRM on; None if they are cut short."""
    mode, rm = code[0] >> 6, code[0] & 7
    at, scale, index = 1, 0, ""
    wide = address_size == 2
    if not wide:
        base, index = _BASE_16[rm], _INDEX_16[rm]
        absolute = mode == 0 and rm == 6
    elif rm == 4:
        if len(code) < 2:
            return None
        sib, at = code[1], 2
        scale, index, base = sib >> 6, REGISTERS[sib >> 3 & 7], REGISTERS[sib & 7]
        index, scale = ("", 0) if index == "esp" else (index, scale)
        absolute = mode == 0 and sib & 7 == 5
    else:
        base = REGISTERS[rm]
        absolute = mode == 0 and rm == 5
    size = 1 if mode == 1 else (4 if wide else 2) if mode == 2 or absolute else 0
    if len(code) < at + size:
        return None
    displacement = int.from_bytes(code[at : at + size], "little", signed=True) & (0xFFFFFFFF if wide else 0xFFFF)
    if size == 1:
        displacement = int.from_bytes(code[at : at + 1], "little", signed=True) & 0xFFFFFFFF
    return "" if absolute else base, index, scale, displacement, at + size
