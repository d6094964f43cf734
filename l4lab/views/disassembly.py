# SPDX-License-Identifier: GPL-2.0-or-later
"""The instructions around the current one, as an HTML table with an arrow at the one that comes next."""

from __future__ import annotations

from collections.abc import Iterable

from l4lab.rig.snapshot import DisasmLine
from l4lab.views.example import example
from l4lab.views.svg import Markup, element


def as_html(lines: Iterable[DisasmLine]) -> Markup:
    """One row per instruction: address, bytes, text."""
    rows = [_row(line) for line in lines]
    if not rows:
        return element("p", "No instructions to show here.")
    return element(
        "table", element("caption", "Instructions"), element("tbody", *rows), class_="l4-table l4-disassembly"
    )


def _row(line: DisasmLine) -> Markup:
    arrow = element("td", "▶" if line.current else "", title="next" if line.current else None)
    return element(
        "tr",
        arrow,
        element("th", f"{line.address:08x}", scope="row"),
        element("td", line.code.hex(" "), class_="l4-bytes"),
        element("td", line.text),
        class_="l4-current" if line.current else None,
        aria_current="true" if line.current else None,
    )


if __name__ == "__main__":
    print(as_html(example().disassembly))
