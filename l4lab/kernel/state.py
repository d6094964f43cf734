# SPDX-License-Identifier: GPL-2.0-or-later
"""All that the kernel knows, and the few things that every part of it does: find a thread, make one ready, halt one.

What lives here: the state, and what concerns nothing but it. What an entry into the kernel means, and the loop that
decides who runs, are further up: `kernel.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import greenlet

from l4lab.abi.calls import SystemCall
from l4lab.abi.frame import EIP
from l4lab.abi.ids import LOCAL_BITS, ThreadId
from l4lab.kernel import events
from l4lab.kernel.events import KERNEL_SPACE
from l4lab.kernel.memory.mapping import ALL_RIGHTS, Change, HandedOn, MappingDatabase, Mappings, Revoked
from l4lab.kernel.memory.ports import Lost, PortRights, ranges
from l4lab.kernel.memory.smallpages import Hooks, SmallPages
from l4lab.kernel.memory.walking import OutsideWalk
from l4lab.kernel.objects.copying import Copy
from l4lab.kernel.objects.counters import Counters
from l4lab.kernel.objects.frames import FrameAllocator, RegisterFrames
from l4lab.kernel.objects.instants import InputQueue
from l4lab.kernel.objects.lines import InterruptLines
from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.objects.program import Died, HostedThread
from l4lab.kernel.objects.space import KernelArea, Space
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.parts import PageTree, PageWalk, Parts, Scheduler, Why
from l4lab.kernel.scheduling.outsidescheduler import OutsideScheduler
from l4lab.kernel.scheduling.priorities import Priorities
from l4lab.kernel.scheduling.timers import Sleeper, Timers
from l4lab.machine.board import Machine
from l4lab.machine.mmu import read_mapped, walk

RUNNING: Final = ThreadState.RUNNING

# The answer to a call that the kernel made for a thread: the words as the sender wrote them, MR0 first. 0, or the error
# code that the sender gets: the thread for which the kernel called goes on in any case.
Answered = Callable[["State", Tcb, tuple[int, ...], Tcb], int]
# No answer will come: the error code.
Failed = Callable[["State", Tcb, int], None]


class Next(NamedTuple):
    """What happens when a wait of the kernel's ends (see `objects/waits.py`)."""

    answered: Answered
    failed: Failed


class IpcPath(ABC):
    """The send phase and the receive phase, if they are somebody else's: `ipc/outsideipc.py`."""

    @abstractmethod
    def send(self, sender: Tcb, to: int, timeout: int, from_: int, then_timeout: int) -> None:
        """As `ipc.send`."""

    @abstractmethod
    def receive(self, receiver: Tcb, from_: int, timeout: int, told: int) -> None:
        """As `ipc.receive`."""

    @abstractmethod
    def takes(self, receiver: Tcb, sender: Tcb) -> bool:
        """Does the receiver wait, and would it take a message of this sender?"""


class EventSink(Protocol):
    """Where the kernel reports what happened."""

    def append(self, event: events.Event, /) -> object:
        """Take note of an event."""

    def settle(self) -> None:
        """A good moment to put away what has been noted."""


class State:
    """The state of an L4 kernel on a machine."""

    def __init__(self, machine: Machine, trace: EventSink, kernel_memory: int, parts: Parts) -> None:
        """`kernel_memory`: physical address from which on RAM is the kernel's own."""
        self.parts = parts
        self.machine = machine
        self.clock = machine.clock
        self.now = machine.clock.cycles  # the address of this instant: when the kernel was entered
        self.since = self.now  # when the current thread's present run began: `slice_left` is as of then
        self.trace = trace
        self.note = trace.append  # at hand for those who report in each kernel entry
        self.kernel_memory = kernel_memory
        self.frames = FrameAllocator(machine.memory, kernel_memory, machine.memory.size - kernel_memory)
        self.register_frames = RegisterFrames(self.frames)
        self.area = KernelArea(machine.memory, self.frames)
        self.outside: list[OutsidePart] = []  # parts that somebody else wrote
        self.mappings = self._mapping_database(parts)
        self.walking = self._page_walk(parts)
        self.ipc_path: IpcPath | None = None  # somebody else's
        self.sched = self._scheduler(parts)
        self.timers = Timers()
        self.lines = InterruptLines()
        self.threads: dict[int, Tcb] = {}  # by thread number
        self.spaces: list[Space] = []
        self.last_space = KERNEL_SPACE  # the number of the space that was made last
        self.ports = PortRights(self.spaces)
        # That of interrupt threads; nothing is mapped there.
        self.kernel_space = Space(KERNEL_SPACE, "kernel", machine.memory, self.frames, self.area)
        self.programs: dict[int, HostedThread] = {}  # hosted programs that wait for their thread to be activated
        self.io_privileged = False  # do all programs run at I/O privilege level 3? Set at boot
        self.kip_frame = 0
        self.frames_of_boot: list[int] = []  # KIP and guest mode's region: they stay for ever
        self.stub_returns: dict[int, SystemCall] = {}  # offset in the KIP -> which call traps there
        self.current: Tcb | None = None  # who has the processor; once it does not run any more, who had it last
        self.handed: Tcb | None = None  # who gets it directly, from who sent it a message or switched to it
        self.idle = False  # does the trace say that nobody runs?
        self.gives_way = False  # the current thread lets another one go first, which need not be more important
        self.reconsider = False  # somebody has become ready since the current thread was last compared with all of them
        self.counters = Counters()
        self.entries = 0  # kernel entries so far
        self.input = InputQueue()  # what will come from outside
        self.function = ""  # of the kernel that does what the present entry asks for, as KernelEntry names it
        self.stop_requested = False  # from outside, also from a signal handler: come back at the next kernel entry
        self.halts = 0  # threads halted so far: whoever waits for an end need not look before this moves
        self.readers: list[Tcb] = []  # who waits for a character from the console, or did so a moment ago
        self.deaths: list[tuple[Tcb, Died]] = []  # hosted programs that raised
        self._horizon = 0  # the cycle at which to look around again; 0: before anybody runs
        self._device_deadline = 0  # when to look at the devices again
        self._utcb_slot = self.area.slot_frame >> 2
        self.unsettled: deque[Tcb | Copy] = deque()  # see `unsettle`
        self.home = greenlet.getcurrent()  # where hosted programs come back to: whoever runs the main loop
        self.after: list[Next] = []  # by a wait's number: what happens when it ends (`calls/answers.py` fills it)

    # -- parts that somebody else wrote, in the place of the kernel's own ------------------------------------------

    def _scheduler(self, parts: Parts) -> Scheduler:
        if parts.scheduler is None:
            return Priorities()
        part = OutsidePart(Scheduler, ("ready", "gone", "next", "preempts"), parts.scheduler)
        self.outside.append(part)
        return OutsideScheduler(part)

    def _mapping_database(self, parts: Parts) -> Mappings:
        if parts.mappings is None:
            return MappingDatabase(self.kernel_memory)
        hooks = Hooks(self.kernel_memory)
        part = OutsidePart(PageTree, ("own", "map", "unmap"), parts.mappings, hooks)
        self.outside.append(part)
        return SmallPages(part, hooks)

    def _page_walk(self, parts: Parts) -> OutsideWalk | None:
        if parts.walk is None:
            return None
        part = OutsidePart(PageWalk, ("walk",), parts.walk)
        self.outside.append(part)
        return OutsideWalk(part, self.machine.memory)

    @property
    def part_at_work(self) -> bool:
        """Is it somebody else's code that is at work, in the place of a part of the kernel?"""
        return any(part.asked for part in self.outside)

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
        self.last_space += 1
        space = Space(self.last_space, name, self.machine.memory, self.frames, self.area)
        space.io_privileged = self.io_privileged
        self.spaces.append(space)
        self.trace.append(events.SpaceCreated(self.now, space.number, name))
        return space

    def delete_space(self, space: Space) -> None:
        """The last thread is gone: take all mappings back, also from those who got them from here."""
        self.report_taken(self.mappings.forget(space), ALL_RIGHTS)
        self.report_lost_ports(self.ports.forget(space))
        space.release()
        self.machine.user.forget_translations()  # the next space may get the same page directory
        self.spaces.remove(space)
        self.trace.append(events.SpaceDeleted(self.now, space.number))

    def report_taken(self, pages: Sequence[Revoked], rights: int) -> None:
        """These rights to pages were taken from spaces."""
        now, note = self.now, self.trace.append
        for page in pages:
            note(events.Unmapped(now, page.space.number, page.va, page.log2, rights))

    def report_changes(self, giver: Space, taker: Space, changes: Sequence[Change], grant: bool) -> None:
        """What a map or grant did. A grant from sigma0 is a map."""
        now, note, granted = self.now, self.trace.append, grant and not giver.is_sigma0
        for change in changes:
            if isinstance(change, HandedOn):
                page = now, giver.number, change.origin, taker.number, change.va, change.pa, change.log2
                note(events.Mapped(*page, change.writable, granted))
            else:
                note(events.Unmapped(now, change.space.number, change.va, change.log2, ALL_RIGHTS))

    def report_lost_ports(self, lost: Sequence[Lost]) -> None:
        """Ports were taken from spaces."""
        for space, numbers in lost:
            self.trace.append(events.PortsUnmapped(self.now, space.number, ranges(numbers)))

    # -- who can run. Who does run is decided in `processor/dispatch.py` --------------------------------------------

    def make_ready(self, thread: Tcb, why: Why = Why.WOKE) -> None:
        """The thread can run."""
        if thread is not self.current and thread is not self.handed:
            self.sched.ready(thread, why)
            self.reconsider = True

    def unready(self, thread: Tcb) -> None:
        """The thread cannot run, whatever it could before."""
        if thread is self.handed:
            self.handed = None
        self.sched.gone(thread)

    def hand_over(self, thread: Tcb) -> None:
        """A message came for the thread: it runs next, unless somebody more important is ready.

        Of several in one kernel entry the first does; and none does that has used up its slice, with the call whose
        answer this is: others have their turn.
        """
        if self.handed is None and thread is not self.current and thread.slice_left > 0:
            self.handed = thread
        else:
            self.make_ready(thread)

    def go_first(self, thread: Tcb) -> None:
        """The current thread has let this one's send go through: the sender goes on, unless it is less important."""
        current = self.current
        if current is not None and current.state is RUNNING and thread.priority >= current.priority:
            self.gives_way = True
            self.hand_over(thread)
        else:
            self.make_ready(thread)

    def switch_to(self, thread: Tcb, priority: int) -> None:
        """The thread, which is ready, runs next in the place of one of this priority."""
        thread.lent_priority = priority
        self.sched.gone(thread)
        self.hand_over(thread)

    def show_utcb(self, thread: Tcb) -> None:
        """The thread is about to run: %gs:0 leads to its UTCB."""
        self.machine.memory.set_word(self._utcb_slot, thread.local_id)

    def set_priority(self, thread: Tcb, priority: int) -> None:
        """Change a priority; a ready thread gets a place at the new one."""
        ready = thread.state is RUNNING and thread is not self.current and thread is not self.handed
        if ready:
            self.sched.gone(thread)
        thread.priority = priority
        if ready:
            self.make_ready(thread, Why.PRIORITY)
        self.reconsider = True

    def halt(self, thread: Tcb, why: str) -> None:
        """The thread, which could run, does not run any more."""
        assert thread.state in (RUNNING, ThreadState.INACTIVE), f"{thread!r} cannot halt at once"
        self.unready(thread)
        self.halts += 1
        self._horizon = 0
        thread.state = ThreadState.HALTED
        self.trace.append(events.ThreadHalted(self.now, thread.word, why))

    # -- time ------------------------------------------------------------------------------------------------------

    def unsettle(self, unsettled: Tcb | Copy) -> None:
        """Before anybody runs: a pager has answered in the midst of a message, which goes on; or what a blocked thread
        waits for, or is called, has changed, so that it may meet somebody. Later, for an IPC is in progress now."""
        self.unsettled.append(unsettled)
        self._horizon = 0

    def wake_at(self, cycle: int, thread: Sleeper) -> None:
        """Wake the blocked thread, or end the transfer, at `cycle`."""
        self.timers.wake_at(cycle, thread)
        if cycle < self._horizon:
            self._horizon = cycle

    # -- ports, devices, memory ------------------------------------------------------------------------------------

    def translate(self, cr3: int, va: int, access: int) -> int:
        """The physical address behind a program's `va`, or WalkFault: for each access that the kernel makes in the
        place of a program. A and D bits are set as by the CPU."""
        if self.walking is None:
            return walk(self.machine.memory, cr3, va, access)
        return self.walking.translate(cr3, va, access)

    def read_program(self, thread: Tcb, address: int, length: int) -> bytes:
        """Bytes of a program's memory; fewer where a page is missing. A bits stay as they are."""
        look = self.walking.look if self.walking is not None else None
        return read_mapped(self.machine.memory, thread.space.tables.cr3, address, length, look)

    def code_at(self, thread: Tcb, length: int) -> bytes:
        """The bytes at a native program's EIP; fewer where a page is missing."""
        return self.read_program(thread, thread.regs[EIP], length)

    def port_in(self, port: int, size: int) -> int:
        """Read a port of the machine."""
        value = self.machine.ports.read(port, size)
        self.look_at_devices()
        return value

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write a port of the machine."""
        self.machine.ports.write(port, size, value)
        self.look_at_devices()

    def look_at_devices(self) -> None:
        """A device may do something else next than it would have done: look at the devices before anybody runs.

        Who has to say so: whoever touches a port or a device, brings input from outside, or listens to another line.
        """
        self._device_deadline = self._horizon = 0

    @property
    def next_look(self) -> int:
        """The cycle at which the kernel looks at the devices again."""
        return self._device_deadline
