# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every picture: it is well formed, speaks for itself, and shows in both themes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from strategies import snapshots, texts

from l4lab.rig.snapshot import Snapshot, SpaceView
from l4lab.views import disassembly, ipc, registers, spaces, svg, text, threads, vmexits
from l4lab.views.example import example

SVG = "{http://www.w3.org/2000/svg}"
EMPTY = Snapshot(cycle=0, virtual_ns=0, retired=0, status="not started", thread=None, mode="idle")

PICTURES: dict[str, Callable[[Snapshot], str]] = {
    "sequence": ipc.sequence,
    "histogram": lambda snapshot: vmexits.histogram(snapshot.exit_counts),
    "memory map": lambda snapshot: spaces.memory_map(snapshot, next(iter(snapshot.spaces), SpaceView(0, "none"))),
}
TABLES: dict[str, Callable[[Snapshot], str]] = {
    "registers": registers.as_html,
    "disassembly": lambda snapshot: disassembly.as_html(snapshot.disassembly),
    "threads": threads.as_html,
    "exits": vmexits.as_html,
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
@settings(max_examples=60)
@given(snapshots)
def test_a_picture_is_well_formed_and_has_a_name(draw: Callable[[Snapshot], str], snapshot: Snapshot) -> None:
    """For any snapshot a picture parses as XML, and says to a screen reader what it is and what it shows."""
    root = ElementTree.fromstring(draw(snapshot))

    assert f"{SVG}svg" == root.tag
    assert "img" == root.get("role")
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")


@pytest.mark.parametrize("draw", TABLES.values(), ids=TABLES)
@settings(max_examples=60)
@given(snapshots)
def test_a_table_is_well_formed(draw: Callable[[Snapshot], str], snapshot: Snapshot) -> None:
    """For any snapshot a table, or what stands in its place, parses as XML."""
    assert ElementTree.fromstring(draw(snapshot)).tag in ("table", "p")


@given(snapshots)
def test_any_snapshot_can_be_read_as_text(snapshot: Snapshot) -> None:
    """For any snapshot the text twin has all its sections."""
    for section in ("Registers", "Threads", "Address spaces", "Messages", "VM exits"):
        assert f"\n{section}\n" in text.everything(snapshot)


@pytest.mark.parametrize("draw", (PICTURES | TABLES).values(), ids=PICTURES | TABLES)
def test_an_empty_system_is_drawn_too(draw: Callable[[Snapshot], str]) -> None:
    """Before anything has happened there is something to see, and it is in words."""
    root = ElementTree.fromstring(draw(EMPTY))

    assert "".join(root.itertext()).strip()


@given(texts)
def test_escaped_text_comes_back(label: str) -> None:
    """What a guest calls itself reads the same in the picture, but for characters that XML does not have."""
    shown = ElementTree.fromstring(svg.element("text", label, id=label))

    spoken = svg.speakable(label)
    assert re.sub("\r\n?", "\n", spoken) == (shown.text or "")  # XML 1.0, 2.11: ends of lines become newlines
    assert not shown.findall("*")


@pytest.mark.parametrize("background", ["#ffffff", "#111111", "#212121"])
@pytest.mark.parametrize("colour", svg.MARKS)
def test_marks_can_be_seen_in_both_themes(colour: str, background: str) -> None:
    """Lines and bars contrast 3:1 or better with the theme's background (WCAG 2.1, success criterion 1.4.11)."""
    brighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)

    assert (brighter + 0.05) / (darker + 0.05) >= 3


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_no_text_has_a_colour_of_its_own(draw: Callable[[Snapshot], str]) -> None:
    """All text is in the ink of the page around it, whatever that is."""
    for found in ElementTree.fromstring(draw(example())).iter(f"{SVG}text"):
        assert re.match(r"fill: currentColor", found.get("style", ""))


@pytest.mark.parametrize(
    "module", ["console", "disassembly", "ipc", "registers", "spaces", "text", "threads", "vmexits"]
)
def test_each_view_draws_its_example(module: str) -> None:
    """`python -m l4lab.views.X` draws something and ends well."""
    run = subprocess.run([sys.executable, "-m", f"l4lab.views.{module}"], capture_output=True, text=True, check=True)

    assert run.stdout.strip()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1, section 6)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
