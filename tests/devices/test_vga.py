# SPDX-License-Identifier: GPL-2.0-or-later
"""The text screen: registers against QEMU's, and the page against what the registers say.

Deliberate differences, which the common scripts avoid:
  - port 3C0 reads as 0 in QEMU while a value is awaited there;
  - the beam: QEMU's goes by the host's clock;
  - of ports 3B4 to 3BA and 3D4 to 3DA those that are off read as ones here;
  - registers that no VGA has, and bits that it does not keep: QEMU masks sequencer, graphics and attribute registers.
"""

from __future__ import annotations

import random

import pytest

from l4lab.devices import vga
from l4lab.devices.vga import TEXT_BUFFER, TEXT_WINDOW, TextPage, Vga
from l4lab.devices.vga_modes import MODES

from .qemu import In, Out, Script, run

CRTC, SEQUENCER, GRAPHICS, ATTRIBUTE, STATUS = 0x3D4, 0x3C4, 0x3CE, 0x3C0, 0x3DA


class Bench:
    """A VGA and its buffer."""

    def __init__(self) -> None:
        self.time = 0
        self.told: list[str] = []
        self.vga = Vga(lambda: self.time, self.told.append)
        self.buffer = bytearray(b" \x07" * (TEXT_WINDOW // 2))

    def put(self, cell: int, text: bytes, attribute: int = 7) -> None:
        """Write text to the buffer, so many cells from its beginning."""
        at = 2 * cell % TEXT_WINDOW
        self.buffer[at : at + 2 * len(text)] = b"".join(bytes((char, attribute)) for char in text)

    def crtc(self, index: int, value: int) -> None:
        self.vga.write(CRTC, 1, index)
        self.vga.write(CRTC + 1, 1, value)

    def page(self) -> TextPage | None:
        return self.vga.page(lambda address, length: bytes(self.buffer[address - TEXT_BUFFER :][:length]))

    def lines(self) -> list[str]:
        page = self.page()
        assert page is not None
        return page.lines()


def play(device: Vga, script: Script) -> bytes:
    """What the reads of a script return."""
    found = bytearray()
    for op in script:
        match op:
            case In(port):
                found.append(device.read(port, 1))
            case Out(port, value):
                device.write(port, 1, value)
            case _:
                pass
    return bytes(found)


def register(port: int, index: int, value: int) -> Script:
    """Write an indexed register, and read index and register back."""
    return [Out(port, index), Out(port + 1, value), In(port), In(port + 1)]


def some_access(rng: random.Random) -> Script:
    """A register written and read."""
    value = rng.randrange(256)
    match rng.randrange(7):
        case 0 | 1:
            return register(CRTC, rng.randrange(25), value)
        case 2:
            return register(SEQUENCER, 2, value & 0x0F)
        case 3:
            return register(GRAPHICS, rng.choice((3, 8)), value & 0x0F)
        case 4:  # attribute registers take index and value at one port, in turn from a read of the status on
            index = rng.randrange(16)
            written: Script = [Out(ATTRIBUTE, index), Out(ATTRIBUTE, value & 0x3F), Out(ATTRIBUTE, index)]
            return [*written, In(ATTRIBUTE + 1), Out(ATTRIBUTE, value & 0x3F)]
        case 5:  # palette: three components, written one after the other, read the same way
            colours: Script = [Out(0x3C9, rng.randrange(64)) for _ in range(6)]
            return [Out(0x3C8, value), *colours, Out(0x3C7, value), *(In(0x3C9) for _ in range(6))]
        case _:
            return [Out(0x3C2, 0x63 | value & 0x0C), In(0x3CC)]


@pytest.mark.parametrize("seed", range(3))
def test_registers_read_back_as_in_qemu(seed: int) -> None:
    """Do registers, palette, protection and the flip-flop of port 3C0 go as QEMU's?"""
    rng = random.Random(seed)
    script: Script = [Out(0x3C2, 0x67), *register(CRTC, 17, 0)]
    device = Vga(lambda: 0)
    device.read(STATUS, 1)
    for index, value in enumerate(vga.ATTRIBUTE[:16]):  # QEMU's begin as zeros
        script += [Out(ATTRIBUTE, index), Out(ATTRIBUTE, value)]
    for _ in range(150):
        script += some_access(rng)

    assert run(script, 0, ["-device", "isa-vga"]) == play(device, script)


def test_a_page_is_where_the_start_address_says_and_wraps() -> None:
    """After scrolling by whole rows, past the buffer's end too: does the page begin with the row that it should?"""
    bench = Bench()
    for start in (0, 80, 16384 - 80):
        bench.put(start, b"top")
        bench.put(start + 24 * 80, b"bottom", 0x1E)
        bench.crtc(12, start >> 8)
        bench.crtc(13, start & 0xFF)

        assert ("top", "bottom") == (bench.lines()[0], bench.lines()[24])


def test_the_cursor_is_where_it_was_put_unless_it_is_off() -> None:
    """Row and column of the cursor; none when it is turned off, or not on the page."""
    bench = Bench()
    seen = []
    for high, low, begin in ((0, 80 + 5, 0x0D), (0, 80 + 5, 0x2D), (0x20, 0, 0x0D)):
        for index, value in ((14, high), (15, low), (10, begin)):
            bench.crtc(index, value)
        page = bench.page()
        assert page is not None
        seen.append(page.cursor)

    assert [(1, 5), None, None] == seen


def test_more_rows_when_letters_are_lower() -> None:
    """With 8 lines a letter, are there 50 rows?"""
    bench = Bench()
    bench.crtc(9, 0x47)
    page = bench.page()

    assert page is not None
    assert (80, 50) == (page.columns, page.rows)


def test_there_is_no_page_in_the_dark() -> None:
    """Screen off, palette access: is each of them told from text?"""
    bench = Bench()
    bench.vga.write(SEQUENCER, 1, 1)
    bench.vga.write(SEQUENCER + 1, 1, 0x20)
    assert bench.page() is None
    bench = Bench()
    bench.vga.write(ATTRIBUTE, 1, 0x00)

    assert bench.page() is None


DOTS = {
    0x04: (320, 200), 0x06: (640, 200), 0x0D: (320, 200), 0x0E: (640, 200), 0x10: (640, 350), 0x12: (640, 480),
    0x13: (320, 200),
}  # fmt: skip


@pytest.mark.parametrize("number", DOTS)
def test_a_graphics_mode_is_told(number: int) -> None:
    """In place of dots that nobody sees: does the page say so and how many there are, and is somebody told once?"""
    bench = Bench()
    bench.vga.set_mode(MODES[number])
    bench.vga.set_mode(MODES[number])
    width, height = DOTS[number]

    sentence = f"graphics of {width} by {height} dots; only text can be seen here"
    assert [sentence] == [line.strip() for line in bench.lines() if line]
    assert [sentence] == bench.told


def test_mode_7_has_its_text_elsewhere() -> None:
    """Is the page of the monochrome mode that at B0000?"""
    bench = Bench()
    bench.vga.set_mode(MODES[7])
    asked = []
    page = bench.vga.page(lambda address, length: asked.append(address) or bytes(length))

    assert ([0xB0000], 80) == (asked, page and page.columns)


def test_who_waits_for_the_beam_goes_on() -> None:
    """Within a frame's time, is each state of vertical and horizontal retrace seen?"""
    bench = Bench()
    seen = set()
    while bench.time < vga.FRAME_NS:
        seen.add(bench.vga.read(STATUS, 1) & 0x09)
        bench.time += 1_000

    assert {0x00, 0x01, 0x09} == seen


def test_characters_are_those_of_code_page_437() -> None:
    """Letters, box drawing and the pictures of control codes."""
    bench = Bench()
    bench.put(0, bytes((0x41, 0xC9, 0xDB, 0x01, 0x00, 0xFF, 0x81)))

    assert "A╔█☺  ü" == bench.lines()[0]
