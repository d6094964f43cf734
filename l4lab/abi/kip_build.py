# SPDX-License-Identifier: GPL-2.0-or-later
"""Building a kernel interface page: one function, from facts to 4096 bytes.

Lives here: what our pages say and where. Which facts are true of a machine is the caller's to know; the code of the
system call stubs comes assembled.

    0x000  fields           0x120  processor descriptors, kernel description, strings, memory descriptors
    0x800  system call stubs
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final

from l4lab.abi import kip, utcb
from l4lab.abi.calls import KIP_ENTRIES
from l4lab.abi.ids import SYSTEM_BASE, THREAD_BITS, USER_BASE
from l4lab.abi.kip import MemoryDescriptor, ProcessorDescriptor, ServerRegion
from l4lab.abi.time import period
from l4lab.words import Rights

KERNEL_ID: Final = kip.KernelId.make(id=4, subid=2)  # what programs expect of this API (reference section 15)
KERNEL_VERSION: Final = kip.KernelVersion.make(version=0, subversion=1)
GENERATED: Final = date(2026, 11, 22)
SUPPLIER: Final = "l4lb"
PROCESSOR_DESCRIPTOR_LOG2: Final = 4
PAGE_SIZES: Final = (1 << 12, 1 << 22)
NO_SERVER: Final = ServerRegion()


def build_kip(
    *,
    memory: Sequence[MemoryDescriptor],
    stubs: bytes,
    entries: Mapping[str, int],
    external_khz: int,
    internal_khz: int,
    thread_bits: int = THREAD_BITS,
    features: Sequence[str] = (),
    version: str = "l4lab 0.1",
    sigma0: ServerRegion = NO_SERVER,
    sigma1: ServerRegion = NO_SERVER,
    root: ServerRegion = NO_SERVER,
    boot_info: int = 0,
) -> bytes:
    """A complete KIP for one processor (X.2 manual, section KIP).

    `entries` gives the offset within `stubs` of each system call under its `SystemCall.entry_name`; none may be
    missing. ValueError when something does not fit.
    """
    expected = {call.entry_name for call in KIP_ENTRIES}
    if entries.keys() != expected:
        raise ValueError(f"entries differ from the system calls in {sorted(entries.keys() ^ expected)}")
    processors = [ProcessorDescriptor(external_khz, internal_khz)]
    page = bytearray(kip.SIZE)

    def put(offset: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}I", page, offset, *words)

    put(0, kip.MAGIC, kip.API_VERSION, kip.API_FLAGS)
    for offset, server in ((kip.SIGMA0_REGION, sigma0), (kip.SIGMA1_REGION, sigma1), (kip.ROOT_REGION, root)):
        put(offset, server.sp, server.ip, server.low, server.high)
    put(
        kip.UTCB_INFO,
        kip.UtcbInfo.make(
            multiplier=utcb.SIZE >> utcb.ALIGN_LOG2, alignment_log2=utcb.ALIGN_LOG2, min_area_log2=utcb.MIN_AREA_LOG2
        ),
    )
    put(kip.KIP_AREA_INFO, kip.KipAreaInfo.make(log2=kip.SIZE.bit_length() - 1))
    put(kip.BOOT_INFO, boot_info)
    put(kip.CLOCK_INFO, kip.ClockInfo.make(read_precision=period(1), schedule_precision=period(1)))
    put(kip.THREAD_INFO, kip.ThreadInfo.make(t=thread_bits, system_base=SYSTEM_BASE, user_base=USER_BASE))
    put(kip.PAGE_INFO, kip.PageInfo.make(page_sizes=sum(PAGE_SIZES) >> 10, rights=Rights.R | Rights.W))
    put(
        kip.PROCESSOR_INFO,
        kip.ProcessorInfo.make(last=len(processors) - 1, descriptor_log2=PROCESSOR_DESCRIPTOR_LOG2),
    )
    for call in KIP_ENTRIES:
        put(kip.entry_offset(call), kip.STUBS + entries[call.entry_name])

    at = kip.PROC_DESC
    put(kip.PROC_DESC_POINTER, at)
    for processor in processors:
        put(at, processor.external_khz, processor.internal_khz)
        at += 1 << PROCESSOR_DESCRIPTOR_LOG2

    put(kip.KERNEL_DESC_POINTER, at)
    made = kip.GenerationDate.make(day=GENERATED.day, month=GENERATED.month, year=GENERATED.year - 2000)
    supplier = int.from_bytes(SUPPLIER.encode("ascii"), "little")
    strings = b"".join(text.encode("ascii") + b"\0" for text in (version, *features)) + b"\0"
    descriptors = [word for descriptor in memory for word in descriptor.encode()]
    memory_at = at + 16 + len(strings) + 15 & ~15
    if memory_at + 4 * len(descriptors) > kip.STUBS:
        raise ValueError(f"{len(memory)} memory descriptors and the feature strings leave no room for the stubs")
    if kip.STUBS + len(stubs) > kip.SIZE:
        raise ValueError(f"stubs of {len(stubs)} bytes do not fit: at most {kip.SIZE - kip.STUBS}")
    put(at, KERNEL_ID, made, KERNEL_VERSION, supplier)
    page[at + 16 : at + 16 + len(strings)] = strings
    put(kip.MEMORY_INFO, kip.MemoryInfo.make(offset=memory_at, count=len(memory)))
    put(memory_at, *descriptors)
    page[kip.STUBS : kip.STUBS + len(stubs)] = stubs
    return bytes(page)
