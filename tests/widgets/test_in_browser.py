# SPDX-License-Identifier: GPL-2.0-or-later
"""The dashboard as a student meets it: in JupyterLab, in a browser.

One notebook for all tests. Each begins with the machine standing still, wherever that may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from l4lab.widgets.dashboard import VIZ

BOARD = ".l4-dashboard"

PROMPT = re.compile(r"tiny> $")


@pytest.fixture
def board(page: Page) -> Iterator[Locator]:
    """The dashboard; paused before and after."""
    board = page.locator(BOARD).first
    yield board
    if board.get_by_role("button", name="Pause", exact=True).count():
        pause(board)


def press(board: Locator, name: str) -> None:
    """Click a button of the toolbar."""
    board.get_by_role("button", name=name, exact=True).click()


def pause(board: Locator) -> None:
    """Pause, and wait until the machine stands still: the button is Run again."""
    press(board, "Pause")
    expect(board.get_by_role("button", name="Run", exact=True)).to_be_visible()


def cycle(board: Locator) -> int:
    """The clock, as the status line shows it."""
    found = re.search(r"cycle ([\d\s]+\d)", board.locator(".l4-status").inner_text())
    assert found is not None
    return int(re.sub(r"\s", "", found[1]))


def console(board: Locator) -> Locator:
    """What the guest has said."""
    return board.get_by_role("log")


def reach_prompt(board: Locator) -> None:
    """Run until the guest waits for a command."""
    press(board, "Run")
    expect(console(board)).to_have_text(PROMPT, timeout=30_000)


def in_guest(board: Locator) -> None:
    """Step until the guest itself runs; a hosted program's step goes up to its next system call."""
    for _ in range(60):
        if "runs in guest mode" in board.locator(".l4-who").inner_text():
            return
        before = board.locator(".l4-status").inner_text()
        press(board, "Step")
        expect(board.locator(".l4-status")).not_to_have_text(before)
    raise AssertionError("the guest never ran")


def test_step_executes_one_instruction_and_marks_what_changed(board: Locator) -> None:
    """A click on Step moves EIP by an instruction, costs a cycle, and a dot stands at EIP."""
    eip = board.locator(".l4-box-registers td").first
    in_guest(board)
    before, clock = eip.inner_text(), cycle(board)
    press(board, "Step")

    expect(eip).not_to_have_text(before)
    expect(eip).to_have_text(re.compile("●"))
    expect(board.locator(".l4-disassembly [aria-current]")).to_have_count(1)
    assert clock + 1 == cycle(board)


def test_step_event_runs_to_the_next_kernel_entry(board: Locator) -> None:
    """A click on Step event comes back when the guest has entered the kernel."""
    in_guest(board)
    press(board, "Step event")

    expect(board.locator(".l4-who")).to_contain_text("has just entered the kernel, from guest mode")


def test_the_guest_is_seen_from_all_sides(board: Locator) -> None:
    """Each panel shows something of a running guest: messages, exits, threads, spaces."""
    reach_prompt(board)
    pause(board)

    expect(board.get_by_role("img", name="Messages between threads")).to_contain_text("exit")
    expect(board.get_by_role("img", name="VM exits by reason")).to_contain_text("CPUID")
    expect(board.locator(".l4-box-counters thead")).to_contain_text("Exits to monitor")
    expect(board.locator(".l4-box-counters tbody th")).to_contain_text("nested")
    expect(board.locator(".l4-box-threads")).to_contain_text("monitor")
    expect(board.locator(".l4-box-mappings")).to_contain_text("rwx")
    expect(board.locator(".l4-graph svg")).to_contain_text("virtual machine")


def test_run_boots_to_the_prompt_and_typing_gets_an_answer(board: Locator) -> None:
    """Keys typed into the console reach the guest, and its answer appears."""
    reach_prompt(board)
    console(board).click()
    board.page.keyboard.type("help\n")

    expect(console(board)).to_contain_text("commands: help", timeout=10_000)


def test_counters_go_up_while_it_runs(board: Locator) -> None:
    """The table of counters follows a running machine, can be reached by the keyboard, and is scrolled by it."""
    reach_prompt(board)
    box = board.locator(".l4-box-counters")
    injected = box.locator("tbody td").nth(6)
    before = injected.inner_text()
    expect(injected).not_to_have_text(before, timeout=10_000)
    pause(board)
    board.locator(".l4-counters summary").focus()
    board.page.keyboard.press("Tab")

    expect(box).to_be_focused()
    assert box.evaluate("element => element.scrollWidth <= element.clientWidth")


def test_pause_stops_the_clock(board: Locator) -> None:
    """After Pause nothing moves any more."""
    reach_prompt(board)
    pause(board)
    expect(board.locator(".l4-state")).to_contain_text("Paused")
    clock = cycle(board)
    board.page.wait_for_timeout(300)

    assert clock == cycle(board)


def test_the_keyboard_is_enough(board: Locator) -> None:
    """Tab reaches the buttons, R runs, Tab reaches the console, Shift+Tab leaves it, R pauses."""
    page = board.page
    board.get_by_role("button", name="Run", exact=True).focus()
    page.keyboard.press("r")
    expect(console(board)).to_have_text(PROMPT, timeout=30_000)
    text_area = board.get_by_role("textbox")
    for _ in range(12):
        if text_area.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.type("ticks")
    page.keyboard.press("Enter")
    expect(console(board)).to_contain_text(re.compile(r"ticks\s+\d+"), timeout=10_000)
    page.keyboard.press("Shift+Tab")
    expect(text_area).not_to_be_focused()
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("r")

    assert ring == "solid"
    expect(board.locator(".l4-state")).to_contain_text("Paused")


def test_text_can_be_pasted(board: Locator) -> None:
    """A pasted line is typed, its line end as the key Enter sends it."""
    reach_prompt(board)
    console(board).click()
    board.page.keyboard.insert_text("pasted\n")

    expect(console(board)).to_contain_text("tiny> pasted\nno such command", timeout=10_000)


def test_it_follows_the_theme(board: Locator, pictures: Path) -> None:
    """On JupyterLab's dark theme, ink is light and paper is dark, in the pictures too."""
    page = board.page
    in_guest(board)
    page.set_viewport_size({"width": 1280, "height": 2400})
    light = colours(board)
    board.screenshot(path=pictures / "dashboard-light.png")
    theme(page, "JupyterLab Dark")
    dark = colours(board)
    board.screenshot(path=pictures / "dashboard-dark.png")
    theme(page, "JupyterLab Light")
    page.set_viewport_size({"width": 1280, "height": 1400})

    assert light["paper"] > 0.9 > 0.2 > light["ink"]
    assert dark["paper"] < 0.2 < 0.8 < dark["ink"]
    assert light["graph"] < 0.2 < 0.8 < dark["graph"]


@pytest.mark.parametrize("width", [700, 1900])
def test_nothing_is_cut_off_at_any_width(board: Locator, pictures: Path, width: int) -> None:
    """Narrow or wide, the dashboard itself needs no scrolling to the side."""
    page = board.page
    page.set_viewport_size({"width": width, "height": 2800})
    page.wait_for_timeout(300)
    overflow = board.evaluate("element => element.scrollWidth - element.clientWidth")
    board.screenshot(path=pictures / f"dashboard-{width}.png")
    page.set_viewport_size({"width": 1280, "height": 1400})

    assert overflow <= 0


def test_without_dot_the_browser_draws_the_picture_itself(page: Page, board: Locator) -> None:
    """Where Graphviz is not installed its WebAssembly build draws; where that is missing too, words say what to do."""
    page.locator(".jp-CodeCell .cm-content").nth(1).click()
    page.keyboard.press("Shift+Enter")
    picture = page.locator(BOARD).nth(1).locator(".l4-graph")

    if VIZ.exists():
        expect(picture.locator("svg")).to_contain_text("sigma0", timeout=30_000)
    else:
        expect(picture).to_contain_text("needs Graphviz", timeout=30_000)


def theme(page: Page, name: str) -> None:
    """Choose a theme as a user does, from the menu."""
    page.get_by_role("menuitem", name="Settings").click()
    page.locator('.lm-Menu-item[data-type="submenu"]', has_text="Theme").first.hover()
    page.locator(".lm-Menu-item", has_text=re.compile(f"^{name}$")).click()
    page.locator(f'body[data-jp-theme-name="{name}"]').wait_for(state="attached")
    page.wait_for_timeout(500)


def colours(board: Locator) -> dict[str, float]:
    """How light ink and paper are, from 0 to 1."""
    found: dict[str, float] = board.evaluate(
        """board => {
            const light = colour => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
                return (r + g + b) / 765;
            };
            const style = getComputedStyle(board);
            const letter = getComputedStyle(board.querySelector('.l4-graph text'));
            return {ink: light(style.color), paper: light(style.backgroundColor), graph: light(letter.fill)};
        }"""
    )
    return found
