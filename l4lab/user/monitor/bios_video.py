# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 10 of the lab's BIOS, as far as it sets up the adapter: modes, the cursor's shape, colours, fonts, single dots.

The adapter keeps what it is told, and shows text only. A guest that sets a graphics mode is told by the call that it
has it, and whoever sits at the console that nobody can see it (see `devices.vga`). There are no fonts in the ROM: a
program that draws letters itself finds blank ones. What writes text is in `bios_screen`.
Source: Ralf Brown's Interrupt List, INT 10; IBM Personal System/2 BIOS Interface Technical Reference.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.vm import ItemId
from l4lab.devices.vga import (
    ATTRIBUTE_MODE,
    BLINK,
    CURSOR_END,
    CURSOR_START,
    DISPLAY_END,
    PROTECT,
    PROTECTED,
    SCAN_LINES,
    SCREEN_OFF,
    TEXT_WINDOW,
    Vga,
)
from l4lab.devices.vga_modes import MODES, VideoMode
from l4lab.user.monitor import rom
from l4lab.user.monitor.bios_call import BiosCall
from l4lab.user.monitor.bios_screen import PAGES, USUAL_COLOUR, BiosScreen
from l4lab.user.monitor.guest_memory import GuestMemory

KEEP: Final = 0x80  # of the mode's number: memory keeps what it holds
COLOUR_DISPLAY: Final = 0x08  # VGA with a colour screen, as INT 10, 1A tells it
TEXT_CURSOR: Final = 0x0607  # the lines of a cursor in characters of eight lines: the last two
FONT_HEIGHTS: Final = {0x11: 14, 0x12: 8, 0x14: 16}  # by function of INT 10, 11
TEXT_LINES: Final = 400  # of the picture tube
PAGE_UNIT: Final = 0x800  # pages of the screen are multiples of so many bytes
FOUR_COLOURS, LINEAR = frozenset((4, 5, 6)), 0x13  # modes: memory at B8000; a byte for each dot
GRAPHICS_BUFFER, GRAPHICS_WINDOW, LINE = 0xA0000, 0x10000, 320
OVERSCAN, BORDER_AND_PALETTE = 0x11, 17  # of the attribute registers; how many a program sets at once


class BiosVideo:
    """The adapter, with its services."""

    def __init__(self, memory: GuestMemory, vga: Vga, screen: BiosScreen) -> None:
        self.memory, self.vga, self.screen = memory, vga, screen

    def call(self, call: BiosCall) -> None:
        """INT 10."""
        self.screen.look()
        match call.ah:
            case 0x00:
                self._set_mode(call)
            case 0x01:
                self.set_cursor_shape(call.cx)
            case 0x04:
                call.ah = 0  # there is no light pen
            case 0x0B if call.bh == 0:
                self.vga.attribute[0] = call.bl & 0x07 | (call.bl & 0x08) << 1  # bright is bit 4 in these registers
            case 0x0C | 0x0D:
                self._dot(call)
            case 0x0F:
                call.al = self.memory.byte(rom.VIDEO_MODE) | self.memory.byte(rom.VIDEO_CONTROL) & KEEP
                call.ah, call.bh = self.memory.byte(rom.COLUMNS), self.screen.active
            case 0x10:
                self._colours(call)
            case 0x11:
                self._fonts(call)
            case 0x12:
                self._choices(call)
            case 0x1A if call.al == 0:
                call.al, call.bx = 0x1A, COLOUR_DISPLAY
            case 0x1A if call.al == 1:
                call.al = 0x1A
            case _:
                self.screen.call(call)

    # -- modes ---------------------------------------------------------------------------------------------------------

    def _set_mode(self, call: BiosCall) -> None:
        number, keep = call.al & ~KEEP, call.al & KEEP
        mode = MODES.get(number)
        if mode is not None:
            self._enter(number, mode, bool(keep))
        call.al = 0x20 if number > 7 else 0x3F if number == 6 else 0x30  # so do BIOSes say which kind it is

    def _enter(self, number: int, mode: VideoMode, keep: bool) -> None:
        memory, vga = self.memory, self.vga
        self.screen.clear_terminal()  # before what the adapter may have to say of graphics
        vga.set_mode(mode)
        shape = TEXT_CURSOR if mode.is_text else 0
        for address, data in (
            (rom.VIDEO_MODE, bytes((number,))),
            (rom.COLUMNS, mode.columns.to_bytes(2, "little")),
            (rom.PAGE_SIZE, mode.page.to_bytes(2, "little")),
            (rom.PAGE_START, bytes(2)),
            (rom.CURSOR, bytes(2 * PAGES)),
            (rom.CURSOR_SHAPE, shape.to_bytes(2, "little")),
            (rom.VIDEO_PAGE, bytes(1)),
            (rom.CRTC_PORT, (0x3D4 if mode.misc & 1 else 0x3B4).to_bytes(2, "little")),
            (rom.LAST_ROW, bytes((mode.rows - 1,))),
            (rom.CHARACTER_HEIGHT, mode.character.to_bytes(2, "little")),
            (rom.VIDEO_CONTROL, bytes((rom.CONTROL | KEEP * keep,))),
        ):
            memory.write(address, data)
        if not keep and mode.is_text:
            memory.write(vga.text_buffer, bytes((0x20, USUAL_COLOUR)) * (TEXT_WINDOW // 2))
        elif not keep and number in FOUR_COLOURS:
            memory.write(vga.text_buffer, bytes(TEXT_WINDOW))
        elif not keep:
            memory.write(GRAPHICS_BUFFER, bytes(GRAPHICS_WINDOW))

    def set_cursor_shape(self, lines: int) -> None:
        """First and last line, as they are in a character of eight lines, and so in fact in one of any height."""
        self.memory.write(rom.CURSOR_SHAPE, lines.to_bytes(2, "little"))
        first, last = lines >> 8 & 0x3F, lines & 0x1F
        height = self.memory.half(rom.CHARACTER_HEIGHT)
        if height > 8 and last < 8 and first < 0x20:
            end = (last + 1) * height // 8
            first = end - 2 if last == first + 1 else (first + 1) * height // 8 - 1
            last = end - 1
        self.vga.crtc[CURSOR_START], self.vga.crtc[CURSOR_END] = first, last

    # -- functions with functions of their own --------------------------------------------------------------------

    def _colours(self, call: BiosCall) -> None:
        """INT 10, 10: registers of the palette."""
        attribute, palette = self.vga.attribute, self.vga.palette
        at = 3 * call.bl
        match call.al:
            case 0x00 if call.bl < len(attribute):
                attribute[call.bl] = call.bh
            case 0x01:
                attribute[OVERSCAN] = call.bh
            case 0x02:
                attribute[:BORDER_AND_PALETTE] = self._at_es_dx(call, BORDER_AND_PALETTE)
            case 0x03:
                control = attribute[ATTRIBUTE_MODE] & ~BLINK
                attribute[ATTRIBUTE_MODE] = control | (BLINK if call.bl else 0)
            case 0x07 if call.bl < len(attribute):
                call.bh = attribute[call.bl]
            case 0x08:
                call.bh = attribute[OVERSCAN]
            case 0x09:
                call.memory.write(call.base(ItemId.ES) + call.dx, bytes(attribute[:BORDER_AND_PALETTE]))
            case 0x10:
                palette[at : at + 3] = bytes(value & 0x3F for value in (call.dh, call.ch, call.cl))
            case 0x12:
                first, count = 3 * call.bl, min(3 * call.cx, len(palette) - 3 * call.bl)
                palette[first : first + count] = bytes(value & 0x3F for value in self._at_es_dx(call, count))
            case 0x15:
                call.dh, call.ch, call.cl = palette[at : at + 3]
            case 0x17:
                call.memory.write(call.base(ItemId.ES) + call.dx, bytes(palette[at : at + 3 * call.cx]))
            case _:
                pass

    def _at_es_dx(self, call: BiosCall, count: int) -> bytes:
        return call.memory.read(call.base(ItemId.ES) + call.dx, count)

    def _fonts(self, call: BiosCall) -> None:
        """INT 10, 11: letters of another height make more or fewer rows."""
        if call.al == 0x30:
            call.cx, call.dl = self.memory.half(rom.CHARACTER_HEIGHT), self.memory.byte(rom.LAST_ROW)
            call.point(ItemId.ES, rom.SEGMENT)
            call.bp = rom.program().address("fonts")
        elif not self.vga.shows_graphics and (height := FONT_HEIGHTS.get(call.al) or (call.al == 0x10 and call.bh)):
            self._set_height(height)

    def _set_height(self, height: int) -> None:
        crtc = self.vga.crtc
        height = min(height, 32)
        rows = TEXT_LINES // height
        crtc[PROTECT] &= ~PROTECTED
        crtc[SCAN_LINES] = crtc[SCAN_LINES] & 0xE0 | height - 1
        crtc[DISPLAY_END] = rows * height - 1 & 0xFF
        page = -(-2 * rows * self.screen.columns // PAGE_UNIT) * PAGE_UNIT
        first, last = (height - 3, height - 2) if height > 8 else (height - 2, height - 1)
        self.memory.write(rom.LAST_ROW, bytes((rows - 1,)))
        self.memory.write(rom.CHARACTER_HEIGHT, height.to_bytes(2, "little"))
        self.memory.write(rom.PAGE_SIZE, page.to_bytes(2, "little"))
        self.memory.write(rom.CURSOR_SHAPE, bytes((last, first)))
        crtc[CURSOR_START], crtc[CURSOR_END] = first, last

    def _choices(self, call: BiosCall) -> None:
        """INT 10, 12."""
        match call.bl:
            case 0x10:  # which kind of adapter?
                call.bx, call.cx = 0x0003, 0x0009
            case 0x30 | 0x31 | 0x32 | 0x33 | 0x34:  # lines of text modes, palette, access, grey scales, cursor's shape
                call.al = 0x12
            case 0x36:
                sequencer = self.vga.sequencer
                sequencer[1] = sequencer[1] & ~SCREEN_OFF | (SCREEN_OFF if call.al & 1 else 0)
                call.al = 0x12
            case _:
                pass

    def _dot(self, call: BiosCall) -> None:
        """INT 10, 0C and 0D: a dot, in the one mode whose memory is like memory."""
        if self.memory.byte(rom.VIDEO_MODE) != LINEAR:
            call.al = 0 if call.ah == 0x0D else call.al
            return
        at = GRAPHICS_BUFFER + (LINE * call.dx + call.cx) % GRAPHICS_WINDOW
        if call.ah == 0x0C:
            self.memory.write(at, bytes((call.al,)))
        else:
            call.al = self.memory.byte(at)
