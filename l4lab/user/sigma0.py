# SPDX-License-Identifier: GPL-2.0-or-later
"""sigma0, the first program: it owns all memory and all ports that the kernel does not keep, and hands them out once.

Lives here: who owns what (`Ownership`), and the protocol by which it is asked for (X.2 manual, section sigma0;
reference section 6.4). What mapping a page does is the kernel's: to it sigma0's space is all of physical memory.

Every piece belongs to the first thread that asks for it; the same thread may ask again, for instance after it lost the
mapping; anyone else is answered with nilpage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from l4lab.abi import kip as k
from l4lab.abi.calls import MemoryAttribute
from l4lab.abi.fpage import NILPAGE, PAGE_LOG2, Fpage, IoFpage
from l4lab.abi.ids import ROOT_TASK, SIGMA0, SIGMA1, SYSTEM_BASE, USER_BASE, ThreadId
from l4lab.abi.kip import Kip, MemoryType
from l4lab.abi.message import Message
from l4lab.abi.protocols import (
    IO_PAGE_FAULT,
    SIGMA0_EXTENDED,
    is_any_page,
    is_page_fault,
    is_sigma0_request,
    sigma0_grant,
)
from l4lab.user.console import say
from l4lab.user.l4 import L4, CallRefused, IpcFailed, Received
from l4lab.words import hex32

# Owners that are no threads. Identifiers of threads are positive.
KERNEL = 0  # nobody gets it
FREE = -1  # conventional memory, ports: anyone who asks first, for this address or for any
DEDICATED = -2  # memory of devices and firmware: anyone who asks first, but only by address
SHARED = -3  # everyone, any number of times
LOADED = -4  # what the boot loader has filled: anyone who asks first for this address, or simply reads it

_OWNER_OF_TYPE = {
    MemoryType.CONVENTIONAL: FREE,
    MemoryType.SHARED: SHARED,
    MemoryType.DEDICATED: DEDICATED,
    MemoryType.BOOT_LOADER: LOADED,
    MemoryType.ARCHITECTURE: DEDICATED,
}  # all other types are the kernel's
_OWNER_TEXT = {KERNEL: "kernel", FREE: "free", DEDICATED: "dedicated", SHARED: "shared", LOADED: "loaded"}

SET_VERBOSITY, DUMP = 1, 2  # MR1 of the extended protocol
SILENT, REFUSALS, EVERYTHING = range(3)  # verbosity: what is said about memory and port requests


class Ownership:
    """Who owns each address of a range, as runs of addresses with one owner.

    Run i begins at `starts[i]` and reaches to the next start; neighbours have different owners.
    """

    def __init__(self, end: int, owner: int) -> None:
        self.starts = [0]
        self.owners = [owner]
        self.end = end

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """The runs: begin, end, owner."""
        return zip(self.starts, [*self.starts[1:], self.end], self.owners, strict=True)

    def owner(self, address: int) -> int:
        """Who owns an address."""
        return self.owners[bisect_right(self.starts, address) - 1]

    def give(self, begin: int, end: int, owner: int) -> None:
        """Make `owner` the owner of begin..end-1, whoever it was before."""
        first = bisect_right(self.starts, begin) - 1
        last = bisect_right(self.starts, end - 1) - 1
        after = self.owners[last]
        runs = [(self.starts[first], self.owners[first])] if self.starts[first] < begin else []
        runs.append((begin, owner))
        if end < (self.starts[last + 1] if last + 1 < len(self.starts) else self.end):
            runs.append((end, after))
        self.starts[first : last + 1] = [start for start, _ in runs]
        self.owners[first : last + 1] = [who for _, who in runs]
        self._join(max(first - 1, 0), first + len(runs))

    def _join(self, first: int, last: int) -> None:
        """Make neighbours with one owner one run."""
        for i in range(min(last, len(self.starts) - 1), first, -1):
            if self.owners[i] == self.owners[i - 1]:
                del self.starts[i], self.owners[i]

    def may_have(self, begin: int, end: int, thread: int, *, dedicated: bool) -> bool:
        """May a thread have all of begin..end-1?"""
        allowed = {FREE, SHARED, LOADED, thread} | ({DEDICATED} if dedicated else set())
        first = bisect_right(self.starts, begin) - 1
        last = bisect_right(self.starts, end - 1) - 1
        return end <= self.end and allowed.issuperset(self.owners[first : last + 1])

    def find_free(self, size: int) -> int | None:
        """A free, aligned block of a power-of-two size.

        From the smallest run that has one, so that large blocks stay whole as long as small ones do.
        """
        fitting = (
            (end - begin, at)
            for begin, end, owner in self
            if owner == FREE and (at := -(-begin // size) * size) + size <= end
        )
        return min(fitting, default=(0, None))[1]


class Sigma0:
    """The server. `answer` is a pure step from a message to its reply, `run` the loop around it."""

    def __init__(
        self,
        kip: Kip,
        set_attribute: Callable[[Fpage, int], bool] = lambda page, attribute: True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`set_attribute`: MemoryControl, if it succeeds; `say` takes lines for people."""
        self._set_attribute = set_attribute
        self._say = say
        self.verbosity = SILENT
        self.memory = Ownership(1 << 32, KERNEL)
        self.ports = Ownership(1 << 16, FREE)
        for piece in kip.memory:
            if not piece.virtual:
                self.memory.give(piece.low, piece.high + 1, _OWNER_OF_TYPE.get(piece.type, KERNEL))
        servers = ((k.SIGMA0_REGION, SIGMA0), (k.SIGMA1_REGION, SIGMA1), (k.ROOT_REGION, ROOT_TASK))
        for offset, thread in servers:
            region = kip.server(offset)
            if region.high > region.low:
                self.memory.give(region.low & -1 << PAGE_LOG2, -(-region.high >> PAGE_LOG2) << PAGE_LOG2, thread)

    def answer(self, received: Received) -> Sequence[int] | None:
        """The reply to a message: a map item, of nilpage if the request is refused; None: no reply at all."""
        thread, words = received.sender, received.words
        untyped = received.tag.untyped
        given: Fpage | IoFpage
        if is_sigma0_request(received.tag):
            wanted = Fpage.decode(words[1])
            if wanted.is_io:
                given = self._ports(thread, IoFpage.decode(words[1]))
            else:
                given = self._memory(_owner(thread), wanted, words[2], words[3] if untyped == 3 else 0)
        elif is_page_fault(received.label) and untyped == 2:
            page = Fpage.at(words[1] & -1 << PAGE_LOG2)
            given = self._take(thread, page, dedicated=False)
        elif received.label == IO_PAGE_FAULT and untyped == 2:
            given = self._ports(thread, IoFpage.decode(words[1]))
        elif received.label == SIGMA0_EXTENDED and untyped == 2 and _may_inspect(thread):
            return self._extended(words[1], words[2])
        else:
            return None
        self._report(thread, words, given)
        return sigma0_grant(given, given.base if isinstance(given, Fpage) else 0).words()

    def _extended(self, command: int, argument: int) -> Sequence[int] | None:
        if command == SET_VERBOSITY:
            self.verbosity = argument
        elif command == DUMP:
            for line in self.dump():
                self._say(line)
            return Message().words() if argument else None
        return None

    def dump(self) -> list[str]:
        """Who owns what, a line for each piece of memory and of the port space."""
        pieces = [("memory", *run) for run in self.memory] + [("ports", *run) for run in self.ports]
        return [
            f"{kind} {hex32(begin)}..{hex32(end - 1)} {_OWNER_TEXT.get(owner) or hex32(owner)}"
            for kind, begin, end, owner in pieces
        ]

    def _report(self, thread: int, words: Sequence[int], given: Fpage | IoFpage) -> None:
        if self.verbosity >= EVERYTHING or (self.verbosity >= REFUSALS and given == NILPAGE):
            answer = "refused" if given == NILPAGE else repr(given)
            self._say(f"sigma0: {hex32(thread)} asks {hex32(words[1])}: {answer}")

    def _memory(self, owner: int, wanted: Fpage, attribute: int, upper: int) -> Fpage:
        if not PAGE_LOG2 <= wanted.log2 <= 32 or (wanted.extended and upper):  # there is nothing above 4 GB
            return NILPAGE
        if is_any_page(wanted):
            at = self.memory.find_free(wanted.size)
            page = NILPAGE if at is None else Fpage.at(at, wanted.log2)
        else:
            page = Fpage.at(wanted.base, wanted.log2)
        if page.is_nil or not self._may_take(owner, page, dedicated=not is_any_page(wanted)):
            return NILPAGE
        if attribute != MemoryAttribute.DEFAULT and not self._set_attribute(page, attribute):
            return NILPAGE
        return self._take(owner, page, dedicated=True)

    def _may_take(self, owner: int, page: Fpage, *, dedicated: bool) -> bool:
        return self.memory.may_have(page.base, page.base + page.size, owner, dedicated=dedicated)

    def _take(self, thread: int, page: Fpage, *, dedicated: bool) -> Fpage:
        if not self._may_take(thread, page, dedicated=dedicated):
            return NILPAGE
        self._note(self.memory, page.base, page.base + page.size, thread)
        return page

    def _ports(self, thread: int, wanted: IoFpage) -> Fpage | IoFpage:
        if wanted.log2 > 16:
            return NILPAGE
        begin = wanted.port & -wanted.size
        if not self.ports.may_have(begin, begin + wanted.size, thread, dedicated=False):
            return NILPAGE
        self._note(self.ports, begin, begin + wanted.size, thread)
        return IoFpage.at(begin, wanted.log2)

    @staticmethod
    def _note(ownership: Ownership, begin: int, end: int, thread: int) -> None:
        """From now on a thread owns what of a piece is not shared."""
        for run_begin, run_end, owner in list(ownership):
            low, high = max(begin, run_begin), min(end, run_end)
            if low < high and owner not in (SHARED, thread):
                ownership.give(low, high, thread)

    def run(self, l4: L4) -> None:
        """Serve for ever. Who does not wait for the reply gets none."""
        received = l4.wait()
        while True:
            reply = self.answer(received)
            try:
                received = l4.wait() if reply is None else l4.reply_wait(received.sender, reply)
            except IpcFailed:
                received = l4.wait()


def _owner(thread: ThreadId) -> int:
    """Who owns what a thread asks for: what the kernel's threads get is nobody else's any more."""
    return KERNEL if SYSTEM_BASE <= thread.thread_no < USER_BASE else thread


def _may_inspect(thread: ThreadId) -> bool:
    """The extended protocol is for the root task and the kernel's threads."""
    return thread == ROOT_TASK or _owner(thread) == KERNEL


def main(l4: L4) -> None:
    """sigma0 as a hosted program."""

    def set_attribute(page: Fpage, attribute: int) -> bool:
        try:
            l4.memory_control([page], [attribute])
        except CallRefused:
            return False
        return True

    Sigma0(l4.kip(), set_attribute, lambda line: say(l4, line)).run(l4)
