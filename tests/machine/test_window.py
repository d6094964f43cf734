# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupt-window exiting is a guest's: a native thread that runs meanwhile must not be stopped by it."""

from __future__ import annotations

import pytest

from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.memory import Memory


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_window_does_not_stop_what_is_no_guest(kind: str) -> None:
    """With the window armed and interrupts on, does code outside guest mode run up to its trap?"""
    memory = Memory(1 << 20)
    engine = Engine(memory, kind)
    memory.write(0x1000, b"\x90\x90\xcd\x30")  # nop; nop; int 0x30
    engine.write_register("CR0", 0x11)
    memory.u32[0x800 >> 2 : (0x800 >> 2) + 2] = memoryview((0x1000).to_bytes(4, "little") + b"\x02\x02\0\0").cast("I")
    engine.set_window(True)

    assert 0x30 == engine.run(0x800, engine.cycles + 100)
    assert 1 == engine.info[e.INFO_IS_INT]
