# SPDX-License-Identifier: GPL-2.0-or-later
"""One instruction without names in it to machine code: Keystone, and what must be known to trust it.

What lives here: reserved words, arithmetic on numbers, the calls to Keystone with corrections of what it gets wrong.
What does not: lines, labels, constants and directives (`asm`). Mistakes are reported as a LabError that says why and
what to try; `asm` knows the line and puts it in front.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from l4lab.errors import LabError

# --- words of the CPU: every other name in an operand is a symbol ----------------------------------------------------

_REGISTERS_8 = frozenset({"al", "ah", "bl", "bh", "cl", "ch", "dl", "dh"})
_REGISTERS_16 = frozenset({"ax", "bx", "cx", "dx", "si", "di", "bp", "sp"})
_REGISTERS_32 = frozenset("e" + name for name in _REGISTERS_16)
_SEGMENTS = frozenset({"cs", "ds", "es", "fs", "gs", "ss"})
_SYSTEM = frozenset(f"{kind}{n}" for kind in ("cr", "dr", "mm", "xmm") for n in range(8)) | {"st"}
_SIZES = frozenset({"byte", "word", "dword", "fword", "qword", "tbyte", "xmmword", "ptr", "short", "offset"})
RESERVED = _REGISTERS_8 | _REGISTERS_16 | _REGISTERS_32 | _SEGMENTS | _SYSTEM | _SIZES

# --- arithmetic ------------------------------------------------------------------------------------------------------

_OPERATORS: dict[type[ast.AST], Callable[..., int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: lambda value, by: value << min(by, 64),
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}


def evaluate(text: str) -> int | None:
    """The value of an expression of numbers, or None when it is something else (a register, a memory operand)."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(operand))
        raise ValueError(text)

    try:
        return value(ast.parse(text.strip().replace("/", "//"), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return None


def datum(value: int, width: int) -> bytes:
    """A number as `width` bytes, low byte first; signed and unsigned values are both welcome."""
    check_range(value, 8 * width)
    return (value % (1 << 8 * width)).to_bytes(width, "little")


def check_range(value: int, bits: int) -> None:
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise LabError(f"{value:#x} does not fit in {bits} bits. Try a smaller value or a wider operand")


# --- instructions ----------------------------------------------------------------------------------------------------

# What Keystone 0.9.2 gets wrong, found by comparing it with GNU as (tests/user/test_asm.py keeps doing so):
# in 32-bit code these come out with an operand-size prefix, that is, as their 16-bit forms, ...
_PREFIXED_32 = frozenset({"lgdt", "lidt", "sgdt", "sidt", "iret", "pushf", "popf"})
# ... and so do `push ds`, `pop ds`, `mov ds, ax` (there the prefix is only useless); ...
_PREFIXED_32_SEGMENT = frozenset({"push", "pop", "mov"})
# ... in 16-bit code near branches, pushed numbers and these come out with the prefix, as their 32-bit forms; ...
_PREFIXED_16 = frozenset({"ret", "retn", "retf"})
# ... and `movsd` it takes for the SSE2 instruction of that name.
_SPELLING = {"movsd": ("movs", ["dword ptr es:[edi]", "dword ptr [esi]"])}
_SIZE_PREFIX = 0x66

_MNEMONIC = re.compile(r"[a-z][a-z0-9]*")
_OPERAND = re.compile(r"[\w\s+\-*/%&|^~<>()\[\]:]+", re.ASCII)
_BARE_SIZE = re.compile(r"\b([df]?word|byte|qword|tbyte|xmmword)\s*(?=\[|\w\w:)", re.IGNORECASE)


class Encoder:
    """Keystone, once for 16-bit and once for 32-bit code, with a memory of what it answered."""

    def __init__(self) -> None:
        import keystone  # here, because it costs 50 ms, and importing l4lab must not

        self._KsError = keystone.KsError
        self._engines: dict[int, Any] = {
            16: keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_16),
            32: keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_32),
        }
        self._answers: dict[tuple[int, str, int], bytes] = {}

    def encode(self, op: str, operands: list[str], address: int, bits: int) -> bytes:
        """The bytes of one instruction at `address`. Operands hold numbers (as 0x..) and words of the CPU only."""
        prefix, _, mnemonic = op.rpartition(" ")
        if not _MNEMONIC.fullmatch(mnemonic):  # Keystone would look for one for ever
            raise LabError(f"{mnemonic!r} is not the name of an instruction. A label ends with ':'")
        operands = [_normal(operand, bits) for operand in operands]
        first = operands[0].lower() if operands else ""

        if mnemonic in ("jmp", "ljmp", "call", "lcall") and ":" in first and "[" not in first:
            return _far(mnemonic, first, bits)
        _check_immediate(mnemonic, operands)
        if mnemonic in _SPELLING and not operands:
            mnemonic, operands = _SPELLING[mnemonic]

        code = self._ask(f"{prefix} {mnemonic} {', '.join(operands)}".strip(), address, bits)
        if code[0] != _SIZE_PREFIX:
            return code
        if bits == 32:
            segment = mnemonic in _PREFIXED_32_SEGMENT and first in _SEGMENTS
            return code[1:] if segment or mnemonic in _PREFIXED_32 else code
        number = evaluate(first)
        if number is not None and mnemonic.startswith(("j", "call", "loop")):
            return _near_16(code, number, address)
        if number is not None and mnemonic == "push":
            check_range(number, 16)
            return code[1:] if len(code) == 3 else code[1:-4] + datum(number, 2)
        segment = mnemonic in ("push", "pop") and first in _SEGMENTS
        return code[1:] if segment or mnemonic in _PREFIXED_16 else code

    def _ask(self, text: str, address: int, bits: int) -> bytes:
        key = (bits, text, address)
        if key not in self._answers:
            try:
                code, _ = self._engines[bits].asm(text, address, as_bytes=True)
            except self._KsError as error:
                raise LabError(_advice(str(error), text)) from None
            if not code:  # it does that, silently, for operands that it half understands
                raise LabError("The assembler made nothing of this. Check the operands")
            self._answers[key] = code
        return self._answers[key]


def _normal(operand: str, bits: int) -> str:
    """One spelling for what Keystone reads differently from student to student; numbers folded and checked."""
    balanced = operand.count("(") == operand.count(")") and operand.count("[") == operand.count("]")
    if not _OPERAND.fullmatch(operand) or not balanced:
        raise LabError(f"{operand!r} is not an operand. Check commas, brackets and quotes")
    text = re.sub(r"^(short|offset)\s+", "", operand, flags=re.IGNORECASE)  # the value says so in any case
    text = _BARE_SIZE.sub(r"\1 ptr ", text)
    if bits == 16 and re.search(r"\[[^]]*\*", text):  # Keystone loses the factor
        raise LabError("Scaled registers are not supported in 16-bit code. Try a shift and a plain register")
    value = evaluate(text)
    if value is None:
        return text
    check_range(value, 32)
    return hex(value)


def _check_immediate(mnemonic: str, operands: list[str]) -> None:
    """Keystone cuts a number that is too large for a narrow operand; a student wants to hear of it."""
    if len(operands) != 2 or mnemonic in ("in", "out") or (value := evaluate(operands[1])) is None:
        return
    target = operands[0].lower()
    if target in _REGISTERS_8 or target.startswith("byte"):
        check_range(value, 8)
    elif target in _REGISTERS_16 or target.startswith("word"):
        check_range(value, 16)


def _far(mnemonic: str, operand: str, bits: int) -> bytes:
    """`jmp selector:offset`: opcode, offset, selector (SDM vol. 2, JMP and CALL, far absolute)."""
    selector, offset = (evaluate(part) for part in operand.split(":", 1))
    if selector is None or offset is None:
        raise LabError("A far jump needs two numbers. Try jmp 0x08:label")
    opcode = b"\x9a" if "call" in mnemonic else b"\xea"
    return opcode + datum(offset, bits // 8) + datum(selector, 2)


def _near_16(code: bytes, target: int, address: int) -> bytes:
    """From prefix, opcode, 32-bit distance to opcode, 16-bit distance (counted from the end of the instruction)."""
    opcode = code[1:-4]
    distance = target - (address + len(opcode) + 2)
    return opcode + (distance & 0xFFFF).to_bytes(2, "little")


def _advice(error: str, text: str) -> str:
    """Keystone's verdict, and what usually stands behind it."""
    if "MNEMONIC" in error:
        return f"There is no instruction {text.split()[0]!r}. Check the spelling; data need a directive such as .byte"
    if "FIXUP" in error:
        return "The target is too far away for this instruction. Try a jmp, or move the label nearer"
    if "OPERAND" in error:
        return (
            "The operands do not go with this instruction. A memory operand with a number needs its size "
            "(mov dword ptr [eax], 1), ports above 255 go through dx, and both operands must be equally wide"
        )
    return f"The assembler says {error.split(' (')[0].lower()!r}. Check commas, brackets and quotes"
