# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens next: for each wait of the kernel's, what its answer does, and what becomes of a thread that gets none.

The waits are in `objects/waits.py`. A thread of which the call was cancelled goes on where it was, and what caused the
call recurs.
"""

from __future__ import annotations

from typing import Final

from l4lab.kernel.devices import interrupts
from l4lab.kernel.ipc import faults, strings
from l4lab.kernel.objects import waits
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.objects.waits import WAITS, Wait
from l4lab.kernel.processor import preemption
from l4lab.kernel.state import Next, State
from l4lab.kernel.virtual import vmfault


def _no_answer(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    raise AssertionError(f"{thread!r} waits for no answer, and {sender!r} sent one")


def _goes_on(k: State, thread: Tcb, error: int) -> None:
    """Nothing was asked of anybody."""


_NEXT: dict[Wait, Next] = {
    waits.OWN_IPC: Next(_no_answer, _goes_on),
    waits.START: Next(faults.started, faults.unanswered),
    waits.PAGE: Next(faults.resolved, faults.unanswered),
    waits.PORTS: Next(faults.ports_given, faults.unanswered),
    waits.EXCEPTION: Next(faults.frame_returned, faults.unanswered),
    waits.EXCEPTION_ITEMS: Next(faults.resolved, faults.unanswered),
    waits.MONITOR: Next(vmfault.resumed, faults.unanswered),
    waits.QUANTUM: Next(preemption.quantum_renewed, faults.unanswered),
    waits.PREEMPTED: Next(faults.resolved, faults.unanswered),
    waits.STRING_PAGE: Next(strings.page_brought, faults.unanswered),
    waits.ACKNOWLEDGEMENT: Next(interrupts.acknowledged, interrupts.unhandled),
    waits.CONSOLE: Next(_no_answer, _goes_on),
}
TABLE: Final = [_NEXT[wait] for wait in WAITS]
