# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding a thread that faults for ever: its pager answers, and nothing comes of it.

Nobody else can tell: to the kernel each fault is a new one, and its pager may mean to have it wait. Lives here: what
the trace says about it. Whom it is told is the session's to know.
"""

from __future__ import annotations

from typing import Final

from l4lab.kernel import events
from l4lab.rig.trace import Trace

LOOK_BACK: Final = 3000  # events, of which one fault takes about seven
OFTEN: Final = 100  # so many times the same fault is no accident


class Watch:
    """Looks at a trace as it grows; `look` says the first thing that should be told."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._next = LOOK_BACK  # not before the trace is so long
        self._told = False

    def look(self) -> str | None:
        """What to tell, once."""
        length = self._trace.total
        if self._told or length < self._next:
            return None
        self._next = length + LOOK_BACK
        found = endless_fault(self._trace.latest(LOOK_BACK))
        self._told = found is not None
        return found


def endless_fault(latest: list[events.AnyEvent]) -> str | None:
    """A sentence about a thread that had the same fault again and again, did nothing else, and got nothing."""
    runs: dict[int, list[events.PageFault | events.IoPageFault]] = {}  # by thread: equal faults in a row
    for event in latest:
        if isinstance(event, events.PageFault | events.IoPageFault):
            run = runs.setdefault(event.thread, [])
            if run and _what(run[-1]) != _what(event):
                run.clear()
            run.append(event)
        elif isinstance(event, events.SystemCalled):
            runs.pop(event.thread, None)
        elif isinstance(event, events.Mapped):
            end = event.va + (1 << event.log2)
            _forget(runs, [t for t, run in runs.items() if _is_page(run[-1], event.va, end)])
        elif isinstance(event, events.PortsMapped):
            for port, count in event.ranges:
                _forget(runs, [t for t, run in runs.items() if _is_port(run[-1], port, port + count)])
    return next((_tell(run[-1]) for run in runs.values() if len(run) >= OFTEN), None)


def _what(fault: events.PageFault | events.IoPageFault) -> tuple[int, ...]:
    if isinstance(fault, events.PageFault):
        return fault.address, fault.ip, fault.rights
    return fault.port, fault.size, fault.ip, -1


def _is_page(fault: events.PageFault | events.IoPageFault, begin: int, end: int) -> bool:
    return isinstance(fault, events.PageFault) and begin <= fault.address < end


def _is_port(fault: events.PageFault | events.IoPageFault, begin: int, end: int) -> bool:
    return isinstance(fault, events.IoPageFault) and begin <= fault.port < end


def _forget(runs: dict[int, list[events.PageFault | events.IoPageFault]], threads: list[int]) -> None:
    for thread in threads:
        del runs[thread]


def _tell(fault: events.PageFault | events.IoPageFault) -> str:
    who = f"thread {fault.thread:#x} at {fault.ip:#x}"
    if isinstance(fault, events.IoPageFault):
        return (
            f"{who} asks for port {fault.port:#x} again and again, and its pager does not give it; "
            "here ports are mapped (--io fpages): if the pager knows nothing of that, try --io iopl3"
        )
    return (
        f"{who} faults at {fault.address & 0xFFFFFFFF:#x} again and again, and its pager does not give it that page; "
        "sigma0 gives what memory there is, once: see --memory, and who has it already"
    )
