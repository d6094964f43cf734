# SPDX-License-Identifier: GPL-2.0-or-later
"""The books that are made from a trace alone. That they agree with the kernel's tables is asked after every kernel
entry of all systems that tests run (`l4lab.testing.System`), and of the fuzzers; here: that this would find a lie."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

import pytest

import l4lab.kernel
from l4lab.abi.calls import ExregsControl, SpaceControlBits
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ThreadId, interrupt_id
from l4lab.abi.message import MapItem
from l4lab.abi.protocols import thread_start
from l4lab.abi.time import ZERO, timeouts
from l4lab.errors import KernelPanic
from l4lab.kernel import events
from l4lab.kernel.events import Event, MessageKind
from l4lab.rig.ledger import WAIT_BEHIND, Contradiction, Ledger
from l4lab.rig.rig import Rig
from l4lab.rig.truth import Auditor, differences
from l4lab.testing import MEMORY, Root, System, run
from l4lab.user.guests import tinyos
from l4lab.user.l4 import IpcFailed
from l4lab.user.monitor.hardware import Hardware


def much(r: Root) -> None:
    """A bit of everything that changes what the kernel's tables say."""
    space, other = r.space(), r.space()
    pages = [r.room() for _ in range(4)]
    for page in pages:
        r.store(page, b"x")
    a, b = r.create(space), r.create(other)
    r.send(a, thread_start(pages[0], 0).append_map(Fpage.at(pages[0], rights="rwx"), pages[0]))
    r.send(b, thread_start(0, 0).append_map(Fpage.at(pages[1]), 0x5000))
    r.wait()  # its page fault
    third = r.create(other)
    r.send(third, thread_start(0, 0).append_map(Fpage.at(pages[2]), 0x5000))  # over the other one
    r.wait()
    fourth = r.create(other)
    r.send(fourth, thread_start(0, 0).append_grant(Fpage.at(pages[3]), 0x6000))
    r.wait()
    r.unmap(Fpage.at(pages[2], rights="w"))
    r.unmap(Fpage.at(pages[2]))
    r.ports(0x200, 3)
    r.exchange_registers(fourth, ExregsControl.HALT | ExregsControl.ACT_ON_HALT | ExregsControl.ABORT_RECEIVE)
    r.exchange_registers(fourth, ExregsControl.ACT_ON_HALT)
    r.thread_control(ThreadId.decode(int(third) ^ 1 << 4), other, r.my_id, third)  # another version, another pager
    moved = r.create(other)
    r.thread_control(moved, r.my_id, r.my_id, NIL_THREAD)
    waiting = r.hosted(lambda l4: l4.receive(l4.wait().sender))
    try:
        r.ipc(waiting, NIL_THREAD, [0], timeouts(ZERO, ZERO))
    except IpcFailed:
        r.send(waiting, [0])
    r.thread_control(interrupt_id(4), interrupt_id(4), r.my_id, r.my_id)
    r.thread_control(interrupt_id(4), interrupt_id(4), r.my_id, interrupt_id(4))
    r.exchange_registers(b, ExregsControl.ABORT_RECEIVE)
    vm = r.space(Fpage.at(0x80_0000), Fpage.at(0x80_1000), control=SpaceControlBits.VM)
    r.thread_control(vm, NIL_THREAD)
    for name in (a, b, space, other):
        r.thread_control(name, NIL_THREAD)
    r.sleep(1000)


UNTOLD = (
    *(events.SpaceCreated, events.SpaceConfigured, events.SpaceBecameVm, events.SpaceDeleted),
    *(events.ThreadCreated, events.ThreadActivated, events.ThreadDeleted, events.ThreadMoved, events.ThreadRenamed),
    *(events.ThreadHalted, events.Resumed, events.Blocked, events.IpcError, events.MessageSent),
    *(events.Mapped, events.Unmapped, events.PortsMapped, events.Switched, events.KernelEntry),
)


@pytest.fixture(scope="module")
def told() -> list[Event]:
    """The events of a run in which a bit of everything happens."""
    return run(much).trace.events


@pytest.mark.parametrize("kind", UNTOLD, ids=lambda kind: kind.__name__)
def test_what_is_not_told_is_noticed(kind: type[Event], told: list[Event]) -> None:
    """Without its events of this kind, does a trace give other books than the whole one, at some kernel entry?"""
    assert any(type(event) is kind for event in told)

    try:
        lies = list(differing(told, [event for event in told if type(event) is not kind]))
    except Contradiction:
        return
    assert lies


def differing(whole: list[Event], less: list[Event]) -> Iterable[int]:
    """The kernel entries at whose ends two traces give other books."""
    books = [], []
    for trace, found in zip((whole, less), books, strict=True):
        ledger = Ledger()
        for event in trace:
            ledger.take(event)
            found.append((ledger.entries, state(ledger)))
    first, second = (dict(found) for found in books)
    return (entry for entry in first if first[entry] != second.get(entry))


def state(ledger: Ledger) -> str:
    """All that a ledger says, as text."""
    threads = sorted((t.id, t.space, t.kind, t.state, t.wait, t.on, t.name) for t in ledger.threads.values())
    spaces = [
        (
            s.number,
            s.name,
            s.is_vm,
            s.kip,
            s.utcbs,
            s.ports,
            [(p.va, p.pa, p.log2, p.writable) for p in s.pages.values()],
        )
        for s in ledger.spaces.values()
    ]
    return f"{ledger.current} {ledger.idle} {threads} {spaces}"


def test_an_auditor_finds_what_the_kernel_did_not_tell() -> None:
    """If a page is mapped without a word, does the audit name it?"""
    system = System(lambda r: r.sleep(1000), check=False)
    system.run(100_000)
    auditor = Auditor(system.kernel)
    auditor.audit(system.trace.events)
    sigma0, root = system.kernel.spaces
    system.kernel.mappings.map(sigma0, MapItem.at(), Fpage.at(MEMORY.base), root, Fpage.at(0x7000_0000), [])

    with pytest.raises(KernelPanic, match="page of <space root> 0x70000000 is not there"):
        auditor.audit([])


@pytest.mark.parametrize("shadow", [False, True], ids=["nested", "shadow"])
def test_a_guests_whole_life_is_rebuilt(shadow: bool) -> None:
    """At its end, and at pauses on the way, does the trace of a guest under a monitor tell what the kernel has?"""
    rig = Rig.for_flat_guest(tinyos.build(), hardware=Hardware(shadow_paging=shadow))
    ledger, taken = Ledger(), 0
    while not rig.run(20_000_000).finished:
        for event in rig.trace.between(taken, rig.trace.total):
            ledger.take(event)
        taken = rig.trace.total
        assert [] == list(differences(ledger, rig.kernel))

    assert rig.kernel.entries > 1000
    assert {MessageKind.VM_EXIT, MessageKind.ANSWER} <= {e.kind for e in rig.trace.select(events.MessageSent)}


def test_a_trace_without_its_beginning_is_refused() -> None:
    """Is it said that the books cannot be kept from the midst of a run on?"""
    events_ = run(lambda r: r.sleep(10)).trace.events

    with pytest.raises(Contradiction, match="from the first event on"):
        Ledger(events_[8:])


def test_waits_are_those_of_the_kernel() -> None:
    """For each wait, do the kernel and the ledger agree on the kind of message behind which it comes?"""
    from l4lab.kernel.objects.waits import WAITS

    assert WAIT_BEHIND == {MessageKind(wait.kind): wait.name for wait in WAITS if MessageKind(wait.kind).by_kernel}
    assert set(events.WaitName.__args__) == {wait.name for wait in WAITS}


def test_each_entry_names_a_function_of_the_kernel(told: list[Event]) -> None:
    """Is what did the work of an entry there, in the module that is named? And did the entry take what it costs?"""
    modules = {
        info.name.rpartition(".")[2]: info.name
        for info in pkgutil.walk_packages(l4lab.kernel.__path__, "l4lab.kernel.")
    }
    entries = [event for event in told if isinstance(event, events.KernelEntry)]
    functions = {event.function for event in entries}

    assert {"ipc.sys_ipc", "threadcontrol.sys_thread_control", "faults.page_fault"} <= functions
    for function in functions:
        module, name = function.split(".")
        assert callable(getattr(importlib.import_module(modules[module]), name)), function
    assert all(event.cycles >= 200 and event.began + event.cycles == event.at for event in entries)


def test_space_numbers_are_not_used_again() -> None:
    """Spaces that come and go under the same thread numbers, and so under the same names: has each its own number?"""

    def root(r: Root) -> None:
        name = r.new_id()
        for _ in range(3):
            r.thread_control(name, name, r.my_id)
            r.thread_control(name, NIL_THREAD)

    created = run(root).trace.of(events.SpaceCreated)

    assert 3 == len([event for event in created if event.name == created[-1].name])
    assert len(created) == len({event.space for event in created})


def test_nobody_runs_is_told_once() -> None:
    """While everybody sleeps, is there one Idle, however often the run was paused, and a Switched behind it?"""
    told = []
    for pieces in (1, 7):
        system = System(lambda r: r.sleep(1000), check=False)
        for _ in range(pieces):
            system.run(2_100_000 // pieces)
        told.append(system.trace.events)

    assert told[0] == told[1]
    idle = [number for number, event in enumerate(told[0]) if isinstance(event, events.Idle)]
    assert len(idle) == 2  # asleep, and at the end
    assert any(isinstance(event, events.Switched) for event in told[0][idle[0] :])
