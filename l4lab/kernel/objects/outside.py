# SPDX-License-Identifier: GPL-2.0-or-later
"""A part of the kernel that somebody else wrote, asked with care.

The kernel may be in the midst of a change when it asks one of its parts; so a part that raises, or does what it must
not, ends the run, and the kernel does not go on. What lives here: making the part, asking it, and saying what went
wrong. What an answer must be like is checked by who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from l4lab.errors import PartFailed

RULES: Final = "What each method has to do is in {}, in l4lab/kernel/parts.py."


class OutsidePart:
    """The part, and its failure if it had one."""

    def __init__(self, kind: type, methods: Sequence[str], make: Callable[..., object], *arguments: object) -> None:
        """`kind`: the class in `parts.py` from which the part has to derive; `methods`: those that it must have.

        `make`, as a rule a class, makes the part from the arguments.
        """
        self._kind = kind
        self._methods = methods
        self._rules = RULES.format(kind.__name__)
        self._failure: PartFailed | None = None
        self.asked = False  # is the part at work?
        self.name: str = getattr(make, "__name__", "the part")
        self._part: Any = None
        if isinstance(make, type):
            self._complete(make)
        self._part = self._guarded("", make, arguments)
        self._complete(type(self._part))
        self.name = type(self._part).__name__

    def ask(self, method: str, *arguments: object) -> Any:
        """What the method answers."""
        return self._guarded("." + method, getattr(self._part, method), arguments)

    def failed(self, what: str) -> PartFailed:
        """The part has done something wrong: `what` follows its name."""
        self._failure = PartFailed(f"{self.name}{what} {self._rules}")
        return self._failure

    def _guarded(self, name: str, function: Callable[..., object], arguments: tuple[object, ...]) -> Any:
        if self._failure is not None:
            raise PartFailed(f"The kernel has stopped, and does not go on: {self._failure}")
        before, self.asked = self.asked, True  # what it does may have the kernel ask it something else meanwhile
        try:
            answer = function(*arguments)
        except (Passing, PartFailed):
            raise
        except KeyboardInterrupt:
            raise self.failed(
                f"{_call(name, arguments)} did not come back. Is there a loop in it that never ends?"
            ) from None
        except Exception as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise self.failed(f"{_call(name, arguments)} raised {what}.") from error
        finally:
            self.asked = before
        if self._failure is not None:  # it has heard of it, and went on
            raise self._failure
        return answer

    def _complete(self, kind: type) -> None:
        """Is this a class of such parts that can do all that they must?"""
        if self._kind not in kind.__mro__:
            name = self._kind.__name__
            raise PartFailed(f"{kind.__name__} is no {name}. Derive it from l4lab.kernel.parts.{name}.")
        for name in self._methods:
            if getattr(kind, name) is getattr(self._kind, name):
                raise PartFailed(f"{kind.__name__} has no method {name}(). {self._rules}")


class Passing(Exception):
    """What the kernel raises through a part, which has nothing to do with it."""


def _call(name: str, arguments: tuple[object, ...]) -> str:
    """The call as it would be written."""
    return f"{name}({', '.join(map(_shown, arguments))})"


def _shown(argument: object) -> str:
    if isinstance(argument, Enum):
        return argument.name
    if type(argument) is int and argument >= 4096:  # an address, or an identifier
        return hex(argument)
    return repr(argument)
