# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab bench`: measures the lab against bare engines and QEMU, as ratios; saves, draws and compares what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4lab import files
from l4lab.cli.streams import say
from l4lab.errors import LabError

if TYPE_CHECKING:
    from l4lab.bench.figures import Figure
    from l4lab.bench.runs import Change

WORSE = 1  # exit status


def bench(
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the figures, for --compare.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the figures as a web page.")] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Name what is worse than in a saved run by more than 10 %.")
    ] = None,
    saved: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the figures of a saved run instead of measuring.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Only figures with this in their name; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Runs of each side for a figure.")] = 5,
    linux: Annotated[bool, typer.Option(help="Include the Linux boot, compared to QEMU's.")] = True,
) -> None:
    """Measure the lab as ratios to QEMU and to the bare engine: work of nine kinds, VM exits, IPC, start, Linux.

    The sides of a ratio run in turn, and medians are told. docs/bench.md says more.

    Exit status: 0 measured, and nothing is worse; 1 something is worse than in the run it was compared with;
    2 unusable arguments or files.
    """
    from l4lab.bench import runs

    files.check_writable(json, html)
    before = None if compare is None else runs.read(compare)
    if saved is not None:
        if only:
            raise LabError("--only chooses what is measured, and a saved run was measured already; give one of the two")
        run = runs.read(saved)
        for figure in run.figures:
            _print(figure)
    else:
        from l4lab.bench.everything import measure

        figures = []
        for figure in measure(rounds, linux, say, only or ()):
            figures.append(figure)
            _print(figure)
        run = runs.SavedRun(runs.Computer.this(), tuple(figures))
    changes = None if before is None else runs.compare(before.figures, run.figures)
    if json is not None:
        runs.write(json, run)
    if html is not None:
        from l4lab.bench import page

        files.write(html, [page.draw(run, changes).encode()])
    if changes is not None and before is not None:
        if not changes:
            raise LabError(f"{compare} has none of these figures, so nothing can be compared; give another run")
        missing = {figure.name for figure in before.figures} - {change.now.name for change in changes}
        raise typer.Exit(WORSE if _told(changes, len(missing)) else 0)


def _print(figure: Figure) -> None:
    wanted = f" (wanted: {figure.target}): {'met' if figure.met else 'NOT MET'}" if figure.target else ""
    speed = f", {figure.per_second:,.0f}/s" if figure.per_second >= 10 else ""
    print(f"{figure.name}: {figure.value:g} {figure.unit}{speed}{wanted}")


def _told(changes: Sequence[Change], missing: int) -> bool:
    """Name what became worse; is there anything?"""
    from l4lab.bench.runs import TOLERANCE

    worse = [change for change in changes if change.worse]
    print()
    for change in worse:
        print(f"WORSE: {change.told}")
    others = f" {missing} figures of the saved run were not measured." if missing else ""
    print(f"{len(changes)} figures compared, {len(worse) or 'none'} worse by more than {TOLERANCE:.0%}.{others}")
    return bool(worse)
