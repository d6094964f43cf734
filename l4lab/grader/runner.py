# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the worker process and takes what it has to say, whatever the student's file does to it.

The process has no input, a directory of its own that is thrown away, bounded output, and a deadline; at the end its
whole process group is killed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from l4lab import files
from l4lab.errors import LabError
from l4lab.grader.exercise import Exercise
from l4lab.grader.result import Result, Trouble

STARTUP = 30.0  # seconds for the lab itself, on a slow and busy machine
WALL = 5  # times the CPU time of the student's file: a little more than the worker allows itself
PRINTED = 4000  # bytes of the file's own output that are kept
ANSWER = 4 << 20  # bytes of the result
PIECE = 65536


def run(exercise: Exercise, path: Path) -> tuple[Result, str]:
    """Run a student's file; what was found, and what the file printed."""
    if not os.path.isfile(path):  # unlike the method, it takes any name
        raise LabError(f"there is no file {path}; name the one with your solution")
    files.read(path, "the file with your solution")  # the worker could not tell why it cannot
    reading, writing = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="l4lab-") as scratch:
            process = _start(exercise, path.resolve(), writing, scratch)
            os.close(writing)
            writing = -1
            try:
                printed, said = _listen(process, reading, STARTUP + WALL * exercise.seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    try:
        result = msgspec.json.decode(said, type=Result)
    except msgspec.DecodeError:
        result = Result(trouble=_ending(process.returncode, exercise, printed))
    return result, printed


def _start(exercise: Exercise, path: Path, descriptor: int, scratch: str) -> subprocess.Popen[bytes]:
    """The process, the leader of its own group. It finds this very package, and none of the student's (-P)."""
    search = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "l4lab.grader.worker", exercise.name, str(path), str(descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(descriptor,),
        cwd=scratch,
        env=os.environ | {"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
        start_new_session=True,
    )


def _listen(process: subprocess.Popen[bytes], reading: int, patience: float) -> tuple[str, bytes]:
    """What the process prints and what it answers, until it has ended; what is too much is read and thrown away."""
    assert process.stdout is not None
    kept = {process.stdout.fileno(): bytearray(), reading: bytearray()}
    room = {process.stdout.fileno(): PRINTED, reading: ANSWER}
    deadline = time.monotonic() + patience
    with selectors.DefaultSelector() as selector, process.stdout:
        for descriptor in kept:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            ready = selector.select(0.1)
            if not ready and process.poll() is not None:
                break  # a child it left behind may keep the pipes open for ever
            for key, _ in ready:
                data = os.read(key.fd, PIECE)
                if not data:
                    selector.unregister(key.fd)
                kept[key.fd] += data[: max(room[key.fd] - len(kept[key.fd]), 0)]
        printed = bytes(kept[process.stdout.fileno()]).decode("utf-8", "replace")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(deadline - time.monotonic(), 0.1))
    return printed, bytes(kept[reading])


def _ending(status: int | None, exercise: Exercise, printed: str) -> Trouble:
    """Why a process may have ended without a result."""
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return Trouble(
            f"The file took more than {exercise.seconds:g} s and did not stop when told to. "
            "Is there a loop that never ends, or an `except:` that catches everything?"
        )
    if status is not None and status < 0:
        return Trouble(
            f"The process was ended by {signal.Signals(-status).name}. It may have taken more than "
            f"{exercise.memory_mib} MiB of memory: does something grow without end?"
        )
    return Trouble(
        f"The process ended (status {status}) before the checks were done. "
        "Remove what ends the whole program, such as os._exit; a handler simply returns."
    )
