# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 10 of the lab's BIOS, as far as it writes: text in the guest's memory, and shown on its serial console.

Characters lie where PCs have them, at B8000, and the adapter's cursor goes where the BIOS's does, so whoever shows that
memory shows the screen. What is written by calls goes to the console as well, with the escape sequences of a terminal
(ECMA-48) where the cursor jumps; what a guest stores into the screen itself does not. While the adapter shows graphics,
the console alone gets the characters. What sets up the adapter is in `bios_video`.
Source: Ralf Brown's Interrupt List, INT 10.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.devices.vga import CURSOR_HIGH, CURSOR_LOW, MAX_COLUMNS, MAX_ROWS, START_HIGH, START_LOW, TEXT_WINDOW, Vga
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import BiosCall
from l4lab.user.monitor.guest_memory import GuestMemory

USUAL_COLOUR: Final = 0x07  # light grey on black
BELL, BACKSPACE, LINE_FEED, RETURN = 7, 8, 10, 13
PAGES: Final = 8  # of which the data area has cursors
CLEAR: Final = b"\x1b[H\x1b[2J"


class BiosScreen:
    """The text on the screen. `send` takes the bytes of the console."""

    def __init__(self, memory: GuestMemory, vga: Vga, send: Callable[[int], None]) -> None:
        self.memory, self.vga, self.send = memory, vga, send
        self._shown_at = (0, 0)  # the terminal's cursor: column, row; behind the last column before it wraps
        self._shown_last: tuple[int, int, int] | None = None  # the character before it: column, row, which
        self.columns = self.rows = self.active = self._page_size = 0
        self._cursors = bytearray()
        self.look()

    def call(self, call: BiosCall) -> None:
        """INT 10; what is no function leaves all registers as they are."""
        match call.ah:
            case 0x02:
                self.set_cursor(call.bh, call.dl, call.dh)
            case 0x03:
                call.cx = self.memory.half(rom.CURSOR_SHAPE)
                call.dl, call.dh = self.cursor(call.bh)
            case 0x05 if call.al < PAGES:
                self.show_page(call.al)
            case 0x06 | 0x07:
                self._scroll_call(call)
            case 0x08:
                call.ax = 0
                if not self.vga.shows_graphics:
                    call.ax = self.memory.half(self._cell(call.bh, *self.cursor(call.bh)))
            case 0x09 | 0x0A:
                self._repeat(call)
            case 0x0E:
                self.write(self.active, call.al)
            case 0x13:
                self._string(call)
            case _:
                pass

    # -- what the data area says of the screen ---------------------------------------------------------------------

    def look(self) -> None:
        """Read the data area, as it is when a call comes; a guest may have written anything there."""
        area = self.memory.read(rom.VIDEO_MODE, rom.LAST_ROW + 1 - rom.VIDEO_MODE)
        _, columns, self._page_size, _ = struct.unpack_from("<BHHH", area)
        self.columns = min(max(columns, 1), MAX_COLUMNS)
        self.rows = min(area[rom.LAST_ROW - rom.VIDEO_MODE] + 1, MAX_ROWS)
        self.active = area[rom.VIDEO_PAGE - rom.VIDEO_MODE]
        first = rom.CURSOR - rom.VIDEO_MODE
        self._cursors = bytearray(area[first : first + 2 * PAGES])

    def cursor(self, page: int) -> tuple[int, int]:
        """Column and row of a page's cursor. It may stand outside of the screen, where nobody sees it."""
        at = 2 * (page % PAGES)
        return self._cursors[at], self._cursors[at + 1]

    def set_cursor(self, page: int, column: int, row: int) -> None:
        """Put a page's cursor somewhere; the adapter shows that of the active page."""
        at = 2 * (page % PAGES)
        self._cursors[at], self._cursors[at + 1] = column, row
        self.memory.write(rom.CURSOR + at, bytes((column, row)))
        if page == self.active:
            place = self._page_start(page) // 2 + row * self.columns + column
            self.vga.crtc[CURSOR_HIGH], self.vga.crtc[CURSOR_LOW] = place >> 8 & 0xFF, place & 0xFF

    def show_page(self, page: int) -> None:
        """Make a page the active one."""
        start = self._page_start(page)
        self.memory.write(rom.PAGE_START, start.to_bytes(2, "little"))
        self.memory.write(rom.VIDEO_PAGE, bytes((page,)))
        self.active = page
        self.vga.crtc[START_HIGH], self.vga.crtc[START_LOW] = start >> 9 & 0xFF, start >> 1 & 0xFF
        self.set_cursor(page, *self.cursor(page))
        self._repaint()

    def _page_start(self, page: int) -> int:
        return page % PAGES * self._page_size & 0xFFFF

    def _cell(self, page: int, column: int, row: int) -> int:
        """The address of a character; a page's addresses wrap within the adapter's window."""
        return self.vga.text_buffer + (self._page_start(page) + 2 * (row * self.columns + column)) % TEXT_WINDOW

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, page: int, character: int, colour: int | None = None) -> None:
        """A character at the cursor, which moves on, as a teletype does it."""
        column, row = self.cursor(page)
        match character:
            case 0x07:
                self.send(BELL)
                return
            case 0x08:
                column = max(column - 1, 0)
                self._show(page, BACKSPACE)
            case 0x0D:
                column = 0
                self._show(page, RETURN)
            case 0x0A:
                row += 1
                self._show(page, LINE_FEED)
            case _:
                self._put(page, column, row, character, colour)
                column += 1
        if column == self.columns:
            column, row = 0, row + 1
            self._send(page, b"\r\n")
        if row >= self.rows:
            row = self.rows - 1
            self.scroll(page, 1, 0, 0, self.columns - 1, row, USUAL_COLOUR)
        self.set_cursor(page, column, row)
        if page == self.active:
            self._shown_at = column, row

    def clear_terminal(self) -> None:
        """The console shows an empty screen, as the adapter does after a mode was set."""
        self._to_terminal(CLEAR)
        self._shown_at, self._shown_last = (0, 0), None

    def scroll(self, page: int, lines: int, left: int, top: int, right: int, bottom: int, colour: int) -> None:
        """Move a window up, or down where `lines` is negative; what gets free is blank."""
        if self.vga.shows_graphics:
            return
        at, stride = self._cell(page, 0, top), 2 * self.columns
        rows = bytearray(self.memory.read(at, stride * (bottom - top + 1)))
        windows = [slice(begin + 2 * left, begin + 2 * right + 2) for begin in range(0, len(rows), stride)]
        blank = [bytes((0x20, colour)) * (right - left + 1)] * min(abs(lines), len(windows))
        old = [rows[window] for window in windows]
        moved = old[lines:] + blank if lines > 0 else blank + old[: len(old) + lines]
        for window, cells in zip(windows, moved, strict=True):
            rows[window] = cells
        self.memory.write(at, bytes(rows[: self.vga.text_buffer + TEXT_WINDOW - at]))

    def _put(self, page: int, column: int, row: int, character: int, colour: int | None) -> None:
        """A character into the screen and to the console.

        Many programs write each character by one call, for its colour, and by another one, to move the cursor.
        """
        if not self.vga.shows_graphics:
            data = bytes((character,)) if colour is None else bytes((character, colour))
            self.memory.write(self._cell(page, column, row), data)
        if self._shown_last == (column, row, character) and self._shown_at == (column + 1, row):
            return
        if page != self.active or column >= self.columns or row >= self.rows:
            return  # nobody sees it
        self._go_to(column, row)
        self._shown_last = column, row, character
        self._to_terminal(_printable(character))
        self._shown_at = column + 1, row

    # -- the console ---------------------------------------------------------------------------------------------------

    def _show(self, page: int, control: int) -> None:
        """A control character that moves the terminal's cursor as it moves ours."""
        if page == self.active:
            self._go_to(*self.cursor(page))
            self.send(control)

    def _go_to(self, column: int, row: int) -> None:
        if self._shown_at != (column, row):
            self._to_terminal(b"\x1b[%d;%dH" % (row + 1, column + 1))
            self._shown_at = column, row

    def _repaint(self) -> None:
        """Another page is shown: the terminal gets all of it."""
        self.clear_terminal()
        if self.vga.shows_graphics:
            return
        page, columns = self.active, self.columns
        for row in range(self.rows):
            characters = self.memory.read(self._cell(page, 0, row), 2 * columns)[::2]
            if line := b"".join(map(_printable, characters)).rstrip():
                self._go_to(0, row)
                self._to_terminal(line)
                self._shown_at = columns, row

    def _send(self, page: int, data: bytes) -> None:
        if page == self.active:
            self._to_terminal(data)

    def _to_terminal(self, data: bytes) -> None:
        for byte in data:
            self.send(byte)

    # -- calls that do more --------------------------------------------------------------------------------------------

    def _scroll_call(self, call: BiosCall) -> None:
        last_column, last_row = self.columns - 1, self.rows - 1
        left, top = call.cl, call.ch
        right, bottom = min(call.dl, last_column), min(call.dh, last_row)
        if left > right or top > bottom:
            return
        lines = min(call.al or MAX_ROWS, bottom - top + 1)  # 0 clears the window
        if (left, top, right, bottom) == (0, 0, last_column, last_row) and lines == bottom + 1:
            self._to_terminal(b"\x1b[2J")
        self.scroll(self.active, lines if call.ah == 0x06 else -lines, left, top, right, bottom, call.bh)

    def _repeat(self, call: BiosCall) -> None:
        """A character several times from the cursor on, which stays."""
        page, (column, row) = call.bh, self.cursor(call.bh)
        columns = self.columns
        colour = call.bl if call.ah == 0x09 else None
        first = row * columns + column
        for place in range(first, min(first + call.cx, columns * self.rows)):
            self._put(page, place % columns, place // columns, call.al, colour)

    def _string(self, call: BiosCall) -> None:
        page, before = call.bh, self.cursor(call.bh)
        with_colours = bool(call.al & 2)
        data = call.memory.read(call.base(ItemId.ES) + call.bp, call.cx << with_colours)
        self.set_cursor(page, call.dl, call.dh)
        if with_colours:
            for character, colour in zip(data[::2], data[1::2], strict=True):
                self.write(page, character, colour)
        else:
            for character in data:
                self.write(page, character, call.bl)
        if not call.al & 1:
            self.set_cursor(page, *before)


def _printable(character: int) -> bytes:
    """A character of a PC's font as UTF-8."""
    if character < 0x20 or character == 0x7F:
        return b" "
    return bytes((character,)).decode("cp437").encode()
