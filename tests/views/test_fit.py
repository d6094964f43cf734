# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of very much, and of the demo guest from power-on to its end: all of it is inside, and can be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import msgspec
import pytest

from l4lab.rig.rig import Rig
from l4lab.rig.snapshot import Area, ExitView, IpcKind, IpcView, Region, Snapshot, SpaceView, ThreadView
from l4lab.user.guests import tinyos
from l4lab.views import disassembly, ipc, registers, spaces, svg, text, threads, vmexits
from l4lab.views.example import example
from l4lab.words import Rights

SVG = "{http://www.w3.org/2000/svg}"
EMPTY = Snapshot(cycle=0, virtual_ns=0, retired=0, status="just booted", thread=None, mode="idle")
KINDS: tuple[IpcKind, ...] = ("send", "reply", "fault", "exit", "irq")
NAMES = ("sigma0", "the root task under a name without end", "monitor", "cpu0", "cpu1", "pager", "client", "disk")

PICTURES: dict[str, Callable[[Snapshot], list[str]]] = {
    "sequence": lambda snapshot: [ipc.sequence(snapshot)],
    "histogram": lambda snapshot: [vmexits.histogram(snapshot.exit_counts)],
    "memory map": lambda snapshot: [spaces.memory_map(snapshot, view) for view in snapshot.spaces],
}


@cache
def snapshots() -> list[Snapshot]:
    """Nothing, the example, very much, and the demo guest on its way."""
    return [EMPTY, example(), large(), *demo().values()]


def large() -> Snapshot:
    """As after hours of Linux: eight threads, more messages than a chart holds, memory in a thousand pieces."""
    ids = [0x4001 + (number << 14) for number in range(len(NAMES))]
    pieces = tuple(Region(page * 0x3000, 0x1000, page * 0x2000, Rights.RWX, page % 3) for page in range(1000))
    return msgspec.structs.replace(
        example(),
        cycle=10**11,
        thread=ids[3],
        threads=tuple(ThreadView(each, name, "hosted", "WAITING", 1, 0) for each, name in zip(ids, NAMES, strict=True)),
        ipc=tuple(
            IpcView(10**11 + k, ids[k % 8], ids[k * k % 8], "x" * k, tuple(range(k)), KINDS[k % 5]) for k in range(60)
        ),
        spaces=tuple(
            SpaceView(number, name, kip=Area(1 << 30, 4096), regions=pieces[:: 400 - 50 * number])
            for number, name in enumerate(NAMES)
        ),
        exits=tuple(ExitView(k, ids[3], "IO_INSTRUCTION", k, "out 0x3f8, 1 byte") for k in range(500)),
        exit_counts={f"A_RATHER_LONG_REASON_{k}": 10**k for k in range(9)},
    )


@cache
def demo() -> dict[str, Snapshot]:
    """The demo guest from power-on to its end, looked at on the way."""
    rig = Rig.for_flat_guest(tinyos.build())
    shown = {"power-on": rig.snapshot()}
    rig.run(400_000)
    shown["early"] = rig.snapshot()
    rig.step()
    shown["one step on"] = rig.snapshot()
    rig.run(30_000_000)
    shown["later"] = rig.snapshot()
    rig.run()
    shown["finished"] = rig.snapshot()
    return shown


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_every_label_is_inside_the_picture(draw: Callable[[Snapshot], list[str]]) -> None:
    """No label begins or ends outside of its picture, however long, and however many there are."""
    for picture in (each for snapshot in snapshots() for each in draw(snapshot)):
        root = ElementTree.fromstring(picture)
        width, height = float(root.get("width", "")), float(root.get("height", ""))
        assert f"0 0 {root.get('width')} {root.get('height')}" == root.get("viewBox")

        for found in root.iter(f"{SVG}text"):
            x, y = float(found.get("x", "")), float(found.get("y", ""))
            length = svg.LETTER * len(found.text or "")
            left = x - {"start": 0, "middle": length / 2, "end": length}[found.get("text-anchor", "")]
            assert -1 <= left, found.text
            assert left + length <= width + 1, found.text
            assert 8 <= y <= height - 2, found.text


def test_lifelines_of_many_threads_keep_their_distance() -> None:
    """The heads of eight lifelines do not touch, and a name that does not fit ends in an ellipsis."""
    drawn = ElementTree.fromstring(ipc.sequence(large()))

    heads = [(float(each.get("x", "")), float(each.get("width", ""))) for each in drawn.iter(f"{SVG}rect")]
    names = [found.text or "" for found in drawn.iter(f"{SVG}text") if found.get("text-anchor") == "middle"]
    assert len(NAMES) == len(heads) == len(names)
    assert all(x + width < after for (x, width), (after, _) in pairwise(heads))
    assert "the root task unde…" in names


@pytest.mark.parametrize("moment", ["power-on", "early", "one step on", "later", "finished"])
def test_the_demo_guest_can_be_looked_at_at_any_time(moment: str) -> None:
    """All tables of a real system are well formed, and no thread or space is without a readable name."""
    snapshot = demo()[moment]

    for table in (
        registers.as_html(snapshot),
        disassembly.as_html(snapshot.disassembly),
        threads.as_html(snapshot),
        vmexits.as_html(snapshot),
    ):
        ElementTree.fromstring(table)
    assert "0xffffffff" not in text.threads(snapshot)
    assert "-0x1" not in text.threads(snapshot)


def test_the_demo_guest_has_its_memory_from_the_monitor() -> None:
    """The graph of a real system leads from sigma0 to the monitor to the virtual machine."""
    snapshot = demo()["later"]
    by_name = {view.name: view.id for view in snapshot.spaces}
    [machine] = [view.id for view in snapshot.spaces if view.is_vm]

    graph = spaces.as_dot(snapshot)
    assert f"s{by_name['sigma0']} -> s{by_name['monitor']} " in graph
    assert f"s{by_name['monitor']} -> s{machine} " in graph


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_the_theme_may_be_missing(draw: Callable[[Snapshot], list[str]]) -> None:
    """Each variable of the notebook's theme is followed by what to do without one."""
    for piece in "".join(draw(example())).split("var(")[1:]:
        assert "," in piece.split(")")[0]


@pytest.mark.parametrize(("ink", "background"), [("#212121", "#ffffff"), ("#dedede", "#111111")])
def test_text_can_be_read_in_both_themes(ink: str, background: str) -> None:
    """On the fallback of a surface, and where it is muted, text contrasts 4.5:1 or better (WCAG 2.1, 1.4.3)."""
    assert svg.SURFACE.endswith("rgba(128, 128, 128, 0.12))")
    assert contrast(ink, mixed("#808080", background, 0.12)) >= 4.5
    assert contrast(mixed(ink, background, 0.75), background) >= 4.5


def mixed(colour: str, background: str, opacity: float) -> str:
    """What a translucent colour looks like."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(background[1:]), strict=True)
    return "#" + bytes(round(over * opacity + under * (1 - opacity)) for over, under in pairs).hex()


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.1."""
    brighter, darker = sorted(map(luminance, (one, other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    channels = [channel / 255 for channel in bytes.fromhex(colour[1:])]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
