# SPDX-License-Identifier: GPL-2.0-or-later
"""The sequence chart and the histogram: what is drawn for what happened."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
from hypothesis import given, settings
from strategies import snapshots

from l4lab.rig.snapshot import IpcView, Snapshot
from l4lab.views import ipc, vmexits
from l4lab.views.example import CPU0, MONITOR

SVG = "{http://www.w3.org/2000/svg}"


def arrows(drawn: str) -> list[ElementTree.Element]:
    """The groups that are messages."""
    return [
        group for group in ElementTree.fromstring(drawn).iter(f"{SVG}g") if group.get("class", "").startswith("l4-ipc-")
    ]


def test_a_message_is_an_arrow_from_sender_to_receiver(snapshot: Snapshot) -> None:
    """A fault of the right one of two threads points left, is dotted, and says what it is."""
    fault = IpcView(1234, CPU0, MONITOR, "page fault x", (0x1000, 0x2000, 0x3000), "fault")
    [arrow] = arrows(ipc.sequence(msgspec.structs.replace(snapshot, ipc=(fault,))))

    shaft, head = arrow.findall(f"{SVG}path")
    assert "M515.0 64 H261.0" == shaft.get("d")
    assert "2 3" == shaft.get("stroke-dasharray")
    assert "M255.0 64 l8 -4 v8 z" == head.get("d")
    assert ["1\u202f234", "fault: page fault x (1000 2000…)"] == [found.text for found in arrow.findall(f"{SVG}text")]
    assert "cycle 1234, cpu0 to monitor: fault page fault x 1000 2000 3000" == arrow.findtext(f"{SVG}title")


@settings(max_examples=50)
@given(snapshots)
def test_the_chart_keeps_the_latest_messages(snapshot: Snapshot) -> None:
    """For any history, at most thirty messages are drawn, each inside the picture, and time goes down."""
    drawn = ipc.sequence(snapshot)
    found = arrows(drawn)
    root = ElementTree.fromstring(drawn)

    assert min(len(snapshot.ipc), ipc.MESSAGES) == len(found)
    assert (f"{len(snapshot.ipc) - ipc.MESSAGES} earlier" in drawn) == (len(snapshot.ipc) > ipc.MESSAGES)
    heights = [float(arrow.findall(f"{SVG}text")[0].get("y", "")) for arrow in found]
    assert sorted(set(heights)) == heights
    assert all(height < float(root.get("height", "")) for height in heights)


def test_kinds_of_message_differ_without_colour() -> None:
    """No two kinds have the same dash pattern."""
    assert len(ipc.STYLES) == len({dash for _, dash in ipc.STYLES.values()})


def test_the_longest_bar_is_the_most_frequent_reason() -> None:
    """Bars are to scale and sorted; one exit among a million still has a bar and is no 0 %."""
    drawn = ElementTree.fromstring(vmexits.histogram({"HLT": 1, "IO": 1_000_000}))

    assert ["200", "1"] == [bar.get("width") for bar in drawn.iter(f"{SVG}rect")]
    assert ["IO", "1\u202f000\u202f000 (>99 %)", "HLT", "1 (<1 %)"] == [
        found.text for found in drawn.iter(f"{SVG}text")
    ]


def test_the_newest_exit_is_on_top(snapshot: Snapshot) -> None:
    """The table begins with what happened last."""
    rows = ElementTree.fromstring(vmexits.as_html(snapshot)).findall("tbody/tr")

    assert ["183\u202f000", "cpu0", "IO", "0x00100030", "out 0x3f8 ← 0x65 'e'"] == [cell.text for cell in rows[0]]
