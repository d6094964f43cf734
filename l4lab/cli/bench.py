# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab bench`: measures the lab against bare engines, as ratios."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from l4lab import files
from l4lab.cli.streams import say


def bench(
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures to a file, too.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Pairs of runs for each figure.")] = 5,
    linux: Annotated[bool, typer.Option(help="Include the Linux boot, compared to QEMU's.")] = True,
) -> None:
    """Measure boot time, VM exits, IPC and compute speed as ratios to QEMU and to the bare engine."""
    import msgspec

    files.check_writable(json)
    from l4lab.bench import measure

    figures = []
    for figure in measure(rounds, linux, say):
        figures.append(figure)
        wanted = f" (wanted: {figure.target}): {'met' if figure.met else 'NOT MET'}" if figure.target else ""
        speed = f", {figure.per_second:,.0f}/s" if figure.per_second >= 10 else ""
        print(f"{figure.name}: {figure.value:g} {figure.unit}{speed}{wanted}")
    if json is not None:
        result: dict[str, Any] = {
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
            "figures": figures,
        }
        files.write(json, [msgspec.json.format(msgspec.json.encode(result), indent=2), b"\n"])
