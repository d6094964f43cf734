# SPDX-License-Identifier: GPL-2.0-or-later
"""A page walk and a rendezvous as a student would write them, and the systems on which they are tried."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD
from l4lab.abi.message import IpcErrorCode
from l4lab.abi.time import ZERO
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.parts import Found, IpcHooks, NoTranslation, PageWalk, Parts, Rendezvous
from l4lab.machine.mmu import PS, RW, US, P
from l4lab.rig.rig import Rig
from l4lab.user.guests import greeting, tinyos

NO_PARTNER, TIMEOUT = IpcErrorCode.NO_PARTNER, IpcErrorCode.TIMEOUT


class Walker(PageWalk):
    """Two levels, each of which takes rights away."""

    def walk(
        self, read: Callable[[int], int], cr3: int, va: int, write: bool, user: bool, wp: bool
    ) -> Found | NoTranslation:
        """As the CPU does it."""
        code = (2 if write else 0) | (4 if user else 0)
        at = cr3 + (va >> 22) * 4
        entry = rights = read(at)
        marked: list[int] = []
        if not entry & P:
            return NoTranslation(code)
        if entry & PS:
            if entry & 0x20_0000:
                return NoTranslation(code | 9)
            pa = entry & 0xFFC0_0000 | (entry & 0x1F_E000) << 19 | va & 0x3F_FFFF
        else:
            marked.append(at)
            at = (entry & ~0xFFF) + (va >> 12 & 0x3FF) * 4
            entry = read(at)
            if not entry & P:
                return NoTranslation(code, marked)
            rights &= entry
            pa = entry & ~0xFFF | va & 0xFFF
        if (user and not rights & US) or (write and not rights & RW and (user or wp)):
            return NoTranslation(code | 1, marked)
        return Found(pa, [*marked, at], at if write else None)


class Meeting(Rendezvous):
    """Where two meet: who waits is looked at by who sends, who stands in the queue by who receives."""

    def __init__(self, hooks: IpcHooks) -> None:
        self.hooks = hooks

    def accepts(self, receiver: Tcb, sender: Tcb) -> bool:
        """Anybody, this one, or one of its own space."""
        wanted = receiver.wait_for
        return wanted in (ANY_THREAD, sender.word) or (wanted == ANY_LOCAL_THREAD and receiver.space is sender.space)

    def send(self, sender: Tcb, to: int, timeout: int, from_: int, then_timeout: int) -> None:
        """At once, or from the queue."""
        receiver = self.hooks.find(to, sender)
        if receiver is None or receiver.state is ThreadState.ABORTED:
            self.hooks.fail(sender, NO_PARTNER, in_receive=False)
        elif self.hooks.takes(receiver, sender):
            if self.hooks.deliver(sender, receiver):
                self.receive(sender, from_, then_timeout)
        elif timeout == ZERO:
            self.hooks.fail(sender, TIMEOUT, in_receive=False)
        else:
            self.hooks.poll(sender, receiver, timeout)

    def receive(self, receiver: Tcb, from_: int, timeout: int) -> None:
        """Whose message was taken receives in turn."""
        while from_:
            sender = self.partner(receiver, from_, timeout)
            if sender is None:
                return
            from_, timeout = self.hooks.leave_queue(sender)
            if not self.hooks.deliver(sender, receiver):
                return
            receiver = sender
        self.hooks.done(receiver)

    def partner(self, receiver: Tcb, from_: int, timeout: int) -> Tcb | None:
        """Who has sent already what the receiver wants; None: it waits, or has failed."""
        if from_ not in (ANY_THREAD, ANY_LOCAL_THREAD):
            wanted = self.hooks.find(from_, receiver)
            if wanted is None:
                self.hooks.fail(receiver, NO_PARTNER, in_receive=True)
                return None
            from_ = wanted.word
        self.hooks.expect(receiver, from_)
        for sender in self.hooks.senders(receiver):
            if self.hooks.takes(receiver, sender):
                return sender
        if timeout == ZERO:
            self.hooks.fail(receiver, TIMEOUT, in_receive=True)
        else:
            self.hooks.wait(receiver, timeout)
        return None


def mistaken(kind: type, *changes: tuple[str, str]) -> Any:
    """The class with a mistake in it: pieces of its text are others."""
    text = inspect.getsource(kind)
    for right, wrong in changes:
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    names = dict(globals())
    exec(text, names)
    return names[kind.__name__]


# -- what they are tried on --------------------------------------------------------------------------------------------


def example(name: str) -> ModuleType:
    """One of `examples/`."""
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pingpong(parts: Parts) -> Rig:
    """Calls without end."""
    module = example("pingpong")
    return Rig(module.root, 32 << 20, programs={module.PONG: module.pong}, parts=parts)


def memserver(parts: Parts) -> Rig:
    """A server of pages and its clients."""
    module = example("memserver")
    return Rig(module.root, 32 << 20, programs=dict.fromkeys(module.CLIENTS, module.client), parts=parts)


def pager(parts: Parts) -> Rig:
    """Page faults."""
    module = example("pager")
    return Rig(module.root, 32 << 20, programs={module.CLIENT: module.client}, parts=parts)


SYSTEMS: dict[str, Callable[[Parts], Rig]] = {
    "pingpong": pingpong,
    "memserver": memserver,
    "pager": pager,
    "greeting": lambda parts: Rig.for_flat_guest(greeting.build(), parts=parts),
    "tinyos": lambda parts: Rig.for_flat_guest(tinyos.build(), parts=parts),
}
PARTS = {
    "none": Parts(),
    "walk": Parts(walk=Walker),
    "ipc": Parts(ipc=Meeting),
    "both": Parts(walk=Walker, ipc=Meeting),
}

if __name__ == "__main__":
    rig = SYSTEMS[sys.argv[1]](PARTS[sys.argv[2]])
    rig.run()
    rig.trace.save(sys.argv[3])
