# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's text screen as a stream of text, as if the guest had said it on a serial line.

Lives here: telling what is new from two looks at the screen. A line is new when it was not there before; what scrolled
up is not. Kernels that have just begun to write to the screen leave the cursor where it was, so text counts wherever it
is; where the cursor is behind all text of its line, the blanks before it count too, as those of a prompt. What a screen
shows between two looks is never known.
"""

from __future__ import annotations

from l4lab.devices.vga import TextPage
from l4lab.rig.rig import Rig


class ScreenText:
    """`text` grows by what appears on the screen of a rig's guest, whenever `look` is called."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.text = bytearray()  # UTF-8; lines end in a newline, the last line has not ended
        self.page: TextPage | None = None  # as it was last seen
        self._lines: list[str] = []

    def look(self) -> None:
        """Look at the screen now."""
        page = self.rig.screen()
        if page is None or page == self.page:
            return
        self.page = page
        lines = _lines(page)
        self.text += new_text(self._lines, lines).encode()
        self._lines = lines


def _lines(page: TextPage) -> list[str]:
    """The lines down to the cursor's, or to the last that says something."""
    lines = page.lines()
    last = max((number for number, line in enumerate(lines) if line), default=0)
    if page.cursor is not None:
        row, column = page.cursor
        lines[row] = page.row(row)[: max(column, len(lines[row]))]
        last = max(last, row)
    return lines[: last + 1]


def new_text(before: list[str], now: list[str]) -> str:
    """What was said to make `now` of `before`, as little as possible."""
    for scrolled in range(len(before)):
        *ended, last = before[scrolled:]
        if scrolled and not any(before[scrolled:]):
            break  # that a blank line is still there says nothing
        if now[: len(ended)] == ended and len(now) > len(ended) and now[len(ended)].startswith(last.rstrip()):
            return "\n".join((now[len(ended)][len(last) :], *now[len(ended) + 1 :]))
    lines = _changed(before, now)
    return "\n" * bool(before and lines) + "\n".join(lines)


def _changed(before: list[str], now: list[str]) -> list[str]:
    """The lines that were neither where they are nor where most others have scrolled from; all, if none was."""

    def same(scrolled: int) -> list[bool]:
        return [line == old for line, old in zip(now, before[scrolled:], strict=False)]

    scrolled = max(range(len(before)), key=lambda n: sum(same(n)), default=0)
    if not any(same(scrolled)):
        return now
    there = {(number, line) for first in (0, scrolled) for number, line in enumerate(before[first:])}
    return [line for number, line in enumerate(now) if line and (number, line) not in there]
