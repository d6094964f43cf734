# SPDX-License-Identifier: GPL-2.0-or-later
"""The command in surroundings that are broken: signals, streams that nobody reads, full disks, names of any bytes.

Whatever they are, there is no traceback, the terminal is as it was, and the files that can be written are there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from l4lab.cli import app
from l4lab.errors import LabError
from l4lab.rig.trace import Trace
from l4lab.user.asm import assemble
from l4lab.user.guests import tinyos
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest, multiboot_image
from tests.cli.terminal import at_a_terminal, until

L4LAB = [sys.executable, "-m", "l4lab"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that says much, and ends by itself."""
    file = tmp_path_factory.mktemp("image") / "tinyos.elf"
    file.write_bytes(multiboot_image(tinyos.build()))
    return file


def endless(file: Path, waits: bool) -> Path:
    """A guest that says something and then goes on for ever, or waits for what never comes."""
    source = "start: mov dx, COM1\nmov al, 'R'\nout dx, al\n"
    source += "mov al, 0xff\nout 0x21, al\nsti\nagain: hlt\njmp again" if waits else "again: jmp again"
    guest = FlatGuest.of(assemble(source, ORIGIN, constants=COM1), "Goes on.")
    file.write_bytes(multiboot_image(guest))
    return file


def run(
    *arguments: str | bytes | Path, prepare: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command with its output in pipes, after something was done in its process."""
    return subprocess.run(
        [*L4LAB, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | environment,
        preexec_fn=prepare,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("number", "status", "waits"),
    [
        (signal.SIGTERM, 143, False),
        (signal.SIGTERM, 143, True),
        (signal.SIGHUP, 129, False),
        (signal.SIGINT, 130, True),
    ],
)
def test_a_signal_ends_the_session_and_leaves_all_in_order(
    tmp_path: Path, number: signal.Signals, status: int, waits: bool
) -> None:
    """Is the terminal as it was, are trace, figures and verdict there, and is the signal in the exit status?"""
    trace, stats = tmp_path / "trace", tmp_path / "stats"
    image = endless(tmp_path / "endless.elf", waits)
    line = [*L4LAB, "boot", str(image), "--trace", str(trace), "--stats", str(stats), "--timeout", "60"]
    with at_a_terminal(line) as (user, process):
        before = termios.tcgetattr(user)
        until(user, b"leaves.\r\n")
        until(user, b"R")
        assert before != termios.tcgetattr(user)
        process.send_signal(number)
        said = until(user, b"FS ")

        assert status == process.wait(60)
        assert before == termios.tcgetattr(user)
    assert len(Trace.load(trace)) > 0
    assert json.loads(stats.read_text())["instructions"] > 0
    assert b"it was interrupted: " in said
    assert b"Traceback" not in said


def test_who_stops_reading_ends_the_session(image: Path, tmp_path: Path) -> None:
    """Is a closed pipe the end, with the status that a shell knows for it, and are the files written?"""
    trace = tmp_path / "trace"
    reading, writing = os.pipe()
    os.close(reading)
    line = [*L4LAB, "boot", str(image), "--trace", str(trace), "--timeout", "60"]
    done = subprocess.run(
        line, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)

    assert 141 == done.returncode
    assert "broken pipe" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(Trace.load(trace)) > 0


@pytest.mark.parametrize("arguments", [["exercises"], ["demo", "link"], ["--help"]])
def test_output_that_cannot_be_written_is_told_in_one_line(arguments: list[str]) -> None:
    """Is a full disk told in words by commands of every kind?"""
    with open("/dev/full", "w") as full:
        line = [*L4LAB, *arguments]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (2, 1) == (done.returncode, len(done.stderr.splitlines())), done.stderr
    assert "no space left" in done.stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)])
def test_streams_may_be_closed(image: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    """Does a guest run to its end without them, and does nothing else end up in the trace?"""
    trace = tmp_path / "trace"

    def prepare() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = run("boot", image, "--trace", trace, "--until", "paging is on", "--timeout", "60", prepare=prepare)

    assert 0 == done.returncode, done.stderr
    assert len(Trace.load(trace)) > 0


def test_output_need_not_be_utf_8() -> None:
    """Are signs that an encoding has not told by their numbers?"""
    done = run("demo", "link", PYTHONIOENCODING="latin-1")

    assert (0, "") == (done.returncode, done.stderr)
    assert r"left \u2192 right" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["boot", "{}"],
            ["exec", "{}"],
            ["counters", "{}"],
            ["cc", "{}"],
            ["check", "first_exit", "{}"],
            ["lab", "{}"],
        ),
        *(["boot", "--restore", "{}"], ["boot", "--disk", "{}"], ["boot", "{}", "--stats", "{}"]),
    ],
    ids=" ".join,
)
def test_a_name_may_be_anything(arguments: list[str]) -> None:
    """Are names that are too long, or no text, or those of devices without an end, told in words and at once?"""
    for name in (b"n" * 256, b"no\xff\xfetext", b"/dev/zero", b"/"):
        if (name, arguments[0]) != (b"/", "lab"):  # a directory is what it wants
            with pytest.raises(LabError):
                app([argument.replace("{}", os.fsdecode(name)) for argument in arguments], standalone_mode=False)


def test_arguments_are_bytes(image: Path) -> None:
    """Does what is no UTF-8 reach the guest and the search as it was given?"""
    done = run(
        "boot", image, "--module", bytes(image) + b"=\xff", "--send", b"on=>\xfe", "--until", b"\xff|powering off"
    )

    assert 0 == done.returncode, done.stderr
    assert "matched" in done.stderr


def limited(size: int) -> Callable[[], None]:
    """No file of the process may be larger."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_file_that_cannot_be_written_loses_no_other(image: Path, tmp_path: Path) -> None:
    """Is the previous version of the one still there, is the other written, and is it told with a status?"""
    trace, stats = tmp_path / "trace", tmp_path / "stats"
    for file in (trace, stats):
        file.write_bytes(b"before")
    line = ("boot", image, "--trace", trace, "--stats", stats, "--until", "primes", "--timeout", "60")
    done = run(*line, prepare=limited(8192))

    assert 2 == done.returncode
    assert "the console matched" in done.stderr
    assert f"cannot write {trace}: file too large" in done.stderr
    assert b"before" == trace.read_bytes()
    assert json.loads(stats.read_text())["instructions"] > 0
    assert {trace, stats} == set(tmp_path.iterdir())


def test_a_guest_that_cannot_be_saved_loses_no_trace(image: Path, tmp_path: Path) -> None:
    """Are the trace and the verdict there, and the guest that was saved before?"""
    saved, trace = tmp_path / "guest", tmp_path / "trace"
    saved.write_bytes(b"before")
    line = ("boot", image, "--save-at", "primes", saved, "--trace", trace, "--timeout", "60")
    done = run(*line, prepare=limited(6000))

    assert 2 == done.returncode
    assert "the console matched" in done.stderr
    assert f"cannot write {saved}" in done.stderr
    assert b"before" == saved.read_bytes()
