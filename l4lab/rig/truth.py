# SPDX-License-Identifier: GPL-2.0-or-later
"""Is the trace true? What the ledger makes of it, compared with the kernel's own tables.

For tests: after every kernel entry they may ask whether the trace has told everything. What lives here: the comparison.
The kernel's tables are compared with each other in `kernel/invariants.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from l4lab.errors import KernelPanic
from l4lab.kernel.events import KERNEL_SPACE, Event
from l4lab.kernel.kernel import Kernel
from l4lab.kernel.memory.mapping import MappingDatabase
from l4lab.kernel.memory.mappingtree import Node
from l4lab.kernel.objects.space import Space
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.rig.ledger import Ledger


class Auditor:
    """Keeps a ledger of a run, and compares it with the kernel whenever it is asked."""

    def __init__(self, kernel: Kernel) -> None:
        self.ledger = Ledger()
        self._kernel = kernel

    def audit(self, events: Iterable[Event], tables: bool = True) -> None:
        """Take these further events; KernelPanic, naming what the trace does not tell, unless it tells all.

        Without `tables`, what is mapped is not compared.
        """
        for event in events:
            self.ledger.take(event)
        untold = next(differences(self.ledger, self._kernel, tables), None)
        if untold is not None:
            raise KernelPanic(f"the trace does not tell the truth at event {self.ledger.events}: {untold}")


def differences(ledger: Ledger, k: Kernel, tables: bool = True) -> Iterator[str]:
    """What the ledger has otherwise than the kernel, between two kernel entries; of mappings, if `tables` says so."""
    if ledger.entries != k.entries:
        yield f"{ledger.entries} kernel entries, but the kernel counts {k.entries}"
    if k.current is not None and ledger.current != k.current.word:
        yield f"{ledger.current} runs, but the kernel has {k.current!r}"
    told = {thread.id: (thread.space, thread.kind, thread.state, thread.wait) for thread in ledger.threads.values()}
    real = {t.word: (t.space.number, _kind(t), t.state.name, t.wait.name) for t in k.threads.values()}
    if told != real:
        yield _first_difference("thread", told, real)
        return
    for thread in k.threads.values():
        on = ledger.threads[thread.word].on
        if thread.state is ThreadState.WAITING and on != thread.wait_for:
            yield f"{thread!r} waits for {on:#x}, but the kernel has {thread.wait_for:#x}"
        if thread.send_to is not None and on != thread.send_to.word:
            yield f"{thread!r} sends to {on:#x}, but the kernel has {thread.send_to!r}"
    names = {space.number: (space.name, space.is_vm, int(space.kip_area), int(space.utcb_area)) for space in k.spaces}
    books = {s.number: (s.name, s.is_vm, s.kip, s.utcbs) for s in ledger.spaces.values() if s.number != KERNEL_SPACE}
    if books != names:
        yield _first_difference("space", books, names)
        return
    if not tables:
        return
    for space in k.spaces:
        found = ledger.spaces[space.number]
        pages = {page.va: (page.pa, page.log2, page.writable) for page in found.pages.values()}
        mapped = dict(_pages(k, space))
        if pages != mapped:
            yield _first_difference(f"page of {space!r}", pages, mapped)
        ports = {port: giver.number for port, giver in space.ports.items()}
        if ports != found.ports:
            yield _first_difference(f"port of {space!r}", found.ports, ports)
        for node in _nodes(k, space):
            page, parent = found.pages[node.va], node.parent
            assert parent is not None, "only sigma0 has roots"
            giver = None if parent.space.is_sigma0 else (parent.space.number, parent.va)
            if giver != (None if page.parent is None else (page.parent.space, page.parent.va)):
                yield f"{space!r} has {node.va:#x} from {page.parent}, but the kernel has {giver}"


def _kind(thread: Tcb) -> str:
    return "interrupt" if thread.id.is_interrupt else "vcpu" if thread.vcpu is not None else "thread"


def _pages(k: Kernel, space: Space) -> Iterator[tuple[int, tuple[int, int, bool]]]:
    """What a space's page table maps for its programs, KIP and UTCBs left out. That the mapping database has the same
    pages is an invariant of the kernel's; only sigma0 has others, those that it touched."""
    if space.is_sigma0 or not isinstance(k.mappings, MappingDatabase):
        for page in space.tables.entries():
            if page.va < space.user_limit and not space.is_reserved(page.va, 1 << page.log2):
                yield page.va, (page.pa, page.log2, page.writable)
        return
    for node in k.mappings.nodes(space):
        found = space.tables.lookup(node.va)
        yield node.va, (node.pa, node.log2, found is not None and found.writable)


def _nodes(k: Kernel, space: Space) -> list[Node]:
    """What the kernel's own mapping database has; somebody else's has no nodes to compare."""
    return [] if space.is_sigma0 or not isinstance(k.mappings, MappingDatabase) else k.mappings.nodes(space)


def _first_difference(what: str, told: Mapping[int, object], real: Mapping[int, object]) -> str:
    key = min(key for key in told.keys() | real.keys() if told.get(key) != real.get(key))
    return f"{what} {key:#x} is {told.get(key, 'not there')}, but the kernel has {real.get(key, 'none')}"
