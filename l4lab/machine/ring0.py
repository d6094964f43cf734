# SPDX-License-Identifier: GPL-2.0-or-later
"""What the CPU itself reads and writes of a guest: descriptors, task state, the stack of a handler.

Lives here: memory as ring 0 reaches it, whichever ring the guest is in, and what descriptors there say. Unlike
guestview.py it works on the engine's CPU state, and leaves the marks in page tables that the CPU leaves.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.exceptions import GENERAL_PROTECTION, INVALID_TSS, NOT_PRESENT
from l4lab.machine import engine as e
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import READ, USER, WRITE, NestedPageFault, WalkFault, host_walk, walk, walk_nested
from l4lab.machine.vmcs import CR0_PG, CR0_WP, CR4_PSE

PRESENT: Final = 1 << 15  # of a descriptor's high word
_PAGES: Final = 1 << 23  # its limit counts pages
_TSS_32: Final = 1 << 11
_TSS_32_LIMIT: Final = 103
_TSS_16_LIMIT: Final = 43


class Ring0Fault(Exception):
    """What the CPU was doing failed with this exception."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(vector, error_code)
        self.vector = vector
        self.error_code = error_code


class RingZero:
    """The memory of the guest whose state is in `env`."""

    def __init__(self, memory: Memory, env: memoryview) -> None:
        """`env`: the engine's CPU state in words."""
        self._memory = memory
        self._env = env

    # -- descriptors ---------------------------------------------------------------------------------------------------

    def descriptor(self, selector: int) -> tuple[int, int] | None:
        """Both words of a descriptor in the GDT or LDT; None beyond the table's end."""
        table = (e.ENV_LDT if selector & 4 else e.ENV_GDT) >> 2
        index = selector & ~7
        if index + 7 > self._env[table + 4]:
            return None
        at = self._env[table + 2] + index
        return self.read(at, 4), self.read(at + 4, 4)

    def check_task(self, selector: int, *, returning: bool = False) -> None:
        """Is it the selector of a TSS that may be switched to? IRET goes back to a busy one. (SDM, "Task Switching")"""
        bad = INVALID_TSS if returning else GENERAL_PROTECTION
        found = None if selector & 4 else self.descriptor(selector)
        if found is None or found[1] >> 8 & 0x17 != (3 if returning else 1):
            raise Ring0Fault(bad, selector & 0xFFFC)
        if not found[1] & PRESENT:
            raise Ring0Fault(NOT_PRESENT, selector & 0xFFFC)
        if limit_of(found) < (_TSS_32_LIMIT if found[1] & _TSS_32 else _TSS_16_LIMIT):
            raise Ring0Fault(INVALID_TSS, selector & 0xFFFC)

    # -- memory --------------------------------------------------------------------------------------------------------

    def _physical(self, linear: int, access: int, set_ad: bool = True) -> int:
        """Physical address behind a linear one, through the tables that the CPU walks."""
        env, memory = self._env, self._memory
        cr0 = env[e.ENV_CR >> 2]
        nested = env[e.ENV_NESTED_CR3 >> 2]
        pse = bool(env[(e.ENV_CR >> 2) + 8] & CR4_PSE)
        if cr0 & CR0_PG:
            cr3 = env[(e.ENV_CR >> 2) + 6]
            if not env[(e.ENV_HFLAGS >> 2) + 1] & e.HF2_NESTED:  # shadow tables: there is no second level
                return walk(memory, cr3, linear, access, wp=bool(cr0 & CR0_WP), pse=pse, set_ad=set_ad)
            return walk_nested(memory, nested, cr3, linear, access, wp=bool(cr0 & CR0_WP), pse=pse, set_ad=set_ad)
        return host_walk(memory, nested, pse, set_ad)(linear, access, False)

    def where(self, linear: int) -> int:
        """Physical address behind a linear one, without a mark in the tables; WalkFault or NestedPageFault."""
        return self._physical(linear & 0xFFFFFFFF, READ, set_ad=False)

    def peek(self, linear: int, size: int) -> bytes:
        """Memory at a linear address, shorter where a page is missing; nobody notices."""
        data = bytearray()
        while len(data) < size:
            at = linear + len(data)
            try:
                physical = self.where(at)
            except (WalkFault, NestedPageFault):
                break
            length = min(size - len(data), PAGE_SIZE - at % PAGE_SIZE)
            data += self._memory.u8[physical : physical + length]
        return bytes(data)

    def _pieces(self, linear: int, size: int, access: int) -> list[tuple[int, int]]:
        """Physical address and length of each part; all are there before the first is touched."""
        linear &= 0xFFFFFFFF
        first = min(size, PAGE_SIZE - linear % PAGE_SIZE)
        pieces = [(self._physical(linear, access), first)]
        if first < size:
            pieces.append((self._physical(linear + first & 0xFFFFFFFF, access), size - first))
        return pieces

    def read(self, linear: int, size: int) -> int:
        """A little-endian number at a linear address; WalkFault or NestedPageFault."""
        u8 = self._memory.u8
        return int.from_bytes(b"".join(u8[pa : pa + n] for pa, n in self._pieces(linear, size, READ)), "little")

    def write(self, linear: int, value: int, size: int, user: bool = False) -> None:
        """Write a little-endian number, all of it or, where a page is missing, nothing; raises as `read`.

        As ring 0, unless `user` says otherwise.
        """
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for pa, length in self._pieces(linear, size, WRITE | USER if user else WRITE):
            self._memory.write(pa, data[:length])
            data = data[length:]


def base_of(descriptor: tuple[int, int]) -> int:
    """Base of the segment that a descriptor describes."""
    low, high = descriptor
    return low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000


def limit_of(descriptor: tuple[int, int]) -> int:
    """Offset of its last byte."""
    low, high = descriptor
    limit = low & 0xFFFF | high & 0xF0000
    return limit << 12 | 0xFFF if high & _PAGES else limit
