# SPDX-License-Identifier: GPL-2.0-or-later
"""The invariants themselves: do they see it, when something is broken?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from l4lab.abi import utcb as u
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ROOT_TASK, global_id, interrupt_id
from l4lab.abi.message import Acceptor, Message
from l4lab.errors import KernelPanic
from l4lab.kernel import invariants
from l4lab.kernel.kernel import Kernel
from l4lab.kernel.memory.mappingtree import Node
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.waits import CONSOLE
from l4lab.kernel.parts import Why
from l4lab.testing import Root, System
from l4lab.user.l4 import L4

SENDER, RECEIVER, SPINNER = global_id(300), global_id(301), global_id(302)
PLACE = Fpage.at(0x0090_0000)


def system() -> System:
    """Root has mapped a page; somebody has a timer, somebody polls, somebody runs, a line has a handler."""

    def receive(l4: L4) -> None:
        l4.accept(Acceptor.of(PLACE))
        l4.receive(ROOT_TASK)
        l4.sleep(10**6)

    def root(r: Root) -> None:
        r.hosted(receive, r.space(), id_=RECEIVER)
        r.hosted(lambda l4: l4.send(RECEIVER, [0]), id_=SENDER)
        r.send(RECEIVER, Message().append_map(Fpage.at(r.room()), PLACE.base))
        r.native("again: jmp again", priority=50, id_=SPINNER)
        r.thread_control(interrupt_id(3), interrupt_id(3), pager=ROOT_TASK)
        r.serve()

    made = System(root)
    made.run(5_000_000)
    return made


def thread(k: Kernel, id_: int) -> Tcb:
    return k.threads[id_ >> 14]


def node(k: Kernel) -> Node:
    found = k.mappings.node(thread(k, RECEIVER).space, PLACE.base)
    assert found is not None
    return found


def move(k: Kernel) -> None:
    thread(k, SENDER).space = thread(k, RECEIVER).space


def derive_twice(k: Kernel) -> None:
    one = node(k)
    root = k.mappings.nodes(k.spaces[0])[0]
    root.children.setdefault(one.pa, {})[one] = None


def take_out(k: Kernel) -> None:
    thread(k, RECEIVER).space.tables.unmap(PLACE.base, 12)


def put_in(k: Kernel) -> None:
    thread(k, RECEIVER).space.tables.map(PLACE.base + 4096, 0x5000, 12, writable=True)


def forget_thread(k: Kernel) -> None:
    gone = thread(k, RECEIVER)
    del k.threads[gone.id.thread_no]
    gone.space.threads.remove(gone)


def leave_queue(k: Kernel) -> None:
    thread(k, RECEIVER).senders.clear()


def ready_twice(k: Kernel) -> None:
    k.sched.ready(thread(k, SPINNER), Why.WOKE)


def lose_frame(k: Kernel) -> None:
    k.frames.allocate()


def lose_slot(k: Kernel) -> None:
    k.register_frames.allocate()


def run_nowhere(k: Kernel) -> None:
    thread(k, RECEIVER).state = ThreadState.RUNNING


def copy_nothing(k: Kernel) -> None:
    thread(k, SENDER).state = ThreadState.TRANSFERRING


def rename(k: Kernel) -> None:
    thread(k, SPINNER).set_tcr(u.MY_GLOBAL_ID, SENDER)


def other_utcb(k: Kernel) -> None:
    k.machine.memory.set_word(k.area.slot_frame >> 2, 0x1100)


def raise_line(k: Kernel) -> None:
    k.threads[3].state = ThreadState.RUNNING


def wait_for_nobody(k: Kernel) -> None:
    thread(k, RECEIVER).wait_for = int(global_id(999))


def give_ports(k: Kernel) -> None:
    thread(k, RECEIVER).space.ports[0x60] = thread(k, SENDER).space


def pass_each_other_by(k: Kernel) -> None:
    """The sender's receiver has a name for it that it accepts, and nobody looks."""
    receiver = thread(k, RECEIVER)
    assert thread(k, SENDER) in receiver.senders
    receiver.wait_for = int(SENDER)


def escape(k: Kernel) -> None:
    thread(k, SENDER).space.redirector = SPINNER
    thread(k, RECEIVER).space.privileged = False


def miss_the_timer(k: Kernel) -> None:
    """The handler's line is opened, and nobody looks when its device will act."""
    k.machine.pit.write(0x43, 1, 0x34)
    k.machine.pit.write(0x40, 1, 1)
    k.machine.pit.write(0x40, 1, 1)
    k.lines.handlers[0] = ROOT_TASK
    k.lines.masked &= ~1


def overhear(k: Kernel) -> None:
    """A character has arrived, and who waits for it is not told."""
    k.machine.uart.receive(b"x")
    spinner = thread(k, SPINNER)
    k.unready(spinner)
    spinner.state, spinner.wait, spinner.wait_for = ThreadState.WAITING, CONSOLE, NIL_THREAD
    k.current = None


BREAKAGES: list[tuple[Callable[[Kernel], None], str]] = [
    (move, "does not list"),
    (derive_twice, "is another's|derived twice|other memory"),
    (take_out, "its page table has not"),
    (put_in, "from nobody"),
    (forget_thread, "who is gone"),
    (leave_queue, "does not queue"),
    (ready_twice, "2 places"),
    (lose_frame, "are in use"),
    (lose_slot, "register frames"),
    (run_nowhere, "0 places"),
    (copy_nothing, "send_to|transfers nothing"),
    (rename, "another identifier"),
    (other_utcb, "%gs:0"),
    (raise_line, "interrupt thread|places"),
    (wait_for_nobody, "waits for"),
    (give_ports, "from"),
    (pass_each_other_by, "wait for each other"),
    (escape, "past its space's redirector"),
    (miss_the_timer, "nobody looks"),
    (overhear, "nobody remembers"),
]


def test_nothing_is_broken_at_first() -> None:
    """Do all invariants hold of the system that the other tests break?"""
    k = system().kernel

    assert NIL_THREAD == k.lines.threads[3].scheduler
    invariants.check(k, honest=True)


@pytest.mark.parametrize(("breakage", "said"), BREAKAGES, ids=[breakage.__name__ for breakage, _ in BREAKAGES])
def test_what_is_broken_is_seen(breakage: Callable[[Kernel], None], said: str) -> None:
    """Is each of these seen, and named?"""
    k = system().kernel
    breakage(k)

    with pytest.raises(KernelPanic, match=said):
        invariants.check(k, honest=True)
