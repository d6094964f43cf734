# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O ports as a resource: who may use which, and from whom each space has them.

Ports are handed on like pages, by map and grant items with an I/O fpage, and taken back by Unmap; but a port has the
same number in every space, and there is only one right to it. So a port's mapping tree needs no nodes: each space notes
from which space it has the port. sigma0 has all ports by nature. What lives here: map, grant, unmap. What does not: the
instructions, which are `portio.py`. (X.2 manual, appendix IA-32, section I/O fpages; reference sections 6.1 and 6.5.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from l4lab.abi.fpage import IoFpage
from l4lab.kernel.events import Ranges
from l4lab.kernel.objects.space import Space

PORTS: Final = 1 << 16


class Lost(NamedTuple):
    """What an unmap took from a space."""

    space: Space
    ports: frozenset[int]


def allows(space: Space, port: int, size: int) -> bool:
    """May programs of the space access `size` ports from `port` on?"""
    owned = space.ports
    if space.io_privileged:
        return True
    if size == 1:
        return port in owned or space.is_sigma0
    return space.is_sigma0 or all(number in owned for number in range(port, port + size))


def missing(space: Space, port: int, size: int) -> IoFpage:
    """What to ask the pager for, so that an access becomes possible.

    The whole access where an I/O fpage can name it, that is where it is aligned; else the first port that is missing.
    """
    if port % size == 0:
        return IoFpage.at(port, size.bit_length() - 1)
    return IoFpage.at(next(number for number in range(port, port + size) if number not in space.ports))


class PortRights:
    """Handing ports on and taking them back."""

    def __init__(self, spaces: list[Space]) -> None:
        """`spaces`: all that there are, kept up by whoever makes and deletes them."""
        self._spaces = spaces

    def map(self, src: Space, dst: Space, fpage: IoFpage, grant: bool) -> list[int]:
        """Give `dst` those ports of the fpage that `src` has. What it has already it keeps, from whom it had it.

        The ports that were handed over; of those that are mapped, the ones that `dst` did not have.
        """
        if dst.is_sigma0 or dst is src or fpage.log2 > 16:
            return []
        wanted = _range(fpage)
        moved = list(wanted) if src.is_sigma0 else [port for port in wanted if port in src.ports]
        if grant and not src.is_sigma0:
            for port in moved:
                self._grant(src, dst, port)
            return moved
        new = [port for port in moved if port not in dst.ports]
        for port in new:
            dst.ports[port] = src
        return new

    def _grant(self, src: Space, dst: Space, port: int) -> None:
        """The port moves: `dst` takes the place of `src` in its tree."""
        giver = src.ports.pop(port)
        if port not in dst.ports or self._descends(dst, src, port):
            dst.ports[port] = giver
        for space in self._spaces:
            if space.ports.get(port) is src:
                space.ports[port] = dst

    def _descends(self, space: Space, ancestor: Space, port: int) -> bool:
        """Has `space` the port from `ancestor`, over whatever hands?"""
        giver = space.ports.get(port)
        while giver is not None and giver is not ancestor:
            giver = giver.ports.get(port)
        return giver is ancestor

    def unmap(self, space: Space, fpage: IoFpage, flush: bool) -> list[Lost]:
        """Take the ports of the fpage from all who have them from `space`; with `flush`, from `space` too."""
        lost: list[Lost] = []
        if fpage.log2 <= 16:
            self._revoke(space, frozenset(_range(fpage)), flush, lost)
        return lost

    def forget(self, space: Space) -> list[Lost]:
        """The space is about to be deleted: take all its ports, also from those who have them from it."""
        lost: list[Lost] = []
        if space.ports:
            self._revoke(space, frozenset(space.ports), True, lost)
        return lost

    def _revoke(self, space: Space, ports: frozenset[int], own: bool, lost: list[Lost]) -> None:
        for other in self._spaces:
            derived = frozenset(port for port, giver in other.ports.items() if giver is space and port in ports)
            if derived:
                self._revoke(other, derived, True, lost)
        if own and (mine := ports.intersection(space.ports)):
            for port in mine:
                del space.ports[port]
            lost.append(Lost(space, mine))


def ranges(ports: Iterable[int]) -> Ranges:
    """Ports as ranges, by ascending number: the first of each, and how many."""
    found: list[tuple[int, int]] = []
    first = count = 0
    for port in sorted(ports):
        if count and port == first + count:
            count += 1
        else:
            if count:
                found.append((first, count))
            first, count = port, 1
    return (*found, (first, count)) if count else ()


def _range(fpage: IoFpage) -> range:
    first = fpage.port & -fpage.size
    return range(first, first + fpage.size)
