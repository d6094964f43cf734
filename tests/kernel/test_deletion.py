# SPDX-License-Identifier: GPL-2.0-or-later
"""Deletion at any moment: threads that do everything that threads can do, and one after the other is deleted.

What is deleted when is arbitrary, to the microsecond; who deletes is the root task, whose priority is above all others.
Afterwards nothing may be left: no frame, no thread, no mapping, no port, no timer.
"""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import utcb as u
from l4lab.abi.calls import SpaceControlBits, TimeControl
from l4lab.abi.fpage import Fpage, IoFpage
from l4lab.abi.ids import NIL_THREAD, ThreadId, global_id, interrupt_id
from l4lab.abi.message import Acceptor, Message, StringItem
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.time import ZERO, period
from l4lab.kernel import invariants
from l4lab.testing import MEMORY, Root, run
from l4lab.user.l4 import L4, CallRefused, IpcFailed

PAGER, CLIENT, SERVER, SPEAKER, TAKER, DRIVER, RUNNER, READER, VCPU = (global_id(300 + n) for n in range(9))
ALL = (PAGER, CLIENT, SERVER, SPEAKER, TAKER, DRIVER, RUNNER, READER, VCPU)
SOURCE, TARGET, WINDOW = MEMORY.base + 0x20_0000, MEMORY.base + 0x30_0000, 0x0200_0000
PROPAGATED = 1 << 12
MAP, GRANT = 0x8, 0xA  # kinds of items
SIZE = 3 * 4096


def for_ever(l4: L4, step: str) -> None:
    """Repeat one of the steps below, whatever comes of it."""
    while True:
        with suppress(IpcFailed, CallRefused):
            STEPS[step](l4)
        l4.sleep(7)


def page(l4: L4) -> None:
    """Answer a fault with the page of the same address, or a port."""
    received = l4.wait(period(100))
    if received.untyped:
        at = received.untyped[0]
        fpage = Fpage.at(at & -4096) if is_page_fault(received.label) else IoFpage(at)
        l4.send(received.sender, Message().append_map(fpage, at & -4096), ZERO)


def send_string(l4: L4) -> None:
    """A string of pages that nobody has, and a map item, to the server; the answer too."""
    l4.unmap(Fpage.at(SOURCE, 14), flush=True)
    l4.accept(1, StringItem.make(length=SIZE), TARGET)
    l4.call(SERVER, [4 << 6, WINDOW | MAP, Fpage.at(SOURCE), StringItem.make(length=SIZE), SOURCE])


def take_string(l4: L4) -> None:
    """Take a string where no pages are, and answer with it."""
    l4.unmap(Fpage.at(TARGET, 14), flush=True)
    l4.accept(Acceptor.of(Fpage.at(WINDOW, 16), strings=True), StringItem.make(length=SIZE), TARGET)
    received = l4.wait(period(500))
    l4.send(TAKER, [2 << 6, WINDOW | MAP, Fpage.at(WINDOW)], ZERO)
    l4.send(received.sender, [2 << 6, StringItem.make(length=100), TARGET], period(100))


def speak(l4: L4) -> None:
    """Speak in the server's name."""
    l4.set_tcr(u.VIRTUAL_SENDER, SERVER)
    l4.send(CLIENT, [7 << 16 | PROPAGATED], period(50))


def take(l4: L4) -> None:
    """Take mappings, and grant them on."""
    l4.accept(Acceptor.of(Fpage.at(WINDOW, 16)))
    l4.receive(SERVER, period(200))
    l4.send(READER, [2 << 6, WINDOW | GRANT, Fpage.at(WINDOW)], period(20))


def read(l4: L4) -> None:
    """Read what was granted, if anything was."""
    l4.accept(Acceptor.of(Fpage.at(WINDOW, 16)))
    l4.wait(period(200))
    l4.load(WINDOW, 4)


def drive(l4: L4) -> None:
    """Program the timer, which interrupts, and acknowledge."""
    for port, value in ((0x43, 0x34), (0x40, 100), (0x40, 0)):
        l4.cpu.port_out(port, 1, value)
    received = l4.receive(interrupt_id(0), period(300))
    l4.send(received.sender, [0], ZERO)


STEPS = {
    "page": page,
    "send": send_string,
    "receive": take_string,
    "speak": speak,
    "take": take,
    "drive": drive,
    "read": read,
}
RUNS = "again: inc dword ptr [0x00500000]\n mov eax, gs:[0]\n ud2\n jmp again"


def set_going(r: Root) -> None:
    """All of them, in spaces of their own or together."""
    together, machine = r.space(), r.space(utcb=Fpage.at(0x0300_0000), control=SpaceControlBits.VM)
    r.hosted(lambda l4: for_ever(l4, "page"), NIL_THREAD, 150, id_=PAGER)
    for id_, step in ((CLIENT, "send"), (SERVER, "receive"), (SPEAKER, "speak"), (READER, "read"), (DRIVER, "drive")):
        space = together if id_ in (SERVER, SPEAKER) else r.space()
        r.hosted(lambda l4, step=step: for_ever(l4, step), space, 140, PAGER, start=False, id_=id_)  # type: ignore[misc]
    r.hosted(lambda l4: for_ever(l4, "take"), together, 140, PAGER, start=False, id_=TAKER)
    runner = r.native(RUNS, r.space(), 130, PAGER, start=False, id_=RUNNER)
    r.create(machine, 130, PAGER, VCPU)
    r.schedule(RUNNER, time=TimeControl.make(time_slice=period(30), total_quantum=period(200)))
    for id_ in ALL[1:]:
        r.thread_control(id_, id_, NIL_THREAD, r.my_id)
        r.send(id_, [2, runner.program.origin, runner.stack], ZERO)
        r.thread_control(id_, id_, NIL_THREAD, PAGER)
    r.thread_control(interrupt_id(0), interrupt_id(0), pager=DRIVER)


def left_over(r: Root) -> tuple[object, ...]:
    """What exists: frames but for those that hold register frames, threads, spaces, mappings, ports, timers."""
    k = r.system.kernel
    return (
        k.frames.used - len(k.register_frames.pages),
        sorted(k.threads),
        len(k.spaces),
        [(space.name, len(k.mappings.nodes(space)), len(space.ports)) for space in k.spaces],
        len(k.register_frames.out()),
        [thread for thread in k.timers.sleepers() if thread is not r.system.thread(r.my_id)],
    )


@settings(max_examples=25, deadline=None)
@given(st.permutations(ALL), st.lists(st.integers(1, 400), min_size=len(ALL), max_size=len(ALL)), st.integers(0, 3000))
def test_deletion_at_any_moment_leaves_nothing_behind(order: list[ThreadId], pauses: list[int], first: int) -> None:
    """Whoever is deleted when, in the midst of whatever: do the others go on, and is nothing left of all in the end?"""

    def root(r: Root) -> None:
        r.room()
        for address in (SOURCE, TARGET, 0x0050_0000):
            r.store(address, bytes(4))  # so that root's own tables do not count
        r.ports(0x40, 2)
        before = left_over(r)
        set_going(r)
        names = [ThreadId.decode(word) for word in r.system.areas]
        r.sleep(1000 + first)
        for id_, pause in zip(order, pauses, strict=True):
            r.thread_control(id_, NIL_THREAD)
            invariants.check(r.system.kernel, honest=True)
            r.sleep(pause)
        r.thread_control(interrupt_id(0), interrupt_id(0), pager=interrupt_id(0))
        for name in names:
            r.thread_control(name, NIL_THREAD)
        r.unmap(Fpage.at(MEMORY.base, MEMORY.log2))
        r.sleep(10)
        assert before == left_over(r)

    run(root, 200_000_000, check=False)


def test_the_scene_is_a_busy_one() -> None:
    """Do strings, faults in the midst of them, propagation, grants, interrupts and exits all happen in it?"""
    labels: set[int] = set()

    def root(r: Root) -> None:
        r.ports(0x40, 2)
        set_going(r)
        r.sleep(5000)
        ipc = [event for event in r.system.trace.events if type(event).__name__ == "MessageSent"]
        labels.update(event.words[0] >> 16 for event in ipc if event.sender != r.my_id)  # type: ignore[union-attr]
        labels.update(1 for event in ipc if event.words[0] & PROPAGATED)  # type: ignore[union-attr]

    system = run(root, 10_000_000, check=False)
    kinds = {type(event).__name__ for event in system.trace.events}

    assert {"Mapped", "Unmapped", "Interrupt", "PageFault", "IoPageFault", "Preempted", "PortsMapped"} <= kinds
    assert {0xFFE2, 0xFFE5, 0xFF86, 0xFFF0, 1} <= labels
