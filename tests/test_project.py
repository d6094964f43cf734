# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for the project as a whole: licence, levels, dependencies, and an installation without a compiler."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def source_files() -> list[Path]:
    """Every file of ours that can carry a comment."""
    places = [ROOT / "l4lab", ROOT / "tests", ROOT / "tools", ROOT / "examples"]
    below = [file for place in places for file in place.rglob("*") if re.fullmatch(r"\.(py|c|h|s)|", file.suffix)]
    return [file for file in [ROOT / "Makefile", ROOT / "setup.py", *below] if file.is_file()]


def test_every_source_file_names_its_licence() -> None:
    """The licence stands at the top of every source file."""
    marker = "SPDX-License-Identifier: GPL-2.0-or-later"

    assert [] == [file for file in source_files() if file.stat().st_size and marker not in file.read_text()[:200]]


def test_the_licence_is_the_gpl() -> None:
    """LICENSE holds the text that the files name."""
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 2, June 1991" in (ROOT / "LICENSE").read_text()


def levels(project: dict[str, Any], container: str) -> list[set[str]]:
    """The levels of a package as lint-imports holds them, from the top."""
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == [container]]
    return [set(re.findall(r"\w+", layer)) for layer in layers]


def test_the_kernels_reading_order_is_that_of_its_levels(project: dict[str, Any]) -> None:
    """The kernel's README lists every file of it, level by level from the bottom, as lint-imports holds them."""
    kernel = ROOT / "l4lab" / "kernel"
    place = {name: number for number, names in enumerate(reversed(levels(project, "l4lab.kernel"))) for name in names}
    listed: list[tuple[int, str]] = []
    package = ""
    for head, files in re.findall(r"^\| ([^|]*) ?\| (`[^|]*) \|", (kernel / "README.md").read_text(), re.MULTILINE):
        package = head.strip(" `/") or package
        for name in re.findall(r"(\w+)\.py", files):
            file = Path(name) if package == "–" else Path(package, name)
            assert (kernel / file).with_suffix(".py").exists(), file
            listed.append((place[file.parts[0]], name))

    assert sorted(file.stem for file in kernel.rglob("*.py") if file.stem != "__init__") == sorted(n for _, n in listed)
    assert sorted(number for number, _ in listed) == [number for number, _ in listed]


def test_no_class_has_the_name_of_another() -> None:
    """One name, one meaning: no two classes of l4lab are called the same."""
    homes: dict[str, list[str]] = {}
    for path in sorted((ROOT / "l4lab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))

    assert {} == {name: files for name, files in homes.items() if len(files) > 1}


def test_no_file_has_the_name_of_another() -> None:
    """A file's name says at which level the reader is: no two of l4lab are called the same, but for those below."""
    same_by_nature = ("cli", "views")  # a command is called what it is about; a picture, what it shows
    homes: dict[str, list[str]] = {}
    for path in sorted((ROOT / "l4lab").rglob("*.py")):
        file = path.relative_to(ROOT / "l4lab")
        if file.parts[0] not in same_by_nature and file.name != "__init__.py":  # which stands for its package
            homes.setdefault(file.name, []).append(str(file))

    assert {} == {name: files for name, files in homes.items() if len(files) > 1}


def test_the_qualification_of_an_exit_is_taken_apart_by_its_type_only() -> None:
    """Nobody masks or shifts a qualification himself: `abi.vm` has a type for each kind."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "l4lab").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.BitAnd | ast.RShift)
        and any(re.search(r"\bqualification$|_qualification$", ast.unparse(side)) for side in (node.left, node.right))
    ]

    assert [] == found


def test_the_contract_has_the_levels_of_the_architecture(project: dict[str, Any]) -> None:
    """What lint-imports holds is what ARCHITECTURE.md says."""
    held = levels(project, "l4lab")
    rows = re.findall(r"^\| (`[a-z_`, \\|]+`) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    told = [set(re.findall(r"\w+", row)) for row in rows]

    assert [{"cli"}, {"bench"}] == held[:2], "these two share a row of the table, and cli uses bench"
    assert [held[0] | held[1], *held[2:]] == told


def test_what_is_imported_is_declared(project: dict[str, Any]) -> None:
    """Every foreign package that l4lab imports is among its dependencies."""
    names = {"elftools": "pyelftools", "keystone": "keystone-engine", "IPython": "jupyterlab"}
    names |= {
        "mypy_extensions": "mypy-extensions",
        "traitlets": "ipywidgets",
        "jupyter_client": "jupyterlab",
        "click": "typer",
    }  # come with these
    declared = {re.split(r"[<>=]", requirement)[0] for requirement in project["project"]["dependencies"]}
    imported: set[str] = set()
    for file in (ROOT / "l4lab").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"l4lab"}

    assert set() == {names.get(name, name) for name in foreign} - declared


def test_the_engine_is_pinned(project: dict[str, Any]) -> None:
    """machine/engine.py knows the engine's private layout, so no other version will do."""
    assert "unicorn==2.1.4" in project["project"]["dependencies"]


@pytest.mark.slow
def test_without_a_compiler_the_build_goes_on_and_says_so(tmp_path: Path) -> None:
    """No compiler is a loud warning about speed, and not the end of the installation."""
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib", "--build-temp", "temp"]
    for name in ("setup.py", "pyproject.toml", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    # A copy: a build begins by removing what was built before.
    shutil.copytree(ROOT / "l4lab", tmp_path / "l4lab", ignore=shutil.ignore_patterns("*.so", "__pycache__"))

    done = subprocess.run(
        build, cwd=tmp_path, env=os.environ | {"CC": "/nonexistent/cc"}, capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stderr
    assert "the native core was NOT built" in done.stderr
    assert [] == list(tmp_path.rglob("lib/**/*.so"))
