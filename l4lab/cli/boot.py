# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab boot`: boots a Linux kernel as a guest, its serial console on the terminal.

Lives here: arguments, files, exit statuses. How a session at a console goes is in `rig.session`.
"""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from l4lab.errors import LabError

if TYPE_CHECKING:
    from l4lab.rig.rig import Rig

PAGING: Final = ("nested",)
DEFAULT_MEMORY: Final = 128  # MiB
# Exit statuses by the name of a `rig.session.Status`; 130 is what shells give to a command that Ctrl-C ended.
EXIT_STATUS: Final = {"MATCHED": 0, "ENDED": 0, "TIMEOUT": 3, "DIED": 4, "INTERRUPTED": 130}


def boot(
    kernel: Annotated[Path, typer.Argument(help="A 32-bit bzImage.")],
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Its initial root file system.")] = None,
    append: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The kernel's command line; without it, one that fits the machine."),
    ] = None,
    memory: Annotated[int, typer.Option(metavar="MIB", help="The guest's memory in MiB.")] = DEFAULT_MEMORY,
    paging: Annotated[str, typer.Option(help=f"How guest memory is translated: {', '.join(PAGING)}.")] = PAGING[0],
    until: Annotated[str | None, typer.Option(metavar="REGEX", help="End when the console matches.")] = None,
    send: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Type a line at a shell prompt, or REGEX=>TEXT at a match; repeatable."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Give up after so many seconds.")] = None,
    stats: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what it took, as JSON.")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the event log.")] = None,
) -> None:
    """Boot a Linux kernel in a virtual machine; its serial console is this terminal.

    In a terminal all keys go to the guest, and Ctrl-] leaves. Piped input is typed once the guest shows a prompt.
    Lines of --send are typed in their order, each when new output matches.

    Exit status: 0 matched, or the guest powered off or halted; 2 unusable arguments or image; 3 timeout;
    4 the guest died; 130 interrupted.
    """
    if paging not in PAGING:
        raise LabError(f"there is no paging mode {paging!r}; there is: {', '.join(PAGING)}")
    for file in (stats, trace):
        if file is not None:
            _check_writable(file)
    # The engine and all that is above it; help and completion do without.
    from l4lab.cli.terminal import HOW_TO_LEAVE, Terminal
    from l4lab.guests.guest import LINUX_APPEND
    from l4lab.rig.rig import Rig
    from l4lab.rig.session import Script, Session, Status

    script = Script.parse(until, send or (), timeout)
    started = time.monotonic()
    image, ramdisk = read_image(kernel), None if initrd is None else read_image(initrd)
    typer.echo(f"l4lab: unpacking {kernel.name}", err=True)
    rig = Rig.for_linux(image, kernel.name, ramdisk, LINUX_APPEND if append is None else append, memory)
    terminal = Terminal()
    if terminal.person:
        typer.echo(f"l4lab: booting. {HOW_TO_LEAVE}", err=True)
    with terminal:
        ending = Session(rig, script, terminal).run()
    if stats is not None:
        figures = rig.stats() | {"wall_s": round(time.monotonic() - started, 3)}
        stats.write_text(json.dumps(figures, indent=2) + "\n")
    if trace is not None:
        rig.trace.save(trace)
    typer.echo(f"\nl4lab: {ending.status.value}: {ending.why}", err=True)
    if ending.status in (Status.DIED, Status.TIMEOUT, Status.INTERRUPTED):
        typer.echo(where(rig), err=True, nl=False)
    raise typer.Exit(EXIT_STATUS[ending.status.name])


def read_image(path: Path) -> bytes:
    """The contents of a file. A pipe will do; a disk or a terminal has no end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            return path.read_bytes()
    except OSError as error:
        raise LabError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}; give a file you may read"
        ) from error
    raise LabError(f"{path} is not a file; give a kernel image, or get one: l4lab guest get linux")


def _check_writable(path: Path) -> None:
    """Say it before the run rather than after it."""
    folder = path.absolute().parent
    writable = os.access(path, os.W_OK) and not path.is_dir() if path.exists() else os.access(folder, os.W_OK | os.X_OK)
    if not writable:
        raise LabError(f"cannot write {path}; name a file in a folder where you may write")


def where(rig: Rig) -> str:
    """Where the machine stands, and what programs died of, in lines."""
    from l4lab.views import text

    snapshot = rig.snapshot(of_guest=True)
    current = [line for line in snapshot.disassembly if line.current]
    deaths = "".join(died.text for _, died in rig.kernel.deaths)
    registers = rig.outcome.registers + "\n" if rig.outcome is not None else text.registers(snapshot)
    return f"{text.status_line(snapshot)}\n{text.disassembly(current)}{registers}{deaths}"
