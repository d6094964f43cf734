# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers as an HTML table. One that changed since the last stop is bold, has a dot, and tells its old value."""

from __future__ import annotations

from l4lab.rig.snapshot import Snapshot
from l4lab.views.example import example
from l4lab.views.svg import Markup, element
from l4lab.words import hex32

PER_ROW = 2  # registers side by side
FLAGS = {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11}


def as_html(snapshot: Snapshot) -> Markup:
    """The registers, `PER_ROW` side by side, then the flags that are set by name."""
    if not snapshot.registers:
        return element("p", "No registers: nobody runs.")
    changed = snapshot.changed()
    cells = [
        _cell(name, value, snapshot.previous.get(name) if name in changed else None)
        for name, value in snapshot.registers.items()
    ]
    rows = [element("tr", *cells[start : start + PER_ROW]) for start in range(0, len(cells), PER_ROW)]
    flags = flag_names(snapshot.registers.get("EFLAGS", 0))
    return element(
        "table",
        element("caption", f"Registers; flags set: {' '.join(flags) or 'none'}"),
        element("tbody", *rows),
        class_="l4-registers",
    )


def flag_names(eflags: int) -> list[str]:
    """The names of the flags that are set, lowest bit first."""
    return [name for name, bit in FLAGS.items() if eflags >> bit & 1]


def _cell(name: str, value: int, before: int | None) -> Markup:
    heading = element("th", name, scope="row")
    if before is None:
        return Markup(heading + element("td", hex32(value)))
    was = f"changed; was {hex32(before)}"
    mark = element("span", " ●", title=was, aria_label=was, role="img")
    return Markup(heading + element("td", element("b", hex32(value)), mark, class_="l4-changed"))


if __name__ == "__main__":
    print(as_html(example()))
