# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of a guest that the engine leaves to us, or would not do as VT-x wants it.

INS, task switches and some PUSHFD, before which the engine stops; SYSENTER; RDTSC; what it does not know: VMX
instructions, MONITOR, MWAIT, INT1. Accesses to control and debug registers are in controlregs.py and debugging.py.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.exceptions import DEBUG, GENERAL_PROTECTION, NOT_PRESENT, UNDEFINED_OPCODE
from l4lab.abi.frame import EAX, ECX, EDX, EFLAGS, EIP, ESP, FLAG_IF, FLAG_IOPL, FLAG_RF, FLAG_VM
from l4lab.abi.vm import EVENT_VALID, ExitReason
from l4lab.machine import engine as e
from l4lab.machine.decode import MAX_LENGTH, Instruction
from l4lab.machine.ending import InstructionEnd
from l4lab.machine.engine import Engine
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import NestedPageFault, WalkFault
from l4lab.machine.portexits import PortExits
from l4lab.machine.ring0 import Ring0Fault, RingZero
from l4lab.machine.vmcs import CR0_PE, Vmcs
from l4lab.machine.vmxinfo import vmx_instruction
from l4lab.machine.vtx import MONITOR_EXITING, MWAIT_EXITING, PRIVILEGED_SOFTWARE, TSC_OFFSETTING

_HFLAGS: Final = e.ENV_HFLAGS >> 2
_CALL: Final = 0 << 30  # sources of a task switch
_IRET: Final = 1 << 30
_JUMP: Final = 2 << 30


class Instructions:
    """Does them, or makes the exit of them that the monitor asked for."""

    def __init__(
        self, memory: Memory, engine: Engine, view: GuestView, ring0: RingZero, ending: InstructionEnd, ports: PortExits
    ) -> None:
        self._u32 = memory.u32
        self._engine = engine
        self._view = view
        self._ring0 = ring0
        self._ending = ending
        self._ports = ports

    def before(self, vmcs: Vmcs) -> ExitReason | None:
        """The guest is about to execute INS, PUSHFD in virtual-8086 mode, or what may be a task switch.

        WalkFault or NestedPageFault: where the stack of PUSHFD is missing.
        """
        instruction = self._view.instruction(vmcs)
        opcode = instruction.opcode[0]
        at = vmcs.frame >> 2
        if opcode in (0x6C, 0x6D):
            count = self._u32[at + ECX] & (0xFFFF if instruction.address_size == 2 else 0xFFFFFFFF)
            if count or not instruction.repeat:
                size = 1 if opcode == 0x6C else instruction.operand_size
                return self._ports.exit(vmcs, True, self._u32[at + EDX] & 0xFFFF, size)
            self._engine.go_on()
            return None
        if opcode == 0x9C:
            return self._push_flags(vmcs)
        try:
            switch = self._task_switch(vmcs, instruction)
        except Ring0Fault as fault:
            return self._ending.fault(vmcs, fault.vector, fault.error_code)
        except (WalkFault, NestedPageFault):
            switch = None  # as the engine is about to find out, too
        if switch is None:
            self._engine.go_on()
            return None
        vmcs.exit_qualification = switch
        vmcs.exit_length = instruction.length
        return ExitReason.TASK_SWITCH

    def _task_switch(self, vmcs: Vmcs, instruction: Instruction) -> int | None:
        """Selector and source if it switches tasks, which is an exit; all checks come before (SDM, "Task Switches")."""
        ring0 = self._ring0
        code = self._view.read_code(vmcs, instruction.length)
        if instruction.opcode[0] == 0xCF:
            selector = ring0.read(vmcs.segment("tr")[1], 2)
            ring0.check_task(selector, returning=True)
            return selector | _IRET
        if instruction.opcode[0] == 0xFF:
            source = _CALL if instruction.register_field == 3 else _JUMP
            selector = ring0.read(self._view.effective_address(vmcs, instruction) + instruction.operand_size, 2)
        else:
            if instruction.opcode[0] not in (0x9A, 0xEA) or len(code) < instruction.length:
                return None  # the tables have changed since, and the TLB has forgotten it
            source = _CALL if instruction.opcode[0] == 0x9A else _JUMP
            selector = code[-2] | code[-1] << 8
        found = ring0.descriptor(selector) if selector & 0xFFFC else None
        if found is None or found[1] >> 8 & 0x1F not in (1, 3, 5, 9, 11):
            return None
        cpl, dpl = vmcs.state[_HFLAGS] & e.HF_CPL, found[1] >> 13 & 3
        if dpl < cpl or dpl < selector & 3:
            raise Ring0Fault(GENERAL_PROTECTION, selector & 0xFFFC)
        if found[1] >> 8 & 0x1F == 5:
            if not found[1] & 1 << 15:
                raise Ring0Fault(NOT_PRESENT, selector & 0xFFFC)
            selector = found[0] >> 16
        ring0.check_task(selector)
        return selector | source

    def _push_flags(self, vmcs: Vmcs) -> ExitReason | None:
        """PUSHFD in virtual-8086 mode: the program is not to see there in which mode it is."""
        at = vmcs.frame >> 2
        eflags, esp = self._u32[at + EFLAGS], self._u32[at + ESP]
        if eflags & FLAG_IOPL != FLAG_IOPL:
            return self._ending.fault(vmcs, GENERAL_PROTECTION, 0)
        top = esp - 4 & 0xFFFF
        self._ring0.write(vmcs.segment_base("ss") + top, eflags & ~(FLAG_VM | FLAG_RF), 4, user=True)
        vmcs.registers[ESP] = esp & 0xFFFF0000 | top
        return self._ending.skip(vmcs)

    def sysenter(self, vmcs: Vmcs) -> ExitReason | None:
        """SYSENTER: flat ring 0 at the place that the MSRs name. The engine leaves it to its user."""
        selector = vmcs.sysenter(0) & 0xFFFC
        if not selector:
            return self._ending.fault(vmcs, GENERAL_PROTECTION, 0)
        vmcs.set_segment("cs", selector, 0, 0xFFFFFFFF, 0xC09B)
        vmcs.set_segment("ss", selector + 8, 0, 0xFFFFFFFF, 0xC093)
        registers = vmcs.registers
        registers[EFLAGS] &= ~(FLAG_VM | FLAG_IF | FLAG_RF)
        registers[ESP], registers[EIP] = vmcs.sysenter(1), vmcs.sysenter(2)
        self._engine.charge(1)
        return None

    def read_time(self, vmcs: Vmcs) -> ExitReason | None:
        """RDTSC: the machine's clock, which is the only time there is."""
        ticks = self._engine.cycles
        if vmcs.cpu_controls & TSC_OFFSETTING:
            ticks += vmcs.tsc_offset
        vmcs.registers[EAX], vmcs.registers[EDX] = ticks & 0xFFFFFFFF, ticks >> 32 & 0xFFFFFFFF
        return self._ending.skip(vmcs)

    def unknown(self, vmcs: Vmcs) -> ExitReason | None:
        """What the engine does not know: VMX instructions and MONITOR exit, any other is the guest's own #UD."""
        return self.vmx_instruction(vmcs) or self._rare_instruction(vmcs)

    def vmx_instruction(self, vmcs: Vmcs) -> ExitReason | None:
        """The exit that an instruction of VMX is in any mode where it exists; None for all others."""
        found = vmx_instruction(self._view.read_code(vmcs, MAX_LENGTH), self._view.bits(vmcs))
        if found is None:
            return None
        real = not vmcs.control_register(0) & CR0_PE or self._u32[(vmcs.frame >> 2) + EFLAGS] & FLAG_VM
        if real and found.reason is not ExitReason.VMCALL:
            return None
        vmcs.exit_length, vmcs.exit_qualification = found.length, found.qualification
        vmcs.instruction_info = found.information
        return found.reason

    def _rare_instruction(self, vmcs: Vmcs) -> ExitReason | None:
        """INT1; MONITOR and MWAIT in ring 0: exits if asked for, else as if what is waited for had happened."""
        instruction = self._view.instruction(vmcs)
        if instruction.opcode == b"\xf1":
            vmcs.exit_length = instruction.length
            return self._int1(vmcs)
        control = {"monitor": MONITOR_EXITING, "mwait": MWAIT_EXITING}.get(instruction.name)
        if control is None or vmcs.state[_HFLAGS] & e.HF_CPL:
            return self._ending.fault(vmcs, UNDEFINED_OPCODE)
        if not vmcs.cpu_controls & control:
            return self._ending.skip(vmcs)
        vmcs.exit_length = instruction.length
        return ExitReason.MONITOR if control == MONITOR_EXITING else ExitReason.MWAIT

    def _int1(self, vmcs: Vmcs) -> ExitReason | None:
        """INT1: a debug exception without bits in DR6, and without a privilege check."""
        if vmcs.exception_bitmap >> DEBUG & 1:
            vmcs.exit_info = EVENT_VALID | PRIVILEGED_SOFTWARE << 8 | DEBUG
            return ExitReason.EXCEPTION_OR_NMI
        self._engine.inject(DEBUG, e.KIND_EXCEPTION, 0, vmcs.exit_length)
        vmcs.exit_length = 0
        return None
