# SPDX-License-Identifier: GPL-2.0-or-later
"""A scheduler that somebody else wrote, and what the kernel checks of what it says.

The kernel relies on its scheduler: a thread that it names twice would be in two places, one that is gone would run.
What lives here: a scheduler around the other one, which knows itself who is ready. A wrong answer is a `PartFailed`
that names method and thread.
"""

from __future__ import annotations

from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.parts import Scheduler, Why


class OutsideScheduler(Scheduler):
    """Asks the other one, and believes nothing."""

    def __init__(self, part: OutsidePart) -> None:
        self._part = part
        self._ready: dict[Tcb, None] = {}  # who the other one has

    def ready(self, thread: Tcb, why: Why) -> None:
        self._ready[thread] = None
        self._part.ask("ready", thread, why)

    def gone(self, thread: Tcb) -> None:
        self._ready.pop(thread, None)
        self._part.ask("gone", thread)

    def next(self) -> Tcb | None:
        thread = self._part.ask("next")
        if thread is None:
            if self._ready:
                raise self._part.failed(f".next() returned None, but {next(iter(self._ready))!r} is ready.")
            return None
        if not isinstance(thread, Tcb):
            raise self._part.failed(f".next() returned {thread!r}, which is no thread.")
        if thread not in self._ready:
            raise self._part.failed(
                f".next() returned {thread!r}, which is not ready: it is gone, or was returned before."
            )
        del self._ready[thread]
        return thread

    def preempts(self, thread: Tcb) -> bool:
        answer = self._part.ask("preempts", thread)
        if not isinstance(answer, bool):
            raise self._part.failed(f".preempts({thread!r}) returned {answer!r}, which is neither True nor False.")
        if answer and not self._ready:
            raise self._part.failed(f".preempts({thread!r}) returned True, but nobody is ready.")
        return answer

    def waiting(self) -> list[Tcb]:
        told = [thread for thread in self._part.ask("waiting") if thread in self._ready]
        return told + [thread for thread in self._ready if thread not in told]
