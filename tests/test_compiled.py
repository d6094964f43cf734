# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel compiled ahead of time and the kernel as it is read: which of the two runs, and that both do the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "l4lab"
WHICH = (
    "import l4lab, pathlib; from l4lab import _compiled; import l4lab.kernel.ipc.ipc as ipc; "
    "print(_compiled.MODE, pathlib.Path(ipc.__file__).suffix)"
)
TRACE = (
    "import sys; from l4lab.rig.rig import Rig; from l4lab.user.guests import tinyos; "
    "rig = Rig.for_flat_guest(tinyos.build()); rig.run(); rig.trace.save(sys.argv[1])"
)


def python(code: str, kernel: str, root: Path = PACKAGE.parent, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Python with that setting of L4LAB_KERNEL."""
    environment = {**os.environ, "L4LAB_KERNEL": kernel, "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "always", "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)


def test_what_is_installed_is_compiled() -> None:
    """With a compiler at hand, does the compiled kernel run unless one asks for the other?"""
    assert "compiled .so\n" == python(WHICH, "").stdout
    assert "compiled .so\n" == python(WHICH, "compiled").stdout
    assert "python .py\n" == python(WHICH, "python").stdout


def test_an_edited_file_is_what_runs(tmp_path: Path) -> None:
    """Does a change to one kernel file take effect at once, with a word about speed?"""
    shutil.copytree(PACKAGE, tmp_path / "l4lab", ignore=shutil.ignore_patterns("__pycache__", "static"))
    for library in PACKAGE.parent.glob("l4lab__mypyc*.so"):
        shutil.copy(library, tmp_path)
    edited = tmp_path / "l4lab" / "kernel" / "objects" / "space.py"
    edited.write_text(edited.read_text() + "\nUSER_LIMIT = 7\n")

    done = python(WHICH + "; from l4lab.kernel.objects.space import USER_LIMIT; print(USER_LIMIT)", "", tmp_path)

    assert "python .py\n7\n" == done.stdout
    assert "l4lab.kernel.objects.space changed since the installation" in done.stderr


@pytest.mark.parametrize("value", ["fast", "Compiled"])
def test_an_unknown_setting_is_named(value: str) -> None:
    """Is a value that means nothing pointed out, and the run not lost?"""
    done = python(WHICH, value)

    assert f"L4LAB_KERNEL is {value!r}" in done.stderr
    assert "Set it to compiled or python" in done.stderr


def test_both_write_the_same_trace(tmp_path: Path) -> None:
    """A guest's whole life, to the last event."""
    files = {kernel: tmp_path / kernel for kernel in ("compiled", "python")}
    for kernel, file in files.items():
        python(TRACE, kernel, PACKAGE.parent, str(file))

    assert files["compiled"].read_bytes() == files["python"].read_bytes()
    assert len(files["python"].read_bytes()) > 10_000


def test_a_part_of_ones_own_works_in_both(tmp_path: Path) -> None:
    """A scheduler in Python leaves the same trace under the compiled kernel as under the other, and its own."""
    run = "import runpy; runpy.run_path('tests/kernel/policies.py', run_name='__main__')"
    traces = {}
    for scheduler, kernel in (("Stride", "compiled"), ("Stride", "python"), ("Lists", "compiled")):
        file = tmp_path / f"{scheduler}-{kernel}"
        python(run, kernel, PACKAGE.parent, scheduler, str(file))
        traces[scheduler, kernel] = file.read_bytes()

    assert traces["Stride", "compiled"] == traces["Stride", "python"] != traces["Lists", "compiled"]


@pytest.mark.parametrize("kernel", ["compiled", "python"])
def test_another_walk_and_other_ipc_do_not_show(kernel: str, tmp_path: Path) -> None:
    """With both of somebody else's, in Python, either kernel leaves the trace that it leaves without."""
    files = [tmp_path / part for part in ("none", "both")]
    for system in ("memserver", "tinyos"):
        for file in files:
            run = "import runpy; runpy.run_module('tests.kernel.student_parts', run_name='__main__')"
            python(run, kernel, PACKAGE.parent, system, file.name, str(file))

        assert files[0].read_bytes() == files[1].read_bytes()


ASSIGNMENTS = {
    "a function of a module": "ipc.send = print",
    "a class of a module": "space.Space = int",
    "a method of a class": "space.Space.configure = print",
    "a method of a class that may be derived from": "Monitor.run = print",
    "a part of another type": "boot('greeting').kernel.mappings = object()",
    "an object of a class derived from a closed one": "type('Mine', (space.Space,), {})()",
}


@pytest.mark.parametrize("what", ASSIGNMENTS)
@pytest.mark.parametrize("kernel", ["compiled", "python"])
def test_what_compiled_code_would_not_notice_is_refused(what: str, kernel: str) -> None:
    """Assigning to what is compiled ends in an error that names the two ways there are, and never in silence."""
    code = (
        "from l4lab import boot; from l4lab.kernel.ipc import ipc; from l4lab.kernel.objects import space; "
        f"from l4lab.user.monitor.monitor import Monitor; {ASSIGNMENTS[what]}; print('noticed')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={**os.environ, "L4LAB_KERNEL": kernel}, cwd=PACKAGE.parent, capture_output=True, text=True
    )

    if kernel == "compiled":
        assert "" == done.stdout
        assert done.stderr.splitlines()[-1].endswith("to run all of it from source.")
        assert "parts.py" in done.stderr
    elif "derived" not in what or "may be" in what:
        assert "noticed\n" == done.stdout


INTERPRETED = """
import sys
from collections import Counter
from l4lab.rig.rig import Rig
from l4lab.user.guests import loops
from l4lab.user.monitor.hardware import Hardware

guest = loops.paging(2000, {body})
rig = Rig.for_flat_guest(guest, hardware=Hardware(shadow_paging={shadow}))
called = Counter()
sys.setprofile(lambda frame, what, _: called.update([frame.f_code.co_filename]) if what == "call" else None)
rig.run()
sys.setprofile(None)
often = {{name.split("l4lab/")[-1] for name, n in called.items() if "/l4lab/kernel/" in name and n > 500}}
print(sorted(often))
"""


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("body", ["loops.INVALIDATE", "loops.RELOAD", "loops.TOUCH", "'in al, 0x64'"])
def test_what_every_exit_passes_is_compiled(shadow: bool, body: str) -> None:
    """No file of the kernel's that each exit of a guest passes was left out when the others were compiled."""
    code = INTERPRETED.format(body=body, shadow=shadow)

    assert "[]\n" == python(code, "compiled").stdout
    if shadow or "in al" in body:  # otherwise nothing exits
        assert f"kernel/virtual/{'shadowed' if 'loops' in body else 'vmthread'}.py" in python(code, "python").stdout
