# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest mode: entering a virtual CPU, and leaving it with what Intel VT-x would say about why.

The engine's hardware virtualization is AMD's (svm.py). Nobody above this file knows: there, controls, masks and
shadows are obeyed, and exits look, as the SDM (vol. 3, chapters "VM Entries", "VM Exits") has it. In this order:

    guestmode.py     the entry: intercepts by the controls, the event to deliver; the loop of what does not exit
    exits.py         what ended the run: from the engine's events to exit reasons
    portexits.py     port instructions
    controlregs.py   accesses to control registers
    instructions.py  instructions that the engine leaves to us: SYSENTER, task switches, VMX, ...
    debugging.py     breakpoints and debug registers of the guest's own
    ending.py        how an instruction that we did ends: it retires, or it faults
    delivery.py      events whose delivery is not simple; ring0.py is the memory in which that happens
    guestview.py     looking at the guest: its code, its operands

Nested paging: the page tables of the VM's address space are the second level; a guest-physical address that they do
not map is an EPT violation.
"""

from __future__ import annotations

import struct
from enum import Enum, auto
from typing import Final

from l4lab.abi.exceptions import BREAKPOINT, DEBUG, GENERAL_PROTECTION, OVERFLOW
from l4lab.abi.frame import EFLAGS, EIP
from l4lab.abi.vm import CR3_LOAD_EXITING, CR3_STORE_EXITING, EVENT_HAS_ERROR_CODE, EVENT_VALID, ExitReason
from l4lab.machine import engine as e
from l4lab.machine import svm
from l4lab.machine.debugging import Debugging
from l4lab.machine.ending import InstructionEnd
from l4lab.machine.engine import Engine
from l4lab.machine.exits import ExitTranslator
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.vmcs import DR7_GENERAL_DETECT, Vmcs
from l4lab.machine.vtx import (
    EXTERNAL,
    HARDWARE_EXCEPTION,
    HLT_EXITING,
    INVLPG_EXITING,
    MONITOR_EXITING,
    MOV_DR_EXITING,
    MWAIT_EXITING,
    NMI,
    PAUSE_EXITING,
    PRIVILEGED_SOFTWARE,
    RDPMC_EXITING,
    RDTSC_EXITING,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TSC_OFFSETTING,
    WINDOW,
)

REGION_FRAMES: Final = svm.REGION_FRAMES  # what the kernel gives the CPU for it
MOST_ROUNDS: Final = 64  # exits that stay in the CPU, before the caller may look whether somebody wants to stop

_ALWAYS: Final = sum(
    1 << code - svm.FIRST_INTERCEPT
    for code in (
        *(svm.RDTSC, svm.CPUID, svm.INVD, svm.WBINVD, svm.MSR, svm.TASK_SWITCH, svm.SHUTDOWN),
        *range(svm.VMRUN, svm.SKINIT + 1),
    )
)
_CONTROLLED: Final = (
    (HLT_EXITING, svm.HLT),
    (INVLPG_EXITING, svm.INVLPG),
    (MWAIT_EXITING, svm.MWAIT),
    (RDPMC_EXITING, svm.RDPMC),
    (MONITOR_EXITING, svm.MONITOR),
    (PAUSE_EXITING, svm.PAUSE),
)
_DR_SPECIAL: Final = 0xF0 | 0xF0 << 16  # DR4..DR7, read and written: ours to keep, see Vmcs
# The engine's kind of event for each of VT-x, and VT-x's for each of AMD.
_KIND: Final = {
    EXTERNAL: e.KIND_EXTERNAL,
    NMI: e.KIND_NMI,
    HARDWARE_EXCEPTION: e.KIND_EXCEPTION,
    SOFTWARE_INTERRUPT: e.KIND_SOFTWARE,
    PRIVILEGED_SOFTWARE: e.KIND_EXCEPTION,  # INT1: no privilege check
    SOFTWARE_EXCEPTION: e.KIND_SOFTWARE,
}
_FROM_AMD: Final = {0: EXTERNAL, 2: NMI, 3: HARDWARE_EXCEPTION, 4: SOFTWARE_INTERRUPT}


class Pause(Enum):
    """Why a guest's run came back without an exit. It simply goes on when it is entered again."""

    DEADLINE = auto()  # the clock reads so, or the run has taken long by the host's clock
    PAGING_CHANGED = auto()  # what the shadow tables depend on: they must follow before the guest goes on
    MANY_ROUNDS = auto()  # it did much of which nobody needs to hear: a chance to look whether somebody wants to stop


class GuestMode:
    """The CPU's virtualization: makes virtual CPUs and runs them. One per machine."""

    def __init__(self, memory: Memory, engine: Engine, region: int) -> None:
        """`region`: physical address of REGION_FRAMES frames, the kernel's gift (as VMXON takes one)."""
        self._memory = memory
        self._u32 = memory.u32
        self._engine = engine
        self._region = region
        self._template: bytes | None = None
        self.view = GuestView(memory, engine)
        self._ending = InstructionEnd(memory, engine, self.view)
        self._debugging = Debugging(memory, engine, self.view, self._ending)
        self._exits = ExitTranslator(memory, engine, self.view, self._ending, self._debugging)
        self._set = (-1, 0)  # controls and time offset as the engine was told last
        memory.fill(region + svm.MSR_MAP * PAGE_SIZE, 2 * PAGE_SIZE, 0xFF)  # every MSR access exits

    def create(self, frame: int, block: int, nested_cr3: int) -> Vmcs:
        """A virtual CPU in the state after VMCLEAR and initialisation (see the kernel for the first values).

        `frame` is its register frame, `block` a page frame for the engine's control block, `nested_cr3` the page
        directory that translates guest-physical addresses.
        """
        if self._template is None:
            self._template = svm.first_vmrun(self._memory, self._engine, self._region, block, nested_cr3)
        self._memory.fill(block, PAGE_SIZE)
        self._memory.write(block + svm.B_MSRPM, struct.pack("<Q", self._region + svm.MSR_MAP * PAGE_SIZE))
        vmcs = Vmcs(bytearray(self._template), frame, self._memory.register_frame(frame), block)
        vmcs.state[e.ENV_VM_VMCB >> 2] = block
        vmcs.state[e.ENV_NESTED_CR3 >> 2] = nested_cr3
        return vmcs

    # -- running one ---------------------------------------------------------------------------------------------------

    def enter(self, vmcs: Vmcs, deadline: int) -> ExitReason | Pause:
        """Run the loaded virtual CPU until an exit that its controls ask for, or say why it paused without one.

        The caller has made `vmcs` the engine's current state. On an exit its exit fields are filled in and its frame
        holds the guest's registers, EIP at the exiting instruction.
        """
        engine = self._engine
        frame = vmcs.frame
        run = engine.run
        vmcs.idt_info = vmcs.exit_info = vmcs.exit_error = vmcs.exit_length = 0
        vmcs.exit_qualification = vmcs.guest_linear = 0
        if vmcs.stale:
            self._derive(vmcs)
        if (vmcs.cpu_controls, vmcs.tsc_offset) != self._set:
            self._obey_controls(vmcs)
        injected = vmcs.entry_info
        if injected & EVENT_VALID:
            began = engine.retired, self._u32[(frame >> 2) + EIP]
            kind = _KIND.get(vmcs.entry_info >> 8 & 7)
            if kind is None:
                return ExitReason.ENTRY_FAILURE_GUEST_STATE  # there are no events of such a type
            self._inject(vmcs, kind)
        for _ in range(MOST_ROUNDS):
            event = self._debugging.run(vmcs, deadline) if vmcs.watched else run(frame, deadline)
            if vmcs.entry_info & EVENT_VALID:
                if engine.pending_injection < 0:
                    vmcs.entry_info &= ~EVENT_VALID
                else:
                    engine.inject(-1, 0, 0, 0)  # it waits in the VMCS until the next entry
                    if vmcs.entry_info >> 8 & 7 == NMI:
                        vmcs.block_nmi(False)
            if event == e.EVENT_BUDGET:
                return Pause.DEADLINE
            reason = self._exits.translate(vmcs, event)
            if reason is None and vmcs.paging_changed:
                return Pause.PAGING_CHANGED
            if reason is not None:
                if self._u32[vmcs.block + svm.B_EVENT >> 2] & EVENT_VALID:
                    self._note_interrupted_delivery(vmcs)
                    if injected & EVENT_VALID and began == (engine.retired, self._u32[(frame >> 2) + EIP]):
                        vmcs.idt_info = injected  # the engine does not know all types
                return reason
            if vmcs.stale:
                self._derive(vmcs)
        return Pause.MANY_ROUNDS

    def _inject(self, vmcs: Vmcs, kind: int) -> None:
        """Order the event of the VM-entry interruption information."""
        if kind == e.KIND_NMI:
            vmcs.block_nmi(True)
        length = vmcs.entry_length if vmcs.entry_info >> 8 & 4 else 0  # only instructions have one
        self._engine.inject(vmcs.entry_info & 0xFF, kind, vmcs.entry_error, length)

    def _note_interrupted_delivery(self, vmcs: Vmcs) -> None:
        """An exit in the midst of an event's delivery: the engine left the event in its block."""
        at = vmcs.block + svm.B_EVENT >> 2
        event = self._u32[at]
        self._memory.set_word(at, 0)
        vector, amd_type = event & 0xFF, event >> 8 & 7
        kind = _FROM_AMD[amd_type]
        if kind == SOFTWARE_INTERRUPT:
            instruction = self.view.instruction(vmcs)
            if instruction.name in ("int3", "into"):
                kind = SOFTWARE_EXCEPTION
            vmcs.exit_length = instruction.length
        vmcs.idt_info = EVENT_VALID | kind << 8 | vector | (event & EVENT_HAS_ERROR_CODE)
        vmcs.idt_error = self._u32[at + 1]

    def withdraw(self) -> None:
        """Another CPU state is loaded: what was ordered for the last guest, an interrupt window above all, is void."""
        self._engine.set_window(False)
        self._set = (-1, 0)

    def skip(self, vmcs: Vmcs) -> ExitReason | None:
        """The instruction that exited has been done by the caller; it retires."""
        return self._ending.skip(vmcs)

    def is_guest_fault(self, vmcs: Vmcs, error: int) -> None:
        """The page fault that exited is the guest's own, with this error code."""
        self._exits.is_guest_fault(vmcs, error)

    # -- what the engine is told ---------------------------------------------------------------------------------------

    def _derive(self, vmcs: Vmcs) -> None:
        """Bring what the engine derives in line with the control registers, and its intercepts with the controls."""
        vmcs.derive_flags(self._u32[(vmcs.frame >> 2) + EFLAGS])
        state = vmcs.state
        intercept = _ALWAYS
        for control, code in _CONTROLLED:
            if vmcs.cpu_controls & control:
                intercept |= 1 << code - svm.FIRST_INTERCEPT
        if vmcs.shadowed:
            intercept |= 1 << svm.INVLPG - svm.FIRST_INTERCEPT
        if vmcs.exception_bitmap & (1 << BREAKPOINT | 1 << OVERFLOW):  # AMD's intercepts leave INT3 and INTO out
            intercept |= 1 << svm.SOFTWARE - svm.FIRST_INTERCEPT
        state[e.ENV_INTERCEPT >> 2], state[(e.ENV_INTERCEPT >> 2) + 1] = intercept & 0xFFFFFFFF, intercept >> 32
        state[e.ENV_INTERCEPT_CR >> 2] = self._cr_intercepts(vmcs)
        exceptions = vmcs.exceptions_that_exit | 1 << DEBUG
        if vmcs.cpu_controls & MOV_DR_EXITING:
            exceptions |= 1 << GENERAL_PROTECTION  # which MOV DR raises in ring 3, but the exit goes first
        detect = vmcs.debug_register(7) & DR7_GENERAL_DETECT or vmcs.cpu_controls & MOV_DR_EXITING
        state[e.ENV_INTERCEPT_DR >> 2] = 0x00FF00FF if detect else _DR_SPECIAL
        state[e.ENV_INTERCEPT_EXCEPTIONS >> 2] = exceptions & ~4
        self._engine.flush_tlb()

    @staticmethod
    def _cr_intercepts(vmcs: Vmcs) -> int:
        """Reads in the low half, writes in the high half, a bit per control register."""
        # Of CR0 always: SMSW stores 32 bits into a register, and the engine only 16.
        # Writes always: the engine takes paging without protection, and CR4.PSE stays one, see Vmcs.
        reads, writes = 1 << 0, 1 << 0 | 1 << 4
        if vmcs.visible_cr4() != vmcs.control_register(4):
            reads |= 1 << 4
        if vmcs.shadowed:
            reads |= 1 << 3
            writes |= 1 << 3
        reads |= 1 << 3 if vmcs.cpu_controls & CR3_STORE_EXITING else 0
        writes |= 1 << 3 if vmcs.cpu_controls & CR3_LOAD_EXITING else 0
        return reads | writes << 16

    def _obey_controls(self, vmcs: Vmcs) -> None:
        """Tell the engine what it does by itself: watch for the interrupt window, let the guest read the clock."""
        controls = vmcs.cpu_controls
        self._set = controls, vmcs.tsc_offset
        self._engine.set_window(bool(controls & WINDOW))
        offset = vmcs.tsc_offset & 0xFFFFFFFFFFFFFFFF if controls & TSC_OFFSETTING else 0
        self._engine.set_time(not controls & RDTSC_EXITING, offset)
