# SPDX-License-Identifier: GPL-2.0-or-later
"""A node of the mapping tree: one page in one space, what was mapped on from it, and what is known of those that went.

What lives here: keeping a node's children by physical address, and the status that they leave behind. What does not:
map, grant and unmap, which are in mapping.py.
"""

from __future__ import annotations

from typing import Final

from l4lab.kernel.objects.space import MappedSpace
from l4lab.machine.memory import PAGE_SIZE
from l4lab.machine.mmu import LARGE_LOG2, PAGE_LOG2

WHOLE: Final = -1  # no physical address: where a child was that was as large as its parent


class Node:
    """One page in one space. Whether it is writable, accessed, dirty: see the page table of `space`."""

    def __init__(self, space: MappedSpace, va: int, pa: int, log2: int) -> None:
        self.space = space
        self.va = va
        self.pa = pa
        self.log2 = log2  # 12 or 22
        self.parent: Node | None = None  # None: a root, that is sigma0's; else see `adopt`
        # By physical address, so that a piece of a 4 MB page finds its own children. A dict serves as an ordered set.
        self.children: dict[int, dict[Node, None]] = {}
        self.remembered = 0  # status of derived pages, reported to an unmapper but not yet to the one above it
        self.gone: dict[int, int] | None = None  # where -> status of derived pages that went without its being asked

    def adopt(self, child: Node) -> None:
        """Take in a page that was mapped from this one."""
        child.parent = self
        siblings = self.children.get(child.pa)
        if siblings is None:
            siblings = self.children[child.pa] = {}
        siblings[child] = None

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
        if not self.children:
            return []
        if log2 >= self.log2:
            return [child for siblings in self.children.values() for child in siblings]
        large = [child for child in self.children.get(self.pa, ()) if child.log2 == LARGE_LOG2]
        pages = range(pa, pa + (1 << log2), PAGE_SIZE)
        return large + [c for page in pages for c in self.children.get(page, ()) if c.log2 == PAGE_LOG2]
