# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace tells of the system: spaces with their mappings and ports, threads with their states, and who runs.

Lives here: the ledger, which takes the events of a run one by one and keeps the books. It knows nothing but events:
pictures of the past are made from it, and `truth.py` compares it with the kernel's own tables. The state at an event
is that behind its effect. Within a kernel entry the books may be half written, as the kernel's own tables are; at
a `KernelEntry` they are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from l4lab.errors import LabError
from l4lab.kernel import events
from l4lab.kernel.events import KERNEL_SPACE, Event, MessageKind, WaitName

PAGE_LOG2, LARGE_LOG2 = 12, 22
ALL_RIGHTS = 7

# What the sender of a message waits for then, if the kernel has sent it in its name.
WAIT_BEHIND: dict[MessageKind, WaitName] = {
    MessageKind.PAGE_FAULT: "page",
    MessageKind.PORT_FAULT: "ports",
    MessageKind.EXCEPTION: "exception",
    MessageKind.EXCEPTION_ITEMS: "exception-items",
    MessageKind.VM_EXIT: "monitor",
    MessageKind.QUANTUM: "quantum",
    MessageKind.PREEMPTION: "preempted",
    MessageKind.STRING_FAULT: "string-page",
    MessageKind.INTERRUPT: "acknowledgement",
}


@dataclass(eq=False)
class KnownThread:
    """One thread, as the trace tells of it."""

    id: int  # global identifier
    space: int
    kind: str  # thread, vcpu, interrupt
    state: str = "ABORTED"  # name of the kernel's ThreadState
    wait: WaitName = "own-ipc"  # POLLING or WAITING: what a call that the kernel made in its name is for
    on: int = 0  # POLLING: to whom it wants to send; WAITING: from whom it receives
    name: str = ""
    hosted: bool = False
    halted_for: str = ""  # HALTED: why

    def be(self, state: str, on: int = 0, wait: WaitName = "own-ipc") -> None:
        """The thread is in this state from now on."""
        self.state, self.on, self.wait = state, on, wait


@dataclass(eq=False)
class KnownPage:
    """A page that a space has."""

    space: int
    va: int
    pa: int
    log2: int
    writable: bool
    parent: KnownPage | None  # the page it was derived from; None: sigma0 has it by nature
    children: dict[KnownPage, None] = field(default_factory=dict, repr=False)

    def hang_below(self, parent: KnownPage | None) -> None:
        """The page is derived from that one from now on."""
        if self.parent is not None:
            self.parent.children.pop(self, None)
        self.parent = parent
        if parent is not None:
            parent.children[self] = None


@dataclass(eq=False)
class KnownSpace:
    """An address space."""

    number: int
    name: str
    pages: dict[int, KnownPage] = field(default_factory=dict)  # by address
    ports: dict[int, int] = field(default_factory=dict)  # port -> the space from which it is
    is_vm: bool = False
    shadow_paging: bool = False
    kip: int = 0  # fpages of the areas, once they are there
    utcbs: int = 0

    def page_at(self, va: int) -> KnownPage | None:
        """The page that holds an address."""
        page = self.pages.get(va >> PAGE_LOG2 << PAGE_LOG2)
        if page is None:
            page = self.pages.get(va >> LARGE_LOG2 << LARGE_LOG2)
            if page is not None and page.log2 == PAGE_LOG2:
                return None
        return page


class Contradiction(LabError):
    """The trace contradicts itself: it is not that of a run from its beginning, or the kernel told an untruth."""


class Ledger:
    """The books of one run. `take` its events from the first one on, in their order."""

    def __init__(self, events_: Iterable[Event] = ()) -> None:
        self.spaces: dict[int, KnownSpace] = {KERNEL_SPACE: KnownSpace(KERNEL_SPACE, "kernel")}  # by number
        self.threads: dict[int, KnownThread] = {}  # by global identifier
        self.current: int | None = None  # who runs, or ran last; None: nobody
        self.idle = False  # nobody can run
        self.sigma0 = KERNEL_SPACE  # the number of its space
        self.at = 0  # the cycle of the latest event
        self.entries = 0  # kernel entries so far
        self.events = 0  # events so far
        self._take: dict[type[Event], Callable[[Any], None]] = {
            events.ThreadCreated: self._thread_created,
            events.ThreadActivated: self._thread_activated,
            events.ThreadDeleted: self._thread_deleted,
            events.ThreadHalted: self._thread_halted,
            events.ThreadRenamed: self._thread_renamed,
            events.ThreadMoved: self._thread_moved,
            events.Blocked: self._blocked,
            events.Resumed: self._resumed,
            events.Switched: self._switched,
            events.Idle: self._nobody_runs,
            events.KernelEntry: self._entry,
            events.MessageSent: self._message,
            events.Suspended: self._suspended,
            events.Transferred: self._transferred,
            events.IpcError: self._failed,
            events.SpaceCreated: self._space_created,
            events.SpaceConfigured: self._space_configured,
            events.SpaceBecameVm: self._space_became_vm,
            events.SpaceDeleted: self._space_deleted,
            events.Mapped: self._mapped,
            events.Unmapped: self._unmapped,
            events.PortsMapped: self._ports_mapped,
            events.PortsUnmapped: self._ports_unmapped,
            events.VcpuCreated: self._vcpu_created,
            events.VcpuDeleted: self._vcpu_deleted,
        }
        for event in events_:
            self.take(event)

    def take(self, event: Event) -> None:
        """The next event. Those that change nothing, such as a `VmExit`, are counted only."""
        does = self._take.get(type(event))
        if does is not None:
            try:
                does(event)
            except KeyError as error:
                raise Contradiction(
                    f"the trace contradicts itself at event {self.events}, {event}: nothing is known of {error}. "
                    "It must be whole, from the first event on: record it again, with room for all."
                ) from error
        self.at = event.at
        self.events += 1

    def waits_for(self, thread: int) -> int | None:
        """On whom a thread waits who exists; None if it waits for nobody in particular, or not at all."""
        found = self.threads[thread]
        return found.on if found.state in ("POLLING", "WAITING") and found.on in self.threads else None

    # -- threads

    def _thread_created(self, e: events.ThreadCreated) -> None:
        _ = self.spaces[e.space]
        state = "HALTED" if e.kind == "interrupt" else "ABORTED"
        self.threads[e.thread] = KnownThread(e.thread, e.space, e.kind, state)

    def _thread_activated(self, e: events.ThreadActivated) -> None:
        thread = self.threads[e.thread]
        thread.name, thread.hosted = e.name, e.hosted
        thread.be("WAITING", e.pager, "start")

    def _thread_deleted(self, e: events.ThreadDeleted) -> None:
        del self.threads[e.thread]

    def _thread_halted(self, e: events.ThreadHalted) -> None:
        thread = self.threads[e.thread]
        thread.be("HALTED")
        thread.halted_for = e.why

    def _thread_renamed(self, e: events.ThreadRenamed) -> None:
        thread = self.threads[e.name] = self.threads.pop(e.thread)
        thread.id = e.name
        if self.current == e.thread:
            self.current = e.name

    def _thread_moved(self, e: events.ThreadMoved) -> None:
        self.threads[e.thread].space = self.spaces[e.space].number

    def _blocked(self, e: events.Blocked) -> None:
        self.threads[e.thread].be(e.state, e.on, e.wait)

    def _resumed(self, e: events.Resumed) -> None:
        self.threads[e.thread].be("RUNNING")

    def _vcpu_created(self, e: events.VcpuCreated) -> None:
        self.threads[e.vcpu].kind = "vcpu"

    def _vcpu_deleted(self, e: events.VcpuDeleted) -> None:
        self.threads[e.vcpu].kind = "thread"

    # -- the processor

    def _switched(self, e: events.Switched) -> None:
        self.current, self.idle = self.threads[e.thread].id, False

    def _nobody_runs(self, e: events.Idle) -> None:
        self.current, self.idle = None, True

    def _entry(self, e: events.KernelEntry) -> None:
        self.entries += 1
        if e.thread != self.current:
            raise Contradiction(f"at event {self.events} {e.thread:#x} enters the kernel, but {self.current} runs")

    # -- messages

    def _message(self, e: events.MessageSent) -> None:
        sender, receiver = self.threads[e.sender], self.threads[e.receiver]
        match receiver.wait:
            case "string-page":  # it goes on when the string does
                receiver.be("TRANSFERRING")
            case _:
                self._can_run(receiver)
        if e.then:
            sender.be("WAITING", e.then, WAIT_BEHIND.get(e.kind, "own-ipc"))
        else:
            self._can_run(sender)

    def _can_run(self, thread: KnownThread) -> None:
        thread.be("HALTED" if thread.kind == "interrupt" else "RUNNING")  # one of an interrupt line has no program

    def _suspended(self, e: events.Suspended) -> None:
        for thread in (e.sender, e.receiver):
            self.threads[thread].be("TRANSFERRING")

    def _transferred(self, e: events.Transferred) -> None:
        self.threads[e.receiver].be("RUNNING")
        self.threads[e.sender].be("WAITING" if e.then else "RUNNING", e.then)

    def _failed(self, e: events.IpcError) -> None:
        self._can_run(self.threads[e.thread])

    # -- spaces

    def _space_created(self, e: events.SpaceCreated) -> None:
        self.spaces[e.space] = KnownSpace(e.space, e.name)
        if self.sigma0 == KERNEL_SPACE:  # the first one that there is
            self.sigma0 = e.space

    def _space_configured(self, e: events.SpaceConfigured) -> None:
        space = self.spaces[e.space]
        space.kip, space.utcbs = e.kip, e.utcbs

    def _space_became_vm(self, e: events.SpaceBecameVm) -> None:
        space = self.spaces[e.space]
        space.is_vm, space.shadow_paging, space.name = True, e.shadow, e.name

    def _space_deleted(self, e: events.SpaceDeleted) -> None:
        space = self.spaces.pop(e.space)
        if space.pages or space.ports:
            raise Contradiction(f"at event {self.events} space {e.space} is deleted, but it has pages or ports")

    # -- pages

    def _mapped(self, e: events.Mapped) -> None:
        target = self.spaces[e.target]
        source = None
        if e.source not in (KERNEL_SPACE, self.sigma0):
            source = self.spaces[e.source].page_at(e.origin)
            if source is None:
                raise KeyError(f"a page at {e.origin:#x} in space {e.source}")
        there = target.pages.get(e.va)
        if there is not None and (there.pa, there.log2) != (e.pa, e.log2):
            raise Contradiction(f"at event {self.events} space {e.target} has something else at {e.va:#x}")
        if not e.granted:
            if there is not None:
                there.writable = e.writable
            else:
                self._install(target, e, source)
            return
        assert source is not None, "what is granted is a page"
        if there is not None:
            self._take_out(target, there)
        if source.log2 != e.log2:  # a piece of it; the rest of the page goes next
            self._install(target, e, source.parent)
            return
        del self.spaces[source.space].pages[source.va]
        source.space, source.va, source.writable = e.target, e.va, e.writable
        target.pages[e.va] = source

    @staticmethod
    def _install(target: KnownSpace, e: events.Mapped, parent: KnownPage | None) -> None:
        page = target.pages[e.va] = KnownPage(e.target, e.va, e.pa, e.log2, e.writable, None)
        page.hang_below(parent)

    @staticmethod
    def _take_out(space: KnownSpace, page: KnownPage) -> None:
        """Take one page out of the midst of its tree: who had from it has from its giver."""
        for child in list(page.children):
            child.hang_below(page.parent)
        page.hang_below(None)
        del space.pages[page.va]

    def _unmapped(self, e: events.Unmapped) -> None:
        space = self.spaces[e.space]
        if e.rights == ALL_RIGHTS:
            space.pages.pop(e.va).hang_below(None)  # what was derived from it goes too, each with its own event
        else:
            space.pages[e.va].writable = False

    # -- ports

    def _ports_mapped(self, e: events.PortsMapped) -> None:
        target = self.spaces[e.target].ports
        for port in _numbers(e.ranges):
            if not e.granted:
                target[port] = e.source
                continue
            giver = self.spaces[e.source].ports.pop(port)
            if port not in target or self._descends(e.target, e.source, port):
                target[port] = giver
            for space in self.spaces.values():
                if space.ports.get(port) == e.source:
                    space.ports[port] = e.target

    def _descends(self, space: int, ancestor: int, port: int) -> bool:
        """Has `space` the port from `ancestor`, over whatever hands?"""
        giver = self.spaces[space].ports.get(port)
        while giver is not None and giver != ancestor:
            giver = self.spaces[giver].ports.get(port)
        return giver == ancestor

    def _ports_unmapped(self, e: events.PortsUnmapped) -> None:
        ports = self.spaces[e.space].ports
        for port in _numbers(e.ranges):
            del ports[port]


def _numbers(ranges: events.Ranges) -> Iterable[int]:
    return (port for first, count in ranges for port in range(first, first + count))
