# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's screen as text and as a picture."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.devices.vga import TEXT_BUFFER, TextPage, Vga
from l4lab.rig.snapshot import Snapshot
from l4lab.views import screen

SVG = "{http://www.w3.org/2000/svg}"


def page(cells: bytes) -> TextPage:
    """A page whose buffer begins so."""
    shown = Vga(lambda: 0).page(lambda at, length: cells[at - TEXT_BUFFER :].ljust(length, b"\0"))
    assert shown is not None
    return shown


def test_text_is_the_screen_without_its_colours(snapshot: Snapshot) -> None:
    """The rule says how large it is, the rows follow, and the last line tells of the cursor."""
    assert snapshot.screen is not None
    shown = screen.as_text(snapshot.screen).splitlines()

    assert "80 by 25" in shown[0]
    assert ["The boot loader", "", " Linux"] == shown[1:4]
    assert "cursor in row 1, column 1" in shown[-1]


def test_colours_are_told_in_other_ways_too(snapshot: Snapshot) -> None:
    """Bright text is bold, a background has a border, what blinks is in italics; and each is told in words."""
    assert snapshot.screen is not None
    drawn = ElementTree.fromstring(screen.as_svg(snapshot.screen))
    texts = {"".join(t.itertext()): t for t in drawn.iter(f"{SVG}text")}
    bold = next(t for words, t in texts.items() if "The\xa0boot\xa0loader" in words)
    chosen = next(r for r in drawn.iter(f"{SVG}rect") if "black on light grey" in "".join(r.itertext()))
    blinking = next(t for words, t in texts.items() if "yellow on blue, blinking" in words)

    assert "bold" in bold.get("style", "")
    assert "#000000" == chosen.get("stroke")
    assert "italic" in blinking.get("style", "")


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=400, max_size=400))
def test_whatever_is_in_the_buffer_can_be_shown(noise: bytes) -> None:
    """Any bytes make a picture that is XML, and lines that are no wider than the screen."""
    shown = page(noise * 10)
    drawn = screen.as_svg(shown)

    assert "svg" in ElementTree.fromstring(drawn).tag
    assert all(len(line) <= 80 for line in shown.lines())
    assert 27 >= len(screen.as_text(shown).splitlines())
