# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab cc`: builds an L4 program in C, with whatever compiler is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l4lab.cli.streams import say


def cc(
    source: Annotated[Path, typer.Argument(metavar="FILE.c", help="A program in C that includes <l4/l4.h>.")],
    out: Annotated[
        Path | None, typer.Option("-o", metavar="OUT", help="The executable; without it, FILE.elf beside the source.")
    ] = None,
    base: Annotated[str, typer.Option(metavar="ADDRESS", help="Where it is to lie in memory.")] = "0x400000",
) -> None:
    """Build a program in C, to be run by `l4lab exec`. Any gcc or clang for x86 will do.

    The headers name things as the L4 X.2 manual does; main() takes no arguments, and print() prints.
    """
    from l4lab.errors import LabError
    from l4lab.files import check_writable
    from l4lab.user.cc import build

    if not source.name:
        raise LabError(f"{source} is no file; give a program in C")
    target = out or source.with_suffix(".elf")
    check_writable(target)
    try:
        address = int(base, 0)
    except ValueError:
        raise LabError(f"{base!r} is no address; give a multiple of 4096, such as --base 0x800000") from None
    if address % 4096 or not 0 < address < 0xBF00_0000:
        raise LabError(f"a program cannot lie at {base}; give a multiple of 4096, such as --base 0x800000")
    if said := build(source, target, address):
        say(said.rstrip("\n"))
