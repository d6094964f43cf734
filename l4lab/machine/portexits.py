# SPDX-License-Identifier: GPL-2.0-or-later
"""Port instructions of a guest: the exit that each of them is, or the fault of a program that may not.

Source: Intel SDM vol. 3, table "Exit Qualification for I/O Instructions"; vol. 1, section "I/O Permission Bit Map".
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.exceptions import GENERAL_PROTECTION
from l4lab.abi.frame import EDI, EFLAGS, ESI, FLAG_IOPL, FLAG_VM
from l4lab.abi.vm import ExitReason
from l4lab.machine import engine as e
from l4lab.machine.ending import InstructionEnd
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import NestedPageFault, WalkFault
from l4lab.machine.ring0 import RingZero
from l4lab.machine.vmcs import Vmcs

_HFLAGS: Final = e.ENV_HFLAGS >> 2
_IO_MAP: Final = 0x66  # in a TSS: where its I/O permission map begins


class PortExits:
    """What IN, OUT, INS and OUTS become."""

    def __init__(self, memory: Memory, view: GuestView, ring0: RingZero, ending: InstructionEnd) -> None:
        self._u32 = memory.u32
        self._view = view
        self._ring0 = ring0
        self._ending = ending

    def exit(self, vmcs: Vmcs, is_in: bool, port: int, size: int) -> ExitReason | None:
        """The exit before the instruction happens; port, size and direction are as the engine saw them."""
        if vmcs.state[_HFLAGS] & e.HF_CPL and not self._allowed(vmcs, port, size):
            return self._ending.fault(vmcs, GENERAL_PROTECTION, 0)
        instruction = self._view.instruction(vmcs)
        opcode = instruction.opcode[0]
        qualification = port << 16 | size - 1 | (8 if is_in else 0)
        if opcode & 0xFC == 0x6C:  # INS, OUTS
            qualification |= 16 | (32 if instruction.repeat else 0)
            frame = vmcs.frame >> 2
            if is_in:
                segment, index = "es", EDI
            else:
                segment, index = (instruction.memory[0] if instruction.memory else "") or "ds", ESI
            offset = self._u32[frame + index]
            if instruction.address_size == 2:
                offset &= 0xFFFF
            vmcs.guest_linear = vmcs.segment(segment)[1] + offset & 0xFFFFFFFF
        elif opcode & 8 == 0:  # E4..E7: the port is in the instruction
            qualification |= 64
        vmcs.exit_qualification = qualification
        vmcs.exit_length = instruction.length
        return ExitReason.IO_INSTRUCTION

    def _allowed(self, vmcs: Vmcs, port: int, size: int) -> bool:
        """May a program of this guest, outside ring 0, use these ports? (SDM vol. 1, "I/O Permission Bit Map")"""
        eflags = self._u32[(vmcs.frame >> 2) + EFLAGS]
        if not eflags & FLAG_VM and vmcs.state[_HFLAGS] & e.HF_CPL <= (eflags & FLAG_IOPL) >> 12:
            return True
        _, base, limit, attributes = vmcs.segment("tr")
        if attributes & 0x8D != 0x89 or limit < _IO_MAP + 1:  # only a 32-bit TSS has a map
            return False
        try:
            at = self._ring0.read(base + _IO_MAP, 2) + (port >> 3)
            if at + 1 > limit:
                return False
            return not self._ring0.read(base + at, 2) >> (port & 7) & (1 << size) - 1
        except (WalkFault, NestedPageFault):
            return False
