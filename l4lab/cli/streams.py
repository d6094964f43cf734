# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard input, output and error, which whoever starts the command may have closed, filled up or led anywhere.

Lives here: that all three are there, take any text, and that nothing breaks when nobody reads them any more. A command
that has lost its output still does what else it was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import Final, TextIO

from l4lab.files import reason

UNUSABLE: Final = 2  # exit status for arguments or files that cannot be used; typer gives it to a wrong option
LOST: Final = 128 + signal.SIGPIPE  # exit status: as a shell tells of a program that SIGPIPE has ended


def prepare() -> None:
    """Open what is closed, as a device that is empty: else the next file to be opened would become our output."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        stream = getattr(sys, name)
        if stream is None:
            stream = os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
        if name != "stdin" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has arrows, not every name is text


def say(text: str) -> None:
    """Tell something on standard error; if nobody listens, it is not told."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO) -> None:
    """Nothing can be written there any more: what still is goes nowhere, that of the interpreter's end included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    with contextlib.suppress(OSError):
        stream.flush()


def finish() -> int:
    """Let go of what has not been written yet; an exit status other than 0 if that was in vain."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return lost(error)
    return 0


def lost(error: OSError) -> int:
    """Output that cannot be written: told, unless the reader has simply gone. The exit status."""
    give_up(sys.stdout)
    if error.errno != errno.EPIPE:
        say(f"l4lab: cannot write to standard output: {reason(error)}; send it where there is room")
    return status_of(error)


def status_of(error: OSError) -> int:
    """The exit status of who could not write its output: the reader has gone, or what was given cannot be used."""
    return LOST if error.errno == errno.EPIPE else UNUSABLE
