# SPDX-License-Identifier: GPL-2.0-or-later
"""The `l4lab` command: one module per subcommand, and here what they share.

A subcommand turns arguments into one call of the library and its result into text and an exit status; it decides
nothing else. Heavy parts (the CPU engine, Jupyter) are imported inside the commands, so that help and shell completion
answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from l4lab.cli import bench, boot, cc, check, counters, demo, exec, guest, lab, streams
from l4lab.errors import LabError

app = typer.Typer(
    name="l4lab",
    help="An L4 microkernel with virtual machines, on an emulated PC that you can step and look into.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a defect of ours shows a plain traceback, fit for a report
)
app.command("lab")(lab.lab)
app.command("boot")(boot.boot)
app.command("exec")(exec.exec_)
app.command("cc")(cc.cc)
app.command("counters")(counters.counters)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("exercises")(check.list_)
app.command("bench")(bench.bench)
app.add_typer(guest.app, name="guest")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # takes long

        try:
            typer.echo(f"l4lab {metadata.version('l4lab')}")
        except metadata.PackageNotFoundError:
            typer.echo("l4lab, not installed: run from its sources")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; what the user can put right is told in one line."""
    streams.prepare()
    try:
        app()
    except LabError as error:
        streams.say(f"l4lab: {error}")
        status: object = streams.UNUSABLE
    except OSError as error:
        if error.filename is not None:  # our output has no name; files tell of theirs by a LabError
            raise
        status = streams.lost(error)
    except SystemExit as ended:
        status = ended.code
    raise SystemExit(streams.finish() or status)
