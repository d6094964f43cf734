# SPDX-License-Identifier: GPL-2.0-or-later
"""Debugging of a guest's own: its breakpoints, and its accesses to debug registers.

The engine's debug registers stay as after reset, so a guest with breakpoints runs instruction by instruction, each
looked at before. What hits is breakpoints.py's to say; what becomes of a debug exception is in ending.py.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.exceptions import DEBUG, UNDEFINED_OPCODE
from l4lab.abi.frame import EFLAGS, EIP, FLAG_RF
from l4lab.abi.vm import ExitReason
from l4lab.machine import breakpoints as bp
from l4lab.machine import engine as e
from l4lab.machine import svm
from l4lab.machine.decode import MAX_LENGTH, Instruction
from l4lab.machine.ending import InstructionEnd
from l4lab.machine.engine import Engine
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import Memory
from l4lab.machine.vmcs import CR4_DE, DR7_GENERAL_DETECT, Vmcs
from l4lab.machine.vtx import MOV_DR_EXITING

_WIDE_STACK: Final = 1 << 5  # of HFLAGS
_HFLAGS: Final = e.ENV_HFLAGS >> 2
_DR_ZERO: Final = {6: 1 << 12, 7: 0xD800}  # reserved bits
_DEBUG_EVENT: Final = e.VM_EXIT + svm.EXCEPTION + DEBUG


class Debugging:
    """Watches the guest that is loaded."""

    def __init__(self, memory: Memory, engine: Engine, view: GuestView, ending: InstructionEnd) -> None:
        self._u32 = memory.u32
        self._engine = engine
        self._view = view
        self._ending = ending
        self._debug = 0  # bits of DR6 for the debug exception that is on its way

    def run(self, vmcs: Vmcs, deadline: int) -> int:
        """As the engine's run(), for a guest with breakpoints of its own: an instruction at a time, each looked at."""
        engine, at = self._engine, vmcs.frame >> 2
        breakpoints = bp.enabled(vmcs.debug_register)
        while engine.cycles < deadline:
            hits, resumes = 0, self._u32[at + EFLAGS] & FLAG_RF  # RF: this instruction has been looked at already
            if engine.pending_injection < 0:
                linear = vmcs.segment_base("cs") + self._u32[at + EIP] & 0xFFFFFFFF
                if not resumes:
                    self._debug = bp.execution_hits(breakpoints, linear)
                    if self._debug:
                        return _DEBUG_EVENT
                code = self._view.read_code(vmcs, MAX_LENGTH)
                stack_mask = 0xFFFFFFFF if vmcs.state[_HFLAGS] & _WIDE_STACK else 0xFFFF
                bits, register_of = self._view.bits(vmcs), self._view.register_of(vmcs)
                hits = bp.data_hits(breakpoints, code, bits, register_of, vmcs.segment_base, stack_mask)
            retired = engine.retired
            event: int = engine.run(vmcs.frame, engine.cycles + 1)
            vmcs.registers[EFLAGS] |= engine.env32[e.ENV_EFLAGS >> 2] & FLAG_RF  # an IRET has set it
            if hits and engine.retired != retired:
                self._debug = hits | (bp.SINGLE_STEP if event == _DEBUG_EVENT else 0)
                return _DEBUG_EVENT
            if event != e.EVENT_BUDGET:
                return event
        return e.EVENT_BUDGET

    def exception(self, vmcs: Vmcs) -> ExitReason | None:
        """The debug exception for which the engine, or `run`, stopped."""
        bits, self._debug = self._debug, 0
        return self._ending.debug_exception(vmcs, bits or bp.SINGLE_STEP)

    def access(self, vmcs: Vmcs, instruction: Instruction) -> ExitReason | None:
        """MOV to or from a debug register: an exit in any ring if asked for; else DR4..DR7 are kept by us."""
        from_register, number = instruction.opcode[-1] == 0x21, instruction.control
        if vmcs.cpu_controls & MOV_DR_EXITING:
            vmcs.exit_length = instruction.length
            vmcs.exit_qualification = number | (16 if from_register else 0) | instruction.register << 8
            return ExitReason.DR_ACCESS
        vmcs.exit_length = 0
        if number in (4, 5):
            if vmcs.control_register(4) & CR4_DE:
                return self._ending.fault(vmcs, UNDEFINED_OPCODE)
            number += 2
        if vmcs.debug_register(7) & DR7_GENERAL_DETECT:
            return self._ending.debug_exception(vmcs, bp.GENERAL_DETECT)
        index = 9 - instruction.register
        if from_register:
            vmcs.registers[index] = vmcs.debug_register(number)
        else:
            value = vmcs.registers[index]
            fixed = {6: 0xFFFF0FF0, 7: 0x400}.get(number, 0)
            vmcs.set_debug_register(number, value & ~_DR_ZERO.get(number, 0) | fixed)
        return self._ending.skip(vmcs)
