# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a virtual CPU before its monitor's first message (reference section 9.9), as a table.

Lives here: the values, register by register, in the order of `vm.ITEM_REGISTERS`, and the bits that a monitor cannot
change. What writing a register does is in `kernel`.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.vm import SEGMENTS, CpuControls, ItemId, PinControls

# What VMX requires to be one on the CPUs of the time; CR3 loads and stores exit always (CPU-based bits 15 and 16).
CR0_FIXED: Final = 0x8000_0021  # PG, NE, PE: the real CR0 has them; what the guest believes is in the read shadow
CR4_FIXED: Final = 0x0000_2000  # VMXE
PIN_REQUIRED: Final = 0x0000_0016
CPU_REQUIRED: Final = 0x0401_E172

# M0 and M4 of reference section 9.7: the bits of the real CR0 and CR4 that a monitor may write. AM is bit 18 here, as
# the CPU has it, and not the bit 3 that the reference took for it.
CR0_WRITABLE: Final = 0xE005_0027 & ~CR0_FIXED  # CD NW AM WP EM MP
CR4_WRITABLE: Final = 0x0000_0792  # OSXMMEXCPT OSFXSR PCE PGE PSE PVI

HLT_AND_INVLPG: Final = CpuControls.HLT_EXITING | CpuControls.INVLPG_EXITING  # a monitor cannot clear these

_PIN: Final = PIN_REQUIRED | PinControls.EXTERNAL_INTERRUPT_EXITING | PinControls.NMI_EXITING
_CPU: Final = (
    CPU_REQUIRED
    | HLT_AND_INVLPG
    | CpuControls.MWAIT_EXITING
    | CpuControls.RDPMC_EXITING
    | CpuControls.RDTSC_EXITING
    | CpuControls.MOV_DR_EXITING
    | CpuControls.UNCONDITIONAL_IO_EXITING
    | CpuControls.MONITOR_EXITING
    | CpuControls.PAUSE_EXITING
)
_ALL_ONES: Final = 0xFFFF_FFFF
_CR0: Final = CR0_FIXED | 0x10  # ET is always one
_CR4: Final = CR4_FIXED | 0x10  # PSE, because the kernel itself uses large pages

INITIAL_STATE: Final[dict[ItemId, tuple[int, ...]]] = {
    ItemId.GPREGS: (0, 2, 0, 0, 0, 0, 0, 0, 0, 0),  # EFLAGS: the bit that is always one
    ItemId.FPUREGS: (),
    # value, what the guest reads (CD NW ET), mask: the guest owns no bit; CR2, CR3; the same for CR4
    ItemId.CREGS: (_CR0, 0x6000_0010, _ALL_ONES, 0, 0, _CR4, 0, _ALL_ONES),
    ItemId.DREGS: (0, 0, 0, 0, 0xFFFF_0FF0, 0x400),
    **dict.fromkeys(SEGMENTS, (0, 0, 0xFFFF, 0xF3)),  # as in virtual-8086 mode
    ItemId.TR: (0, 0, 0xFFFF, 0x808B),
    ItemId.LDTR: (0, 0, 0xFFFF, 0x1_0082),  # unusable
    ItemId.IDTR: (0, 0xFFFF),
    ItemId.GDTR: (0, 0xFFFF),
    ItemId.NONREGEXC: (0,) * 10,
    ItemId.EXECCTRL: (int(_PIN), int(_CPU), _ALL_ONES),
    ItemId.OTHERREGS: (0,) * 9,
    ItemId.FPUCTRL: (0x37F, 0, 0, 0x1F80),  # as FNINIT and a reset leave it: all exceptions masked, all registers empty
    ItemId.X87REGS: (0,) * 20,
    ItemId.XMMLOW: (0,) * 16,
    ItemId.XMMHIGH: (0,) * 16,
}
