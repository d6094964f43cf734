# SPDX-License-Identifier: GPL-2.0-or-later
"""A screen as a stream of text, and a session that is held at screen and keyboard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.kernel import events
from l4lab.rig.rig import Rig
from l4lab.rig.screen import new_text
from l4lab.rig.session import Script, Session, Status
from l4lab.user.guests.flat import FlatGuest
from tests.rig.echo import ECHO, ECHO_WITHOUT_CURSOR


@pytest.mark.parametrize(("guest", "prompt"), [(ECHO, "> "), (ECHO_WITHOUT_CURSOR, ">")])
def test_what_is_typed_on_the_keyboard_appears_on_the_screen(guest: FlatGuest, prompt: str) -> None:
    """Are lines typed at the prompts, as keys, and does the session end at a match, wherever the cursor is?"""
    rig = Rig.for_flat_guest(guest)
    session = Session(rig, Script.parse("cab$", [f"{prompt}=>fad", f"{prompt}=>cab"], 20.0, on_screen=True))
    ending = session.run()

    assert (Status.MATCHED, b"") == (ending.status, bytes(rig.console))
    page = rig.screen()
    assert page is not None
    assert ["> fad", "> cab"] == page.lines()[:2]
    inputs = [event for event in rig.trace.select(events.DeviceInput) if isinstance(event, events.DeviceInput)]
    assert {"keyboard"} == {event.device for event in inputs}


def test_a_key_that_is_not_there_is_named() -> None:
    """Is the character that a US keyboard lacks told, with what to do?"""
    rig = Rig.for_flat_guest(ECHO)

    with pytest.raises(LabError, match="'é' on a US keyboard"):
        rig.press("é")


def test_what_scrolled_is_not_new() -> None:
    """A line that goes on, lines below it, lines that scrolled up, and a screen that was cleared."""
    assert "hello" == new_text([], ["hello"])
    assert " world" == new_text(["hello"], ["hello world"])
    assert "\n/ # " == new_text(["/ # ls", "a"], ["/ # ls", "a", "/ # "])
    assert "\nc" == new_text(["a", "b"], ["b", "c"])
    assert "\nother" == new_text(["a", "b"], ["other"])


@given(st.lists(st.text("ab ", max_size=3).map(str.rstrip), min_size=1, max_size=12, unique=True), st.integers(1, 5))
def test_the_stream_is_what_was_said(said: list[str], height: int) -> None:
    """Of lines that all differ, said one after the other on a screen that scrolls: is each told once, in its order?"""
    said = [f"{number}{line}" for number, line in enumerate(said)]
    stream, before = "", list[str]()
    for end in range(1, len(said) + 1):
        now = said[max(0, end - height - 1) : end]
        stream += new_text(before, now)
        before = now

    assert "\n".join(said) == stream


ROWS = st.lists(st.text("ab", max_size=3), min_size=2, max_size=25)


@given(ROWS, st.data())
def test_what_appears_anywhere_is_told_once(rows: list[str], data: st.DataObject) -> None:
    """Are lines that were put anywhere on a screen, and no others, told in their order?"""
    before = [*rows, "status"]
    where = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1, max_size=len(rows))))
    now = [f"new {number}" if number in where else line for number, line in enumerate(before)]

    assert "".join(f"\nnew {number}" for number in where) == new_text(before, now)
