# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's serial output as a plain page of text.

A line discipline for reading, not a terminal: carriage return and backspace go back, newline goes on, tabs are
expanded, colours and cursor movements are left out. The page is bounded: old lines go first.
"""

from __future__ import annotations

import re

from l4lab.views.example import example

LINES = 500
COLUMNS = 1000  # a guest that never ends its line must not grow it without bound

# ECMA-48: a control sequence (5.4), a control string such as OSC (5.6), or any other escape of two or three characters.
# One that is cut off at the end is still to come.
_ESCAPE = re.compile(
    "\x1b(?:\\[[0-?]*[ -/]*(?:[@-~]|$)|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\|$)|[ -/]*(?:[0-Z\\\\`-~]|$))"
)
_MOVES = re.compile("([\r\b\t]|[^\r\b\t]+)")
_SILENT = re.compile("[\x00-\x07\x0b-\x1f\x7f]")


def as_text(output: str) -> str:
    """What the output looks like on the page."""
    lines = _ESCAPE.sub("", output).split("\n")
    return "\n".join(_settle(line) for line in lines[-LINES:])


def _settle(line: str) -> str:
    """One line after all its going back and overwriting."""
    line = line.rstrip("\r")  # the usual end of a line: nothing overwrites it
    if not re.search("[\x00-\x1f\x7f]", line):
        return line[:COLUMNS]
    page = ""
    at = 0
    for piece in _MOVES.findall(line):
        if piece == "\r":
            at = 0
        elif piece == "\b":
            at = max(at - 1, 0)
        else:
            text = " " * (8 - at % 8) if piece == "\t" else _SILENT.sub("", piece)
            page = page[:at] + text + page[at + len(text) :]
            at += len(text)
    return page[:COLUMNS]


if __name__ == "__main__":
    print(as_text(example().console))
