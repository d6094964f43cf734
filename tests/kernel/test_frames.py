# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own frames: handed out zeroed, counted, never twice."""

from __future__ import annotations

import pytest

from l4lab.errors import KernelPanic, Refused
from l4lab.kernel.objects.frames import FrameAllocator
from l4lab.machine.memory import Memory


def test_every_frame_once_then_refused() -> None:
    """All frames of the range come out once each, then error 8."""
    frames = FrameAllocator(Memory(0x8000), 0x4000, 0x4000)

    assert [0x4000, 0x5000, 0x6000, 0x7000] == [frames.allocate() for _ in range(4)]
    assert (0, 4) == (frames.available, frames.used)
    with pytest.raises(Refused) as refused:
        frames.allocate()
    assert 8 == refused.value.code


def test_a_reused_frame_is_clean() -> None:
    """Does the next owner see zeros, whatever the last one left?"""
    memory = Memory(0x2000)
    frames = FrameAllocator(memory, 0x1000, 0x1000)
    pa = frames.allocate()
    memory.fill(pa, 0x1000, 0xFF)
    frames.free(pa)

    assert pa == frames.allocate()
    assert bytes(0x1000) == memory.read(pa, 0x1000)


@pytest.mark.parametrize("wrong", [0x1000, 0x4001, 0x5000])
def test_only_what_is_out_can_come_back(wrong: int) -> None:
    """Freeing a foreign address, an odd one, or a frame that is free already is a bug of ours, and named."""
    frames = FrameAllocator(Memory(0x8000), 0x4000, 0x4000)
    frames.allocate()

    with pytest.raises(KernelPanic, match=f"{wrong:#x}"):
        frames.free(wrong)
