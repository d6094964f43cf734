# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's accesses to control registers: an exit, or done here when masks and shadows say so.

Source: Intel SDM vol. 3, sections "Instructions That Cause VM Exits Conditionally", "Changes to Instruction Behavior
in VMX Non-Root Operation", table "Exit Qualification for Control-Register Accesses".
"""

from __future__ import annotations

from l4lab.abi.exceptions import GENERAL_PROTECTION
from l4lab.abi.vm import ExitReason
from l4lab.machine import engine as e
from l4lab.machine import svm
from l4lab.machine.decode import Instruction
from l4lab.machine.ending import InstructionEnd
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import Memory
from l4lab.machine.ring0 import RingZero
from l4lab.machine.vmcs import CR0_ET, CR0_PE, CR0_PG, CR4_EXISTING, Vmcs


class ControlRegisters:
    """MOV to and from CR, CLTS, LMSW, SMSW."""

    def __init__(self, memory: Memory, view: GuestView, ring0: RingZero, ending: InstructionEnd) -> None:
        self._u32 = memory.u32
        self._view = view
        self._ring0 = ring0
        self._ending = ending

    def access(self, vmcs: Vmcs, code: int) -> ExitReason | None:
        """The instruction at the guest's EIP, which reads or writes one of them, as AMD's exit code says.

        PageFault or NestedPageFault: where its operand in memory is missing.
        """
        instruction = self._view.instruction(vmcs)
        vmcs.exit_length = instruction.length
        number = code & 15
        if code < svm.CR_WRITE:
            if number == 3:
                vmcs.exit_qualification = 3 | 1 << 4 | instruction.register << 8
                return ExitReason.CR_ACCESS
            value = vmcs.visible_cr0() if number == 0 else vmcs.visible_cr4()
            if instruction.name == "smsw" and instruction.memory:
                return self._smsw_to_memory(vmcs, instruction, value & 0xFFFF)
            index = 9 - instruction.register
            if instruction.name == "smsw" and instruction.operand_size == 2:
                value = vmcs.registers[index] & 0xFFFF0000 | value & 0xFFFF
            vmcs.registers[index] = value
            return self._ending.skip(vmcs)
        old = vmcs.control_register(number)
        if instruction.name == "clts":
            new, access = old & ~8, 2 << 4
        elif instruction.name == "lmsw":
            source = self._operand16(vmcs, instruction)
            new = old & ~0xE | source & 0xF | old & 1  # LMSW can set PE but not clear it
            access = 3 << 4 | source << 16 | (64 if instruction.memory else 0)
            if instruction.memory:
                vmcs.guest_linear = self._view.effective_address(vmcs, instruction)
        else:
            new = self._u32[(vmcs.frame >> 2) + 9 - instruction.register]
            access = instruction.register << 8
        if number == 3:
            vmcs.exit_qualification = 3 | access
            return ExitReason.CR_ACCESS
        mask, shadow = (vmcs.cr0_mask, vmcs.cr0_shadow) if number == 0 else (vmcs.cr4_mask, vmcs.cr4_shadow)
        if (self._asked_of(instruction.name, new, shadow) ^ shadow) & mask:
            vmcs.exit_qualification = number | access
            return ExitReason.CR_ACCESS
        if (new & CR0_PG and not new & CR0_PE) if number == 0 else new & ~mask & ~CR4_EXISTING:
            return self._ending.fault(vmcs, GENERAL_PROTECTION, 0)
        if number == 0:
            new |= CR0_ET
        vmcs.set_control_register(number, old & mask | new & ~mask)  # which keeps CR4.PSE, see Vmcs
        return self._ending.skip(vmcs)

    def _operand16(self, vmcs: Vmcs, instruction: Instruction) -> int:
        """LMSW's source."""
        if instruction.memory is None:
            return self._u32[(vmcs.frame >> 2) + 9 - instruction.register] & 0xFFFF
        return self._ring0.read(self._view.effective_address(vmcs, instruction), 2)

    @staticmethod
    def _asked_of(name: str, new: int, shadow: int) -> int:
        """What the guest, which sees the shadow, wants the register to be: CLTS and LMSW touch some bits only."""
        if name == "clts":
            return shadow & ~8
        if name == "lmsw":
            return shadow & ~0xE | new & 0xE | (shadow | new) & 1
        return new

    def _smsw_to_memory(self, vmcs: Vmcs, instruction: Instruction, value: int) -> ExitReason | None:
        user = vmcs.state[e.ENV_HFLAGS >> 2] & e.HF_CPL == 3
        self._ring0.write(self._view.effective_address(vmcs, instruction), value, 2, user)
        return self._ending.skip(vmcs)
