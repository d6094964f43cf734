# SPDX-License-Identifier: GPL-2.0-or-later
"""The text twins, the tables of registers and instructions, and the guest's console: literal expectations."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi.ids import ANY_THREAD
from l4lab.rig.snapshot import Snapshot
from l4lab.views import console, disassembly, registers, text, threads
from l4lab.views.example import MONITOR

SPACES = """\
guest (virtual machine)
  0x00000000  640K rwx ← 0x01000000 from monitor  low memory
  0x00100000    3M rwx ← 0x01100000 from monitor  kernel
"""


def test_the_status_line_says_who_where_when_and_why(snapshot: Snapshot) -> None:
    """One line has the reason, the thread, its mode, the cycle and the virtual time."""
    assert (
        "stopped before a VM exit: out dx, al · cpu0 in guest mode"
        " · cycle 184\u202f467 · virtual time 184.467 µs" == text.status_line(snapshot)
    )


@pytest.mark.parametrize(
    ("ns", "shown"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1 µs"), (12_500_000, "12.5 ms"), (3_000_000_001, "3.000000001 s")],
)
def test_virtual_time_is_never_rounded(ns: int, shown: str) -> None:
    """Each time is in its best unit, with all the digits it has."""
    assert shown == text.virtual_time(ns)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0"), (4096, "4K"), (4112 << 10, "4112K"), (3 << 30, "3G"), (258032 << 10, "≈252M"), (1_047_000, "≈1022K")],
)
def test_a_size_is_exact_where_that_is_short(size: int, shown: str) -> None:
    """Sizes that need many digits are rounded, and say so."""
    assert shown == text.rough_size(size)


@pytest.mark.parametrize(("thread", "shown"), [(ANY_THREAD, "anyone"), (MONITOR, "monitor"), (None, "–")])
def test_waiting_for_anyone_is_said_in_words(snapshot: Snapshot, thread: int | None, shown: str) -> None:
    """A partner is a name, also where the ABI has a number for all threads."""
    assert shown == text.partner(snapshot, thread)


def test_a_thread_without_a_space_has_a_dash(snapshot: Snapshot) -> None:
    """The kernel's interrupt threads live nowhere."""
    assert ["guest", "–"] == [text.home(snapshot, 4), text.home(snapshot, -1)]


def test_changed_registers_have_a_star(snapshot: Snapshot) -> None:
    """EIP moved and EFLAGS did not."""
    assert "*EIP    0x00100030   EFLAGS 0x00000202" in text.registers(snapshot)


def test_a_space_lists_its_mappings_with_their_givers(snapshot: Snapshot) -> None:
    """The guest has two pieces of memory, both from its monitor."""
    assert SPACES == text.space(snapshot, snapshot.spaces[3])


def test_messages_are_columns(snapshot: Snapshot) -> None:
    """The page fault reads: when, from whom, to whom, what, with which words."""
    assert "121\u202f210  cpu0     →  monitor  fault: page fault x  100000 100000" in text.ipc(snapshot)


def test_a_changed_register_tells_its_old_value(snapshot: Snapshot) -> None:
    """In the table a change is a mark with words, not only bold."""
    cells = ElementTree.fromstring(registers.as_html(snapshot)).findall(".//td[@class='l4-changed']")

    assert ["0x00100030", "0x00100048", "0x00000068"] == [cell.findtext("b") for cell in cells]
    assert "changed; was 0x0010002f" == cells[0].find("span").get("aria-label")  # type: ignore[union-attr]


def test_the_flags_are_named() -> None:
    """Carry, zero and interrupt flag, and nothing for the bit that is always one."""
    assert ["CF", "ZF", "IF"] == registers.flag_names(0x0243)


def test_the_next_instruction_has_the_arrow(snapshot: Snapshot) -> None:
    """Exactly one row is current, and it is marked for eyes and ears."""
    [row] = ElementTree.fromstring(disassembly.as_html(snapshot.disassembly)).findall(".//tr[@aria-current]")

    assert ["▶", "00100030", "ee", "out dx, al"] == [cell.text for cell in row]


def test_the_running_thread_has_the_arrow(snapshot: Snapshot) -> None:
    """The virtual CPU runs."""
    rows = ElementTree.fromstring(threads.as_html(snapshot)).findall("tbody/tr")

    shown = [cell.text for cell in rows[3]]
    assert [
        "▶ cpu0",
        "virtual CPU",
        "running",
        "100",
        "guest",
        "–",
        "monitor",
        "9.85 ms of 10 ms, 50 ms in all",
    ] == shown


@pytest.mark.parametrize(
    ("output", "page"),
    [
        ("one\r\ntwo", "one\ntwo"),
        ("50%\r100%", "100%"),
        ("abc\rX", "Xbc"),
        ("pasw\b\x20\bsword", "password"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07$ ", "$ "),
        ("~ # \x1b[6n", "~ # "),
        ("cut \x1b[1", "cut "),
        ("a\tb", "a       b"),
        ("bell\x07", "bell"),
    ],
)
def test_the_console_settles_control_characters(output: str, page: str) -> None:
    """Going back overwrites; colours, titles and questions to the terminal leave nothing."""
    assert page == console.as_text(output)


@given(st.text(alphabet=st.sampled_from("ab\r\n\b\t\x1b[]0;m\x07")))
def test_the_console_is_bounded_and_printable(output: str) -> None:
    """For any output the page has only printable characters and newlines, and not too many lines."""
    page = console.as_text(output * 3)

    assert all(letter.isprintable() or letter == "\n" for letter in page)
    assert page.count("\n") < console.LINES


def test_old_lines_leave_the_console() -> None:
    """Of a thousand lines the last five hundred stay."""
    page = console.as_text("".join(f"{number}\n" for number in range(1000)))

    assert "501" == page.split("\n")[0]


def test_a_thread_s_time_is_shown_where_it_ends(snapshot: Snapshot) -> None:
    """Does the table say what is left of slice and quantum, and nothing of a slice that never ends?"""
    assert "9.85 ms of 10 ms, 50 ms in all" == text.time(snapshot.threads[3])
    assert text.time(snapshot.threads[3]) in threads.as_html(snapshot)
    assert not text.time(snapshot.threads[0])


def test_who_waits_for_input_is_called_what_it_is(snapshot: Snapshot) -> None:
    """Where there is a virtual machine it is the guest, elsewhere the program."""
    waiting = msgspec.structs.replace(snapshot, input_expected=True)
    native = msgspec.structs.replace(waiting, spaces=waiting.spaces[:3])

    assert text.status_line(waiting).endswith(" · the guest waits for input")
    assert text.status_line(native).endswith(" · the program waits for input")
