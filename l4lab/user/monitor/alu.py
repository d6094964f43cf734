# SPDX-License-Identifier: GPL-2.0-or-later
"""Arithmetic of the CPU on numbers of 8, 16 and 32 bits: results and flags.

Lives here: pure functions, (a, b, carry, bits) to (result, flags that are set). Which flags an instruction changes
stands in `AFFECTED`. Where operands come from is in `emulate`.
Source: Intel SDM vol. 1, "EFLAGS Register"; vol. 2, the instructions' "Flags Affected".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

CF, PF, AF, ZF, SF, OF = 0x001, 0x004, 0x010, 0x040, 0x080, 0x800
STATUS: Final = CF | PF | AF | ZF | SF | OF

Result = tuple[int, int]


def _common(result: int, bits: int) -> int:
    parity = PF if (result & 0xFF).bit_count() % 2 == 0 else 0
    return parity | (ZF if result == 0 else 0) | (SF if result >> bits - 1 else 0)


def add(a: int, b: int, carry: int, bits: int) -> Result:
    """ADD, ADC, INC, XADD."""
    total = a + b + carry
    result = total & (1 << bits) - 1
    flags = _common(result, bits) | (CF if total >> bits else 0) | ((a ^ b ^ result) & AF)
    return result, flags | (OF if (a ^ result) & (b ^ result) & 1 << bits - 1 else 0)


def subtract(a: int, b: int, borrow: int, bits: int) -> Result:
    """SUB, SBB, CMP, DEC, NEG, CMPS, SCAS, CMPXCHG."""
    total = a - b - borrow
    result = total & (1 << bits) - 1
    flags = _common(result, bits) | (CF if total < 0 else 0) | ((a ^ b ^ result) & AF)
    return result, flags | (OF if (a ^ b) & (a ^ result) & 1 << bits - 1 else 0)


def logic(result: int, bits: int) -> Result:
    """AND, OR, XOR, TEST: they clear carry and overflow; AF is undefined, and clear here."""
    return result, _common(result, bits)


Operation = Callable[[int, int, int, int], Result]

# Two operands, of which the first takes the result; and what they do with EFLAGS.CF before.
BINARY: Final[dict[str, Operation]] = {
    "add": lambda a, b, carry, bits: add(a, b, 0, bits),
    "adc": add,
    "sub": lambda a, b, carry, bits: subtract(a, b, 0, bits),
    "sbb": subtract,
    "and": lambda a, b, carry, bits: logic(a & b, bits),
    "or": lambda a, b, carry, bits: logic(a | b, bits),
    "xor": lambda a, b, carry, bits: logic(a ^ b, bits),
}
COMPARING: Final[dict[str, Operation]] = {"cmp": BINARY["sub"], "test": BINARY["and"]}  # nothing takes the result

UNARY: Final[dict[str, Operation]] = {
    "inc": lambda a, b, carry, bits: add(a, 1, 0, bits),
    "dec": lambda a, b, carry, bits: subtract(a, 1, 0, bits),
    "neg": lambda a, b, carry, bits: subtract(0, a, 0, bits),
    "not": lambda a, b, carry, bits: (~a & (1 << bits) - 1, 0),
}
AFFECTED: Final = {"inc": STATUS & ~CF, "dec": STATUS & ~CF, "not": 0}  # all others: STATUS

# Bit tests: what becomes of the bit.
BITS: Final[dict[str, Callable[[int, int], int]]] = {
    "bt": lambda value, bit: value,
    "bts": lambda value, bit: value | bit,
    "btr": lambda value, bit: value & ~bit,
    "btc": lambda value, bit: value ^ bit,
}
