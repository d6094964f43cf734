# SPDX-License-Identifier: GPL-2.0-or-later
"""Words: fields are computed once, built values read back, and what does not fit is refused by name."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.words import MEMO_LIMIT, PAddr, Rights, VAddr, Word, bit, bits, hex32, hex_rows, size_text


class Sample(Word):
    """A word with every kind of field."""

    wide = bits(31, 16)
    ready = bit(15)
    rights = bits(14, 12, Rights)
    both = bits(15, 12, alias=True)
    small = bits(5, 0)


def test_a_field_is_computed_once() -> None:
    """After the first read a field is a plain attribute of the word."""
    word = Sample(0xFFE5_0002)
    assert "wide" not in vars(word)

    assert word.wide == 0xFFE5
    assert vars(word)["wide"] == 0xFFE5


def test_the_kind_of_a_field_makes_its_value() -> None:
    """A bit reads as a bool, a field with a kind as that kind."""
    word = Sample.make(ready=1, rights=Rights.R | Rights.X)

    assert word.ready is True
    assert word.rights is Rights.R | Rights.X
    assert word.both == 0b1101


def test_a_value_that_does_not_fit_is_refused_by_name() -> None:
    """The error says which field was given too much."""
    with pytest.raises(ValueError, match="small=0x40"):
        Sample.make(small=64)
    with pytest.raises(ValueError, match="small"):
        Sample.make(small=-1)


def test_an_unknown_field_is_refused() -> None:
    """A misspelt field is not ignored."""
    with pytest.raises(TypeError, match="no field 'smal'; it has wide"):
        Sample.make(smal=1)


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 63))
def test_replacing_a_field_leaves_the_others(value: int, small: int) -> None:
    """`replace` changes the bits of the field named and no other."""
    assert (value & ~0x3F) | small == Sample(value).replace(small=small)


@given(st.integers(0, 0xFFFF_FFFF))
def test_decode_is_the_constructor(value: int) -> None:
    """The memo changes identity, not value or class."""
    word = Sample.decode(value)

    assert word == value
    assert type(word) is Sample
    assert Sample.decode(value) is word


def test_the_memo_is_bounded() -> None:
    """Decoding any number of different words does not keep them all."""
    first = Sample.decode(0)
    for value in range(1, MEMO_LIMIT + 2):
        Sample.decode(value)

    assert Sample.decode(0) is not first


def test_classes_do_not_share_a_memo() -> None:
    """The same value decodes to the class that was asked."""

    class Other(Sample):
        other = bits(11, 6)

    assert type(Sample.decode(7)) is Sample
    assert type(Other.decode(7)) is Other
    assert list(Sample.fields) == ["wide", "ready", "rights", "both", "small"]
    assert list(Other.fields) == [*Sample.fields, "other"]


def test_negative_values_wrap_and_wide_ones_are_refused() -> None:
    """-1 is all ones, as in a register; 33 bits are a mistake."""
    assert Word(-1) == 0xFFFF_FFFF
    with pytest.raises(ValueError, match="wider than 32 bits"):
        Word(1 << 32)


def test_repr_names_fields() -> None:
    """Wide fields in hex, counts in decimal, bits only when set, aliases never."""
    assert repr(Sample.make(wide=0xFFE5, small=2)) == "Sample(wide=0xffe5, rights=NONE, small=2)"
    assert repr(Sample.make(ready=1, rights=4)) == "Sample(wide=0x0, ready=True, rights=R, small=0)"
    assert repr(Word(5)) == "Word(0x00000005)"


def test_words_can_be_copied_and_pickled() -> None:
    """A snapshot may hold words."""
    word = Sample(0xFFE5_0002)

    assert (copy.deepcopy(word), type(copy.deepcopy(word))) == (word, Sample)
    assert (pickle.loads(pickle.dumps(word)), type(pickle.loads(pickle.dumps(word)))) == (word, Sample)


@given(st.sampled_from([Rights(n) for n in range(8)]))
def test_rights_read_back_from_their_letters(rights: Rights) -> None:
    """`text` and `parse` are inverses."""
    assert rights == Rights.parse(rights.text)


def test_rights_refuse_other_letters() -> None:
    """There are no rights but r, w and x."""
    with pytest.raises(ValueError, match="rq"):
        Rights.parse("rq")


def test_addresses_and_sizes_read_well() -> None:
    """Addresses print in hex, sizes in their largest unit."""
    assert repr(VAddr(0x4000)) == "VAddr(0x4000)"
    assert repr(PAddr(0x10)) == "PAddr(0x10)"
    assert hex32(-1) == "0xffffffff"
    assert [size_text(n) for n in (0, 1536, 4096, 1 << 22, 1 << 32)] == ["0", "1536", "4K", "4M", "4G"]


def test_numbers_at_equal_distances_are_told_together() -> None:
    """Four or more in a row become one entry with its first, its last, the step and the sum; fewer stand alone."""
    probes = dict.fromkeys(range(0x4000_0000, 0x4001_0000, 0x100), 1)

    assert {"0x40000000 to 0x4000ff00 in steps of 0x100": 256} == hex_rows(probes)
    assert {"0x1": 2, "0x60 to 0x63": 7, "0x80": 1} == hex_rows({0x80: 1, 1: 2, 0x60: 1, 0x61: 4, 0x62: 1, 0x63: 1})
    assert {"0x1": 1, "0x2": 1, "0x3": 1} == hex_rows(dict.fromkeys((1, 2, 3), 1))
    assert {} == hex_rows({})


@given(st.dictionaries(st.integers(0, 60), st.integers(1, 9)))
def test_no_occurrence_is_lost(counts: dict[int, int]) -> None:
    """Together or alone, all of them are told."""
    assert sum(counts.values()) == sum(hex_rows(counts).values())
