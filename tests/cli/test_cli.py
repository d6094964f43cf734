# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a user has it: in a process of its own, judged by its output and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from l4lab.guests import guest

COMMANDS = ["lab", "boot", "counters", "guest", "demo", "bench"]


def l4lab(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "l4lab", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_help_names_every_command() -> None:
    """`l4lab --help` lists all commands and ends well."""
    done = l4lab("--help")

    assert 0 == done.returncode
    assert [] == [command for command in COMMANDS if command not in done.stdout]


@pytest.mark.parametrize("command", [[name] for name in COMMANDS] + [["guest", "get"], ["guest", "list"]])
def test_every_command_has_help(command: list[str]) -> None:
    """`--help` after any command explains it and ends well."""
    done = l4lab(*command, "--help")

    assert (0, "") == (done.returncode, done.stderr)
    assert "Usage" in done.stdout


def test_the_version_is_told() -> None:
    """`--version` names the program, in one line."""
    done = l4lab("--version")

    assert 0 == done.returncode
    assert done.stdout.startswith("l4lab")
    assert 1 == len(done.stdout.splitlines())


@pytest.mark.parametrize(
    "arguments", [["guest", "get", "plan9"], ["lab", "/nonexistent"], ["boot"], ["no-such-command"], ["--no-such"]]
)
def test_what_cannot_be_used_is_status_2(arguments: list[str]) -> None:
    """Wrong arguments end with status 2, something on stderr, and no traceback."""
    done = l4lab(*arguments)

    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_lab_error_is_one_line(tmp_path: Path) -> None:
    """What the user can put right is told in exactly one line."""
    done = l4lab("guest", "get", "linux", PATH="/nonexistent", L4LAB_CACHE=str(tmp_path))

    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert done.stderr.startswith("l4lab: cannot obtain Linux: there is no apt-get")


@pytest.mark.linux
def test_guest_get_tells_where_it_is_and_how_to_boot_it() -> None:
    """Kernel, initrd and parameters are printed on stdout, where a script can read them."""
    linux = guest.get("linux")

    done = l4lab("guest", "get", "linux")

    assert 0 == done.returncode
    assert f"kernel  {linux.kernel}" in done.stdout
    assert f"initrd  {linux.initrd}" in done.stdout
    assert f"append  {linux.append}" in done.stdout


def test_guest_list_tells_what_is_here(tmp_path: Path) -> None:
    """The list says of each guest whether it is here, and how it would come here."""
    assert "linux" in l4lab("guest", "list").stdout
    assert "not here; l4lab guest get linux" in l4lab("guest", "list", L4LAB_CACHE=str(tmp_path)).stdout


@pytest.mark.parametrize(("typed", "offered"), [("l4lab gue", "guest"), ("l4lab guest get li", "linux")])
def test_the_shell_completes_commands_and_guests(typed: str, offered: str) -> None:
    """Bash's completion offers the commands, and the guests after `guest get`."""
    program = "import sys; sys.argv = ['l4lab']; from l4lab.cli import main; main()"
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_L4LAB_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | words, capture_output=True, text=True, check=False
    )

    assert [offered] == done.stdout.split()


def test_the_front_needs_neither_engine_nor_jupyter() -> None:
    """Help and completion answer without loading the heavy parts, in under 0.3 s of CPU."""
    check = (
        "import json, sys, time, l4lab, l4lab.cli\n"
        "print(json.dumps([time.process_time(), sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    cpu_time, modules = json.loads(done.stdout)

    assert not {"unicorn", "jupyterlab", "jupyter_server", "IPython", "ipywidgets", "anywidget"} & set(modules)
    assert cpu_time < 0.3


def status_of(url: str, patience: float = 30.0) -> int:
    """The HTTP status; Jupyter tells its URL a moment before it listens there, so a refusal is asked again."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=patience) as answer:
                return int(answer.status)
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_lab_without_a_browser_prints_a_url_that_answers(tmp_path: Path) -> None:
    """`lab --no-browser` says where the lab is, the lab is there, and it ends when told to."""
    command = [sys.executable, "-m", "l4lab", "lab", "--no-browser", "--port", "18888", str(tmp_path)]
    lab = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert lab.stderr is not None
    try:
        words = (word for line in lab.stderr for word in line.split())
        url = next(word for word in words if word.startswith("http://") and "token" in word)

        assert 200 == status_of(url)
        lab.terminate()
        lab.communicate(timeout=30)
        assert 0 == lab.returncode
    finally:
        lab.kill()
        lab.communicate()
