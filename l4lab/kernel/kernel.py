# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel: its state, and the main loop.

This is the file to begin with. Everything that the kernel knows hangs on `Kernel`, and each entry into the kernel
passes `_run_thread`. Who runs is decided in `processor/dispatch.py`; what an entry means, and the table of system
calls, is `calls/traps.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import greenlet

from l4lab.abi.calls import SystemCall
from l4lab.errors import PartFailed
from l4lab.kernel import events
from l4lab.kernel.calls import answers, traps
from l4lab.kernel.calls.hosted import STEP_CYCLES
from l4lab.kernel.devices import debugtraps, interrupts
from l4lab.kernel.events import KernelEntry
from l4lab.kernel.ipc import ipc
from l4lab.kernel.ipc.outsideipc import OutsideIpc
from l4lab.kernel.objects.instants import Input
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb
from l4lab.kernel.parts import Parts
from l4lab.kernel.processor.dispatch import choose
from l4lab.kernel.state import EventSink, State
from l4lab.kernel.virtual import vmthread
from l4lab.machine import engine as e
from l4lab.machine.board import Machine

ENTRY_CYCLES: Final = 200  # what entering and leaving the kernel takes
LONGEST_RUN: Final = 1_000_000  # cycles after which the loop looks around, so that a stop request is heard
TLB_EPOCH: Final = 1 << 26  # cycles: the TLB is emptied at these instants in every run, since no checkpoint can hold it
IPC: Final = SystemCall.IPC
Enough = Callable[[], bool]


class _NoTrace:
    """Of a kernel that was closed."""

    def append(self, event: events.Event, /) -> None:
        """Nothing happens any more."""

    def settle(self) -> None:
        """Nothing to put away."""


class Kernel(State):
    """An L4 kernel on a machine. `boot.py` makes one and starts the first threads."""

    def __init__(self, machine: Machine, trace: EventSink, kernel_memory: int, parts: Parts) -> None:
        """`kernel_memory`: physical address from which on RAM is the kernel's own."""
        super().__init__(machine, trace, kernel_memory, parts)
        self.after = answers.TABLE
        if parts.ipc is not None:
            self.ipc_path = OutsideIpc(self, parts.ipc)
        self.broken: PartFailed | None = None  # a part failed, perhaps in the midst of a change
        self._next_epoch = TLB_EPOCH
        self._input_due = False
        self._moved = True  # has the machine come to another instant of its own since `enough` was asked?

    def close(self) -> None:
        """The machine is about to go: end the hosted programs, whose frames no garbage collector looks into."""
        self.home = greenlet.getcurrent()
        for program in self.programs.values():
            program.stop()
        for thread in self.threads.values():
            if thread.program is not None:
                thread.program.stop()
            thread.regs.release()
            if thread.utcb is not None:
                thread.utcb.release()
            if thread.vcpu is not None:
                thread.vcpu.vmcs.registers.release()
        self.trace = _NoTrace()  # as large as the run was long, and the kernel's objects hold each other for a while

    # -- the main loop ---------------------------------------------------------------------------------------------

    def run(
        self, until: int, enough: Enough | None = None, watch: Enough | None = None, one_entry: bool = False
    ) -> str:
        """Run until cycle `until`, or until it is enough. Why it came back, in a word.

        `enough` is asked after each kernel entry, and when an idle machine wakes: at instants of the machine's alone.
        `watch` is asked when the loop looks around: after each port access, every `LONGEST_RUN` cycles, and when a run
        has taken long by the host's clock. "deadline", "enough" (either said so), "stopped" (`request_stop`), "halted"
        (a thread did), "event" (with `one_entry`, after one), or "idle": nothing will ever happen again without
        input from outside. Wherever it comes back, the state is that of one instant (see `objects/instants.py`).
        """
        if self.broken is not None:
            raise PartFailed(f"The kernel has stopped for good. {self.broken}")
        try:
            return self._run(until, enough, watch, one_entry)
        except PartFailed as failed:
            self.broken = failed
            raise

    def _run(self, until: int, enough: Enough | None, watch: Enough | None, one_entry: bool) -> str:
        """`run`, while no part fails."""
        halts = self.halts
        self.home = greenlet.getcurrent()
        self._horizon = 0
        self._moved = True
        self.now = self.clock.cycles
        while True:
            asking = enough if self._moved else None
            self._moved = False
            if self.now >= self._horizon:
                why = self._look_around(until, halts, watch, asking)
                if why:
                    return why
            elif asking is not None and asking():
                return "enough"
            chosen = choose(self)
            if self._input_due:
                self._take_input()
            elif chosen is not None:
                self._run_thread(chosen)
                if one_entry:
                    return "event"
            elif not self._pass_time(until):
                return "idle"

    def _look_around(self, until: int, halts: int, watch: Enough | None, enough: Enough | None) -> str:
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
        if (watch is not None and watch()) or (enough is not None and enough()):
            return "enough"
        if now >= self._device_deadline:
            self._look_at_devices()
        while self.unsettled:
            ipc.go_on(self, self.unsettled.popleft())
            now = self.now = self.clock.cycles
        while (timer := self.timers.next()) <= now:
            ipc.expire(self, self.timers.expire())
        if now >= self._next_epoch:
            self.machine.engine.flush_tlb()
            self._next_epoch = (now // TLB_EPOCH + 1) * TLB_EPOCH
        self._input_due = self.input.is_due(now, self.entries)
        given = self.input.next_cycle(now)
        horizon = min(until, timer, self._device_deadline, self._next_epoch, given, now + LONGEST_RUN)
        self._horizon = min(horizon, self._horizon)
        return ""

    def _pass_time(self, until: int) -> bool:
        """Nobody can run: time passes up to whatever is next. False if nothing is."""
        wake = min(self.timers.next(), self._device_deadline, self.input.next_cycle(self.now))
        if wake >= NEVER_ENDS:
            return False
        self.now = self.machine.charge(max(min(wake, until) - self.now, 0))
        self._moved = True
        return True

    def request_stop(self) -> None:
        """Ask a run to come back at its next kernel entry; also from a signal handler."""
        self.stop_requested = True
        self._horizon = 0

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
            entered = vmthread.run(self, thread, limit) if thread.vcpu is not None else self._run_native(thread, limit)
            if not entered:
                _account(thread, self.now - start)
                if self.now < limit:  # it has taken long
                    self._horizon = 0
                return
        self.entries += 1
        self._moved = True
        stopped = self.now
        self.now = charge(ENTRY_CYCLES)
        self.note(KernelEntry(self.now, thread.told, self.function, self.now - stopped))
        _account(thread, self.now - start)

    def _run_native(self, thread: Tcb, limit: int) -> bool:
        """Run ring 3 until a trap or `limit`. True: it trapped, and the kernel has been entered."""
        tables = thread.space.tables
        event = self.machine.run_user(thread.frame, tables.cr3, tables.generation, limit)
        self.now = self.clock.cycles
        if event == e.EVENT_BUDGET:
            return False
        traps.user_trap(self, thread, event)
        return True

    def give(self, given: Input) -> None:
        """Input from outside: it comes at its instant."""
        self.input.add(given)
        self._horizon = 0

    def _take_input(self) -> None:
        """What is due comes into the machine; the devices are looked at before anybody runs."""
        self._input_due = False
        for given in self.input.take(self.now, self.entries):
            self.trace.append(events.DeviceInput(self.now, given.data, given.device))
            self.machine.receive(given.device, given.data)
        self.look_at_devices()

    def _look_at_devices(self) -> None:
        self.machine.advance_devices()
        interrupts.deliver(self)
        if self.readers:
            debugtraps.wake_readers(self)
        self._device_deadline = self.machine.device_deadline(self.lines.listens) or NEVER_ENDS


def _account(thread: Tcb, cycles: int) -> None:
    """The thread has run for so long."""
    thread.slice_left -= cycles
    thread.ran += cycles
