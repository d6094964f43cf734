# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds between any two steps of the kernel, as one function that looks at everything.

Too slow for each step of a long run; tests call it after every kernel entry, and a debugger may at any time.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from l4lab.abi import utcb as u
from l4lab.errors import KernelPanic
from l4lab.kernel.thread import NEVER_ENDS, Tcb, ThreadState
from l4lab.machine.memory import PAGE_SIZE

if TYPE_CHECKING:
    from l4lab.kernel.kernel import Kernel

S = ThreadState


def check(k: Kernel) -> None:
    """KernelPanic, naming what is broken, unless all of it holds."""
    for thread in k.threads.values():
        _thread(k, thread)
        _state(thread)
        _utcb(k, thread)
    _ready(k)
    _timers(k)
    _mappings(k)
    _ports(k)
    _frames(k)


def require(condition: object, what: str) -> None:
    """One claim."""
    if not condition:
        raise KernelPanic(f"invariant broken: {what}")


def _thread(k: Kernel, thread: Tcb) -> None:
    """A thread stands where its number and its space say."""
    require(k.threads.get(thread.id.thread_no) is thread, f"{thread!r} stands under another number than its own")
    if thread.id.is_interrupt:
        require(thread.space is k.kernel_space, f"{thread!r} is an interrupt thread in {thread.space}")
    else:
        require(thread.space in k.spaces, f"{thread!r} is in {thread.space}, which is gone")
        require(thread.space.threads.count(thread) == 1, f"{thread.space} does not list {thread!r} once")
    require(thread.space.is_vm == (thread.vcpu is not None), f"{thread!r}: virtual CPUs are the threads of VM spaces")


def _state(thread: Tcb) -> None:
    """The state goes with what the thread stands in and waits for."""
    polling = thread.state is S.POLLING
    require(polling == (thread.send_to is not None), f"{thread!r} has send_to={thread.send_to!r}")
    if thread.send_to is not None:
        require(thread.send_to.senders.count(thread) == 1, f"{thread.send_to!r} does not queue {thread!r} once")
        require(
            thread.send_to.utcb is not None or thread.send_to.id.is_interrupt, f"{thread!r} polls a lifeless thread"
        )
    for sender in thread.senders:
        require(
            sender.send_to is thread, f"{sender!r} stands in the queue of {thread!r}, but sends to {sender.send_to!r}"
        )
    require(polling or thread.then_receive is None, f"{thread!r} has a receive phase to come, but does not send")
    require(polling or thread.outgoing is None, f"{thread!r} has a message of the kernel's, but does not send")
    if thread.on_reply is not None:
        require(thread.state in (S.POLLING, S.WAITING), f"{thread!r} is in a call of the kernel's")
    if thread.halting:
        stopped = thread.slice_left <= 0 or thread.state is not S.RUNNING
        require(stopped, f"{thread!r} was halted, and would run on")
    if thread.slice_rest is None and thread.total_quantum < NEVER_ENDS:
        require(
            thread.slice_left + thread.quantum_left <= thread.total_quantum, f"{thread!r} has more than its quantum"
        )
    require(thread.state is not S.INACTIVE or thread.vcpu is not None, f"{thread!r} sleeps, but has no guest")
    if thread.state is S.ABORTED:
        require(thread.utcb is None and not thread.senders, f"{thread!r} was never activated, but can be sent to")


def _utcb(k: Kernel, thread: Tcb) -> None:
    """The UTCB lies where the space has it. What is in it the program may write: nothing holds of that."""
    if thread.utcb is None:
        require(thread.local_id == 0, f"{thread!r} has a local identifier without a UTCB")
        return
    require(thread.space.holds_utcb(thread.utcb_location), f"{thread!r} has its UTCB outside the UTCB area")
    require(thread.local_id == thread.utcb_location + u.MR0_FROM_LOCATION, f"{thread!r} has a wrong local identifier")
    if thread.space.is_vm:
        return
    page = thread.space.tables.lookup(thread.utcb_location)
    require(page is not None and page.writable and page.user, f"{thread!r} cannot write its UTCB")
    at = (page.pa if page else 0) + thread.utcb_location % PAGE_SIZE >> 2
    require(thread.utcb == k.machine.memory.u32[at : at + u.SIZE // 4], f"{thread!r}: the UTCB lies elsewhere")


def _ready(k: Kernel) -> None:
    """Who can run is the current thread, or the next one, or stands in one ready queue, once."""
    ready = k.sched.ready()
    places = Counter(ready)
    for thread in (k.current, k.next_to_run):
        if thread is not None:
            places[thread] += 1
    for thread in k.threads.values():
        if thread.state is S.RUNNING:
            require(places[thread] == 1, f"{thread!r} stands in {places[thread]} places of those who may run")
        else:
            require(places[thread] == (thread is k.current), f"{thread!r} stands in a ready queue")
    require(all(k.threads.get(thread.id.thread_no) is thread for thread in ready), "a deleted thread is ready")
    require(k.sched.highest == max((thread.priority for thread in ready), default=-1), "the ready levels are wrong")


def _timers(k: Kernel) -> None:
    """Who has a timer is blocked."""
    for thread in k.sched.with_timers():
        require(thread.state in (S.WAITING, S.POLLING), f"{thread!r} has a timer")


def _mappings(k: Kernel) -> None:
    """The mapping trees and the page tables tell the same story; nobody has what is the kernel's."""
    for space in k.spaces:
        mapped = {page.va: page for page in space.tables.entries() if page.va < space.user_limit}
        nodes = {} if space.is_sigma0 else {node.va: node for node in k.mappings.nodes(space)}
        for va, node in nodes.items():
            page = mapped.pop(va, None)
            require(page is not None, f"{space} has a mapping at {va:#x}, its page table has not")
            assert page is not None
            require((page.pa, page.log2) == (node.pa, node.log2), f"{space} at {va:#x}: {page} is not {node.pa:#x}")
            require(node.pa + (1 << node.log2) <= k.kernel_memory, f"{space} has kernel memory at {va:#x}")
            require(not space.is_reserved(va, 1 << node.log2), f"{space} has a mapping in its KIP or UTCB area")
            parent = node.parent
            require(parent is not None and node in parent.children[node.pa], f"{space} at {va:#x}: no parent has it")
            assert parent is not None
            inside = parent.pa <= node.pa and node.pa + (1 << node.log2) <= parent.pa + (1 << parent.log2)
            require(inside, f"{space} at {va:#x}: its parent has other memory")
        for va, page in mapped.items():
            own = page.pa == va < k.kernel_memory if space.is_sigma0 else False
            require(own or space.is_reserved(va, 1 << page.log2), f"{space} has a page at {va:#x} from nobody")


def _ports(k: Kernel) -> None:
    """Each port was given by somebody who has it, and the way leads to sigma0, who has all by nature."""
    for space in k.spaces:
        require(not (space.is_sigma0 and space.ports), "sigma0 was given ports")
        for port, giver in space.ports.items():
            seen = {space}
            while not giver.is_sigma0:
                require(
                    giver in k.spaces and giver not in seen, f"{space} has port {port:#x} in a circle, or from the dead"
                )
                seen.add(giver)
                require(port in giver.ports, f"{space} has port {port:#x} from {giver}, who has it not")
                giver = giver.ports[port]


def _frames(k: Kernel) -> None:
    """Each frame that is out has exactly one use."""
    uses = Counter([*k.frames_of_boot, *k.area.frames, *k.register_frames.pages])
    uses.update(k.kernel_space.own_frames())
    for space in k.spaces:
        uses.update(space.own_frames())
    uses.update(thread.vcpu.block for thread in k.threads.values() if thread.vcpu is not None)
    for frame, count in uses.items():
        require(count == 1, f"frame {frame:#x} has {count} uses")
    require(set(uses) == k.frames.out(), f"{k.frames.used} frames are out, {len(uses)} are in use")
