# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab guest`: which guests there are, and obtaining one. The work is done by `l4lab.guests`."""

from __future__ import annotations

from typing import Annotated

import typer

from l4lab.cli.streams import say

app = typer.Typer(help="Operating systems to run as guests.", no_args_is_help=True)


def _names() -> list[str]:
    from l4lab.guests import guest as guests
    from l4lab.guests import packaged

    return [guest.name for guest in guests.listed()] + list(packaged.NAMES)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Which guest, such as 'linux'.", autocompletion=_names)],
) -> None:
    """Obtain a guest, keep it in the cache, and print how to boot it.

    Takes the network and some seconds the first time, and nothing later. Needs apt, but neither root nor a PC.
    """
    from l4lab.guests import guest as guests
    from l4lab.guests import packaged

    def report(line: str) -> None:
        say(line)

    if name in packaged.NAMES:
        image = packaged.get(name, report)
        append = f" --append '{image.append}'" if image.append else ""
        typer.echo(f"image   {image.file}")
        typer.echo(f"boot it: l4lab boot {image.file}{append}")
        return
    guest = guests.get(name, report)
    typer.echo(f"kernel  {guest.kernel}")
    typer.echo(f"initrd  {guest.initrd}")
    typer.echo(f"append  {guest.append}")
    typer.echo(f"boot it: l4lab boot {guest.kernel} --initrd {guest.initrd} --append '{guest.append}'")


@app.command("list")
def list_() -> None:
    """List the guests, and which of them are here."""
    from l4lab.guests import guest as guests
    from l4lab.guests import packaged

    for guest in guests.listed():
        _show(guest.name, guest.description, guest.here.version if guest.here else None)
    for other in packaged.PACKAGED:
        image = packaged.here(other)
        _show(other.name, other.description, image.version if image else None)


def _show(name: str, description: str, version: str | None) -> None:
    state = f"here, {version}" if version else f"not here; l4lab guest get {name}"
    typer.echo(f"{name:10} {description} ({state})")
