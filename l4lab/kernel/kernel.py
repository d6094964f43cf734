# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel: its state, and the loop that decides who runs.

This is the file to begin with. Everything that the kernel knows hangs on `Kernel`, and each entry into the kernel
passes `_run_thread`. What an entry means, and the table of system calls, is `traps.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import greenlet

from l4lab.abi.calls import SystemCall
from l4lab.kernel import events
from l4lab.kernel.calls import answers, traps
from l4lab.kernel.calls.hosted import STEP_CYCLES
from l4lab.kernel.devices import debugtraps, interrupts
from l4lab.kernel.events import Idle, KernelEntry, Switched
from l4lab.kernel.ipc import ipc
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb, ThreadState
from l4lab.kernel.processor import preemption
from l4lab.kernel.state import EventSink, State
from l4lab.kernel.virtual import vm
from l4lab.machine import engine as e
from l4lab.machine.board import Machine

ENTRY_CYCLES = 200  # what entering and leaving the kernel takes
LONGEST_RUN = 1_000_000  # cycles after which the loop looks around, so that a stop request is heard
TLB_EPOCH = 1 << 26  # cycles: the TLB is emptied at these instants in every run, since no checkpoint can hold it
RUNNING, IPC = ThreadState.RUNNING, SystemCall.IPC


Enough = Callable[[], bool]


class Kernel(State):
    """An L4 kernel on a machine. `boot.py` makes one and starts the first threads."""

    def __init__(self, machine: Machine, trace: EventSink, kernel_memory: int) -> None:
        """`kernel_memory`: physical address from which on RAM is the kernel's own."""
        super().__init__(machine, trace, kernel_memory)
        self.after = answers.TABLE
        self._next_epoch = TLB_EPOCH
        self._idle = False  # does the trace say that nobody runs?

    def close(self) -> None:
        """The machine is about to go: end the hosted programs, whose frames no garbage collector looks into."""
        self.home = greenlet.getcurrent()
        for thread in self.threads.values():
            if thread.program is not None:
                thread.program.stop()
            thread.regs.release()
            if thread.utcb is not None:
                thread.utcb.release()

    # -- the main loop ---------------------------------------------------------------------------------------------

    def run(
        self, until: int, enough: Enough | None = None, watch: Enough | None = None, one_entry: bool = False
    ) -> str:
        """Run until cycle `until`, or until it is enough. Why it came back, in a word.

        `enough` is asked before each kernel entry; `watch` only when the loop looks around: after each port access,
        and every `LONGEST_RUN` cycles. "deadline", "enough" (either said so), "stopped" (`request_stop`), "halted"
        (a thread did), "event" (with `one_entry`, after one), or "idle": nothing will ever happen again without
        input from outside.
        """
        halts = self.halts
        self.home = greenlet.getcurrent()
        self._horizon = 0
        self.now = self.clock.cycles
        while True:
            if self.now >= self._horizon:
                why = self._look_around(until, halts, watch)
                if why:
                    return why
            if enough is not None and enough():
                return "enough"
            chosen = self._choose()
            if chosen is not None:
                self._run_thread(chosen)
                if one_entry:
                    return "event"
            elif not self._pass_time(until):
                return "idle"

    def _look_around(self, until: int, halts: int, watch: Enough | None) -> str:
        """All that need not be asked at every kernel entry; and until when it need not. Why to come back, if so."""
        now = self.now
        self._horizon = NEVER_ENDS  # before the questions: an answer that changes meanwhile sets it to 0 again
        if now >= until:
            return "deadline"
        if self.stop_requested:
            return "stopped"
        if self.halts != halts:
            return "halted"
        self.trace.settle()
        if watch is not None and watch():
            return "enough"
        if now >= self._device_deadline:
            self._look_at_devices()
        while self.unsettled:
            ipc.go_on(self, self.unsettled.popleft())
            now = self.now = self.clock.cycles
        while (timer := self.sched.next_timer()) <= now:
            ipc.expire(self, self.sched.expire())
        if now >= self._next_epoch:
            self.machine.engine.flush_tlb()
            self._next_epoch = (now // TLB_EPOCH + 1) * TLB_EPOCH
        horizon = min(until, timer, self._device_deadline, self._next_epoch, now + LONGEST_RUN)
        self._horizon = min(horizon, self._horizon)
        return ""

    def _pass_time(self, until: int) -> bool:
        """Nobody can run: time passes up to whatever is next. False if nothing is."""
        if not self._idle:
            self._idle = True
            self.trace.append(Idle(self.now))
        wake = min(self.sched.next_timer(), self._device_deadline)
        if wake >= NEVER_ENDS:
            return False
        self.now = self.machine.charge(max(min(wake, until) - self.now, 0))
        return True

    def request_stop(self) -> None:
        """Ask a run to come back at its next kernel entry; also from a signal handler."""
        self.stop_requested = True
        self._horizon = 0

    def _choose(self) -> Tcb | None:
        """Who runs now; `current` becomes that thread, and every other that could run stands in a queue.

        At equal priority the current thread stays; then comes the one that a message came for, if it has not used up
        its time slice; then the queue.
        """
        previous, handed = self.current, self._next
        self._next = None
        if (
            handed is not None
            and handed.priority >= self.sched.highest
            and (previous is None or previous.state is not RUNNING)
        ):
            if handed.slice_left > 0 or handed.priority > self.sched.highest:
                return self._switch_to(handed)  # the usual way from a caller to the thread that it called
            self.sched.add(handed)  # its slice ended with its call: others of its priority have their turn first
            handed = None
        chosen = previous if previous is not None and previous.state is RUNNING else None
        why, asked = "priority", True  # is the preempted thread asked whether it has something against it?
        if chosen is not None and chosen.slice_left <= 0:
            yielded, asked = chosen.yielded, chosen.slice_rest is None and not chosen.yielded
            self.unfavour(chosen)
            self._next = handed
            after = preemption.next_stretch(self, chosen)
            if after is preemption.After.NOTHING:
                return self._choose()
            self._next = None
            if after is preemption.After.NEW_SLICE:
                why = "switch" if yielded else "slice"
                self.sched.add(chosen)
                chosen = None
        level = self._level(chosen)
        if handed is not None:
            if self._level(handed) > level:
                if chosen is not None:
                    self.sched.add_first(chosen)
                chosen, level = handed, self._level(handed)
            else:
                self.sched.add_first(handed)
        if self.sched.highest > level:
            if chosen is not None:
                self.sched.add_first(chosen)
            chosen = self.sched.pick()
        if chosen is previous or chosen is None:
            self.current = chosen
            return chosen
        if previous is not None and previous.state is RUNNING:
            return self._preempt(previous, chosen, why, asked)
        return self._switch_to(chosen)

    def _level(self, thread: Tcb | None) -> int:
        """The priority with which a thread competes; -1 for nobody."""
        if thread is None:
            return -1
        return max(thread.priority, self._favour) if thread is self._favoured else thread.priority

    def _preempt(self, previous: Tcb, chosen: Tcb, why: str, asked: bool) -> Tcb | None:
        """`previous` could run on, and stands in a queue; `chosen` is in none. Who runs."""
        if asked and preemption.postpones(previous, chosen.priority, why == "slice"):
            self.sched.add_first(chosen)
            self.sched.remove(previous)
            self._favoured, self._favour = previous, previous.sensitive_priority
            return previous
        self.trace.append(events.Preempted(self.now, previous.word, why))
        if why != "switch" and preemption.signals(self, previous):
            self.sched.add_first(chosen)
            return self._choose()
        return self._switch_to(chosen)

    def _switch_to(self, thread: Tcb) -> Tcb | None:
        """The thread gets the processor: %gs:0 leads to its UTCB."""
        if thread.slice_left <= 0 and preemption.next_stretch(self, thread) is preemption.After.NOTHING:
            return self._choose()
        self._idle = False
        self.note(Switched(self.now, thread.told))
        if self._favoured is not None and thread is not self._favoured:
            self._favoured = None
        self.machine.memory.set_word(self._utcb_slot, thread.local_id)
        self.current = thread
        return thread

    def _run_thread(self, thread: Tcb) -> None:
        """Let the thread run until it enters the kernel, and handle that entry; or until its slice ends, or it is time
        to look around: a limit is no entry, since where somebody outside paused a run must not show in its time."""
        start, charge = self.now, self.machine.charge
        self.since = start
        program = thread.program
        if program is not None:
            charge(STEP_CYCLES)
            request = program.resume()
            self.now = self.clock.cycles
            if request is IPC:
                self.function = "ipc.sys_ipc"
                ipc.sys_ipc(self, thread)
            else:
                traps.hosted_request(self, thread, request)
        else:
            limit = start + thread.slice_left
            if limit > self._horizon:
                limit = self._horizon
            entered = vm.run(self, thread, limit) if thread.vcpu is not None else self._run_native(thread, limit)
            if not entered:
                thread.slice_left -= self.now - start
                return
        self.entries += 1
        stopped = self.now
        self.now = charge(ENTRY_CYCLES)
        self.note(KernelEntry(self.now, thread.told, self.function, self.now - stopped))
        thread.slice_left -= self.now - start

    def _run_native(self, thread: Tcb, limit: int) -> bool:
        """Run ring 3 until a trap or `limit`. True: it trapped, and the kernel has been entered."""
        tables = thread.space.tables
        event = self.machine.run_user(thread.frame, tables.cr3, tables.generation, limit)
        self.now = self.clock.cycles
        if event == e.EVENT_BUDGET:
            return False
        traps.user_trap(self, thread, event)
        return True

    def input_arrived(self) -> None:
        """Bytes came from outside: whoever waits for them in the kernel may go on."""
        self.look_at_devices()

    def _look_at_devices(self) -> None:
        self.machine.advance_devices()
        interrupts.deliver(self)
        if self.readers:
            debugtraps.wake_readers(self)
        self._device_deadline = self.machine.device_deadline(self.lines.listens) or NEVER_ENDS
