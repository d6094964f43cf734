# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions at a guest's console: what is typed when, and how they end."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from l4lab.errors import LabError
from l4lab.kernel import events
from l4lab.rig.rig import Rig
from l4lab.rig.session import PROMPT, Ending, Script, Session, Status, regex
from l4lab.user.asm import assemble
from l4lab.user.guests import misbehave, tinyos
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest
from l4lab.user.l4 import L4

SAY = """
start:  mov     esi, message
        mov     dx, COM1
.next:  lodsb
        test    al, al
        jz      .done
        out     dx, al
        jmp     .next
.done:
"""


class Typist(list[bytes]):
    """A terminal at which somebody has typed already; collects what is shown."""

    def __init__(self, typed: Sequence[bytes] = (), person: bool = False) -> None:
        self.typed = list(typed)
        self.person = person
        self.closed = False
        self.left = False
        self.lost = ""

    def read(self, seconds: float | None) -> bytes:
        if self.typed:
            return self.typed.pop(0)
        self.closed = True
        return b""

    def write(self, data: bytes) -> None:
        self.append(data)


def saying(message: str, then: str) -> FlatGuest:
    """A guest that says something, and then does something."""
    source = f'{SAY}{then}\nmessage: .asciz "{message}"'
    return FlatGuest.of(assemble(source, ORIGIN, constants=COM1), "Says something.")


def wait_for_ever(l4: L4) -> None:
    """A program to which nobody sends anything."""
    l4.wait()


def play(rig: Rig, *sends: str, until: str | None = None, timeout: float | None = 20.0) -> Ending:
    """A session without a terminal."""
    return Session(rig, Script.parse(until, sends, timeout)).run()


@pytest.fixture
def tiny() -> Rig:
    """A small system that takes commands at its prompt."""
    return Rig.for_flat_guest(tinyos.build(interactive=True))


def test_lines_are_typed_in_order_each_at_its_own_match(tiny: Rig) -> None:
    """Does each line wait for new output, so that every answer stands between its prompt and the next?"""
    ending = play(tiny, "tiny> =>nonsense", "tiny> =>help", until="tiny> ")
    shown = tiny.console.decode()

    assert Status.MATCHED is ending.status
    assert 3 == shown.count("tiny> ")
    assert shown.index("tiny> nonsense") < shown.index("tiny> help")


def test_until_is_met_at_the_first_match_without_lines_to_type(tiny: Rig) -> None:
    """Does the session end where the console matches, and not later?"""
    ending = play(tiny, until=r"^process: there are (\d+) primes")

    assert Ending(Status.MATCHED, "the console says 'process: there are 1229 primes'") == ending
    assert tiny.console.endswith(b"primes")


def test_the_same_script_gives_the_same_run() -> None:
    """Are lines typed at the same cycle in every run, whatever the host is doing meanwhile?"""

    def run(busy: bool) -> list[events.AnyEvent]:
        rig = Rig.for_flat_guest(tinyos.build(interactive=True))
        rig.on_output = lambda byte: time.sleep(0.001) if busy else None
        play(rig, "tiny> =>help", until="tiny> ")
        return list(rig.trace)

    assert run(busy=False) == run(busy=True)


@pytest.mark.parametrize("shown", ["/ # ", "~ # ", "root@host:/tmp# ", "user$ ", "no newline before/ # \x1b[6n"])
def test_a_prompt_is_known(shown: str) -> None:
    """Is the usual last line of a shell a prompt?"""
    assert regex(PROMPT).search(b"something\r\n" + shown.encode())


@pytest.mark.parametrize("shown", ["/ # ls", "CPU#0 is on", "100 %", "# a comment\r\n"])
def test_what_is_not_a_prompt_is_known(shown: str) -> None:
    """Is a mark within a line, or at the end of an earlier one, none?"""
    assert not regex(PROMPT).search(shown.encode())


def test_a_line_being_written_is_no_prompt() -> None:
    """`# ` in the midst of a line looks like a prompt for a moment: is nothing typed then?"""
    rig = Rig.for_flat_guest(saying("a # b\\r\\n", "cli\nhlt"))
    ending = play(rig, "too early")

    assert Status.ENDED is ending.status
    assert [] == list(rig.trace.select(events.DeviceInput))


def test_a_line_is_typed_before_the_same_prompt_ends_the_session() -> None:
    """Where a prompt is also what `until` looks for, does the line come first, and only new output count?"""
    rig = Rig.for_flat_guest(saying("/ # ", "jmp $"))
    ending = play(rig, "ls", until="/ #", timeout=1.0)

    assert Status.TIMEOUT is ending.status
    assert [b"ls\r"] == [e.data for e in rig.trace.select(events.DeviceInput) if isinstance(e, events.DeviceInput)]


@pytest.mark.parametrize(
    ("guest", "status", "why"),
    [
        (tinyos.build(), Status.ENDED, "powered off"),
        (saying("x", "cli\nhlt"), Status.ENDED, "halted"),
        (saying("x", "mov al, 0xFE\nout 0x64, al\njmp $"), Status.ENDED, "reset"),
        (saying("Kernel panic - not syncing: oh", "mov al, 0xFE\nout 0x64, al\njmp $"), Status.DIED, "panic: oh"),
        (saying("Kernel panic - not syncing: oh\\r\\n---[ end Kernel panic", "jmp $"), Status.DIED, "panic: oh"),
        (misbehave.triple_fault(), Status.DIED, "triple fault"),
        (misbehave.jump_nowhere(), Status.DIED, "beyond its memory"),
        (misbehave.spin(), Status.TIMEOUT, "seconds are over"),
    ],
)
def test_every_end_has_its_status(guest: FlatGuest, status: Status, why: str) -> None:
    """Is a clean end told from a death, and both from a guest that does nothing of the kind?"""
    ending = play(Rig.for_flat_guest(guest), until="never said", timeout=1.5)

    assert status is ending.status
    assert why in ending.why


def test_a_system_that_nothing_can_wake_does_not_keep_us_waiting() -> None:
    """Without a terminal, is a system in which everybody waits for ever told at once?"""
    rig = Rig(wait_for_ever, 32 << 20)
    begin = time.monotonic()
    ending = play(rig, until="never said", timeout=60)

    assert Status.TIMEOUT is ending.status
    assert "everybody waits" in ending.why
    assert time.monotonic() - begin < 10


def test_piped_input_waits_for_the_prompt_and_all_output_is_shown() -> None:
    """Is what comes from a pipe kept back while the guest is not listening, and shown is what the guest said?"""
    rig = Rig.for_flat_guest(saying("/ # ", "jmp $"))
    terminal = Typist([b"ls\n"])
    Session(rig, Script.parse(timeout=1.0), terminal).run()
    typed = [event for event in rig.trace.select(events.DeviceInput) if isinstance(event, events.DeviceInput)]
    shown = [event.at for event in rig.trace.select(events.DeviceOutput)]

    assert [b"ls\n"] == [event.data for event in typed]
    assert typed[0].at >= shown[-1]
    assert b"/ # " == b"".join(terminal)


def test_somebody_who_leaves_is_let_go(tiny: Rig) -> None:
    """Does the session end although the guest goes on?"""
    terminal = Typist([b""] * 3, person=True)
    terminal.left = True

    assert Status.INTERRUPTED is Session(tiny, Script(), terminal).run().status
    assert tiny.outcome is None


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("inf")])
def test_absurd_timeouts_are_refused(timeout: float) -> None:
    """Is a time that cannot be told as such?"""
    with pytest.raises(LabError, match="timeout"):
        Script.parse(timeout=timeout)


def test_a_wrong_expression_is_refused() -> None:
    """Is a pattern that does not compile told with its text?"""
    with pytest.raises(LabError, match=r"'\[' is not a regular expression"):
        Script.parse(until="[")
    with pytest.raises(LabError, match=r"'\(' is not a regular expression"):
        Script.parse(sends=["(=>text"])
