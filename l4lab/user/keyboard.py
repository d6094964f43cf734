# SPDX-License-Identifier: GPL-2.0-or-later
"""One keyboard for several guests: what is typed at the console belongs to one of them, and Ctrl-A n takes the next.

Lives here: whose it is, and what has not reached its guest yet. How it gets there is in `host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ESCAPE: Final = 0x01  # Ctrl-A: what comes next is for us; twice, it is the key itself
NEXT: Final = ord("n")


class SharedKeyboard:
    """The keyboard of these guests, the first of which has it at the beginning."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._escaped = False
        self.waiting: dict[str, bytearray] = {}  # what was typed for a guest and has not reached it

    @property
    def owner(self) -> str | None:
        """Whose it is; nobody's when all have ended."""
        return self._names[0] if self._names else None

    def type(self, data: bytes) -> bool:
        """Keys. Has it changed hands?"""
        before = self.owner
        for byte in data:
            if byte == ESCAPE and not self._escaped:
                self._escaped = True
            elif self._escaped and byte != ESCAPE:
                self._escaped = False
                if byte == NEXT:
                    self._names = self._names[1:] + self._names[:1]
            else:
                self._escaped = False
                if self.owner is not None:
                    self.waiting.setdefault(self.owner, bytearray()).append(byte)
        return self.owner != before

    def forget(self, name: str) -> None:
        """A guest has ended; if the keyboard was its own, it is the next one's."""
        self._names.remove(name)
        self.waiting.pop(name, None)
