# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody else's answers to the page faults of a guest, and what is checked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from l4lab.abi.fpage import Fpage
from l4lab.abi.frame import EIP
from l4lab.abi.message import MapItem, typed_items
from l4lab.abi.vm import ItemId
from l4lab.errors import LabError
from l4lab.user.monitor.fault import MASK, Fault, Reply
from l4lab.user.monitor.guarded_part import GuardedPart, Tell
from l4lab.user.monitor.guest_memory import PAGE, GuestMemory
from l4lab.user.monitor.monitor_parts import GuestPager, GuestRam

MOST_AGAIN: Final = 100  # times that the same access may fault again after it was answered by a page

Do = Callable[[Fault, Reply], None]


class _Ram(GuestRam):
    """What a pager is given."""

    def __init__(self, memory: GuestMemory, do: Do) -> None:
        self._memory = memory
        self._do = do
        self.size = memory.size
        self.ones = memory.window - PAGE
        self.done = False  # has the instruction been done?

    def at(self, address: int) -> int:
        if not 0 <= address < self.size:
            raise LabError(f"{address:#x} is beyond the guest's memory")
        return self._memory.window + address

    def read(self, address: int, length: int) -> bytes:
        return self._memory.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        self._memory.write(address, data)

    def has_device(self, address: int, size: int) -> bool:
        return self._memory.devices.holes(address, size)

    def do(self, fault: Fault, reply: Reply) -> None:
        self.done = True
        self._do(fault, reply)


class OutsidePager:
    """Somebody else's pager."""

    def __init__(
        self,
        make: Callable[[GuestRam], GuestPager],
        tell: Tell,
        memory: GuestMemory,
        do: Do,
    ) -> None:
        self._memory = memory
        self._ram = _Ram(memory, do)
        self._part = GuardedPart(GuestPager, ("page_fault",), tell, make, (self._ram,))
        self._last: tuple[int, int, int] = (0, 0, 0)  # what was answered by a page
        self._again = 0

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        """Have it answered, and look at the answer."""
        ram, part, address = self._ram, self._part, fault.words[1]
        ram.done = False
        part.ask("page_fault", fault, reply)
        part.check("page_fault", reply)
        if ram.done:
            return
        moved = reply.items.get(ItemId.GPREGS, {}).get(EIP, fault.eip) != fault.eip
        if not reply.typed:
            if not moved and not reply.injects:
                raise part.failed(f".page_fault() neither maps a page at {address:#x} nor does the instruction.")
            return
        if moved:
            raise part.failed(
                f".page_fault() maps a page at {address:#x} and moves EIP, so that the instruction is never executed."
            )
        self._check_pages(reply.typed, address)
        again = Reply()
        again.resume_delivery(fault)
        if again.injects and not reply.injects:
            raise part.failed(".page_fault() loses the event whose delivery the fault cut short.")
        this = fault.label, address, fault.eip
        self._again = self._again + 1 if this == self._last else 0
        self._last = this
        if self._again == MOST_AGAIN:
            raise part.failed(
                f".page_fault() is stuck: the guest's access to {address:#x} faults again and again, "
                "whatever it is answered with."
            )

    def _check_pages(self, typed: Any, address: int) -> None:
        """Do the map items give memory that is the guest's, where it is to be?"""
        part, memory = self._part, self._memory
        if not all(isinstance(word, int) and 0 <= word <= MASK for word in typed):
            raise part.failed(f".page_fault() answers with {typed!r}, which are no words.")
        covered, words = False, 0
        for item, values in typed_items(typed):
            words += 1 + len(values)
            if type(item) is not MapItem or len(values) != 1:
                raise part.failed(f".page_fault() answers with {item!r}, which is no whole map item.")
            page = Fpage.decode(values[0])
            size, there = int(page.size), item.base & -int(page.size)
            covered |= there <= address < there + size
            begin = int(page.base) - memory.window
            if (begin, size) == (-PAGE, PAGE):  # the page of ones
                memory.note_unbacked(there, "read")
            elif not (0 <= begin and begin + size <= memory.size) or page.is_io:
                raise part.failed(f".page_fault() maps {page!r} of the monitor, which is not the guest's memory.")
            elif there + size > memory.size:
                raise part.failed(f".page_fault() maps memory at {there:#x}, where the guest has none.")
            if memory.devices.holes(there, size):
                raise part.failed(f".page_fault() maps {size:#x} bytes at {there:#x}, where a device is.")
        if not covered or words != len(typed):
            raise part.failed(f".page_fault() maps nothing at {address:#x}, which is what the guest touched.")
