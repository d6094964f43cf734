# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds between any two steps of the kernel, as one function that looks at everything.

Too slow for each step of a long run; tests call it after every kernel entry, and a debugger may at any time.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NoReturn

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


def check(k: Kernel, honest: bool = False, tables: bool = True) -> None:
    """KernelPanic, naming what is broken, unless all of it holds.

    `honest`: no program has written to words that are the kernel's to write, though it could. Without `tables`, what is
    mapped and which frames are used is not looked at: most of the work, and most entries change nothing there.
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
    if tables:
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
            allowed or broken(f"{thread!r} reaches {pa:#x}, which {space} has not, or not writable")


def broken(what: str) -> NoReturn:
    """One claim does not hold. Claims read `claim or broken(...)`, since most of the time would go into the words."""
    raise KernelPanic(f"invariant broken: {what}")


def _thread(k: Kernel, thread: Tcb) -> None:
    """A thread stands where its number and its space say."""
    k.threads.get(thread.id.thread_no) is thread or broken(f"{thread!r} stands under another number than its own")
    if thread.id.is_interrupt:
        thread.space is k.kernel_space or broken(f"{thread!r} is an interrupt thread in {thread.space}")
    else:
        thread.space in k.spaces or broken(f"{thread!r} is in {thread.space}, which is gone")
        thread.space.threads.count(thread) == 1 or broken(f"{thread.space} does not list {thread!r} once")
    thread.space.is_vm == (thread.vcpu is not None) or broken(f"{thread!r}: virtual CPUs are the threads of VM spaces")


def _state(k: Kernel, thread: Tcb) -> None:
    """The state goes with what the thread stands in and waits for."""
    polling = thread.state is S.POLLING
    polling == (thread.send_to is not None) or broken(f"{thread!r} has send_to={thread.send_to!r}")
    if thread.send_to is not None:
        thread.send_to.senders.count(thread) == 1 or broken(f"{thread.send_to!r} does not queue {thread!r} once")
        thread.send_to.utcb is not None or thread.send_to.id.is_interrupt or broken(
            f"{thread!r} polls a lifeless thread"
        )
    for sender in thread.senders:
        sender.send_to is thread or broken(
            f"{sender!r} stands in the queue of {thread!r}, but sends to {sender.send_to!r}"
        )
    polling or thread.then_receive is None or broken(f"{thread!r} has a receive phase to come, but does not send")
    polling or thread.outgoing is None or broken(f"{thread!r} has a message of the kernel's, but does not send")
    if thread.wait is not OWN_IPC:
        thread.state in (S.POLLING, S.WAITING) or broken(f"{thread!r} is in a call of the kernel's")
    not thread.halting or thread is not k.current or thread.state is not S.RUNNING or broken(
        f"{thread!r} was halted, and runs"
    )
    _time(k, thread)
    thread.state is not S.INACTIVE or thread.vcpu is not None or broken(f"{thread!r} sleeps, but has no guest")
    if thread.state is S.ABORTED:
        (thread.utcb is None and not thread.senders) or broken(f"{thread!r} was never activated, but can be sent to")


def _time(k: Kernel, thread: Tcb) -> None:
    """Nobody has more time than its scheduler has given it; who competes with a lent priority has the processor."""
    ran = k.now - k.since if thread is k.current else 0  # in its present run, which is not accounted for yet
    if thread.total_quantum < NEVER_ENDS:
        left = thread.quantum_left + preemption.own_slice(thread) - ran
        left <= thread.total_quantum or broken(f"{thread!r} has {left} cycles of a quantum of {thread.total_quantum}")
    if thread.lent_priority >= 0:
        thread is k.current or thread is k.handed or broken(f"{thread!r} has a lent priority, and not the processor")


def _partners(k: Kernel, thread: Tcb) -> None:
    """Nobody waits for, sends to, or is in the midst of a message with somebody who is gone."""
    others = [*thread.senders] if thread.send_to is None else [*thread.senders, thread.send_to]
    copy = thread.copying
    if copy is not None:
        others += [copy.sender, copy.receiver]
        thread in (copy.sender, copy.receiver) or broken(f"{thread!r} is in the midst of others' message")
        copy.sender.copying is copy is copy.receiver.copying or broken(f"{thread!r} is alone in the midst of a message")
        asks = thread.state is not S.TRANSFERRING
        asks == (thread.wait is not OWN_IPC) or broken(f"{thread!r} is in the midst of a message, and asks nobody")
    else:
        thread.state is not S.TRANSFERRING or broken(f"{thread!r} transfers nothing")
    for other in others:
        k.threads.get(other.id.thread_no) is other or broken(f"{thread!r} has to do with {other!r}, who is gone")
    closed = thread.state is S.WAITING and thread.wait_for not in (NIL_THREAD, ANY_THREAD, ANY_LOCAL_THREAD)
    if closed and thread.wait is not START:  # a new thread's pager may yet come
        k.find(thread.wait_for, None) or broken(f"{thread!r} waits for {thread.wait_for:#x}, who is gone")


def _meeting(k: Kernel, thread: Tcb) -> None:
    """Nobody waits to receive while a sender that it accepts is queued, and no message is about to leave a space that
    has a redirector, but to there; once all is settled."""
    if thread.state is S.WAITING and not k.unsettled:
        for sender in thread.senders:
            not ipc.accepts(thread, sender) or broken(f"{thread!r} and {sender!r} wait for each other")
    if thread.send_to is not None and thread.outgoing is None:
        allowed = may_send_to(k, thread, thread.send_to)
        allowed or broken(f"{thread!r} sends to {thread.send_to!r}, past its space's redirector")


def _utcb(k: Kernel, thread: Tcb) -> None:
    """The UTCB lies where the space has it. What is in it the program may write: nothing holds of that."""
    if thread.utcb is None:
        thread.local_id == 0 or broken(f"{thread!r} has a local identifier without a UTCB")
        return
    thread.space.holds_utcb(thread.utcb_location) or broken(f"{thread!r} has its UTCB outside the UTCB area")
    thread.local_id == thread.utcb_location + u.MR0_FROM_LOCATION or broken(f"{thread!r} has a wrong local identifier")
    if thread.space.is_vm:
        return
    page = thread.space.tables.lookup(thread.utcb_location)
    (page is not None and page.writable and page.user) or broken(f"{thread!r} cannot write its UTCB")
    at = (page.pa if page else 0) + thread.utcb_location % PAGE_SIZE >> 2
    thread.utcb.words == k.machine.memory.u32[at : at + u.SIZE // 4] or broken(f"{thread!r}: the UTCB lies elsewhere")


def _words(k: Kernel) -> None:
    """What the kernel wrote where programs find it: whose UTCB it is, and whose is the current one."""
    for thread in k.threads.values():
        if thread.utcb is not None:
            thread.tcr(u.MY_GLOBAL_ID) == thread.id or broken(f"{thread!r} reads another identifier in its UTCB")
    if k.current is not None and k.current.utcb is not None:
        slot = k.machine.memory.u32[k.area.slot_frame >> 2]
        slot == k.current.local_id or broken(f"%gs:0 leads to {slot:#x}, and not to the UTCB of {k.current!r}")


def _spaces(k: Kernel) -> None:
    """A space lives as long as there are threads in it."""
    for space in k.spaces:
        space.threads or broken(f"{space} has no threads")
        for thread in space.threads:
            k.threads.get(thread.id.thread_no) is thread or broken(f"{space} lists {thread!r}, who is gone")
            thread.space is space or broken(f"{space} lists {thread!r}, who is in {thread.space}")


def _interrupts(k: Kernel) -> None:
    """Each line that somebody handles has its thread, which is silent or calls the handler; no other line has one."""
    threads = {thread.id.thread_no: thread for thread in k.threads.values() if thread.id.is_interrupt}
    threads == k.lines.threads or broken("interrupt threads are others than the lines have")
    for thread in threads.values():
        thread.state in (S.HALTED, S.POLLING, S.WAITING) or broken(f"{thread!r} does what no interrupt thread does")
        (thread.wait is OWN_IPC) == (thread.state is S.HALTED) or broken(f"{thread!r} is silent in the midst of a call")


def _devices(k: Kernel) -> None:
    """The kernel looks at the devices in time: before the next of them does something that somebody listens for, and at
    once if there is a character that somebody waits for. So an idle machine has no such deadline."""
    deadline = k.machine.device_deadline(k.lines.listens)
    deadline is None or k.next_look <= deadline or broken(f"a device acts at {deadline}, and nobody looks")
    waiting = [thread for thread in k.threads.values() if thread.wait is CONSOLE]
    all(thread in k.readers for thread in waiting) or broken(f"nobody remembers that {waiting} wait for the console")
    not waiting or not k.machine.uart.fifo or not k.next_look or broken(f"{waiting} wait for a character that is there")


def _ready(k: Kernel) -> None:
    """Who can run is the current thread, or the next one, or stands in one ready queue, once."""
    ready = k.sched.waiting()
    places = Counter(ready)
    for thread in (k.current, k.handed):
        if thread is not None:
            places[thread] += 1
    for thread in k.threads.values():
        if thread.state is S.RUNNING:
            places[thread] == 1 or broken(f"{thread!r} stands in {places[thread]} places of those who may run")
        else:
            places[thread] == (thread is k.current) or broken(f"{thread!r} stands in a ready queue")
    all(k.threads.get(thread.id.thread_no) is thread for thread in ready) or broken("a deleted thread is ready")
    current = k.current
    if current is not None and current.state is S.RUNNING and current.slice_left > 0 and not k.reconsider:
        not k.sched.preempts(current) or broken(f"somebody goes before {current!r}, and nobody looks")


def _timers(k: Kernel) -> None:
    """Who has a timer is blocked."""
    for thread in k.timers.sleepers():
        thread.state in (S.WAITING, S.POLLING) or broken(f"{thread!r} has a timer")


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
        all(child.parent is node for child in children) or broken(f"a child of {node.space} {node.va:#x} is another's")
        trees += children
    len(trees) == len(set(trees)) or broken("a page is derived twice")
    in_spaces = sum(len(k.mappings.nodes(space)) for space in k.spaces if not space.is_sigma0)
    len(trees) - roots == in_spaces or broken(f"{len(trees) - roots} pages are in the trees, {in_spaces} in the spaces")
    set(k.mappings.spaces()) <= set(k.spaces) or broken("a space that is gone has mappings")
    for space in k.spaces:
        tables = space.tables
        tables.tracks == (space.is_vm and not space.shadow_paging) or broken(f"{space} tracks what it need not, or not")
        mapped = {page.va: page for page in space.tables.entries() if page.va < space.user_limit}
        nodes = {} if space.is_sigma0 else {node.va: node for node in k.mappings.nodes(space)}
        for va, node in nodes.items():
            page = mapped.pop(va, None)
            page is not None or broken(f"{space} has a mapping at {va:#x}, its page table has not")
            assert page is not None
            (page.pa, page.log2) == (node.pa, node.log2) or broken(f"{space} at {va:#x}: {page} is not {node.pa:#x}")
            node.pa + (1 << node.log2) <= k.kernel_memory or broken(f"{space} has kernel memory at {va:#x}")
            not space.is_reserved(va, 1 << node.log2) or broken(f"{space} has a mapping in its KIP or UTCB area")
            parent = node.parent
            (parent is not None and node in parent.children[node.pa]) or broken(f"{space} at {va:#x}: no parent has it")
            assert parent is not None
            inside = parent.pa <= node.pa and node.pa + (1 << node.log2) <= parent.pa + (1 << parent.log2)
            inside or broken(f"{space} at {va:#x}: its parent has other memory")
        for va, page in mapped.items():
            own = page.pa == va < k.kernel_memory if space.is_sigma0 else False
            own or space.is_reserved(va, 1 << page.log2) or broken(f"{space} has a page at {va:#x} from nobody")


def _ports(k: Kernel) -> None:
    """Each port was given by somebody who has it, and the way leads to sigma0, who has all by nature."""
    for space in k.spaces:
        not (space.is_sigma0 and space.ports) or broken("sigma0 was given ports")
        for port, giver in space.ports.items():
            seen = {space}
            while not giver.is_sigma0:
                (giver in k.spaces and giver not in seen) or broken(
                    f"{space} has port {port:#x} in a circle, or from the dead"
                )
                seen.add(giver)
                port in giver.ports or broken(f"{space} has port {port:#x} from {giver}, who has it not")
                giver = giver.ports[port]


def _frames(k: Kernel) -> None:
    """Each frame that is out has exactly one use."""
    uses = Counter([*k.frames_of_boot, *k.area.frames, *k.register_frames.pages])
    uses.update(k.kernel_space.own_frames())
    for space in k.spaces:
        uses.update(space.own_frames())
    uses.update(f for thread in k.threads.values() if thread.vcpu is not None for f in thread.vcpu.frames())
    slots = Counter(thread.frame for thread in k.threads.values())
    slots == Counter(k.register_frames.out()) or broken("register frames that are out are not those of the threads")
    for frame, count in uses.items():
        count == 1 or broken(f"frame {frame:#x} has {count} uses")
    set(uses) == k.frames.out() or broken(f"{k.frames.used} frames are out, {len(uses)} are in use")
