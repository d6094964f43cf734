# SPDX-License-Identifier: GPL-2.0-or-later
"""What ended a guest's run, as Intel VT-x would say it: from the engine's events and AMD's exit codes to exit reasons.

Source: Intel SDM vol. 3, chapter "VM Exits": basic exit reasons, exit qualifications, interruption information. What
a guest does without its monitor having asked to know of it (time stamp, unmasked control-register bits, exceptions
outside the bitmap) ends here, or in the files for the instructions in question.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.exceptions import (
    BREAKPOINT,
    DEBUG,
    GENERAL_PROTECTION,
    NOT_RESTARTED,
    OVERFLOW,
    PAGE_FAULT,
    UNDEFINED_OPCODE,
    WITH_ERROR_CODE,
)
from l4lab.abi.frame import EFLAGS, EIP, ESP, FLAG_RF
from l4lab.abi.vm import EVENT_HAS_ERROR_CODE, EVENT_VALID, ExitReason
from l4lab.machine import engine as e
from l4lab.machine import svm
from l4lab.machine.controlregs import ControlRegisters
from l4lab.machine.debugging import Debugging
from l4lab.machine.decode import MAX_LENGTH, Instruction
from l4lab.machine.delivery import KINDS, Delivery, GuestEvent
from l4lab.machine.ending import InstructionEnd
from l4lab.machine.engine import Engine
from l4lab.machine.guestview import GuestView
from l4lab.machine.instructions import Instructions
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import NestedPageFault, WalkFault
from l4lab.machine.portexits import PortExits
from l4lab.machine.ring0 import RingZero
from l4lab.machine.vmcs import CR0_PE, Vmcs
from l4lab.machine.vtx import EPT_READ, EPT_WRITE, HARDWARE_EXCEPTION, MOV_DR_EXITING, RDTSC_EXITING, SOFTWARE_EXCEPTION

_SIMPLE: Final = {
    svm.RDPMC: ExitReason.RDPMC,
    svm.CPUID: ExitReason.CPUID,
    svm.HLT: ExitReason.HLT,
    svm.PAUSE: ExitReason.PAUSE,
    svm.MWAIT: ExitReason.MWAIT,
    svm.MONITOR: ExitReason.MONITOR,
}
_ENV_ESP: Final = 8  # a word of the engine's CPU state
_GATE: Final = 3 << 30  # source of a task switch


class ExitTranslator:
    """Translates for the guest that is loaded. None: the guest may simply go on."""

    def __init__(
        self, memory: Memory, engine: Engine, view: GuestView, ending: InstructionEnd, debugging: Debugging
    ) -> None:
        self._u32 = memory.u32
        self._engine = engine
        self._view = view
        self._ending = ending
        self._debugging = debugging
        ring0 = RingZero(memory, engine.env32)
        self._delivery = Delivery(memory, engine.env32, ring0)
        self._ports = PortExits(memory, view, ring0, ending)
        self._control = ControlRegisters(memory, view, ring0, ending)
        self._instructions = Instructions(memory, engine, view, ring0, ending, self._ports)

    def translate(self, vmcs: Vmcs, event: int) -> ExitReason | None:
        """The VT-x exit for an engine event; None if the guest may simply go on."""
        simple = _SIMPLE.get(event - e.VM_EXIT)
        if simple is not None:
            vmcs.exit_length = self._view.instruction(vmcs).length
            return simple
        if event in (e.EVENT_IN, e.EVENT_OUT):
            info = self._engine.info
            return self._ports.exit(vmcs, event == e.EVENT_IN, info[e.INFO_PORT], info[e.INFO_SIZE])
        if event >= e.VM_EXIT:
            return self._exit(vmcs, event - e.VM_EXIT)
        if event == e.EVENT_WINDOW:
            return ExitReason.INTERRUPT_WINDOW
        if event == e.EVENT_DELIVER:
            return self._deliver(vmcs)
        if event == e.EVENT_BEFORE:
            try:
                return self._instructions.before(vmcs)
            except (WalkFault, NestedPageFault) as problem:
                return self._operand_missing(vmcs, problem)
        if event == e.EVENT_SYSENTER:
            return self._instructions.sysenter(vmcs)
        if event == UNDEFINED_OPCODE:
            return self._instructions.unknown(vmcs)
        raise RuntimeError(f"engine event {event}, error {self._engine.info[e.INFO_UC_ERROR]:#x} in guest mode")

    def _exit(self, vmcs: Vmcs, code: int) -> ExitReason | None:
        """The VT-x exit for one of AMD's; None if the guest may simply go on."""
        if code == svm.NESTED_FAULT:
            vmcs.guest_physical = self._u32[vmcs.block + svm.B_EXIT_INFO_2 >> 2]
            error = self._engine.info[e.INFO_ERROR_CODE]
            if error & 2:
                vmcs.exit_qualification = EPT_WRITE
            else:  # an instruction that reads what it is going to write says so
                modifies = not error & 16 and self._view.instruction(vmcs).modifies
                vmcs.exit_qualification = EPT_READ | EPT_WRITE if modifies else EPT_READ
            return ExitReason.EPT_VIOLATION
        if svm.EXCEPTION <= code < svm.EXCEPTION + 32:
            return self._exception(vmcs, code - svm.EXCEPTION)
        if code == svm.SHUTDOWN:
            return ExitReason.TRIPLE_FAULT
        if code == svm.RDTSC:
            if not vmcs.cpu_controls & RDTSC_EXITING:
                return self._instructions.read_time(vmcs)
            vmcs.exit_length = self._view.instruction(vmcs).length
            return ExitReason.RDTSC
        if code < svm.EXCEPTION:
            if code >= svm.DR_READ:
                return self._debugging.access(vmcs, self._view.instruction(vmcs))
            try:
                return self._control.access(vmcs, code)
            except (WalkFault, NestedPageFault) as problem:
                return self._operand_missing(vmcs, problem)
        if code == svm.TASK_SWITCH:
            vmcs.exit_qualification = self._u32[vmcs.block + svm.B_EXIT_INFO_1 >> 2] & 0xFFFF | _GATE
            return ExitReason.TASK_SWITCH
        instruction = self._view.instruction(vmcs)
        vmcs.exit_length = instruction.length
        if code == svm.SOFTWARE:
            return self._software_interrupt(vmcs, instruction)
        if code in (svm.INVD, svm.WBINVD):
            if instruction.name == "wbinvd":
                return self._ending.skip(vmcs)
            return ExitReason.INVD
        if code == svm.INVLPG:
            vmcs.exit_qualification = vmcs.guest_linear = self._view.effective_address(vmcs, instruction)
            return ExitReason.INVLPG
        if code == svm.MSR:
            return ExitReason.WRMSR if self._engine.info[e.INFO_ERROR_CODE] else ExitReason.RDMSR
        if svm.VMRUN <= code <= svm.SKINIT:  # AMD's own instructions do not exist on this CPU
            return self._ending.fault(vmcs, UNDEFINED_OPCODE)
        raise RuntimeError(f"AMD exit code {code:#x} was not asked for")

    def _operand_missing(self, vmcs: Vmcs, problem: WalkFault | NestedPageFault) -> ExitReason | None:
        """An instruction that is done here faults on its memory operand, as it would have done in the engine."""
        vmcs.exit_length = vmcs.exit_qualification = 0
        self._engine.info[e.INFO_ERROR_CODE] = problem.error_code
        if isinstance(problem, NestedPageFault):
            return self._exit(vmcs, self._delivery.exit_for(problem).code)
        self._delivery.note_page_fault(problem, vmcs.exceptions_that_exit)
        return self._exception(vmcs, PAGE_FAULT)

    def _deliver(self, vmcs: Vmcs) -> ExitReason | None:
        """An event whose delivery is not simple: it goes through a task gate, or something faults on its way."""
        info, env, delivery = self._engine.info, self._engine.env32, self._delivery
        eip, kind = env[e.ENV_EIP >> 2], KINDS[info[e.INFO_KIND]]
        event = GuestEvent(
            info[e.INFO_VECTOR], kind, info[e.INFO_ERROR_CODE], eip, info[e.INFO_BACK], bool(info[e.INFO_INJECTED])
        )
        delivery.exiting = vmcs.exceptions_that_exit
        before = delivery.attempts
        result = delivery.deliver(event)
        self._engine.charge(delivery.attempts - before)
        registers = vmcs.registers
        registers[EIP], registers[EFLAGS] = env[e.ENV_EIP >> 2], env[e.ENV_EFLAGS >> 2]
        registers[ESP] = env[_ENV_ESP]
        if result is None:
            return None
        if result.code == svm.TASK_SWITCH and kind is KINDS[e.KIND_EXCEPTION] and event.vector not in NOT_RESTARTED:
            registers[EFLAGS] |= FLAG_RF  # as the old task's TSS is to have it
        info[e.INFO_ERROR_CODE] = result.error_code
        return self._exit(vmcs, result.code)

    def _exception(self, vmcs: Vmcs, vector: int) -> ExitReason | None:
        """An exception that the engine stopped for: for the monitor, or for us, or the guest's after all."""
        if vector == DEBUG:
            return self._debugging.exception(vmcs)
        if vector == UNDEFINED_OPCODE:
            reason = self._instructions.vmx_instruction(vmcs)
            if reason is not None:
                return reason
        error = self._engine.info[e.INFO_ERROR_CODE]
        if vector == GENERAL_PROTECTION and vmcs.cpu_controls & MOV_DR_EXITING and not error:
            instruction = self._view.instruction(vmcs)
            if instruction.opcode in (b"\x0f\x21", b"\x0f\x23") and vmcs.control_register(0) & CR0_PE:
                return self._debugging.access(vmcs, instruction)
        if not vmcs.exceptions_that_exit >> vector & 1:
            return self._ending.fault(vmcs, vector, error)
        return self._exception_exit(vmcs, vector)

    def _exception_exit(self, vmcs: Vmcs, vector: int) -> ExitReason:
        """The exit that the exception bitmap asks for."""
        kind = SOFTWARE_EXCEPTION if vector in (BREAKPOINT, OVERFLOW) else HARDWARE_EXCEPTION
        vmcs.exit_info = EVENT_VALID | kind << 8 | vector
        # In real mode exceptions have no error codes; a page fault there is one of shadow tables, which need to know.
        if vector == PAGE_FAULT or (vector in WITH_ERROR_CODE and vmcs.control_register(0) & CR0_PE):
            vmcs.exit_info |= EVENT_HAS_ERROR_CODE
            vmcs.exit_error = self._engine.info[e.INFO_ERROR_CODE]
        if vector == PAGE_FAULT:
            vmcs.exit_qualification = self._u32[vmcs.block + svm.B_EXIT_INFO_2 >> 2]
            if vmcs.shadowed:  # most of them are no faults of the guest's: see `is_guest_fault`
                return ExitReason.EXCEPTION_OR_NMI
            self.is_guest_fault(vmcs, vmcs.exit_error)
        if kind == SOFTWARE_EXCEPTION or self._ending.tells_length(vmcs, vector):
            vmcs.exit_length = self._view.instruction(vmcs).length
        if vector not in NOT_RESTARTED:
            vmcs.registers[EFLAGS] |= FLAG_RF  # as the frame of the exception would have had it
        return ExitReason.EXCEPTION_OR_NMI

    def is_guest_fault(self, vmcs: Vmcs, error: int) -> None:
        """The page fault that exited is the guest's own. Its error code, and the flags as its frame would have them."""
        # In the midst of an event's delivery EIP has nothing to do with it.
        delivering = (vmcs.idt_info | self._u32[vmcs.block + svm.B_EVENT >> 2]) & EVENT_VALID
        if error & 0x12 == 0 and not delivering and self._view.instruction(vmcs).modifies:
            error |= 2
        vmcs.exit_error = error
        vmcs.registers[EFLAGS] |= FLAG_RF

    def _software_interrupt(self, vmcs: Vmcs, instruction: Instruction) -> ExitReason | None:
        """INT3 and INTO are exceptions, which the bitmap covers; INT n goes on to the guest."""
        code = self._view.read_code(vmcs, MAX_LENGTH)[: instruction.length]
        vector = {"int3": BREAKPOINT, "into": OVERFLOW}.get(instruction.name)
        if vector is not None and vmcs.exception_bitmap >> vector & 1:
            return self._exception_exit(vmcs, vector)
        if vector is None:
            if not code:  # executed out of the TLB, and the tables do not lead there any more
                return self._ending.fault(vmcs, GENERAL_PROTECTION, 0)
            vector = code[-1]
        vmcs.exit_length = 0
        self._engine.inject(vector, e.KIND_SOFTWARE, 0, instruction.length)
        return None
