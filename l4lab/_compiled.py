# SPDX-License-Identifier: GPL-2.0-or-later
"""Which half of a module runs: its Python source, or what was compiled from it at installation.

The kernel and what every VM exit passes through are compiled ahead of time where a C compiler is at hand (setup.py,
by mypyc): the same source, the same results, in a fraction of the time. Whoever wants to step through the kernel sets
L4LAB_KERNEL=python. Whoever edits one of these files runs the source without setting anything: a module that was
compiled from another text than the one that is there is not used, and then none is.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

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


# -- what cannot be exchanged says so ----------------------------------------------------------------------------------
#
# Compiled code calls its own functions directly. Assigning another function to a module or a class of it would do
# nothing at all, or end in a TypeError that explains nothing: here both become an error that says what to do.

ADVICE: Final = (
    "It is compiled, and compiled code would not notice what is assigned to it. Give the kernel a part of your own "
    "when it boots (boot(..., parts=Parts(...)), see l4lab/kernel/parts.py), or a monitor (monitor=MonitorParts(...), "
    f"see l4lab/user/monitor/monitor_parts.py), or set {VARIABLE}=python before l4lab is imported, to run all of it "
    "from source."
)
_FLAGS_AT: Final = 168  # of tp_flags in CPython's type objects, on 64 bits; checked before it is used
_IMMUTABLE: Final = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
_COMPLAINTS: Final = re.compile(
    r"of immutable type '(?:.*\.)?(?P<sealed>\w+)'|classes cannot inherit from compiled|object expected; got"
)
_sealed: Final[set[str]] = set()  # names of classes


class CompiledModule(ModuleType):
    """A module of ours that was compiled: what is called in it cannot be replaced from outside."""

    def __setattr__(self, name: str, value: object) -> None:
        if callable(self.__dict__.get(name)) and not name.startswith("__"):
            raise TypeError(f"{self.__name__}.{name} cannot be replaced. {ADVICE}")
        super().__setattr__(name, value)


class Sealing:
    """An import hook that seals compiled modules when they have been loaded.

    Compiled modules import each other past all hooks; so when the outermost import is done, all of them are looked at.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self.modules = frozenset(modules)
        self._depth = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib wants it."""
        spec = PathFinder.find_spec(name, path, target) if name in self.modules else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self._depth += 1
                try:
                    load(module)
                finally:
                    self._depth -= 1
                if not self._depth:
                    for loaded in self.modules & sys.modules.keys():
                        seal(sys.modules[loaded])

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def seal(module: ModuleType) -> None:
    """From now on nothing that compiled code calls can be assigned to in this module, or in its classes."""
    if isinstance(module, CompiledModule):
        return
    module.__class__ = CompiledModule
    for value in list(vars(module).values()):
        if isinstance(value, type) and value.__module__ == module.__name__ and "__mypyc_attrs__" in vars(value):
            flags = ctypes.c_ulong.from_address(id(value) + _FLAGS_AT)
            if flags.value == value.__flags__:  # else this is a Python whose type objects we do not know
                flags.value |= _IMMUTABLE
                _sealed.add(value.__name__)


def explain(error: BaseException) -> None:
    """Add to a TypeError that compiled code raised what to do about it."""
    found = _COMPLAINTS.search(str(error)) if isinstance(error, TypeError) else None
    told = ADVICE in getattr(error, "__notes__", ())
    if found and not told and (found["sealed"] is None or found["sealed"] in _sealed):
        error.add_note(ADVICE)


def explain_uncaught() -> None:
    """Have scripts and notebooks show the explanation."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        explain(error)
        shown(kind, error, trace)

    sys.excepthook = hook
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:

        def show(
            shell: Any, kind: type[BaseException], error: BaseException, trace: Any, tb_offset: Any = None
        ) -> None:
            explain(error)
            shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

        shell.set_custom_exc((TypeError,), show)


MODE: Final = choose()
if MODE == "compiled":
    sys.meta_path.insert(0, Sealing(json.loads(MANIFEST.read_text())))
    explain_uncaught()
