# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebooks as they lie in the repository. That they run is tested by nbval: see `make test`."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from l4lab.grader.exercise import find

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[str]:
    """The text of all cells of one kind."""
    notebook = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def imports(code: str) -> set[str]:
    """The modules that a cell of Python imports from."""
    nodes = list(ast.walk(ast.parse(code)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


@EACH
def test_no_outputs_are_kept(path: Path) -> None:
    """A notebook is its text: what a machine made of it, and what nbval would compare with, is not stored."""
    notebook: dict[str, Any] = json.loads(path.read_text())

    for cell in notebook["cells"]:
        assert [] == cell.get("outputs", [])
        assert cell.get("execution_count") is None
        assert {} == cell["metadata"]
    assert {"kernelspec", "language_info"} == set(notebook["metadata"])
    assert {"name": "python"} == notebook["metadata"]["language_info"]


@EACH
def test_nothing_is_skipped(path: Path) -> None:
    """Every cell runs in the tests."""
    assert "NBVAL" not in path.read_text()


@EACH
def test_a_notebook_uses_the_front_door(path: Path) -> None:
    """Notebooks import from l4lab and from l4lab.grader, and from nowhere else."""
    python = [code for code in cells(path, "code") if not code.startswith("%%")]

    assert set().union(*map(imports, python)) <= {"l4lab", "l4lab.grader"}


@EACH
def test_cells_are_short(path: Path) -> None:
    """A cell is read at a glance: at most eight lines, unless it is the exercise itself."""
    assert [] == [code for code in cells(path, "code") if len(code.splitlines()) > 8 and not code.startswith("%%")]


@EACH
def test_notebooks_that_are_named_exist(path: Path) -> None:
    """A reader who is sent to another notebook finds it."""
    named = set(re.findall(r"\w+\.ipynb", "".join(cells(path, "markdown"))))

    assert named <= {other.name for other in NOTEBOOKS}


def test_the_exercise_in_its_notebook_is_the_exercise() -> None:
    """The cell with the gaps is exercises/first_exit.py, letter for letter."""
    (path,) = [path for path in NOTEBOOKS if path.stem == "ex01_first_exit"]
    (cell,) = [code for code in cells(path, "code") if code.startswith("%%writefile first_exit.py\n")]

    assert find("first_exit").path.read_text().rstrip("\n") == cell.partition("\n")[2].rstrip("\n")
