# SPDX-License-Identifier: GPL-2.0-or-later
"""The student's file: loading it, calling its functions, and telling what went wrong in it.

Lives here: everything that runs the student's code runs it through `Student`, which turns whatever is raised into a
`Trouble` with the lines of the student's own file, and none of ours. Lives elsewhere: the limits, in `worker`.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from l4lab.grader.result import Trouble

Function = Callable[..., Any]

LINES = 6  # of a traceback: the innermost calls


class OutOfTime(BaseException):
    """The time is over; raised in the student's code by a signal. No `except Exception` of theirs keeps it."""


class Troubled(Exception):
    """The student's file cannot be used any further."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


class Student:
    """The student's file as a module."""

    def __init__(self, path: Path, seconds: float, memory_mib: int) -> None:
        self.path = path
        self.seconds, self.memory_mib = seconds, memory_mib
        self.module = ModuleType(f"solution.{path.stem}")  # whatever the file is called, no other module has this name
        self.module.__file__ = str(path)

    def load(self, wanted: tuple[str, ...]) -> dict[str, Function]:
        """Execute the file; the functions it must define, by name. `wanted` are headings like "cpuid(fault, reply)"."""
        sys.modules[self.module.__name__] = self.module  # dataclasses look there for the module of a class
        try:
            code = compile(self.path.read_bytes(), self.path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise Troubled(Trouble("The file is not valid Python. Mend this first:", _syntax(error))) from None
        except (RecursionError, MemoryError, OverflowError):
            nested = "The file has an expression that is too long, or nested too deeply, for Python to read. Divide it."
            raise Troubled(Trouble(nested)) from None
        self.call(exec, code, vars(self.module))
        return {_name(heading): self._function(heading) for heading in wanted}

    def _function(self, heading: str) -> Function:
        name, parameters = _name(heading), heading.partition("(")[2].count(",") + 1
        function: Function | None = getattr(self.module, name, None)
        if function is None or not callable(function):
            raise Troubled(Trouble(f"The file has no function {heading}. Define it, with exactly this name."))
        try:
            inspect.signature(function).bind(*[None] * parameters)
        except (TypeError, ValueError):
            raise Troubled(
                Trouble(f"The function {name} does not take what it is given. Define it as: def {heading}:")
            ) from None
        return function

    def call(self, function: Function, *arguments: object) -> None:
        """Call into the student's code; raises `Troubled`, and nothing else, if it does not come back well."""
        try:
            function(*arguments)
        except BaseException as error:  # the student's code may raise anything, SystemExit included
            raise Troubled(self.trouble(error)) from None

    def trouble(self, error: BaseException) -> Trouble:
        """What was raised, in words, and where in the student's file."""
        where = self._where(error)
        match error:
            case OutOfTime():
                message = f"The file took more than {self.seconds:g} s. Is there a loop that never ends? It was here:"
            case MemoryError():
                message = f"The file took more than {self.memory_mib} MiB of memory. Does something grow without end?"
            case SystemExit():
                message = "The file ends the program by itself. Remove the call of exit; a handler simply returns."
            case RecursionError():
                message = "A function calls itself without end:"
            case _:
                where += "".join(traceback.format_exception_only(error))[:2000]
                message = f"The file raised {type(error).__name__}. The last line here is where it happened:"
        return Trouble(message, _shown(where))

    def _where(self, error: BaseException) -> str:
        """The calls that lead to an exception, those in the student's file."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.path)]
        return "".join(
            f"  {self.path.name}, line {frame.lineno}, in {frame.name}\n    {frame.line}\n" for frame in frames[-LINES:]
        )


def _name(heading: str) -> str:
    return heading.partition("(")[0]


def _syntax(error: SyntaxError | ValueError) -> str:
    """Line, caret and reason; without the path, which says nothing new."""
    lines = traceback.format_exception_only(error)
    where = f"  line {error.lineno}\n" if isinstance(error, SyntaxError) else ""
    return _shown(where + "".join(line for line in lines if not line.startswith("  File ")))


def _shown(text: str) -> str:
    """A text as it can be sent: file names and what was raised may hold characters that are none."""
    return text.encode("utf-8", "backslashreplace").decode()
