# SPDX-License-Identifier: GPL-2.0-or-later
"""Thread identifiers: who can be named in a system call, and how.

Lives here: the two forms of an identifier, the special ones, the number ranges. Which threads exist is the kernel's.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from l4lab.words import Word, bits

SYSTEM_BASE: Final = 16  # thread numbers below are interrupts: the 16 lines of the 8259 pair
USER_BASE: Final = 48  # numbers from SYSTEM_BASE to here are the kernel's; programs start here

THREAD_BITS: Final = 17  # valid bits of a thread number

LOCAL_BITS: Final = 0x3F  # all zero in a local identifier, because UTCBs are aligned


class ThreadId(Word):
    """A thread identifier, global or local (X.2 manual, section ThreadId).

    global    31    thread_no    14 13    version    0     not all of bits 5..0 are zero
    local     31    address of the thread's MR0     6 5  0  0
    """

    thread_no = bits(31, 14)
    version = bits(13, 0)

    @cached_property
    def is_nil(self) -> bool:
        """Is it nilthread, which names no thread?"""
        return self == 0

    @cached_property
    def is_local(self) -> bool:
        """Does it name a thread of the caller's own space? nilthread passes this test too: ask `is_nil` first."""
        return self & LOCAL_BITS == 0

    @cached_property
    def is_global(self) -> bool:
        """Does it name the same thread from every space?"""
        return self & LOCAL_BITS != 0

    @cached_property
    def is_interrupt(self) -> bool:
        """Does it name an interrupt line? Then `thread_no` is the line."""
        return self.version == 1 and self.thread_no < SYSTEM_BASE

    def __repr__(self) -> str:
        special = {0: "NIL_THREAD", 0xFFFF_FFFF: "ANY_THREAD", 0xFFFF_FFC0: "ANY_LOCAL_THREAD"}.get(self)
        if special:
            return special
        if self.is_local:
            return f"ThreadId(local {int(self):#x})"
        if self.is_interrupt:
            return f"ThreadId(irq {self.thread_no})"
        return f"ThreadId(thread_no={self.thread_no}, version={self.version})"


NIL_THREAD: Final = ThreadId(0)
ANY_THREAD: Final = ThreadId(0xFFFF_FFFF)
ANY_LOCAL_THREAD: Final = ThreadId(0xFFFF_FFC0)


def global_id(thread_no: int, version: int = 1) -> ThreadId:
    """The global identifier of a thread number; ValueError for a version that would make it look local."""
    if version & LOCAL_BITS == 0:
        raise ValueError(f"version={version:#x} has its low six bits zero, so the identifier would be a local one")
    return ThreadId.make(thread_no=thread_no, version=version)


def local_id(utcb_address: int) -> ThreadId:
    """The local identifier of the thread whose UTCB has its MR0 at this address (X.2 manual, section ThreadId)."""
    if utcb_address & LOCAL_BITS:
        raise ValueError(f"utcb_address={utcb_address:#x} is not aligned to 64 bytes")
    return ThreadId(utcb_address)


def interrupt_id(line: int) -> ThreadId:
    """The identifier that stands for an interrupt line: its number, version 1."""
    if not 0 <= line < SYSTEM_BASE:
        raise ValueError(f"line={line} is not an interrupt line: there are {SYSTEM_BASE}")
    return global_id(line)


# The first programs (reference section 1): number and version are known before any of them runs.
SIGMA0: Final = global_id(USER_BASE)
SIGMA1: Final = global_id(USER_BASE + 1)
ROOT_TASK: Final = global_id(USER_BASE + 2)
