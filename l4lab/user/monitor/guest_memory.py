# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's memory: a window in the monitor's own address space, from which the guest's page faults are answered.

Guest-physical address a is at `window + a` for the monitor, and only through this mapping does it touch the guest's
memory. What lies beyond is empty: on a PC such reads return all ones and writes go nowhere.

Lives here: getting the memory from sigma0, reading and writing it, and which page a fault is answered with. Does not
live here: the guest's own page tables (`paging`), and accesses for which no page will do (`emulate`).
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Protocol

from l4lab.abi.fpage import PAGE_LOG2, SUPERPAGE_LOG2, Fpage
from l4lab.abi.ids import SIGMA0
from l4lab.abi.message import Acceptor, MapItem
from l4lab.abi.protocols import any_page, sigma0_granted, sigma0_request
from l4lab.devices.memory_bus import MemoryBus
from l4lab.errors import LabError
from l4lab.user.l4 import L4
from l4lab.words import Rights, size_text

WINDOW: Final = 0x1000_0000
PAGE: Final = 1 << PAGE_LOG2
LARGEST: Final = 2 << 30  # what is left of the monitor's space above the window
LENT_PAGES: Final = 5  # that can be put under the addresses of one instruction: see `scratch`
UNBACKED_KINDS: Final = 256  # different addresses that are counted; a guest may hammer any number


class ProgramMemory(Protocol):
    """What is needed of an address space to reach memory in it."""

    def load(self, address: int, length: int) -> bytes:
        """Read memory."""

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write memory."""


class GuestMemory:
    """`size` bytes of guest-physical memory from address 0, at `window` in the monitor's space.

    `unbacked` counts accesses beyond the memory by (page address, "read" or "write"), for showing.
    """

    devices = MemoryBus(())  # whose addresses are not memory, though they lie in it

    def __init__(self, space: ProgramMemory, size: int, window: int = WINDOW) -> None:
        self.space = space
        self.size = size
        self.window = window
        self.unbacked: Counter[tuple[int, str]] = Counter()
        self._lent = 0  # pages that have been taken to be lent

    @classmethod
    def allocate(cls, l4: L4, size: int, window: int = WINDOW) -> GuestMemory:
        """Ask sigma0 for the memory, in the largest pieces it has, and for the page of ones just below the window."""
        if not 0 < size <= LARGEST or size % PAGE:
            raise LabError(f"A guest cannot have {size} bytes of memory. Give it whole pages, up to 2 GiB.")
        at = 0
        while at < size:
            at += _take(l4, window + at, _log2_of_piece(at, size))
        _take(l4, window - PAGE, PAGE_LOG2)
        l4.accept(0)
        l4.store(window - PAGE, b"\xff" * PAGE)
        return cls(l4, size, window)

    # -- reading and writing -----------------------------------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """Guest-physical memory; all ones beyond its end."""
        inside = max(0, min(length, self.size - address))
        data = self.space.load(self.window + address, inside) if inside else b""
        return data if inside == length else data + b"\xff" * (length - inside)

    def write(self, address: int, data: bytes) -> None:
        """Write guest-physical memory; what goes beyond its end goes nowhere."""
        inside = max(0, min(len(data), self.size - address))
        if inside:
            self.space.store(self.window + address, data[:inside])

    def byte(self, address: int) -> int:
        """Read 8 bits."""
        return self.read(address, 1)[0]

    def half(self, address: int) -> int:
        """Read 16 bits."""
        return int.from_bytes(self.read(address, 2), "little")

    def holds(self, address: int) -> bool:
        """Is there memory at this address?"""
        return address < self.size and not self.devices.holes(address, 1)

    def word(self, address: int) -> int:
        """Read 32 bits."""
        return int.from_bytes(self.read(address, 4), "little")

    def set_word(self, address: int, value: int) -> None:
        """Write 32 bits."""
        self.write(address, value.to_bytes(4, "little"))

    # -- the guest's page faults ---------------------------------------------------------------------------------------

    def map_item(self, address: int) -> list[int]:
        """The map item that answers a fault within the memory: the largest page around the address."""
        log2 = SUPERPAGE_LOG2
        base = address & -1 << log2
        if base + (1 << log2) > self.size:
            log2, base = PAGE_LOG2, address & -1 << PAGE_LOG2
        while self.devices.holes(base, 1 << log2):  # a device among it: there nothing is mapped
            log2 -= 1
            base = address & -1 << log2
        return [MapItem.at(base), Fpage.at(self.window + base, log2)]

    def map_ones(self, address: int) -> list[int]:
        """The map item that answers a read beyond the memory: a page of ones that cannot be written."""
        self.note_unbacked(address, "read")
        return [MapItem.at(address & -PAGE), Fpage.at(self.window - PAGE, PAGE_LOG2, Rights.R | Rights.X)]

    def lent_page(self, l4: L4, number: int) -> int:
        """One of the pages that are put under an instruction: its address in the monitor's space."""
        while self._lent <= number:
            self._lent += 1
            _take(l4, self.window - (1 + self._lent) * PAGE, PAGE_LOG2)
            l4.accept(0)
        return self.window - (2 + number) * PAGE

    def note_unbacked(self, address: int, access: str) -> None:
        """Count an access beyond the memory."""
        kind = (address & -PAGE, access)
        if kind in self.unbacked or len(self.unbacked) < UNBACKED_KINDS:
            self.unbacked[kind] += 1


def _log2_of_piece(at: int, size: int) -> int:
    """The largest page that begins at `at`, is aligned there, and does not reach beyond `size`."""
    log2 = SUPERPAGE_LOG2
    while at % (1 << log2) or at + (1 << log2) > size:
        log2 -= 1
    return log2


def _take(l4: L4, address: int, log2: int) -> int:
    """Have sigma0 map a page of this size at an address, or a smaller one if it has none left; its size."""
    while log2 >= PAGE_LOG2:
        l4.accept(Acceptor.of(Fpage.at(address, log2)))
        if not sigma0_granted(l4.call(SIGMA0, sigma0_request(any_page(log2))).words).is_nil:
            return 1 << log2
        log2 -= 1
    raise LabError(
        f"The machine has no memory left for the guest (a page of {size_text(PAGE)} was refused). "
        "Give the guest less memory, or the machine more."
    )
