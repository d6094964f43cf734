# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel interface page: field offsets, its words, and `Kip`, which reads one.

Lives here: how the page is laid out (X.2 manual, section KIP; reference section 3). Building one is in `kip_build`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

from l4lab.abi.calls import SystemCall
from l4lab.words import Rights, Word, bits, hex32, size_text

SIZE: Final = 4096
MAGIC: Final = 0x4BE6_344C  # "L4", mu, "K"
API_VERSION: Final = 0x8405_0000  # X.2, revision 5
API_FLAGS: Final = 0  # little endian, 32 bits

# Byte offsets of the fields.
KERNEL_DESC_POINTER: Final = 0x0C
SIGMA0_REGION: Final = 0x20  # SP, IP, low, high
SIGMA1_REGION: Final = 0x30
ROOT_REGION: Final = 0x40
MEMORY_INFO: Final = 0x54
UTCB_INFO: Final = 0xA8
KIP_AREA_INFO: Final = 0xAC
BOOT_INFO: Final = 0xB8
PROC_DESC_POINTER: Final = 0xBC
CLOCK_INFO: Final = 0xC0
THREAD_INFO: Final = 0xC4
PAGE_INFO: Final = 0xC8
PROCESSOR_INFO: Final = 0xCC
ENTRIES: Final = 0xD0  # one word for each system call with an entry: its offset from the start of the page
PROC_DESC: Final = 0x120  # where the processor descriptors are in our pages
STUBS: Final = 0x800  # where the system call stubs are in our pages

LOCK_NOP: Final = bytes((0xF0, 0x90))  # the instruction that finds the KIP (X.2 manual, KernelInterface)


def entry_offset(call: SystemCall) -> int:
    """Where the KIP holds the offset of a system call's entry."""
    if call is SystemCall.KERNEL_INTERFACE:
        raise ValueError("KernelInterface has no entry in the KIP")
    return ENTRIES + 4 * call


class MemoryInfo(Word):
    """Where the memory descriptors are, and how many (X.2 manual, section KIP)."""

    offset = bits(31, 16)
    count = bits(15, 0)


class UtcbInfo(Word):
    """Size and alignment of UTCBs (X.2 manual, section KIP)."""

    min_area_log2 = bits(21, 16)
    alignment_log2 = bits(15, 10)
    multiplier = bits(9, 0)  # size = multiplier * alignment


class KipAreaInfo(Word):
    """Size of the KIP area (X.2 manual, section KIP)."""

    log2 = bits(5, 0)


class ClockInfo(Word):
    """The smallest differences that the clock shows, and that time slices keep; two time periods (X.2, section KIP)."""

    schedule_precision = bits(31, 16)
    read_precision = bits(15, 0)


class ThreadInfo(Word):
    """The ranges of thread numbers (X.2 manual, section KIP)."""

    user_base = bits(31, 20)
    system_base = bits(19, 8)
    t = bits(7, 0)  # valid bits of a thread number


class PageInfo(Word):
    """Page sizes and rights that the hardware knows (X.2 manual, section KIP)."""

    page_sizes = bits(31, 10)  # set of sizes / 1024
    rights = bits(2, 0, Rights)  # those that can be given and refused independently


class ProcessorInfo(Word):
    """Number of processors and size of their descriptors (X.2 manual, section KIP)."""

    descriptor_log2 = bits(31, 28)
    last = bits(15, 0)  # number of processors, less one


class KernelId(Word):
    """First word of the kernel description (X.2 manual, section KIP)."""

    id = bits(31, 24)
    subid = bits(23, 16)


class GenerationDate(Word):
    """Second word of the kernel description: when the kernel was made (X.2 manual, section KIP)."""

    year = bits(15, 9)  # since 2000
    month = bits(8, 5)
    day = bits(4, 0)


class KernelVersion(Word):
    """Third word of the kernel description (X.2 manual, section KIP)."""

    version = bits(31, 24)
    subversion = bits(23, 16)
    subsubversion = bits(15, 0)


class MemoryType(IntEnum):
    """What a piece of memory is for (X.2 manual, section KIP)."""

    UNDEFINED = 0
    CONVENTIONAL = 1
    RESERVED = 2
    DEDICATED = 3
    SHARED = 4
    BOOT_LOADER = 0xE
    ARCHITECTURE = 0xF


class _DescriptorLow(Word):
    """First word of a memory descriptor (X.2 manual, section KIP)."""

    low = bits(31, 10)
    virtual = bits(9, 9)
    subtype = bits(7, 4)
    type = bits(3, 0)


@dataclass(frozen=True, slots=True)
class MemoryDescriptor:
    """A range of memory and its use; a later descriptor overrides earlier ones (X.2 manual, section KIP)."""

    type: MemoryType
    low: int  # first address, a multiple of 1024
    high: int  # last address, one less than a multiple of 1024
    virtual: bool = False
    subtype: int = 0  # for BOOT_LOADER and ARCHITECTURE only

    def encode(self) -> tuple[int, int]:
        """The descriptor's two words; ValueError for a range that is empty or not made of whole kilobytes."""
        if self.low & 0x3FF or self.high & 0x3FF != 0x3FF or not 0 <= self.low < self.high <= 0xFFFF_FFFF:
            raise ValueError(f"{self!r} is not a range of whole kilobytes")
        first = _DescriptorLow.make(low=self.low >> 10, virtual=self.virtual, subtype=self.subtype, type=self.type)
        return first, self.high & ~0x3FF

    @classmethod
    def decode(cls, first: int, second: int) -> MemoryDescriptor:
        """The descriptor that two words hold."""
        word = _DescriptorLow.decode(first)
        kind = MemoryType(word.type)
        return cls(kind, word.low << 10, second & ~0x3FF | 0x3FF, bool(word.virtual), word.subtype)

    def __repr__(self) -> str:
        space = "virtual" if self.virtual else "physical"
        size = size_text(self.high + 1 - self.low)
        return f"MemoryDescriptor({hex32(self.low)}..{hex32(self.high)}, {size}, {space} {self.type.name.lower()})"


@dataclass(frozen=True, slots=True)
class ServerRegion:
    """One of the first programs: where it begins and what memory it is loaded into (X.2 manual, section KIP)."""

    sp: int = 0
    ip: int = 0
    low: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class ProcessorDescriptor:
    """A processor's clocks in kHz (X.2 manual, section KIP)."""

    external_khz: int
    internal_khz: int


class Kip:
    """A kernel interface page, read (X.2 manual, section KIP)."""

    def __init__(self, page: bytes) -> None:
        if len(page) < SIZE:
            raise ValueError(f"a KIP has {SIZE} bytes, not {len(page)}")
        self.page = bytes(page[:SIZE])
        if self.word(0) != MAGIC:
            raise ValueError(f"no KIP: it begins with {hex32(self.word(0))}, not with {hex32(MAGIC)}")

    def word(self, offset: int) -> int:
        """The word at a byte offset."""
        return int(struct.unpack_from("<I", self.page, offset)[0])

    @property
    def api_version(self) -> int:
        """Version `[31..24]` and subversion `[23..16]` of the API."""
        return self.word(0x04)

    @property
    def api_flags(self) -> int:
        """Byte order `[1..0]` and word size `[3..2]`."""
        return self.word(0x08)

    @property
    def kernel_id(self) -> KernelId:
        """Which kernel it is."""
        return KernelId(self.word(self.word(KERNEL_DESC_POINTER)))

    @property
    def generation_date(self) -> GenerationDate:
        """When the kernel was made."""
        return GenerationDate(self.word(self.word(KERNEL_DESC_POINTER) + 4))

    @property
    def kernel_version(self) -> KernelVersion:
        """The kernel's version."""
        return KernelVersion(self.word(self.word(KERNEL_DESC_POINTER) + 8))

    @property
    def supplier(self) -> str:
        """Four letters: who made the kernel."""
        at = self.word(KERNEL_DESC_POINTER) + 12
        return self.page[at : at + 4].decode("ascii")

    @cached_property
    def _strings(self) -> list[str]:
        at = self.word(KERNEL_DESC_POINTER) + 16
        return [text.decode("ascii") for text in self.page[at:].split(b"\0\0", 1)[0].split(b"\0")]

    @property
    def version_string(self) -> str:
        """The kernel's name and version as text."""
        return self._strings[0]

    @property
    def features(self) -> tuple[str, ...]:
        """What the kernel can do beyond X.2: "ctrlxfer", "x86-hvm", ..."""
        return tuple(self._strings[1:])

    @property
    def memory_info(self) -> MemoryInfo:
        """Where the memory descriptors are."""
        return MemoryInfo(self.word(MEMORY_INFO))

    @cached_property
    def memory(self) -> tuple[MemoryDescriptor, ...]:
        """The memory descriptors, in order; later ones override earlier ones."""
        at, count = self.memory_info.offset, self.memory_info.count
        return tuple(MemoryDescriptor.decode(self.word(at + 8 * i), self.word(at + 8 * i + 4)) for i in range(count))

    @property
    def utcb_info(self) -> UtcbInfo:
        """Size and alignment of UTCBs."""
        return UtcbInfo(self.word(UTCB_INFO))

    @property
    def kip_area_info(self) -> KipAreaInfo:
        """Size of the KIP area."""
        return KipAreaInfo(self.word(KIP_AREA_INFO))

    @property
    def clock_info(self) -> ClockInfo:
        """How fine the clock is."""
        return ClockInfo(self.word(CLOCK_INFO))

    @property
    def thread_info(self) -> ThreadInfo:
        """The ranges of thread numbers."""
        return ThreadInfo(self.word(THREAD_INFO))

    @property
    def page_info(self) -> PageInfo:
        """Page sizes and rights of the hardware."""
        return PageInfo(self.word(PAGE_INFO))

    @cached_property
    def processors(self) -> tuple[ProcessorDescriptor, ...]:
        """The processors."""
        info, at = ProcessorInfo(self.word(PROCESSOR_INFO)), self.word(PROC_DESC_POINTER)
        step = 1 << info.descriptor_log2
        return tuple(
            ProcessorDescriptor(self.word(at + step * i), self.word(at + step * i + 4)) for i in range(info.last + 1)
        )

    def server(self, offset: int) -> ServerRegion:
        """One of the first programs: at SIGMA0_REGION, SIGMA1_REGION or ROOT_REGION."""
        return ServerRegion(*(self.word(offset + 4 * i) for i in range(4)))

    def entry(self, call: SystemCall) -> int:
        """Offset of a system call's entry from the start of the page."""
        return self.word(entry_offset(call))
