# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab check` and `l4lab exercises`, judged by their output and exit status."""

from __future__ import annotations

import subprocess
import sys

import pytest

from l4lab.grader.strip import solution_of

SOLUTION = str(solution_of("01_virtual_machines/first_exit.py"))


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["check", "first_exit", SOLUTION], 0, "first_exit: passed. The guest says: Hello from YourNameHere, guest!"),
        (["check", "first_exit"], 1, "first_exit: not yet"),
        (["check", "last_exit"], 2, "there is no exercise named 'last_exit'; there is: first_exit"),
        (["check", "first_exit", "nowhere.py"], 2, "there is no file nowhere.py"),
        (["exercises"], 0, "first_exit.py"),
    ],
)
def test_the_exit_status_tells_what_became_of_it(arguments: list[str], status: int, told: str) -> None:
    """0 passed, 1 not yet, 2 what cannot be used; the reason is told, without a traceback."""
    command = [sys.executable, "-m", "l4lab", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert status == done.returncode, done.stderr
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
