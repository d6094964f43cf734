# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab demo`: boots the small guest that comes with the lab and shows the VM exits it caused.

The other demonstrations that it can be asked for are in `demo_many`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from l4lab.errors import LabError

if TYPE_CHECKING:
    from l4lab.abi.vm import ExitReason
    from l4lab.rig.rig import Rig


KINDS = ("os", "link", "smp")


def demo(
    which: Annotated[
        str,
        typer.Argument(
            help="os: a small system and its VM exits; link: two machines that talk over a serial line; "
            "smp: machines with two CPUs."
        ),
    ] = KINDS[0],
) -> None:
    """Show virtual machines at work: small guests that need nothing but this package."""
    from l4lab.cli import demo_many

    match which:
        case "os":
            _os()
        case "link":
            demo_many.link()
        case "smp":
            demo_many.smp()
        case _:
            raise LabError(f"there is no demo {which!r}; there is: {', '.join(KINDS)}")


def _os() -> None:
    """A small operating system, and what of it stopped for its monitor."""
    from l4lab.abi.vm import ExitReason
    from l4lab.cli.console import EXIT_STATUS, ended_by_signals, where
    from l4lab.cli.terminal import HOW_TO_LEAVE, Tty
    from l4lab.rig.rig import Rig
    from l4lab.rig.session import Script, Session, Status
    from l4lab.user.guests import tinyos
    from l4lab.views import text

    guest = tinyos.build()
    rig = Rig.for_flat_guest(guest)
    terminal = Tty()
    typer.echo(f"{guest.description}\nIt runs as a virtual machine, and this is its serial port:\n")
    if terminal.person:
        typer.echo(f"({HOW_TO_LEAVE.format(who='the guest')})\n")
    session = Session(rig, Script(), terminal)
    with ended_by_signals(session), terminal:
        ending = session.run()
    typer.echo(f"\nIt ended: {ending.why}.")
    if ending.status is not Status.ENDED:
        typer.echo(where(rig), nl=False)

    snapshot = rig.snapshot()
    typer.echo("\nWhat it could not do by itself, and how often: its VM exits.\n")
    typer.echo(text.exit_counts(snapshot.exit_counts))
    typer.echo("Each of them went to the monitor, a program outside, as a message of the microkernel. For example:\n")
    for reason in (ExitReason.CPUID, ExitReason.IO_INSTRUCTION):
        typer.echo(text.columns(_story(rig, reason)))
    figures = rig.stats()
    typer.echo(
        f"{text.grouped(figures['instructions'])} instructions, {text.grouped(figures['ipc_messages'])} messages, "
        f"{figures['page_faults']} page faults sent as messages, {figures['injections']} interrupts injected, "
        f"in {text.virtual_time(rig.machine.cycles)} of the machine's time.\n"
    )
    for kind, counts in figures["unknown"].items():
        if counts:
            told = ", ".join(f"{what} ({times} times)" for what, times in counts.items())
            typer.echo(f"It asked for {kind.replace('_', ' ')} that are not there: {told}.\n")
    typer.echo("Look into it step by step: l4lab lab. A real system as guest: l4lab guest get linux")
    raise typer.Exit(EXIT_STATUS[ending.status.name])


def _story(rig: Rig, reason: ExitReason) -> Iterator[tuple[str, ...]]:
    """The first exit of this kind, from the guest's instruction to the guest's next: a row for each event."""
    from l4lab.abi.describe import label_text
    from l4lab.abi.message import MsgTag
    from l4lab.kernel import events
    from l4lab.rig.inspect import exit_detail
    from l4lab.views.text import grouped
    from l4lab.words import hex32

    first = next(e for e in rig.trace.select(events.VmExit) if isinstance(e, events.VmExit) and e.reason == reason)
    kinds = (events.VmExit, events.MessageSent, events.VmEntry)
    for event in islice(rig.trace.select(*kinds, thread=first.vcpu, since=first.at), 4):
        match event:
            case events.VmExit():
                told = ("guest → kernel", f"{reason.name} at {hex32(event.ip)} {exit_detail(event)}".rstrip())
            case events.MessageSent():
                tag, from_guest = MsgTag.decode(event.words[0]), event.sender == first.vcpu
                told = (
                    "kernel → monitor" if from_guest else "monitor → kernel",
                    f"{label_text(tag.label) if from_guest else 'reply'}, {len(event.words)} words",
                )
            case events.VmEntry():
                told = ("kernel → guest", f"with vector {event.injected & 0xFF}" if event.injected else "goes on")
            case _:  # no other kind was selected
                continue
        yield (f"cycle {grouped(event.at)}", *told)
