# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 10 of the lab's BIOS: a text screen of 80 by 25, in the guest's memory, and shown on its serial console.

Characters lie where PCs have them, at B8000, so whoever shows that memory shows the screen. What is written by calls
goes to the console as well, with the escape sequences of a terminal (ECMA-48) where the cursor jumps; what a guest
stores into the screen itself does not. Source: Ralf Brown's Interrupt List, INT 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import BiosCall
from l4lab.user.monitor.memory import GuestMemory
from l4lab.user.monitor.rom import HEIGHT, WIDTH

SCREEN: Final = 0xB8000
USUAL_COLOUR: Final = 0x07  # light grey on black
BELL, BACKSPACE, LINE_FEED, RETURN = 7, 8, 10, 13
COLOUR_DISPLAY: Final = 0x08  # VGA with a colour screen, as INT 10, 1A tells it


class BiosScreen:
    """The screen, with its services. `send` takes the bytes of the console."""

    def __init__(self, memory: GuestMemory, send: Callable[[int], None]) -> None:
        self.memory, self.send = memory, send
        self._shown_at = (0, 0)  # the terminal's cursor: column, row; behind the last column before it wraps
        self._shown_last: tuple[int, int, int] | None = None  # the character before it: column, row, which

    def call(self, call: BiosCall) -> None:
        """INT 10."""
        match call.ah:
            case 0x00:
                self.clear()
            case 0x02:
                self.cursor = min(call.dl, WIDTH - 1), min(call.dh, HEIGHT - 1)
            case 0x03:
                call.cx = 0x0607
                call.dl, call.dh = self.cursor
            case 0x06 | 0x07:
                self._scroll_call(call)
            case 0x08:
                column, row = self.cursor
                call.ax = int.from_bytes(self.memory.read(_cell(column, row), 2), "little")
            case 0x09 | 0x0A:
                self._repeat(call)
            case 0x0E:
                self.write(call.al)
            case 0x0F:
                call.al, call.ah, call.bh = rom.TEXT_MODE, WIDTH, 0
            case 0x12 if call.bl == 0x10:  # which kind of adapter?
                call.bx, call.cx = 0x0003, 0x0009
            case 0x13:
                self._string(call)
            case 0x1A if call.al == 0:
                call.al, call.bx = 0x1A, COLOUR_DISPLAY
            case _:
                pass  # registers that come back as they went: no such function

    # -- the cursor ----------------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> tuple[int, int]:
        """Column and row, from the BIOS data area."""
        column, row = self.memory.read(rom.CURSOR, 2)
        return min(column, WIDTH - 1), min(row, HEIGHT - 1)

    @cursor.setter
    def cursor(self, at: tuple[int, int]) -> None:
        self.memory.write(rom.CURSOR, bytes(at))

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, character: int, colour: int | None = None) -> None:
        """A character at the cursor, which moves on, as a teletype does it."""
        column, row = self.cursor
        match character:
            case 0x07:
                self.send(BELL)
                return
            case 0x08:
                column = max(column - 1, 0)
                self._show(BACKSPACE)
            case 0x0D:
                column = 0
                self._show(RETURN)
            case 0x0A:
                row += 1
                self._show(LINE_FEED)
            case _:
                self._put(column, row, character, colour)
                column += 1
        if column == WIDTH:
            column, row = 0, row + 1
            self._send(b"\r\n")
        if row == HEIGHT:
            row -= 1
            self.scroll(1, 0, 0, WIDTH - 1, HEIGHT - 1, USUAL_COLOUR)
        self.cursor = column, row
        self._shown_at = column, row

    def clear(self) -> None:
        """An empty screen."""
        self.memory.write(SCREEN, bytes((0x20, USUAL_COLOUR)) * (WIDTH * HEIGHT))
        self.cursor = 0, 0
        self._send(b"\x1b[H\x1b[2J")
        self._shown_at = 0, 0

    def scroll(self, lines: int, left: int, top: int, right: int, bottom: int, colour: int) -> None:
        """Move a window up, or down where `lines` is negative; what gets free is blank."""
        width = right - left + 1
        rows = [self.memory.read(_cell(left, row), 2 * width) for row in range(top, bottom + 1)]
        blank = [bytes((0x20, colour)) * width] * min(abs(lines), len(rows))
        moved = rows[lines:] + blank if lines > 0 else blank + rows[: len(rows) + lines]
        for row, cells in zip(range(top, bottom + 1), moved, strict=False):
            self.memory.write(_cell(left, row), cells)

    def _put(self, column: int, row: int, character: int, colour: int | None) -> None:
        """A character into the screen and to the console.

        Many programs write each character by one call, for its colour, and by another one, to move the cursor.
        """
        at = _cell(column, row)
        self.memory.write(at, bytes((character,)) if colour is None else bytes((character, colour)))
        if self._shown_last == (column, row, character) and self._shown_at == (column + 1, row):
            return
        self._go_to(column, row)
        self._shown_last = column, row, character
        self._send(_printable(character))
        self._shown_at = column + 1, row

    def _show(self, control: int) -> None:
        """A control character that moves the terminal's cursor as it moves ours."""
        self._go_to(*self.cursor)
        self.send(control)

    def _go_to(self, column: int, row: int) -> None:
        if self._shown_at != (column, row):
            self._send(b"\x1b[%d;%dH" % (row + 1, column + 1))
            self._shown_at = column, row

    def _send(self, data: bytes) -> None:
        for byte in data:
            self.send(byte)

    # -- calls that do more --------------------------------------------------------------------------------------------

    def _scroll_call(self, call: BiosCall) -> None:
        left, top = min(call.cl, WIDTH - 1), min(call.ch, HEIGHT - 1)
        right, bottom = min(call.dl, WIDTH - 1), min(call.dh, HEIGHT - 1)
        if left > right or top > bottom:
            return
        lines = min(call.al or HEIGHT, bottom - top + 1)  # 0 clears the window
        whole = (left, top, right, bottom) == (0, 0, WIDTH - 1, HEIGHT - 1)
        if whole and lines == HEIGHT:
            self._send(b"\x1b[2J")
        self.scroll(lines if call.ah == 0x06 else -lines, left, top, right, bottom, call.bh)

    def _repeat(self, call: BiosCall) -> None:
        """A character several times from the cursor on, which stays."""
        column, row = self.cursor
        colour = call.bl if call.ah == 0x09 else None
        for place in range(row * WIDTH + column, min(row * WIDTH + column + call.cx, WIDTH * HEIGHT)):
            self._put(place % WIDTH, place // WIDTH, call.al, colour)

    def _string(self, call: BiosCall) -> None:
        before = self.cursor
        with_colours = bool(call.al & 2)
        data = call.memory.read(call.base(ItemId.ES) + call.bp, call.cx << with_colours)
        self.cursor = min(call.dl, WIDTH - 1), min(call.dh, HEIGHT - 1)
        if with_colours:
            for character, colour in zip(data[::2], data[1::2], strict=True):
                self.write(character, colour)
        else:
            for character in data:
                self.write(character, call.bl)
        if not call.al & 1:
            self.cursor = before


def _cell(column: int, row: int) -> int:
    return SCREEN + 2 * (row * WIDTH + column)


def _printable(character: int) -> bytes:
    """A character of a PC's font as UTF-8."""
    if character < 0x20 or character == 0x7F:
        return b" "
    return bytes((character,)).decode("cp437").encode()
