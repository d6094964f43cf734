# SPDX-License-Identifier: GPL-2.0-or-later
"""The services of the lab's BIOS, for guests that begin with a boot sector: answered by the monitor, call by call.

Lives here: which service answers which vector; memory, keyboard, time, power. The disk and the screen are beside, in
`bios_disk` and `bios_screen`; what lies in the guest's memory is in `rom`. The keyboard is whatever is typed at the
guest's serial port, and the PC's own keyboard. What a service does not know, it refuses as BIOSes do, and `unknown`
counts it. Source: Ralf Brown's Interrupt List; ACPI 6.0, section 15.1, for E820; APM 1.2.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from l4lab.abi.exceptions import UNDEFINED_OPCODE
from l4lab.abi.frame import FLAG_IF
from l4lab.abi.vm import ExitReason, ItemId
from l4lab.devices.keys import LEFT_SHIFT, PLAIN, RELEASE, SHIFTED
from l4lab.images.pieces import MOST_TOLD_KB
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import CARRY, ITEMS, ZERO, BiosCall
from l4lab.user.monitor.bios_disk import BiosDisks
from l4lab.user.monitor.bios_screen import BiosScreen
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.outcome import End
from l4lab.user.monitor.state import EFLAGS_START, Start

if TYPE_CHECKING:
    from l4lab.user.monitor.monitor import Monitor

UNSUPPORTED: Final = 0x86  # what INT 15 returns in AH
SMAP: Final = 0x534D4150
UNKNOWN_KINDS: Final = 256  # different calls that are counted
MIB: Final = 1 << 20

SERIAL, LINE_STATUS, DATA_READY = 0x3F8, 0x3FD, 1
KEYBOARD, FIRST_COMMAND, SECOND_COMMAND, END_OF_INTERRUPT = 0x60, 0x20, 0xA0, 0x20
CLOCK_INDEX, CLOCK_DATA = 0x70, 0x71

_EXCEPTIONS: Final = {0: "divided by zero", 5: "left the bounds of an array", 6: "executed what is no instruction"}
_SCAN_CODES: Final = PLAIN | SHIFTED | {"\r": 0x1C, "\x1b": 0x01}
_ARROWS: Final = {b"A": 0x48, b"B": 0x50, b"C": 0x4D, b"D": 0x4B, b"H": 0x47, b"F": 0x4F}  # behind ESC [
_BY_CODE: Final = {code: char for char, code in PLAIN.items()} | {0x01: "\x1b", 0x1C: "\r"}
_BY_SHIFTED_CODE: Final = {code: char for char, code in SHIFTED.items()}


class Bios:
    """The BIOS of one guest.

    `loaded` says with which registers the guest goes on when the BIOS has done its part; None is for the first disk's
    boot sector.
    """

    def __init__(self, monitor: Monitor, loaded: Start | None, disks: BiosDisks) -> None:
        self.monitor, self.loaded, self.disks = monitor, loaded, disks
        monitor.load((piece.address, piece.data) for piece in rom.pieces(disks.diskettes, disks.hard_disks))
        self.screen = BiosScreen(monitor.memory, monitor.transmit)
        self.unknown: Counter[tuple[int, int]] = Counter()  # (vector, AX)
        self._shift = False  # is a shift key held down?
        self._typed = bytearray()  # at the serial port, and not yet keys
        monitor.handlers[ExitReason.VMCALL] = self.handle
        self._services: Mapping[int, Callable[[BiosCall], None]] = {
            0x09: self._key_pressed,
            0x10: self.screen.call,
            0x11: self._equipment,
            0x12: self._conventional_memory,
            0x13: disks.call,
            0x15: self._system,
            0x16: self._keyboard,
            0x18: self._nothing_to_boot,
            0x19: self._bootstrap,
            0x1A: self._time,
            **dict.fromkeys((0x1B, 0x1C, 0x23, 0x24, 0x4A), self._ignore),  # for programs to hook
            **dict.fromkeys((*range(0x0A, 0x10), *range(0x70, 0x78)), self._interrupt),
            **dict.fromkeys(_EXCEPTIONS, self._exception),
        }

    def handle(self, fault: Fault, reply: Reply) -> None:
        """A VMCALL: a service of ours if it is one of our stubs, else an instruction that this CPU does not have."""
        segments = self.monitor.vcpu.read(*ITEMS)
        vector, rest = divmod(fault.eip, rom.STUB_SIZE)
        if segments[ItemId.CS][0] != rom.SEGMENT or rest or vector > 0xFF:
            reply.raise_exception(UNDEFINED_OPCODE)
            return
        call = BiosCall(vector, fault, reply, segments, self.monitor.memory)
        self._services.get(vector, self._refuse)(call)
        if not call.goes_elsewhere:
            call.finish()

    def _refuse(self, call: BiosCall) -> None:
        kind = call.vector, call.ax
        if kind in self.unknown or len(self.unknown) < UNKNOWN_KINDS:
            self.unknown[kind] += 1
        call.flag(CARRY, True)

    def _ignore(self, call: BiosCall) -> None:
        pass

    # -- the start and the end -----------------------------------------------------------------------------------------

    def _bootstrap(self, call: BiosCall) -> None:
        """INT 19: go on with what was loaded, the first time; else with the boot sector, as often as that is wanted."""
        start, self.loaded = self.loaded, None
        if start is None:
            disk = self.disks.to_boot
            if disk is None:
                self._nothing_to_boot(call)
                return
            self.monitor.memory.write(rom.BOOT_AT, disk.disk.read(0, 1))
            start = Start.real_mode(0, rom.BOOT_AT, stack=rom.BOOT_AT, edx=disk.number, eflags=EFLAGS_START | FLAG_IF)
        for item, values in start.segments.items():
            for index, value in values.items():
                call.reply.write(item, index, value)
        call.reply.gprs(start.general)
        call.goes_elsewhere = True

    def _nothing_to_boot(self, call: BiosCall) -> None:
        self.monitor.stop(End.STOPPED, f"the boot sector says, at {call.caller}, that there is nothing to boot")

    def _exception(self, call: BiosCall) -> None:
        what = _EXCEPTIONS[call.vector]
        self.monitor.stop(End.STOPPED, f"the guest {what} at {call.caller}, and has no handler for that")

    def _interrupt(self, call: BiosCall) -> None:
        """A device's interrupt that nobody handles."""
        if call.vector >= 0x70:
            self.monitor.pc.ports.write(SECOND_COMMAND, 1, END_OF_INTERRUPT)
        self.monitor.pc.ports.write(FIRST_COMMAND, 1, END_OF_INTERRUPT)

    # -- what machine this is -----------------------------------------------------------------------------------------

    def _equipment(self, call: BiosCall) -> None:
        call.ax = self._word(rom.EQUIPMENT)

    def _conventional_memory(self, call: BiosCall) -> None:
        call.ax = self._word(rom.MEMORY_KB)

    def _system(self, call: BiosCall) -> None:
        """INT 15."""
        above = self.monitor.memory.size - MIB
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
            case _ if call.ah == 0x87:
                self._move(call)
            case _ if call.ah == 0x88:
                call.ax = min(above >> 10, MOST_TOLD_KB)
                call.flag(CARRY, False)
            case _ if call.ah == 0x53:
                self._power(call)
            case _:
                self._refuse(call)
                call.fail(UNSUPPORTED)

    def _memory_map(self, call: BiosCall) -> None:
        regions = rom.memory_map(self.monitor.memory.size)
        number = call.ebx
        if number >= len(regions):
            call.fail(UNSUPPORTED)
            return
        region = regions[number]
        entry = struct.pack("<QQI", region.begin, region.end - region.begin, region.kind)
        self.monitor.memory.write(call.base(ItemId.ES) + call.di, entry)
        call.eax, call.ecx = SMAP, len(entry)
        call.ebx = number + 1 if number + 1 < len(regions) else 0
        call.flag(CARRY, False)

    def _move(self, call: BiosCall) -> None:
        """INT 15, 87: move memory of 1 MiB and above; ES:SI is a GDT whose entries 2 and 3 are source and target."""
        memory = self.monitor.memory
        table = memory.read(call.base(ItemId.ES) + call.si, 32)
        source, target = (
            int.from_bytes(table[at + 2 : at + 5] + table[at + 7 : at + 8], "little") for at in (0x10, 0x18)
        )
        memory.write(target, memory.read(source, 2 * min(call.cx, 0x8000)))
        call.succeed()

    def _power(self, call: BiosCall) -> None:
        """INT 15, 53: advanced power management, as far as turning the machine off goes."""
        match call.al:
            case 0x00:
                call.succeed(0x01)  # version 1.2, "PM", by calls from real mode only
                call.al, call.bx, call.cx = 0x02, 0x504D, 0
            case 0x01 | 0x04 | 0x08 | 0x0D | 0x0F:
                call.succeed()
            case 0x0E:
                call.succeed(0x01)
                call.al = 0x02
            case 0x07 if call.cx == 3:
                self.monitor.stop(End.POWERED_OFF, "the guest turned its power off by its BIOS")
            case _:
                call.fail(UNSUPPORTED)

    # -- the keyboard --------------------------------------------------------------------------------------------------

    def _keyboard(self, call: BiosCall) -> None:
        """INT 16."""
        self._take_typed()
        match call.ah:
            case 0x00 | 0x10:
                key = self._next_key(take=True)
                if key is None:
                    call.wait_at(rom.program().address("wait16"))
                else:
                    call.ax = key
            case 0x01 | 0x11:
                key = self._next_key(take=False)
                call.flag(ZERO, key is None)
                call.ax = key or 0
            case 0x02 | 0x12:
                call.ax = 2 * self._shift
            case 0x05:
                call.al = 0 if self._put_key(call.cx) else 1
            case _:
                self._refuse(call)

    def _take_typed(self) -> None:
        """What has arrived at the serial port becomes keys, as far as there is room for them; the rest waits."""
        ports, typed = self.monitor.pc.ports, self._typed
        while ports.read(LINE_STATUS, 1) & DATA_READY:
            typed.append(ports.read(SERIAL, 1))
        while typed:
            arrow = _ARROWS.get(bytes(typed[2:3])) if typed[:2] == b"\x1b[" else None
            if not self._put_key(_key(chr(typed[0])) if arrow is None else arrow << 8):
                break
            del typed[: 1 if arrow is None else 3]

    def _key_pressed(self, call: BiosCall) -> None:
        """INT 09, the interrupt of the PC's own keyboard."""
        code = self.monitor.pc.ports.read(KEYBOARD, 1)
        if code & ~RELEASE == LEFT_SHIFT:
            self._shift = not code & RELEASE
        elif not code & RELEASE:
            char = _BY_SHIFTED_CODE.get(code) if self._shift else None
            self._put_key(code << 8 | ord(char or _BY_CODE.get(code, "\0")))
        self._interrupt(call)

    def _put_key(self, key: int) -> bool:
        """A key into the ring buffer; False if it is full."""
        tail = self._word(rom.KEYS_TAIL)
        behind = _next_place(tail)
        if behind == self._word(rom.KEYS_HEAD):
            return False
        self.monitor.memory.write(0x400 + tail, key.to_bytes(2, "little"))
        self.monitor.memory.write(rom.KEYS_TAIL, behind.to_bytes(2, "little"))
        return True

    def _next_key(self, take: bool) -> int | None:
        head = self._word(rom.KEYS_HEAD)
        if head == self._word(rom.KEYS_TAIL):
            return None
        if take:
            self.monitor.memory.write(rom.KEYS_HEAD, _next_place(head).to_bytes(2, "little"))
        return self._word(0x400 + head)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _time(self, call: BiosCall) -> None:
        """INT 1A."""
        match call.ah:
            case 0x00:
                ticks = self.monitor.memory.word(rom.TICKS)
                call.cx, call.dx = ticks >> 16, ticks
                call.al = self.monitor.memory.read(rom.MIDNIGHT, 1)[0]
                self.monitor.memory.write(rom.MIDNIGHT, b"\0")
            case 0x01:
                self.monitor.memory.set_word(rom.TICKS, call.cx << 16 | call.dx)
            case 0x02:
                call.ch, call.cl, call.dh, call.dl = self._clock(4), self._clock(2), self._clock(0), 0
                call.flag(CARRY, False)
            case 0x04:
                call.ch, call.cl, call.dh, call.dl = (self._clock(register) for register in (0x32, 9, 8, 7))
                call.flag(CARRY, False)
            case _:
                self._refuse(call)

    def _clock(self, register: int) -> int:
        """A register of the clock, in BCD as it is."""
        self.monitor.pc.ports.write(CLOCK_INDEX, 1, register)
        return self.monitor.pc.ports.read(CLOCK_DATA, 1)

    def _word(self, address: int) -> int:
        return int.from_bytes(self.monitor.memory.read(address, 2), "little")


def _next_place(place: int) -> int:
    """Behind a place in the ring of keys; a guest may have written anything there."""
    behind = place + 2
    first, end = rom.KEYS - 0x400, rom.KEYS_END - 0x400
    return behind if first < behind < end else first


def _key(char: str) -> int:
    """Scan code and character, as INT 16 returns a key."""
    if char == "\x7f":  # what a terminal sends for the key that deletes backwards
        char = "\b"
    elif char == "\n":
        char = "\r"
    code = _SCAN_CODES.get(char)
    if code is None and "\x01" <= char <= "\x1a":  # a letter with Ctrl
        code = PLAIN[chr(ord(char) + 0x60)]
    return (code or 0) << 8 | ord(char) & 0xFF
