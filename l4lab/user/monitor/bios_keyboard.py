# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 09 and INT 16 of the lab's BIOS: the keyboard, which is the PC's own and whatever is typed at the serial port.

Keys wait in the ring buffer of the data area, each as scan code and character. What a key stands for together with
Shift, Ctrl or Alt is in `bios_keys`. Source: Ralf Brown's Interrupt List, INT 16 and its table of keyboard scan codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from l4lab.devices.keys import EXTENDED, LEFT_SHIFT, PAUSE, RELEASE
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import ZERO, BiosCall
from l4lab.user.monitor.bios_keys import (
    ALT,
    CONTROL,
    DELETE,
    LOCKS,
    MODIFIERS,
    key_of_character,
    key_pressed,
)
from l4lab.user.monitor.outcome import End

if TYPE_CHECKING:
    from l4lab.user.monitor.monitor import Monitor

SERIAL, LINE_STATUS, DATA_READY = 0x3F8, 0x3FD, 1
KEYBOARD: Final = 0x60
ABOUT: Final = 0x30  # which functions INT 16, 09 says there are: asking for the keyboard's number, the enhanced ones
KEYBOARD_ID: Final = 0x41AB  # a keyboard of 101 keys, behind a controller that translates
_ARROWS: Final = {b"A": 0x48, b"B": 0x50, b"C": 0x4D, b"D": 0x4B, b"H": 0x47, b"F": 0x4F}  # behind ESC [


class BiosKeyboard:
    """The keyboard, with its services. `end_of_interrupt` ends that of a vector."""

    def __init__(self, monitor: Monitor, end_of_interrupt: Callable[[BiosCall], None]) -> None:
        self.monitor, self.memory = monitor, monitor.memory
        self._end_of_interrupt = end_of_interrupt
        self._typed = bytearray()  # at the serial port, and not yet keys

    def call(self, call: BiosCall) -> None:
        """INT 16; what is no function leaves all registers as they are."""
        self._take_typed()
        match call.ah:
            case 0x00 | 0x10:
                key = self._next_key(take=True)
                if key is None:
                    call.wait_at(rom.program().address("wait16"))
                else:
                    call.ax = key if call.ah else _of_old_keyboard(key)
            case 0x01 | 0x11:
                key = self._next_key(take=False)
                call.flag(ZERO, key is None)
                if key is not None:
                    call.ax = key if call.ah == 0x11 else _of_old_keyboard(key)
            case 0x02:
                call.al = self.memory.byte(rom.SHIFTS)
            case 0x12:
                call.al, call.ah = self.memory.read(rom.SHIFTS, 2)
            case 0x05:
                call.al = 0 if self._put_key(call.cx) else 1
            case 0x09:
                call.al = ABOUT
            case 0x0A:
                call.bx = KEYBOARD_ID
            case 0x92:
                call.ah = 0x80  # there are functions 10 to 12
            case _:
                pass

    def _take_typed(self) -> None:
        """What has arrived at the serial port becomes keys, as far as there is room for them; the rest waits."""
        ports, typed = self.monitor.pc.ports, self._typed
        while ports.read(LINE_STATUS, 1) & DATA_READY:
            typed.append(ports.read(SERIAL, 1))
        while typed:
            arrow = _ARROWS.get(bytes(typed[2:3])) if typed[:2] == b"\x1b[" else None
            if not self._put_key(key_of_character(chr(typed[0])) if arrow is None else arrow << 8):
                break
            del typed[: 1 if arrow is None else 3]

    def pressed(self, call: BiosCall) -> None:
        """INT 09, the interrupt of the PC's own keyboard."""
        code = self.monitor.pc.ports.read(KEYBOARD, 1)
        before = self.memory.byte(rom.KEYBOARD_STATE)
        if code in (EXTENDED, PAUSE):
            after = before | (rom.AFTER_E0 if code == EXTENDED else rom.AFTER_E1)
        else:
            after = before & ~(rom.AFTER_E0 | rom.AFTER_E1)
            if not before & rom.AFTER_E1:
                self._take_code(code, extended=bool(before & rom.AFTER_E0))
        self.memory.write(rom.KEYBOARD_STATE, bytes((after,)))
        self._end_of_interrupt(call)

    def _take_code(self, code: int, *, extended: bool) -> None:
        """A key was pressed or released."""
        shifts, key, is_press = self.memory.byte(rom.SHIFTS), code & ~RELEASE, not code & RELEASE
        if (flag := MODIFIERS.get(key)) is not None:
            if not extended or key != LEFT_SHIFT:  # which comes together with arrow keys, and means nothing
                shifts = shifts | flag if is_press else shifts & ~flag
        elif (lock := LOCKS.get(key)) is not None and not extended:
            shifts ^= lock if is_press else 0
        elif is_press and key == DELETE and shifts & CONTROL and shifts & ALT:
            self.monitor.stop(End.RESET, "somebody pressed Ctrl, Alt and Del")
        elif is_press and (made := key_pressed(key, shifts, extended=extended)) is not None:
            self._put_key(made)
        self.memory.write(rom.SHIFTS, bytes((shifts,)))

    def _put_key(self, key: int) -> bool:
        """A key into the ring buffer; False if it is full."""
        tail = self.memory.half(rom.KEYS_TAIL)
        behind = _next_place(tail)
        if behind == self.memory.half(rom.KEYS_HEAD):
            return False
        self.memory.write(0x400 + tail, key.to_bytes(2, "little"))
        self.memory.write(rom.KEYS_TAIL, behind.to_bytes(2, "little"))
        return True

    def _next_key(self, take: bool) -> int | None:
        head = self.memory.half(rom.KEYS_HEAD)
        if head == self.memory.half(rom.KEYS_TAIL):
            return None
        if take:
            self.memory.write(rom.KEYS_HEAD, _next_place(head).to_bytes(2, "little"))
        return self.memory.half(0x400 + head)


def _of_old_keyboard(key: int) -> int:
    """A key as the functions for keyboards of 83 keys tell it: those that came later look like the ones there were."""
    code, char = key >> 8, key & 0xFF
    if code == 0xE0:  # of the number pad
        return (0x352F if char == 0x2F else 0x1C00 | char) if char in (0x0A, 0x0D, 0x2F) else key
    return code << 8 if code and char in (0xE0, 0xF0) else key


def _next_place(place: int) -> int:
    """Behind a place in the ring of keys; a guest may have written anything there."""
    behind = place + 2
    first, end = rom.KEYS - 0x400, rom.KEYS_END - 0x400
    return behind if first < behind < end else first
