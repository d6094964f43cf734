# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench's page: it shows everything, needs nothing else, and can be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser

from l4lab.bench import page, runs
from l4lab.bench.everything import measurements
from l4lab.bench.figures import LESS, MORE, Figure

COMPUTER = runs.Computer(2, "3.11.0", "Linux")
EMPTY_ELEMENTS = {"meta"}


class Checked(HTMLParser):
    """Elements have to be closed in the order in which they were opened; what they say is collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing is loaded from elsewhere."""
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """It is the last that was opened."""
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        """Text of the page and its pictures, and of the table's cells."""
        if self.open and self.open[-1] == "text":
            self.said.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def every_figure(value: float = 1.25) -> tuple[Figure, ...]:
    """All that the bench measures, without measuring it."""
    names = [name for measurement in measurements(True, print) for name in measurement.names]
    assert len(names) == len(set(names)) > 40
    return tuple(
        Figure(name, f"Group {number // 12}", value, "ratio", LESS if number % 3 else MORE, 12.75, 0.1, 0.2, 5)
        for number, name in enumerate(names)
    )


names = st.text(max_size=30)
numbers = st.one_of(st.floats(-1e9, 1e9), st.sampled_from([0.0, 1e-300, 1e300]))
figures = st.builds(
    Figure,
    name=names,
    group=st.sampled_from(["One", "Two"]),
    value=numbers,
    unit=st.sampled_from(["ratio", "MiB"]),
    better=st.sampled_from([LESS, MORE]),
    wanted=st.none() | st.floats(1e-3, 1e3),
    ours=st.floats(0, 1e3),
    theirs=st.floats(0, 1e3),
)


@settings(max_examples=25)
@given(st.lists(figures, max_size=6, unique_by=lambda figure: figure.name), st.booleans())
def test_any_run_is_a_whole_page(found: list[Figure], compared: bool) -> None:
    """Whatever the figures are and are called, the page is well-formed and shows all of them with their values."""
    changes = [runs.Change(msgspec.structs.replace(f, value=f.value * 2), f) for f in found] if compared else None
    text = page.draw(runs.SavedRun(COMPUTER, tuple(found)), changes)
    read = Checked(text)

    shown = {row[0]: row[1] for row in read.rows[1:]}
    assert len(found) == len(shown)
    assert {figure.told for figure in found} == set(shown.values())
    assert not re.search(r"[\"\s](nan|inf)\b", text)
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)


def test_a_chart_shows_what_its_table_says() -> None:
    """Each figure has a row in a chart with its name, its value, what is wanted, and whether that is met."""
    found = every_figure()
    missed = msgspec.structs.replace(found[1], value=20.0)
    read = Checked(page.draw(runs.SavedRun(COMPUTER, (found[0], missed, *found[2:]))))

    assert [] == [figure.name for figure in found if figure.name not in read.said]
    assert "20 (at most 12.75): NOT MET" in read.said


def test_what_became_worse_is_said() -> None:
    """A page of a comparison names what became worse, before any chart."""
    before, now = (msgspec.structs.replace(every_figure()[1], value=value) for value in (1.0, 1.5))
    text = page.draw(runs.SavedRun(COMPUTER, (now,)), [runs.Change(before, now)])

    assert f"{now.name}: 1.5, was 1 (50% worse)" in text.partition("<section>")[0]
    assert "was 1: WORSE" in text


def test_it_can_be_read(tmp_path: Path, browser: Browser) -> None:
    """In a browser no two texts of a chart touch, none leaves its picture, and letters stand out in both themes."""
    found = every_figure(123456.789)
    changes = [runs.Change(msgspec.structs.replace(figure, value=98765.4), figure) for figure in found]
    (tmp_path / "page.html").write_text(page.draw(runs.SavedRun(COMPUTER, found), changes))
    shown = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme="light")
    shown.goto(f"file://{tmp_path / 'page.html'}")
    faults, light = shown.evaluate(_FAULTS), shown.evaluate(_COLOURS)
    shown.emulate_media(color_scheme="dark")
    dark = shown.evaluate(_COLOURS)
    shown.close()

    assert [] == faults
    (ink, paper), (other_ink, other_paper) = light, dark  # sums of red, green and blue
    assert paper - ink > 500
    assert other_ink - other_paper > 500


_FAULTS = """() => [...document.querySelectorAll("svg[role=img]")].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(each => [each.textContent, each.getBoundingClientRect()]);
    const outside = texts.filter(([_, r]) => r.left < frame.left || r.right > frame.right || r.bottom > frame.bottom);
    const touching = texts.flatMap(([one, a], index) => texts.slice(index + 1).filter(([_, b]) =>
        a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom
    ).map(([other]) => [one, other]));
    return [...outside.map(([text]) => [text]), ...touching];
})"""
_COLOURS = """() => ["fill", "stroke"].map(part => {  // of the letters of a chart: their ink, and the paper around them
    const colour = getComputedStyle(document.querySelector("svg g text"))[part];
    return [...document.querySelectorAll("svg[role=img] g text")].length && colour.match(/\\d+/g).slice(0, 3)
        .reduce((sum, part) => sum + Number(part), 0);
})"""
