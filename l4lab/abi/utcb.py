# SPDX-License-Identifier: GPL-2.0-or-later
"""The user-level thread control block: where each field is, relative to MR0.

All offsets are in bytes from MR0, whose address is the thread's local identifier; divide by 4 for word indices
(`WORD_INDEX` holds them all). Source: X.2 manual, sections ThreadId and TCRs; reference section 2.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final

SIZE: Final = 512
ALIGN_LOG2: Final = 9
MIN_AREA_LOG2: Final = 12
MR0_FROM_LOCATION: Final = 256  # ThreadControl is given the lowest address of the UTCB; MR0 is so far above it

MESSAGE_REGISTERS: Final = 64
BUFFER_REGISTERS: Final = 33

# WORDS[n] packs and unpacks n words: `WORDS[n].unpack_from(utcb, MR0_FROM_LOCATION)` is MR0 up to MR(n-1).
WORDS: Final = tuple(struct.Struct(f"<{n}I") for n in range(MESSAGE_REGISTERS + 1))

MR0: Final = 0
THREAD_WORD_0: Final = -16
THREAD_WORD_1: Final = -20
VIRTUAL_SENDER: Final = -24  # when sending with propagation: in whose name
ACTUAL_SENDER: Final = -24  # after receiving a propagated message, in the same word: who really sent it
INTENDED_RECEIVER: Final = -28
XFER_TIMEOUTS: Final = -32
ERROR_CODE: Final = -36
PREEMPTION_FLAGS: Final = -40  # one byte
COP_FLAGS: Final = -39  # one byte
EXCEPTION_HANDLER: Final = -44
PAGER: Final = -48
USER_DEFINED_HANDLE: Final = -52
PROCESSOR_NO: Final = -56
MY_GLOBAL_ID: Final = -60
BR0: Final = -64  # buffer registers count downwards from here
LOCATION: Final = -MR0_FROM_LOCATION

FIELDS: Final[dict[str, int]] = {
    "BR0": BR0,
    "MyGlobalId": MY_GLOBAL_ID,
    "ProcessorNo": PROCESSOR_NO,
    "UserDefinedHandle": USER_DEFINED_HANDLE,
    "Pager": PAGER,
    "ExceptionHandler": EXCEPTION_HANDLER,
    "PreemptionFlags": PREEMPTION_FLAGS,
    "ErrorCode": ERROR_CODE,
    "XferTimeouts": XFER_TIMEOUTS,
    "IntendedReceiver": INTENDED_RECEIVER,
    "VirtualSender/ActualSender": VIRTUAL_SENDER,
    "ThreadWord1": THREAD_WORD_1,
    "ThreadWord0": THREAD_WORD_0,
    "MR0": MR0,
}
WORD_INDEX: Final[dict[str, int]] = {name: offset // 4 for name, offset in FIELDS.items()}


def mr(index: int) -> int:
    """Byte offset of message register `index`, 0 to 63."""
    if not 0 <= index < MESSAGE_REGISTERS:
        raise ValueError(f"there is no MR{index}")
    return 4 * index


def br(index: int) -> int:
    """Byte offset of buffer register `index`, 0 to 32."""
    if not 0 <= index < BUFFER_REGISTERS:
        raise ValueError(f"there is no BR{index}")
    return BR0 - 4 * index


class PreemptionFlags(IntFlag):
    """The byte by which a thread asks to be preempted later (X.2 manual, section TCRs)."""

    SIGNAL = 1 << 5  # tell the exception handler when preempted
    DELAY = 1 << 6  # please not now
    PENDING = 1 << 7  # set by the kernel: a preemption was delayed, call ThreadSwitch soon
