# SPDX-License-Identifier: GPL-2.0-or-later
"""A scheduler that somebody else wrote, and what the kernel checks of what it says.

The kernel relies on its scheduler: a thread that it names twice would be in two places, one that is gone would run.
What lives here: a scheduler around the other one, which knows itself who is ready. A wrong answer, or an exception, is
a `PartFailed` that names method and thread. The kernel may be in the midst of a change then, so it does not go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from l4lab.errors import PartFailed
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.parts import Scheduler, Why

RULES: Final = "What each method has to do is in Scheduler, in l4lab/kernel/parts.py."
METHODS: Final = ("ready", "gone", "next", "preempts")


class OutsideScheduler(Scheduler):
    """Asks the other one, and believes nothing."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._ready: dict[Tcb, None] = {}  # who the other one has
        self._failure: PartFailed | None = None
        self.asked = False  # is the other one at work?
        self._name = getattr(make, "__name__", "the scheduler")
        self._part: Any = None
        if isinstance(make, type):
            _complete(make)
        self._part = self._guarded("", make, ())
        _complete(type(self._part))
        self._name = type(self._part).__name__

    def ready(self, thread: Tcb, why: Why) -> None:
        self._ready[thread] = None
        self._ask("ready", thread, why)

    def gone(self, thread: Tcb) -> None:
        self._ready.pop(thread, None)
        self._ask("gone", thread)

    def next(self) -> Tcb | None:
        thread = self._ask("next")
        if thread is None:
            if self._ready:
                raise self._failed(f".next() returned None, but {next(iter(self._ready))!r} is ready.")
            return None
        if not isinstance(thread, Tcb):
            raise self._failed(f".next() returned {thread!r}, which is no thread.")
        if thread not in self._ready:
            raise self._failed(f".next() returned {thread!r}, which is not ready: it is gone, or was returned before.")
        del self._ready[thread]
        return thread

    def preempts(self, thread: Tcb) -> bool:
        answer = self._ask("preempts", thread)
        if not isinstance(answer, bool):
            raise self._failed(f".preempts({thread!r}) returned {answer!r}, which is neither True nor False.")
        if answer and not self._ready:
            raise self._failed(f".preempts({thread!r}) returned True, but nobody is ready.")
        return answer

    def waiting(self) -> list[Tcb]:
        told = [thread for thread in self._ask("waiting") if thread in self._ready]
        return told + [thread for thread in self._ready if thread not in told]

    def _ask(self, method: str, *arguments: object) -> Any:
        return self._guarded("." + method, getattr(self._part, method), arguments)

    def _guarded(self, name: str, function: Callable[..., object], arguments: tuple[object, ...]) -> Any:
        if self._failure is not None:
            raise PartFailed(f"The kernel has stopped, and does not go on: {self._failure}")
        self.asked = True
        try:
            return function(*arguments)
        except KeyboardInterrupt:
            raise self._failed(
                f"{_call(name, arguments)} did not come back. Is there a loop in it that never ends?"
            ) from None
        except Exception as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise self._failed(f"{_call(name, arguments)} raised {what}.") from error
        finally:
            self.asked = False

    def _failed(self, what: str) -> PartFailed:
        self._failure = PartFailed(f"{self._name}{what} {RULES}")
        return self._failure


def _complete(kind: type) -> None:
    """Is this a class of schedulers that can do all that they must?"""
    if not issubclass(kind, Scheduler):
        raise PartFailed(f"{kind.__name__} is no scheduler. Derive it from l4lab.kernel.parts.Scheduler.")
    for name in METHODS:
        if getattr(kind, name) is getattr(Scheduler, name):
            raise PartFailed(f"{kind.__name__} has no method {name}(). {RULES}")


def _call(name: str, arguments: tuple[object, ...]) -> str:
    """The call as it would be written."""
    shown = [argument.name if isinstance(argument, Why) else repr(argument) for argument in arguments]
    return f"{name}({', '.join(shown)})"
