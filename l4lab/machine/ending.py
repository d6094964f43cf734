# SPDX-License-Identifier: GPL-2.0-or-later
"""How an instruction of a guest ends that the CPU left to us: it retires, or it faults.

Lives here: what every such instruction has in common. What it does is in the file of its kind (instructions.py,
controlregs.py, debugging.py). An end can be an exit itself, if the monitor asked to hear of the exception.
"""

from __future__ import annotations

from l4lab.abi.exceptions import DEBUG, GENERAL_PROTECTION, NOT_RESTARTED
from l4lab.abi.frame import EFLAGS, EIP, FLAG_RF, FLAG_TF, FLAG_VM
from l4lab.abi.vm import EVENT_HAS_ERROR_CODE, EVENT_VALID, ExitReason
from l4lab.machine import breakpoints as bp
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import Memory
from l4lab.machine.vmcs import CR0_PE, DR7_GENERAL_DETECT, Vmcs
from l4lab.machine.vtx import HARDWARE_EXCEPTION


class InstructionEnd:
    """Ends the instruction at the EIP of the guest that is loaded. None: the guest may simply go on."""

    def __init__(self, memory: Memory, engine: Engine, view: GuestView) -> None:
        self._u32 = memory.u32
        self._engine = engine
        self._view = view

    def skip(self, vmcs: Vmcs) -> ExitReason | None:
        """The instruction has been done; it retires."""
        registers = vmcs.registers
        # Where it has changed how memory is translated it can no longer be read; its exit has told its length.
        length = vmcs.exit_length or self._view.instruction(vmcs).length
        registers[EIP] = registers[EIP] + length & 0xFFFFFFFF
        vmcs.end_shadow()
        vmcs.exit_length = vmcs.exit_qualification = 0
        self._engine.charge(1)
        if registers[EFLAGS] & FLAG_TF:
            return self.debug_exception(vmcs, bp.SINGLE_STEP)
        return None

    def fault(self, vmcs: Vmcs, vector: int, error: int | None = None) -> ExitReason | None:
        """The instruction faults: through the exception bitmap as any fault, else into the guest's own IDT."""
        if vmcs.exception_bitmap >> vector & 1:
            vmcs.exit_info = EVENT_VALID | HARDWARE_EXCEPTION << 8 | vector
            if error is not None and vmcs.control_register(0) & CR0_PE:
                vmcs.exit_info |= EVENT_HAS_ERROR_CODE
                vmcs.exit_error = error
            vmcs.exit_length = self._view.instruction(vmcs).length if self.tells_length(vmcs, vector) else 0
            vmcs.exit_qualification = 0
            vmcs.registers[EFLAGS] |= FLAG_RF
            return ExitReason.EXCEPTION_OR_NMI
        vmcs.exit_length = vmcs.exit_qualification = 0
        if vector not in NOT_RESTARTED:
            vmcs.registers[EFLAGS] |= FLAG_RF
        self._engine.inject(vector, e.KIND_EXCEPTION, error or 0, 0)
        return None

    def tells_length(self, vmcs: Vmcs, vector: int) -> bool:
        """Does the exit for this exception have the instruction's length?

        The SDM leaves it undefined. A monitor that does for its guest what virtual-8086 mode refuses counts on it with
        #GP, as it was with the CPUs of the time.
        """
        return vector == GENERAL_PROTECTION and bool(self._u32[(vmcs.frame >> 2) + EFLAGS] & FLAG_VM)

    def debug_exception(self, vmcs: Vmcs, bits: int) -> ExitReason | None:
        """#DB: an exit has the bits in its qualification and leaves DR6 alone; the guest's own has them in DR6."""
        if vmcs.exception_bitmap >> DEBUG & 1:
            vmcs.exit_info = EVENT_VALID | HARDWARE_EXCEPTION << 8 | DEBUG
            vmcs.exit_qualification = bits
            return ExitReason.EXCEPTION_OR_NMI
        vmcs.set_debug_register(6, vmcs.debug_register(6) & ~0xF | bits)
        if vmcs.debug_register(7) & DR7_GENERAL_DETECT:
            vmcs.set_debug_register(7, vmcs.debug_register(7) & ~DR7_GENERAL_DETECT)
        self._engine.inject(DEBUG, e.KIND_EXCEPTION, 0, 0)
        return None
