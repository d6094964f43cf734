# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab counters`: what each virtual machine of a recorded run cost, counted from its trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l4lab.cli.streams import say


def counters(
    trace: Annotated[Path, typer.Argument(help="An event log that --trace wrote.", metavar="TRACE")],
) -> None:
    """Count in an event log what each virtual machine and each virtual CPU cost: exits, faults, vTLB, messages.

    Instructions are counted up to a virtual CPU's last VM exit, or to its end.
    """
    from l4lab.rig.counting import machines, recount
    from l4lab.rig.trace import Trace
    from l4lab.views import counters, text

    log = Trace.load(trace)
    found = machines(recount(log))
    typer.echo(counters.as_text(found), nl=False)
    for machine in found:
        where = (("told to the monitor", machine.total.exits), ("ended in the kernel", machine.total.kernel_exits))
        for what, exits in where:
            if exits:
                typer.echo(f"\n{machine.name}, exits {what}:\n{text.exit_counts(exits)}", nl=False)
    if log.dropped:
        say(f"\nThe log had no room for its first {log.dropped} events: of them nothing is counted.")
