# SPDX-License-Identifier: GPL-2.0-or-later
"""Pieces of a guest's memory, and where a PC has RAM: what the plans for all kinds of image have in common.

0         RAM, "conventional memory"
0x9fc00   what a BIOS keeps to itself, adapters, firmware
0x100000  RAM again, up to the end of memory
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from l4lab.errors import LabError
from l4lab.words import PAddr

KIB, MIB = 1 << 10, 1 << 20
PAGE: Final = 4 * KIB
LARGEST_MEMORY: Final = 2048 * MIB  # above, a 32-bit PC keeps its devices, and the monitor could not map it all
LOW_RAM_END: Final = PAddr(0x9FC00)
HIGH_RAM: Final = PAddr(1 * MIB)
MOST_TOLD_KB: Final = 0xFFFF  # KiB of that which the oldest service of a BIOS, INT 15, 88, can tell


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that belong at a guest-physical address before the first instruction."""

    address: PAddr
    data: bytes
    what: str  # for people: "kernel", "initrd", ...

    @property
    def end(self) -> PAddr:
        """The first address after it."""
        return PAddr(self.address + len(self.data))


def check_memory(memory: int) -> None:
    """Refuse what no guest can have as memory."""
    if not 2 * MIB <= memory <= LARGEST_MEMORY or memory % PAGE:
        raise LabError(
            f"a guest cannot have {memory} bytes of memory: it takes 2 to {LARGEST_MEMORY // MIB} MiB in whole pages; "
            "try --memory 128"
        )


def check_command_line(text: str, longest: int, name: str) -> bytes:
    """The command line as it lies in memory; `longest` is how many characters the image called `name` takes."""
    if not text.isascii() or "\0" in text:
        raise LabError("the kernel's command line may hold ASCII characters only; correct --append")
    if len(text) > longest:
        raise LabError(f"the command line has {len(text)} characters and {name} takes {longest}; shorten --append")
    return text.encode("ascii") + b"\0"


def check_fits(name: str, end: int, memory: int) -> None:
    """Refuse an image that needs memory up to `end`, if there is less."""
    if end > LARGEST_MEMORY:
        raise LabError(
            f"{name} needs memory up to {end:#x}, and a guest has {LARGEST_MEMORY // MIB} MiB at most; "
            "give an image for a lower address"
        )
    if end > memory:
        more = min(2 * mib(end), LARGEST_MEMORY // MIB)
        raise LabError(
            f"{name} needs {mib(end)} MiB of memory and the guest has {memory // MIB}; "
            f"give it more, such as --memory {more}"
        )


def gap_above(begin: int, size: int, taken: Iterable[tuple[int, int]]) -> int:
    """The first page from `begin` on behind which so many bytes overlap nothing that is taken (begin, end)."""
    at = -(-begin // PAGE) * PAGE
    for low, high in sorted(taken):
        if low < at + size and at < high:
            at = -(-high // PAGE) * PAGE
    return at


def mib(size: int) -> int:
    """Rounded up, to be shown."""
    return -(-size // MIB)
