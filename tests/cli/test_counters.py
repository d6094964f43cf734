# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab counters`: what a trace tells of its virtual machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from l4lab.rig.named import boot
from l4lab.rig.trace import Trace
from l4lab.views.text import grouped


def counters(file: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "l4lab", "counters", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_trace_is_counted(tmp_path: Path) -> None:
    """Does the table say what the run's own statistics say, with the exits of both kinds by reason?"""
    rig = boot("greeting", paging="shadow")
    rig.run()
    rig.trace.save(tmp_path / "trace")
    [machine] = rig.stats()["virtual_machines"]
    done = counters(tmp_path / "trace")

    assert 0 == done.returncode, done.stderr
    for number in (machine["total"]["instructions"], machine["total"]["messages"], machine["total"]["vtlb_fills"]):
        assert f" {grouped(number)}" in done.stdout
    assert "exits told to the monitor:\nIO_INSTRUCTION" in done.stdout
    assert "exits ended in the kernel:\nEXCEPTION_OR_NMI" in done.stdout


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """No machine, a log without its beginning, no log at all: each has its word."""
    Trace().save(tmp_path / "empty")
    rig = boot("greeting")
    rig.run()
    short = Trace(limit=1000)
    for event in rig.trace:
        for _ in range(20):
            short.append(event)
        short.settle()
    short.save(tmp_path / "short")
    (tmp_path / "other").write_text("something else")

    assert "no virtual machine" in counters(tmp_path / "empty").stdout
    assert f"its first {short.dropped} events" in counters(tmp_path / "short").stderr
    other = counters(tmp_path / "other")
    assert (2, True) == (other.returncode, "is not a trace" in other.stderr)
