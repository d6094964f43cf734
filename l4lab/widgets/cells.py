# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cell of a notebook runs now, so that what it makes takes the place of what it made when it last ran.

A notebook keeps all that its cells ever showed, and a machine that runs in the background would run on unseen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar


class Place(NamedTuple):
    """A cell, and one execution of it."""

    cell: str  # by its number in the notebook, where the front end tells it; else its text
    execution: str


class Placed(Protocol):
    """Something that a cell has made."""

    place: Place | None


P = TypeVar("P", bound=Placed)


def here() -> Place | None:
    """The cell that runs; None if none does."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    request: dict[str, dict[str, str]] = getattr(shell, "get_parent", dict)()
    cell = request.get("metadata", {}).get("cellId") or request.get("content", {}).get("code")
    execution = request.get("header", {}).get("msg_id")
    return Place(cell, execution) if cell and execution else None


def replaced(others: Iterable[P], place: Place | None) -> list[P]:
    """Those that an earlier execution of the same cell has made."""
    if place is None:
        return []
    found = [(other, other.place) for other in others]
    return [other for other, at in found if at and at.cell == place.cell and at.execution != place.execution]
