# SPDX-License-Identifier: GPL-2.0-or-later
"""What the machine's CPU says that it is: CPUID, and the model-specific registers.

The engine under it is another vendor's CPU (see `svm.py`); whoever runs on the machine meets the one whose
virtualization the kernel's interface speaks, in the vendor's name, the feature bits and the capability registers alike.
CPUID is for every program. The registers are for the kernel, which reads and writes them in the name of privileged
programs. Source: Intel SDM vol. 2, CPUID; vol. 4, model-specific registers; vol. 3, appendix "VMX Capability Reporting
Facility".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from l4lab.abi.cpuid import VMX, Leaf, leaves
from l4lab.abi.vm import CpuControls, PinControls
from l4lab.abi.vm_state import CPU_REQUIRED, CR0_FIXED, CR4_FIXED, CR4_WRITABLE, PIN_REQUIRED

BRAND: Final = "l4lab CPU at 1 GHz"
CPUID: Final[dict[int, Leaf]] = leaves(BRAND, VMX)
NO_LEAF: Final[Leaf] = (0, 0, 0, 0)

TIME_STAMP_COUNTER: Final = 0x10
_ALL_ONES: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class IdentityMsr:
    """A register that has a value."""

    name: str
    value: int = 0  # at power-on
    writable: bool = False  # if not, a write is ignored


def _controls(required: int, possible: int) -> int:
    """A capability: the low half has the bits that must be one, the high half those that may be."""
    return (possible | required) << 32 | required


_POSSIBLE: Final = sum(CpuControls) & ~CpuControls.USE_IO_BITMAPS & ~CpuControls.USE_MSR_BITMAPS
_VMCS_REVISION, _VMCS_SIZE, _WRITE_BACK = 1, 4096, 6
_EXIT_REQUIRED: Final = 0x0003_6DFF
_ENTRY_REQUIRED: Final = 0x0000_11FF
_CR4: Final = CR4_FIXED | CR4_WRITABLE | 0x2D  # and VME PVI TSD DE, MCE not

MSRS: Final[dict[int, IdentityMsr]] = {
    0x17: IdentityMsr("IA32_PLATFORM_ID"),
    0x1B: IdentityMsr("IA32_APIC_BASE"),
    0x3A: IdentityMsr("IA32_FEATURE_CONTROL", 5),  # locked, VMX on
    0x79: IdentityMsr("IA32_BIOS_UPDT_TRIG"),
    0x8B: IdentityMsr("IA32_BIOS_SIGN_ID", writable=True),  # no microcode update
    0xFE: IdentityMsr("IA32_MTRRCAP"),
    # No more than places to keep values: the kernel has no such entry.
    0x174: IdentityMsr("IA32_SYSENTER_CS", writable=True),
    0x175: IdentityMsr("IA32_SYSENTER_ESP", writable=True),
    0x176: IdentityMsr("IA32_SYSENTER_EIP", writable=True),
    0x1A0: IdentityMsr("IA32_MISC_ENABLE", 1, writable=True),  # fast strings
    0x1D9: IdentityMsr("IA32_DEBUGCTL", writable=True),
    0x277: IdentityMsr("IA32_PAT", 0x0007_0406_0007_0406, writable=True),
    0x480: IdentityMsr("IA32_VMX_BASIC", _WRITE_BACK << 50 | _VMCS_SIZE << 32 | _VMCS_REVISION),
    0x481: IdentityMsr("IA32_VMX_PINBASED_CTLS", _controls(PIN_REQUIRED, sum(PinControls))),
    0x482: IdentityMsr("IA32_VMX_PROCBASED_CTLS", _controls(CPU_REQUIRED, _POSSIBLE)),
    0x483: IdentityMsr("IA32_VMX_EXIT_CTLS", _controls(_EXIT_REQUIRED, 0)),
    0x484: IdentityMsr("IA32_VMX_ENTRY_CTLS", _controls(_ENTRY_REQUIRED, 0)),
    0x485: IdentityMsr("IA32_VMX_MISC", 1 << 6),  # a virtual CPU may be inactive: halted
    0x486: IdentityMsr("IA32_VMX_CR0_FIXED0", CR0_FIXED),
    0x487: IdentityMsr("IA32_VMX_CR0_FIXED1", _ALL_ONES),
    0x488: IdentityMsr("IA32_VMX_CR4_FIXED0", CR4_FIXED),
    0x489: IdentityMsr("IA32_VMX_CR4_FIXED1", _CR4),
    0x48A: IdentityMsr("IA32_VMX_VMCS_ENUM", 0x16 << 1),
    0xC000_0080: IdentityMsr("IA32_EFER"),
}


class IdentityMsrs:
    """The machine's model-specific registers.

    Others than those in the table, such as the performance counters of some model, read as 0 and can be written without
    effect. A CPU would raise #GP; but it is the kernel that executes the instruction, and no program counts on that.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._values = {number: msr.value for number, msr in MSRS.items()}

    def read(self, number: int) -> int:
        """RDMSR."""
        if number == TIME_STAMP_COUNTER:
            return self._now()
        return self._values.get(number, 0)

    def write(self, number: int, value: int) -> None:
        """WRMSR. The time stamp counter is the machine's clock, and nobody sets it."""
        if number in MSRS and MSRS[number].writable:
            self._values[number] = value
