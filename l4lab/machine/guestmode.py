# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest mode: entering a virtual CPU, and presenting what ended its run as Intel VT-x would.

The engine's hardware virtualization is AMD's (SVM with nested paging). This file is the only one that knows: above it
there are basic exit reasons, exit qualifications, instruction lengths and interruption information as the SDM (vol. 3,
chapters "VM Entries", "VM Exits") defines them, and controls, masks and shadows are obeyed as written there. What
a guest does without its monitor having asked to know of it (time stamp, unmasked control-register bits, exceptions
outside the bitmap) never leaves this file.

Nested paging: the page tables of the VM's address space are the second level; a guest-physical address that they do
not map is an EPT violation.
"""

from __future__ import annotations

import struct

from l4lab.abi.frame import EAX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP
from l4lab.abi.vm import ExitReason
from l4lab.machine import breakpoints as bp
from l4lab.machine import engine as e
from l4lab.machine.decode import MAX_LENGTH, Instruction
from l4lab.machine.delivery import KINDS, Delivery, Event, Fault
from l4lab.machine.engine import Engine
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import NestedPageFault, PageFault
from l4lab.machine.vmcs import CR0_ET, CR0_PE, CR0_PG, CR4_DE, CR4_EXISTING, DR7_GENERAL_DETECT, Vmcs
from l4lab.machine.vmxinfo import vmx_instruction

REGION_FRAMES = 4  # what the kernel gives the CPU for guest mode: host save area, permission maps
_STUB, _SAVE_AREA, _MSR_MAP = 0, 1, 2  # frames of that region; the map takes two

MOST_ROUNDS = 64  # exits that stay in this file, before the caller may look whether somebody wants to stop

# AMD exit codes, as the engine raises them (AMD64 manual vol. 2, appendix "SVM Intercept Exit Codes").
CR_READ, CR_WRITE, DR_READ, DR_WRITE, EXCEPTION = 0x00, 0x10, 0x20, 0x30, 0x40
RDTSC, RDPMC, CPUID, INVD, PAUSE, HLT, INVLPG, MSR, TASK_SWITCH, SHUTDOWN = (
    *(0x6E, 0x6F, 0x72, 0x76, 0x77, 0x78, 0x79, 0x7C, 0x7D, 0x7F),
)
VMRUN, VMMCALL, SKINIT, MONITOR, MWAIT, WBINVD, NESTED_FAULT = 0x80, 0x81, 0x86, 0x8A, 0x8B, 0x89, 0x400
SOFTWARE = 0x75  # INT n, INT3, INTO
_FIRST = 0x60  # the exit code of bit 0 of the intercept word
_ALWAYS = (RDTSC, CPUID, INVD, WBINVD, MSR, TASK_SWITCH, SHUTDOWN, *range(VMRUN, SKINIT + 1))

# CPU-based controls (SDM, table "Definitions of Primary Processor-Based VM-Execution Controls").
WINDOW, TSC_OFFSETTING = 1 << 2, 1 << 3
HLT_EXITING, INVLPG_EXITING, MWAIT_EXITING, RDPMC_EXITING, RDTSC_EXITING = (1 << n for n in (7, 9, 10, 11, 12))
CR3_LOAD_EXITING, CR3_STORE_EXITING, MOV_DR_EXITING, MONITOR_EXITING, PAUSE_EXITING = (
    1 << n for n in (15, 16, 23, 29, 30)
)
_CONTROLLED = (
    (HLT_EXITING, HLT),
    (INVLPG_EXITING, INVLPG),
    (MWAIT_EXITING, MWAIT),
    (RDPMC_EXITING, RDPMC),
    (MONITOR_EXITING, MONITOR),
    (PAUSE_EXITING, PAUSE),
)

# Interruption types, and the vectors that push an error code.
EXTERNAL, NMI, HARDWARE_EXCEPTION, SOFTWARE_INTERRUPT, PRIVILEGED_SOFTWARE, SOFTWARE_EXCEPTION = 0, 2, 3, 4, 5, 6
BREAKPOINT, OVERFLOW, PAGE_FAULT = 3, 4, 14
VALID, ERROR_CODE_VALID = 1 << 31, 1 << 11
WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17))
_KIND = {
    EXTERNAL: 0,
    NMI: 3,
    HARDWARE_EXCEPTION: 1,
    SOFTWARE_INTERRUPT: 2,
    PRIVILEGED_SOFTWARE: 1,  # INT1: no privilege check
    SOFTWARE_EXCEPTION: 2,
}

# The engine's control block (VMCB): offsets of what we use.
_B_INTERCEPT, _B_IOPM, _B_MSRPM, _B_ASID, _B_EXIT_INFO_1, _B_EXIT_INFO_2 = 0x0C, 0x40, 0x48, 0x58, 0x78, 0x80
_B_NESTED_ON, _B_EVENT, _B_NESTED_CR3 = 0x90, 0xA8, 0xB0
_B_SAVE = 0x400

_SIMPLE = {
    RDPMC: ExitReason.RDPMC,
    CPUID: ExitReason.CPUID,
    HLT: ExitReason.HLT,
    PAUSE: ExitReason.PAUSE,
    MWAIT: ExitReason.MWAIT,
    MONITOR: ExitReason.MONITOR,
}
_TF, _IF, _IOPL, _RF, _VM = 1 << 8, 1 << 9, 3 << 12, 1 << 16, 1 << 17  # of EFLAGS
_WIDE_STACK = 1 << 5  # of HFLAGS
_DR_ZERO = {6: 1 << 12, 7: 0xD800}  # reserved bits
_ENV_ESP = 8  # a word of the engine's CPU state
_CPL = e.ENV_HFLAGS >> 2
DEBUG, UNDEFINED, DOUBLE_FAULT, NOT_PRESENT, GENERAL_PROTECTION, PAGE_FAULT, MACHINE_CHECK = 1, 6, 8, 11, 13, 14, 18
_NOT_RESTARTED = frozenset((DEBUG, BREAKPOINT, OVERFLOW, DOUBLE_FAULT, MACHINE_CHECK))  # traps and aborts leave RF
_DR_SPECIAL = 0xF0 | 0xF0 << 16  # DR4..DR7, read and written: ours to keep, see Vmcs
_DEBUG_EVENT: int = e.VM_EXIT + EXCEPTION + DEBUG
_CALL, _IRET, _JUMP, _GATE = (source << 30 for source in range(4))  # of a task switch
_IO_MAP = 0x66  # in a TSS: where its I/O permission map begins


class GuestMode(GuestView):
    """The CPU's virtualization: makes virtual CPUs and runs them. One per machine."""

    def __init__(self, memory: Memory, engine: Engine, region: int) -> None:
        """`region`: physical address of REGION_FRAMES frames, the kernel's gift (as VMXON takes one)."""
        super().__init__(memory, engine)
        self._region = region
        self._template: bytes | None = None
        self._delivery = Delivery(memory, engine.env32, engine.forget_code)
        self._debug = 0  # bits of DR6 for the debug exception that is on its way
        self._set = (-1, 0)  # controls and time offset as the engine was told last
        memory.fill(region + _MSR_MAP * PAGE_SIZE, 2 * PAGE_SIZE, 0xFF)  # every MSR access exits

    # -- making a virtual CPU ------------------------------------------------------------------------------------

    def create(self, frame: int, block: int, nested_cr3: int) -> Vmcs:
        """A virtual CPU in the state after VMCLEAR and initialisation (see the kernel for the first values).

        `frame` is its register frame, `block` a page frame for the engine's control block, `nested_cr3` the page
        directory that translates guest-physical addresses.
        """
        if self._template is None:
            self._template = self._first_vmrun(block, nested_cr3)
        self._memory.fill(block, PAGE_SIZE)
        struct.pack_into("<Q", self._memory.u8, block + _B_MSRPM, self._region + _MSR_MAP * PAGE_SIZE)
        vmcs = Vmcs(bytearray(self._template), frame, block)
        vmcs.state[e.ENV_VM_VMCB >> 2] = block
        vmcs.state[e.ENV_NESTED_CR3 >> 2] = nested_cr3
        return vmcs

    def _first_vmrun(self, block: int, nested_cr3: int) -> bytes:
        """Enter guest mode once by the real instruction; the CPU state it leaves is the mould of all virtual CPUs."""
        memory, engine = self._memory, self._engine
        before = bytearray(e.ENV_SIZE)
        engine.swap(before, engine.reset_state)
        at = self._region
        engine.write_msr(0xC0000080, 1 << 12)  # EFER.SVME
        engine.write_msr(0xC0010117, at + _SAVE_AREA * PAGE_SIZE)  # VM_HSAVE_PA
        engine.write_register("CR0", 0x11)
        memory.write(at, b"\x0f\x01\xd8")  # VMRUN
        memory.fill(block, PAGE_SIZE)
        for offset, form, value in (
            (_B_INTERCEPT, "<Q", 1 << VMRUN - _FIRST),
            (_B_IOPM, "<Q", at + _MSR_MAP * PAGE_SIZE),
            (_B_MSRPM, "<Q", at + _MSR_MAP * PAGE_SIZE),
            (_B_ASID, "<I", 1),
            (_B_NESTED_ON, "<Q", 1),
            (_B_NESTED_CR3, "<Q", nested_cr3),
            (_B_SAVE + 0xD0, "<Q", 1 << 12),  # EFER
            (_B_SAVE + 0x158, "<Q", 0x10),  # CR0: real mode
            (_B_SAVE + 0x160, "<Q", 0x400),  # DR7
            (_B_SAVE + 0x168, "<Q", 0xFFFF0FF0),  # DR6
            (_B_SAVE + 0x170, "<Q", 2),  # RFLAGS
        ):
            struct.pack_into(form, memory.u8, block + offset, value)
        frame = [0] * 10
        frame[EIP], frame[EFLAGS], frame[EAX] = at, 2, block
        scratch = at + PAGE_SIZE - 64
        memory.u32[scratch >> 2 : (scratch >> 2) + 10] = memoryview(struct.pack("<10I", *frame)).cast("I")
        code = struct.Struct("<HHIQ")
        code.pack_into(memory.u8, block + _B_SAVE + 0x10, 0, 0x93, 0xFFFF, 0)
        for offset in (0x00, 0x20, 0x30):
            code.pack_into(memory.u8, block + _B_SAVE + offset, 0, 0x93, 0xFFFF, 0)
        event = engine.run(scratch, engine.cycles + 1)
        if not engine.env32[e.ENV_HFLAGS >> 2] & e.HF_GUEST:
            raise RuntimeError(f"VMRUN did not enter guest mode (event {event}): the engine is not the one we probed")
        guest = bytearray(e.ENV_SIZE)
        engine.swap(guest, before)
        memory.fill(at, PAGE_SIZE)
        engine.forget_all_code()
        return bytes(guest)

    # -- running one ---------------------------------------------------------------------------------------------

    def enter(self, vmcs: Vmcs, deadline: int) -> ExitReason | None:
        """Run the loaded virtual CPU until an exit that its controls ask for, or until `deadline` (then None).

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
        if injected & VALID:
            began = engine.retired, self._u32[(frame >> 2) + EIP]
            kind = _KIND.get(vmcs.entry_info >> 8 & 7)
            if kind is None:
                return ExitReason.ENTRY_FAILURE_GUEST_STATE  # there are no events of such a type
            self._inject(vmcs, kind)
        for _ in range(MOST_ROUNDS):
            event = self._run_watched(vmcs, deadline) if vmcs.watched else run(frame, deadline)
            if vmcs.entry_info & VALID:
                if engine.pending_injection < 0:
                    vmcs.entry_info &= ~VALID
                else:
                    engine.inject(-1, 0, 0, 0)  # it waits in the VMCS until the next entry
                    if vmcs.entry_info >> 8 & 7 == NMI:
                        vmcs.block_nmi(False)
            if event == e.EVENT_BUDGET:
                return None
            reason = self._translate(vmcs, event)
            if reason is None and vmcs.paging_changed:
                return None  # shadow tables must follow before the guest goes on
            if reason is not None:
                if self._u32[vmcs.block + _B_EVENT >> 2] & VALID:
                    self._note_interrupted_delivery(vmcs)
                    if injected & VALID and began == (engine.retired, self._u32[(frame >> 2) + EIP]):
                        vmcs.idt_info = injected  # the engine does not know all types
                return reason
            if vmcs.stale:
                self._derive(vmcs)
        return None

    def _inject(self, vmcs: Vmcs, kind: int) -> None:
        """Order the event of the VM-entry interruption information."""
        if kind == e.KIND_NMI:
            vmcs.block_nmi(True)
        length = vmcs.entry_length if vmcs.entry_info >> 8 & 4 else 0  # only instructions have one
        self._engine.inject(vmcs.entry_info & 0xFF, kind, vmcs.entry_error, length)

    def withdraw(self) -> None:
        """Another CPU state is loaded: what was ordered for the last guest, an interrupt window above all, is void."""
        self._engine.set_window(False)
        self._set = (-1, 0)

    def _derive(self, vmcs: Vmcs) -> None:
        """Bring what the engine derives in line with the control registers, and its intercepts with the controls."""
        vmcs.derive_flags(self._u32[(vmcs.frame >> 2) + EFLAGS])
        state = vmcs.state
        intercept = sum(1 << code - _FIRST for code in _ALWAYS)
        for control, code in _CONTROLLED:
            if vmcs.cpu_controls & control:
                intercept |= 1 << code - _FIRST
        if vmcs.shadowed:
            intercept |= 1 << INVLPG - _FIRST
        if vmcs.exception_bitmap & (1 << BREAKPOINT | 1 << OVERFLOW):  # AMD's intercepts leave INT3 and INTO out
            intercept |= 1 << SOFTWARE - _FIRST
        state[e.ENV_INTERCEPT >> 2], state[(e.ENV_INTERCEPT >> 2) + 1] = intercept & 0xFFFFFFFF, intercept >> 32
        state[e.ENV_INTERCEPT_CR >> 2] = self._cr_intercepts(vmcs)
        exceptions = vmcs.exceptions_that_exit | 1 << DEBUG
        if vmcs.cpu_controls & MOV_DR_EXITING:
            exceptions |= 1 << GENERAL_PROTECTION  # which MOV DR raises in ring 3, but the exit goes first
        detect = vmcs.debug_register(7) & DR7_GENERAL_DETECT or vmcs.cpu_controls & MOV_DR_EXITING
        state[e.ENV_INTERCEPT_DR >> 2] = 0x00FF00FF if detect else _DR_SPECIAL
        state[e.ENV_INTERCEPT_EXCEPTIONS >> 2] = exceptions & ~4
        self._engine.flush_tlb()

    def _obey_controls(self, vmcs: Vmcs) -> None:
        """Tell the engine what it does by itself: watch for the interrupt window, let the guest read the clock."""
        controls = vmcs.cpu_controls
        self._set = controls, vmcs.tsc_offset
        self._engine.set_window(bool(controls & WINDOW))
        offset = vmcs.tsc_offset & 0xFFFFFFFFFFFFFFFF if controls & TSC_OFFSETTING else 0
        self._engine.set_time(not controls & RDTSC_EXITING, offset)

    @staticmethod
    def _cr_intercepts(vmcs: Vmcs) -> int:
        """Reads in the low half, writes in the high half, a bit per control register."""
        reads = writes = 0
        if vmcs.visible_cr0() != vmcs.control_register(0):
            reads |= 1 << 0
        if vmcs.visible_cr4() != vmcs.control_register(4):
            reads |= 1 << 4
        # Writes always: the engine takes paging without protection, and CR4.PSE stays one, see Vmcs.
        writes |= 1 << 0 | 1 << 4
        if vmcs.shadowed:
            reads |= 1 | 1 << 3
            writes |= 1 << 3
        reads |= 1 << 3 if vmcs.cpu_controls & CR3_STORE_EXITING else 0
        writes |= 1 << 3 if vmcs.cpu_controls & CR3_LOAD_EXITING else 0
        return reads | writes << 16

    def _note_interrupted_delivery(self, vmcs: Vmcs) -> None:
        """An exit in the midst of an event's delivery: the engine left the event in its block."""
        at = vmcs.block + _B_EVENT >> 2
        event = self._u32[at]
        self._u32[at] = 0
        vector, amd_type = event & 0xFF, event >> 8 & 7
        kind = {0: EXTERNAL, 2: NMI, 3: HARDWARE_EXCEPTION, 4: SOFTWARE_INTERRUPT}[amd_type]
        if kind == SOFTWARE_INTERRUPT:
            instruction = self._instruction(vmcs)
            if instruction.name in ("int3", "into"):
                kind = SOFTWARE_EXCEPTION
            vmcs.exit_length = instruction.length
        vmcs.idt_info = VALID | kind << 8 | vector | (event & ERROR_CODE_VALID)
        vmcs.idt_error = self._u32[at + 1]

    def _deliver(self, vmcs: Vmcs) -> ExitReason | None:
        """An event whose delivery is not simple: it goes through a task gate, or something faults on its way."""
        info, env, delivery = self._engine.info, self._engine.env32, self._delivery
        eip, kind = env[e.ENV_EIP >> 2], KINDS[info[e.INFO_KIND]]
        event = Event(
            info[e.INFO_VECTOR], kind, info[e.INFO_ERROR_CODE], eip, info[e.INFO_BACK], bool(info[e.INFO_INJECTED])
        )
        delivery.exiting = vmcs.exceptions_that_exit
        before = delivery.attempts
        result = delivery.deliver(event)
        self._engine.charge(delivery.attempts - before)
        at = vmcs.frame >> 2
        self._u32[at + EIP], self._u32[at + EFLAGS] = env[e.ENV_EIP >> 2], env[e.ENV_EFLAGS >> 2]
        self._u32[at + ESP] = env[_ENV_ESP]
        if result is None:
            return None
        if result.code == TASK_SWITCH and kind is KINDS[e.KIND_EXCEPTION] and event.vector not in _NOT_RESTARTED:
            self._u32[at + EFLAGS] |= _RF  # as the old task's TSS is to have it
        info[e.INFO_ERROR_CODE] = result.error_code
        return self._exit(vmcs, result.code)

    # -- exits ---------------------------------------------------------------------------------------------------

    def _translate(self, vmcs: Vmcs, event: int) -> ExitReason | None:
        """The VT-x exit for an engine event; None if the guest may simply go on."""
        simple = _SIMPLE.get(event - e.VM_EXIT)
        if simple is not None:
            vmcs.exit_length = self._instruction(vmcs).length
            return simple
        if event in (e.EVENT_IN, e.EVENT_OUT):
            info = self._engine.info
            return self._port_exit(vmcs, event == e.EVENT_IN, info[e.INFO_PORT], info[e.INFO_SIZE])
        if event >= e.VM_EXIT:
            return self._exit(vmcs, event - e.VM_EXIT)
        if event == e.EVENT_WINDOW:
            return ExitReason.INTERRUPT_WINDOW
        if event == e.EVENT_DELIVER:
            return self._deliver(vmcs)
        if event == e.EVENT_BEFORE:
            return self._before(vmcs)
        if event == e.EVENT_SYSENTER:
            return self._sysenter(vmcs)
        if event == UNDEFINED:
            return self._invalid_opcode(vmcs)
        raise RuntimeError(f"engine event {event}, error {self._engine.info[e.INFO_UC_ERROR]:#x} in guest mode")

    def _exit(self, vmcs: Vmcs, code: int) -> ExitReason | None:
        """The VT-x exit for one of AMD's; None if the guest may simply go on."""
        if code == NESTED_FAULT:
            vmcs.guest_physical = self._u32[vmcs.block + _B_EXIT_INFO_2 >> 2]
            error = self._engine.info[e.INFO_ERROR_CODE]
            is_write = error & 2 or (not error & 16 and self._instruction(vmcs).modifies)
            vmcs.exit_qualification = 2 if is_write else 1
            return ExitReason.EPT_VIOLATION
        if EXCEPTION <= code < EXCEPTION + 32:
            return self._exception(vmcs, code - EXCEPTION)
        if code == SHUTDOWN:
            return ExitReason.TRIPLE_FAULT
        if code == RDTSC:
            if not vmcs.cpu_controls & RDTSC_EXITING:
                return self._read_time(vmcs)
            vmcs.exit_length = self._instruction(vmcs).length
            return ExitReason.RDTSC
        if code < EXCEPTION:
            return self._register_exit(vmcs, code)
        if code == TASK_SWITCH:
            vmcs.exit_qualification = self._u32[vmcs.block + _B_EXIT_INFO_1 >> 2] & 0xFFFF | _GATE
            return ExitReason.TASK_SWITCH
        instruction = self._instruction(vmcs)
        vmcs.exit_length = instruction.length
        if code == SOFTWARE:
            return self._software_interrupt(vmcs, instruction)
        if code in (INVD, WBINVD):
            if instruction.name == "wbinvd":
                return self.skip(vmcs)
            return ExitReason.INVD
        if code == INVLPG:
            vmcs.exit_qualification = vmcs.guest_linear = self._effective_address(vmcs, instruction)
            return ExitReason.INVLPG
        if code == MSR:
            return ExitReason.WRMSR if self._engine.info[e.INFO_ERROR_CODE] else ExitReason.RDMSR
        if VMRUN <= code <= SKINIT:  # AMD's own instructions do not exist on this CPU
            return self._raise(vmcs, UNDEFINED)
        raise RuntimeError(f"AMD exit code {code:#x} was not asked for")

    def _port_exit(self, vmcs: Vmcs, is_in: bool, port: int, size: int) -> ExitReason | None:
        if vmcs.state[_CPL] & e.HF_CPL and not self._port_allowed(vmcs, port, size):
            return self._raise(vmcs, GENERAL_PROTECTION, 0)
        instruction = self._instruction(vmcs)
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

    def _port_allowed(self, vmcs: Vmcs, port: int, size: int) -> bool:
        """May a program of this guest, outside ring 0, use these ports? (SDM vol. 1, "I/O Permission Bit Map")"""
        eflags = self._u32[(vmcs.frame >> 2) + EFLAGS]
        if not eflags & _VM and vmcs.state[_CPL] & e.HF_CPL <= (eflags & _IOPL) >> 12:
            return True
        _, base, limit, attributes = vmcs.segment("tr")
        if attributes & 0x8D != 0x89 or limit < _IO_MAP + 1:  # only a 32-bit TSS has a map
            return False
        try:
            at = self._delivery.read(base + _IO_MAP, 2) + (port >> 3)
            if at + 1 > limit:
                return False
            return not self._delivery.read(base + at, 2) >> (port & 7) & (1 << size) - 1
        except (PageFault, NestedPageFault):
            return False

    def _exception(self, vmcs: Vmcs, vector: int) -> ExitReason | None:
        """An exception that the engine stopped for: for the monitor, or for us, or the guest's after all."""
        if vector == DEBUG:
            bits, self._debug = self._debug, 0
            return self._debug_exception(vmcs, bits or bp.SINGLE_STEP)
        if vector == UNDEFINED:
            reason = self._vmx_instruction(vmcs)
            if reason is not None:
                return reason
        error = self._engine.info[e.INFO_ERROR_CODE]
        if vector == GENERAL_PROTECTION and vmcs.cpu_controls & MOV_DR_EXITING and not error:
            instruction = self._instruction(vmcs)
            if instruction.opcode in (b"\x0f\x21", b"\x0f\x23") and vmcs.control_register(0) & CR0_PE:
                return self._debug_access(vmcs, instruction)
        if not vmcs.exceptions_that_exit >> vector & 1:
            return self._raise(vmcs, vector, error)
        return self._exception_exit(vmcs, vector)

    def _exception_exit(self, vmcs: Vmcs, vector: int) -> ExitReason:
        kind = SOFTWARE_EXCEPTION if vector in (BREAKPOINT, OVERFLOW) else HARDWARE_EXCEPTION
        vmcs.exit_info = VALID | kind << 8 | vector
        # In real mode exceptions have no error codes; a page fault there is one of shadow tables, which need to know.
        if vector == PAGE_FAULT or (vector in WITH_ERROR_CODE and vmcs.control_register(0) & CR0_PE):
            vmcs.exit_info |= ERROR_CODE_VALID
            vmcs.exit_error = self._engine.info[e.INFO_ERROR_CODE]
        if vector == PAGE_FAULT:
            vmcs.exit_qualification = self._u32[vmcs.block + _B_EXIT_INFO_2 >> 2]
            if vmcs.shadowed:  # most of them are no faults of the guest's: see `is_guest_fault`
                return ExitReason.EXCEPTION_OR_NMI
            self.is_guest_fault(vmcs, vmcs.exit_error)
        if kind == SOFTWARE_EXCEPTION:
            vmcs.exit_length = self._instruction(vmcs).length
        if vector not in _NOT_RESTARTED:
            self._u32[(vmcs.frame >> 2) + EFLAGS] |= _RF  # as the frame of the exception would have had it
        return ExitReason.EXCEPTION_OR_NMI

    def is_guest_fault(self, vmcs: Vmcs, error: int) -> None:
        """The page fault that exited is the guest's own. Its error code, and the flags as its frame would have them."""
        delivering = (
            vmcs.idt_info | self._u32[vmcs.block + _B_EVENT >> 2]
        ) & VALID  # then EIP has nothing to do with it
        if error & 0x12 == 0 and not delivering and self._instruction(vmcs).modifies:
            error |= 2
        vmcs.exit_error = error
        self._u32[(vmcs.frame >> 2) + EFLAGS] |= _RF

    def _software_interrupt(self, vmcs: Vmcs, instruction: Instruction) -> ExitReason | None:
        """INT3 and INTO are exceptions, which the bitmap covers; INT n goes on to the guest."""
        code = self.read_code(vmcs, MAX_LENGTH)[: instruction.length]
        vector = {"int3": BREAKPOINT, "into": OVERFLOW}.get(instruction.name)
        if vector is not None and vmcs.exception_bitmap >> vector & 1:
            return self._exception_exit(vmcs, vector)
        if vector is None:
            if not code:  # executed out of the TLB, and the tables do not lead there any more
                return self._raise(vmcs, 13, 0)
            vector = code[-1]
        vmcs.exit_length = 0
        self._engine.inject(vector, e.KIND_SOFTWARE, 0, instruction.length)
        return None

    # -- instructions that the engine leaves to us -----------------------------------------------------------------

    def _before(self, vmcs: Vmcs) -> ExitReason | None:
        """The guest is about to execute INS, or a far jump, call or return that may be a task switch."""
        instruction = self._instruction(vmcs)
        opcode = instruction.opcode[0]
        at = vmcs.frame >> 2
        if opcode in (0x6C, 0x6D):
            count = self._u32[at + ECX] & (0xFFFF if instruction.address_size == 2 else 0xFFFFFFFF)
            if count or not instruction.repeat:
                size = 1 if opcode == 0x6C else instruction.operand_size
                return self._port_exit(vmcs, True, self._u32[at + EDX] & 0xFFFF, size)
            self._engine.go_on()
            return None
        try:
            switch = self._task_switch(vmcs, instruction)
        except Fault as fault:
            return self._raise(vmcs, fault.vector, fault.error_code)
        except (PageFault, NestedPageFault):
            switch = None  # as the engine is about to find out, too
        if switch is None:
            self._engine.go_on()
            return None
        vmcs.exit_qualification = switch
        vmcs.exit_length = instruction.length
        return ExitReason.TASK_SWITCH

    def _task_switch(self, vmcs: Vmcs, instruction: Instruction) -> int | None:
        """Selector and source if it switches tasks, which is an exit; all checks come before (SDM, "Task Switches")."""
        delivery = self._delivery
        code = self.read_code(vmcs, instruction.length)
        if instruction.opcode[0] == 0xCF:
            selector = delivery.read(vmcs.segment("tr")[1], 2)
            delivery.check_task(selector, returning=True)
            return selector | _IRET
        if instruction.opcode[0] == 0xFF:
            source = _CALL if instruction.register_field == 3 else _JUMP
            selector = delivery.read(self._effective_address(vmcs, instruction) + instruction.operand_size, 2)
        else:
            source = _CALL if instruction.opcode[0] == 0x9A else _JUMP
            selector = code[-2] | code[-1] << 8
        found = delivery.descriptor(selector) if selector & 0xFFFC else None
        if found is None or found[1] >> 8 & 0x1F not in (1, 3, 5, 9, 11):
            return None
        cpl, dpl = vmcs.state[_CPL] & e.HF_CPL, found[1] >> 13 & 3
        if dpl < cpl or dpl < selector & 3:
            raise Fault(GENERAL_PROTECTION, selector & 0xFFFC)
        if found[1] >> 8 & 0x1F == 5:
            if not found[1] & 1 << 15:
                raise Fault(NOT_PRESENT, selector & 0xFFFC)
            selector = found[0] >> 16
        delivery.check_task(selector)
        return selector | source

    def _sysenter(self, vmcs: Vmcs) -> ExitReason | None:
        """SYSENTER: flat ring 0 at the place that the MSRs name. The engine leaves it to its user."""
        selector = vmcs.sysenter(0) & 0xFFFC
        if not selector:
            return self._raise(vmcs, GENERAL_PROTECTION, 0)
        vmcs.set_segment("cs", selector, 0, 0xFFFFFFFF, 0xC09B)
        vmcs.set_segment("ss", selector + 8, 0, 0xFFFFFFFF, 0xC093)
        at = vmcs.frame >> 2
        self._u32[at + EFLAGS] &= ~(_VM | _IF | _RF)
        self._u32[at + ESP], self._u32[at + EIP] = vmcs.sysenter(1), vmcs.sysenter(2)
        self._engine.charge(1)
        return None

    def _int1(self, vmcs: Vmcs) -> ExitReason | None:
        """INT1: a debug exception without bits in DR6, and without a privilege check."""
        if vmcs.exception_bitmap >> DEBUG & 1:
            vmcs.exit_info = VALID | PRIVILEGED_SOFTWARE << 8 | DEBUG
            return ExitReason.EXCEPTION_OR_NMI
        self._engine.inject(DEBUG, e.KIND_EXCEPTION, 0, vmcs.exit_length)
        vmcs.exit_length = 0
        return None

    # -- debugging of the guest's own ------------------------------------------------------------------------------

    def _debug_exception(self, vmcs: Vmcs, bits: int) -> ExitReason | None:
        """#DB: an exit has the bits in its qualification and leaves DR6 alone; the guest's own has them in DR6."""
        if vmcs.exception_bitmap >> DEBUG & 1:
            vmcs.exit_info = VALID | HARDWARE_EXCEPTION << 8 | DEBUG
            vmcs.exit_qualification = bits
            return ExitReason.EXCEPTION_OR_NMI
        vmcs.set_debug_register(6, vmcs.debug_register(6) & ~0xF | bits)
        if vmcs.debug_register(7) & DR7_GENERAL_DETECT:
            vmcs.set_debug_register(7, vmcs.debug_register(7) & ~DR7_GENERAL_DETECT)
        self._engine.inject(DEBUG, e.KIND_EXCEPTION, 0, 0)
        return None

    def _debug_access(self, vmcs: Vmcs, instruction: Instruction) -> ExitReason | None:
        """MOV to or from a debug register: an exit in any ring if asked for; else DR4..DR7 are kept by us."""
        from_register, number = instruction.opcode[-1] == 0x21, instruction.control
        if vmcs.cpu_controls & MOV_DR_EXITING:
            vmcs.exit_length = instruction.length
            vmcs.exit_qualification = number | (16 if from_register else 0) | instruction.register << 8
            return ExitReason.DR_ACCESS
        vmcs.exit_length = 0
        if number in (4, 5):
            if vmcs.control_register(4) & CR4_DE:
                return self._raise(vmcs, UNDEFINED)
            number += 2
        if vmcs.debug_register(7) & DR7_GENERAL_DETECT:
            return self._debug_exception(vmcs, bp.GENERAL_DETECT)
        index = (vmcs.frame >> 2) + 9 - instruction.register
        if from_register:
            self._u32[index] = vmcs.debug_register(number)
        else:
            value = self._u32[index]
            fixed = {6: 0xFFFF0FF0, 7: 0x400}.get(number, 0)
            vmcs.set_debug_register(number, value & ~_DR_ZERO.get(number, 0) | fixed)
        return self.skip(vmcs)

    def _run_watched(self, vmcs: Vmcs, deadline: int) -> int:
        """As the engine's run(), for a guest with breakpoints of its own: an instruction at a time, each looked at."""
        engine, at = self._engine, vmcs.frame >> 2
        breakpoints = bp.enabled(vmcs.debug_register)
        while engine.cycles < deadline:
            hits, resumes = 0, self._u32[at + EFLAGS] & _RF  # RF: this instruction has been looked at already
            if engine.pending_injection < 0:
                linear = vmcs.segment_base("cs") + self._u32[at + EIP] & 0xFFFFFFFF
                if not resumes:
                    self._debug = bp.execution_hits(breakpoints, linear)
                    if self._debug:
                        return _DEBUG_EVENT
                code = self.read_code(vmcs, MAX_LENGTH)
                stack_mask = 0xFFFFFFFF if vmcs.state[_CPL] & _WIDE_STACK else 0xFFFF
                hits = bp.data_hits(
                    breakpoints, code, self.bits(vmcs), self._register_of(vmcs), vmcs.segment_base, stack_mask
                )
            retired = engine.retired
            event: int = engine.run(vmcs.frame, engine.cycles + 1)
            if not resumes:
                self._u32[at + EFLAGS] |= engine.env32[e.ENV_EFLAGS >> 2] & _RF  # an IRET has set it
            if hits and engine.retired != retired:
                self._debug = hits | (bp.SINGLE_STEP if event == _DEBUG_EVENT else 0)
                return _DEBUG_EVENT
            if event != e.EVENT_BUDGET:
                return event
        return e.EVENT_BUDGET

    # -- control registers -----------------------------------------------------------------------------------------

    def _register_exit(self, vmcs: Vmcs, code: int) -> ExitReason | None:
        """MOV to and from CR and DR, CLTS, LMSW, SMSW: an exit, or done here when masks and shadows say so."""
        instruction = self._instruction(vmcs)
        vmcs.exit_length = instruction.length
        if code >= DR_READ:
            return self._debug_access(vmcs, instruction)
        number = code & 15
        if code < CR_WRITE:
            if number == 3:
                vmcs.exit_qualification = 3 | 1 << 4 | instruction.register << 8
                return ExitReason.CR_ACCESS
            value = vmcs.visible_cr0() if number == 0 else vmcs.visible_cr4()
            if instruction.name == "smsw" and instruction.memory:
                return self._smsw_to_memory(vmcs, instruction, value & 0xFFFF)
            index = (vmcs.frame >> 2) + 9 - instruction.register
            if instruction.name == "smsw" and instruction.operand_size == 2:
                value = self._u32[index] & 0xFFFF0000 | value & 0xFFFF
            self._u32[index] = value
            return self.skip(vmcs)
        old = vmcs.control_register(number)
        if instruction.name == "clts":
            new, access = old & ~8, 2 << 4
        elif instruction.name == "lmsw":
            try:
                source = self._operand16(vmcs, instruction)
            except (PageFault, NestedPageFault) as problem:
                return self._operand_missing(vmcs, problem)
            new = old & ~0xE | source & 0xF | old & 1  # LMSW can set PE but not clear it
            access = 3 << 4 | source << 16 | (64 if instruction.memory else 0)
            if instruction.memory:
                vmcs.guest_linear = self._effective_address(vmcs, instruction)
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
            return self._raise(vmcs, GENERAL_PROTECTION, 0)
        if number == 0:
            new |= CR0_ET
        vmcs.set_control_register(number, old & mask | new & ~mask)  # which keeps CR4.PSE, see Vmcs
        return self.skip(vmcs)

    def _operand16(self, vmcs: Vmcs, instruction: Instruction) -> int:
        """LMSW's source; PageFault or NestedPageFault."""
        if instruction.memory is None:
            return self._u32[(vmcs.frame >> 2) + 9 - instruction.register] & 0xFFFF
        return self._delivery.read(self._effective_address(vmcs, instruction), 2)

    @staticmethod
    def _asked_of(name: str, new: int, shadow: int) -> int:
        """What the guest, which sees the shadow, wants the register to be: CLTS and LMSW touch some bits only."""
        if name == "clts":
            return shadow & ~8
        if name == "lmsw":
            return shadow & ~0xE | new & 0xE | (shadow | new) & 1
        return new

    def _invalid_opcode(self, vmcs: Vmcs) -> ExitReason | None:
        """What the engine does not know: VMX instructions and MONITOR exit, any other is the guest's own #UD."""
        return self._vmx_instruction(vmcs) or self._rare_instruction(vmcs)

    def _vmx_instruction(self, vmcs: Vmcs) -> ExitReason | None:
        found = vmx_instruction(self.read_code(vmcs, MAX_LENGTH), self.bits(vmcs))
        if found is None:
            return None
        real = not vmcs.control_register(0) & CR0_PE or self._u32[(vmcs.frame >> 2) + EFLAGS] & _VM
        if real and found.reason is not ExitReason.VMCALL:
            return None
        vmcs.exit_length, vmcs.exit_qualification = found.length, found.qualification
        vmcs.instruction_info = found.information
        return found.reason

    def _rare_instruction(self, vmcs: Vmcs) -> ExitReason | None:
        """INT1; MONITOR and MWAIT in ring 0: exits if asked for, else as if what is waited for had happened."""
        instruction = self._instruction(vmcs)
        if instruction.opcode == b"\xf1":
            vmcs.exit_length = instruction.length
            return self._int1(vmcs)
        control = {"monitor": MONITOR_EXITING, "mwait": MWAIT_EXITING}.get(instruction.name)
        if control is None or vmcs.state[_CPL] & e.HF_CPL:
            return self._raise(vmcs, UNDEFINED)
        if not vmcs.cpu_controls & control:
            return self.skip(vmcs)
        vmcs.exit_length = instruction.length
        return ExitReason.MONITOR if control == MONITOR_EXITING else ExitReason.MWAIT

    # -- what the guest does without an exit ---------------------------------------------------------------------

    def skip(self, vmcs: Vmcs) -> ExitReason | None:
        """The instruction has been done; it retires."""
        at = vmcs.frame >> 2
        # Where it has changed how memory is translated it can no longer be read; its exit has told its length.
        length = vmcs.exit_length or self._instruction(vmcs).length
        self._u32[at + EIP] = self._u32[at + EIP] + length & 0xFFFFFFFF
        vmcs.end_shadow()
        vmcs.exit_length = vmcs.exit_qualification = 0
        self._engine.charge(1)
        if self._u32[at + EFLAGS] & _TF:
            return self._debug_exception(vmcs, bp.SINGLE_STEP)
        return None

    def _raise(self, vmcs: Vmcs, vector: int, error: int | None = None) -> ExitReason | None:
        """The instruction faults: through the exception bitmap as any fault, else into the guest's own IDT."""
        if vmcs.exception_bitmap >> vector & 1:
            vmcs.exit_info = VALID | HARDWARE_EXCEPTION << 8 | vector
            if error is not None and vmcs.control_register(0) & CR0_PE:
                vmcs.exit_info |= ERROR_CODE_VALID
                vmcs.exit_error = error
            vmcs.exit_length = vmcs.exit_qualification = 0
            self._u32[(vmcs.frame >> 2) + EFLAGS] |= _RF
            return ExitReason.EXCEPTION_OR_NMI
        vmcs.exit_length = vmcs.exit_qualification = 0
        if vector not in _NOT_RESTARTED:
            self._u32[(vmcs.frame >> 2) + EFLAGS] |= _RF
        self._engine.inject(vector, e.KIND_EXCEPTION, error or 0, 0)
        return None

    def _read_time(self, vmcs: Vmcs) -> ExitReason | None:
        """RDTSC: the machine's clock, which is the only time there is."""
        ticks = self._engine.cycles
        if vmcs.cpu_controls & TSC_OFFSETTING:
            ticks += vmcs.tsc_offset
        at = vmcs.frame >> 2
        self._u32[at + EAX], self._u32[at + EDX] = ticks & 0xFFFFFFFF, ticks >> 32 & 0xFFFFFFFF
        return self.skip(vmcs)

    def _smsw_to_memory(self, vmcs: Vmcs, instruction: Instruction, value: int) -> ExitReason | None:
        try:
            user = vmcs.state[_CPL] & e.HF_CPL == 3
            self._delivery.write(self._effective_address(vmcs, instruction), value, 2, user)
        except (PageFault, NestedPageFault) as problem:
            return self._operand_missing(vmcs, problem)
        return self.skip(vmcs)

    def _operand_missing(self, vmcs: Vmcs, problem: PageFault | NestedPageFault) -> ExitReason | None:
        """An instruction that is done here faults on its memory operand, as it would have done in the engine."""
        vmcs.exit_length = vmcs.exit_qualification = 0
        self._engine.info[e.INFO_ERROR_CODE] = problem.error_code
        if isinstance(problem, NestedPageFault):
            return self._exit(vmcs, self._delivery.exit_for(problem).code)
        self._delivery.note_page_fault(problem, vmcs.exceptions_that_exit)
        return self._exception(vmcs, PAGE_FAULT)
