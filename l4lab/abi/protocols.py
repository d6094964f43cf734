# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages that the kernel itself sends, and sigma0's protocol: labels and what the words mean.

Lives here: constants and encodings. Who sends and who answers is in `kernel` and `user`. The messages of virtual
machines are in `vm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from l4lab.abi.fpage import NILPAGE, PAGE_LOG2, Fpage, IoFpage
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP
from l4lab.abi.message import MapItem, Message, MsgTag
from l4lab.words import Rights


def label_of_protocol(number: int, low: int = 0) -> int:
    """The 16-bit label of kernel protocol `number`, which is negative: -2 is 0xffe0 (X.2 manual, section Protocols)."""
    return number << 4 & 0xFFFF | low


# X.2 manual, section Protocols; reference section 5.1.
THREAD_START: Final = 0  # from the pager; u = 2: IP and SP
INTERRUPT: Final = label_of_protocol(-1)
PAGE_FAULT: Final = label_of_protocol(-2)  # + rights wanted; u = 2: address, IP
PREEMPTION: Final = label_of_protocol(-3)  # u = 2: clock low, high
SYSTEM_EXCEPTION: Final = label_of_protocol(-4)  # not used on IA-32
ARCH_EXCEPTION: Final = label_of_protocol(-5)
SIGMA0_REQUEST: Final = label_of_protocol(-6)  # u = 2: fpage wanted, memory attribute
IO_PAGE_FAULT: Final = label_of_protocol(-8, Rights.R | Rights.W)  # u = 2: I/O fpage, IP
SIGMA0_EXTENDED: Final = label_of_protocol(-1001)

TUNNELLED_FAULT_IP: Final = 0xFFFF_FFFF  # page-fault IP when the kernel, not the thread, touched the page


class FaultId(IntEnum):
    """Which fault messages carry register items: n for the protocol of label -n (reference section 6.5).

    Virtual-machine exits follow from `VM_FAULT_BASE` on, by exit reason.
    """

    PAGE_FAULT = 2
    PREEMPTION = 3
    SYSTEM_EXCEPTION = 4
    EXCEPTION = 5


VM_FAULT_BASE: Final = 9  # fault id of exit reason 0 (reference section 9.5)
VM_FAULT_REASONS: Final = 44  # exit reasons 0 to 43 can be configured
FAULT_IDS: Final = (*FaultId, *range(VM_FAULT_BASE, VM_FAULT_BASE + VM_FAULT_REASONS))


def fault_id(label: int) -> int:
    """n for a label of protocol -n: the fault id under which its register items are configured."""
    return 0x1000 - (label >> 4)


# --- Page faults -------------------------------------------------------------------------------------------------


def page_fault_label(wanted: Rights) -> int:
    """The label of a page fault; a non-write fault on IA-32 wants r-x, because it cannot tell them apart."""
    return PAGE_FAULT | wanted


def is_page_fault(label: int) -> bool:
    """Is it the label of a page fault, whatever rights it wants?"""
    return label & ~0x7 == PAGE_FAULT


def page_fault_rights(label: int) -> Rights:
    """The rights that the faulting thread wanted."""
    return Rights(label & 7)


# --- Exceptions --------------------------------------------------------------------------------------------------

# The frame registers that MR1... of an exception message hold; None for the two words that are no registers.
# X.2 manual, appendix IA-32, section Exception message; the same words are taken back from the reply.
EXCEPTION_FRAME: Final[tuple[int | None, ...]] = (
    EIP, EFLAGS, None, None, EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX,
)  # fmt: skip
EXCEPTION_NUMBER_MR: Final = 3
EXCEPTION_ERROR_MR: Final = 4
EXCEPTION_WORDS: Final = len(EXCEPTION_FRAME)
# With register items configured for `FaultId.EXCEPTION` the message has two words only: number and error code.
EXCEPTION_WITH_ITEMS_WORDS: Final = 2


# --- sigma0 ------------------------------------------------------------------------------------------------------

ANY_ADDRESS: Final = 0x3F_FFFF  # base field of a request for any page of a size


def any_page(log2: int = PAGE_LOG2) -> Fpage:
    """The fpage that asks sigma0 for any conventional memory of this size (X.2 manual, section sigma0)."""
    return Fpage.make(b=ANY_ADDRESS, s=log2)


def is_any_page(wanted: Fpage) -> bool:
    """Does a request leave the address to sigma0?"""
    return wanted.b == ANY_ADDRESS


def sigma0_request(wanted: Fpage | IoFpage, attribute: int = 0) -> Message:
    """The message that asks sigma0 for memory or ports (X.2 manual, section sigma0)."""
    return Message(SIGMA0_REQUEST).append(wanted, attribute)


def is_sigma0_request(tag: MsgTag) -> bool:
    """Is it a request as sigma0 understands it? It ignores anything else."""
    return tag.label == SIGMA0_REQUEST and tag.untyped in (2, 3) and tag.typed == 0


def sigma0_grant(given: Fpage | IoFpage, base: int = 0) -> Message:
    """sigma0's answer: a map item; nilpage where the request is refused (X.2 manual, section sigma0)."""
    return Message().append_map(given, base)


def sigma0_granted(words: Sequence[int]) -> Fpage:
    """The fpage in sigma0's answer; nilpage if it refused."""
    for item, rest in Message.of(words).items():
        if isinstance(item, MapItem) and rest:
            return Fpage.decode(rest[0])
    return NILPAGE


# --- Thread start ------------------------------------------------------------------------------------------------


def thread_start(ip: int, sp: int) -> Message:
    """The pager's first message to a new thread: where to begin (X.2 manual, section Thread start)."""
    return Message(THREAD_START).append(ip, sp)
