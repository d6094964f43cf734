# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls: their numbers, which register carries what, their control words and error codes.

Lives here: the tables, usable for decoding and for documentation. What a call does is in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from typing import Final

from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, ESI
from l4lab.words import Word, bit, bits


class SystemCall(IntEnum):
    """The system calls, numbered in the order of their entries in the KIP (X.2 manual, section KIP)."""

    SPACE_CONTROL = 0
    THREAD_CONTROL = 1
    PROCESSOR_CONTROL = 2
    MEMORY_CONTROL = 3
    IPC = 4
    LIPC = 5
    UNMAP = 6
    EXCHANGE_REGISTERS = 7
    SYSTEM_CLOCK = 8
    THREAD_SWITCH = 9
    SCHEDULE = 10
    KERNEL_INTERFACE = 11  # has no entry in the KIP: it is the instruction `lock; nop`, which finds the KIP

    @cached_property
    def title(self) -> str:
        """The name as the X.2 manual writes it: ThreadControl."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    @property
    def entry_name(self) -> str:
        """The name as stub tables write it: thread_control."""
        return self.name.lower()


KIP_ENTRIES: Final = tuple(call for call in SystemCall if call is not SystemCall.KERNEL_INTERFACE)


class ErrorCode(IntEnum):
    """What a refused system call leaves in the UTCB's ErrorCode (reference section 4.3). IPC has its own codes."""

    OK = 0
    NO_PRIVILEGE = 1
    INVALID_THREAD = 2
    INVALID_SPACE = 3
    INVALID_SCHEDULER = 4
    INVALID_PARAMETER = 5
    UTCB_AREA = 6
    KIP_AREA = 7
    NO_MEMORY = 8


@dataclass(frozen=True, slots=True)
class Convention:
    """Which register of the frame carries what, in and out; a register that is not named is preserved."""

    inputs: dict[str, int]
    outputs: dict[str, int]
    errors: tuple[ErrorCode, ...] = ()

    def read_inputs(self, frame: Sequence[int]) -> dict[str, int]:
        """The arguments by name, from a register frame."""
        return {name: frame[register] for name, register in self.inputs.items()}

    def read_outputs(self, frame: Sequence[int]) -> dict[str, int]:
        """The results by name, from a register frame."""
        return {name: frame[register] for name, register in self.outputs.items()}


# Reference section 4.2; X.2 manual, appendix IA-32. MR0 travels in ESI, and the copy in memory may be stale.
_IPC = Convention(
    inputs={"To": EAX, "Timeouts": ECX, "FromSpecifier": EDX, "MR0": ESI, "UTCB": EDI},
    outputs={"From": EAX, "MR0": ESI, "MR1": EBX, "MR2": EBP, "UTCB": EDI},
)
_E = ErrorCode
CONVENTIONS: Final[dict[SystemCall, Convention]] = {
    SystemCall.SPACE_CONTROL: Convention(
        inputs={"SpaceSpecifier": EAX, "control": ECX, "KipArea": EDX, "UtcbArea": ESI, "Redirector": EDI},
        outputs={"result": EAX, "control": ECX},
        errors=(_E.NO_PRIVILEGE, _E.INVALID_THREAD, _E.INVALID_SPACE, _E.UTCB_AREA, _E.KIP_AREA, _E.NO_MEMORY),
    ),
    SystemCall.THREAD_CONTROL: Convention(
        inputs={"dest": EAX, "Pager": ECX, "Scheduler": EDX, "SpaceSpecifier": ESI, "UtcbLocation": EDI},
        outputs={"result": EAX},
        errors=(_E.NO_PRIVILEGE, _E.INVALID_THREAD, _E.INVALID_SPACE, _E.UTCB_AREA, _E.NO_MEMORY),
    ),
    SystemCall.PROCESSOR_CONTROL: Convention(
        inputs={"ProcessorNo": EAX, "InternalFrequency": ECX, "ExternalFrequency": EDX, "voltage": ESI},
        outputs={"result": EAX},
        errors=(_E.NO_PRIVILEGE, _E.INVALID_PARAMETER),
    ),
    SystemCall.MEMORY_CONTROL: Convention(
        inputs={
            "control": EAX, "attribute0": ECX, "attribute1": EDX, "attribute2": EBX, "attribute3": EBP,
            "MR0": ESI, "UTCB": EDI,
        },
        outputs={"result": EAX},
        errors=(_E.NO_PRIVILEGE, _E.INVALID_PARAMETER),
    ),
    SystemCall.IPC: _IPC,
    SystemCall.LIPC: _IPC,
    SystemCall.UNMAP: Convention(inputs={"control": EAX, "MR0": ESI, "UTCB": EDI}, outputs={"MR0": ESI}),
    SystemCall.EXCHANGE_REGISTERS: Convention(
        inputs={
            "dest": EAX, "control": ECX, "SP": EDX, "IP": ESI, "FLAGS": EDI,
            "UserDefinedHandle": EBX, "pager": EBP,
        },
        outputs={
            "result": EAX, "control": ECX, "SP": EDX, "IP": ESI, "FLAGS": EDI,
            "UserDefinedHandle": EBX, "pager": EBP,
        },
        errors=(_E.INVALID_THREAD,),
    ),
    SystemCall.SYSTEM_CLOCK: Convention(inputs={}, outputs={"clock low": EAX, "clock high": EDX}),
    SystemCall.THREAD_SWITCH: Convention(inputs={"dest": EAX}, outputs={}),
    SystemCall.SCHEDULE: Convention(
        inputs={
            "dest": EAX, "PrioControl": ECX, "TimeControl": EDX,
            "ProcessorControl": ESI, "PreemptionControl": EDI,
        },
        outputs={"result": EAX, "TimeControl": EDX},
        errors=(_E.NO_PRIVILEGE, _E.INVALID_THREAD, _E.INVALID_PARAMETER),
    ),
    SystemCall.KERNEL_INTERFACE: Convention(
        inputs={}, outputs={"KIP base": EAX, "API version": ECX, "API flags": EDX, "kernel id": ESI}
    ),
}  # fmt: skip

UNCHANGED: Final = 0xFFFF_FFFF  # "leave as it is", in ThreadControl's UtcbLocation and all of Schedule's controls


class ExregsControl(IntFlag):
    """ExchangeRegisters: what to change; on return, the state found (X.2 manual, section ExchangeRegisters).

    The letters are the manual's. Bit 9 is "deliver" there; kernels with register items use it to configure them,
    and always deliver (reference section 8.3).
    """

    HALT = 1 << 0  # H: the state that ACT_ON_HALT sets; out: was halted
    ABORT_RECEIVE = 1 << 1  # R; out: was receiving
    ABORT_SEND = 1 << 2  # S; out: was sending
    SP = 1 << 3  # s
    IP = 1 << 4  # i
    FLAGS = 1 << 5  # f
    USER_DEFINED_HANDLE = 1 << 6  # u
    PAGER = 1 << 7  # p
    ACT_ON_HALT = 1 << 8  # h
    CONFIGURE_ITEMS = 1 << 9
    READ_ITEMS = 1 << 10
    WRITE_ITEMS = 1 << 11


class SpaceControlBits(IntFlag):
    """SpaceControl: kinds of address space (reference section 8.2)."""

    VM = 1 << 30  # a virtual machine's memory; its threads are virtual CPUs
    SHADOW_PAGING = 1 << 28  # with VM, an addition of ours: the kernel keeps shadow tables, instead of nested paging
    SMALL = 1 << 31


class UnmapControl(Word):
    """Unmap's argument (X.2 manual, section Unmap)."""

    flush = bit(6)  # my own mapping too, not only what others got from it
    k = bits(5, 0)  # the last fpage is in MRk


class TimeControl(Word):
    """Schedule's time argument: two time periods (X.2 manual, section Schedule)."""

    time_slice = bits(31, 16)
    total_quantum = bits(15, 0)


class PrioControl(Word):
    """Schedule's priority argument (X.2 manual, section Schedule)."""

    priority = bits(7, 0)


class PreemptionControl(Word):
    """Schedule's delayed-preemption argument (X.2 manual, section Schedule)."""

    sensitive_priority = bits(23, 16)
    max_delay = bits(15, 0)  # microseconds


class ScheduleResult(IntEnum):
    """Schedule's result: what the thread is doing (X.2 manual, section Schedule)."""

    ERROR = 0
    DEAD = 1
    INACTIVE = 2
    RUNNING = 3
    PENDING_SEND = 4
    SENDING = 5
    WAITING = 6
    RECEIVING = 7


class MemoryAttribute(IntEnum):
    """MemoryControl: how a page is cached (reference section 4.2)."""

    DEFAULT = 0
    WRITE_BACK = 1
    WRITE_THROUGH = 2
    UNCACHEABLE = 4
    WRITE_COMBINING = 5
    WRITE_PROTECTED = 8
