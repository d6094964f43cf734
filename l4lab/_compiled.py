# SPDX-License-Identifier: GPL-2.0-or-later
"""Which half of a module runs: its Python source, or what was compiled from it at installation.

The kernel and what every VM exit passes through are compiled ahead of time where a C compiler is at hand (setup.py,
by mypyc): the same source, the same results, in a fraction of the time. Whoever wants to step through the kernel sets
L4LAB_KERNEL=python. Whoever edits one of these files runs the source without setting anything: a module that was
compiled from another text than the one that is there is not used, and then none is.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).parent
MANIFEST: Final = ROOT / "_compiled.json"  # written by setup.py: module -> fingerprint of the source it was made from
VARIABLE: Final = "L4LAB_KERNEL"


def source_of(module: str) -> Path:
    """The file of a module of ours."""
    return ROOT.parent.joinpath(*module.split(".")).with_suffix(".py")


def fingerprint(module: str) -> str:
    """What changes when the source does; nothing for a module that is gone."""
    source = source_of(module)
    return hashlib.sha256(source.read_bytes()).hexdigest() if source.exists() else ""


class SourceOnly:
    """An import hook that passes compiled modules by."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.modules = frozenset(modules)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib wants it."""
        return spec_from_file_location(name, source_of(name)) if name in self.modules else None


def choose() -> str:
    """Decide it for this process, before any of the modules is imported: "compiled" or "python"."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "compiled", "python"):
        _warn(f"{VARIABLE} is {wanted!r}, which is as if it were not set. Set it to compiled or python, or unset it.")
    made_from: dict[str, str] = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    changed = [module for module, print_ in made_from.items() if fingerprint(module) != print_]
    if wanted == "compiled" and not made_from:
        _warn(
            f"{VARIABLE}=compiled, but nothing was compiled: the kernel runs from its source. Install a C compiler and "
            f"Python's headers, and install l4lab again; or unset {VARIABLE}."
        )
    if made_from and (changed or wanted == "python"):
        sys.meta_path.insert(0, SourceOnly(made_from))
    if changed and wanted != "python":
        _warn(
            f"{', '.join(changed)} changed since the installation: the kernel runs from its source, which is slower. "
            "To compile it anew: make lab, or pip install -e ."
        )
    return "python" if not made_from or changed or wanted == "python" else "compiled"


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)


MODE: Final = choose()
