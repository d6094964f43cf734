# SPDX-License-Identifier: GPL-2.0-or-later
"""IN, OUT, INS and OUTS of native programs.

Programs run at I/O privilege level 0, and a port that was not mapped into their space is an I/O page fault. The CPU
engine stops before each access, so what a bitmap in the TSS would decide is decided here. String instructions go an
element at a time: each is an access of its own, with the faults that belong to it, and a repeated one is resumed in the
middle. (Intel SDM vol. 1, chapter Input/Output; vol. 2, IN, INS, OUT, OUTS.)
"""

from __future__ import annotations

from dataclasses import dataclass

from l4lab.abi.frame import EAX, ECX, EDI, EFLAGS, EIP, ESI
from l4lab.kernel.ipc import faults
from l4lab.kernel.memory import ports
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.state import State
from l4lab.machine import engine as e
from l4lab.machine.mmu import USER, WRITE, WalkFault

LONGEST = 15  # bytes of an instruction
_REPEAT, _ADDRESS_SIZE = frozenset((0xF2, 0xF3)), 0x67
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3))
_DIRECTION_FLAG = 1 << 10
_GENERAL_PROTECTION = 13
MASK = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class PortInstruction:
    """What of an I/O instruction the engine does not tell."""

    length: int
    string: bool
    repeated: bool
    address_mask: int  # how much of ESI, EDI and ECX a string instruction uses


def decode(code: bytes) -> PortInstruction:
    """An I/O instruction from its bytes."""
    prefixes = 0
    while prefixes < len(code) and code[prefixes] in _PREFIXES:
        prefixes += 1
    before, opcode = code[:prefixes], code[prefixes] if prefixes < len(code) else 0
    string = opcode & 0xFC == 0x6C
    with_immediate = opcode & 0xFC == 0xE4
    return PortInstruction(
        prefixes + (2 if with_immediate else 1),
        string,
        string and not _REPEAT.isdisjoint(before),
        0xFFFF if _ADDRESS_SIZE in before else MASK,
    )


def access(k: State, thread: Tcb, is_in: bool) -> None:
    """The thread is at an I/O instruction."""
    info = k.machine.engine.info
    port, size, value = info[e.INFO_PORT], info[e.INFO_SIZE], info[e.INFO_VALUE]
    if port + size > ports.PORTS:
        faults.exception(k, thread, _GENERAL_PROTECTION, 0)
        return
    if not ports.allows(thread.space, port, size):
        faults.io_page_fault(k, thread, port, size)
        return
    regs = thread.regs
    instruction = decode(k.code_at(thread, LONGEST))
    if instruction.string:
        if is_in and not _store(k, thread, port, size, regs[EDI] & instruction.address_mask):
            return
        if not is_in:
            k.port_out(port, size, value)
        _advance(regs, EDI if is_in else ESI, size, instruction)
    else:
        if is_in:
            mask = (1 << 8 * size) - 1
            regs[EAX] = regs[EAX] & ~mask & MASK | k.port_in(port, size) & mask
        else:
            k.port_out(port, size, value)
        regs[EIP] = regs[EIP] + instruction.length & MASK


def _store(k: State, thread: Tcb, port: int, size: int, address: int) -> bool:
    """One element of INS. The memory is looked at before the device is read: a fault must not lose what it says."""
    memory, cr3 = k.machine.memory, thread.space.tables.cr3
    try:
        places = [k.translate(cr3, address + i & MASK, USER | WRITE) for i in range(size)]
    except WalkFault as fault:
        faults.page_fault(k, thread, fault.address, True)
        return False
    for pa, byte in zip(places, k.port_in(port, size).to_bytes(size, "little"), strict=True):
        memory.write(pa, bytes((byte,)))
    return True


def _advance(regs: memoryview, index: int, size: int, instruction: PortInstruction) -> None:
    """One element is done: the index moves on, and after the last one EIP does."""
    mask = instruction.address_mask
    step = -size if regs[EFLAGS] & _DIRECTION_FLAG else size
    regs[index] = regs[index] & ~mask & MASK | regs[index] + step & mask
    if instruction.repeated:
        left = regs[ECX] - 1 & mask
        regs[ECX] = regs[ECX] & ~mask & MASK | left
        if left:
            return
    regs[EIP] = regs[EIP] + instruction.length & MASK
