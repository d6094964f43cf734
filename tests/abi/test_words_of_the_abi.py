# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every word class of the ABI, found by looking for them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import l4lab.abi
from l4lab.words import Word


def word_classes() -> list[type[Word]]:
    """Every subclass of Word that a module of the ABI defines."""
    found = []
    for module in pkgutil.iter_modules(l4lab.abi.__path__):
        members = vars(importlib.import_module(f"l4lab.abi.{module.name}")).values()
        found += [
            m for m in members if inspect.isclass(m) and issubclass(m, Word) and m.__module__.endswith(module.name)
        ]
    return found


CLASSES = word_classes()


@pytest.mark.parametrize("word_class", CLASSES, ids=lambda c: c.__name__)
@given(data=st.data())
def test_fields_read_back_as_made(word_class: type[Word], data: st.DataObject) -> None:
    """make, then decode, gives each field the value it was made with."""
    free = {name: field for name, field in word_class.fields.items() if not field.alias}
    free = {name: f for name, f in free.items() if not f.mask << f.low & word_class.fixed}
    values = {name: data.draw(st.integers(0, field.mask), name) for name, field in free.items()}

    word = word_class.decode(word_class.make(**values))

    assert values == {name: getattr(word, name) for name in free}
    assert word & word_class.fixed == word_class.fixed
    assert repr(word)


@pytest.mark.parametrize("word_class", CLASSES, ids=lambda c: c.__name__)
def test_fields_do_not_overlap(word_class: type[Word]) -> None:
    """Each bit has one name, apart from aliases."""
    taken = 0
    for name, field in word_class.fields.items():
        if not field.alias:
            assert not taken & field.mask << field.low, name
            taken |= field.mask << field.low
            assert 0 <= field.low <= field.high <= 31


@pytest.mark.parametrize("word_class", CLASSES, ids=lambda c: c.__name__)
@given(value=st.integers(0, 0xFFFF_FFFF))
def test_any_value_can_be_shown(word_class: type[Word], value: int) -> None:
    """A program can put anything into a word; printing it never fails."""
    assert repr(word_class(value))
