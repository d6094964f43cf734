# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID: what the guest is told that its CPU is.

It is told of what the machine's CPU really has and a 32-bit guest can use, and of no more: no PAE, no local APIC, no
SYSENTER, no MTRRs, no page attributes, no machine check. Source: Intel SDM vol. 2, instruction CPUID.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from l4lab.abi.cpuid import HYPERVISOR_PRESENT, Leaf, leaves, vendor_leaf
from l4lab.abi.frame import EAX, EBX, ECX, EDX
from l4lab.user.monitor.fault import Fault, Reply

BRAND: Final = "l4lab virtual CPU at 1 GHz"


def signature_leaf(name: str, highest_leaf: int) -> Leaf:
    """The leaf by which hypervisors introduce themselves: in EBX, ECX, EDX, unlike a vendor."""
    eax, ebx, edx, ecx = vendor_leaf(name, highest_leaf)
    return eax, ebx, ecx, edx


TABLE: Final[dict[int, Leaf]] = leaves(BRAND, HYPERVISOR_PRESENT) | {
    0x4000_0000: signature_leaf("L4labL4labL4", 0x4000_0000)
}
NOTHING: Final[Leaf] = (0, 0, 0, 0)
UNKNOWN_KINDS: Final = 256  # different leaves that are counted


class Cpuid:
    """Answers CPUID from a table; a leaf that is not there is all zeros, and counted by number for showing."""

    def __init__(self, table: dict[int, Leaf] | None = None) -> None:
        self.table = dict(TABLE if table is None else table)
        self.unknown: Counter[int] = Counter()

    def handle(self, fault: Fault, reply: Reply) -> None:
        """The CPUID instruction: leaf in EAX, answer in EAX, EBX, ECX, EDX."""
        number = fault.gpr(EAX)
        leaf = self.table.get(number)
        if leaf is None:
            leaf = NOTHING
            if number in self.unknown or len(self.unknown) < UNKNOWN_KINDS:
                self.unknown[number] += 1
        eax, ebx, ecx, edx = leaf
        reply.gprs({EAX: eax, EBX: ebx, ECX: ecx, EDX: edx})
        reply.skip(fault)
