# SPDX-License-Identifier: GPL-2.0-or-later
"""The mapping database: who gave which page to whom.

Every page that a user can reach was mapped to it by someone, down to sigma0, which owns all physical memory. Each such
page is a node; what was mapped on from it are its children. Taking a page back means taking back the whole subtree.
What lives here: map, grant, unmap, flush (X.2 manual, "Map, Grant, Unmap"). What does not: how a node keeps its
children (mappingtree.py), the words in which a user asks (`abi`), the format of page tables (`machine`), KIP and UTCB
pages (they have no node, so no one can map, grant or unmap them).

    sigma0 0x400000 4M            one root for each 4 MB of physical memory somebody has from sigma0
     +- pager  0x800000 4M w      children are as large as their parent or smaller
         +- client 0x1000 4K w    is physical 0x400000 + what pager's offset was
         +- client 0x5000 4K
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final, NamedTuple

from l4lab.abi.fpage import Fpage
from l4lab.abi.message import GrantItem, MapItem
from l4lab.errors import KernelPanic
from l4lab.kernel.memory.mappingtree import Node
from l4lab.kernel.objects.space import MappedSpace
from l4lab.machine.memory import PAGE_SIZE
from l4lab.machine.mmu import LARGE_LOG2, LARGE_SIZE, PAGE_LOG2, A, D, P
from l4lab.machine.pagetables import frame_of, is_writable

# Rights as in an fpage's low bits. The hardware knows only `w`: a page that is there can be read and executed.
RIGHT_W: Final = 2
ALL_RIGHTS: Final = 7
ACCESSED: Final = 5  # status of a page that was used: r and x ...
DIRTY: Final = 6  # ... and of one that was written to: r and w


class HandedOn:
    """A page that a map or grant put into the taker's page table, or gave more rights there."""

    def __init__(self, origin: int, va: int, pa: int, log2: int, writable: bool) -> None:
        self.origin = origin  # its address in the giver's space
        self.va = va
        self.pa = pa
        self.log2 = log2
        self.writable = writable


class Revoked:
    """A page that was taken out of a page table, or made read-only there."""

    def __init__(self, space: MappedSpace, va: int, pa: int, log2: int) -> None:
        self.space = space
        self.va = va
        self.pa = pa
        self.log2 = log2


Change = HandedOn | Revoked


class Revocation(NamedTuple):
    """What an unmap found and did."""

    status: int  # rwx bits: ACCESSED, DIRTY
    pages: list[Revoked]


class _Piece:
    """A page of the giver, or a 4 KB piece of a large one, about to be handed on."""

    def __init__(self, node: Node, va: int, pa: int, log2: int) -> None:
        self.node = node  # the page it is, or is a piece of
        self.va = va
        self.pa = pa
        self.log2 = log2

    @property
    def is_whole(self) -> bool:
        return self.log2 == self.node.log2

    def small_pieces(self) -> Iterator[_Piece]:
        for offset in range(0, 1 << self.log2, PAGE_SIZE):
            yield _Piece(self.node, self.va + offset, self.pa + offset, PAGE_LOG2)


def send_window(src_base: int, src_log2: int, send_base: int, win_base: int, win_log2: int) -> tuple[int, int, int]:
    """Where a send fpage meets a receive window: source start, destination start, size as a power of two.

    The larger of the two is cut to the size of the smaller; the send base says which part of the larger it is.
    """
    source = src_base >> src_log2 << src_log2
    target = win_base >> win_log2 << win_log2
    if src_log2 <= win_log2:
        return source, target + (send_base % (1 << win_log2) >> src_log2 << src_log2), src_log2
    return source + (send_base % (1 << src_log2) >> win_log2 << win_log2), target, win_log2


class Mappings(ABC):
    """What the kernel asks of whoever keeps track of mappings."""

    @abstractmethod
    def giver(self, space: MappedSpace, va: int) -> MappedSpace | None:
        """From whom the space has the page at `va`; None if from nobody, or if it has none."""

    @abstractmethod
    def own_page(self, sigma0: MappedSpace, va: int) -> HandedOn:
        """Answer a page fault of sigma0: it has whatever it touches, at virtual address = physical address."""

    @abstractmethod
    def map(
        self,
        giver: MappedSpace,
        item: MapItem,
        fpage: Fpage,
        taker: MappedSpace,
        window: Fpage,
        changes: list[Change],
    ) -> None:
        """Map the giver's fpage into the taker's window, or grant it, as the item says.

        `changes` is told what was done, page by page, also if frames for tables run out in the midst of it.
        """

    @abstractmethod
    def unmap(self, space: MappedSpace, base: int, log2: int, rights: int, flush: bool) -> Revocation:
        """Take `rights` away from everything derived from the fpage of `space`; with `flush`, from `space` as well."""

    @abstractmethod
    def forget(self, space: MappedSpace) -> list[Revoked]:
        """Take all pages of `space` out, with all that was derived from them: it is about to be deleted."""


class MappingDatabase(Mappings):
    """All nodes, by space and address. Work is proportional to the pages concerned, not to the pages there are."""

    def __init__(self, sigma0_end: int = 1 << 32) -> None:
        """`sigma0_end`: where physical memory ceases to be sigma0's; a multiple of 4 KB."""
        self._sigma0_end = sigma0_end
        self._nodes: dict[MappedSpace, dict[int, Node]] = {}  # space -> address of the page -> node

    # Questions

    def node(self, space: MappedSpace, va: int) -> Node | None:
        """The node of the page that holds `va`."""
        nodes = self._nodes.get(space)
        if nodes is None:
            return None
        node = nodes.get(va >> PAGE_LOG2 << PAGE_LOG2)
        if node is None:
            node = nodes.get(va >> LARGE_LOG2 << LARGE_LOG2)
            if node is not None and node.log2 == PAGE_LOG2:
                return None
        return node

    def giver(self, space: MappedSpace, va: int) -> MappedSpace | None:
        node = self.node(space, va)
        return node.parent.space if node is not None and node.parent is not None else None

    def nodes(self, space: MappedSpace) -> list[Node]:
        """All nodes of a space, by rising address. Sigma0's are the roots."""
        return [node for _, node in sorted(self._nodes.get(space, {}).items())]

    def spaces(self) -> list[MappedSpace]:
        """The spaces that have nodes."""
        return [space for space, nodes in self._nodes.items() if nodes]

    # Map and grant

    def own_page(self, sigma0: MappedSpace, va: int) -> HandedOn:
        assert sigma0.is_sigma0, f"{sigma0.name} owns nothing by nature"
        page = va >> PAGE_LOG2 << PAGE_LOG2
        sigma0.tables.map(page, page, PAGE_LOG2, writable=True)
        return HandedOn(page, page, page, PAGE_LOG2, True)

    def map(
        self,
        giver: MappedSpace,
        item: MapItem,
        fpage: Fpage,
        taker: MappedSpace,
        window: Fpage,
        changes: list[Change],
    ) -> None:
        """Map the giver's fpage into the taker's window, or grant it, as the item says; holes are skipped silently.

        What arrives has the rights that both the giver's page and the fpage have. A page of the taker that maps the
        same frame already has its rights extended and stays where it is in its tree; any other mapping there is
        flushed first, except that a 4 MB page stands: nothing smaller goes into it. A granted page takes its children
        along; granting pieces of a 4 MB page costs the granter all of it. Sigma0 owns everything by nature: it is
        never a taker, and a grant from it is a map.
        """
        start, target, log2 = send_window(fpage.base, fpage.log2, item.base, window.base, window.log2)
        if log2 < PAGE_LOG2 or taker.is_sigma0:
            return
        grant = isinstance(item, GrantItem) and not giver.is_sigma0
        writable = bool(fpage & RIGHT_W)
        broken: dict[Node, None] = {}  # large pages of which pieces were granted
        for piece in self._pieces(giver, start, start + (1 << log2)):
            for part, va in _parts(piece, taker, target + piece.va - start):
                if self._place(part, taker, va, writable, grant, changes) and grant and not part.is_whole:
                    broken[part.node] = None
        for node in broken:
            if self._is_alive(node, giver):
                self._take(node, changes)
        if grant and fpage.log2 > window.log2:
            changes.extend(self.unmap(giver, fpage.base, fpage.log2, ALL_RIGHTS, flush=True).pages)

    def _pieces(self, src: MappedSpace, lo: int, hi: int) -> Iterator[_Piece]:
        """What `src` has to give between `lo` and `hi`, which are aligned to their distance."""
        if src.is_sigma0:
            size, log2 = (LARGE_SIZE, LARGE_LOG2) if hi - lo >= LARGE_SIZE else (PAGE_SIZE, PAGE_LOG2)
            for va in range(lo, min(hi, self._sigma0_end), size):
                piece = _Piece(self._root(src, va), va, va, log2)
                if self._is_sigma0s(src, va, size):
                    yield piece
                elif size == LARGE_SIZE:
                    yield from (small for small in piece.small_pieces() if self._is_sigma0s(src, small.va, PAGE_SIZE))
            return
        for node in self._nodes_in(src, lo, hi):
            if not self._is_alive(node, src):
                continue  # an earlier piece of the same map took its place
            if hi - lo >= 1 << node.log2:
                yield _Piece(node, node.va, node.pa, node.log2)
            else:  # the whole range lies in one large page
                for va in range(lo, hi, PAGE_SIZE):
                    yield _Piece(node, va, node.pa + va - node.va, PAGE_LOG2)

    def _is_sigma0s(self, sigma0: MappedSpace, va: int, size: int) -> bool:
        return va + size <= self._sigma0_end and not sigma0.is_reserved(va, size)

    def _place(
        self, part: _Piece, dst: MappedSpace, va: int, writable: bool, grant: bool, changes: list[Change]
    ) -> bool:
        """Put one page into `dst` at `va`. False: nothing was changed."""
        node, parent = part.node, part.node
        existing = self.node(dst, va)
        if (existing is not None and existing.log2 > part.log2) or existing is node:
            return False
        if node.parent is not None:
            writable = writable and _is_writable(node)  # Q6: the reference forgets to
        if grant:
            assert node.parent is not None, "sigma0 grants nothing"
            parent = node.parent

        if existing is not None and existing.pa == part.pa and existing.log2 == part.log2:
            extended = writable and not _is_writable(existing)
            if not grant:
                if extended:
                    dst.tables.protect(va, True)
                    changes.append(HandedOn(part.va, va, part.pa, part.log2, True))
                return extended
            writable = writable or _is_writable(existing)
            self._splice(existing)
        else:
            for old in self._nodes_in(dst, va, va + (1 << part.log2)):
                if self._is_alive(old, dst):
                    self._take(old, changes)

        dst.tables.map(va, part.pa, part.log2, writable)
        if grant and part.is_whole:
            node.remembered |= self._drop(node)
            node.space, node.va = dst, va
        else:
            node = Node(dst, va, part.pa, part.log2)
            parent.adopt(node)
        nodes = self._nodes.get(dst)
        if nodes is None:
            nodes = self._nodes[dst] = {}
        nodes[va] = node
        changes.append(HandedOn(part.va, va, part.pa, part.log2, writable))
        return True

    def _take(self, node: Node, changes: list[Change]) -> None:
        """Take the page and all that was derived from it, because something else comes there."""
        pages: list[Revoked] = []
        self._revoke(node, ALL_RIGHTS, pages)
        changes.extend(pages)

    # Unmap and flush

    def unmap(self, space: MappedSpace, base: int, log2: int, rights: int, flush: bool) -> Revocation:
        """Take `rights` away from everything derived from the fpage of `space`; with `flush`, from `space` as well.

        All rights: the mapping goes. None: only the status is asked for. Reports whether the pages concerned were
        accessed or written to since the last time somebody asked, and clears that. A piece of a 4 MB page: the 4 KB
        pages derived from that piece are concerned, but 4 MB pages (the own one with `flush`, derived ones) as a whole.
        """
        log2 = max(log2, PAGE_LOG2)
        lo = base >> log2 << log2
        hi = lo + (1 << log2)
        status = 0
        pages: list[Revoked] = []
        for node in self._nodes_in(space, lo, hi):
            if not self._is_alive(node, space):
                continue  # derived from an earlier page of the same fpage
            if flush and not space.is_sigma0:
                status |= self._revoke(node, rights, pages)
                continue
            piece = node.pa + max(lo - node.va, 0)
            for top in node.children_in(piece, log2):
                if self._is_alive(top, top.space):
                    status |= self._revoke(top, rights, pages, told=True)
            status |= node.take_gone(piece, log2)
        if flush and space.is_sigma0:
            status |= self._flush_sigma0(space, lo, hi, rights, pages)
        return Revocation(status, pages)

    def forget(self, space: MappedSpace) -> list[Revoked]:
        assert not space.is_sigma0, "sigma0 stays: all mappings are derived from it"
        pages: list[Revoked] = []
        for node in self.nodes(space):
            if self._is_alive(node, space):
                self._revoke(node, ALL_RIGHTS, pages)
        self._nodes.pop(space, None)
        return pages

    def _revoke(self, top: Node, rights: int, pages: list[Revoked], told: bool = False) -> int:
        """Take `rights` from the subtree under `top`, `top` included; the status found there.

        The parent remembers the status: it hears of it when it is asked in its turn. Is the parent's owner `told`,
        because it is he who asks? If not, he will be when he does.
        """
        subtree = [top]
        for node in subtree:  # grows as it goes
            subtree.extend(node.children_in(node.pa, node.log2))
        status = 0
        for node in subtree:
            reduced = True
            if rights == ALL_RIGHTS:
                status |= node.remembered | self._drop(node)
            else:
                status |= node.remembered | status_of(node.space.tables.clear_reference_bits(node.va))
                node.remembered = 0
                node.gone = None
                reduced = bool(rights & RIGHT_W) and _is_writable(node)
                if reduced:
                    node.space.tables.protect(node.va, False)
            if reduced:
                pages.append(Revoked(node.space, node.va, node.pa, node.log2))
        assert top.parent is not None, "roots are not revoked"
        if top.parent.parent is None:
            pass  # nobody is above a root to ask it, and a root is no page that somebody has
        elif told:
            top.parent.remembered |= status
        else:
            top.parent.note_gone(top, status)
        if rights == ALL_RIGHTS:
            top.leave()
        return status

    def _flush_sigma0(self, sigma0: MappedSpace, lo: int, hi: int, rights: int, pages: list[Revoked]) -> int:
        """The own part of a flush by sigma0: its page table holds what it touched (see `own_page`), without nodes."""
        status = 0
        tables = sigma0.tables
        for page in [page for page in tables.entries() if lo <= page.va < hi and page.va < sigma0.user_limit]:
            if sigma0.is_reserved(page.va, 1 << page.log2):
                continue
            status |= status_of(tables.clear_reference_bits(page.va))
            if rights == ALL_RIGHTS:
                tables.unmap(page.va, page.log2)
            elif rights & RIGHT_W and page.writable:
                tables.protect(page.va, False)
            else:
                continue
            pages.append(Revoked(sigma0, page.va, page.pa, page.log2))
        return status

    # The parts of the operations

    def _root(self, sigma0: MappedSpace, va: int) -> Node:
        """Sigma0's node for the 4 MB of physical memory around `va`, made when first needed and kept."""
        base = va >> LARGE_LOG2 << LARGE_LOG2
        roots = self._nodes.setdefault(sigma0, {})
        if base not in roots:
            roots[base] = Node(sigma0, base, base, LARGE_LOG2)
        return roots[base]

    def _nodes_in(self, space: MappedSpace, lo: int, hi: int) -> list[Node]:
        """The nodes of pages that overlap `lo .. hi`, by rising address."""
        if hi - lo == PAGE_SIZE:
            node = self.node(space, lo)
            return [] if node is None else [node]
        nodes = self._nodes.get(space, {})
        if (hi - lo) // PAGE_SIZE <= len(nodes):
            found = [nodes[va] for va in range(lo, hi, PAGE_SIZE) if va in nodes]
        else:
            found = [nodes[va] for va in sorted(nodes) if lo <= va < hi]
        if not found or found[0].va > lo:  # a large page that begins before
            around = self.node(space, lo)
            found = ([around] if around is not None else []) + found
        return found

    def _is_alive(self, node: Node, space: MappedSpace) -> bool:
        return self._nodes[space].get(node.va) is node

    def _drop(self, node: Node) -> int:
        """Take the page out of its page table and the node out of its space, but not out of its tree; its status."""
        status = status_of(node.space.tables.unmap(node.va, node.log2))
        del self._nodes[node.space][node.va]
        return status

    def _splice(self, node: Node) -> None:
        """Take one node out of the middle of its tree: its children become its parent's."""
        parent = node.parent
        assert parent is not None, "roots stay"
        for child in node.children_in(node.pa, node.log2):
            parent.adopt(child)
        status = node.remembered | self._drop(node)
        if parent.parent is not None:
            parent.note_gone(node, status)
        node.leave()


def _parts(piece: _Piece, dst: MappedSpace, va: int) -> list[tuple[_Piece, int]]:
    """What of a piece may go to `va` in `dst`: all, in small pieces (around KIP and UTCB areas), or nothing."""
    size = 1 << piece.log2
    if va + size > dst.user_limit:
        return []
    if piece.log2 == PAGE_LOG2 or (dst.large_pages and not dst.is_reserved(va, size)):
        return [] if dst.is_reserved(va, size) else [(piece, va)]
    smaller = ((small, va + small.va - piece.va) for small in piece.small_pieces())
    return [(small, at) for small, at in smaller if not dst.is_reserved(at, PAGE_SIZE)]


def _is_writable(node: Node) -> bool:
    entry, log2 = node.space.tables.entry(node.va)
    if not entry & P or log2 != node.log2 or frame_of(entry, log2) != node.pa:
        shown = node.space.tables.lookup(node.va)
        raise KernelPanic(f"{node.space.name}: the page table does not show {node.va:#x} -> {node.pa:#x}, but {shown}")
    return is_writable(entry)


def status_of(bits: int) -> int:
    """A and D bits of an entry as rights."""
    return (ACCESSED if bits & A else 0) | (DIRTY if bits & D else 0)
