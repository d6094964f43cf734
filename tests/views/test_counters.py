# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters of virtual machines, and the comparison of nested and shadow paging: tables, bars and text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from strategies import machines, totals

from l4lab.errors import LabError
from l4lab.rig.comparison import PagedRun, PagingComparison, compare_paging
from l4lab.rig.counting import Counts, VmCounts
from l4lab.user.guests import loops
from l4lab.views import comparison, counters, pictures, svg
from l4lab.views.example import example

SVG = "{http://www.w3.org/2000/svg}"
TURNS = 50


def compared(nested: Counts, shadow: Counts) -> PagingComparison:
    """A comparison of these."""
    one = PagedRun(paging="nested", counts=nested, cycles=1000, ended="the guest halted.")
    other = PagedRun(paging="shadow", counts=shadow, cycles=2000, ended="the guest halted.")
    return PagingComparison("A guest.", one, other)


def test_a_machine_with_several_cpus_has_a_row_for_each() -> None:
    """One CPU: one row. Two: a row with the sum, then a row for each."""
    body = ElementTree.fromstring(counters.as_html(example().machines)).findall("tbody/tr")

    assert ["guest, nested", "an earlier guest, shadow", "· CPU 0", "· CPU 1"] == [row[0].text for row in body]
    assert ["3\u202f000", "0", "7", "0", "20", "9", "0", "0"] == [cell.text for cell in body[1][1:]]
    assert all(len(counters.HEADINGS) == len(row) for row in body)


@settings(max_examples=50)
@given(machines)
def test_table_and_text_tell_the_same(machine: VmCounts) -> None:
    """For any machine, with any name, does each number of the table stand in the text?"""
    cells = [cell.text or "" for cell in ElementTree.fromstring(counters.as_html([machine])).iter("td")]
    told = counters.as_text([machine])

    assert set(cells) <= set(re.split(r"[ \n]+", told))


@settings(max_examples=50)
@given(totals, totals)
def test_the_bars_of_a_comparison_are_to_scale_and_inside(nested: Counts, shadow: Counts) -> None:
    """For any counts: each pair of bars has the lengths of its counts, is named, and no label leaves the picture."""
    shown = compared(nested, shadow)
    root = ElementTree.fromstring(comparison.as_svg(shown))
    wanted = [count for _, *counts in comparison.happened(shown) for count in counts if count]
    bars = [float(bar.get("width", "")) for bar in root.iter(f"{SVG}rect")]
    scale = comparison.BAR / max(wanted, default=1)

    assert [pytest.approx(max(count * scale, 1), abs=0.06) for count in wanted] == bars
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for found in root.iter(f"{SVG}text"):
        x, length = float(found.get("x", "")), svg.LETTER * len(found.text or "")
        left = x - (length if found.get("text-anchor") == "end" else 0)
        assert -1 <= left, found.text
        assert left + length <= width + 1, found.text
        assert 8 <= float(found.get("y", "")) <= height - 2


def test_nested_and_shadow_differ_without_colour() -> None:
    """Bars of nested paging are filled, those of shadow paging are not, and each count has its name beside it."""
    both = Counts(exits={"HLT": 1})
    root = ElementTree.fromstring(comparison.as_svg(compared(both, both)))

    assert [False, True] == ["fill: none" in bar.get("style", "") for bar in root.iter(f"{SVG}rect")]
    assert {"1 nested", "1 shadow"} <= {found.text for found in root.iter(f"{SVG}text")}


@pytest.mark.parametrize(
    ("nested", "shadow", "said"), [(0, 0, "same"), (0, 5, ""), (4, 4, "same"), (2, 5, "2.5"), (10**6, 10**6 + 1, "≈ 1")]
)
def test_ratios_say_what_they_can(nested: int, shadow: int, said: str) -> None:
    """How many times as much: nothing where there is nothing to divide by, never a 1 that is none."""
    assert said == comparison.ratio(nested, shadow)


def test_a_guest_that_touches_pages_costs_more_under_shadow_paging() -> None:
    """A fill for each page that is touched, and an exit for each fill; nested paging needs neither."""
    found = compare_paging(loops.paging(TURNS, loops.TOUCH))

    assert 0 == found.nested.counts.vtlb_fills == sum(found.nested.counts.kernel_exits.values())
    assert TURNS <= found.shadow.counts.vtlb_fills <= found.shadow.counts.all_exits
    assert found.nested.counts.exits == found.shadow.counts.exits
    assert found.nested.cycles < found.shadow.cycles
    assert "vTLB fills" in pictures.comparison(found).text


def test_a_comparison_ends_when_it_is_told_to() -> None:
    """A named guest up to a word on its console, and a guest that is cut off: does the text say which it was?"""
    word = compare_paging("tinyos", until="ring 3")
    short = compare_paging("tinyos", seconds=0.000_1)

    assert "what was waited for happened" == word.nested.ended == word.shadow.ended
    assert 100_000 <= short.nested.cycles < 110_000
    assert "tinyos: its time was over." in comparison.as_text(short)
    with pytest.raises(LabError, match="for 0 seconds"):
        compare_paging("tinyos", seconds=0)
    with pytest.raises(LabError, match="no guest named 'nobody'"):
        compare_paging("nobody")
