# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody else's port and MSR instructions, and what is checked of them."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from l4lab.abi.frame import ECX, EIP
from l4lab.abi.vm import ExitReason, IoAccess, ItemId
from l4lab.devices.device import PortBus
from l4lab.errors import PartFailed
from l4lab.user.monitor.fault import MASK, Fault, Reply
from l4lab.user.monitor.guarded_part import GuardedPart, Tell
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.monitor_parts import GuestDevices, GuestPorts, LinearMemory
from l4lab.user.monitor.paging import Paging, locate, read_linear, write_linear
from l4lab.words import hex32

MOST_AT_ONCE = 1 << 20  # repetitions that a part may do at one exit


class OutsideDevices:
    """Somebody else's port and MSR instructions. `port_io`, `rdmsr` and `wrmsr` answer exits as other handlers do."""

    def __init__(
        self,
        make: Callable[[GuestPorts, LinearMemory, MutableMapping[int, int]], GuestDevices],
        tell: Tell,
        bus: PortBus,
        memory: GuestMemory,
        vcpu: GuestCpu,
        msrs: MutableMapping[int, int],
    ) -> None:
        self._memory = _Linear(self, memory, vcpu)
        self._msrs = msrs
        self.method = ""
        self.part: GuardedPart | None = None
        given = _Ports(self, bus), self._memory, msrs
        self.part = GuardedPart(GuestDevices, ("port_io",), tell, make, given)

    def answers(self, method: str) -> bool:
        """Does it do these instructions?"""
        return self.part is not None and self.part.has(method)

    def port_io(self, fault: Fault, reply: Reply) -> None:
        """An exit for a port."""
        self._ask("port_io", fault, reply)

    def rdmsr(self, fault: Fault, reply: Reply) -> None:
        """An exit for RDMSR."""
        self._ask("rdmsr", fault, reply)

    def wrmsr(self, fault: Fault, reply: Reply) -> None:
        """An exit for WRMSR."""
        self._ask("wrmsr", fault, reply)
        msrs: Any = self._msrs
        for number, value in msrs.items():
            if not (isinstance(number, int) and isinstance(value, int) and 0 <= value < 1 << 64):
                raise self.failed(f"leaves {value!r} in MSR {number!r}, which is no number of 64 bits.")

    def _ask(self, method: str, fault: Fault, reply: Reply) -> None:
        part = self.part
        assert part is not None
        self.method = method
        self._memory.paging = None
        is_io = fault.reason == ExitReason.IO_INSTRUCTION
        repeats = is_io and IoAccess.decode(fault.qualification).rep
        part.ask(method, fault, reply, repetitions=min(fault.ecx, MOST_AT_ONCE) if repeats else 0)
        part.check(method, reply)
        changed = reply.items.get(ItemId.GPREGS, {})
        eip, behind = changed.get(EIP, fault.eip), fault.eip + fault.instruction_length & MASK
        if reply.typed:
            raise self.failed("maps memory, which the answer to an exit cannot.")
        if reply.injects:
            if eip != fault.eip:
                raise self.failed("raises an exception and moves EIP: the guest is to find what faulted.")
        elif eip == fault.eip:
            if changed.get(ECX, fault.ecx) == fault.ecx:
                raise self.failed("leaves EIP where it was: the guest does the same again, for ever.")
        elif eip != behind:
            raise self.failed(f"goes on at {hex32(eip)}, and the instruction ends at {hex32(behind)}.")

    def step(self) -> None:
        """The part makes use of what it was given."""
        if self.part is not None:
            self.part.step(self.method)

    def failed(self, what: str) -> PartFailed:
        """The method at work has done something wrong."""
        assert self.part is not None
        return self.part.failed(f".{self.method}() {what}")


class _Ports(GuestPorts):
    """The ports of the guest's PC."""

    def __init__(self, owner: OutsideDevices, bus: PortBus) -> None:
        self._owner = owner
        self._bus = bus

    def read(self, port: int, size: int) -> int:
        self._check(port, size, 0)
        return self._bus.read(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        self._check(port, size, value)
        self._bus.write(port, size, value)

    def _check(self, port: object, size: object, value: object) -> None:
        owner = self._owner
        owner.step()
        if not (isinstance(port, int) and 0 <= port <= 0xFFFF and size in (1, 2, 4)):
            raise owner.failed(f"reaches for {size!r} bytes at port {port!r}; there are 1, 2 and 4, from 0 to 0xffff.")
        assert isinstance(size, int)
        if not (isinstance(value, int) and 0 <= value < 1 << 8 * size):
            raise owner.failed(f"writes {value!r} to port {port:#x}, which are not {size} bytes.")


class _Linear(LinearMemory):
    """Guest memory by linear addresses, as it is during one exit."""

    def __init__(self, owner: OutsideDevices, memory: GuestMemory, vcpu: GuestCpu) -> None:
        self._owner = owner
        self._memory = memory
        self._vcpu = vcpu
        self.paging: Paging | None = None

    def read(self, linear: int, size: int) -> bytes:
        return read_linear(self._memory, self._paging(), linear, size)

    def write(self, linear: int, data: bytes) -> None:
        write_linear(self._memory, self._paging(), linear, data)

    def check_write(self, linear: int, size: int) -> None:
        locate(self._memory, self._paging(), linear, size, write=True)

    def _paging(self) -> Paging:
        self._owner.step()
        if self.paging is None:
            self.paging = Paging.of(self._vcpu.read(*Paging.ITEMS))
        return self.paging
