# SPDX-License-Identifier: GPL-2.0-or-later
"""Builders that tests and exercises share: a system whose root task loads and runs small programs.

`System` is machine, kernel, sigma0 and a root task, stopped after each kernel entry to have the invariants checked.
`Root` is what that root task works with: the system calls, and on top of them what every first program needs, a piece
of memory from sigma0, a loader, and a pager. Everything it does, it does by system calls and by its own loads and
stores. The programs that it starts are native ones, from assembly text, or hosted ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from l4lab.abi import utcb as u
from l4lab.abi.calls import KIP_ENTRIES
from l4lab.abi.fpage import Fpage, IoFpage
from l4lab.abi.ids import NIL_THREAD, ROOT_TASK, SIGMA0, ThreadId, global_id
from l4lab.abi.message import Acceptor, Message
from l4lab.abi.protocols import any_page, is_page_fault, sigma0_request, thread_start
from l4lab.kernel import events, invariants
from l4lab.kernel.boot import KIP_AREA, THE_KERNELS_OWN, UTCB_AREA, boot
from l4lab.kernel.calls.hosted import HostedCpu
from l4lab.kernel.objects.program import HostedThread
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.parts import Parts
from l4lab.machine.board import Machine
from l4lab.machine.mmu import USER, walk
from l4lab.rig.truth import Auditor
from l4lab.user import sigma0
from l4lab.user.asm import Program, assemble
from l4lab.user.l4 import L4, Received

MEMORY = Fpage.at(0x0040_0000, 22)  # the root task's: code, data and stacks of all programs, at the same place in all
FIRST_THREAD = 100
E = TypeVar("E")
SECOND = 1_000_000_000  # cycles
PAGE = 4096
UNTOLD = 64  # entries after which tables are looked at though the trace has told of no change: see `System.look`
OF_TABLES = (
    *(events.Mapped, events.Unmapped, events.PortsMapped, events.PortsUnmapped),
    *(events.SpaceCreated, events.SpaceConfigured, events.SpaceBecameVm, events.SpaceDeleted),
    *(events.ThreadCreated, events.ThreadActivated, events.ThreadDeleted, events.ThreadMoved),
    *(events.VcpuCreated, events.VcpuDeleted),
)


class EventList:
    """All events of a run."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self.append: Callable[[events.Event], object] = self.events.append

    def settle(self) -> None:
        """Nothing to put away."""

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@dataclass(frozen=True, slots=True)
class Native:
    """A native program and its thread."""

    id: ThreadId
    program: Program
    stack: int  # first address above it

    def at(self, label: str) -> int:
        """The address of a label."""
        return self.program.address(label)


class Root(L4):
    """The system calls of the root task, and what it needs to set other programs going."""

    def __init__(self, cpu: HostedCpu, system: System) -> None:
        super().__init__(cpu)
        self.system = system
        self.accept(Acceptor.of(MEMORY))
        self.call(SIGMA0, sigma0_request(any_page(MEMORY.log2)))
        self.accept(0)
        self._free = MEMORY.base + 0x10000  # below: where tests put things by hand
        self._numbers = itertools.count(FIRST_THREAD)
        self._slots: dict[int, itertools.count[int]] = {UTCB_AREA.base: itertools.count(1)}
        kip = self.kip()
        self.entries = {call.title: kip.entry(call) for call in KIP_ENTRIES}

    # -- memory and code

    def room(self, size: int = PAGE) -> int:
        """The address of so many bytes of fresh memory, whole pages."""
        at = self._free
        self._free += -(-size // PAGE) * PAGE
        return at

    def assemble(self, source: str, kip: int = KIP_AREA.base, **constants: int) -> Program:
        """Assemble a program and put it into memory. It may use the names of all system calls as addresses."""
        entries = {name: kip + offset for name, offset in self.entries.items()}
        program = assemble(source, self._free, constants=entries | constants)
        self.store(self.room(max(len(program.code), 1)), program.code)
        return program

    def words(self, address: int, count: int) -> list[int]:
        """Memory as words."""
        return list(memoryview(self.load(address, 4 * count)).cast("I"))

    def ports(self, first: int, log2: int = 0) -> IoFpage:
        """I/O ports from sigma0, for root's space."""
        wanted = IoFpage.at(first, log2)
        self.call(SIGMA0, sigma0_request(wanted))
        return wanted

    # -- threads

    def new_id(self) -> ThreadId:
        """An identifier that nobody has."""
        return global_id(next(self._numbers))

    def create(
        self, space: ThreadId = NIL_THREAD, priority: int = 100, pager: ThreadId = NIL_THREAD, id_: int = 0
    ) -> ThreadId:
        """An active thread in a space (nilthread: root's own); it waits for its pager, who by default is root."""
        id_ = id_ or self.new_id()
        area = self.system.areas.get(space, UTCB_AREA)
        slot = next(self._slots.setdefault(space if space else area.base, itertools.count()))
        self.thread_control(id_, space or self.my_id, self.my_id, pager or self.my_id, area.base + u.SIZE * slot)
        self.schedule(id_, priority)
        return ThreadId.decode(id_)

    def space(self, kip: Fpage = KIP_AREA, utcb: Fpage = UTCB_AREA, control: int = 0) -> ThreadId:
        """A new space, initialised; named by a thread in it that never runs."""
        id_ = self.new_id()
        self.thread_control(id_, id_, self.my_id)
        self.space_control(id_, control, kip, utcb)
        self.system.areas[id_] = utcb
        return id_

    def native(
        self,
        source: str,
        space: ThreadId = NIL_THREAD,
        priority: int = 100,
        pager: ThreadId = NIL_THREAD,
        kip: int = KIP_AREA.base,
        start: bool = True,
        id_: int = 0,
        **constants: int,
    ) -> Native:
        """A native thread: its code in memory, a stack of a page, started at the beginning unless told otherwise."""
        program = self.assemble(source, kip, **constants)
        stack = self.room() + PAGE
        thread = self.create(space, priority, pager, id_)
        if start:
            self.send(thread, thread_start(program.origin, stack))
        return Native(thread, program, stack)

    def hosted(
        self,
        main: Callable[[L4], None],
        space: ThreadId = NIL_THREAD,
        priority: int = 100,
        pager: ThreadId = NIL_THREAD,
        start: bool = True,
        id_: int = 0,
    ) -> ThreadId:
        """A hosted thread."""
        thread = ThreadId.decode(id_ or self.new_id())
        self.system.kernel.programs[thread] = HostedThread(lambda cpu: main(L4(cpu)), f"hosted {thread.thread_no}")
        self.create(space, priority, pager, thread)
        if start:
            self.send(thread, thread_start(0, 0))
        return thread

    # -- paging

    def serve(self, count: int | None = None) -> Received:
        """Be everybody's pager: whoever faults gets the page of the same address. The first other message.

        Who wants what is not root's waits for ever. With `count`, the last page fault after so many.
        """
        received = self.wait()
        served = 0
        while is_page_fault(received.label):
            if not MEMORY.covers(received.untyped[0]):
                received = self.wait()
                continue
            page = Fpage.at(received.untyped[0] & -PAGE)
            served += 1
            if served == count:
                self.send(received.sender, Message().append_map(page, page.base))
                return received
            received = self.reply_wait(received.sender, Message().append_map(page, page.base))
        return received


class System:
    """Machine, kernel, sigma0, and a root task that runs `main`.

    Its programs hold it, in frames that no garbage collector looks into: who makes many of them closes them.
    """

    opened: ClassVar[list[System]] = []  # and not closed

    def __init__(
        self,
        main: Callable[[Root], None],
        memory: int = 32 << 20,
        check: bool = True,
        parts: Parts = THE_KERNELS_OWN,
    ) -> None:
        """`check`: look at the invariants after each kernel entry."""
        self.console = bytearray()
        self.trace = EventList()
        self.areas: dict[int, Fpage] = {}  # space -> its UTCB area
        self.machine = Machine(memory, self.console.append)
        self.kernel = boot(
            self.machine,
            self.trace,
            HostedThread(lambda cpu: sigma0.main(L4(cpu)), "sigma0"),
            HostedThread(lambda cpu: main(Root(cpu, self)), "root"),
            parts=parts,
        )
        self.opened.append(self)
        self._check = check
        self._auditor = Auditor(self.kernel)
        self._audited = 0  # events of the trace
        self._looked = self._frames = 0

    def close(self) -> None:
        """End the programs, and free the machine."""
        self.opened.remove(self)
        self.kernel.close()
        self.machine.close()

    def run(self, cycles: int = 10 * SECOND) -> str:
        """Run for so many cycles, or until nothing can happen any more; a program that raises fails the test."""
        until = self.machine.clock.cycles + cycles
        while True:
            why = self.kernel.run(until, one_entry=self._check)
            if self._check:
                invariants.check(self.kernel, honest=True)
                self.audit()
            for thread, died in self.kernel.deaths:
                raise AssertionError(f"the program of {thread.name} raised:\n{died.text}")
            if why not in ("event", "halted"):
                return why

    def audit(self) -> None:
        """KernelPanic unless the trace tells all that the kernel's tables say."""
        self._auditor.audit(self._fresh())

    def look(self) -> None:
        """KernelPanic unless the invariants hold and the trace tells all: for who looks after a million entries.

        What is mapped is looked at when the trace tells of a change, when frames went or came, and each `UNTOLD` times.
        """
        k = self.kernel
        fresh = self._fresh()
        self._looked += 1
        changed = k.frames.used != self._frames or any(type(event) in OF_TABLES for event in fresh)
        self._frames = k.frames.used
        tables = changed or self._looked % UNTOLD == 0
        invariants.check(k, tables=tables)
        self._auditor.audit(fresh, tables)

    def _fresh(self) -> list[events.Event]:
        """The events that nobody has audited yet."""
        fresh = self.trace.events[self._audited :]
        self._audited = len(self.trace.events)
        return fresh

    def forget_events(self) -> None:
        """Drop the events so far, all of which are audited first."""
        if self._audited < len(self.trace.events):
            self.audit()
        self.trace.events.clear()
        self._audited = 0

    def words(self, address: int, count: int = 1) -> list[int]:
        """Words of the root task's memory, to be looked at after a run."""
        tables = self.thread(ROOT_TASK).space.tables
        u32 = self.machine.memory.u32
        return [u32[walk(self.machine.memory, tables.cr3, address + 4 * i, USER) >> 2] for i in range(count)]

    def thread(self, id_: int) -> Tcb:
        """A thread as the kernel knows it."""
        return self.kernel.threads[id_ >> 14]


def run(main: Callable[[Root], None], cycles: int = 10 * SECOND, check: bool = True) -> System:
    """A system whose root task runs `main`, after it has run."""
    system = System(main, check=check)
    system.run(cycles)
    return system


def ipc(to: int | str = 0, from_: int | str = 0, words: Iterable[int] = (0,), timeouts: int = 0) -> str:
    """Assembly text of one Ipc with these message registers. `to` and `from_` may be names or registers."""
    first, *rest = words
    stores = "".join(f"  mov dword ptr [edi + {4 * i}], {word:#x}\n" for i, word in enumerate(rest, start=1))
    return f"""
  mov edi, dword ptr gs:[0]
{stores}  mov eax, {to}
  mov edx, {from_}
  mov ecx, {timeouts:#x}
  mov esi, {first:#x}
  call Ipc
"""
