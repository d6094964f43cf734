# SPDX-License-Identifier: GPL-2.0-or-later
"""The terminal as a guest's console: keys go to the guest as they are, the guest's output comes as it is.

Also when input or output is a file or a pipe. What a session does with what is typed is `rig.session`'s.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from contextlib import suppress
from itertools import groupby
from typing import Final

from l4lab.cli.streams import LOST, give_up, status_of
from l4lab.devices.vga import TextPage
from l4lab.files import reason

LEAVE: Final = b"\x1d"  # Ctrl-], as telnet has it: no key that a shell or an editor wants
HOW_TO_LEAVE: Final = "Keys go to {who}, Ctrl-C too; Ctrl-] leaves."

# ECMA-48 control sequences; and the order of its colours, which has red and blue the other way round.
CLEAR: Final = b"\x1b[2J"
HOME, PLAIN, HIDE_CURSOR, SHOW_CURSOR = "\x1b[H", "\x1b[0m", "\x1b[?25l", "\x1b[{};{}H\x1b[?25h"
_COLOURS: Final = (0, 4, 2, 6, 1, 5, 3, 7)


def _painted(page: TextPage, row: int) -> str:
    """A row with its colours; bright ones are bold."""
    text, painted, column = page.row(row), "", 0
    for attribute, group in groupby(page.attributes(row)):
        end = column + sum(1 for _ in group)
        ink, paper = _COLOURS[attribute & 7], _COLOURS[attribute >> 4 & 7]
        painted += f"\x1b[0;{'1;' if attribute & 8 else ''}{30 + ink};{40 + paper}m{text[column:end]}"
        column = end
    return painted


class Tty:
    """Standard input and output, in raw mode within `with` if it is a person's."""

    def __init__(self, newlines: bool = False) -> None:
        """`newlines`: a line ends in a newline alone, as programs without a terminal driver print it."""
        self._newlines = newlines
        self._input = sys.stdin.fileno()
        self.person = os.isatty(self._input)
        self.closed = False
        self.left = False
        self.lost = ""
        self.status_if_lost = LOST
        self._drawn: TextPage | None = None
        self._before: list[object] | None = None

    def __enter__(self) -> Tty:
        if self.person:
            self._before = termios.tcgetattr(self._input)
            tty.setraw(self._input)
            if self._newlines:
                mode = termios.tcgetattr(self._input)
                mode[1] |= termios.OPOST | termios.ONLCR
                termios.tcsetattr(self._input, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self.write(SHOW_CURSOR.format(self._drawn.rows, 1).encode() + b"\r\n")
        if self._before is not None:
            with suppress(termios.error):  # the terminal itself is gone
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def read(self, seconds: float | None) -> bytes:
        """What was typed, waiting for it at most so long (None: for ever); nothing if nothing was, or at the end."""
        ready, _, _ = select.select([self._input], [], [], seconds)
        if not ready:
            return b""
        try:
            data = os.read(self._input, 1024)
        except OSError:  # the other end of a pseudo-terminal is gone
            data = b""
        self.closed = not data
        if self.person and LEAVE in data:
            self.left = True
            data = data[: data.index(LEAVE)]
        return data

    def draw(self, page: TextPage | None) -> None:
        """Show a text screen in place of what the terminal shows, in its colours; only if it has changed."""
        if page is None or page == self._drawn:
            return
        if self._drawn is None:
            self.write(CLEAR)
        self._drawn = page
        rows = "\r\n".join(_painted(page, row) for row in range(page.rows))
        cursor = HIDE_CURSOR if page.cursor is None else SHOW_CURSOR.format(*(at + 1 for at in page.cursor))
        self.write((HIDE_CURSOR + HOME + rows + PLAIN + cursor).encode())

    def write(self, data: bytes) -> None:
        """Show output now; if that cannot be, `lost` says why, and nothing is shown any more."""
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as error:
            self.lost = f"its output cannot be written: {reason(error)}"
            self.status_if_lost = status_of(error)
            give_up(sys.stdout)
