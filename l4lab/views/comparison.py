# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest under nested and under shadow paging, side by side: a table, and bars for how often each thing happened.

Colour is not what tells the two apart: bars of nested paging are filled, those of shadow paging outlined, and each has
its name beside it.
"""

from __future__ import annotations

from typing import Final

from l4lab.rig.comparison import PagedRun, PagingComparison
from l4lab.views.counters import HEADINGS as COUNTED
from l4lab.views.counters import numbers
from l4lab.views.svg import BLUE, ORANGE, Markup, element, label, picture, shorten, table
from l4lab.views.text import figures, grouped

BAR, HEIGHT, ROW = 220, 10, 36  # pixels: the longest bar, how thick it is, the distance of two pairs of bars
LEFT, RIGHT = 200, 175  # pixels: for the names, for the counts
NAMES = 27  # characters
HEADINGS: Final = ("", "Nested", "Shadow", "Shadow : nested")


def happened(comparison: PagingComparison) -> list[tuple[str, int, int]]:
    """What happened how often, nested and shadow: the exits by reason, and what is no exit to the monitor."""
    nested, shadow = comparison.nested.counts, comparison.shadow.counts
    found = [(reason, *_both(nested.exits, shadow.exits, reason)) for reason in sorted({*nested.exits, *shadow.exits})]
    found.append(("nested faults", nested.nested_faults, shadow.nested_faults))
    found += [
        (f"{reason} in kernel", *_both(nested.kernel_exits, shadow.kernel_exits, reason))
        for reason in sorted({*nested.kernel_exits, *shadow.kernel_exits})
    ]
    found.append(("vTLB fills", nested.vtlb_fills, shadow.vtlb_fills))
    found.append(("vTLB flushes", nested.vtlb_flushes, shadow.vtlb_flushes))
    return found


def _both(nested: dict[str, int], shadow: dict[str, int], reason: str) -> tuple[int, int]:
    return nested.get(reason, 0), shadow.get(reason, 0)


def as_svg(comparison: PagingComparison) -> Markup:
    """Two bars for each thing that happened; lengths are to scale."""
    pairs = happened(comparison)
    longest = max(max(nested, shadow) for _, nested, shadow in pairs) or 1
    drawn: list[Markup] = []
    for index, (name, *counts) in enumerate(pairs):
        y = index * ROW + 4
        drawn.append(label(LEFT - 8, y + HEIGHT + 5, shorten(name, NAMES), anchor="end", mono=True))
        for paging, count in zip(("nested", "shadow"), counts, strict=True):
            width = max(BAR * count / longest, 1.0) if count else 0.0
            style = f"fill: {BLUE}; stroke: {BLUE}" if paging == "nested" else f"fill: none; stroke: {ORANGE}"
            if count:
                bar = {"x": LEFT + 0.5, "y": y + 0.5, "width": width, "height": HEIGHT}
                drawn.append(element("rect", **bar, style=f"{style}; stroke-width: 1.5"))
            drawn.append(label(LEFT + width + 7, y + HEIGHT, f"{grouped(count)} {paging}", muted=not count))
            y += HEIGHT + 5
    spoken = "; ".join(f"{name}: {nested} nested, {shadow} shadow" for name, nested, shadow in pairs)
    return picture(LEFT + BAR + RIGHT, len(pairs) * ROW + 4, "Nested and shadow paging compared", spoken, *drawn)


def _rows(comparison: PagingComparison) -> list[tuple[str, ...]]:
    names = ("Cycles (ns)", *COUNTED[1:])
    nested, shadow = _figures(comparison.nested), _figures(comparison.shadow)
    return [
        (name, grouped(one), grouped(other), ratio(one, other))
        for name, one, other in zip(names, nested, shadow, strict=True)
    ]


def _figures(run: PagedRun) -> tuple[int, ...]:
    return run.cycles, *numbers(run.counts)


def ratio(one: int, other: int) -> str:
    """How many times as much the other is; empty where there is nothing to compare with."""
    if not one:
        return "" if other else "same"
    rounded = f"{other / one:.3g}"
    return "same" if one == other else "≈ 1" if rounded == "1" else rounded


def as_html(comparison: PagingComparison) -> Markup:
    """The table, and the chart below it."""
    return Markup(table(_told(comparison), HEADINGS, _rows(comparison), "l4-numbers") + as_svg(comparison))


def as_text(comparison: PagingComparison) -> str:
    """The same for the terminal."""
    costs = figures([HEADINGS, *_rows(comparison)])
    pairs = ((name, grouped(nested), grouped(shadow)) for name, nested, shadow in happened(comparison))
    chart = figures([("", "nested", "shadow"), *pairs])
    return f"{_told(comparison)}\n\n{costs}\n{chart}"


def _told(comparison: PagingComparison) -> str:
    nested, shadow = comparison.nested.ended, comparison.shadow.ended
    ending = nested if nested == shadow else f"nested: {nested}; shadow: {shadow}"
    return f"{comparison.guest.rstrip('.')}: {ending.rstrip('.')}."
