# SPDX-License-Identifier: GPL-2.0-or-later
"""A system at whose console somebody sits: what `l4lab boot` and `l4lab exec` have in common.

Lives here: reading images, running the session, writing what is wanted of it, exit statuses. How a session goes is in
`rig.session`.
"""

from __future__ import annotations

import json
import mmap
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from l4lab import files
from l4lab.cli.streams import UNUSABLE, say
from l4lab.errors import LabError

if TYPE_CHECKING:
    from l4lab.cli.terminal import Tty
    from l4lab.rig.loader import Module
    from l4lab.rig.rig import Rig
    from l4lab.rig.session import Script, Session

# Exit statuses by the name of a `rig.session.Status`; 130 is what shells give to a command that Ctrl-C ended.
EXIT_STATUS: Final = {"MATCHED": 0, "ENDED": 0, "TIMEOUT": 3, "DIED": 4, "INTERRUPTED": 130}
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that somebody wants the command to end


@dataclass(frozen=True, slots=True)
class Records:
    """What to write when a session is over."""

    stats: Path | None
    trace: Path | None
    started: float  # when the command began, by the monotonic clock


def at_console(rig: Rig, script: Script, terminal: Tty, who: str, records: Records) -> NoReturn:
    """Run the session to its end; say how it ended, and exit with its status. `who` is said to have ended or died."""
    from l4lab.cli.terminal import HOW_TO_LEAVE
    from l4lab.rig.session import Session, Status

    if terminal.person:
        say(f"l4lab: booting. {HOW_TO_LEAVE.format(who=who)}")
    session = Session(rig, script, terminal, lambda news: say(f"\nl4lab: {news}"))
    failures: list[str] = []
    with ended_by_signals(session) as signals:
        try:
            with terminal:
                session.run()
        except LabError as error:
            if session.ending is None:
                raise
            failures.append(str(error))  # the guest could not be saved
        finally:
            failures += _write(records, rig)
        ending = session.ending
        assert ending is not None, "the session has come to its end"
        say(f"\nl4lab: {ending.status.value.format(who=who)}: {ending.why}")
        if ending.status in (Status.DIED, Status.TIMEOUT, Status.INTERRUPTED):
            say(where(rig).removesuffix("\n"))
        for failure in failures:
            say(f"l4lab: {failure}")
    status = EXIT_STATUS[ending.status.name]
    if ending.status is Status.INTERRUPTED and (signals or terminal.lost):
        status = 128 + signals[0] if signals else terminal.status_if_lost
    raise typer.Exit(UNUSABLE if failures else status)


def _write(records: Records, rig: Rig) -> list[str]:
    """Write what was wanted; what could not be written, in words. One that fails keeps no other from being written."""
    failures = []
    for path, write in ((records.stats, _write_stats), (records.trace, _write_trace)):
        if path is not None:
            try:
                write(path, rig, records.started)
            except LabError as error:
                failures.append(str(error))
    return failures


def _write_stats(path: Path, rig: Rig, started: float) -> None:
    figures = rig.stats() | {"wall_s": round(time.monotonic() - started, 3)}
    files.write(path, [json.dumps(figures, indent=2).encode(), b"\n"])


def _write_trace(path: Path, rig: Rig, started: float) -> None:
    rig.trace.save(path)


@contextmanager
def ended_by_signals(session: Session) -> Iterator[list[int]]:
    """Whoever ends the command by a signal ends the session, as Ctrl-C does: the terminal and the files are seen to.

    The numbers of those that came. A handler must not raise while files are written or the kernel runs: there it asks
    the rig to come back, which has a handler of its own for a program that does not.
    """
    came: list[int] = []

    def heard(number: int, frame: FrameType | None) -> None:
        came.append(number)
        of_rig = signal.getsignal(signal.SIGINT)
        if callable(of_rig) and of_rig is not heard:
            of_rig(number, frame)
        elif session.waits:
            session.waits = False
            raise KeyboardInterrupt
        else:
            session.rig.stop()

    before = {number: signal.signal(number, heard) for number in ENDING}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_image(path: Path, instead: str) -> bytes:
    """The contents of a file. A pipe will do; a disk or a terminal has no end. `instead` is what to give."""
    return files.read(path, instead)


def map_disk(path: Path) -> mmap.mmap:
    """The contents of a disk's image, of which only what is read takes memory. Nobody may change it meanwhile."""
    try:
        if stat.S_ISREG(path.stat().st_mode) and path.stat().st_size:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise LabError(f"cannot read {path}: {files.reason(error)}; give a file you may read") from error
    raise LabError(
        f"{path} is no disk image; give a file with a disk's contents, such as: truncate --size 16M disk.img"
    )


def read_module(argument: str) -> Module:
    """FILE, or FILE=CMDLINE; a file that comes with no command line has its name."""
    from l4lab.rig.loader import Module

    file, equals, command_line = argument.partition("=")
    path = Path(file)
    return Module(path.name, read_image(path, "any file"), command_line if equals else path.name)


def where(rig: Rig) -> str:
    """Where the machine stands, and what programs died of, in lines."""
    from l4lab.views import text

    snapshot = rig.snapshot(of_guest=True)
    current = [line for line in snapshot.disassembly if line.current]
    deaths = "".join(died.text for _, died in rig.kernel.deaths)
    registers = rig.outcome.registers + "\n" if rig.outcome is not None else text.registers(snapshot)
    return f"{text.status_line(snapshot)}\n{text.disassembly(current)}{registers}{deaths}"
