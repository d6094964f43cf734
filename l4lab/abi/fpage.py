# SPDX-License-Identifier: GPL-2.0-or-later
"""Flexpages: power-of-two pieces of an address space, of memory or of I/O ports.

Lives here: the words and the questions one may ask of a word. What mapping one does is the kernel's.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Final

from l4lab.errors import LabError
from l4lab.words import Rights, VAddr, Word, bit, bits, size_text

PAGE_LOG2: Final = 12  # the smallest piece that can be mapped
SUPERPAGE_LOG2: Final = 22


def as_rights(rights: str | Rights) -> Rights:
    """Rights given as letters or as a flag."""
    if isinstance(rights, Rights):
        return rights
    try:
        return Rights.parse(rights)
    except ValueError as refused:
        raise LabError(str(refused)) from None


class Fpage(Word):
    """A piece of an address space and the rights to it (X.2 manual, section Fpage).

    `b` and `s` are the raw fields of the manual; use `base`, `log2` and `size`, which know the complete fpage.
    """

    b = bits(31, 10)  # base / 1024
    s = bits(9, 4)  # log2 of the size; 1 with base 0 is the complete address space, 2 marks an I/O fpage
    extended = bit(3)  # only in requests to sigma0: the address has upper bits in MR3
    rights = bits(2, 0, Rights)

    @classmethod
    def at(cls, base: int, log2: int = PAGE_LOG2, rights: str | Rights = "rwx") -> Fpage:
        """The piece of 2**log2 bytes that begins at `base`."""
        if not PAGE_LOG2 <= log2 <= 32:
            raise LabError(f"An fpage of 2**{log2} bytes cannot be mapped. Use a log2 from {PAGE_LOG2} to 32.")
        if base % (1 << log2) or not 0 <= base < 1 << 32:
            raise LabError(
                f"An fpage of {size_text(1 << log2)} cannot begin at {base:#x}. "
                f"Begin at a multiple of its size, for example {base & 0xFFFF_FFFF & -(1 << log2):#x}."
            )
        s = 1 if log2 == 32 else log2
        return cls.make(b=base >> 10, s=s, rights=as_rights(rights))

    @cached_property
    def is_nil(self) -> bool:
        """Is it the fpage that covers nothing?"""
        return self == 0

    @cached_property
    def is_complete(self) -> bool:
        """Is it the whole address space?"""
        return self.s == 1 and self.b == 0

    @cached_property
    def is_io(self) -> bool:
        """Is it really a piece of the port space? Then read it as `IoFpage`."""
        return self.s == 2

    @cached_property
    def log2(self) -> int:
        """Log2 of the size: 32 for the complete fpage."""
        return 32 if self.is_complete else self.s

    @cached_property
    def size(self) -> int:
        """Number of bytes it covers."""
        return 0 if self.is_nil else 1 << self.log2

    @cached_property
    def base(self) -> VAddr:
        """First address: the base field rounded down to the size."""
        return VAddr((self.b << 10) & -(1 << self.log2))

    def covers(self, address: int) -> bool:
        """Does the address lie inside?"""
        return self.base <= address < self.base + self.size

    def __repr__(self) -> str:
        if self.is_nil:
            return "Fpage(nil)"
        if self.is_io:
            return repr(IoFpage(self))
        if self.is_complete:
            return f"Fpage(complete, {self.rights.text})"
        return f"Fpage({self.base:#x}..{self.base + self.size - 1:#x}, {size_text(self.size)}, {self.rights.text})"


class IoFpage(Word):
    """A power-of-two piece of the port space (X.2 manual, appendix IA-32, section I/O fpages)."""

    port = bits(31, 16)  # first port
    log2 = bits(15, 10)
    mark = bits(9, 4)  # always 2: what tells it from a memory fpage

    fixed: ClassVar[int] = 2 << 4

    @classmethod
    def at(cls, port: int, log2: int = 0) -> IoFpage:
        """The 2**log2 ports that begin at `port`."""
        if not 0 <= log2 <= 16:
            raise LabError(f"There are no 2**{log2} ports. Use a log2 from 0 to 16.")
        if port % (1 << log2) or not 0 <= port <= 0xFFFF:
            raise LabError(
                f"{1 << log2} ports cannot begin at {port:#x}. "
                f"Begin at a multiple of their number, for example {port & 0xFFFF & -(1 << log2):#x}."
            )
        return cls.make(port=port, log2=log2)

    @cached_property
    def size(self) -> int:
        """Number of ports."""
        return 1 << self.log2

    def covers(self, port: int) -> bool:
        """Does the port lie inside?"""
        return port >> self.log2 == self.port >> self.log2

    def __repr__(self) -> str:
        first = self.port & -self.size
        return f"IoFpage({first:#x}..{first + self.size - 1:#x}, {self.size} port{'s' if self.size > 1 else ''})"


NILPAGE: Final = Fpage(0)
COMPLETE_ADDRESS_SPACE: Final = Fpage.at(0, log2=32)
COMPLETE_IO_SPACE: Final = IoFpage.at(0, log2=16)
