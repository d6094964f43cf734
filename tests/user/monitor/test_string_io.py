# SPDX-License-Identifier: GPL-2.0-or-later
"""INS and OUTS with addresses at which a guest has nothing: its monitor, who carries them out, must not lend a hand."""

from __future__ import annotations

import re

import pytest

from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, RAM_SIZE, FlatGuest
from l4lab.user.monitor.guest_cpu import END_OF_MAPPINGS, KIP_AREA, UTCB_AREA
from l4lab.user.monitor.guest_memory import WINDOW
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.outcome import End

COUNT = 64
PLACES = (RAM_SIZE, RAM_SIZE + 0x1000, WINDOW, UTCB_AREA, KIP_AREA, 0xE000_0000, 0xFFFF_F000, 0xFFFF_FFF0)
READABLE = [place for place in PLACES if place < END_OF_MAPPINGS]  # by OUTS; beyond, a monitor stops its guest


@pytest.mark.parametrize("shadowed", [False, True], ids=["nested", "shadow"])
def test_string_io_reaches_the_guests_memory_only(shadowed: bool) -> None:
    """Do INS and OUTS at addresses of kernel, monitor and areas write nowhere and read ones, also where they wrap?"""
    moves = [f"mov edi, {place}\n mov ecx, {COUNT}\n mov dx, COM1 + 7\n rep insb\n" for place in PLACES]
    moves += [f"mov esi, {place}\n mov ecx, {COUNT}\n mov dx, COM1\n rep outsb\n" for place in READABLE]
    source = f"mov dx, COM1 + 7\n mov al, 0x5a\n out dx, al\n cld\n {''.join(moves)} cli\n hlt"
    guest = FlatGuest.of(assemble(source, ORIGIN, constants=COM1), "strings")
    rig = Rig.for_flat_guest(guest, hardware=Hardware(shadow_paging=shadowed))
    rig.run(10**10)

    assert rig.outcome is not None
    assert End.HALTED is rig.outcome.end, rig.outcome.why
    assert b"\xff" * COUNT * len(READABLE) == bytes(rig.console)
    found = re.findall(rb"\x5a{16,}", bytes(rig.kernel.machine.memory.u8))
    assert [COUNT - 16] == [len(run) for run in found], "it is in memory somewhere else than at the guest's address 0"
