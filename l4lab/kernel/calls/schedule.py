# SPDX-License-Identifier: GPL-2.0-or-later
"""The system calls of scheduling: Schedule and ThreadSwitch.

What lives here: arguments, refusals and results. What a thread's time is, and what happens when it is over, is
`processor/preemption.py`. (X.2 manual, sections Schedule and ThreadSwitch; reference section 7.)
"""

from __future__ import annotations

from l4lab.abi.calls import UNCHANGED, ErrorCode, PreemptionControl, PrioControl, ScheduleResult, TimeControl
from l4lab.abi.frame import EAX, ECX, EDI, EDX, ESI
from l4lab.abi.time import TimePeriod, microseconds
from l4lab.errors import Refused
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb, ThreadState
from l4lab.kernel.processor import preemption
from l4lab.kernel.state import State

PROCESSORS = 1
_CYCLES_PER_US = 1000


def sys_schedule(k: State, caller: Tcb) -> None:
    """Priority and time of a thread, for its scheduler. Returns its state, and what time it had left before."""
    regs = caller.regs
    dest = k.find(regs[EAX], caller)
    prio, time, processor, delay = regs[ECX], regs[EDX], regs[ESI], regs[EDI]
    if dest is None:
        raise Refused(ErrorCode.INVALID_THREAD)
    if not caller.space.privileged and caller.id != dest.scheduler:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    priority = dest.priority if prio == UNCHANGED else PrioControl.decode(prio).priority
    sensitive = priority if delay == UNCHANGED else PreemptionControl.decode(delay).sensitive_priority
    highest = 255 if caller.space.privileged else caller.priority
    if (prio != UNCHANGED and priority > highest) or (delay != UNCHANGED and sensitive > highest):
        raise Refused(ErrorCode.NO_PRIVILEGE)
    if sensitive < priority or (processor != UNCHANGED and processor >= PROCESSORS):
        raise Refused(ErrorCode.INVALID_PARAMETER)
    length_word, quantum_word = TimeControl.decode(time).time_slice, TimeControl.decode(time).total_quantum
    if time != UNCHANGED and (TimePeriod.decode(length_word).point or TimePeriod.decode(quantum_word).point):
        raise Refused(ErrorCode.INVALID_PARAMETER)

    ran = k.now - k.since if dest is caller else 0  # in its present run, which is not accounted for yet
    dest.slice_left -= ran
    quantum = preemption.remaining_quantum(dest)
    regs[EDX] = _shown(max(preemption.remaining_slice(dest), 0)) << 16 | _shown(quantum)
    if prio != UNCHANGED:
        k.set_priority(dest, priority)
    if delay != UNCHANGED:
        dest.sensitive_priority = sensitive
        dest.max_delay = PreemptionControl.decode(delay).max_delay * _CYCLES_PER_US
    if time != UNCHANGED:
        dest.time_slice = max(_cycles(length_word), _CYCLES_PER_US)
        dest.total_quantum = _cycles(quantum_word)
        preemption.set_quantum(dest, dest.total_quantum)
    dest.slice_left += ran
    regs[EAX] = _result(dest)
    caller.refuse(ErrorCode.OK)


def _result(thread: Tcb) -> ScheduleResult:
    """What the thread is doing, as Schedule tells it."""
    if thread.halting:
        return ScheduleResult.INACTIVE
    if thread.copying is not None:
        return ScheduleResult.SENDING if thread.copying.sender is thread else ScheduleResult.RECEIVING
    match thread.state:
        case ThreadState.ABORTED:
            return ScheduleResult.DEAD
        case ThreadState.HALTED | ThreadState.INACTIVE:
            return ScheduleResult.INACTIVE
        case ThreadState.RUNNING:
            return ScheduleResult.RUNNING
        case ThreadState.POLLING:
            return ScheduleResult.PENDING_SEND
        case ThreadState.WAITING:
            return ScheduleResult.WAITING
        case ThreadState.TRANSFERRING:
            raise AssertionError(f"{thread!r} transfers nothing")


def _cycles(period: int) -> int:
    us = microseconds(period)
    return NEVER_ENDS if us is None else us * _CYCLES_PER_US


def _shown(cycles: int) -> int:
    """Remaining time as the result has it: microseconds, at most 65535; 0 for an infinite one."""
    return 0 if cycles >= NEVER_ENDS // 2 else min(cycles // _CYCLES_PER_US, 0xFFFF)


def sys_thread_switch(k: State, caller: Tcb) -> None:
    """Give up the rest of the time slice: to a thread that can run, in addition to its own, or to whoever is next.

    The donated time is not given back, and counts as used by the donor. What is not donated, the donor's total quantum
    keeps.
    """
    dest = k.find(caller.regs[EAX], caller)
    if dest is not None and (dest is caller or dest.state is not ThreadState.RUNNING or dest.halting):
        dest = None
    preemption.clear_pending(caller)
    if preemption.donate(caller, dest, k.now - k.since) and dest is not None:
        k.switch_to(dest, caller.priority)
