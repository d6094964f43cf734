# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab demo` as a user has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from l4lab.abi.vm import ExitReason
from l4lab.cli import demo_many
from l4lab.user.guests import tinyos


def demo(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """`l4lab demo` without network, cache or any tool."""
    nothing = {"PATH": "/nonexistent", "L4LAB_CACHE": str(tmp_path / "none")}
    return subprocess.run(
        [sys.executable, "-m", "l4lab", "demo", *arguments],
        env=os.environ | nothing,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )


def test_the_demo_shows_the_guest_and_the_exits_it_caused(tmp_path: Path) -> None:
    """Without network, cache or any tool: the guest's whole output, a table of exits, and the way one travelled?"""
    done = demo(tmp_path)
    output = done.stdout.decode()

    assert (0, b"") == (done.returncode, done.stderr)
    assert tinyos.expected_console("GenuineIntel") in output
    for reason in (ExitReason.CPUID, ExitReason.IO_INSTRUCTION, ExitReason.HLT):
        assert f"\n{reason.name} " in output
    story = output.index("guest → kernel")
    assert story < output.index("kernel → monitor") < output.index("monitor → kernel") < output.index("kernel → guest")


def test_the_link_demo_shows_both_machines_and_what_went_between(tmp_path: Path) -> None:
    """Are the lines of both machines shown, and the messages of the line between them?"""
    done = demo(tmp_path, "link")
    output = done.stdout.decode()

    assert (0, b"") == (done.returncode, done.stderr)
    for line in demo_many.LINES:
        assert f"right: there came: {line}\n" in output
        assert f"left: back came: {line[::-1]}\n" in output
    assert output.count("left → right") == output.count("right → left") + 1 >= len(demo_many.LINES) + 1


def test_the_smp_demo_shows_what_a_lock_is_for(tmp_path: Path) -> None:
    """Are the sums exact with a lock, and too small without?"""
    done = demo(tmp_path, "smp")
    output = done.stdout.decode()

    assert (0, b"") == (done.returncode, done.stderr)
    for paging in ("nested", "shadow"):
        assert f"with a lock, {paging} paging: {2 * demo_many.TURNS}\n" in output
        assert int(output.split(f"without, {paging} paging: ")[1].split()[0]) < 2 * demo_many.TURNS


def test_an_unknown_demo_is_told_in_one_line(tmp_path: Path) -> None:
    """Does a wrong name list the right ones?"""
    done = demo(tmp_path, "lynk")

    assert 2 == done.returncode
    assert b"os, link, smp" in done.stderr
