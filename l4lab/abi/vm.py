# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual-machine extension: what kernel and monitor tell each other about a virtual CPU.

Lives here: exit reasons and their message labels, register items, event words, exit qualifications and control bits,
numbered as the Intel manual (volume 3, chapters on VMX) and reference sections 9 and 11 number them. The state that
a virtual CPU starts with is in `vm_state`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from functools import cached_property
from typing import Final

from l4lab.abi.frame import REGISTER_NAMES, of_gpr
from l4lab.abi.protocols import VM_FAULT_BASE, VM_FAULT_REASONS, label_of_protocol
from l4lab.words import Word, bit, bits

# --- Exits and their messages ------------------------------------------------------------------------------------


class ExitReason(IntEnum):
    """Why a guest stopped: the basic exit reason (Intel manual, appendix VMX basic exit reasons)."""

    EXCEPTION_OR_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT = 3
    SIPI = 4
    SMI = 6
    INTERRUPT_WINDOW = 7
    TASK_SWITCH = 9
    CPUID = 10
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMXOFF = 26
    VMXON = 27
    CR_ACCESS = 28
    DR_ACCESS = 29
    IO_INSTRUCTION = 30
    RDMSR = 31
    WRMSR = 32
    ENTRY_FAILURE_GUEST_STATE = 33
    ENTRY_FAILURE_MSR_LOAD = 34
    MWAIT = 36
    MONITOR = 39
    PAUSE = 40
    ENTRY_FAILURE_MACHINE_CHECK = 41
    TPR_BELOW_THRESHOLD = 43
    EPT_VIOLATION = 48  # kernel-internal: its pager hears of a page fault, not of an exit


class ExitReasonWord(Word):
    """The exit-reason word of the CPU (Intel manual, section Basic VM-exit information)."""

    entry_failure = bit(31)
    from_root = bit(29)
    basic = bits(15, 0)


INTERNAL: Final = 8  # label bit: the kernel has dealt with the exit, and reports only the event it interrupted
VM_FAULT_WORDS: Final = 3  # untyped words of a fault: MR1 qualification, MR2 instruction length, MR3 see below
QUALIFICATION_MR: Final = 1
INSTRUCTION_LENGTH_MR: Final = 2
ADDITIONAL_INFO_MR: Final = 3  # CR, DR, I/O: guest linear address; VMX instructions: instruction information; else 0
REPLY_LABEL: Final = label_of_protocol(-3, 5)  # what the reference monitor replies with; the kernel ignores it
LAUNCH_LABEL: Final = label_of_protocol(-3, 4)  # and what it starts a virtual CPU with


def label_of(reason: ExitReason, internal: bool = False) -> int:
    """The label of the message that reports an exit (reference section 9.3)."""
    return label_of_protocol(-VM_FAULT_BASE - reason, INTERNAL if internal else 0)


def exit_name(reason: int) -> str:
    """The name of a basic exit reason; of one that the manual does not have, its number."""
    try:
        return ExitReason(reason).name
    except ValueError:
        return f"exit reason {reason}"


_FIRST_LABEL: Final = label_of_protocol(1 - VM_FAULT_BASE - VM_FAULT_REASONS)
_END_LABEL: Final = label_of_protocol(1 - VM_FAULT_BASE)


def is_vm_fault(label: int) -> bool:
    """Is it the label of a virtualization fault?"""
    return _FIRST_LABEL <= label < _END_LABEL


def reason_of(label: int) -> ExitReason:
    """The exit reason of a virtualization fault's label; ValueError if it is the label of something else."""
    if not is_vm_fault(label):
        raise ValueError(f"{label:#x} is not the label of a VM fault, so it has no ExitReason")
    return ExitReason(0xFF7 - (label >> 4))


def is_internal(label: int) -> bool:
    """Does the fault report an exit that the kernel has already dealt with?"""
    return bool(label & INTERNAL)


def fault_id_of(reason: ExitReason) -> int:
    """The fault id under which an exit's register items are configured (reference section 9.5)."""
    return VM_FAULT_BASE + reason


# --- Register items ----------------------------------------------------------------------------------------------


class ItemId(IntEnum):
    """Groups of registers that a CtrlXfer item can carry (reference section 9.6)."""

    GPREGS = 0
    FPUREGS = 1
    CREGS = 2
    DREGS = 3
    CS = 4
    SS = 5
    DS = 6
    ES = 7
    FS = 8
    GS = 9
    TR = 10
    LDTR = 11
    IDTR = 12
    GDTR = 13
    NONREGEXC = 14
    EXECCTRL = 15
    OTHERREGS = 16
    # Our addition: the FPU, which the reference leaves out (its FPUREGS has no registers). All four fit into a message.
    FPUCTRL = 17
    X87REGS = 18
    XMMLOW = 19
    XMMHIGH = 20  # a configuration names items up to 19 only: this one comes with no fault, and is read when needed


_SEGMENT: Final = ("selector", "base", "limit", "attributes")
_TABLE: Final = ("base", "limit")
_X87: Final = (*(f"R{n} {half}" for n in range(8) for half in ("low", "high")), "R0 R1", "R2 R3", "R4 R5", "R6 R7")
SEGMENTS: Final = (ItemId.CS, ItemId.SS, ItemId.DS, ItemId.ES, ItemId.FS, ItemId.GS)

# The registers of each item, in the order of its mask bits.
ITEM_REGISTERS: Final[dict[ItemId, tuple[str, ...]]] = {
    ItemId.GPREGS: REGISTER_NAMES,
    ItemId.FPUREGS: (),
    ItemId.CREGS: ("CR0", "CR0 shadow", "CR0 mask", "CR2", "CR3", "CR4", "CR4 shadow", "CR4 mask"),
    ItemId.DREGS: ("DR0", "DR1", "DR2", "DR3", "DR6", "DR7"),
    **dict.fromkeys((*SEGMENTS, ItemId.TR, ItemId.LDTR), _SEGMENT),
    ItemId.IDTR: _TABLE,
    ItemId.GDTR: _TABLE,
    ItemId.NONREGEXC: (
        "activity", "interruptibility", "pending debug exceptions",
        "entry_info", "entry_eec", "entry_ilen",  # written by the monitor: the event to inject
        "exit_info", "exit_eec", "idt_info", "idt_eec",  # read only: the event that caused or met the exit
    ),
    ItemId.EXECCTRL: ("pin-based controls", "CPU-based controls", "exception bitmap"),
    ItemId.OTHERREGS: (
        "SYSENTER_CS", "SYSENTER_EIP", "SYSENTER_ESP", "DEBUGCTL low", "DEBUGCTL high",
        "TSC offset low", "TSC offset high", "virtual-APIC address", "TPR threshold",
    ),
    # Control, status and MXCSR as the CPU stores them; FTW as FXSAVE does, a bit per register that is in use.
    ItemId.FPUCTRL: ("FCW", "FSW", "FTW", "MXCSR"),
    # The physical registers, so that their order does not depend on TOP: ST(i) is R((TOP + i) mod 8). First the
    # significands, then signs and exponents, two to a word, the lower-numbered register in the low half.
    ItemId.X87REGS: _X87,
    ItemId.XMMLOW: tuple(f"XMM{n} word {word}" for n in range(4) for word in range(4)),
    ItemId.XMMHIGH: tuple(f"XMM{n} word {word}" for n in range(4, 8) for word in range(4)),
}  # fmt: skip

# Indices within the items of which programs speak by name. GPREGS has those of `frame`.
CR0, CR0_SHADOW, CR0_MASK, CR2, CR3, CR4, CR4_SHADOW, CR4_MASK = range(8)
DR0, DR1, DR2, DR3, DR6, DR7 = range(6)
SELECTOR, BASE, LIMIT, ATTRIBUTES = range(4)
TABLE_BASE, TABLE_LIMIT = range(2)
ACTIVITY, INTERRUPTIBILITY, PENDING_DEBUG, ENTRY_INFO, ENTRY_EEC, ENTRY_ILEN = range(6)
EXIT_INFO, EXIT_EEC, IDT_INFO, IDT_EEC = range(6, 10)
PIN_CONTROLS, CPU_CONTROLS, EXCEPTION_BITMAP = range(3)
SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, DEBUGCTL_LOW, DEBUGCTL_HIGH = range(5)
TSC_OFFSET_LOW, TSC_OFFSET_HIGH, VIRTUAL_APIC, TPR_THRESHOLD = range(5, 9)
FCW, FSW, FTW, MXCSR = range(4)


def full_mask(item: ItemId) -> int:
    """The mask that names every register of an item."""
    return (1 << len(ITEM_REGISTERS[item])) - 1


# --- Events ------------------------------------------------------------------------------------------------------


class InterruptionType(IntEnum):
    """Kinds of events (Intel manual, section VM-entry controls for event injection)."""

    EXTERNAL_INTERRUPT = 0
    RESERVED = 1
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6
    OTHER = 7


class InterruptionInfo(Word):
    """An event that is to be delivered, or that was: entry_info, exit_info and idt_info (reference section 9.8)."""

    valid = bit(31)
    nmi_unblocking = bit(12)  # exit side only
    error_code_valid = bit(11)
    type = bits(10, 8, InterruptionType)
    vector = bits(7, 0)


EVENT_VALID: Final = 1 << 31  # the same bits as plain numbers, for who asks at every exit
EVENT_NMI_UNBLOCKING: Final = 1 << 12
EVENT_HAS_ERROR_CODE: Final = 1 << 11


class Interruptibility(IntFlag):
    """What keeps events from a guest for now (Intel manual, section Guest non-register state)."""

    BLOCKED_BY_STI = 1 << 0
    BLOCKED_BY_MOV_SS = 1 << 1
    BLOCKED_BY_SMI = 1 << 2
    BLOCKED_BY_NMI = 1 << 3


class ActivityState(IntEnum):
    """Whether a guest executes instructions (Intel manual, section Guest non-register state)."""

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


class PendingDebugExceptions(Word):
    """Debug exceptions held back (Intel manual, section Guest non-register state)."""

    single_step = bit(14)  # BS
    enabled_breakpoint = bit(12)
    breakpoints = bits(3, 0)  # B3..B0


# --- Exit qualifications (Intel manual, section Exit qualification; reference section 11.2) -----------------------


class CrAccessType(IntEnum):
    """What a guest did to a control register."""

    MOV_TO_CR = 0
    MOV_FROM_CR = 1
    CLTS = 2
    LMSW = 3


class CrAccess(Word):
    """Qualification of a control-register access."""

    lmsw_source = bits(31, 16)
    gpr = bits(11, 8)
    lmsw_memory = bit(6)
    access = bits(5, 4, CrAccessType)
    cr = bits(3, 0)

    @cached_property
    def register(self) -> int:
        """Frame index of the general register."""
        return of_gpr(self.gpr)


class DrAccess(Word):
    """Qualification of a debug-register access."""

    gpr = bits(11, 8)
    from_dr = bit(4)
    dr = bits(2, 0)

    @cached_property
    def register(self) -> int:
        """Frame index of the general register."""
        return of_gpr(self.gpr)


class IoAccess(Word):
    """Qualification of an I/O instruction."""

    port = bits(31, 16)
    immediate = bit(6)  # the port is part of the instruction; otherwise in DX
    rep = bit(5)
    string = bit(4)
    is_in = bit(3)
    size = bits(2, 0)  # bytes less one

    @cached_property
    def width(self) -> int:
        """Bytes moved at a time: 1, 2 or 4."""
        return self.size + 1


class EptViolation(Word):
    """Qualification of an EPT violation, which is what the CPU tells the kernel; its pager hears of a page fault."""

    write = bit(1)
    read = bit(0)


class DebugExit(Word):
    """Qualification of a debug exception."""

    single_step = bit(14)  # BS
    register_access = bit(13)  # BD
    breakpoints = bits(3, 0)  # B3..B0


class TaskSwitchSource(IntEnum):
    """What caused a task switch."""

    CALL = 0
    IRET = 1
    JMP = 2
    TASK_GATE = 3


class TaskSwitch(Word):
    """Qualification of a task switch."""

    source = bits(31, 30, TaskSwitchSource)
    selector = bits(15, 0)


# --- Segments and controls ---------------------------------------------------------------------------------------


class SegmentAttributes(Word):
    """A segment's access rights as a descriptor has them (Intel manual, section Guest register state)."""

    unusable = bit(16)
    granularity = bit(15)  # G: the limit counts pages
    default_big = bit(14)  # D/B: 32-bit operands and addresses
    long = bit(13)
    available = bit(12)
    present = bit(7)
    dpl = bits(6, 5)
    code_or_data = bit(4)  # S: 0 for system segments
    type = bits(3, 0)


class PinControls(IntFlag):
    """Which interrupts of the host stop a guest (Intel manual, section Pin-based controls)."""

    EXTERNAL_INTERRUPT_EXITING = 1 << 0
    NMI_EXITING = 1 << 3


CR3_LOAD_EXITING: Final = 1 << 15  # of the CPU-based controls; no `CpuControls`, because old CPUs require both
CR3_STORE_EXITING: Final = 1 << 16


class CpuControls(IntFlag):
    """Which instructions stop a guest (Intel manual, section Processor-based controls)."""

    INTERRUPT_WINDOW_EXITING = 1 << 2
    USE_TSC_OFFSET = 1 << 3
    HLT_EXITING = 1 << 7
    INVLPG_EXITING = 1 << 9
    MWAIT_EXITING = 1 << 10
    RDPMC_EXITING = 1 << 11
    RDTSC_EXITING = 1 << 12
    CR8_LOAD_EXITING = 1 << 19
    CR8_STORE_EXITING = 1 << 20
    USE_TPR_SHADOW = 1 << 21
    MOV_DR_EXITING = 1 << 23
    UNCONDITIONAL_IO_EXITING = 1 << 24
    USE_IO_BITMAPS = 1 << 25
    USE_MSR_BITMAPS = 1 << 28
    MONITOR_EXITING = 1 << 29
    PAUSE_EXITING = 1 << 30
