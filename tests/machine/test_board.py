# SPDX-License-Identifier: GPL-2.0-or-later
"""One CPU, two worlds: what was ordered for a guest must not meet a native program."""

from __future__ import annotations

from l4lab.rig.rig import Rig
from l4lab.user.guests import tinyos


def test_a_guests_interrupt_window_does_not_stop_a_native_program() -> None:
    """With a guest's window armed, does ring 3 code with interrupts on run up to its trap?"""
    rig = Rig.for_flat_guest(tinyos.build())
    rig.run_until(1 << 60, lambda: rig.kernel.counters.page_faults > 0)
    k, machine = rig.kernel, rig.machine
    machine.engine.set_window(True)
    code, frame = k.frames.allocate(), k.register_frames.allocate()
    machine.memory.write(code, b"\x90\x90\xcd\x30")  # nop; nop; int 0x30
    tables = k.kernel_space.tables
    tables.map(0x1000, code, 12, writable=False)
    machine.memory.write(frame, b"\x00\x10\0\0\x02\x32\0\0")

    assert 0x30 == machine.run_user(frame, tables.cr3, tables.generation, machine.cycles + 100)
