# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM: one piece of bytes, seen alike by all who look at it. No CPU here; that is test_mmu.py."""

from __future__ import annotations

import ctypes

import pytest

from l4lab.errors import KernelPanic
from l4lab.machine.memory import Memory


def test_all_views_show_the_same_bytes() -> None:
    """A word written through `u32` is read, little end first, by every other way in, the host's address included."""
    memory = Memory(0x2000)
    memory.set_word(0x1000 >> 2, 0x11223344)

    assert bytes([0x44, 0x33, 0x22, 0x11]) == memory.read(0x1000, 4)
    assert 0x33 == memory.u8[0x1001]
    assert bytes([0x44, 0x33, 0x22, 0x11]) == ctypes.string_at(memory.address + 0x1000, 4)


def test_fill_sets_exactly_the_range() -> None:
    """Does fill leave the bytes before and after alone?"""
    memory = Memory(0x1000)
    memory.write(0, b"\xaa" * 0x1000)
    memory.fill(0x10, 0x20)

    assert b"\xaa" + bytes(0x20) + b"\xaa" == memory.read(0xF, 0x22)


@pytest.mark.parametrize(("pa", "length"), [(0x1000, 1), (0xFFF, 2), (-1, 1), (0, 0x1001)])
def test_outside_ram_is_named(pa: int, length: int) -> None:
    """An access that leaves RAM says where it went and where RAM ends, and changes nothing."""
    memory = Memory(0x1000)

    with pytest.raises(KernelPanic, match="RAM ends at 0x1000"):
        memory.read(pa, length)
    with pytest.raises(KernelPanic, match="RAM ends at 0x1000"):
        memory.write(pa, b"x" * length)
    with pytest.raises(KernelPanic, match="RAM ends at 0x1000"):
        memory.fill(pa, length, 0xFF)
    assert bytes(0x1000) == memory.read(0, 0x1000)


def test_ram_comes_in_pages() -> None:
    """A size that is not whole pages is refused."""
    with pytest.raises(KernelPanic, match="whole pages"):
        Memory(0x1001)
