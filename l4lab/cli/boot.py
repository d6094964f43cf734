# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab boot`: boots a Linux kernel as a guest, its serial console on the terminal.

Lives here: its arguments. What it has in common with `l4lab exec` is in `console`; how a session at a console goes is
in `rig.session`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from l4lab.cli.console import Records, at_console, check_writable, map_disk, read_image
from l4lab.errors import LabError

NESTED, SHADOW = PAGING = ("nested", "shadow")
DEFAULT_MEMORY: Final = 128  # MiB
HOW_TO_GET_ONE: Final = "a kernel image, or get one: l4lab guest get linux"


def boot(
    kernel: Annotated[Path | None, typer.Argument(help="A 32-bit bzImage; not with --restore.")] = None,
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Its initial root file system.")] = None,
    append: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The kernel's command line; without it, one that fits the machine."),
    ] = None,
    memory: Annotated[int, typer.Option(metavar="MIB", help="The guest's memory in MiB.")] = DEFAULT_MEMORY,
    paging: Annotated[str, typer.Option(help=f"How guest memory is translated: {', '.join(PAGING)}.")] = NESTED,
    disk: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What is on its disk, an IDE one; what it writes is lost at the end."),
    ] = None,
    screen: Annotated[
        bool, typer.Option("--screen", help="The console is its text screen and keyboard, not its serial port.")
    ] = False,
    restarts: Annotated[int, typer.Option(metavar="N", help="Start it again when it resets, so many times.")] = 0,
    until: Annotated[str | None, typer.Option(metavar="REGEX", help="End when the console matches.")] = None,
    save_at: Annotated[
        tuple[str, Path] | None,
        typer.Option(metavar="REGEX FILE", help="When the console matches, save the guest to a file, and end."),
    ] = None,
    restore: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with a guest that --save-at saved.")
    ] = None,
    send: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Type a line at a shell prompt, or REGEX=>TEXT at a match; repeatable."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Give up after so many seconds.")] = None,
    stats: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what it took, as JSON.")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the event log.")] = None,
) -> None:
    """Boot a Linux kernel in a virtual machine; its console, a serial line or a screen, is this terminal.

    In a terminal all keys go to the guest, and Ctrl-] leaves. Piped input is typed once the guest shows a prompt.
    Lines of --send are typed in their order, each when new output matches. A kernel that `l4lab guest get` obtained
    gets drivers for its disk behind the initrd.

    A saved guest goes on where it was, in any number of runs; its memory, paging and devices come with it.

    Exit status: 0 matched, or the guest powered off or halted; 2 unusable arguments or image; 3 timeout;
    4 the guest died; 130 interrupted.
    """
    if paging not in PAGING:
        raise LabError(f"there is no paging mode {paging!r}; there is: {', '.join(PAGING)}")
    check_writable(stats, trace, save_at and save_at[1])
    # The engine and all that is above it; help and completion do without.
    from l4lab.cli.terminal import Terminal
    from l4lab.guests.guest import LINUX_APPEND, LINUX_SCREEN_APPEND, drivers_of
    from l4lab.rig.rig import Rig
    from l4lab.rig.session import Script
    from l4lab.user.monitor.hardware import Hardware

    script = Script.parse(until, send or (), timeout, on_screen=screen, save_at=save_at)
    started = time.monotonic()
    if restore is not None:
        if kernel is not None or initrd is not None or append is not None:
            raise LabError(
                "a saved guest has its kernel in its memory; give --restore without kernel, initrd and append"
            )
        rig = Rig.restore(restore, disk=None if disk is None else map_disk(disk))
        at_console(rig, script, Terminal(), "the guest", Records(stats, trace, started))
    if kernel is None:
        raise LabError(f"nothing to boot: give {HOW_TO_GET_ONE}; or go on with a saved guest by --restore FILE")
    image, ramdisk = read_image(kernel, HOW_TO_GET_ONE), None if initrd is None else read_image(initrd, HOW_TO_GET_ONE)
    contents = None if disk is None else map_disk(disk)
    if contents is not None and ramdisk is not None and (drivers := drivers_of(kernel.parent)) is not None:
        ramdisk += drivers.read_bytes()
    if append is None:
        append = LINUX_SCREEN_APPEND if screen else LINUX_APPEND
    typer.echo(f"l4lab: unpacking {kernel.name}", err=True)
    hardware = Hardware(paging == SHADOW, contents, max(restarts, 0))
    rig = Rig.for_linux(image, kernel.name, ramdisk, append, memory, hardware=hardware, screen=screen)
    at_console(rig, script, Terminal(), "the guest", Records(stats, trace, started))
