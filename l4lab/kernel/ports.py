# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O ports as a resource: who may use which, and from whom each space has them.

Ports are handed on like pages, by map and grant items with an I/O fpage, and taken back by Unmap; but a port has the
same number in every space, and there is only one right to it. So a port's mapping tree needs no nodes: each space notes
from which space it has the port. sigma0 has all ports by nature. What lives here: map, grant, unmap. What does not: the
instructions, which are `portio.py`. (X.2 manual, appendix IA-32, section I/O fpages; reference sections 6.1 and 6.5.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4lab.abi.fpage import IoFpage
from l4lab.kernel import events
from l4lab.kernel.space import Space

if TYPE_CHECKING:
    from l4lab.kernel.kernel import Kernel

PORTS = 1 << 16


def allows(space: Space, port: int, size: int) -> bool:
    """May programs of the space access `size` ports from `port` on?"""
    owned = space.ports
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

    def map(self, k: Kernel, src: Space, dst: Space, fpage: IoFpage, grant: bool) -> None:
        """Give `dst` those ports of the fpage that `src` has. What it has already it keeps, from whom it had it."""
        if dst.is_sigma0 or dst is src or fpage.log2 > 16:
            return
        wanted = _range(fpage)
        moved = wanted if src.is_sigma0 else [port for port in wanted if port in src.ports]
        for port in moved:
            if grant and not src.is_sigma0:
                self._grant(k, src, dst, port)
            else:
                dst.ports.setdefault(port, src)
        if moved:
            k.trace.append(events.PortsMapped(k.now, src.name, dst.name, moved[0], len(moved)))

    def _grant(self, k: Kernel, src: Space, dst: Space, port: int) -> None:
        """The port moves: `dst` takes the place of `src` in its tree."""
        giver = src.ports.pop(port)
        if port not in dst.ports or self._descends(dst, src, port):
            dst.ports[port] = giver
        for space in k.spaces:
            if space.ports.get(port) is src:
                space.ports[port] = dst

    def _descends(self, space: Space, ancestor: Space, port: int) -> bool:
        """Has `space` the port from `ancestor`, over whatever hands?"""
        giver = space.ports.get(port)
        while giver is not None and giver is not ancestor:
            giver = giver.ports.get(port)
        return giver is ancestor

    def unmap(self, k: Kernel, space: Space, fpage: IoFpage, flush: bool) -> None:
        """Take the ports of the fpage from all who have them from `space`; with `flush`, from `space` too."""
        if fpage.log2 <= 16:
            self._revoke(k, space, frozenset(_range(fpage)), flush)

    def forget(self, k: Kernel, space: Space) -> None:
        """The space is about to be deleted."""
        if space.ports:
            self._revoke(k, space, frozenset(space.ports), True)

    def _revoke(self, k: Kernel, space: Space, ports: frozenset[int], own: bool) -> None:
        for other in k.spaces:
            lost = frozenset(port for port, giver in other.ports.items() if giver is space and port in ports)
            if lost:
                self._revoke(k, other, lost, True)
        if own and (lost := ports.intersection(space.ports)):
            for port in lost:
                del space.ports[port]
            k.trace.append(events.PortsUnmapped(k.now, space.name, min(lost), len(lost)))


def _range(fpage: IoFpage) -> range:
    first = fpage.port & -fpage.size
    return range(first, first + fpage.size)
