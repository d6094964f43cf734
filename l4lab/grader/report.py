# SPDX-License-Identifier: GPL-2.0-or-later
"""`check` and `show`, and what they give back: what passed, what did not, what to try and where to look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from l4lab.grader import runner
from l4lab.grader.exercise import Exercise, find
from l4lab.grader.result import Answer, Result
from l4lab.views.pictures import Picture
from l4lab.views.svg import Markup, element

MARKS = {True: "✓", False: "✗", None: "·"}
TITLES = {
    "messages": "The latest messages between guest and monitor",
    "guest": "The guest's latest exits, the newest first",
    "console": "The guest's console",
}


@dataclass(frozen=True)
class Report:
    """What became of a file."""

    exercise: Exercise
    result: Result
    printed: str  # what the file itself wrote to its output

    @property
    def passed(self) -> bool:
        """Is everything as it should be?"""
        answers = self.result.answers
        return self.result.trouble is None and bool(answers) and all(answer.passed for answer in answers)

    @property
    def failed(self) -> Answer | None:
        """The first question with the wrong answer."""
        return next((answer for answer in self.result.answers if answer.passed is False), None)

    @property
    def look_at(self) -> list[tuple[str, Picture]]:
        """The picture to look at, with its title; none if all is well or nothing ran."""
        name = "messages" if self.failed is None else self.failed.picture
        picture = None if self.passed else self.result.pictures.get(name)
        return [] if picture is None else [(f"{TITLES[name]}:", picture)]

    @property
    def headline(self) -> str:
        """The verdict in a line."""
        if self.passed:
            return f"{self.exercise.name}: passed. The guest says: {self.result.console.strip()}"
        done = sum(answer.passed is True for answer in self.result.answers)
        count = f", {done} of {len(self.result.answers)} checks passed" if self.result.answers else ""
        return f"{self.exercise.name}: not yet{count}"

    def __repr__(self) -> str:
        lines = [self.headline]
        for answer in self.result.answers:
            lines.append(f"  {MARKS[answer.passed]} {answer.question}")
            if answer.message:
                lines.append(f"      {answer.message}")
        trouble = self.result.trouble
        if trouble is not None:
            lines += [trouble.message, trouble.where.rstrip()]
        if self.printed:
            lines += ["The file printed:", self.printed.rstrip()]
        for title, picture in self.look_at:
            lines += [title, picture.text.rstrip()]
        if not self.passed:
            lines.append(f"Hint: {self.exercise.hint}")
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        parts = [element("p", element("b", self.headline))]
        if self.result.answers:
            parts.append(element("ul", *map(_item, self.result.answers), style="list-style: none; padding-left: 1em"))
        trouble = self.result.trouble
        if trouble is not None:
            parts += [element("p", trouble.message), element("pre", trouble.where)]
        if self.printed:
            parts += [element("p", "The file printed:"), element("pre", self.printed)]
        for title, picture in self.look_at:
            parts += [element("p", title), Markup(picture.html)]
        if not self.passed:
            parts.append(element("p", element("i", f"Hint: {self.exercise.hint}")))
        return element("div", *parts)


@dataclass(frozen=True)
class Showing:
    """What happens when a file plays its part: all pictures of it."""

    exercise: Exercise
    result: Result

    def __repr__(self) -> str:
        parts = [self.exercise.goal]
        if self.result.trouble is not None:
            parts += [self.result.trouble.message, self.result.trouble.where]
        parts += [f"{TITLES[name]}:\n{picture.text}" for name, picture in self.result.pictures.items()]
        return "\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        parts = [element("p", element("b", self.exercise.goal))]
        if self.result.trouble is not None:
            parts += [element("p", self.result.trouble.message), element("pre", self.result.trouble.where)]
        for name, picture in self.result.pictures.items():
            parts += [element("p", TITLES[name] + ":"), Markup(picture.html)]
        return element("div", *parts)


def check(name: str, file: Path | str | None = None) -> Report:
    """Run a file and check it; without a file, the exercise's own in the lab's directory."""
    exercise = find(name)
    result, printed = runner.run(exercise, Path(file) if file is not None else exercise.path)
    return Report(exercise, result, printed)


def show(name: str, file: Path | str | None = None) -> Showing:
    """Run a file and look at what happens; without a file, the exercise's own in the lab's directory."""
    exercise = find(name)
    result, _ = runner.run(exercise, Path(file) if file is not None else exercise.path)
    return Showing(exercise, result)


def _item(answer: Answer) -> Markup:
    line = f"{MARKS[answer.passed]} {answer.question}"
    return (
        element("li", line, element("br"), element("span", answer.message)) if answer.message else element("li", line)
    )
