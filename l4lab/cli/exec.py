# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab exec`: runs a native L4 program as the root task, its console on the terminal.

Lives here: its arguments. What it has in common with `l4lab boot` is in `console`; how programs come into memory is in
`rig.loader`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from l4lab.cli.console import Records, at_console, read_image, read_module
from l4lab.errors import LabError
from l4lab.files import check_writable

DEFAULT_MEMORY: Final = 64  # MiB
IO: Final = ("iopl3", "fpages")
HOW_TO_BUILD_ONE: Final = "a 32-bit ELF executable; one is built by: l4lab cc FILE.c"


def exec_(
    root: Annotated[Path, typer.Argument(help="The root task: a 32-bit x86 ELF executable.", metavar="ROOT.elf")],
    sigma0: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A sigma0 of your own; without it, the lab's.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=CMDLINE]", help="A file for the root task to find in memory; repeatable."),
    ] = None,
    append: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The root task's command line, behind its name.")
    ] = None,
    io: Annotated[
        str,
        typer.Option(
            help="How programs come by I/O ports: iopl3, all have all; fpages, they are mapped like memory, and a "
            "pager hears of those that are missing.",
        ),
    ] = IO[0],
    memory: Annotated[int, typer.Option(metavar="MIB", help="The machine's memory in MiB.")] = DEFAULT_MEMORY,
    screen: Annotated[
        bool,
        typer.Option("--screen", help="The console is the machine's text screen and keyboard, not its serial port."),
    ] = False,
    until: Annotated[str | None, typer.Option(metavar="REGEX", help="End when the console matches.")] = None,
    send: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Type a line when all wait for input, or REGEX=>TEXT at a match; repeatable."
        ),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Give up after so many seconds.")] = None,
    stats: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what it took, as JSON.")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the event log.")] = None,
) -> None:
    """Run a native L4 program as the root task of the lab's kernel; its console is this terminal.

    It is put where its ELF file says, and gets its memory from sigma0. Modules are described by the KIP's BootInfo. It
    prints through the serial port, by the kernel debugger's traps, or on the screen, which is shown with --screen.
    Write one in C: l4lab cc --help.

    Programs that others wrote often know one way only to come by I/O ports. Most run with --io iopl3.

    Exit status: 0 matched, or nothing more happens; 2 unusable arguments or image; 3 timeout; 4 the root task died;
    130 interrupted, 143 and 129 by SIGTERM and SIGHUP, 141 when nobody reads its output any more.
    """
    check_writable(stats, trace)
    if io not in IO:
        raise LabError(f"there is no way {io!r} to come by I/O ports; give --io {' or --io '.join(IO)}")
    # The engine and all that is above it; help and completion do without.
    from l4lab.cli.terminal import Tty
    from l4lab.kernel.boot import Io
    from l4lab.rig.rig import Rig
    from l4lab.rig.session import Script

    script = Script.parse(until, send or (), timeout, eager=True, on_screen=screen)
    started = time.monotonic()
    rig = Rig.for_program(
        read_image(root, HOW_TO_BUILD_ONE),
        root.name,
        memory,
        None if sigma0 is None else (read_image(sigma0, HOW_TO_BUILD_ONE), sigma0.name),
        [read_module(argument) for argument in module or ()],
        io=Io(io),
        command_line=None if append is None else f"{root.name} {append}",
    )
    at_console(rig, script, Tty(newlines=True), "the program", Records(stats, trace, started))
