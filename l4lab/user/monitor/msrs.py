# SPDX-License-Identifier: GPL-2.0-or-later
"""RDMSR and WRMSR: the model-specific registers that a guest finds.

Known ones stand in a table. Unknown ones read as 0, are not there to be written, and are counted by number for
showing: more guests live with that than with a general-protection fault. Names are those of Intel SDM vol. 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from l4lab.abi import vm
from l4lab.abi.frame import EAX, EDX
from l4lab.abi.vm import ItemId
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_cpu import GuestCpu

TIME_STAMP_COUNTER: Final = 0x10
UNKNOWN_KINDS: Final = 256  # different ones that are counted


@dataclass(frozen=True, slots=True)
class Msr:
    """A register that has a value."""

    name: str
    value: int = 0  # at power-on
    writable: bool = False  # if not, writes are ignored


TABLE: Final[dict[int, Msr]] = {
    0x17: Msr("IA32_PLATFORM_ID"),
    0x1B: Msr("IA32_APIC_BASE"),
    0x3A: Msr("IA32_FEATURE_CONTROL", 1),  # locked, VMX off
    0x8B: Msr("IA32_BIOS_SIGN_ID", writable=True),  # no microcode update
    0xFE: Msr("IA32_MTRRCAP"),
    0x1A0: Msr("IA32_MISC_ENABLE", 1, writable=True),  # fast strings
    0x1D9: Msr("IA32_DEBUGCTL", writable=True),
    0x277: Msr("IA32_PAT", 0x0007_0406_0007_0406, writable=True),
    0xC000_0080: Msr("IA32_EFER"),
}
# These three are registers of the virtual CPU itself.
SYSENTER: Final[dict[int, int]] = {0x174: vm.SYSENTER_CS, 0x175: vm.SYSENTER_ESP, 0x176: vm.SYSENTER_EIP}


class Msrs:
    """The guest's model-specific registers."""

    def __init__(self, vcpu: GuestCpu, now: Callable[[], int]) -> None:
        self.vcpu = vcpu
        self.now = now
        self.values = {number: msr.value for number, msr in TABLE.items()}
        self.unknown: Counter[tuple[int, str]] = Counter()  # accesses by (number, "read" or "write")

    def read(self, fault: Fault, reply: Reply) -> None:
        """RDMSR: number in ECX, value to EDX:EAX."""
        number = fault.ecx
        if number == TIME_STAMP_COUNTER:
            value = self.now()
        elif number in SYSENTER:
            value = self.vcpu.read(ItemId.OTHERREGS)[ItemId.OTHERREGS][SYSENTER[number]]
        elif number in self.values:
            value = self.values[number]
        else:
            value = 0
            self._count(number, "read")
        reply.gpr(EAX, value)
        reply.gpr(EDX, value >> 32)
        reply.skip(fault)

    def write(self, fault: Fault, reply: Reply) -> None:
        """WRMSR: number in ECX, value from EDX:EAX."""
        number = fault.ecx
        if number in SYSENTER:
            reply.write(ItemId.OTHERREGS, SYSENTER[number], fault.eax)
        elif number in TABLE:
            if TABLE[number].writable:
                self.values[number] = fault.edx << 32 | fault.eax
        elif number != TIME_STAMP_COUNTER:  # the machine's clock is not the guest's to set
            self._count(number, "write")
        reply.skip(fault)

    def _count(self, number: int, access: str) -> None:
        kind = (number, access)
        if kind in self.unknown or len(self.unknown) < UNKNOWN_KINDS:
            self.unknown[kind] += 1
