# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds between any two steps of the kernel, as one function that looks at everything.

Too slow for each step of a long run; tests call it after every kernel entry, and a debugger may at any time.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from l4lab.abi import utcb as u
from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD, NIL_THREAD
from l4lab.errors import KernelPanic
from l4lab.kernel.ipc import ipc
from l4lab.kernel.ipc.propagation import may_send_to
from l4lab.kernel.memory.mapping import MappingDatabase
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb, ThreadState
from l4lab.kernel.objects.waits import CONSOLE, OWN_IPC, START
from l4lab.kernel.processor import preemption
from l4lab.machine.memory import PAGE_SIZE

if TYPE_CHECKING:
    from l4lab.kernel.kernel import Kernel

S = ThreadState


def check(k: Kernel, honest: bool = False) -> None:
    """KernelPanic, naming what is broken, unless all of it holds.

    `honest`: no program has written to words that are the kernel's to write, though it could.
    """
    for thread in k.threads.values():
        _thread(k, thread)
        _state(k, thread)
        _partners(k, thread)
        _meeting(k, thread)
        _utcb(k, thread)
    _spaces(k)
    _interrupts(k)
    _devices(k)
    _ready(k)
    _timers(k)
    _mappings(k)
    _ports(k)
    _frames(k)
    if honest:
        _words(k)


def check_shadows(k: Kernel) -> None:
    """KernelPanic if shadow tables that a guest may use lead to memory that its space has not mapped, or not writable.

    Apart from `check`, because it reads all of the tables.
    """
    for thread in k.threads.values():
        vtlb = thread.vcpu.vtlb if thread.vcpu is not None else None
        if (
            vtlb is None or vtlb.generation != thread.space.tables.generation
        ):  # then they are dropped before they are used
            continue
        space = thread.space
        mapped = [m for m in space.tables.entries() if m.user and not space.is_reserved(m.va, 1 << m.log2)]
        for pa, size, writable in vtlb.reached():
            allowed = any(m.pa <= pa and pa + size <= m.pa + (1 << m.log2) and m.writable >= writable for m in mapped)
            require(allowed, f"{thread!r} reaches {pa:#x}, which {space} has not, or not writable")


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


def _state(k: Kernel, thread: Tcb) -> None:
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
    if thread.wait is not OWN_IPC:
        require(thread.state in (S.POLLING, S.WAITING), f"{thread!r} is in a call of the kernel's")
    require(
        not thread.halting or thread is not k.current or thread.state is not S.RUNNING,
        f"{thread!r} was halted, and runs",
    )
    _time(k, thread)
    require(thread.state is not S.INACTIVE or thread.vcpu is not None, f"{thread!r} sleeps, but has no guest")
    if thread.state is S.ABORTED:
        require(thread.utcb is None and not thread.senders, f"{thread!r} was never activated, but can be sent to")


def _time(k: Kernel, thread: Tcb) -> None:
    """Nobody has more time than its scheduler has given it; who competes with a lent priority has the processor."""
    ran = k.now - k.since if thread is k.current else 0  # in its present run, which is not accounted for yet
    if thread.total_quantum < NEVER_ENDS:
        left = thread.quantum_left + preemption.own_slice(thread) - ran
        require(left <= thread.total_quantum, f"{thread!r} has {left} cycles of a quantum of {thread.total_quantum}")
    if thread.lent_priority >= 0:
        require(thread is k.current or thread is k.handed, f"{thread!r} has a lent priority, and not the processor")


def _partners(k: Kernel, thread: Tcb) -> None:
    """Nobody waits for, sends to, or is in the midst of a message with somebody who is gone."""
    others = [*thread.senders] if thread.send_to is None else [*thread.senders, thread.send_to]
    copy = thread.copying
    if copy is not None:
        others += [copy.sender, copy.receiver]
        require(thread in (copy.sender, copy.receiver), f"{thread!r} is in the midst of others' message")
        require(copy.sender.copying is copy is copy.receiver.copying, f"{thread!r} is alone in the midst of a message")
        asks = thread.state is not S.TRANSFERRING
        require(asks == (thread.wait is not OWN_IPC), f"{thread!r} is in the midst of a message, and asks nobody")
    else:
        require(thread.state is not S.TRANSFERRING, f"{thread!r} transfers nothing")
    for other in others:
        require(k.threads.get(other.id.thread_no) is other, f"{thread!r} has to do with {other!r}, who is gone")
    closed = thread.state is S.WAITING and thread.wait_for not in (NIL_THREAD, ANY_THREAD, ANY_LOCAL_THREAD)
    if closed and thread.wait is not START:  # a new thread's pager may yet come
        require(k.find(thread.wait_for, None), f"{thread!r} waits for {thread.wait_for:#x}, who is gone")


def _meeting(k: Kernel, thread: Tcb) -> None:
    """Nobody waits to receive while a sender that it accepts is queued, and no message is about to leave a space that
    has a redirector, but to there; once all is settled."""
    if thread.state is S.WAITING and not k.unsettled:
        for sender in thread.senders:
            require(not ipc.accepts(thread, sender), f"{thread!r} and {sender!r} wait for each other")
    if thread.send_to is not None and thread.outgoing is None:
        allowed = may_send_to(k, thread, thread.send_to)
        require(allowed, f"{thread!r} sends to {thread.send_to!r}, past its space's redirector")


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
    require(thread.utcb.words == k.machine.memory.u32[at : at + u.SIZE // 4], f"{thread!r}: the UTCB lies elsewhere")


def _words(k: Kernel) -> None:
    """What the kernel wrote where programs find it: whose UTCB it is, and whose is the current one."""
    for thread in k.threads.values():
        if thread.utcb is not None:
            require(thread.tcr(u.MY_GLOBAL_ID) == thread.id, f"{thread!r} reads another identifier in its UTCB")
    if k.current is not None and k.current.utcb is not None:
        slot = k.machine.memory.u32[k.area.slot_frame >> 2]
        require(slot == k.current.local_id, f"%gs:0 leads to {slot:#x}, and not to the UTCB of {k.current!r}")


def _spaces(k: Kernel) -> None:
    """A space lives as long as there are threads in it."""
    for space in k.spaces:
        require(space.threads, f"{space} has no threads")
        for thread in space.threads:
            require(k.threads.get(thread.id.thread_no) is thread, f"{space} lists {thread!r}, who is gone")
            require(thread.space is space, f"{space} lists {thread!r}, who is in {thread.space}")


def _interrupts(k: Kernel) -> None:
    """Each line that somebody handles has its thread, which is silent or calls the handler; no other line has one."""
    threads = {thread.id.thread_no: thread for thread in k.threads.values() if thread.id.is_interrupt}
    require(threads == k.lines.threads, "interrupt threads are others than the lines have")
    for thread in threads.values():
        require(thread.state in (S.HALTED, S.POLLING, S.WAITING), f"{thread!r} does what no interrupt thread does")
        require((thread.wait is OWN_IPC) == (thread.state is S.HALTED), f"{thread!r} is silent in the midst of a call")


def _devices(k: Kernel) -> None:
    """The kernel looks at the devices in time: before the next of them does something that somebody listens for, and at
    once if there is a character that somebody waits for. So an idle machine has no such deadline."""
    deadline = k.machine.device_deadline(k.lines.listens)
    require(deadline is None or k.next_look <= deadline, f"a device acts at {deadline}, and nobody looks")
    waiting = [thread for thread in k.threads.values() if thread.wait is CONSOLE]
    require(all(thread in k.readers for thread in waiting), f"nobody remembers that {waiting} wait for the console")
    require(not waiting or not k.machine.uart.fifo or not k.next_look, f"{waiting} wait for a character that is there")


def _ready(k: Kernel) -> None:
    """Who can run is the current thread, or the next one, or stands in one ready queue, once."""
    ready = k.sched.waiting()
    places = Counter(ready)
    for thread in (k.current, k.handed):
        if thread is not None:
            places[thread] += 1
    for thread in k.threads.values():
        if thread.state is S.RUNNING:
            require(places[thread] == 1, f"{thread!r} stands in {places[thread]} places of those who may run")
        else:
            require(places[thread] == (thread is k.current), f"{thread!r} stands in a ready queue")
    require(all(k.threads.get(thread.id.thread_no) is thread for thread in ready), "a deleted thread is ready")
    current = k.current
    if current is not None and current.state is S.RUNNING and current.slice_left > 0 and not k.reconsider:
        require(not k.sched.preempts(current), f"somebody goes before {current!r}, and nobody looks")


def _timers(k: Kernel) -> None:
    """Who has a timer is blocked."""
    for thread in k.timers.sleepers():
        require(thread.state in (S.WAITING, S.POLLING), f"{thread!r} has a timer")


def _mappings(k: Kernel) -> None:
    """The mapping trees and the page tables tell the same story; nobody has what is the kernel's.

    And a page is once in its space, and once among its parent's children: as many in the spaces as in the trees.
    """
    if not isinstance(k.mappings, MappingDatabase):
        return  # somebody else's: what it did is checked as it does it
    trees = [node for space in k.spaces if space.is_sigma0 for node in k.mappings.nodes(space)]
    roots = len(trees)
    for node in trees:  # grows as it goes
        children = [child for siblings in node.children.values() for child in siblings]
        require(all(child.parent is node for child in children), f"a child of {node.space} {node.va:#x} is another's")
        trees += children
    require(len(trees) == len(set(trees)), "a page is derived twice")
    in_spaces = sum(len(k.mappings.nodes(space)) for space in k.spaces if not space.is_sigma0)
    require(len(trees) - roots == in_spaces, f"{len(trees) - roots} pages are in the trees, {in_spaces} in the spaces")
    require(set(k.mappings.spaces()) <= set(k.spaces), "a space that is gone has mappings")
    for space in k.spaces:
        tables = space.tables
        require(tables.tracks == (space.is_vm and not space.shadow_paging), f"{space} tracks what it need not, or not")
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
    uses.update(f for thread in k.threads.values() if thread.vcpu is not None for f in thread.vcpu.frames())
    slots = Counter(thread.frame for thread in k.threads.values())
    require(slots == Counter(k.register_frames.out()), "register frames that are out are not those of the threads")
    for frame, count in uses.items():
        require(count == 1, f"frame {frame:#x} has {count} uses")
    require(set(uses) == k.frames.out(), f"{k.frames.used} frames are out, {len(uses)} are in use")
