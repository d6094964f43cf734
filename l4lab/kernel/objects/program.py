# SPDX-License-Identifier: GPL-2.0-or-later
"""A program written in Python, as the kernel keeps it: a greenlet that stops at each kernel entry.

What lives here: starting, resuming and ending it, and what it can ask for. The CPU that the program sees is
`calls/hosted.py`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import greenlet

from l4lab._compiled import explain
from l4lab.abi.calls import SystemCall
from l4lab.errors import PartFailed
from l4lab.machine.mmu import WalkFault

FINISHED: Final = "finished"
# System calls that a program can make on its way out; one that makes more is left where it stands.
PATIENCE: Final = 100


class PortFault(NamedTuple):
    """The program touched ports that are not mapped into its space."""

    port: int
    size: int


class Died:
    """The program raised: the exception as text, for whoever looks."""

    def __init__(self, exception: BaseException) -> None:
        explain(exception)
        self.summary = traceback.format_exception_only(exception)[-1].strip()
        self.text = "".join(traceback.format_exception(exception))


Request = SystemCall | WalkFault | PortFault | Died | PartFailed | str


def _ended() -> Request:
    return FINISHED


def _nothing(cpu: Any) -> None:
    pass


class HostedThread:
    """The greenlet of one hosted program, and what it asked for last."""

    def __init__(self, main: Callable[[Any], None], name: str) -> None:
        """`main` is called with the CPU that `start` is given."""
        self.name = name
        self._main = main
        self._cpu: object = None
        self._greenlet: greenlet.greenlet | None = None
        self.died: Died | None = None
        self.resume: Callable[[], Request]  # let the program run up to its next kernel entry

    def start(self, cpu: object) -> None:
        """The thread was activated: it has a UTCB, and runs from the beginning when first resumed."""
        self._cpu = cpu
        self._greenlet = greenlet.greenlet(self._run)
        self.resume = self._greenlet.switch

    def _run(self) -> Request:
        try:
            self._main(self._cpu)
        except greenlet.GreenletExit:
            return FINISHED
        except BaseException as exception:  # SystemExit, Ctrl-C: whatever it is, it halts this thread only
            self.died = Died(exception)
            return self.died
        return FINISHED

    def stop(self) -> None:
        """The thread is deleted: unwind the program. System calls that it still makes have no effect."""
        ending, self._greenlet = self._greenlet, None
        self.resume, self._main, self._cpu = _ended, _nothing, None  # what they hold may be large
        if ending is None:
            return
        try:
            for _ in range(PATIENCE):
                if ending.dead:
                    return
                ending.parent = greenlet.getcurrent()  # who is told of its end
                ending.throw(greenlet.GreenletExit)
        except (greenlet.error, ValueError):
            return  # it belongs to another thread of the host, and ends there once nobody has it
