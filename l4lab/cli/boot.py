# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab boot`: boots a Linux kernel as a guest, its serial console on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l4lab.errors import LabError


def boot(
    kernel: Annotated[Path, typer.Argument(help="A 32-bit bzImage.")],
    initrd: Annotated[Path | None, typer.Option(help="Its initial root file system.")] = None,
    append: Annotated[str, typer.Option(help="The kernel's command line.")] = "console=ttyS0",
    memory: Annotated[int, typer.Option(help="The guest's memory in MiB.")] = 128,
    paging: Annotated[str, typer.Option(help="How guest memory is translated: nested.")] = "nested",
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

    Exit status: 0 matched, or the guest powered off or halted; 2 unusable arguments or image; 3 timeout;
    4 the guest died.
    """
    raise LabError("booting is not in this version yet; try: l4lab lab")
