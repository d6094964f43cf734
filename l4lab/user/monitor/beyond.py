# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of the guest that touch memory which is not there, and where no page can be put in its stead.

As on a PC, what they read is all ones, and what they write goes nowhere. Lives here: how long an instruction is, and
which register a load would have filled. Capstone decodes; the few guests that come here may wait for it to be loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from l4lab.abi.frame import of_gpr
from l4lab.user.monitor.fault import MASK, Fault, Reply
from l4lab.user.monitor.memory import GuestMemory
from l4lab.user.monitor.paging import read_code
from l4lab.user.monitor.vcpu import VirtualCpu

LONGEST_INSTRUCTION: Final = 15

_NUMBERS: Final = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
_LOW_BYTES: Final = ("al", "cl", "dl", "bl")
_HIGH_BYTES: Final = ("ah", "ch", "dh", "bh")


@dataclass(frozen=True, slots=True)
class Load:
    """A register that an instruction loads from memory: frame index, and which of its bits become ones or zeros."""

    register: int
    ones: int
    zeros: int = 0


@dataclass(frozen=True, slots=True)
class Access:
    """An instruction that touched memory."""

    length: int
    text: str
    load: Load | None  # if loading a general register is all that it does


def read_instruction(memory: GuestMemory, vcpu: VirtualCpu, eip: int) -> tuple[bytes, int]:
    """The bytes at the guest's EIP, and whether its code is 16 or 32 bits wide."""
    return read_code(memory, vcpu, eip, LONGEST_INSTRUCTION)


def decode(code: bytes, width: int) -> Access | None:
    """The first instruction; None if the bytes are none. `width` is 16 or 32."""
    import capstone
    from capstone.x86 import X86_OP_MEM, X86_OP_REG

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32 if width == 32 else capstone.CS_MODE_16)
    decoder.detail = True
    for instruction in decoder.disasm(code, 0, 1):
        text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        load = None
        operands = instruction.operands
        if instruction.mnemonic in ("mov", "movzx", "movsx") and [o.type for o in operands] == [X86_OP_REG, X86_OP_MEM]:
            loaded = 8 * (operands[1].size if instruction.mnemonic == "movzx" else operands[0].size)
            load = _load(instruction.reg_name(operands[0].reg), 8 * operands[0].size, loaded)
        return Access(int(instruction.size), text, load)
    return None


def _load(name: str, size: int, ones: int) -> Load | None:
    """The lowest `ones` of a register's `size` bits become ones, the others zeros."""
    set_bits, all_bits = (1 << ones) - 1, (1 << size) - 1
    if name in _HIGH_BYTES:
        return Load(of_gpr(_HIGH_BYTES.index(name)), set_bits << 8)
    if name in _LOW_BYTES:
        return Load(of_gpr(_LOW_BYTES.index(name)), set_bits)
    if name.removeprefix("e") in _NUMBERS:
        return Load(of_gpr(_NUMBERS.index(name.removeprefix("e"))), set_bits, all_bits & ~set_bits)
    return None  # a segment register


def carry_out(access: Access, fault: Fault, reply: Reply) -> None:
    """Do the instruction as if the memory were all ones, and go on after it."""
    if access.load is not None:
        old = fault.gpr(access.load.register)
        reply.gpr(access.load.register, (old | access.load.ones) & ~access.load.zeros & MASK)
    reply.skip(fault, access.length)
