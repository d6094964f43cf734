# SPDX-License-Identifier: GPL-2.0-or-later
"""When a thread's time is over: slices, total quantum, donated time, delayed and signalled preemption.

A thread runs in *stretches*. `slice_left` is what is left of the present one; while it is positive nobody asks
anything, and when it is not, the main loop asks here before the thread runs on. So one comparison stands for all of it:

    slice_left   the stretch: usually the whole time slice
    slice_rest   what the slice has beyond the stretch, where the stretch is a special one: time that another thread
                 donated, the delay that a preemption was granted, or none, for a thread that must stop (`halting`)
    quantum_left what of the total quantum has not been given out as slices yet

What lives here: the end of a stretch, and whether a preemption happens now, later, or with a message. Setting these
numbers is `schedule.py`. (X.2 manual, sections Schedule, ThreadSwitch, Preemption protocol; reference section 7.)
"""

from __future__ import annotations

from enum import Enum, auto

from l4lab.abi import utcb as u
from l4lab.abi.protocols import PREEMPTION, FaultId
from l4lab.abi.utcb import PreemptionFlags
from l4lab.kernel import events
from l4lab.kernel.ipc import ipc
from l4lab.kernel.ipc.faults import items_for, resolved
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb
from l4lab.kernel.objects.waits import PREEMPTED, QUANTUM
from l4lab.kernel.state import State

_CYCLES_PER_US = 1000
_DELAY, _SIGNAL, _PENDING = (
    int(flag) for flag in (PreemptionFlags.DELAY, PreemptionFlags.SIGNAL, PreemptionFlags.PENDING)
)


class After(Enum):
    """What follows the end of a stretch."""

    SLICE = auto()  # the rest of the thread's time slice
    NEW_SLICE = auto()  # a new one, when its turn comes
    NOTHING = auto()  # it does not run on: it is halted, or waits for its scheduler


def next_stretch(k: State, thread: Tcb) -> After:
    """The thread would run, but its stretch is over: give it the next one, or tell why it gets none."""
    left = remaining_slice(thread)
    thread.slice_rest = None
    thread.yielded = False
    if thread.halting:
        thread.halting = False
        thread.slice_left = left
        k.current = None  # whoever ran before stands in a queue, or does not run
        k.halt(thread, "by ExchangeRegisters")
        return After.NOTHING
    if left > 0:
        thread.slice_left = left
        return After.SLICE
    infinite = thread.total_quantum >= NEVER_ENDS
    quantum = NEVER_ENDS if infinite else thread.quantum_left + left  # what it ran beyond its slice counts too
    if quantum <= 0:
        _quantum_exhausted(k, thread)
        return After.NOTHING
    thread.slice_left = min(thread.time_slice, quantum)
    thread.quantum_left = quantum - thread.slice_left
    return After.NEW_SLICE


def remaining_slice(thread: Tcb) -> int:
    """Cycles that are left of the thread's time slice, a donated or delayed stretch included."""
    return thread.slice_left + (thread.slice_rest or 0)


def remaining_quantum(thread: Tcb) -> int:
    """Cycles that are left of the thread's total quantum; NEVER_ENDS if it is infinite."""
    if thread.total_quantum >= NEVER_ENDS:
        return NEVER_ENDS
    return max(thread.quantum_left + remaining_slice(thread), 0)


def set_quantum(thread: Tcb, quantum: int) -> None:
    """Give the thread a total quantum, whatever it has used of the one before; the present slice is part of it."""
    thread.slice_left = min(remaining_slice(thread), quantum)
    thread.slice_rest = None
    thread.quantum_left = quantum - thread.slice_left


def end_stretch(thread: Tcb) -> None:
    """The thread does not run on before somebody looks at it; what it has of its slice it keeps."""
    thread.slice_rest = remaining_slice(thread)
    thread.slice_left = 0


def _quantum_exhausted(k: State, thread: Tcb) -> None:
    """The thread has used its total quantum: it calls its scheduler, and runs on after the answer.

    An answer without a new quantum (Schedule) renews the old one.
    """
    k.trace.append(events.Preempted(k.now, thread.word, "quantum"))
    k.current = None
    thread.slice_left = thread.quantum_left = 0
    ipc.call_for(k, thread, thread.scheduler, _message(k, thread), QUANTUM)


def quantum_renewed(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The scheduler has answered."""
    if remaining_quantum(thread) <= 0:
        set_quantum(thread, thread.total_quantum)
    return resolved(k, thread, words, sender)


def _message(k: State, thread: Tcb) -> tuple[int, ...]:
    """The preemption message: when it happened, in microseconds."""
    items = items_for(thread, FaultId.PREEMPTION)
    us = k.now // _CYCLES_PER_US
    return PREEMPTION << 16 | len(items) << 6 | 2, us & 0xFFFF_FFFF, us >> 32, *items


def postpones(thread: Tcb, by: int, slice_over: bool) -> bool:
    """May the thread, which asks for delay (d), run on for its maximal delay before one of priority `by` preempts it?

    The delay is a stretch of its own, in which the thread has its sensitive priority. It finds I set, and should
    call ThreadSwitch; at the end of the delay it is preempted in any case.
    """
    flags = thread.tcr(u.PREEMPTION_FLAGS)
    if not flags & _DELAY or not thread.max_delay or by > thread.sensitive_priority:
        return False
    thread.set_tcr(u.PREEMPTION_FLAGS, flags | _PENDING)
    left = remaining_slice(thread)
    thread.slice_left = thread.max_delay
    thread.slice_rest = 0 if slice_over else left - thread.max_delay
    if slice_over:
        thread.quantum_left += left - thread.max_delay  # the new slice has not begun
    return True


def signals(k: State, thread: Tcb) -> bool:
    """If the preempted thread asks for a signal (s): it calls its exception handler, and runs on after the answer."""
    handler = thread.tcr(u.EXCEPTION_HANDLER)
    if not thread.tcr(u.PREEMPTION_FLAGS) & _SIGNAL or not handler:
        return False
    k.sched.remove(thread)
    k.current = None
    ipc.call_for(k, thread, handler, _message(k, thread), PREEMPTED)
    return True


def clear_pending(thread: Tcb) -> None:
    """ThreadSwitch: what was postponed happens now."""
    thread.set_tcr(u.PREEMPTION_FLAGS, thread.tcr(u.PREEMPTION_FLAGS) & ~_PENDING)
