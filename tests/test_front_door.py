# SPDX-License-Identifier: GPL-2.0-or-later
"""`import l4lab`: a small front door, and nothing heavy behind it until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import l4lab

HEAVY = {"IPython", "anywidget", "capstone", "graphviz", "ipywidgets", "jupyterlab", "keystone", "msgspec", "unicorn"}


def test_nothing_else_shows() -> None:
    """What `dir` shows is what `__all__` promises, sorted."""
    assert sorted(l4lab.__all__) == l4lab.__all__ == dir(l4lab)


@pytest.mark.parametrize("name", l4lab.__all__)
def test_every_name_is_there(name: str) -> None:
    """Each promised name is found, and can be imported by `from`."""
    assert getattr(l4lab, name) is not None
    exec(f"from l4lab import {name}", {})


def test_an_unknown_name_is_refused() -> None:
    """What is not offered is told as Python does, with what is."""
    with pytest.raises(AttributeError, match="no 'Kernel'; it has: Dashboard, "):
        _ = l4lab.Kernel


def test_importing_loads_neither_engine_nor_jupyter() -> None:
    """`import l4lab` alone loads no foreign package of weight."""
    check = "import sys, l4lab; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout

    assert set() == HEAVY & set(loaded.split())


def test_a_system_runs_without_jupyter() -> None:
    """A rig on the command line or in a script loads no notebook machinery."""
    check = "import sys, l4lab; l4lab.boot('greeting').run(); print(*{n.partition('.')[0] for n in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout

    assert set() == {"IPython", "anywidget", "ipywidgets", "jupyterlab"} & set(loaded.split())


def test_the_command_loads_only_what_it_runs() -> None:
    """Help loads no machine, and the demo, which is no ELF file, loads no reader of them, of packages or notebooks."""
    check = (
        "import sys\nfrom l4lab.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )

    def loaded(argument: str) -> set[str]:
        done = subprocess.run([sys.executable, "-c", check, argument], capture_output=True, text=True, check=True)
        return set(done.stderr.split())

    assert set() == {"unicorn", "l4lab.rig", "l4lab.machine", "l4lab.kernel", "l4lab.guests"} & loaded("--help")
    assert set() == {"elftools", "l4lab.guests", "graphviz", "IPython"} & loaded("demo")
