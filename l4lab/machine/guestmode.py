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

from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP
from l4lab.abi.vm import ExitReason
from l4lab.machine import engine as e
from l4lab.machine.decode import MAX_LENGTH, Instruction, decode
from l4lab.machine.engine import Engine
from l4lab.machine.guestview import GuestView
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import NestedPageFault, PageFault
from l4lab.machine.vmcs import CR0_PE, CR0_PG, Vmcs

REGION_FRAMES = 4  # what the kernel gives the CPU for guest mode: host save area, permission maps
_STUB, _SAVE_AREA, _MSR_MAP = 0, 1, 2  # frames of that region; the map takes two

MOST_ROUNDS = 64  # exits that stay in this file, before the caller may look whether somebody wants to stop

# AMD exit codes, as the engine raises them (AMD64 manual vol. 2, appendix "SVM Intercept Exit Codes").
CR_READ, CR_WRITE, DR_READ, DR_WRITE, EXCEPTION = 0x00, 0x10, 0x20, 0x30, 0x40
RDTSC, RDPMC, CPUID, RSM, INVD, PAUSE, HLT, INVLPG, MSR, TASK_SWITCH, SHUTDOWN = (
    *(0x6E, 0x6F, 0x72, 0x73, 0x76, 0x77, 0x78, 0x79, 0x7C, 0x7D, 0x7F),
)
VMRUN, VMMCALL, SKINIT, MONITOR, MWAIT, WBINVD, NESTED_FAULT = 0x80, 0x81, 0x86, 0x8A, 0x8B, 0x89, 0x400
SOFTWARE = 0x75  # INT n, INT3, INTO
_FIRST = 0x60  # the exit code of bit 0 of the intercept word
_ALWAYS = (RDTSC, CPUID, INVD, WBINVD, MSR, TASK_SWITCH, SHUTDOWN, RSM, *range(VMRUN, SKINIT + 1))

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
    NMI: 0,
    HARDWARE_EXCEPTION: 1,
    SOFTWARE_INTERRUPT: 2,
    PRIVILEGED_SOFTWARE: 2,
    SOFTWARE_EXCEPTION: 2,
}

# The engine's control block (VMCB): offsets of what we use.
_B_CR_INTERCEPT, _B_INTERCEPT, _B_IOPM, _B_MSRPM, _B_ASID, _B_EXIT_INFO_2, _B_NESTED_ON, _B_EVENT, _B_NESTED_CR3 = (
    *(0x00, 0x0C, 0x40, 0x48, 0x58, 0x80, 0x90, 0xA8, 0xB0),
)
_B_SAVE = 0x400

_SIMPLE = {
    RDPMC: ExitReason.RDPMC,
    RSM: ExitReason.RSM,
    CPUID: ExitReason.CPUID,
    HLT: ExitReason.HLT,
    PAUSE: ExitReason.PAUSE,
    MWAIT: ExitReason.MWAIT,
    MONITOR: ExitReason.MONITOR,
}
# VMX instructions, by opcode and the reg field of the byte after it where that decides.
_VMX = {
    b"\x0f\x01\xc1": ExitReason.VMCALL,
    b"\x0f\x01\xc2": ExitReason.VMLAUNCH,
    b"\x0f\x01\xc3": ExitReason.VMRESUME,
    b"\x0f\x01\xc4": ExitReason.VMXOFF,
}
_VMX_OPERAND = {
    (b"\x0f\x78", None): ExitReason.VMREAD,
    (b"\x0f\x79", None): ExitReason.VMWRITE,
    (b"\x0f\xc7", 6): ExitReason.VMPTRLD,
    (b"\x0f\xc7", 7): ExitReason.VMPTRST,
}
_FRAME_INDEX = {"eax": EAX, "ecx": ECX, "edx": EDX, "ebx": EBX, "esp": ESP, "ebp": EBP, "esi": ESI, "edi": EDI}


class GuestMode(GuestView):
    """The CPU's virtualization: makes virtual CPUs and runs them. One per machine."""

    def __init__(self, memory: Memory, engine: Engine, region: int) -> None:
        """`region`: physical address of REGION_FRAMES frames, the kernel's gift (as VMXON takes one)."""
        super().__init__(memory, engine)
        self._region = region
        self._template: bytes | None = None
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
        if vmcs.stale:
            self._derive(vmcs)
        if (vmcs.cpu_controls, vmcs.tsc_offset) != self._set:
            self._obey_controls(vmcs)
        vmcs.idt_info = vmcs.exit_info = vmcs.exit_error = vmcs.exit_length = 0
        vmcs.exit_qualification = vmcs.guest_linear = 0
        injected = vmcs.entry_info
        if injected & VALID:
            began = engine.retired, engine.deliveries + 1
            kind = _KIND.get(vmcs.entry_info >> 8 & 7)
            if kind is None:
                return ExitReason.ENTRY_FAILURE_GUEST_STATE  # there are no events of such a type
            engine.inject(vmcs.entry_info & 0xFF, kind, vmcs.entry_error, vmcs.entry_length)
        for _ in range(MOST_ROUNDS):
            event = run(frame, deadline)
            if vmcs.entry_info & VALID:
                if engine.pending_injection < 0:
                    vmcs.entry_info &= ~VALID
                else:
                    engine.inject(-1, 0, 0, 0)  # it waits in the VMCS until the next entry
            if event == e.EVENT_BUDGET:
                return None
            reason = self._translate(vmcs, event)
            if reason is None and vmcs.paging_changed:
                return None  # shadow tables must follow before the guest goes on
            if reason is not None:
                if self._u32[vmcs.block + _B_EVENT >> 2] & VALID:
                    self._note_interrupted_delivery(vmcs)
                    if injected & VALID and began == (engine.retired, engine.deliveries):
                        vmcs.idt_info = injected  # the engine does not know all types
                return reason
            if vmcs.stale:
                self._derive(vmcs)
        return None

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
        state[e.ENV_INTERCEPT_DR >> 2] = 0xFFFFFFFF if vmcs.cpu_controls & MOV_DR_EXITING else 0
        exceptions = vmcs.exception_bitmap & ~4 | (1 << PAGE_FAULT if vmcs.shadowed else 0)
        state[e.ENV_INTERCEPT_EXCEPTIONS >> 2] = exceptions
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
        writes |= (1 << 0 if vmcs.cr0_mask else 0) | 1 << 4  # CR4 always: its PSE stays one, see Vmcs
        if vmcs.shadowed:
            reads |= 1 | 1 << 3
            writes |= 1 | 1 << 3
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
        if kind == SOFTWARE_INTERRUPT and vector in (3, 4):
            kind = SOFTWARE_EXCEPTION
        vmcs.idt_info = VALID | kind << 8 | vector | (event & ERROR_CODE_VALID)
        vmcs.idt_error = self._u32[at + 1]

    # -- exits ---------------------------------------------------------------------------------------------------

    def _translate(self, vmcs: Vmcs, event: int) -> ExitReason | None:
        """The VT-x exit for an engine event; None if the guest may simply go on."""
        simple = _SIMPLE.get(event - e.VM_EXIT)
        if simple is not None:
            vmcs.exit_length = self._instruction(vmcs).length
            return simple
        if event in (e.EVENT_IN, e.EVENT_OUT):
            return self._port_exit(vmcs, event == e.EVENT_IN)
        if event == e.EVENT_WINDOW:
            return ExitReason.INTERRUPT_WINDOW
        if event == 6:
            return self._invalid_opcode(vmcs)
        if event < e.VM_EXIT:
            raise RuntimeError(f"engine event {event}, error {self._engine.info[e.INFO_UC_ERROR]:#x} in guest mode")
        code = event - e.VM_EXIT
        if code == NESTED_FAULT:
            vmcs.guest_physical = self._u32[vmcs.block + _B_EXIT_INFO_2 >> 2]
            error = self._engine.info[e.INFO_ERROR_CODE]
            vmcs.exit_qualification = 2 if error & 2 else 1
            return ExitReason.EPT_VIOLATION
        if EXCEPTION <= code < EXCEPTION + 32:
            return self._exception_exit(vmcs, code - EXCEPTION)
        if code == SHUTDOWN:
            return ExitReason.TRIPLE_FAULT
        if code == RDTSC:
            if not vmcs.cpu_controls & RDTSC_EXITING:
                return self._read_time(vmcs)
            vmcs.exit_length = self._instruction(vmcs).length
            return ExitReason.RDTSC
        if code < EXCEPTION:
            return self._register_exit(vmcs, code)
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
        if code == TASK_SWITCH:
            vmcs.exit_qualification = self._u32[vmcs.block + 0x78 >> 2] & 0xFFFF
            return ExitReason.TASK_SWITCH
        if VMRUN <= code <= SKINIT:  # AMD's own instructions do not exist on this CPU
            return self._raise(vmcs, 6)
        raise RuntimeError(f"AMD exit code {code:#x} was not asked for")

    def _port_exit(self, vmcs: Vmcs, is_in: bool) -> ExitReason:
        info = self._engine.info
        instruction = self._instruction(vmcs)
        opcode = instruction.opcode[0]
        qualification = info[e.INFO_PORT] << 16 | info[e.INFO_SIZE] - 1 | (8 if is_in else 0)
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

    def _exception_exit(self, vmcs: Vmcs, vector: int) -> ExitReason | None:
        if vector == 6:
            reason = self._vmx_instruction(vmcs)
            if reason is not None:
                return reason
        kind = SOFTWARE_EXCEPTION if vector in (3, 4) else HARDWARE_EXCEPTION
        vmcs.exit_info = VALID | kind << 8 | vector
        if vector in WITH_ERROR_CODE and vmcs.control_register(0) & CR0_PE:
            vmcs.exit_info |= ERROR_CODE_VALID
            vmcs.exit_error = self._engine.info[e.INFO_ERROR_CODE]
        if vector == 14:
            vmcs.exit_qualification = self._u32[vmcs.block + _B_EXIT_INFO_2 >> 2]
        elif vector == 1:
            vmcs.exit_qualification = vmcs.debug_register(6) & 0x600F
        if kind == SOFTWARE_EXCEPTION:
            vmcs.exit_length = 1
        return ExitReason.EXCEPTION_OR_NMI

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
        self._engine.inject(vector, _KIND[SOFTWARE_INTERRUPT], 0, instruction.length)
        return None

    def _register_exit(self, vmcs: Vmcs, code: int) -> ExitReason | None:
        """MOV to and from CR and DR, CLTS, LMSW, SMSW: an exit, or done here when masks and shadows say so."""
        instruction = self._instruction(vmcs)
        vmcs.exit_length = instruction.length
        if code >= DR_READ:
            vmcs.exit_qualification = instruction.control | (16 if code < DR_WRITE else 0) | instruction.register << 8
            return ExitReason.DR_ACCESS
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
            source = self._operand16(vmcs, instruction)
            new = old & ~0xE | source & 0xF | old & 1  # LMSW can set PE but not clear it
            access = 3 << 4 | source << 16 | (64 if instruction.memory else 0)
        else:
            new = self._u32[(vmcs.frame >> 2) + 9 - instruction.register]
            access = instruction.register << 8
        if number == 3:
            vmcs.exit_qualification = 3 | access
            return ExitReason.CR_ACCESS
        mask, shadow = (vmcs.cr0_mask, vmcs.cr0_shadow) if number == 0 else (vmcs.cr4_mask, vmcs.cr4_shadow)
        wanted = new if access >> 4 & 3 != 2 else shadow & ~8 | old & ~8 & ~mask
        if (wanted ^ shadow) & mask:
            vmcs.exit_qualification = number | access
            return ExitReason.CR_ACCESS
        if number == 0 and new & CR0_PG and not new & CR0_PE:
            return self._raise(vmcs, 13, 0)
        vmcs.set_control_register(number, old & mask | new & ~mask)  # which keeps CR4.PSE, see Vmcs
        return self.skip(vmcs)

    def _invalid_opcode(self, vmcs: Vmcs) -> ExitReason | None:
        """The engine does not know an instruction: a VMX instruction exits, any other is the guest's own #UD."""
        return self._vmx_instruction(vmcs) or self._raise(vmcs, 6)

    def _vmx_instruction(self, vmcs: Vmcs) -> ExitReason | None:
        code = self.read_code(vmcs, MAX_LENGTH)
        reason = _VMX.get(code[:3])
        if reason is not None:
            vmcs.exit_length = 3
            return reason
        operand = code[2] >> 3 & 7 if len(code) > 2 else None
        reason = _VMX_OPERAND.get((code[:2], None)) or _VMX_OPERAND.get((code[:2], operand))
        if reason is not None:
            found = decode(code)
            vmcs.exit_length = found.length if found else 3
        return reason

    # -- what the guest does without an exit ---------------------------------------------------------------------

    def skip(self, vmcs: Vmcs) -> ExitReason | None:
        """The instruction has been done; it retires."""
        at = vmcs.frame >> 2
        self._u32[at + EIP] = self._u32[at + EIP] + self._instruction(vmcs).length & 0xFFFFFFFF
        vmcs.end_shadow()
        self._engine.charge(1)
        return None

    def _raise(self, vmcs: Vmcs, vector: int, error: int | None = None) -> ExitReason | None:
        """The instruction faults: through the exception bitmap as any fault, else into the guest's own IDT."""
        if vmcs.exception_bitmap >> vector & 1:
            vmcs.exit_info = VALID | HARDWARE_EXCEPTION << 8 | vector
            if error is not None and vmcs.control_register(0) & CR0_PE:
                vmcs.exit_info |= ERROR_CODE_VALID
                vmcs.exit_error = error
            vmcs.exit_length = 0
            return ExitReason.EXCEPTION_OR_NMI
        self._engine.inject(vector, 1, error or 0, 0)
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
        address = self._effective_address(vmcs, instruction)
        for i, byte in enumerate(value.to_bytes(2, "little")):
            try:
                self._memory.u8[self.translate(vmcs, address + i, 2)] = byte
            except (PageFault, NestedPageFault):
                break
        return self.skip(vmcs)
