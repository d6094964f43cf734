# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's own hardware breakpoints: which of DR0..DR3 an instruction hits, before it is executed or by its accesses.

Source: Intel SDM vol. 3, chapter "Debug, Branch Profile, ...", section "Debug Registers". A guest that has enabled
none pays nothing; one that has is executed instruction by instruction, and each is looked at here first. What memory
an instruction touches is told by Capstone for its operands, and by a table for the stack, which it does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from l4lab.machine.decode import accesses

EXECUTION, WRITE, PORT, ACCESS = range(4)  # R/W fields of DR7
SINGLE_STEP, GENERAL_DETECT = 1 << 14, 1 << 13  # in DR6
_LENGTHS = (1, 2, 8, 4)


class Breakpoint(NamedTuple):
    """One that is enabled. `bit` is its own in DR6."""

    bit: int
    kind: int
    address: int
    length: int


def enabled(debug_register: Callable[[int], int]) -> list[Breakpoint]:
    """Those that DR7 enables, locally or globally; the address is aligned as the CPU aligns it."""
    control = debug_register(7)
    found = []
    for n in range(4):
        if control >> 2 * n & 3:
            length = _LENGTHS[control >> 18 + 4 * n & 3]
            kind = control >> 16 + 4 * n & 3
            found.append(Breakpoint(1 << n, kind, debug_register(n) & ~(length - 1), length))
    return found


def execution_hits(breakpoints: list[Breakpoint], linear: int) -> int:
    """Bits of DR6 for an instruction at this address."""
    return sum(b.bit for b in breakpoints if b.kind == EXECUTION and b.address == linear)


def data_hits(
    breakpoints: list[Breakpoint], code: bytes, bits: int, register: Callable[[str], int], base: Callable[[str], int],
    stack_mask: int,
) -> int:  # fmt: skip
    """Bits of DR6 for what the instruction `code` touches, with these registers and segment bases before it."""
    watching = [b for b in breakpoints if b.kind in (WRITE, ACCESS)]
    if not watching:
        return 0
    hits = 0
    for access in accesses(code, bits):
        offset = access.displacement
        for name, scale in ((access.base, 1), (access.scaled, access.scale)):
            if name:
                offset += register(name) * scale
        linear = base(access.segment) + (offset & (stack_mask if access.on_stack else access.mask)) & 0xFFFFFFFF
        for b in watching:
            overlaps = linear < b.address + b.length and b.address < linear + access.size
            if overlaps and (b.kind == ACCESS or access.writes):
                hits |= b.bit
    return hits
