# SPDX-License-Identifier: GPL-2.0-or-later
"""A system at whose console somebody sits: what `l4lab boot` and `l4lab exec` have in common.

Lives here: reading images, running the session, writing what is wanted of it, exit statuses. How a session goes is in
`rig.session`.
"""

from __future__ import annotations

import json
import mmap
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from l4lab import files
from l4lab.errors import LabError

if TYPE_CHECKING:
    from l4lab.cli.terminal import Terminal
    from l4lab.rig.loader import Module
    from l4lab.rig.rig import Rig
    from l4lab.rig.session import Script

# Exit statuses by the name of a `rig.session.Status`; 130 is what shells give to a command that Ctrl-C ended.
EXIT_STATUS: Final = {"MATCHED": 0, "ENDED": 0, "TIMEOUT": 3, "DIED": 4, "INTERRUPTED": 130}


@dataclass(frozen=True, slots=True)
class Records:
    """What to write when a session is over."""

    stats: Path | None
    trace: Path | None
    started: float  # when the command began, by the monotonic clock


def at_console(rig: Rig, script: Script, terminal: Terminal, who: str, records: Records) -> NoReturn:
    """Run the session to its end; say how it ended, and exit with its status. `who` is said to have ended or died."""
    from l4lab.cli.terminal import HOW_TO_LEAVE
    from l4lab.rig.session import Session, Status

    if terminal.person:
        typer.echo(f"l4lab: booting. {HOW_TO_LEAVE.format(who=who)}", err=True)
    with terminal:
        ending = Session(rig, script, terminal, lambda news: typer.echo(f"\nl4lab: {news}", err=True)).run()
    if records.stats is not None:
        figures = rig.stats() | {"wall_s": round(time.monotonic() - records.started, 3)}
        records.stats.write_text(json.dumps(figures, indent=2) + "\n")
    if records.trace is not None:
        rig.trace.save(records.trace)
    typer.echo(f"\nl4lab: {ending.status.value.format(who=who)}: {ending.why}", err=True)
    if ending.status in (Status.DIED, Status.TIMEOUT, Status.INTERRUPTED):
        typer.echo(where(rig), err=True, nl=False)
    raise typer.Exit(EXIT_STATUS[ending.status.name])


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
