# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of commands at a terminal share: a process at a pseudo-terminal, and what is to be read there."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def at_a_terminal(command: list[str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a command at a terminal of its own: the user's end of that, and the process, which ends with the block."""
    user, terminal = pty.openpty()
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True)
    os.close(terminal)
    try:
        yield user, process
    finally:
        process.kill()
        process.wait()
        os.close(user)


def until(terminal: int, wanted: bytes, patience: float = 120.0) -> bytes:
    """What is on the terminal up to the wanted words; it may take so many seconds to come."""
    output, deadline = b"", time.monotonic() + patience
    while wanted not in output:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0.0))
        assert ready, output
        output += os.read(terminal, 4096)
    return output


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken so far: proc(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
