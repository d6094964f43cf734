# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 15 of the lab's BIOS: memory, A20, power, and what else systems ask of the machine. Waiting is in `bios_clock`.

Source: Ralf Brown's Interrupt List, INT 15; ACPI 6.0, section 15.1, for E820; APM 1.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.images.pieces import LOW_RAM_END, MOST_TOLD_KB
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import CARRY, BiosCall
from l4lab.user.monitor.bios_clock import BiosClock
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.outcome import End

UNSUPPORTED: Final = 0x86  # what INT 15 returns in AH
SMAP: Final = 0x534D4150
MIB: Final = 1 << 20


class BiosSystem:
    """The services of INT 15. `stop` ends the guest."""

    def __init__(self, memory: GuestMemory, clock: BiosClock, stop: Callable[[End, str], None]) -> None:
        self.memory, self.clock, self.stop = memory, clock, stop

    def call(self, call: BiosCall) -> None:
        """INT 15."""
        above = self.memory.size - MIB
        match call.ax:
            case 0xE820 if call.edx == SMAP and call.ecx >= 20:
                self._memory_map(call)
            case 0xE801:
                call.ax = call.cx = min(above, 15 * MIB) >> 10
                call.bx = call.dx = max(above - 15 * MIB, 0) >> 16
                call.flag(CARRY, False)
            case 0x2400 | 0x2401:  # A20 off and on: it is always on
                call.succeed()
            case 0x2402:
                call.succeed()
                call.al = 1
            case 0x2403:
                call.succeed()
                call.bx = 0x0003  # by the keyboard controller, and by port 92
            case _:
                self._by_ah(call, above)

    def _by_ah(self, call: BiosCall, above: int) -> None:
        match call.ah:
            case 0x4F:  # for programs to hook: a key was pressed; CF: take it
                call.flag(CARRY, True)
            case 0x53:
                self._power(call)
            case 0x83:
                self.clock.wait_for_event(call)
            case 0x86:
                self.clock.wait(call)
            case 0x87:
                self._move(call)
            case 0x88:
                call.ax = min(above >> 10, MOST_TOLD_KB)
                call.flag(CARRY, False)
            case 0x90 | 0x91:  # for programs to hook: a device is busy, and no more
                call.flag(CARRY, False)
            case 0xC0:
                call.point(ItemId.ES, rom.SEGMENT)
                call.bx = rom.program().address("configuration")
                call.succeed()
            case 0xC1:
                call.point(ItemId.ES, LOW_RAM_END >> 4)
                call.flag(CARRY, False)
            case _:
                call.refuse()
                call.fail(UNSUPPORTED)

    def _memory_map(self, call: BiosCall) -> None:
        regions = rom.memory_map(self.memory.size)
        number = call.ebx
        if number >= len(regions):
            call.fail(UNSUPPORTED)
            return
        region = regions[number]
        entry = struct.pack("<QQI", region.begin, region.end - region.begin, region.kind)
        self.memory.write(call.base(ItemId.ES) + call.di, entry)
        call.eax, call.ecx = SMAP, len(entry)
        call.ebx = number + 1 if number + 1 < len(regions) else 0
        call.flag(CARRY, False)

    def _move(self, call: BiosCall) -> None:
        """INT 15, 87: move memory of 1 MiB and above; ES:SI is a GDT whose entries 2 and 3 are source and target."""
        table = self.memory.read(call.base(ItemId.ES) + call.si, 32)
        source, target = (
            int.from_bytes(table[at + 2 : at + 5] + table[at + 7 : at + 8], "little") for at in (0x10, 0x18)
        )
        self.memory.write(target, self.memory.read(source, 2 * min(call.cx, 0x8000)))
        call.succeed()

    def _power(self, call: BiosCall) -> None:
        """INT 15, 53: advanced power management, as far as turning the machine off goes."""
        match call.al:
            case 0x00:
                call.succeed(0x01)  # version 1.2, "PM", by calls from real mode only
                call.al, call.bx, call.cx = 0x02, 0x504D, 0
            case 0x01 | 0x04 | 0x08 | 0x0D | 0x0F:
                call.flag(CARRY, False)
            case 0x0E:
                call.succeed(0x01)
                call.al = 0x02
            case 0x07 if call.cx == 3:
                self.stop(End.POWERED_OFF, "the guest turned its power off by its BIOS")
            case _:
                call.fail(UNSUPPORTED)
