# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest and its monitor said to each other, read from the trace: each exit with what was answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from l4lab.abi.frame import EIP
from l4lab.abi.vm import ExitReason, IoAccess, ItemId
from l4lab.kernel import events
from l4lab.kernel.events import MessageKind
from l4lab.rig.trace import Trace
from l4lab.user.monitor.fault import Fault


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exit, and its answer."""

    fault: Fault
    answer: dict[int, int]  # registers that the reply changes, by index in the frame
    sent: bytes  # what left by the machine's serial port in between

    def after(self, register: int) -> int:
        """What the guest goes on with in a register."""
        return self.answer.get(register, self.fault.gpr(register))

    @property
    def moves_on(self) -> bool:
        """Does the guest go on somewhere else than at the instruction that exited?"""
        return self.after(EIP) != self.fault.eip

    @property
    def access(self) -> IoAccess | None:
        """Port and direction, if this is an I/O exit."""
        return IoAccess.decode(self.fault.qualification) if self.fault.reason == ExitReason.IO_INSTRUCTION else None

    def reads(self, port: int) -> bool:
        """Is it an IN from that port?"""
        return self.access is not None and self.access.is_in and self.access.port == port

    def writes(self, port: int) -> bool:
        """Is it an OUT to that port?"""
        return self.access is not None and not self.access.is_in and self.access.port == port

    def asks(self, leaf: int) -> bool:
        """Is it a CPUID of that leaf?"""
        return self.fault.reason == ExitReason.CPUID and self.fault.eax == leaf

    @property
    def what(self) -> str:
        """The exit in words."""
        if self.access is None:
            return f"CPUID at {self.fault.eip:#x}"
        return f"{'IN from' if self.access.is_in else 'OUT to'} port {self.access.port:#x} at {self.fault.eip:#x}"


def exchanges(trace: Trace) -> Iterator[Exchange]:
    """The answered exits of a system with one virtual CPU, oldest first."""
    asked: events.MessageSent | None = None
    sent = bytearray()
    for event in trace.select(events.MessageSent, events.DeviceOutput):
        if isinstance(event, events.DeviceOutput):
            sent.append(event.byte)
        elif isinstance(event, events.MessageSent) and event.kind is MessageKind.VM_EXIT:
            asked = event
            sent.clear()
        elif isinstance(event, events.MessageSent) and asked is not None and event.receiver == asked.sender:
            registers = Fault(event.words).items.get(ItemId.GPREGS, {})  # an answer's items look like a fault's
            yield Exchange(Fault(asked.words), dict(registers), bytes(sent))
            asked = None
