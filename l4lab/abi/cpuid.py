# SPDX-License-Identifier: GPL-2.0-or-later
"""How CPUID spells what a CPU is: leaves of four words, feature bits, texts in registers.

Lives here: the layout, and the features that every CPU of the lab has, the machine's own and those of its guests. What
each says besides is in `machine/identity.py` and `user/monitor/guest_cpuid.py`.
Source: Intel SDM vol. 2, instruction CPUID.
"""

from __future__ import annotations

from typing import Final

Leaf = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX

FEATURES_EDX: Final[dict[str, int]] = {
    "FPU": 0, "DE": 2, "PSE": 3, "TSC": 4, "MSR": 5, "CX8": 8, "PGE": 13, "CMOV": 15, "CLFSH": 19, "MMX": 23,
    "FXSR": 24, "SSE": 25, "SSE2": 26,
}  # fmt: skip
FEATURES_ECX: Final[dict[str, int]] = {"SSE3": 0}
VMX: Final = 1 << 5  # of ECX
HYPERVISOR_PRESENT: Final = 1 << 31  # of ECX

VENDOR: Final = "GenuineIntel"  # the vendor whose virtualization the kernel's interface speaks
FAMILY_MODEL_STEPPING: Final = 0x663  # family 6, model 6: before any model whose quirks operating systems know
CACHE_LINE_64: Final = 8 << 8  # in units of 8 bytes, for CLFLUSH
ONE_LOGICAL_CPU: Final = 1 << 16
INVARIANT_TSC: Final = 1 << 8
ADDRESS_BITS: Final = 32 << 8 | 32  # linear, physical

CPU_MHZ: Final = 1000  # the machine's clock: one cycle is one nanosecond
CRYSTAL_HZ: Final = 25_000_000


def _set(bits: dict[str, int]) -> int:
    return sum(1 << position for position in bits.values())


def vendor_leaf(name: str, highest_leaf: int = 0) -> Leaf:
    """A leaf that spells twelve characters, as leaf 0 does: in EBX, EDX, ECX."""
    ebx, edx, ecx = (int.from_bytes(name.encode("ascii").ljust(12, b"\0")[at : at + 4], "little") for at in (0, 4, 8))
    return highest_leaf, ebx, ecx, edx


def _brand_leaves(brand: str) -> dict[int, Leaf]:
    text = brand.encode("ascii").ljust(48, b"\0")
    words = [int.from_bytes(text[at : at + 4], "little") for at in range(0, 48, 4)]
    return {0x8000_0002 + i: (words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]) for i in range(3)}


def leaves(brand: str, more_ecx: int) -> dict[int, Leaf]:
    """What a CPU of the lab says; `more_ecx` are its features beyond those that all have."""
    return {
        0x0: vendor_leaf(VENDOR, 0x16),
        0x1: (
            FAMILY_MODEL_STEPPING,
            ONE_LOGICAL_CPU | CACHE_LINE_64,
            _set(FEATURES_ECX) | more_ecx,
            _set(FEATURES_EDX),
        ),
        # Time stamps per crystal tick as a fraction EBX/EAX, and the crystal's frequency: nobody need measure it.
        0x15: (1, CPU_MHZ * 1_000_000 // CRYSTAL_HZ, CRYSTAL_HZ, 0),
        0x16: (CPU_MHZ, CPU_MHZ, 100, 0),  # base, maximum and bus frequency in MHz
        0x8000_0000: (0x8000_0008, 0, 0, 0),
        **_brand_leaves(brand),
        0x8000_0007: (0, 0, 0, INVARIANT_TSC),
        0x8000_0008: (ADDRESS_BITS, 0, 0, 0),
    }
