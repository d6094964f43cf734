# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's text screen as a stream of text, as if the guest had said it on a serial line.

Lives here: telling what is new from two looks at the screen. A line is new when it was not there before, or not above
the cursor; what scrolled up is not. What a screen shows between two looks is never known.
"""

from __future__ import annotations

from l4lab.devices.vga import TextPage
from l4lab.rig.rig import Rig


class ScreenText:
    """`text` grows by what appears on the screen of a rig's guest, whenever `look` is called."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.text = bytearray()  # UTF-8; lines end in a newline, the cursor's line has not ended
        self.page: TextPage | None = None  # as it was last seen
        self._lines: list[str] = []

    def look(self) -> None:
        """Look at the screen now."""
        page = self.rig.screen()
        if page is None or page == self.page:
            return
        self.page = page
        lines = _to_cursor(page)
        self.text += new_text(self._lines, lines).encode()
        self._lines = lines


def _to_cursor(page: TextPage) -> list[str]:
    """The lines down to the cursor's, which ends there; without a cursor, down to the last that says something."""
    lines = page.lines()
    if page.cursor is not None:
        row, column = page.cursor
        return [*lines[:row], page.row(row)[:column]]
    return "\n".join(lines).rstrip("\n").split("\n")


def new_text(before: list[str], now: list[str]) -> str:
    """What was said to make `now` of `before`, as little as possible."""
    for scrolled in range(len(before)):
        *ended, last = before[scrolled:]
        if now[: len(ended)] == ended and len(now) > len(ended) and now[len(ended)].startswith(last.rstrip()):
            return "\n".join((now[len(ended)][len(last) :], *now[len(ended) + 1 :]))
    return "\n" * bool(before) + "\n".join(now)
