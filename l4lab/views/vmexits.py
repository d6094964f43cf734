# SPDX-License-Identifier: GPL-2.0-or-later
"""VM exits: how often each reason occurred, as a histogram, and the latest ones, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from l4lab.rig.snapshot import Snapshot
from l4lab.views.example import example
from l4lab.views.svg import BLUE, Markup, element, label, picture, shorten, table
from l4lab.views.text import grouped
from l4lab.words import hex32

BAR, ROW = 200, 22  # pixels: the longest bar, the distance of two bars
NAMES = 22  # characters
LEFT, RIGHT = 165, 145  # pixels: for the names, for the counts

HEADINGS = ("Cycle", "CPU", "Reason", "Guest IP", "Detail")


def histogram(counts: Mapping[str, int], title: str = "VM exits by reason") -> Markup:
    """A bar per reason, the most frequent first; lengths are to scale, and the count stands beside the bar."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    total = sum(counts.values())
    longest = max(counts.values(), default=0) or 1
    rows = []
    for index, (reason, count) in enumerate(ranked):
        y = index * ROW + 4
        width = max(BAR * count / longest, 1.0)  # a single exit among a million is still seen
        rows += [
            label(LEFT - 8, y + 13, shorten(reason, NAMES), anchor="end", mono=True),
            element("rect", x=LEFT, y=y, width=width, height=ROW - 6, style=f"fill: {BLUE}"),
            label(LEFT + width + 6, y + 13, f"{grouped(count)} ({share(count, total)})"),
        ]
    spoken = "; ".join(f"{reason} {count}" for reason, count in ranked) or "none so far"
    if not ranked:
        rows.append(label(8, 17, "No VM exits so far.", muted=True))
    return picture(LEFT + BAR + RIGHT, max(len(ranked), 1) * ROW + 6, title, spoken, *rows)


def share(count: int, total: int) -> str:
    """A part of a whole in percent; what would round to nothing or to all of it says so."""
    percent = 100 * count / total if total else 0.0
    if 0 < percent < 1:
        return "<1 %"
    return ">99 %" if 99 < percent < 100 else f"{percent:.0f} %"


def as_html(snapshot: Snapshot) -> Markup:
    """The latest exits, the newest first."""
    if not snapshot.exits:
        return element("p", "No VM exits so far.")
    rows = [
        (grouped(each.cycle), snapshot.thread_name(each.vcpu), each.reason, hex32(each.guest_ip), each.detail)
        for each in reversed(snapshot.exits)
    ]
    return table("The latest VM exits, newest first", HEADINGS, rows)


if __name__ == "__main__":
    print(histogram(example().exit_counts))
