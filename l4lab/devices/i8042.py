# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8042 keyboard controller of a PC with a keyboard behind it, and no mouse.

Lives here: enough of both that an operating system finds, identifies and resets them, A20, and the CPU's reset line.
The keyboard sends scan codes of set 2, or of set 1 if it is told to, and the controller translates if it is told to.
Does not live here: which keys a text is typed with, and the tables of codes (`keys`).
Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller" and "Keyboard".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from l4lab.devices.device import WAITING, Device, Limits, Line, no_line
from l4lab.devices.keys import RELEASE, RELEASE_PREFIX, TO_SET_1, in_set_2, scan_codes

STATUS_FULL, STATUS_TESTED, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
CONFIG_IRQ, CONFIG_TESTED, CONFIG_DISABLED, CONFIG_TRANSLATE = 0x01, 0x04, 0x10, 0x40
OUTPUT_RUN, OUTPUT_A20 = 0x01, 0x02  # output port: bit 0 low resets the CPU
ACK, RESEND, SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA


class I8042(Device):
    """The keyboard controller, with a keyboard."""

    name = "i8042"
    ports = (range(0x60, 0x61), range(0x64, 0x65))
    saved = (
        "config", "output_port", "buffer", "full", "replies", "keys", "command", "key_command", "scanning",
        "after_command", "scan_set", "releases",
    )  # fmt: skip
    may_be: ClassVar[Limits] = {"replies": WAITING, "keys": WAITING}

    def __init__(self, irq: Line, reset: Callable[[], None], a20: Line = no_line) -> None:
        self.irq, self.reset, self.a20 = irq, reset, a20
        self.config = CONFIG_IRQ | CONFIG_TESTED | CONFIG_TRANSLATE  # as a BIOS leaves it
        self.output_port = OUTPUT_RUN | OUTPUT_A20
        self.buffer, self.full = 0, False  # what port 60 returns, and whether it was read
        self.replies = bytearray()  # of the controller, waiting for the buffer; they go before keys
        self.keys = bytearray()  # of the keyboard, waiting for the buffer
        self.command = 0  # controller command whose parameter is awaited, 0 if none
        self.key_command = 0  # keyboard command whose parameter is awaited, 0 if none
        self.scanning = True
        self.scan_set = 2  # which codes the keyboard sends
        self.releases = False  # the controller has seen the release prefix of set 2, and translates what follows
        self.after_command = False  # the last byte written was a command
        self.polls = 0  # how often somebody has looked for a byte, and there was none

    def type_keys(self, text: str) -> None:
        """Press and release the keys of a text. ValueError, naming it, for a character that has no key."""
        self.press(scan_codes(text))

    def press(self, codes: bytes) -> None:
        """Keys go down and up, told by their scan codes of set 1; lost unless the keyboard scans."""
        if self.scanning:
            self.keys += in_set_2(codes) if self.scan_set == 2 else codes
            self._feed()

    def set_a20(self, level: bool) -> None:
        """The gate was set by other means: the output port shows it."""
        self.output_port = self.output_port & ~OUTPUT_A20 | (OUTPUT_A20 if level else 0)

    def _feed(self) -> None:
        """Fill the output buffer if it was read, and drive IRQ1: one edge for each byte."""
        if not self.full:
            self.irq(False)
            if self.replies:
                self.buffer, self.full = self.replies.pop(0), True
            elif not self.config & CONFIG_DISABLED:
                self._take_key()
        self.irq(self.full and bool(self.config & CONFIG_IRQ))

    def _take_key(self) -> None:
        """The next byte of the keyboard, translated if that is on: the prefix of a release becomes its highest bit."""
        while self.keys and not self.full:
            byte = self.keys.pop(0)
            if not self.config & CONFIG_TRANSLATE:
                self.buffer, self.full = byte, True
            elif byte == RELEASE_PREFIX:
                self.releases = True
            else:
                self.buffer, self.full = TO_SET_1[byte] | (RELEASE if self.releases else 0), True
                self.releases = False

    def read(self, port: int, size: int) -> int:
        if port == 0x64:
            self.polls += not self.full
            return (
                STATUS_UNLOCKED
                | (STATUS_COMMAND if self.after_command else 0)
                | (STATUS_TESTED if self.config & CONFIG_TESTED else 0)
                | (STATUS_FULL if self.full else 0)
            )
        byte = self.buffer  # reading an empty buffer returns the last byte again
        self.full = False
        self._feed()
        return byte

    def write(self, port: int, size: int, value: int) -> None:
        self.after_command = port == 0x64
        if port == 0x64:
            self._controller_command(value)
        elif self.command:
            command, self.command = self.command, 0
            self._controller_parameter(command, value)
        else:
            self.config &= ~CONFIG_DISABLED  # to send to the keyboard is to enable it
            self._keyboard_byte(value)
        self._feed()

    def _controller_command(self, value: int) -> None:
        self.command = 0
        match value:
            case 0x20:
                self.replies.append(self.config)
            case 0x60 | 0xD1 | 0xD2 | 0xD3 | 0xD4:
                self.command = value
            case 0xA9:  # the mouse's interface: clock line stuck high, for there is none
                self.replies.append(0x02)
            case 0xAA:
                self.config |= CONFIG_TESTED
                self.replies.append(0x55)
            case 0xAB:  # the keyboard's interface: no error
                self.replies.append(0x00)
            case 0xAD:
                self.config |= CONFIG_DISABLED
            case 0xAE:
                self.config &= ~CONFIG_DISABLED
            case 0xC0:  # input port: keyboard not locked
                self.replies.append(0x80)
            case 0xD0:
                self.replies.append(self.output_port)
            case _ if value >= 0xF0 and not value & OUTPUT_RUN:  # pulse the output port's low bits that are 0
                self.reset()
            case _:
                pass

    def _controller_parameter(self, command: int, value: int) -> None:
        match command:
            case 0x60:
                self.config = value
            case 0xD1:
                self.output_port = value | OUTPUT_RUN
                self.a20(bool(value & OUTPUT_A20))
                if not value & OUTPUT_RUN:
                    self.reset()
            case 0xD2 | 0xD3:
                # D3 asks for the byte as if from the mouse. It comes back without the mouse's status bit, by which a
                # driver sees at once that there is none, and need not wait for a time-out.
                self.replies.append(value)
            case _:  # D4: a byte for a mouse
                self.replies.append(RESEND)

    def _keyboard_byte(self, value: int) -> None:
        if self.key_command:
            command, self.key_command = self.key_command, 0
            self.keys.append(ACK)
            if command == 0xF0 and value == 0:  # which set?
                self.keys.append(self.scan_set)
            elif command == 0xF0 and value in (1, 2):  # there is no third
                self.scan_set = value
            return
        match value:
            case 0xED | 0xF0 | 0xF3:  # lights, scan code set, repeat rate: a parameter follows
                self.key_command = value
                self.keys.append(ACK)
            case 0xEE:
                self.keys.append(0xEE)
            case 0xF2:
                self.keys += bytes((ACK, 0xAB, 0x83))
            case 0xF4:
                self.scanning = True
                self.keys.append(ACK)
            case 0xF5 | 0xF6:  # back to how it began; F5 leaves it silent
                self.scanning, self.scan_set = value == 0xF6, 2
                self.keys.append(ACK)
            case 0xFF:
                self.keys[:] = bytes((ACK, SELF_TEST_PASSED))
                self.scanning, self.scan_set = True, 2
            case _:
                self.keys.append(RESEND)
