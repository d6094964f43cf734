# SPDX-License-Identifier: GPL-2.0-or-later
"""The example programs: in C, built and run as a user does it, and the same in Python."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from l4lab.rig.rig import Rig

EXAMPLES = Path(__file__).parents[2] / "examples"
# What each prints, its lines of input, and a few of the lines that it must print.
PROGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pingpong": ((), ("100 round trips with 63 words: the words add up to 6300", "pingpong: done")),
    "pager": ((), ("page fault at 10002000: write", "page 0 was written", "the client's words add up to 6")),
    "serial": (("hello there", "", "quit"), ("11 characters: hello there", "0 characters: ", "serial: done")),
    "memserver": ((), ("server: nothing is left", "client: the page is clean", "memserver: done")),
}
IN_PYTHON_ONLY = {"monitor": ((), (">", "monitor: after exit HLT the sum is 62", "monitor: done"))}


def in_c(name: str, inputs: tuple[str, ...], folder: Path) -> str:
    """What the program in C prints under `l4lab exec`."""
    lab, image = [sys.executable, "-m", "l4lab"], folder / "program.elf"
    subprocess.run([*lab, "cc", str(EXAMPLES / f"{name}.c"), "-o", str(image)], check=True)
    sends = [word for line in inputs for word in ("--send", line)]
    line = [*lab, "exec", str(image), "--timeout", "60", *sends]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def in_python(name: str, inputs: tuple[str, ...]) -> str:
    """What the program in Python prints."""
    rig: Rig = runpy.run_path(str(EXAMPLES / f"{name}.py"))["system"]()
    for line in inputs:
        rig.run()
        rig.type(line.encode() + b"\r")
    assert "the root task has ended" == rig.run().detail
    return rig.console.decode()


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_print_the_same(name: str, tmp_path: Path) -> None:
    """Does a program behave the same whether it is native or hosted, and does it do what it says?"""
    inputs, wanted = PROGRAMS[name]
    printed = in_c(name, inputs, tmp_path)

    assert printed == in_python(name, inputs)
    assert set(wanted) <= set(printed.splitlines())


@pytest.mark.parametrize("name", IN_PYTHON_ONLY)
def test_a_program_in_python_does_what_it_says(name: str) -> None:
    """Does it print what it is there for?"""
    inputs, wanted = IN_PYTHON_ONLY[name]

    assert set(wanted) <= set(in_python(name, inputs).splitlines())


@pytest.mark.parametrize("name", [*PROGRAMS, *IN_PYTHON_ONLY])
def test_each_runs_as_a_script(name: str) -> None:
    """Does `python examples/NAME.py` run it to its end?"""
    done = subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, check=True)

    assert done.stdout.endswith(f"{name}: done\n")


def test_no_example_is_forgotten() -> None:
    """Is every file among the examples one of these programs?"""
    in_both = {f"{name}{suffix}" for name in PROGRAMS for suffix in (".c", ".py")}

    assert in_both | {f"{name}.py" for name in IN_PYTHON_ONLY} == {
        file.name for file in EXAMPLES.iterdir() if file.is_file()
    }
