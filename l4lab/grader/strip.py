# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the student's copy from the solution: `python -m l4lab.grader.strip` writes exercises/ anew from solutions/.

In a solution, the lines from `# BEGIN SOLUTION: what is to be done` to `# END SOLUTION` are what the student writes;
in the student's copy they become `# TODO: what is to be done`.
"""

from __future__ import annotations

import re
from pathlib import Path

from l4lab.errors import LabError
from l4lab.grader.exercise import directory, exercises

_GAP = re.compile(r"^([ \t]*)# BEGIN SOLUTION: (.*)\n(?:.*\n)*?\1# END SOLUTION\n", re.MULTILINE)


def strip(solution: str) -> str:
    """The student's copy."""
    stripped, gaps = _GAP.subn(r"\1# TODO: \2\n", solution)
    if not gaps or "SOLUTION" in stripped:
        raise LabError(
            "the solution's markers do not match; each gap goes from '# BEGIN SOLUTION: what is to be done' "
            "to '# END SOLUTION', equally far indented"
        )
    return stripped


def solution_of(file: str) -> Path:
    """Where an exercise's solution lies."""
    return directory().parent / "solutions" / file


def main() -> None:
    """Write all students' copies."""
    for exercise in exercises():
        exercise.path.parent.mkdir(parents=True, exist_ok=True)
        exercise.path.write_text(strip(solution_of(exercise.file).read_text()))


if __name__ == "__main__":
    main()
