# SPDX-License-Identifier: GPL-2.0-or-later
"""The VGA in its text modes: registers that read back as written, and what they make of the text buffer.

Lives here: CRT controller, sequencer, graphics and attribute registers, palette, and how a page of text is found in
memory. Does not live here: the buffer itself, which is plain memory of the machine from 0xB8000 on, and so no access to
it is seen; nor fonts and graphics modes, whose planes plain memory cannot imitate: who sets one is told so on the
screen's page, and once by `graphics`. How a page is drawn is in `views`.
Source: IBM Hardware Interface Technical Reference, "Video Subsystems"; mode 3 as its BIOS sets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from l4lab.devices.device import Device, Limits, Now
from l4lab.devices.vga_modes import MODES, TEXT_MODE, VideoMode

TEXT_BUFFER, MONOCHROME_BUFFER = 0xB8000, 0xB0000  # of colour text modes, and of mode 7
TEXT_WINDOW: Final = 0x8000  # bytes, after which addresses wrap
MAX_COLUMNS, MAX_ROWS = 160, 60
FIRST: Final = MODES[TEXT_MODE]  # what the registers begin with: 80 columns by 25 rows of 9 by 16 dots
CRTC, ATTRIBUTE = FIRST.crtc, FIRST.attribute

# Indices.
LAST_COLUMN, CURSOR_START, CURSOR_END, START_HIGH, START_LOW, CURSOR_HIGH, CURSOR_LOW = 1, 10, 11, 12, 13, 14, 15
OVERFLOW, SCAN_LINES, PROTECT, DISPLAY_END, OFFSET, MODE_CONTROL = 7, 9, 17, 18, 19, 23
CURSOR_OFF, PROTECTED, GRAPHICS_MODE, BLINK, SCREEN_OFF = 0x20, 0x80, 0x01, 0x08, 0x20
TWICE, BY_ROWS, COLOUR_BUFFER, WIDE_DOTS = 0x80, 0x01, 0x04, 0x40
MISCELLANEOUS, ATTRIBUTE_MODE = 6, 0x10  # of the graphics registers, of the attribute registers
PALETTE_ENABLED: Final = 0x20  # of the attribute index: the screen shows something

FRAME_NS: Final = 14_268_000  # 70 Hz; the last twentieth is vertical retrace
LINE_NS: Final = 31_778
NOT_DISPLAYING, RETRACE = 0x01, 0x08

# Code page 437 gives its control codes pictures (IBM PC Technical Reference, "Of Characters, Keystrokes, and Colors").
_LOW: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
CHARACTERS: Final = (_LOW + bytes(range(32, 256)).decode("cp437")).replace("\x7f", "⌂").replace("\xa0", " ")


@dataclass(frozen=True, slots=True)
class TextPage:
    """What a text screen shows."""

    columns: int
    rows: int
    cells: bytes  # row by row: code page 437 character, attribute
    cursor: tuple[int, int] | None  # row and column, if it is to be seen
    blinking: bool  # is an attribute's bit 7 "blink", not a bright background?
    colours: tuple[int, ...]  # the sixteen, as 0xRRGGBB

    def row(self, number: int) -> str:
        """The characters of a row."""
        return "".join(CHARACTERS[code] for code in self._row(number)[::2])

    def attributes(self, number: int) -> bytes:
        """The attributes of a row."""
        return self._row(number)[1::2]

    def lines(self) -> list[str]:
        """The rows, without what is blank at their ends."""
        return [self.row(number).rstrip() for number in range(self.rows)]

    def _row(self, number: int) -> bytes:
        return self.cells[2 * number * self.columns : 2 * (number + 1) * self.columns]


def notice(text: str) -> TextPage:
    """A screen that shows nothing but a sentence, as monitors do that have no picture."""
    columns, rows = FIRST.columns, FIRST.rows
    blank = b" \x07" * columns
    line = b"".join(bytes((ord(char), 0x07)) for char in text.center(columns)[:columns])
    cells = blank * (rows // 2) + line + blank * (rows - rows // 2 - 1)
    return TextPage(columns, rows, cells, None, True, _PLAIN_COLOURS)


def _rgb(colour: int) -> tuple[int, int, int]:
    """The first 64 palette entries, as a BIOS loads them: bits rgbRGB, the capital ones two thirds of full."""
    red, green, blue = (42 * (colour >> 2 - n & 1) + 21 * (colour >> 5 - n & 1) for n in range(3))
    return red, green, blue


_PLAIN_COLOURS: Final = (0, *(0xAAAAAA for _ in range(15)))


class Vga(Device):
    """A VGA adapter that shows text."""

    name = "vga"
    ports = (range(0x3B4, 0x3B6), range(0x3BA, 0x3BB), range(0x3C0, 0x3D0), range(0x3D4, 0x3D6), range(0x3DA, 0x3DB))
    saved = (
        "crtc", "sequencer", "graphics", "attribute", "palette", "crtc_index", "sequencer_index", "graphics_index",
        "attribute_index", "data_next", "misc", "feature", "pixel_mask", "palette_at", "palette_reads",
    )  # fmt: skip
    may_be: ClassVar[Limits] = {"crtc_index": range(0x40), "palette_at": range(768)}

    def __init__(self, now: Now, graphics: Callable[[str], None] = lambda sentence: None) -> None:
        """`graphics` is told, in a sentence, when the adapter begins to show what nobody here can see."""
        self.now = now
        self._on_graphics = graphics
        self.crtc = bytearray(FIRST.crtc.ljust(0x40, b"\0"))
        self.sequencer = bytearray(FIRST.sequencer)
        self.graphics = bytearray(FIRST.graphics)
        self.attribute = bytearray(FIRST.attribute)
        self.palette = bytearray(component for n in range(256) for component in _rgb(n & 63))
        self.crtc_index = self.sequencer_index = self.graphics_index = 0
        self.attribute_index = PALETTE_ENABLED
        self.data_next = False  # port 3C0 takes index and value in turn
        self.misc, self.feature = FIRST.misc, 0
        self.pixel_mask = 0xFF
        self.palette_at = 0  # byte of the palette that is next
        self.palette_reads = False

    def set_mode(self, mode: VideoMode) -> None:
        """Load all registers of a mode, as a BIOS does by a hundred writes to ports."""
        self.misc = mode.misc
        self.sequencer[:] = mode.sequencer
        self.crtc[: len(mode.crtc)] = mode.crtc
        self.attribute[:] = mode.attribute
        self.attribute_index = PALETTE_ENABLED
        self.palette[:] = bytes(component for n in range(256) for component in _rgb(n & 63))
        for index, value in enumerate(mode.graphics):
            self._write_graphics(index, value)

    # -- what it shows ---------------------------------------------------------------------------------------------

    @property
    def shows_graphics(self) -> bool:
        """Are there dots on the screen, not characters?"""
        return bool(self.graphics[MISCELLANEOUS] & GRAPHICS_MODE)

    @property
    def text_buffer(self) -> int:
        """Where the text lies."""
        return TEXT_BUFFER if self.graphics[MISCELLANEOUS] & COLOUR_BUFFER else MONOCHROME_BUFFER

    @property
    def about_graphics(self) -> str:
        """What is there instead of text, in a sentence."""
        return f"graphics of {self._dots()} by {self._lines()} dots; only text can be seen here"

    def page(self, memory: Callable[[int, int], bytes]) -> TextPage | None:
        """The text on the screen, `memory` giving bytes at an address; None if it is dark."""
        if self.sequencer[1] & SCREEN_OFF or self.attribute_index < PALETTE_ENABLED:
            return None
        if self.shows_graphics:
            return notice(self.about_graphics)
        crtc = self.crtc
        columns = min(crtc[LAST_COLUMN] + 1, MAX_COLUMNS)
        rows = min(max(self._scan_lines() // ((crtc[SCAN_LINES] & 0x1F) + 1), 1), MAX_ROWS)
        start, stride = crtc[START_HIGH] << 8 | crtc[START_LOW], 2 * crtc[OFFSET]
        window = memory(self.text_buffer, TEXT_WINDOW)
        window += window  # addresses wrap
        cells = bytearray()
        for row in range(rows):
            at = 2 * (start + row * stride) % TEXT_WINDOW
            cells += window[at : at + 2 * columns]
        cursor = None
        if not crtc[CURSOR_START] & CURSOR_OFF and crtc[CURSOR_START] & 0x1F <= crtc[CURSOR_END] & 0x1F and stride:
            row, column = divmod((crtc[CURSOR_HIGH] << 8 | crtc[CURSOR_LOW]) - start, stride)
            if 0 <= row < rows and column < columns:
                cursor = row, column
        blinking = bool(self.attribute[ATTRIBUTE_MODE] & BLINK)
        return TextPage(columns, rows, bytes(cells), cursor, blinking, tuple(map(self._colour, range(16))))

    def _scan_lines(self) -> int:
        """Lines of the picture tube that show something."""
        overflow = self.crtc[OVERFLOW]
        return (self.crtc[DISPLAY_END] | (overflow >> 1 & 1) << 8 | (overflow >> 6 & 1) << 9) + 1

    def _lines(self) -> int:
        """Lines of dots: some modes show each line twice, or by the count that is a character's height in text."""
        lines = self._scan_lines() // (2 if self.crtc[SCAN_LINES] & TWICE else 1)
        return lines // ((self.crtc[SCAN_LINES] & 0x1F) + 1) if self.crtc[MODE_CONTROL] & BY_ROWS else lines

    def _dots(self) -> int:
        """Dots of a line."""
        return 8 * (self.crtc[LAST_COLUMN] + 1) // (2 if self.attribute[ATTRIBUTE_MODE] & WIDE_DOTS else 1)

    def _colour(self, number: int) -> int:
        """A colour through the attribute controller and the palette, from six bits a component to eight."""
        at = 3 * (self.attribute[number] & 0x3F)
        red, green, blue = (component << 2 | component >> 4 for component in self.palette[at : at + 3])
        return red << 16 | green << 8 | blue

    # -- ports -----------------------------------------------------------------------------------------------------

    def read(self, port: int, size: int) -> int:
        if not self._decodes(port):
            return 0xFF
        match port:
            case 0x3C0:
                return self.attribute_index
            case 0x3C1:
                return _at(self.attribute, self.attribute_index & 0x1F)
            case 0x3C2:
                return 0x10  # a colour monitor is there
            case 0x3C4:
                return self.sequencer_index
            case 0x3C5:
                return _at(self.sequencer, self.sequencer_index)
            case 0x3C6:
                return self.pixel_mask
            case 0x3C7:
                return 3 if self.palette_reads else 0
            case 0x3C8:
                return self.palette_at // 3
            case 0x3C9:
                value = self.palette[self.palette_at]
                self.palette_at = (self.palette_at + 1) % 768
                return value
            case 0x3CA:
                return self.feature
            case 0x3CC:
                return self.misc
            case 0x3CE:
                return self.graphics_index
            case 0x3CF:
                return _at(self.graphics, self.graphics_index)
            case 0x3B4 | 0x3D4:
                return self.crtc_index
            case 0x3B5 | 0x3D5:
                return self.crtc[self.crtc_index]
            case 0x3BA | 0x3DA:
                self.data_next = False
                return self._beam()
            case _:
                return 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        if not self._decodes(port):
            return
        match port:
            case 0x3C0 if self.data_next:
                self.data_next = False
                _set(self.attribute, self.attribute_index & 0x1F, value)
            case 0x3C0:
                self.data_next = True
                self.attribute_index = value & 0x3F
            case 0x3C2:
                self.misc = value
            case 0x3C4:
                self.sequencer_index = value & 7
            case 0x3C5:
                _set(self.sequencer, self.sequencer_index, value)
            case 0x3C6:
                self.pixel_mask = value
            case 0x3C7 | 0x3C8:
                self.palette_at, self.palette_reads = 3 * value, port == 0x3C7
            case 0x3C9:
                self.palette[self.palette_at] = value & 0x3F
                self.palette_at = (self.palette_at + 1) % 768
            case 0x3CE:
                self.graphics_index = value & 0x0F
            case 0x3CF:
                self._write_graphics(self.graphics_index, value)
            case 0x3B4 | 0x3D4:
                self.crtc_index = value & 0x3F
            case 0x3B5 | 0x3D5:
                self._write_crtc(value)
            case 0x3BA | 0x3DA:
                self.feature = value & 3
            case _:
                pass

    def _write_graphics(self, index: int, value: int) -> None:
        before = self.shows_graphics
        _set(self.graphics, index, value)
        if self.shows_graphics and not before:
            self._on_graphics(self.about_graphics)

    def _decodes(self, port: int) -> bool:
        """Is this port on? Which of the two places the CRT controller has is for a bit to say."""
        if 0x3C0 <= port < 0x3D0:
            return True
        return (port >= 0x3D0) == bool(self.misc & 1)

    def _write_crtc(self, value: int) -> None:
        index = self.crtc_index
        if self.crtc[PROTECT] & PROTECTED and index <= OVERFLOW:
            if index == OVERFLOW:  # all but the bit for splitting the screen is protected
                self.crtc[index] = self.crtc[index] & ~0x10 | value & 0x10
            return
        if index < len(CRTC):
            self.crtc[index] = value

    def _beam(self) -> int:
        """Input status 1: is the beam between lines or frames? Programs wait for it, so it goes with time."""
        now = self.now()
        if now % FRAME_NS >= FRAME_NS - FRAME_NS // 20:
            return RETRACE | NOT_DISPLAYING
        return NOT_DISPLAYING if now % LINE_NS >= LINE_NS - LINE_NS // 5 else 0


def _at(registers: bytearray, index: int) -> int:
    return registers[index] if index < len(registers) else 0


def _set(registers: bytearray, index: int, value: int) -> None:
    if index < len(registers):
        registers[index] = value
