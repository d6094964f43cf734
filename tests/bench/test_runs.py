# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs that were saved, and what `l4lab bench --compare` makes of two of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.bench import runs
from l4lab.bench.figures import LESS, MORE, Figure
from l4lab.cli import main

COST = Figure("a cost", "Group", 4.0, "ratio", LESS, 5.0, 0.4, 0.1, 5)
SPEED = Figure("a speed", "Group", 0.8, "ratio", MORE, 0.5, 0.8, 1.0, 5)
SIZE = Figure("a size", "Group", 40.0, "MiB", LESS, 50.0, rounds=1)
RUN = runs.SavedRun(runs.Computer(2, "3.11.0", "Linux"), (COST, SPEED, SIZE))


class Done(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def bench(*arguments: str | Path) -> Done:
    """Run `l4lab bench` to its end, in this process: all of the command but the interpreter's start."""
    said, complained = io.StringIO(), io.StringIO()
    command = mock.patch.object(sys, "argv", ["l4lab", "bench", *map(str, arguments)])
    with redirect_stdout(said), redirect_stderr(complained), command, pytest.raises(SystemExit) as ended:
        main()
    return Done(int(ended.value.code or 0), said.getvalue(), complained.getvalue())


def with_value(name: str, value: float) -> runs.SavedRun:
    """The run with another value for one figure."""
    changed = (msgspec.structs.replace(f, value=value) if f.name == name else f for f in RUN.figures)
    return msgspec.structs.replace(RUN, figures=tuple(changed))


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A run that was saved."""
    runs.write(tmp_path / "before.json", RUN)
    return tmp_path / "before.json"


def compared(before: Path, run: runs.SavedRun) -> Done:
    """Compare a run with the one before."""
    now = before.parent / "now.json"
    runs.write(now, run)
    return bench("--saved", now, "--compare", before)


def test_what_is_saved_is_read(before: Path) -> None:
    """A run comes back from its file as it was."""
    assert runs.read(before) == RUN


def test_equal_runs(before: Path) -> None:
    """A run is no worse than itself."""
    done = compared(before, RUN)

    assert 0 == done.returncode
    assert "WORSE" not in done.stdout
    assert "3 figures compared, none worse by more than 10%." in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("a cost", 4.5, "WORSE: a cost: 4.5, was 4 (12% worse)"),
        ("a speed", 0.7, "WORSE: a speed: 0.7, was 0.8 (14% worse)"),
        ("a size", 80.0, "WORSE: a size: 80 MiB, was 40 MiB (100% worse)"),
    ],
)
def test_a_planted_regression_is_named(name: str, value: float, told: str, before: Path) -> None:
    """Of a cost more is worse, of a speed less: what became worse by more than a tenth is named, and nothing else."""
    done = compared(before, with_value(name, value))

    assert 1 == done.returncode
    assert [told] == [line for line in done.stdout.splitlines() if line.startswith("WORSE")]


@pytest.mark.parametrize(
    ("name", "value"), [("a cost", 4.39), ("a speed", 0.73), ("a cost", 1.0), ("a speed", 9.0), ("a size", 0.0)]
)
def test_what_is_no_regression(name: str, value: float, before: Path) -> None:
    """Up to a tenth is chance, and what became better is not worse."""
    assert 0 == compared(before, with_value(name, value)).returncode


positive = st.floats(1e-6, 1e6)


@given(positive, positive, st.sampled_from([LESS, MORE]))
def test_one_of_two_is_worse_at_most(one: float, other: float, better: Any) -> None:
    """If a run is worse than another, that one is not worse than it, and no figure is worse than itself."""
    figures = [msgspec.structs.replace(COST, value=value, better=better) for value in (one, other)]

    assert not (runs.Change(*figures).worse and runs.Change(*reversed(figures)).worse)
    assert not runs.Change(figures[0], figures[0]).worse


def test_figures_that_only_one_run_has(before: Path) -> None:
    """What cannot be compared is counted, and fails nothing."""
    done = compared(before, msgspec.structs.replace(RUN, figures=(COST, msgspec.structs.replace(SIZE, name="new"))))

    assert 0 == done.returncode
    assert "1 figures compared, none worse" in done.stdout
    assert "2 figures of the saved run were not measured" in done.stdout


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """The file with something changed in its records."""

    def made(data: bytes) -> bytes:
        record = json.loads(data)
        change(record)
        return json.dumps(record).encode()

    return made


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda data: data[: len(data) // 2], "is damaged"),
        (lambda data: b"", "is damaged"),
        (lambda data: b"\xff\xfe\x00", "is damaged"),
        (lambda data: b"[" * 100_000, "is damaged"),
        (lambda data: b"[1, 2]", "is damaged"),
        (damaged(lambda record: record.pop("format")), "older lab"),
        (lambda data: b'{"machine": {"cpus": 2}, "figures": [{"name": "x", "met": true}]}', "older lab"),
        (damaged(lambda record: record.update(format=99)), "newer lab"),
        (damaged(lambda record: record["figures"][0].update(value="much")), "is damaged"),
        (damaged(lambda record: record["figures"][0].update(value=float("inf"))), "is damaged"),
        (damaged(lambda record: record["figures"][0].update(value=float("nan"))), "is damaged"),
        (damaged(lambda record: record["figures"][0].pop("name")), "is damaged"),
        (damaged(lambda record: record.update(figures=[])), "none of these figures"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(made: Callable[[bytes], bytes], complaint: str, before: Path) -> None:
    """What is damaged, or of another lab, is told in one line with status 2, and never with a traceback."""
    now = before.parent / "now.json"
    now.write_bytes(before.read_bytes())
    before.write_bytes(made(before.read_bytes()))
    done = bench("--saved", now, "--compare", before)

    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert complaint in done.stderr
    assert str(before) in done.stderr


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """Missing files, folders, and places where nothing can be written are told before anything is measured."""
    for arguments in (
        ("--compare", tmp_path / "missing.json"),
        ("--compare", tmp_path),
        ("--saved", tmp_path / "missing.json"),
        ("--json", tmp_path / "no" / "file.json"),
        ("--html", tmp_path / "no" / "file.html"),
        ("--only", "no figure is called so"),
        ("--saved", tmp_path / "missing.json", "--only", "x"),
    ):
        done = bench(*arguments)
        assert (2, 1) == (done.returncode, len(done.stderr.splitlines())), arguments
        assert not done.stdout


def test_measured_saved_drawn_and_compared(tmp_path: Path) -> None:
    """A workload is measured against both others, comes to a checksum, and the run can be read and drawn."""
    run, page = tmp_path / "run.json", tmp_path / "page.html"
    command = [sys.executable, "-m", "l4lab", "bench", "--only", "x87", "--rounds", "1", "--json", run, "--html", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
    figures = runs.read(run).figures
    assert ["x87 floating point: lab / QEMU", "x87 floating point: lab / bare engine"] == [f.name for f in figures]
    assert 1 == len({figure.checksum for figure in figures})
    assert all(figure.value > 0 and figure.ours > 0 and figure.theirs > 0 for figure in figures)
    assert all(figure.name in done.stdout and figure.name in page.read_text() for figure in figures)
    assert 0 == bench("--saved", run, "--compare", run).returncode


def test_without_qemu(tmp_path: Path) -> None:
    """Where QEMU is not installed, it is said, and the rest is measured."""
    command = [sys.executable, "-m", "l4lab", "bench", "--only", "x87", "--rounds", "1"]
    done = subprocess.run(
        command, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode
    assert "qemu-system-i386 is not installed" in done.stderr
    assert "lab / QEMU" not in done.stdout
    assert "lab / bare engine" in done.stdout
