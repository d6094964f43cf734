# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab demo link` and `l4lab demo smp`: virtual machines that talk, and machines with two CPUs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from l4lab.rig.rig import Rig
    from l4lab.user.host import Host

LINES: Final = ("stressed", "was it a car or a cat i saw", "drawer")
TURNS: Final = 3000
SLICE_US: Final = 1


def link() -> None:
    """Two guests talk over a serial line, and share a page."""
    from l4lab.user.guests import linked
    from l4lab.user.host import Host, VmPlan
    from l4lab.views.text import columns, grouped

    left = replace(VmPlan.flat("left", linked.caller(LINES, shares=True)), shares=True)
    right = replace(VmPlan.flat("right", linked.answerer(shares=True)), shares=True)
    host = Host([[left], [right]], links=[("left", "right")])
    typer.echo(
        "Two virtual machines, each under a monitor of its own. Their second serial ports are joined, and they have\n"
        "a page of memory in common. This is the console, each line with the name of whom it comes from:\n"
    )
    rig = _run(host)
    typer.echo("\nWhat one wrote to its serial port went to the other in messages from monitor to monitor:\n")
    rows = list(_carried(rig, host))
    typer.echo(columns(rows))
    figures = rig.stats()
    typer.echo(
        f"{len(rows)} of {grouped(figures['ipc_messages'])} messages. The others: "
        f"{grouped(sum(figures['vm_exits'].values()))} VM exits and their answers, and the console's bytes."
    )


def _carried(rig: Rig, host: Host) -> Iterator[tuple[str, ...]]:
    """The messages of the line: a row for each."""
    from l4lab.kernel import events
    from l4lab.user.monitor.link import LINK_LABEL, link_bytes
    from l4lab.views.text import grouped

    names = {int(monitor): name for name, (monitor, _) in host.places.items()}
    for event in rig.trace.select(events.MessageSent):
        if isinstance(event, events.MessageSent) and event.words[0] >> 16 == LINK_LABEL:
            _, data = link_bytes(event.words[1:])
            way = f"{names[event.sender]} → {names[event.receiver]}"
            yield f"cycle {grouped(event.at)}", way, repr(data.decode("ascii", "replace"))


def smp() -> None:
    """Guests with two CPUs each count together, with a lock and without one."""
    from l4lab.user.guests import twins
    from l4lab.user.host import Host, VmPlan

    plans = [
        replace(
            VmPlan.flat(f"{lock}, {'shadow' if shadow else 'nested'} paging", twins.build(TURNS, locking), shadow, 2),
            time_slice_us=SLICE_US,
        )
        for lock, locking in (("with a lock", True), ("without", False))
        for shadow in (False, True)
    ]
    typer.echo(
        "Four virtual machines with two CPUs each. A CPU is a thread, and after each "
        f"{1000 * SLICE_US} instructions it is\nanother's turn. In each machine both CPUs add 1 to a counter, "
        f"{TURNS} times each, so it should end at {2 * TURNS}:\n"
    )
    _run(Host([[plan] for plan in plans]))
    typer.echo(
        "\nTo add takes three instructions: load, add, store. Where a CPU loses its turn between the first and the\n"
        "last and no lock keeps the other one out, what the other one adds meanwhile is lost."
    )


def _run(host: Host) -> Rig:
    """Run it to its end, the console going to standard output."""
    from l4lab.rig.rig import Rig

    said = bytearray()
    rig = Rig.for_host(host)
    rig.on_output = said.append  # a program of the machine calls this: what goes wrong in it would be that program's
    stop = rig.run()
    sys.stdout.write(said.replace(b"\r", b"").decode("latin-1"))
    sys.stdout.flush()
    if not stop.finished or rig.host is None or len(rig.host.outcomes) < len(host.places):
        typer.echo(f"It ended early: {stop.detail or stop.reason}.", err=True)
        raise typer.Exit(1)
    return rig
