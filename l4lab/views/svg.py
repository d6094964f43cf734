# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny element builder for SVG and HTML, and the colours that all pictures share.

Text is escaped wherever it enters, because guests choose names and messages; what is already markup says so by its
type. Colours follow the notebook's theme: ink is the text colour around the picture, surfaces are JupyterLab's
variables, with fallbacks that work on white and on black. A colour never carries a meaning alone: there is always
a word, a marker or a dash pattern too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

INK = "currentColor"
SURFACE = "var(--jp-layout-color2, rgba(128, 128, 128, 0.12))"  # a box that stands out a little
RULE = "var(--jp-border-color1, rgba(128, 128, 128, 0.5))"  # lines that only separate
MONO = "var(--jp-code-font-family, ui-monospace, 'DejaVu Sans Mono', monospace)"
SANS = "var(--jp-ui-font-family, system-ui, sans-serif)"
LETTER = 6.7  # pixels: the width of one character of MONO

# Marks: at least 3:1 against JupyterLab's lightest and darkest background (WCAG 2.1, 1.4.11), so one set does for both.
BLUE, RED, GREEN, VIOLET, ORANGE = "#1e88e5", "#e53935", "#43a047", "#ab47bc", "#d9730d"
MARKS = (BLUE, RED, GREEN, VIOLET, ORANGE)

# What XML 1.0 cannot hold, even as a character reference (production [2], Char).
_UNSPEAKABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """Text that is markup already: put into a picture as it is."""

    __slots__ = ()


def speakable(text: str) -> str:
    """The text with U+FFFD for each character that XML forbids."""
    return _UNSPEAKABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: str) -> Markup:
    """Text as it may stand in an element or a quoted attribute."""
    return Markup(html.escape(speakable(text)))


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One element. `class_` stands for class and `text_anchor` for text-anchor; an attribute that is None is left out.

    Children are escaped unless they are `Markup`.
    """
    opening = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{tag}{opening}>{inner}</{tag}>")


def group(*children: str, **attributes: object) -> Markup:
    """Elements one after the other; in a `<g>` if there are attributes."""
    if attributes:
        return element("g", *children, **attributes)
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def picture(width: float, height: float, title: str, description: str, *children: str) -> Markup:
    """A whole SVG image, with the name and the description that a screen reader speaks."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=title,
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        width=width,
        height=height,
        style=f"font: 12px {SANS}; color: inherit",
    )


def label(x: float, y: float, text: str, *, anchor: str = "start", mono: bool = False, muted: bool = False) -> Markup:
    """A line of text in the ink colour. Muted text is fainter; its contrast stays above 4.5:1 in both themes."""
    style = f"fill: {INK}" + (f"; font-family: {MONO}; font-size: 11px" if mono else "")
    return element("text", text, x=x, y=y, text_anchor=anchor, style=style, opacity="0.75" if muted else None)


def line(x1: float, y1: float, x2: float, y2: float, colour: str = RULE, dash: str | None = None) -> Markup:
    """A thin straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke_dasharray=dash, style=f"stroke: {colour}")


def box(x: float, y: float, width: float, height: float, fill: str = SURFACE, dash: str | None = None) -> Markup:
    """A box with a thin border."""
    style = f"fill: {fill}; stroke: {RULE}"
    return element("rect", x=x, y=y, width=width, height=height, rx=3, stroke_dasharray=dash, style=style)


def table(caption: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], class_: str = "l4-table") -> Markup:
    """An HTML table with a caption for screen readers. A row's first cell is its heading."""
    head = element("tr", *(element("th", heading, scope="col") for heading in headings))
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    )
    return element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
        class_=class_,
    )


def shorten(text: str, width: int) -> str:
    """The text in at most so many characters, an ellipsis where something is missing."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _plain(value: object) -> str:
    """A number as pictures have it: at most one decimal, none if it is whole."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
