# SPDX-License-Identifier: GPL-2.0-or-later
"""When a thread's time is over: slices, total quantum, donated time, delayed and signalled preemption.

A thread runs in *stretches*. `slice_left` is what is left of the present one; while it is positive nobody asks
anything, and when it is not, `dispatch.py` asks here before the thread runs on. So one comparison stands for all of it:

    slice_left   the stretch: usually the whole time slice
    slice_rest   what the slice has beyond the stretch, where the stretch is a special one: time that another thread
                 donated, or the delay that a preemption was granted; None where it is not
    slice_own    of both together, at most so much is the thread's own, and part of its total quantum. The rest was
                 donated. Donated time is spent first, so what is its own is min(slice_left + slice_rest, slice_own)
    quantum_left what of the total quantum has not been given out as slices yet

In a special stretch the thread may compete with a priority that is not its own (`lent_priority`): that of the thread
that donated the time, or the sensitive one while it delays a preemption. Both end with the stretch, or when somebody
else gets the processor.

What lives here: stretches, their beginning and their end, and whether a preemption is put off or told by a message. Who
runs is `dispatch.py`. (X.2 manual, sections Schedule, ThreadSwitch, Preemption protocol; reference section 7.)
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi.protocols import PREEMPTION, FaultId
from l4lab.abi.utcb import PreemptionFlags
from l4lab.kernel import events
from l4lab.kernel.ipc import ipc
from l4lab.kernel.ipc.faults import items_for, resolved
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb
from l4lab.kernel.objects.waits import PREEMPTED, QUANTUM
from l4lab.kernel.state import State

_CYCLES_PER_US: Final = 1000
_DELAY, _SIGNAL, _PENDING = (
    int(flag) for flag in (PreemptionFlags.DELAY, PreemptionFlags.SIGNAL, PreemptionFlags.PENDING)
)


class After(Enum):
    """What follows the end of a stretch."""

    SLICE = auto()  # the rest of the thread's time slice
    NEW_SLICE = auto()  # a new one, when its turn comes
    NOTHING = auto()  # none: it is halted, or waits for its scheduler


def next_stretch(k: State, thread: Tcb) -> After:
    """The thread would run, but its stretch is over: give it the next one, or tell why it gets none."""
    if thread.halting:
        thread.halting = False
        k.halt(thread, "by ExchangeRegisters")
        return After.NOTHING
    left = remaining_slice(thread)
    _leave_stretch(thread)
    if left > 0:
        thread.slice_left = left
        return After.SLICE
    infinite = thread.total_quantum >= NEVER_ENDS
    quantum = NEVER_ENDS if infinite else thread.quantum_left + left  # what it ran beyond its slice counts too
    if quantum <= 0:
        _quantum_exhausted(k, thread)
        return After.NOTHING
    _begin_slice(thread, quantum)
    return After.NEW_SLICE


def _leave_stretch(thread: Tcb) -> None:
    """Whatever the stretch was, the next one is no special one, and the thread competes with its own priority."""
    thread.slice_rest = None
    thread.lent_priority = -1
    thread.yielded = False


def _begin_slice(thread: Tcb, quantum: int) -> None:
    """Give out a new slice, all of it the thread's own, of so much that is left of its total quantum."""
    thread.slice_left = min(thread.time_slice, quantum)
    thread.slice_own = NEVER_ENDS
    thread.quantum_left = quantum - thread.slice_left


def remaining_slice(thread: Tcb) -> int:
    """Cycles until the thread needs a new time slice: what is left of this one, and donated time."""
    return thread.slice_left + (thread.slice_rest or 0)


def own_slice(thread: Tcb) -> int:
    """Cycles that are left of the thread's own time slice."""
    return min(remaining_slice(thread), thread.slice_own)


def remaining_quantum(thread: Tcb) -> int:
    """Cycles that are left of the thread's total quantum; NEVER_ENDS if it is infinite."""
    if thread.total_quantum >= NEVER_ENDS:
        return NEVER_ENDS
    return max(thread.quantum_left + own_slice(thread), 0)


def set_quantum(thread: Tcb, quantum: int) -> None:
    """Give the thread a total quantum and a slice of it, whatever it has used of those before, or was given."""
    _leave_stretch(thread)
    _begin_slice(thread, quantum)


def donate(donor: Tcb, taker: Tcb | None, ran: int) -> bool:
    """ThreadSwitch, `ran` cycles into the donor's run: all time that it has left is the taker's, and was used by the
    donor. False if there is no taker, or nothing to give: what is the donor's own returns to its total quantum."""
    donor.slice_left -= ran
    left, own = remaining_slice(donor), own_slice(donor)
    _leave_stretch(donor)
    donor.slice_left, donor.slice_own, donor.yielded = ran, NEVER_ENDS, True
    if taker is None or left <= 0:
        donor.quantum_left += own
        return False
    taker.slice_own = own_slice(taker)
    taker.slice_rest = remaining_slice(taker)
    taker.slice_left = min(left, NEVER_ENDS)
    return True


def _quantum_exhausted(k: State, thread: Tcb) -> None:
    """The thread has used its total quantum: it calls its scheduler, and runs on after the answer.

    An answer without a new quantum (Schedule) renews the old one.
    """
    k.trace.append(events.Preempted(k.now, thread.word, "quantum"))
    thread.slice_left = thread.quantum_left = 0
    thread.slice_own = NEVER_ENDS
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
    thread.lent_priority = thread.sensitive_priority
    return True


def signals(thread: Tcb) -> bool:
    """Does the thread ask for a signal (s) when it is preempted, and has it an exception handler?"""
    return bool(thread.tcr(u.PREEMPTION_FLAGS) & _SIGNAL and thread.tcr(u.EXCEPTION_HANDLER))


def signal(k: State, thread: Tcb) -> None:
    """The preempted thread calls its exception handler, and runs on after the answer."""
    ipc.call_for(k, thread, thread.tcr(u.EXCEPTION_HANDLER), _message(k, thread), PREEMPTED)


def clear_pending(thread: Tcb) -> None:
    """ThreadSwitch: what was postponed happens now."""
    thread.set_tcr(u.PREEMPTION_FLAGS, thread.tcr(u.PREEMPTION_FLAGS) & ~_PENDING)
