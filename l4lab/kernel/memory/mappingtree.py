# SPDX-License-Identifier: GPL-2.0-or-later
"""A node of the mapping tree: one page in one space, what was mapped on from it, and what is known of those that went.

What lives here: keeping a node's children by physical address, and the status that they leave behind. What does not:
map, grant and unmap, which are in mapping.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from l4lab.machine.memory import PAGE_SIZE
from l4lab.machine.mmu import LARGE_LOG2, PAGE_LOG2
from l4lab.machine.pagetables import PageTables

WHOLE: Final = -1  # no physical address: where a child was that was as large as its parent


class MappedSpace(Protocol):
    """What the mapping database needs to know of an address space."""

    @property
    def name(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def tables(self) -> PageTables: ...
    @property
    def user_limit(self) -> int:
        """First address that users cannot map to; a multiple of 4 MB."""

    @property
    def is_sigma0(self) -> bool: ...
    @property
    def large_pages(self) -> bool:
        """May its tables hold pages of 4 MB? Not where they translate for a guest: see `mmu.walk_nested`."""

    def is_reserved(self, va: int, size: int) -> bool:
        """Is some of `va .. va + size` in the KIP or UTCB area?"""


@dataclass(slots=True, eq=False)
class Node:
    """One page in one space. Whether it is writable, accessed, dirty: see the page table of `space`."""

    space: MappedSpace
    va: int
    pa: int
    log2: int  # 12 or 22
    parent: Node | None  # None: a root, that is sigma0's
    # By physical address, so that a piece of a 4 MB page finds its own children. A dict serves as an ordered set.
    children: dict[int, dict[Node, None]] = field(default_factory=dict)
    remembered: int = 0  # status of derived pages, reported to an unmapper but not yet to the one above it
    gone: dict[int, int] | None = None  # where -> status of derived pages that went without this node's being asked

    def adopt(self, child: Node) -> None:
        """Take in a page that was mapped from this one."""
        child.parent = self
        self.children.setdefault(child.pa, {})[child] = None

    def leave(self) -> None:
        """Take this node out of its parent's children."""
        assert self.parent is not None, "roots stay"
        siblings = self.parent.children[self.pa]
        del siblings[self]
        if not siblings:
            del self.parent.children[self.pa]

    def note_gone(self, child: Node, status: int) -> None:
        """A child has left without a word to the owner of this node, who hears of its status when he asks."""
        self.remembered |= status
        if status:
            self.gone = self.gone or {}
            where = child.pa if child.log2 < self.log2 else WHOLE
            self.gone[where] = self.gone.get(where, 0) | status

    def take_gone(self, pa: int, log2: int) -> int:
        """The status of what left the piece of size `log2` at `pa`; it is told once."""
        if not self.gone:
            return 0
        status = 0
        for where in [where for where in self.gone if where == WHOLE or pa <= where < pa + (1 << log2)]:
            status |= self.gone.pop(where)
        return status

    def children_in(self, pa: int, log2: int) -> list[Node]:
        """The children that reach into the physical piece of size `log2` at `pa`."""
        if log2 >= self.log2:
            return [child for siblings in self.children.values() for child in siblings]
        large = [child for child in self.children.get(self.pa, ()) if child.log2 == LARGE_LOG2]
        pages = range(pa, pa + (1 << log2), PAGE_SIZE)
        return large + [c for page in pages for c in self.children.get(page, ()) if c.log2 == PAGE_LOG2]
