# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab lab`: opens JupyterLab on the notebooks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from l4lab.errors import LabError


def lab(
    directory: Annotated[
        Path | None, typer.Argument(help="Where your notebooks are; without it, the ones that come with the lab.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser; without, print the URL to open.")] = True,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on; the next free one is taken.")] = 8888,
) -> None:
    """Open JupyterLab on the notebooks. Ctrl-C ends it."""
    notebooks = directory or shipped_notebooks()
    if not os.path.isdir(notebooks):
        raise LabError(f"there is no directory {notebooks}; name the one with your notebooks")
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={notebooks}", f"--port={port}"]
    if not browser:
        command.append("--no-browser")  # Jupyter then prints the URL with its token
    if os.geteuid() == 0:
        command.append("--allow-root")  # in a container there is nobody else; it listens to this host alone
    os.execv(sys.executable, command)  # from here on we are Jupyter: Ctrl-C is its own


def shipped_notebooks() -> Path:
    """In a checkout beside the package; else where the installation has put them."""
    places = [Path(__file__).parents[2] / "notebooks", Path(sys.prefix) / "share" / "l4lab" / "notebooks"]
    for place in places:
        if place.is_dir():
            return place
    raise LabError("the lab's notebooks are not here; run this from a checkout (make lab), or name a directory")
