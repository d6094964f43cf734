# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs now: what the kernel decides each time before it leaves itself.

One thread has the processor (`current`). The others that can run are *ready*: the scheduler has them. `choose` looks
whether the current thread goes on, and if it does not, gives the processor to another one:

    it waits, is halted, or is gone ------------------+
    its stretch of time is over ---- new slice: ready -+-> who is handed the processor (a message came for it, or the
    it gives way to who sent to it ------------ ready -+   last thread switched to it), if nobody goes before it;
    somebody goes before it ------------------- ready -+   else whom the scheduler names

A preempted thread may have its say first (delay and signal), and whom the choice falls on may not get to run: its time
may be over, or it may have to halt. Then the loop looks again. Each round ends with a thread that runs, or takes one
away from those that can run, so the loop ends.

What lives here: this decision. In which order ready threads have their turns is the scheduler's (`parts.Scheduler`, and
`scheduling/priorities.py`); how long a turn is, and what a preempted thread has to say, is `preemption.py`.
"""

from __future__ import annotations

from typing import Final

from l4lab.kernel import events
from l4lab.kernel.events import Idle, Switched
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.parts import Why
from l4lab.kernel.processor import preemption
from l4lab.kernel.processor.preemption import After
from l4lab.kernel.state import State

RUNNING: Final = ThreadState.RUNNING
HANDED: Final = Why.HANDED
PREEMPTED: Final = Why.PREEMPTED
SLICE: Final = Why.SLICE
YIELDED: Final = Why.YIELDED
_IN_THE_TRACE: Final = {PREEMPTED: "priority", SLICE: "slice", YIELDED: "switch"}


def choose(k: State) -> Tcb | None:
    """Who runs now; it is `current` from here on. None: nobody can."""
    may_delay = True  # a preemption is put off once; at the end of the delay it happens
    while True:
        thread = k.current
        if thread is None or thread.state is not RUNNING:
            chosen = _successor(k, thread)
            if chosen is None:
                _report_idle(k)
                return None  # the processor is nobody's
        elif thread.slice_left <= 0 or thread.halting:
            may_delay = thread.slice_rest is None
            chosen = _end_stretch(k, thread, may_delay)
        elif k.gives_way:
            k.sched.ready(thread, PREEMPTED)
            chosen = _successor(k, thread)
        elif _is_preempted(k, thread):
            chosen = _preempt(k, thread, PREEMPTED, may_delay)
        else:
            return thread
        if chosen is not None and (chosen is thread or _starts(k, chosen)):
            k.current = chosen
            return chosen


def _successor(k: State, before: Tcb | None) -> Tcb | None:
    """Who gets the processor that `before` had, and has not any more; None if nobody is ready."""
    if before is not None:
        before.lent_priority = -1
        k.current = None
    handed = k.handed
    k.handed, k.gives_way, k.reconsider = None, False, False
    if handed is None:
        return k.sched.next()
    if not k.sched.preempts(handed):
        return handed
    handed.lent_priority = -1
    k.sched.ready(handed, HANDED)
    return k.sched.next()


def _is_preempted(k: State, thread: Tcb) -> bool:
    """Does somebody go before the current thread? That can only be so when something has changed."""
    if k.handed is not None:
        k.sched.ready(k.handed, HANDED)
        k.handed = None
    elif not k.reconsider:
        return False
    k.reconsider = False
    return k.sched.preempts(thread)


def _end_stretch(k: State, thread: Tcb, may_delay: bool) -> Tcb | None:
    """The current thread has used up its stretch of time, or must halt. Who runs; None: look again."""
    yielded = thread.yielded
    match preemption.next_stretch(k, thread):
        case After.NOTHING:
            return None
        case After.SLICE:
            k.reconsider = True  # from now on it competes with its own priority
            return None
        case After.NEW_SLICE:
            return _preempt(k, thread, YIELDED if yielded else SLICE, may_delay)


def _preempt(k: State, thread: Tcb, why: Why, may_delay: bool) -> Tcb | None:
    """The current thread could run on, and has to let the next one go first. Who runs; None: look again."""
    k.sched.ready(thread, why)
    chosen = _successor(k, thread)
    if chosen is None or chosen is thread:
        return chosen
    if why is not YIELDED and may_delay and preemption.postpones(thread, chosen.priority, why is SLICE):
        k.sched.ready(chosen, PREEMPTED)
        k.sched.gone(thread)
        return thread
    k.trace.append(events.Preempted(k.now, thread.word, _IN_THE_TRACE[why]))
    if why is not YIELDED and preemption.signals(thread):
        k.sched.ready(chosen, PREEMPTED)
        k.unready(thread)
        preemption.signal(k, thread)
        return None
    return chosen


def _starts(k: State, thread: Tcb) -> bool:
    """The thread gets the processor: %gs:0 leads to its UTCB. False if it has no time left, or must halt."""
    over = thread.slice_left <= 0 or thread.halting
    if over and preemption.next_stretch(k, thread) is After.NOTHING:
        return False
    k.note(Switched(k.now, thread.told))
    k.idle = False
    k.show_utcb(thread)
    return True


def _report_idle(k: State) -> None:
    """Nobody runs from here on: the trace has it once."""
    if not k.idle:
        k.idle = True
        k.note(Idle(k.now))
