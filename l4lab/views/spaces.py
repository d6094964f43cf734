# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces: who mapped what to whom, as a graph in DOT, and the memory map of one space, as SVG.

A space built page by page has thousands of regions; `merge` joins those that continue each other, so that both
pictures show what a reader would call one mapping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from l4lab.rig.snapshot import Region, Snapshot, SpaceView
from l4lab.views import svg, text
from l4lab.views.example import example
from l4lab.words import hex32, size_text

PER_EDGE = 3  # mappings named on one edge of the graph
ROWS = 40  # mappings in one memory map
PORT_ROWS = 8  # ranges of I/O ports below it
LEFT, WIDTH, RIGHT = 84, 250, 210  # pixels: addresses, boxes, where from
NAME = 15  # characters of a space's name at the right


def merge(regions: Iterable[Region]) -> list[Region]:
    """The same mappings by address, neighbours joined where rights, origin and label agree and `pa` goes on too."""
    merged: list[Region] = []
    for region in sorted(regions, key=lambda region: region.va):
        last = merged[-1] if merged else None
        if last is not None and _continues(last, region):
            merged[-1] = msgspec.structs.replace(last, size=last.size + region.size)
        else:
            merged.append(region)
    return merged


def _continues(first: Region, second: Region) -> bool:
    return (first.va + first.size, first.pa + first.size) == (second.va, second.pa) and (
        (first.rights, first.parent, first.label) == (second.rights, second.parent, second.label)
    )


def as_dot(snapshot: Snapshot) -> str:
    """A node per space, an edge from giver to taker; a virtual machine has a double border and says so.

    All in black, which is what `dot` knows: whoever shows the picture puts the ink of the page's theme there.
    """
    lines = [
        'digraph "Address spaces: who mapped what to whom" {',
        "  graph [rankdir=LR, bgcolor=transparent]",
        '  node [shape=box, style=rounded, fontname="sans-serif", fontsize=12]',
        '  edge [fontname="monospace", fontsize=10]',
    ]
    if not snapshot.spaces:
        lines.append('  none [shape=plaintext, label="No address spaces yet."]')
    known = {view.id for view in snapshot.spaces}
    for view in snapshot.spaces:
        merged = merge(view.regions)
        size = text.rough_size(sum(region.size for region in merged))
        border = ", peripheries=2" if view.is_vm else ""
        kind = " (virtual machine)" if view.is_vm else ""
        lines.append(f"  s{view.id} [label={quoted(f'{svg.shorten(view.name, 40)}{kind}', f'{size} mapped')}{border}]")
        givers = {region.parent for region in merged} | {ports.parent for ports in view.ports}
        for parent in sorted(giver for giver in givers if giver is not None and giver in known):
            given = [region for region in merged if region.parent == parent]
            named = [f"{region.va:08x} {size_text(region.size)} {region.rights.text}" for region in given[:PER_EDGE]]
            if len(given) > PER_EDGE:
                named.append(f"and {len(given) - PER_EDGE} more")
            named += _ports_from(view, parent)
            lines.append(f"  s{parent} -> s{view.id} [label={quoted(*named)}]")
    return "\n".join([*lines, "}"]) + "\n"


def _ports_from(view: SpaceView, parent: int) -> list[str]:
    """A line for all ports that a space has from another."""
    given = [ports for ports in view.ports if ports.parent == parent]
    if not given:
        return []
    count = sum(ports.count for ports in given)
    return [f"port {given[0].first:#x}" if count == 1 else f"{count} ports from {given[0].first:#x} on"]


def quoted(*lines: str) -> str:
    """A DOT string of centred lines: what could end it or begin an escape is escaped, control characters go.

    Graphviz takes `&name;` for a character, as HTML does, so the ampersand is written as one.
    """
    safe = (
        " ".join(svg.speakable(line).split()).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
        for line in lines
    )
    return '"' + "\\n".join(safe) + '"'


def memory_map(snapshot: Snapshot, view: SpaceView) -> svg.Markup:
    """One space from the lowest address to the highest. A box grows with the logarithm of its size; a gap is dashed."""
    pieces = _pieces(snapshot, view)
    hidden = len(pieces) - ROWS
    y = 20.0
    heading = f"{svg.shorten(view.name, 24)}{': guest-physical' if view.is_vm else ''}"
    parts = [svg.label(LEFT, 12, heading), svg.label(LEFT + WIDTH + 8, 12, "from, at physical address")]
    end = 0
    for start, size, name, origin in pieces[:ROWS]:
        if start > end:
            parts.append(_gap(y, start - end))
            y += 22
        height = 18 + 2 * math.log2(max(size, 4096) / 4096)
        parts += [
            svg.label(LEFT - 6, y + 13, f"{start:08x}", anchor="end", mono=True),
            svg.box(LEFT, y, WIDTH, height, dash=None if origin else "4 3"),
            svg.label(LEFT + 6, y + 13, svg.shorten(f"{size_text(size)} {name}", 36), mono=True),
            svg.label(LEFT + WIDTH + 8, y + 13, origin, mono=True),
        ]
        y += height + 2
        end = start + size
    if hidden > 0:
        parts.append(svg.label(LEFT, y + 14, f"and {hidden} more mappings above {end:08x}"))
        y += 22
    for ports in view.ports[:PORT_ROWS]:
        parts.append(svg.label(LEFT, y + 13, svg.shorten(text.ports(snapshot, ports), 60), mono=True))
        y += 18
    if len(view.ports) > PORT_ROWS:
        parts.append(svg.label(LEFT, y + 13, f"and {len(view.ports) - PORT_ROWS} more ranges of ports"))
        y += 18
    if not pieces:
        parts.append(svg.label(LEFT, y + 13, "nothing is mapped"))
        y += 22
    title = f"Memory map of {view.name}"
    return svg.picture(LEFT + WIDTH + RIGHT, y + 4, title, text.space(snapshot, view), *parts)


def _pieces(snapshot: Snapshot, view: SpaceView) -> list[tuple[int, int, str, str]]:
    """All that lies in a space, by address: start, size, what it is, where it came from ("" for the kernel's areas)."""
    pieces = [
        (region.va, region.size, f"{region.rights.text} {region.label}".rstrip(), _origin(snapshot, region))
        for region in merge(view.regions)
    ]
    if view.kip is not None:
        pieces.append((view.kip.va, view.kip.size, "KIP", ""))
    if view.utcbs is not None:
        pieces.append((view.utcbs.va, view.utcbs.size, "UTCBs", ""))
    return sorted(pieces)


def _origin(snapshot: Snapshot, region: Region) -> str:
    return f"← {svg.shorten(snapshot.space_name(region.parent), NAME)} {hex32(region.pa)}"


def _gap(y: float, size: int) -> svg.Markup:
    """Unmapped addresses: a dashed line down, and how many."""
    return svg.group(
        svg.line(LEFT + 10, y, LEFT + 10, y + 20, dash="2 3"),
        svg.label(LEFT + 18, y + 14, f"{text.rough_size(size)} not mapped", muted=True),
    )


if __name__ == "__main__":
    print(as_dot(example()))
    print(memory_map(example(), example().spaces[2]))
