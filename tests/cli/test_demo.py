# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab demo` as a user has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from l4lab.abi.vm import ExitReason
from l4lab.user.guests import tinyos


def test_the_demo_shows_the_guest_and_the_exits_it_caused(tmp_path: Path) -> None:
    """Without network, cache or any tool: the guest's whole output, a table of exits, and the way one travelled?"""
    nothing = {"PATH": "/nonexistent", "L4LAB_CACHE": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "l4lab", "demo"],
        env=os.environ | nothing,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )
    output = done.stdout.decode()

    assert (0, b"") == (done.returncode, done.stderr)
    assert tinyos.expected_console("GenuineIntel") in output
    for reason in (ExitReason.CPUID, ExitReason.IO_INSTRUCTION, ExitReason.HLT):
        assert f"\n{reason.name} " in output
    story = output.index("guest → kernel")
    assert story < output.index("kernel → monitor") < output.index("monitor → kernel") < output.index("kernel → guest")
