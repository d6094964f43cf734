# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab bench`: measures the lab against bare engines, as ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l4lab.errors import LabError


def bench(
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures to a file, too.")] = None,
) -> None:
    """Measure boot time, VM exits, IPC and compute speed as ratios to QEMU and to the bare engine."""
    raise LabError("benchmarks are not in this version yet; try: l4lab lab")
