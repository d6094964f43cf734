# SPDX-License-Identifier: GPL-2.0-or-later
"""The dashboard's Python side, over a real rig and without a browser."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from l4lab.errors import KernelPanic, LabError
from l4lab.rig.named import boot
from l4lab.rig.rig import Rig, Stop
from l4lab.widgets import panels
from l4lab.widgets.dashboard import Dashboard
from tests.rig.echo import ECHO

PROMPT = "tiny> "


def tinyos() -> Dashboard:
    """A dashboard over the small system that takes commands."""
    return Dashboard(boot("tinyos", interactive=True))


async def reaches(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Let the machine run in the background until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def in_background(story: Callable[[Dashboard], Awaitable[None]]) -> Dashboard:
    """A dashboard that runs as in a notebook, with an event loop; paused at the end of the story."""

    async def whole() -> Dashboard:
        board = tinyos()
        await story(board)
        board.pause()
        await reaches(lambda: board.state != "running")
        return board

    return asyncio.run(whole())


def test_a_new_dashboard_shows_a_machine_that_stands_still() -> None:
    """Before anything ran it says so, and every panel has something to show."""
    board = Dashboard(boot("greeting"), title="first")

    assert board.state == "paused"
    assert "just booted" in board.status
    assert "sigma0" in board.graph_dot


def test_who_runs_is_told_before_anybody_has() -> None:
    """Is a machine on which nobody has run yet told from one on which every thread waits?"""
    rig = boot("tinyos", interactive=True)
    before = panels.who(rig.snapshot())
    rig.run(60_000_000)

    assert ("Nobody has run yet.", "Nobody runs: every thread waits.") == (before, panels.who(rig.snapshot()))


def test_counters_are_shown_for_each_machine() -> None:
    """Instructions and exits of a machine that ran are in the table; under shadow paging also those in the kernel."""
    board = Dashboard(boot("greeting", paging="shadow"))
    before = board.counters
    board.run_for(5)
    [machine] = board.rig.stats()["virtual_machines"]

    assert "There has been no virtual machine so far." in before
    assert f"<td>{machine['total']['instructions']:,}</td>".replace(",", "\u202f") in board.counters
    assert "shadow" in board.counters
    assert "ended in the kernel" in board.kernel_exits
    assert "" == Dashboard(boot("greeting")).kernel_exits


def test_run_for_stops_when_the_console_says_the_word() -> None:
    """Within a cell: the machine runs as fast as it goes, up to the text that was asked for."""
    board = tinyos()
    board.run_for(5, until=PROMPT)

    assert board.console.endswith(PROMPT)
    assert board.state == "paused"


def test_run_for_stops_when_its_time_is_over() -> None:
    """Virtual time, to the nanosecond where nothing runs at the deadline's instant."""
    board = tinyos()
    board.run_for(0.1)

    assert 100_000_000 <= board.rig.machine.cycles < 100_010_000


def test_the_end_of_a_guest_is_told() -> None:
    """A guest that halts for ever has ended, not paused."""
    board = Dashboard(boot("greeting"))
    stop = board.run_for(5)

    assert stop.finished
    assert board.state == "ended"
    assert stop.detail in board.status


def test_in_the_background_it_runs_and_takes_input() -> None:
    """While the machine runs, others have their turn, and what is typed arrives."""

    async def story(board: Dashboard) -> None:
        board.run()
        await reaches(lambda: board.console.endswith(PROMPT))
        board.type("help\r")
        await reaches(lambda: "commands: help" in board.console)

    assert "paused" in in_background(story).status


def test_an_idle_guest_keeps_the_pace_of_the_wall() -> None:
    """A guest that waits for somebody does not race through virtual time."""

    async def story(board: Dashboard) -> None:
        board.run_for(5, until=PROMPT)
        board.run()
        begin = board.rig.machine.cycles
        await asyncio.sleep(0.5)
        assert (board.rig.machine.cycles - begin) / 1e9 < 1.0

    in_background(story)


def test_the_stop_button_of_the_notebook_pauses() -> None:
    """SIGINT, which Jupyter sends, ends a run in the background and is handled as before afterwards."""
    before = signal.getsignal(signal.SIGINT)

    async def story(board: Dashboard) -> None:
        board.run()
        await reaches(lambda: board.console.endswith(PROMPT))
        os.kill(os.getpid(), signal.SIGINT)
        await reaches(lambda: board.state == "paused", seconds=1)

    in_background(story)
    assert before == signal.getsignal(signal.SIGINT)


def test_what_the_machine_raises_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken kernel ends the run; status line and traceback say why."""

    def broken(*_: object, **__: object) -> Stop:
        raise KernelPanic("two threads run at once")

    async def story(board: Dashboard) -> None:
        monkeypatch.setattr(board.rig, "run_until", broken)
        board.run()
        await reaches(lambda: board.state == "failed")

    board = in_background(story)
    assert "KernelPanic: two threads run at once" in board.status
    assert "in broken" in board.trouble


def test_only_what_changed_since_the_last_step_is_marked() -> None:
    """One instruction of the guest changes EIP, and not every register."""
    board = tinyos()
    board.run_for(0.05)
    while board.rig.kernel.current is None or board.rig.kernel.current.vcpu is None:
        board.step_event()
    board.step()

    assert "●" in board.registers
    assert board.registers.count("●") < 6


def test_stepping_an_idle_machine_goes_to_the_next_event() -> None:
    """Where nobody runs there is no instruction: the clock goes on until something happens."""
    board = tinyos()
    board.run_for(5, until=PROMPT)
    board.rig.run_until(1 << 62, lambda: board.rig.kernel.current is None)
    before = board.rig.kernel.entries
    board.step()

    assert board.rig.kernel.entries > before


def test_outside_a_notebook_run_says_what_to_do_instead() -> None:
    """There is no background to run in."""
    with pytest.raises(LabError, match="run_for"):
        tinyos().run()


def test_without_dot_there_is_no_picture_but_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser gets the DOT text, and draws."""
    monkeypatch.setenv("PATH", "")
    panels.drawn.cache_clear()
    board = tinyos()
    panels.drawn.cache_clear()

    assert board.graph_svg == ""
    assert "digraph" in board.graph_dot


def test_commands_from_the_browser_do_what_the_buttons_say() -> None:
    """A message for each button, and what is none is ignored."""
    board = tinyos()
    before = board.rig.kernel.entries
    board._received(board, {"command": "step_event"}, [])
    board._received(board, {"command": "close"}, [])

    assert board.rig.kernel.entries == before + 1


def test_keys_are_pressed_and_the_screen_is_a_picture() -> None:
    """Typed at the screen, by the browser too: do keys reach the guest's keyboard, and does its screen show them?"""
    board = Dashboard(Rig.for_flat_guest(ECHO))
    assert "" == board.screen
    board.press("fa")
    board._received(board, {"press": "d\x00\r"}, [])
    board.run_for(0.02)

    assert "fad" in board.screen
    assert "Text screen of the guest" in board.screen
    with pytest.raises(LabError, match="'é'"):
        board.press("é")
