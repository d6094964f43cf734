# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of the bench as one web page: charts, each with its numbers beside it, and a table of everything.

The page needs no other file and no network, and follows the reader's light or dark theme. What a mark means is told by
its shape, and each has its number in words in the same row, so nothing depends on colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from l4lab.bench.figures import Figure
from l4lab.bench.runs import TOLERANCE, Change, SavedRun
from l4lab.views.svg import BLUE, INK, ORANGE, RULE, Markup, element, group, label, line, picture, table

WIDTH, ROW, MARGIN = 860, 38, 14  # pixels
TRACK = 25  # from a row's top to its marks; the words are above
RADIUS = 5
AXIS = 34  # below the rows
_HALO: Final = "paint-order: stroke; stroke: Canvas; stroke-width: 5px"  # keeps the grid's lines off the letters
_STYLE: Final = Markup(
    """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 860px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.2rem 0 .4rem; font-size: 1.2rem; }
svg { display: block; max-width: 100%; min-width: 640px; height: auto; }
section, .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
caption { text-align: left; padding: .4rem 0; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #8884; }
th:first-child { text-align: left; font-weight: normal; }
thead th, thead th:first-child { font-weight: bold; }
td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.key { display: flex; flex-wrap: wrap; gap: 0 1.5rem; padding: 0; margin: .4rem 0; list-style: none; }
.key svg { display: inline; min-width: 0; vertical-align: -3px; }
"""
)


def draw(run: SavedRun, changes: Sequence[Change] | None = None) -> str:
    """The page, as text. `changes`: against an earlier run, if it is compared with one."""
    earlier = {change.now.name: change for change in changes or ()}
    computer = f"{run.machine.system}, {run.machine.cpus} CPUs, Python {run.machine.python}"
    sections = [
        element("section", element("h2", name), *_section(figures, earlier)) for name, figures in _by_group(run.figures)
    ]
    missed = [figure for figure in run.figures if not figure.met]
    body = element(
        "body",
        element("h1", "What l4lab costs"),
        element(
            "p",
            f"Measured on {computer}. Ratios are medians of pairs that ran in turn on this computer; less is better, "
            "except where it says “at least”. Scales are logarithmic.",
        ),
        element("p", f"{len(run.figures)} figures, {len(missed) or 'none'} of them not as wanted."),
        *(() if changes is None else _comparison(changes)),
        _key(bool(changes)),
        *sections,
        element("h2", "All figures"),
        element("div", _all(run.figures, earlier), class_="wide"),
    )
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'),
        element("title", "l4lab bench"),
        element("style", _STYLE),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _by_group(figures: Iterable[Figure]) -> Iterator[tuple[str, list[Figure]]]:
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    yield from groups.items()


def _comparison(changes: Sequence[Change]) -> Iterator[Markup]:
    """What became worse, in words."""
    worse = [change for change in changes if change.worse]
    yield element(
        "p",
        f"Compared with an earlier run: {len(changes)} figures, {len(worse) or 'none'} worse by more than "
        f"{TOLERANCE:.0%}.",
    )
    if worse:
        yield element("ul", *(element("li", change.told) for change in worse))


# -- charts ------------------------------------------------------------------------------------------------------------


def _section(figures: Sequence[Figure], earlier: dict[str, Change]) -> Iterator[Markup]:
    """Ratios on a scale of theirs; what has another unit as its share of what is wanted."""
    ratios = [figure for figure in figures if figure.unit == "ratio"]
    others = [figure for figure in figures if figure.unit != "ratio" and figure.wanted]
    if ratios:
        yield _chart(ratios, earlier, "ours / theirs", lambda figure: 1.0)
    if others:
        yield _chart(others, earlier, "share of what is wanted", lambda figure: figure.wanted or 1.0)


def _chart(figures: Sequence[Figure], earlier: dict[str, Change], axis: str, unit: Callable[[Figure], float]) -> Markup:
    """A row for each figure: a dot where it is, a bar where it is wanted, a ring where it was."""
    rows = []
    for figure in figures:
        change = earlier.get(figure.name)
        was = change.before.value / unit(figure) if change else None
        wanted = figure.wanted / unit(figure) if figure.wanted else None
        rows.append((figure, figure.value / unit(figure), wanted, was, change))
    known = [value for _, *values, _ in rows for value in values if value is not None and value > 0]
    scale = _Scale([*known, 1.0])
    bottom = len(rows) * ROW + 4
    drawn = [scale.grid(bottom, axis)]
    for index, (figure, value, wanted, was, change) in enumerate(rows):
        y = index * ROW
        words = label(WIDTH - MARGIN, y + 14, _words(figure, change), anchor="end")
        drawn.append(group(label(MARGIN, y + 14, figure.name), words, style=_HALO))
        drawn.append(line(MARGIN, y + TRACK, WIDTH - MARGIN, y + TRACK, dash="1 4"))
        if wanted is not None:
            drawn.append(_bar(scale(wanted), y + TRACK))
        if was is not None:
            drawn.append(line(scale(was), y + TRACK, scale(value), y + TRACK, ORANGE))
            drawn.append(_ring(scale(was), y + TRACK))
        drawn.append(_dot(scale(value), y + TRACK))
    spoken = "; ".join(f"{figure.name}: {_words(figure, change)}" for figure, *_, change in rows)
    return picture(WIDTH, bottom + AXIS, f"{figures[0].group}: {axis}", spoken, *drawn)


def _words(figure: Figure, change: Change | None) -> str:
    """What the marks of a row say."""
    wanted = f" ({figure.target}){'' if figure.met else ': NOT MET'}" if figure.target else ""
    was = f" · was {change.before.told}{': WORSE' if change.worse else ''}" if change else ""
    return figure.told + wanted + was


class _Scale:
    """Places of positive numbers on a logarithmic scale that holds all of these."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low, self._high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05

    def __call__(self, value: float) -> float:
        if value <= 0:
            return MARGIN  # what took no time stands at the left end
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return MARGIN + share * (WIDTH - 2 * MARGIN)

    def grid(self, bottom: float, axis: str) -> Markup:
        """Lines at round numbers, with the numbers below; the line at 1 is drawn in ink."""
        drawn = [label(WIDTH / 2, bottom + 28, axis, anchor="middle", muted=True)]
        decades = range(math.floor(self._low), math.ceil(self._high))
        steps = (1, 2, 5) if self._high - self._low < 2 else (1,)
        for value in (step * 10.0**decade for decade in decades for step in steps):
            x = self(value)
            if MARGIN <= x <= WIDTH - MARGIN:
                drawn.append(line(x, 0, x, bottom, INK if value == 1 else RULE, dash=None if value == 1 else "2 3"))
                drawn.append(label(x, bottom + 13, f"{value:g}", anchor="middle", muted=True))
        return group(*drawn)


def _dot(x: float, y: float) -> Markup:
    return element("circle", cx=x, cy=y, r=RADIUS, style=f"fill: {BLUE}")


def _ring(x: float, y: float) -> Markup:
    return element("circle", cx=x, cy=y, r=RADIUS + 2, style=f"fill: none; stroke: {ORANGE}; stroke-width: 2")


def _bar(x: float, y: float) -> Markup:
    return element("rect", x=x - 1.5, y=y - 8, width=3, height=16, style=f"fill: {INK}")


def _key(compared: bool) -> Markup:
    """What the marks mean."""
    marks = [(_dot, "measured"), (_bar, "wanted")]
    if compared:
        marks.append((_ring, "in the earlier run"))

    def shown(mark: Callable[[float, float], Markup], name: str) -> Markup:
        # The words beside say it all, so a screen reader may pass the mark by.
        return element("li", element("svg", mark(9, 9), width=18, height=18, aria_hidden="true"), f" {name}")

    return element("ul", *(shown(*mark) for mark in marks), class_="key")


# -- the table ---------------------------------------------------------------------------------------------------------


def _all(figures: Sequence[Figure], earlier: dict[str, Change]) -> Markup:
    headings = ["Figure", "Value", "Wanted", "Met", "Ours", "Theirs", "Rounds", "Checksum"]
    if earlier:
        headings += ["Was", "Change"]
    rows = []
    for figure in figures:
        met = "" if figure.wanted is None else "yes" if figure.met else "no"
        row = [figure.name, figure.told, figure.target, met, _time(figure.ours), _time(figure.theirs)]
        row += [str(figure.rounds), figure.checksum]
        if earlier:
            change = earlier.get(figure.name)
            row += ["not measured", ""] if change is None else [change.before.told, change.percent]
        rows.append(tuple(row))
    return table("Times are medians: of the lab, and of what it is compared with.", tuple(headings), rows)


def _time(seconds: float) -> str:
    """A time in the unit that suits it; nothing for none."""
    if not seconds:
        return ""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
