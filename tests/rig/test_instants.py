# SPDX-License-Identifier: GPL-2.0-or-later
"""A run is a function of its plan and its input: where and why somebody stopped it on the way does not show."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import l4lab
from l4lab.abi.time import period
from l4lab.errors import LabError
from l4lab.kernel.objects.instants import Instant
from l4lab.rig.rig import Rig
from l4lab.user import console
from l4lab.user.l4 import L4, IpcFailed
from l4lab.widgets.dashboard import Dashboard

PROMPT = "tiny> "


def timers(l4: L4) -> None:
    """A program that waits for a millisecond, again and again, and echoes what is typed."""
    console.listen(l4)
    while True:
        try:
            l4.wait(timeout=period(1000))
        except IpcFailed:
            continue
        console.say(l4, console.typed(l4).decode("latin-1"))


def echo(l4: L4) -> None:
    """A program that waits for ever, and echoes what is typed."""
    console.listen(l4)
    while True:
        l4.wait()
        console.say(l4, console.typed(l4).decode("latin-1"))


def tinyos(paging: str = "nested") -> Rig:
    """A guest that computes, sleeps, and takes commands."""
    return l4lab.boot("tinyos", interactive=True, paging=paging)


SYSTEMS: dict[str, tuple[Callable[[], Rig], int]] = {
    "tinyos": (tinyos, 560_000_000),
    "tinyos under shadow paging": (lambda: tinyos("shadow"), 560_000_000),
    "timers": (lambda: Rig(timers, 16 << 20), 20_000_000),
}
SYSTEM = st.sampled_from(sorted(SYSTEMS))
TEXTS = st.sampled_from([b"help\r", b"ticks\r", b"x", b"\r"])
DEVICES = st.sampled_from(["serial", "serial", "keyboard"])
SEED = st.integers(0, 1 << 32)
INPUTS = st.lists(st.tuples(st.floats(0, 1), DEVICES, TEXTS), max_size=6)


def played(rig: Rig) -> bytes:
    """The trace."""
    return msgspec.msgpack.encode(list(rig.trace), enc_hook=int)


def wander(rig: Rig, end: int, seed: int, pause: Callable[[random.Random], object] = lambda _: None) -> None:
    """Reach `end` by calls of all kinds, or the instant at which nothing more will happen."""
    rng = random.Random(seed)
    while rig.machine.cycles < end and rig.last_stop.reason != "idle" and not rig.last_stop.finished:
        call(rig, min(rig.machine.cycles + int(10 ** rng.uniform(0, 8.5)), end), rng)
        pause(rng)
        if not rng.randrange(4):
            rig.snapshot()


def call(rig: Rig, further: int, rng: random.Random) -> None:
    """One call, which runs up to cycle `further` at most; or somewhat beyond, by an event."""
    match rng.randrange(7):
        case 0:
            rig.run_until(further)
        case 1:
            rig.run(further - rig.machine.cycles)
        case 2:
            for _ in range(rng.randrange(20)):
                rig.step()
        case 3:
            rig.step_event()
        case 4:
            entries = rig.kernel.entries + rng.randrange(1, 30)
            rig.run_until(further, enough=lambda: rig.kernel.entries >= entries)
        case 5:
            half = (rig.machine.cycles + further) // 2
            rig.run_until(further, enough=lambda: rig.machine.cycles >= half)
        case _:
            said = len(rig.console) + rng.randrange(1, 4)
            rig.run_until(further, watch=lambda: len(rig.console) >= said)


@settings(max_examples=6, deadline=None)
@given(SYSTEM, INPUTS, SEED)
@example("timers", [(0.5, "serial", b"x"), (0.5, "serial", b"y")], 1)
def test_a_run_depends_on_its_plan_and_input_alone(
    name: str, given_: list[tuple[float, str, bytes]], seed: int
) -> None:
    """Is the trace the same to the last byte, whatever calls have made the same system with the same input run?"""
    make, end = SYSTEMS[name]

    def with_input() -> Rig:
        rig = make()
        for part, device, text in given_:
            rig.give(device, text if device == "serial" else b"\x1e\x9e", Instant(int(part * end * 0.98)))
        return rig

    straight, wandered = with_input(), with_input()
    straight.run_until(end)

    wander(wandered, end, seed)
    last = max(straight.machine.cycles, wandered.machine.cycles)  # the calls may overshoot by an event
    for rig in (straight, wandered):
        rig.run_until(last)

    assert played(straight) == played(wandered)


@settings(max_examples=6, deadline=None)
@given(SYSTEM, SEED)
def test_what_was_typed_at_stops_can_be_typed_beforehand(name: str, seed: int) -> None:
    """Does a fresh run to which the same input is given, each at its instant, become the one that was typed to?"""
    make, end = SYSTEMS[name]
    live, again = make(), make()

    def perhaps_type(rng: random.Random) -> None:
        if rng.random() < 0.3:
            text = rng.choice([b"help\r", b"ticks\r", b"x"])
            again.give("serial", text, live.instant)
            live.type(text)

    wander(live, end, seed, perhaps_type)
    live.run_until(end)
    again.run_until(live.machine.cycles)

    assert played(live) == played(again)


def test_input_at_an_idle_machine_is_the_same_as_before_its_end() -> None:
    """Is what is typed when everybody waits the same as if it had been waiting for that instant?"""
    live, again = Rig(echo, 16 << 20), Rig(echo, 16 << 20)
    assert "idle" == live.run().reason
    live.type(b"x")
    again.give("serial", b"x", live.instant)

    live.run()
    again.run()

    assert played(live) == played(again)
    assert b"x" in live.console


@pytest.mark.parametrize("slice_", [0.001, 0.05])
def test_a_wait_for_text_ends_with_its_last_byte(slice_: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does `run_for(..., until=)` stop right after the output it waits for, whatever the wall clock says?"""
    monkeypatch.setattr("l4lab.widgets.dashboard.SLICE", slice_)
    board = Dashboard(tinyos())

    board.run_for(2, until=PROMPT)

    assert board.rig.console.endswith(PROMPT.encode())
    reference = tinyos()
    reference.run_until(1 << 60, watch=lambda: reference.console.endswith(PROMPT.encode()))
    assert reference.instant == board.rig.instant


def test_input_names_its_device() -> None:
    """Is input for a device that there is not refused, by a message with those that there are?"""
    with pytest.raises(LabError, match="serial, keyboard, button"):
        tinyos().give("mouse", b"x")
