# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest starts with: its registers, what of it stops for its monitor, and what the monitor is then told.

Tables, and the functions that complete them. They are for guests whose paging is the CPU's own affair (nested paging):
the control registers are the guest's, and few of its instructions exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from l4lab.abi import vm
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP
from l4lab.abi.protocols import FaultId
from l4lab.abi.vm import CpuControls, ExitReason, ItemId
from l4lab.abi.vm_state import CPU_REQUIRED, INITIAL_STATE

CR3_EXITING: Final = 3 << 15  # loads and stores; required by old CPUs, so `CpuControls` does not name the bits

# What stops a guest. The rest of the controls stays as the CPU requires it.
INTERCEPTS: Final[tuple[tuple[int, bool], ...]] = (
    (CpuControls.HLT_EXITING, True),  # it has nothing to do: whoever else has may run until its next interrupt
    (CpuControls.UNCONDITIONAL_IO_EXITING, True),  # its devices are the monitor's
    (CpuControls.MWAIT_EXITING, True),  # CPUID does not offer these two
    (CpuControls.MONITOR_EXITING, True),
    (CpuControls.RDPMC_EXITING, True),  # there are no counters
    (CpuControls.RDTSC_EXITING, False),  # the machine's clock serves as the guest's
    (CR3_EXITING, False),  # its page tables are walked by the CPU
    (CpuControls.INVLPG_EXITING, False),
    (CpuControls.MOV_DR_EXITING, False),  # its debug registers are its own
    (CpuControls.PAUSE_EXITING, False),
    (CpuControls.INTERRUPT_WINDOW_EXITING, False),  # turned on while an interrupt waits
    (CpuControls.USE_TSC_OFFSET, False),
)  # CPUID, RDMSR, WRMSR, INVD, the VMX instructions and task switches exit always

EXCEPTIONS: Final = 0  # none of the guest's exceptions concerns the monitor


def _cpu_controls() -> int:
    controls = CPU_REQUIRED
    for control, on in INTERCEPTS:
        controls = controls | control if on else controls & ~control
    return int(controls)


CPU_CONTROLS: Final = _cpu_controls()

# Register items that come with each fault, by fault id (reference section 9.5). Fewer make an exit cheaper; others can
# be read by `GuestCpu.read`.
_SPECIAL: Final[Mapping[ExitReason, Iterable[ItemId]]] = {
    ExitReason.EXCEPTION_OR_NMI: (ItemId.GPREGS, ItemId.NONREGEXC),
    ExitReason.TASK_SWITCH: (ItemId.GPREGS, ItemId.NONREGEXC),
    ExitReason.TRIPLE_FAULT: (ItemId.GPREGS, ItemId.CREGS, ItemId.IDTR, ItemId.NONREGEXC),
    ExitReason.ENTRY_FAILURE_GUEST_STATE: (ItemId.GPREGS, ItemId.CREGS, ItemId.CS, ItemId.SS, ItemId.NONREGEXC),
    ExitReason.CR_ACCESS: (ItemId.GPREGS, ItemId.CREGS),
    ExitReason.DR_ACCESS: (ItemId.GPREGS, ItemId.DREGS),
}
FAULT_ITEMS: Final[Mapping[int, Iterable[ItemId]]] = {
    **{
        vm.fault_id_of(reason): _SPECIAL.get(reason, (ItemId.GPREGS,))
        for reason in ExitReason
        if reason <= ExitReason.TPR_BELOW_THRESHOLD
    },
    # A page fault may happen in the midst of delivering an event. The rest is for doing the instruction where nothing
    # is: faults that are answered by a page are rare, those of a guest that looks for the end of its memory are not.
    FaultId.PAGE_FAULT: (
        *(ItemId.GPREGS, ItemId.CREGS, ItemId.CS, ItemId.SS, ItemId.DS, ItemId.ES),
        ItemId.NONREGEXC,
    ),
}

# Segments as (selector, base, limit, attributes).
Segment = tuple[int, int, int, int]
CODE_32: Final = 0xC09B  # G, D, present, ring 0, code: execute and read, accessed
DATA_32: Final = 0xC093  # G, B, present, ring 0, data: read and write, accessed
REAL_16: Final = 0x0093  # present, ring 0, data, accessed; in real mode code lies in such segments too
CR0_ET: Final = 0x10
CR0_PE: Final = 0x01
CR4_PSE: Final = 0x10
EFLAGS_START: Final = 0x2


def flat_code(selector: int) -> Segment:
    """A code segment that covers all addresses."""
    return selector, 0, 0xFFFF_FFFF, CODE_32


def flat_data(selector: int) -> Segment:
    """A data segment that covers all addresses."""
    return selector, 0, 0xFFFF_FFFF, DATA_32


@dataclass(frozen=True, slots=True)
class Start:
    """The registers with which a guest begins, as far as its boot protocol says anything about them."""

    eip: int
    code: Segment
    data: Segment  # for all other segment registers
    cr0: int = CR0_ET | CR0_PE
    esp: int = 0
    esi: int = 0
    eax: int = 0
    ebx: int = 0
    edx: int = 0
    eflags: int = EFLAGS_START
    gdt: tuple[int, int] = (0, 0xFFFF)  # base, limit

    @classmethod
    def real_mode(
        cls, segment: int, offset: int, data: int = 0, stack: int = 0, edx: int = 0, eflags: int = EFLAGS_START
    ) -> Start:
        """Real mode, at segment:offset; `data` is the segment of all data and of the stack."""
        code, others = ((value, value << 4, 0xFFFF, REAL_16) for value in (segment, data))
        return cls(offset, code, others, cr0=CR0_ET, esp=stack, edx=edx, eflags=eflags)

    @property
    def general(self) -> dict[int, int]:
        """The register frame. All of it: what activating the thread has left there is none of the guest's business."""
        return {
            EIP: self.eip, EFLAGS: self.eflags, EDI: 0, ESI: self.esi, EBP: 0, ESP: self.esp,
            EBX: self.ebx, EDX: self.edx, ECX: 0, EAX: self.eax,
        }  # fmt: skip

    @property
    def segments(self) -> dict[ItemId, dict[int, int]]:
        """All segment registers."""
        return {item: dict(enumerate(self.code if item is ItemId.CS else self.data)) for item in vm.SEGMENTS}

    def registers(self) -> dict[ItemId, dict[int, int]]:
        """What has to be written into a virtual CPU that is in its first state (reference section 9.9)."""
        wanted: dict[ItemId, dict[int, int]] = {
            ItemId.GPREGS: self.general,
            # Both registers are the guest's own; it reads what it wrote, but for PSE, which the CPU keeps set.
            ItemId.CREGS: {
                vm.CR0: self.cr0, vm.CR0_SHADOW: self.cr0, vm.CR0_MASK: 0,
                vm.CR4: 0, vm.CR4_SHADOW: 0, vm.CR4_MASK: CR4_PSE,
            },
            **self.segments,
            ItemId.GDTR: dict(enumerate(self.gdt)),
            ItemId.EXECCTRL: {vm.CPU_CONTROLS: CPU_CONTROLS, vm.EXCEPTION_BITMAP: EXCEPTIONS},
        }  # fmt: skip
        differing = {
            item: {index: value for index, value in values.items() if value != INITIAL_STATE[item][index]}
            for item, values in wanted.items()
        }
        return {item: values for item, values in differing.items() if values} | {ItemId.GPREGS: self.general}
