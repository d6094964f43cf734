# SPDX-License-Identifier: GPL-2.0-or-later
"""The views as a notebook's cell shows them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from l4lab.errors import LabError
from l4lab.rig.snapshot import Snapshot
from l4lab.views import pictures
from l4lab.views.example import example
from l4lab.views.pictures import Picture

ALL = [
    pictures.messages,
    pictures.exits,
    pictures.disassembly,
    pictures.registers,
    pictures.threads,
    pictures.address_spaces,
    pictures.histogram,
    pictures.counters,
]


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_a_picture_is_markup_in_a_notebook_and_text_elsewhere(draw: Callable[[Snapshot], Picture]) -> None:
    """Each picture has both forms, and being larger changes only the one that has a size."""
    picture = draw(example())

    assert "</" in picture._repr_html_()
    assert repr(picture).strip()
    assert "<" not in repr(picture).replace("<1", "")
    assert repr(picture) == repr(picture.larger())


def test_without_dot_the_spaces_still_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Graphviz is not installed, the memory maps of all spaces take the graph's place."""
    monkeypatch.setenv("PATH", "")

    assert len(example().spaces) == pictures.address_spaces(example()).html.count("</svg>")


def test_an_unknown_space_is_told() -> None:
    """A memory map of a space that is not there names those that are."""
    with pytest.raises(LabError, match="there is no address space 'nobody'; there are: 'sigma0', "):
        pictures.memory_map(example(), "nobody")
