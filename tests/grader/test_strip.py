# SPDX-License-Identifier: GPL-2.0-or-later
"""Exercises come in pairs."""

from __future__ import annotations

import pytest

from l4lab.errors import LabError
from l4lab.grader import checks
from l4lab.grader.exercise import Exercise, directory, exercises
from l4lab.grader.strip import solution_of, strip

EACH = pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.name)


@EACH
def test_the_students_copy_is_the_stripped_solution(exercise: Exercise) -> None:
    """exercises/ is what `strip` makes of solutions/; if not: python -m l4lab.grader.strip."""
    assert strip(solution_of(exercise.file).read_text()) == exercise.path.read_text()


@EACH
def test_the_students_copy_says_what_to_do(exercise: Exercise) -> None:
    """There is a TODO for each function, and nothing of the solution."""
    copy = exercise.path.read_text()

    assert len(exercise.functions) == copy.count("# TODO: ")
    assert "SOLUTION" not in copy


@EACH
def test_every_check_is_a_question(exercise: Exercise) -> None:
    """The checks that an exercise names exist, and their docstrings can be shown to a student."""
    for name in exercise.checks:
        assert (checks.named(name).__doc__ or "").endswith("?"), name


def test_every_file_belongs_to_an_exercise() -> None:
    """Nothing lies in exercises/ or solutions/ that exercises.toml does not name."""
    listed = {exercise.file for exercise in exercises()}
    for place in (directory(), directory().parent / "solutions"):
        assert listed == {str(file.relative_to(place)) for file in place.rglob("*.py")}


def test_a_gap_is_replaced_line_by_line() -> None:
    """Only what is between the markers goes, and the markers with it."""
    solution = (
        "def f():\n    # BEGIN SOLUTION: return one.\n    x = 1\n\n    return x\n    # END SOLUTION\n\nprint(f())\n"
    )

    assert "def f():\n    # TODO: return one.\n\nprint(f())\n" == strip(solution)


@pytest.mark.parametrize(
    "solution",
    ["x = 1\n", "# BEGIN SOLUTION: x\nx = 1\n", "# BEGIN SOLUTION: x\n  # END SOLUTION\n", "# END SOLUTION\n"],
)
def test_markers_that_do_not_match_are_refused(solution: str) -> None:
    """A solution never gets into exercises/ by a forgotten marker."""
    with pytest.raises(LabError, match="markers do not match"):
        strip(solution)
