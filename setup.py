# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds what is faster in C, where a C compiler is at hand; everything else is in pyproject.toml.

Two things: the native half of the engine (`machine/core/`), and the modules that every system call and VM exit passes
through, compiled from their Python source by mypyc (see `l4lab/_compiled.py`). Without either the lab runs the same
instructions and writes the same trace, only several times slower. So a missing compiler is a loud warning here and not
the end of the installation.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

WARNING = """
************************************************************************
l4lab: {what} NOT built ({why}).
The lab works without it, several times slower. To have it, install a C
compiler and Python's headers (Debian: gcc python3-dev) and install again.
************************************************************************
"""
CORE = "l4lab.machine._core"
MANIFEST = "l4lab/_compiled.json"
KERNEL = {
    "objects": "copying counters instants lines outside program space thread vcpu waits",
    "memory": "mapping mappingtree ports smallpages walking",
    "scheduling": "outsidescheduler priorities timers",
    "ipc": "ctrlxfer faults ipc outsideipc propagation strings transfer",
    "processor": "dispatch preemption",
    "virtual": "entering filling shadowed shadowtables vmfault vmthread vtlb",
    "calls": "answers control hosted threadcontrol traps",
    ".": "kernel parts state",
}
COMPILED = [
    *(
        f"l4lab/kernel/{level}/{name}.py".replace("/./", "/")
        for level, names in KERNEL.items()
        for name in names.split()
    ),
    *(
        f"l4lab/machine/{name}.py"
        for name in (
            *("board", "controlregs", "debugging", "ending", "exits", "guestmode", "guestview", "instructions"),
            *("memory", "mmu", "pagetables", "portexits", "svm", "usermode", "vmcs", "vtx"),
        )
    ),
    "l4lab/user/l4.py",
    # What every exit passes through; of the rest a student replaces what he likes, by an entry of `handlers`.
    *(
        f"l4lab/user/monitor/{name}.py"
        for name in (
            *("exit_handlers", "fault", "guarded_part", "guest_interrupts", "guest_memory", "guest_ports", "monitor"),
            *("monitor_parts", "outside_devices", "outside_interrupts", "outside_loop", "outside_pager"),
        )
    ),
]


def compiled() -> list[Extension]:
    """The extensions that mypyc makes of our sources; none where it cannot."""
    Path(MANIFEST).unlink(missing_ok=True)
    for old in (*Path("l4lab").rglob("*.so"), *Path().glob("l4lab__mypyc*.so")):  # in a source tree, of another list
        if "_core" not in old.name:
            old.unlink()
    if os.environ.get("L4LAB_KERNEL") == "python":
        return []
    try:
        from mypyc.build import mypycify

        # The build environment has none of our dependencies, so only our own types are known to it.
        loose = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
        return list(mypycify([*loose, *COMPILED], opt_level="1", debug_level="0", group_name="l4lab"))
    except (ImportError, SystemExit) as error:
        print(WARNING.format(what="the compiled kernel was", why=error), file=sys.stderr)
        return []


class BuildWhatCanBeBuilt(build_ext):
    """`build_ext` that says what a missing compiler costs, and goes on. Of the compiled modules it is all or none."""

    def run(self) -> None:
        super().run()
        names = [ext.name for ext in self.extensions if ext.name != CORE]
        files = [Path(self.get_ext_fullpath(name)) for name in names]
        if not files or not all(file.exists() for file in files):
            for file in files:
                file.unlink(missing_ok=True)
            return
        made_from = {
            path.removesuffix(".py").replace("/", "."): hashlib.sha256(Path(path).read_bytes()).hexdigest()
            for path in COMPILED
        }
        place = Path(self.get_ext_fullpath(CORE)).parents[2] / MANIFEST
        place.write_text(json.dumps(made_from, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:  # a compiler can fail to exist in many ways, each with its own exception
            what = "the native core was" if ext.name == CORE else f"{ext.name} was"
            print(WARNING.format(what=what, why=error), file=sys.stderr)


core = Extension(
    CORE,
    sources=sorted(map(str, Path("l4lab/machine/core").glob("*.c"))),
    depends=["l4lab/machine/core/core.h"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],  # one binary for 3.11 and all that follow
    extra_compile_args=["-O2", "-fvisibility=hidden"] if sys.platform != "win32" else [],
    py_limited_api=True,
    optional=True,
)
setup(cmdclass={"build_ext": BuildWhatCanBeBuilt}, ext_modules=[core, *compiled()])
