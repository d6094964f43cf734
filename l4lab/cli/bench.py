# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab bench`: measures the lab against bare engines, as ratios."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from l4lab.errors import LabError


def bench(
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures to a file, too.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Pairs of runs for each figure.")] = 5,
    linux: Annotated[bool, typer.Option(help="Include the Linux boot, compared to QEMU's.")] = True,
) -> None:
    """Measure boot time, VM exits, IPC and compute speed as ratios to QEMU and to the bare engine."""
    import msgspec

    from l4lab.bench import measure

    figures = []
    for figure in measure(rounds, linux, lambda text: print(text, file=sys.stderr)):
        figures.append(figure)
        mark = "met" if figure.met else "NOT MET"
        print(f"{figure.name}: {figure.value:g} {figure.unit} (wanted: {figure.target}): {mark}")
    if json is not None:
        result: dict[str, Any] = {
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
            "figures": figures,
        }
        try:
            json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
        except OSError as error:
            raise LabError(f"cannot write {json}: {error.strerror}. Give a file in a writable folder.") from error
