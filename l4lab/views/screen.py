# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's text screen: as lines of text, and as a picture in the guest's own colours.

A colour never carries a meaning alone: bright text is bold as well, a background other than the screen's own has
a border, blinking text is in italics, and each run of coloured text says in words what its colours are.
Lives here: how a page looks. Does not live here: how it is found in the guest's memory (`devices.vga`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from l4lab.devices.vga import TextPage
from l4lab.views.example import example
from l4lab.views.svg import MONO, Markup, element, picture

COLUMN, LINE = 7.8, 16  # pixels of a cell
FONT: Final = f"font: 13px {MONO}"
NAMES: Final = (
    *("black", "blue", "green", "cyan", "red", "magenta", "brown", "light grey"),
    *("dark grey", "light blue", "light green", "light cyan", "light red", "light magenta", "yellow", "white"),
)
USUAL: Final = 0x07  # light grey on black


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbours with the same attribute."""

    column: int
    text: str
    attribute: int


def as_text(page: TextPage) -> str:
    """The screen in lines, without what is blank at its end; a rule above and below it says how large it is."""
    shown = "\n".join(page.lines()).rstrip("\n")
    where = f" cursor in row {page.cursor[0] + 1}, column {page.cursor[1] + 1} " if page.cursor else ""
    size = f" {page.columns} by {page.rows} "
    return f"{size.center(page.columns, '─')}\n{shown}\n{where.center(page.columns, '─')}\n"


def as_svg(page: TextPage) -> Markup:
    """The screen as a picture."""
    width, height = page.columns * COLUMN, page.rows * LINE
    described = "\n".join(line for line in page.lines() if line) or "The screen is blank."
    parts = [element("rect", width=width, height=height, fill=_css(page, 0))]
    for row in range(page.rows):
        for run in _runs(page, row):
            parts += _draw(page, row, run)
    if page.cursor is not None:
        row, column = page.cursor
        at = {"x": column * COLUMN, "y": row * LINE + LINE - 3}
        parts.append(element("rect", element("title", "cursor"), **at, width=COLUMN, height=2, fill=_css(page, 7)))
    return picture(width, height, "Text screen of the guest", described, *parts)


def _runs(page: TextPage, row: int) -> Iterator[_Run]:
    text, attributes = page.row(row), page.attributes(row)
    column = 0
    for attribute, group in groupby(attributes):
        end = column + sum(1 for _ in group)
        yield _Run(column, text[column:end], attribute)
        column = end


def _draw(page: TextPage, row: int, run: _Run) -> Iterator[Markup]:
    ink, paper = run.attribute & 15, run.attribute >> 4
    blinks = page.blinking and bool(paper & 8)
    if page.blinking:
        paper &= 7
    words = f"{NAMES[ink]} on {NAMES[paper]}" + (", blinking" if blinks else "")
    x, y, width = run.column * COLUMN, row * LINE, len(run.text) * COLUMN
    if page.colours[paper] != page.colours[0]:
        box = {"x": x + 0.5, "y": y + 0.5, "width": width - 1, "height": LINE - 1.0}
        yield element("rect", element("title", words), **box, fill=_css(page, paper), stroke=_css(page, ink))
    text = run.text.strip()
    if text:
        x += COLUMN * (len(run.text) - len(run.text.lstrip()))
        style = FONT + ("; font-weight: bold" if ink & 8 else "") + ("; font-style: italic" if blinks else "")
        hint = () if run.attribute == USUAL else (element("title", words),)
        # The width is given, or the columns would stand where the reader's font has them.
        length = len(text) * COLUMN
        at = {"x": x, "y": y + LINE - 4, "textLength": length, "lengthAdjust": "spacingAndGlyphs"}
        yield element("text", *hint, text.replace(" ", "\xa0"), **at, fill=_css(page, ink), style=style)


def _css(page: TextPage, colour: int) -> str:
    return f"#{page.colours[colour]:06x}"


if __name__ == "__main__":
    shown = example().screen
    assert shown is not None, "the example has a screen"
    print(as_text(shown), end="")
