# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that fault in a native program, and that the kernel does for it; no exception message is sent.

Two kinds. RDMSR and WRMSR are the CPU's owner's to use: the kernel executes them for programs of privileged spaces. And
a program may not load a segment register with another selector than it was given: the kernel reloads all of them, and
the program goes on behind the instruction. Ports are `portio.py`; the FPU, RDTSC and CPUID are the machine's
(`machine/usermode.py`); how the KIP is found is `traps.py`. (Reference section 6.5, Exception.)
"""

from __future__ import annotations

from l4lab.abi.frame import EAX, ECX, EDX, EIP
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.state import State
from l4lab.machine.decode import decode

LONGEST = 15  # bytes of an instruction
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf2\xf3")
_RDMSR, _WRMSR = b"\x0f\x32", b"\x0f\x30"
# MOV to a segment register; POP of ES, SS, DS, FS, GS.
_LOADS_OF_SELECTORS = (b"\x8e", b"\x07", b"\x17", b"\x1f", b"\x0f\xa1", b"\x0f\xa9")


def done_for(k: State, thread: Tcb) -> bool:
    """The thread is at an instruction that raised #GP. Is it one of these? Then it is done, and EIP is behind it."""
    code = k.code_at(thread, LONGEST)
    opcode = code.lstrip(bytes(_PREFIXES))
    length = len(code) - len(opcode) + 2
    if opcode[:2] in (_RDMSR, _WRMSR):
        if not thread.space.privileged:
            return False
        _access_msr(k, thread, opcode[:2] == _RDMSR)
        _skip(thread, length)
        return True
    if opcode.startswith(_LOADS_OF_SELECTORS):
        # Whatever it loaded was refused, and what it should load it has: what every program gets at each entry.
        instruction = decode(code)
        if instruction is None:
            return False
        _skip(thread, instruction.length)
        return True
    return False


def _access_msr(k: State, thread: Tcb, is_read: bool) -> None:
    """RDMSR or WRMSR: number in ECX, value in EDX:EAX."""
    regs, msrs = thread.regs, k.machine.msrs
    if is_read:
        value = msrs.read(regs[ECX])
        regs[EAX], regs[EDX] = value & 0xFFFF_FFFF, value >> 32
    else:
        msrs.write(regs[ECX], regs[EDX] << 32 | regs[EAX])


def _skip(thread: Tcb, length: int) -> None:
    thread.regs[EIP] = thread.regs[EIP] + length & 0xFFFF_FFFF
