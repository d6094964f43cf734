# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that do not come through: whatever happens, there is a report, soon, and no traceback of ours."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from l4lab.errors import LabError
from l4lab.grader import check, show
from l4lab.grader.exercise import find
from l4lab.grader.strip import solution_of

SOLUTION = solution_of("01_virtual_machines/first_exit.py").read_text()


def in_handler(code: str) -> str:
    """The solution with this in front of what `serial` does."""
    return SOLUTION.replace("    access = IoAccess", f"    {code}\n    access = IoAccess")


def on_top(code: str) -> str:
    """The solution with this executed when the file is loaded."""
    return SOLUTION.replace('VENDOR = "', f'{code}\nVENDOR = "')


LOOP = "while True: pass"
STUBBORN = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))"

ACCIDENTS = {
    "endless loop": (in_handler(LOOP), ["more than 3 s", "line ", "in serial", LOOP]),
    "endless loop at the top": (on_top(LOOP), ["more than 3 s", "in <module>"]),
    "a loop that no signal ends": (in_handler(f"{STUBBORN}\n    {LOOP}"), ["more than 3 s", "did not stop"]),
    "waits for ever": (in_handler("import time; time.sleep(10000)"), ["more than 3 s", "time.sleep"]),
    "memory hog": (in_handler("hog = [bytearray(1 << 20) for _ in range(1 << 20)]"), ["more than 256 MiB"]),
    "memory hog at the top": ("hog = 'x' * (1 << 40)\n", ["more than 256 MiB"]),
    "not Python": (SOLUTION.replace("def serial(", "def serial(("), ["not valid Python", "line ", "^"]),
    "not text": ("\0", ["not valid Python"]),
    "raises": (in_handler("[][1]"), ["raised IndexError", "in serial", "list index out of range"]),
    "raises at the top": ("import no_such_module\n", ["raised ModuleNotFoundError", "no_such_module"]),
    "raises what cannot be shown": (
        in_handler("raise type('Odd', (Exception,), {'__str__': lambda self: 1 // 0})()"), ["raised Odd"]
    ),
    "sys.exit": (in_handler("import sys; sys.exit(0)"), ["ends the program", "sys.exit(0)"]),
    "exit at the top": ("raise SystemExit\n", ["ends the program"]),
    "os._exit": (in_handler("import os; os._exit(0)"), ["ended (status 0)", "os._exit"]),
    "kills itself": (in_handler("import os; os.kill(os.getpid(), 11)"), ["SIGSEGV"]),
    "calls itself": (in_handler("serial(fault, reply, console)"), ["calls itself without end", "in serial"]),
    "asks for input": (in_handler("input()"), ["raised EOFError"]),
    "no such function": (SOLUTION.replace("def serial", "def cereal"), ["no function serial(fault, reply, console)"]),
    "not a function": (SOLUTION + "\nserial = 3\n", ["no function serial"]),
    "too few parameters": (SOLUTION.replace(", console: Console", ""), ["def serial(fault, reply, console):"]),
    "empty": ("", ["no function cpuid(fault, reply)"]),
    "too deeply nested": ("x = " + "-" * 20_000 + "1\n", ["nested too deeply"]),
    "too long a chain": ("x = y" + ".z" * 20_000 + "\n", ["nested too deeply"]),
    "raises no text": (in_handler("raise ValueError('\\udc80')"), ["raised ValueError", r"\udc80"]),
    "sends text": (in_handler("console.send('a')"), ["raised ValueError", "one byte", "'a'"]),
}  # fmt: skip


@pytest.mark.parametrize(("source", "told"), ACCIDENTS.values(), ids=list(ACCIDENTS))
def test_an_accident_is_told(tmp_path: Path, source: str, told: list[str]) -> None:
    """The report says what happened, in text and in HTML, and shows the student's lines and none of ours."""
    file = tmp_path / "mine.py"
    file.write_text(source)
    start = time.monotonic()

    report = check("first_exit", file)

    assert time.monotonic() - start < 60
    assert not report.passed
    assert [] == [words for words in told if words not in repr(report)], repr(report)
    assert "l4lab/" not in repr(report)
    assert "Hint" in report._repr_html_()


def test_what_the_file_prints_is_bounded_and_shown(tmp_path: Path) -> None:
    """A solution that prints passes; what it printed is shown, as much as one may want to read."""
    file = tmp_path / "mine.py"
    file.write_text(in_handler("print('garbage \\x00\\x1b[31m' * 10000)"))

    report = check("first_exit", file)

    assert report.passed
    assert "garbage" in repr(report)
    assert len(repr(report)) < 10_000


@pytest.mark.slow
def test_an_endless_printer_ends(tmp_path: Path) -> None:
    """A flood of output is not kept, and not waited for."""
    file = tmp_path / "mine.py"
    file.write_text("while True: print('x' * 100000)\n")

    assert "more than 3 s" in repr(check("first_exit", file))


def test_a_child_left_behind_does_not_hold_the_check(tmp_path: Path) -> None:
    """What the file started is gone when the report is there, although it holds the output open."""
    file = tmp_path / "mine.py"
    note = tmp_path / "child"
    start = "import subprocess; child = subprocess.Popen(['sleep', '1000'])"
    file.write_text(on_top(f"{start}; open({str(note)!r}, 'w').write(str(child.pid))"))

    report = check("first_exit", file)

    assert report.passed, repr(report)
    assert is_gone(int(note.read_text()))


def is_gone(pid: int, patience: float = 10.0) -> bool:
    """Has a killed process ended? A zombie has: whoever adopted it may take its time to notice."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if state.stdout.strip()[:1] in ("", "Z"):
            return True
        time.sleep(0.05)
    return False


def test_threads_left_behind_do_not_hold_the_check(tmp_path: Path) -> None:
    """A thread that never ends does not keep the worker alive."""
    file = tmp_path / "mine.py"
    file.write_text(on_top("import threading; threading.Thread(target=threading.Event().wait).start()"))

    assert check("first_exit", file).passed


def test_the_file_finds_no_modules_of_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named like a module of the library, where the check is called, breaks nothing."""
    (tmp_path / "random.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)

    assert check("first_exit", solution_of("01_virtual_machines/first_exit.py")).passed


@pytest.mark.parametrize("name", [b"os.py", b"sys.py", b"l4lab.py", b"no\xff\xfetext", b"with space"])
def test_a_solution_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    """Does a file pass that is called like a module of Python's or of ours, or like no text at all?"""
    file = tmp_path / os.fsdecode(name)
    file.write_text(
        on_top("import dataclasses, os\n@dataclasses.dataclass\nclass Mine:\n    at: 'os.PathLike' = None\n")
    )

    assert check("first_exit", file).passed
    file.write_text(in_handler("[][1]"))
    assert "raised IndexError" in repr(check("first_exit", file))


def test_a_file_that_is_not_there_is_told() -> None:
    """A missing file and an unknown exercise are the caller's mistakes."""
    with pytest.raises(LabError, match="there is no file .*nowhere.py"):
        check("first_exit", "nowhere.py")
    with pytest.raises(LabError, match="there is: first_exit"):
        find("last_exit")


def test_show_has_pictures_of_what_happens() -> None:
    """`show` draws the conversation, the exits and the console, and its text says the same."""
    showing = show("first_exit")

    assert {"messages", "guest", "console"} == set(showing.result.pictures)
    assert "<svg" in showing._repr_html_()
    assert "CPUID" in repr(showing)
