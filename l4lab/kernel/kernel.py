# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel: its state, and the loop that decides who runs.

This is the file to begin with. Everything that the kernel knows hangs on `Kernel`, and each entry into the kernel
passes `_run_thread`. What an entry means, and the table of system calls, is `traps.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import greenlet

from l4lab.abi.calls import SystemCall
from l4lab.abi.frame import EIP
from l4lab.abi.ids import LOCAL_BITS, ThreadId
from l4lab.kernel import debugtraps, events, ipc, preemption, traps, vm
from l4lab.kernel.counters import Counters
from l4lab.kernel.events import Switched
from l4lab.kernel.frames import FrameAllocator, RegisterFrames
from l4lab.kernel.hosted import STEP_CYCLES, Died, HostedThread
from l4lab.kernel.interrupts import Interrupts
from l4lab.kernel.mapping import MappingDatabase
from l4lab.kernel.ports import PortRights
from l4lab.kernel.sched import Scheduler, Sleeper
from l4lab.kernel.space import KernelArea, Space
from l4lab.kernel.strings import Copy
from l4lab.kernel.thread import NEVER_ENDS, Tcb, ThreadState
from l4lab.machine import engine as e
from l4lab.machine.board import Machine
from l4lab.machine.memory import PAGE_SIZE
from l4lab.machine.mmu import USER, PageFault, walk

ENTRY_CYCLES = 200  # what entering and leaving the kernel takes
LONGEST_RUN = 1_000_000  # cycles after which the loop looks around, so that a stop request is heard
TLB_EPOCH = 1 << 26  # cycles: the TLB is emptied at these instants in every run, since no checkpoint can hold it
RUNNING, IPC = ThreadState.RUNNING, SystemCall.IPC


Enough = Callable[[], bool]


class EventSink(Protocol):
    """Where the kernel reports what happened."""

    def append(self, event: events.Event, /) -> object:
        """Take note of an event."""

    def settle(self) -> None:
        """A good moment to put away what has been noted."""


class Kernel:
    """An L4 kernel on a machine. `boot.py` makes one and starts the first threads."""

    def __init__(self, machine: Machine, trace: EventSink, kernel_memory: int) -> None:
        """`kernel_memory`: physical address from which on RAM is the kernel's own."""
        self.machine = machine
        self.clock = machine.clock
        self.now = machine.clock.cycles  # the address of this instant: when the kernel was entered
        self.since = self.now  # when the current thread's present run began: `slice_left` is as of then
        self.trace = trace
        self.kernel_memory = kernel_memory
        self.frames = FrameAllocator(machine.memory, kernel_memory, machine.memory.size - kernel_memory)
        self.register_frames = RegisterFrames(self.frames)
        self.area = KernelArea(machine.memory, self.frames)
        self.mappings = MappingDatabase(kernel_memory)
        self.ports = PortRights()
        self.sched = Scheduler()
        self.interrupts = Interrupts()
        self.threads: dict[int, Tcb] = {}  # by thread number
        self.spaces: list[Space] = []
        self.kernel_space = Space("kernel", machine.memory, self.frames, self.area)  # interrupt threads; nothing mapped
        self.programs: dict[int, HostedThread] = {}  # hosted programs that wait for their thread to be activated
        self.kip_frame = 0
        self.frames_of_boot: list[int] = []  # KIP and guest mode's region: they stay for ever
        self.stub_returns: dict[int, SystemCall] = {}  # offset in the KIP -> which call traps there
        self.current: Tcb | None = None
        self.counters = Counters()
        self.entries = 0  # kernel entries so far
        self.stop_requested = False  # from outside, also from a signal handler: come back at the next kernel entry
        self.halts = 0  # threads halted so far: whoever waits for an end need not look before this moves
        self.deaths: list[tuple[Tcb, Died]] = []  # hosted programs that raised
        self._horizon = 0  # the cycle at which to look around again; 0: before anybody runs
        self._device_deadline = 0  # when to look at the devices again
        self._next: Tcb | None = None  # a message came for it: it runs next, if nobody more important is ready
        self._favoured: Tcb | None = None  # who runs, till its slice ends, with the priority of one who switched to it
        self._favour = 0  # that priority
        self._utcb_slot = self.area.slot_frame >> 2
        self._words = machine.memory.u32
        self._next_epoch = TLB_EPOCH
        self._transfers: deque[Copy] = deque()  # messages with strings that can go on
        self.home = greenlet.getcurrent()  # where hosted programs come back to: whoever runs the main loop

    # -- threads ---------------------------------------------------------------------------------------------------

    def find(self, word: int, asker: Tcb | None) -> Tcb | None:
        """The thread that an identifier names (global anywhere, local within the asker's space), or None."""
        thread = self.threads.get(word >> 14)
        if thread is not None and thread.id == word:
            return thread
        if asker is not None and word & 0x3F == 0 and word:
            for thread in asker.space.threads:
                if thread.local_id == word:
                    return thread
        return None

    def global_id(self, word: int, asker: Tcb) -> ThreadId:
        """An identifier as the stubs pass it on: a local one made global, any other as it is."""
        if word & LOCAL_BITS or not word:
            return ThreadId.decode(word)
        thread = self.find(word, asker)
        return ThreadId.decode(word) if thread is None else thread.id

    def new_space(self, name: str) -> Space:
        """A fresh, uninitialised address space."""
        space = Space(name, self.machine.memory, self.frames, self.area)
        self.spaces.append(space)
        return space

    def delete_space(self, space: Space) -> None:
        """The last thread is gone: take all mappings back, also from those who got them from here."""
        self.mappings.forget(space)
        self.ports.forget(self, space)
        space.release()
        self.machine.user.forget_translations()  # the next space may get the same page directory
        self.spaces.remove(space)

    def make_ready(self, thread: Tcb) -> None:
        """The thread can run; it stands at the end of its queue."""
        if thread is not self.current and thread is not self._next:
            self.sched.add(thread)

    def hand_over(self, thread: Tcb) -> None:
        """A message came for the thread: it runs next, unless somebody more important is ready."""
        if thread is self.current:
            return
        if self._next is None:
            self._next = thread
        else:
            self.sched.add(thread)

    def go_first(self, thread: Tcb) -> None:
        """The current thread has let this one's send go through: the sender goes on, unless it is less important."""
        current = self.current
        if current is not None and current.state is RUNNING and thread.priority >= current.priority:
            self.current = None
            self.sched.add_first(current)
            self.hand_over(thread)
        else:
            self.make_ready(thread)

    def favour(self, thread: Tcb, by: Tcb) -> None:
        """ThreadSwitch: `thread`, which stands in a ready queue, runs in the place of `by`, with its priority."""
        self._favour = max(self._favour, by.priority) if by is self._favoured else by.priority
        self._favoured = thread
        self.sched.remove(thread)
        self.hand_over(thread)

    def unfavour(self, thread: Tcb) -> None:
        """From now on the thread runs with its own priority."""
        if thread is self._favoured:
            self._favoured = None

    def halt(self, thread: Tcb, why: str) -> None:
        """The thread, which could run, does not run any more."""
        assert thread.state in (RUNNING, ThreadState.INACTIVE), f"{thread!r} cannot halt at once"
        if self._next is thread:
            self._next = None
        self.sched.remove(thread)
        self.halts += 1
        self._horizon = 0
        thread.state = ThreadState.HALTED
        self.trace.append(events.ThreadHalted(self.now, thread.word, why))

    def kernel_call_failed(self, thread: Tcb, error: int) -> None:
        """A call that the kernel made for a thread found no partner, or was cancelled."""
        if thread.id.is_interrupt:
            self.interrupts.failed(self, thread)
        elif error >> 1 & 7 == 2:  # no partner: nobody will ever resolve the fault
            self.halt(thread, "the thread that should hear of its fault, or of its time being over, does not exist")

    @property
    def next_to_run(self) -> Tcb | None:
        """Who runs next because a message came for it, if nobody more important is ready."""
        return self._next

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
        while self._transfers:
            ipc.continue_transfer(self, self._transfers.popleft())
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
        wake = min(self.sched.next_timer(), self._device_deadline)
        if wake >= NEVER_ENDS:
            return False
        self.now = self.machine.charge(max(min(wake, until) - self.now, 0))
        return True

    def request_stop(self) -> None:
        """Ask a run to come back at its next kernel entry; also from a signal handler."""
        self.stop_requested = True
        self._horizon = 0

    def continue_later(self, copy: Copy) -> None:
        """A pager has answered in the midst of a message: copy on before anybody runs."""
        self._transfers.append(copy)
        self._horizon = 0

    def wake_at(self, cycle: int, thread: Sleeper) -> None:
        """Wake the blocked thread, or end the transfer, at `cycle`."""
        self.sched.wake_at(cycle, thread)
        if cycle < self._horizon:
            self._horizon = cycle

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
        self.trace.append(Switched(self.now, thread.word))
        if self._favoured is not None and thread is not self._favoured:
            self._favoured = None
        self._words[self._utcb_slot] = thread.local_id
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
        self.now = charge(ENTRY_CYCLES)
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

    # -- ports, devices, memory ------------------------------------------------------------------------------------

    def code_at(self, thread: Tcb, length: int) -> bytes:
        """The bytes at a native program's EIP; fewer where a page is missing."""
        memory, cr3, code = self.machine.memory, thread.space.tables.cr3, b""
        while len(code) < length:
            at = thread.regs[EIP] + len(code) & 0xFFFFFFFF
            try:
                pa = walk(memory, cr3, at, USER, set_ad=False)
            except PageFault:
                break
            code += bytes(memory.u8[pa : pa + min(length - len(code), PAGE_SIZE - at % PAGE_SIZE)])
        return code

    def port_in(self, port: int, size: int) -> int:
        """Read a port of the machine."""
        value = self.machine.ports.read(port, size)
        self.look_at_devices()
        return value

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write a port of the machine."""
        self.machine.ports.write(port, size, value)
        self.look_at_devices()

    def input_arrived(self) -> None:
        """Bytes came from outside: whoever waits for them in the kernel may go on."""
        self.look_at_devices()
        debugtraps.input_arrived(self)

    def look_at_devices(self) -> None:
        """A port was touched, or bytes came from outside: look at the devices before anybody runs."""
        self._device_deadline = self._horizon = 0

    def _look_at_devices(self) -> None:
        self.machine.advance_devices()
        self.interrupts.deliver(self)
        self._device_deadline = self.machine.device_deadline(self.interrupts.listens) or NEVER_ENDS

    def code_written(self, pa: int, size: int) -> None:
        """A hosted program stored to memory: whatever the engine translated from there is out of date."""
        self.machine.engine.forget_code(pa, pa + size)
