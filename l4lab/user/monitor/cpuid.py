# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID: what the guest is told that its CPU is.

It is told of what the machine's CPU really has and a 32-bit guest can use, and of no more: no PAE, no local APIC, no
SYSENTER, no MTRRs, no page attributes, no machine check. Source: Intel SDM vol. 2, instruction CPUID.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from l4lab.abi.frame import EAX, EBX, ECX, EDX
from l4lab.user.monitor.fault import Fault, Reply

CPU_MHZ: Final = 1000  # the machine's clock: one cycle is one nanosecond
CRYSTAL_HZ: Final = 25_000_000

Leaf = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX

FEATURES_EDX: Final[dict[str, int]] = {
    "FPU": 0, "DE": 2, "PSE": 3, "TSC": 4, "MSR": 5, "CX8": 8, "PGE": 13, "CMOV": 15, "CLFSH": 19, "MMX": 23,
    "FXSR": 24, "SSE": 25, "SSE2": 26,
}  # fmt: skip
FEATURES_ECX: Final[dict[str, int]] = {"SSE3": 0, "hypervisor present": 31}

FAMILY_MODEL_STEPPING: Final = 0x663  # family 6, model 6: before any model whose quirks operating systems know
CACHE_LINE_64: Final = 8 << 8  # in units of 8 bytes, for CLFLUSH
ONE_LOGICAL_CPU: Final = 1 << 16
INVARIANT_TSC: Final = 1 << 8
ADDRESS_BITS: Final = 32 << 8 | 32  # linear, physical
BRAND: Final = "l4lab virtual CPU at 1 GHz"


def _set(bits: dict[str, int]) -> int:
    return sum(1 << position for position in bits.values())


def vendor_leaf(name: str, highest_leaf: int = 0) -> Leaf:
    """A leaf that spells twelve characters, as leaf 0 does: in EBX, EDX, ECX."""
    ebx, edx, ecx = (int.from_bytes(name.encode("ascii").ljust(12, b"\0")[at : at + 4], "little") for at in (0, 4, 8))
    return highest_leaf, ebx, ecx, edx


def signature_leaf(name: str, highest_leaf: int) -> Leaf:
    """The leaf by which hypervisors introduce themselves: in EBX, ECX, EDX, unlike a vendor."""
    eax, ebx, edx, ecx = vendor_leaf(name, highest_leaf)
    return eax, ebx, ecx, edx


def _brand_leaves() -> dict[int, Leaf]:
    text = BRAND.encode("ascii").ljust(48, b"\0")
    words = [int.from_bytes(text[at : at + 4], "little") for at in range(0, 48, 4)]
    return {0x8000_0002 + i: (words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]) for i in range(3)}


TABLE: Final[dict[int, Leaf]] = {
    0x0: vendor_leaf("GenuineIntel", 0x16),
    0x1: (FAMILY_MODEL_STEPPING, ONE_LOGICAL_CPU | CACHE_LINE_64, _set(FEATURES_ECX), _set(FEATURES_EDX)),
    # Time stamps per crystal tick as a fraction EBX/EAX, and the crystal's frequency: the guest need not measure it.
    0x15: (1, CPU_MHZ * 1_000_000 // CRYSTAL_HZ, CRYSTAL_HZ, 0),
    0x16: (CPU_MHZ, CPU_MHZ, 100, 0),  # base, maximum and bus frequency in MHz
    0x4000_0000: signature_leaf("L4labL4labL4", 0x4000_0000),
    0x8000_0000: (0x8000_0008, 0, 0, 0),
    **_brand_leaves(),
    0x8000_0007: (0, 0, 0, INVARIANT_TSC),
    0x8000_0008: (ADDRESS_BITS, 0, 0, 0),
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
