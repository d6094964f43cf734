# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab check` and `l4lab exercises`: the exercises on the command line. The work is done by `l4lab.grader`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _names() -> list[str]:
    from l4lab.grader.exercise import exercises

    return [exercise.name for exercise in exercises()]


def check(
    exercise: Annotated[str, typer.Argument(help="Which exercise, such as 'first_exit'.", autocompletion=_names)],
    file: Annotated[Path | None, typer.Argument(help="Your solution; without it, the file in exercises/.")] = None,
) -> None:
    """Run a solution in a process of its own, and tell what is right and what is not.

    Exit status: 0 all checks passed; 1 not yet; 2 no such exercise or file.
    """
    from l4lab import grader

    report = grader.check(exercise, file)
    typer.echo(repr(report))
    raise typer.Exit(0 if report.passed else 1)


def list_() -> None:
    """List the exercises, and where their files are."""
    from l4lab.grader.exercise import exercises

    for exercise in exercises():
        typer.echo(f"{exercise.name:12} {exercise.goal}")
        typer.echo(f"{'':12} {exercise.path}")
