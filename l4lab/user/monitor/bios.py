# SPDX-License-Identifier: GPL-2.0-or-later
"""The services of the lab's BIOS, for guests that begin with a boot sector: answered by the monitor, call by call.

Lives here: which service answers which vector, the start, the end, and the serial port. The others are beside:
`bios_screen` and `bios_video`, `bios_disk`, `bios_keyboard`, `bios_clock`, `bios_system`; what lies in the guest's
memory is in `rom`. What a service does not know, it refuses as BIOSes do, and `unknown` counts it. The tests compare
registers and flags after calls with SeaBIOS's on QEMU. Source: Ralf Brown's Interrupt List.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from l4lab.abi.exceptions import UNDEFINED_OPCODE
from l4lab.abi.frame import FLAG_IF
from l4lab.abi.vm import ExitReason, ItemId
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import CARRY, ITEMS, BiosCall
from l4lab.user.monitor.bios_clock import BiosClock
from l4lab.user.monitor.bios_disk import BiosDisks
from l4lab.user.monitor.bios_keyboard import BiosKeyboard
from l4lab.user.monitor.bios_screen import BiosScreen
from l4lab.user.monitor.bios_system import BiosSystem
from l4lab.user.monitor.bios_video import BiosVideo
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.outcome import End
from l4lab.user.monitor.start import EFLAGS_START, Start

if TYPE_CHECKING:
    from l4lab.user.monitor.monitor import Monitor

UNKNOWN_KINDS: Final = 256  # different calls that are counted
FIRST_COMMAND, SECOND_COMMAND, END_OF_INTERRUPT = 0x20, 0xA0, 0x20

SERIAL: Final = 0x3F8
INTERRUPT_ENABLE, LINE_CONTROL, LINE_STATUS, MODEM_STATUS = 1, 3, 5, 6  # registers of the serial port, from there
DIVISOR_ACCESS, DATA_READY, TIMED_OUT = 0x80, 0x01, 0x80
DIVISORS: Final = (1047, 768, 384, 192, 96, 48, 24, 12)  # of 110 to 9600 bits a second

SET_CLOCKS: Final = frozenset((0x14, 0x15, 0x1A))  # services that may change when a device next does something
_EXCEPTIONS: Final = {0: "divided by zero", 5: "left the bounds of an array", 6: "executed what is no instruction"}
PRINT_SCREEN: Final = b"\xcd\x05"  # INT 5, which shares its vector with an exception


class Bios:
    """The BIOS of one guest.

    `loaded` says with which registers the guest goes on when the BIOS has done its part; None is for the first disk's
    boot sector. All that the BIOS has to remember is in the guest's memory, so a saved guest goes on with a new one.
    """

    def __init__(self, monitor: Monitor, loaded: Start | None, disks: BiosDisks) -> None:
        self.monitor, self.loaded, self.disks = monitor, loaded, disks
        memory, vga = monitor.memory, monitor.pc.vga
        video = BiosVideo(memory, vga, BiosScreen(memory, vga, monitor.transmit))
        keyboard = BiosKeyboard(monitor, self._interrupt)
        clock = BiosClock(memory, monitor.pc.ports)
        system = BiosSystem(memory, clock, monitor.stop)
        self.unknown: Counter[tuple[int, int]] = Counter()  # (vector, AX)
        monitor.handlers[ExitReason.VMCALL] = self.handle
        self._services: Mapping[int, Callable[[BiosCall], None]] = {
            0x09: keyboard.pressed,
            0x10: video.call,
            0x11: self._equipment,
            0x12: self._conventional_memory,
            0x13: disks.call,
            0x14: self._serial,
            0x15: system.call,
            0x16: keyboard.call,
            0x17: BiosCall.refuse,  # there is no printer
            0x18: self._nothing_to_boot,
            0x19: self._bootstrap,
            0x1A: clock.call,
            **dict.fromkeys((*range(0x0A, 0x10), *range(0x70, 0x78)), self._interrupt),
            **dict.fromkeys(_EXCEPTIONS, self._exception),
        }

    def power_on(self) -> None:
        """Put into the guest's memory what a PC's BIOS has there."""
        pieces = rom.pieces(self.disks.diskettes, self.disks.hard_disks)
        self.monitor.load((piece.address, piece.data) for piece in pieces)

    def handle(self, fault: Fault, reply: Reply) -> None:
        """A VMCALL: a service of ours if it is one of our stubs, else an instruction that this CPU does not have."""
        segments = self.monitor.vcpu.read(*ITEMS)
        vector, rest = divmod(fault.eip, rom.STUB_SIZE)
        if segments[ItemId.CS][0] != rom.SEGMENT or rest or vector > 0xFF:
            reply.raise_exception(UNDEFINED_OPCODE)
            return
        call = BiosCall(vector, fault, reply, segments, self.monitor.memory)
        kind = vector, call.ax
        self._services.get(vector, self._ignore)(call)
        if call.is_unknown and (kind in self.unknown or len(self.unknown) < UNKNOWN_KINDS):
            self.unknown[kind] += 1
        if not call.goes_elsewhere:
            call.finish()
        if vector in SET_CLOCKS:
            self.monitor.devices_changed()

    def _ignore(self, call: BiosCall) -> None:
        """A vector for programs to hook."""

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
        if call.instruction == PRINT_SCREEN:
            return  # there is no printer
        what = _EXCEPTIONS[call.vector]
        self.monitor.stop(End.STOPPED, f"the guest {what} at {call.caller}, and has no handler for that")

    def _interrupt(self, call: BiosCall) -> None:
        """A device's interrupt that nobody handles."""
        if call.vector >= 0x70:
            self.monitor.pc.ports.write(SECOND_COMMAND, 1, END_OF_INTERRUPT)
        self.monitor.pc.ports.write(FIRST_COMMAND, 1, END_OF_INTERRUPT)

    # -- what machine this is -----------------------------------------------------------------------------------------

    def _equipment(self, call: BiosCall) -> None:
        call.ax = self.monitor.memory.half(rom.EQUIPMENT)

    def _conventional_memory(self, call: BiosCall) -> None:
        call.ax = self.monitor.memory.half(rom.MEMORY_KB)

    # -- the serial port ---------------------------------------------------------------------------------------------

    def _serial(self, call: BiosCall) -> None:
        """INT 14. Nobody waits here for a byte: it is there, or the time that it may take is over."""
        if call.dx:
            call.refuse()
            return
        match call.ah:
            case 0x00:
                divisor, control = DIVISORS[call.al >> 5], call.al & 0x1F
                self._set(LINE_CONTROL, control | DIVISOR_ACCESS)
                self._set(0, divisor & 0xFF)
                self._set(1, divisor >> 8)
                self._set(LINE_CONTROL, control)
                self._set(INTERRUPT_ENABLE, 0)
                self._tell_status(call)
            case 0x01:
                self._set(0, call.al)
                call.ah = self._get(LINE_STATUS)
            case 0x02:
                status = self._get(LINE_STATUS)
                if status & DATA_READY:
                    call.al, call.ah = self._get(0), status & ~DATA_READY
                else:
                    call.ah = status | TIMED_OUT
            case 0x03:
                self._tell_status(call)
            case _:
                call.refuse()
                return
        call.flag(CARRY, False)

    def _tell_status(self, call: BiosCall) -> None:
        call.ah, call.al = self._get(LINE_STATUS), self._get(MODEM_STATUS)

    def _get(self, register: int) -> int:
        return self.monitor.pc.ports.read(SERIAL + register, 1)

    def _set(self, register: int, value: int) -> None:
        self.monitor.pc.ports.write(SERIAL + register, 1, value)
