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
from typing import Final

LEAVE: Final = b"\x1d"  # Ctrl-], as telnet has it: no key that a shell or an editor wants
HOW_TO_LEAVE: Final = "Keys go to {who}, Ctrl-C too; Ctrl-] leaves."


class Terminal:
    """Standard input and output, in raw mode within `with` if it is a person's."""

    def __init__(self, newlines: bool = False) -> None:
        """`newlines`: a line ends in a newline alone, as programs without a terminal driver print it."""
        self._newlines = newlines
        self._input = sys.stdin.fileno()
        self.person = os.isatty(self._input)
        self.closed = False
        self.left = False
        self._before: list[object] | None = None

    def __enter__(self) -> Terminal:
        if self.person:
            self._before = termios.tcgetattr(self._input)
            tty.setraw(self._input)
            if self._newlines:
                mode = termios.tcgetattr(self._input)
                mode[1] |= termios.OPOST | termios.ONLCR
                termios.tcsetattr(self._input, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
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

    def write(self, data: bytes) -> None:
        """Show output now."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
