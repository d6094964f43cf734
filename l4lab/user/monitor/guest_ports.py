# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O instructions of the guest: IN, OUT, and the string forms INS and OUTS with their repetition.

Lives here: taking the exit apart and moving the data. The devices are behind the `PortBus`. Most exits of a guest come
here, a console's byte at a time.
Source: Intel SDM vol. 2, instructions IN, OUT, INS, OUTS; vol. 3, exit qualification for I/O instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from l4lab.abi import vm
from l4lab.abi.frame import EAX, ECX, EDI, ESI, FLAG_DF
from l4lab.abi.vm import IoAccess, ItemId, SegmentAttributes
from l4lab.devices.device import PortBus
from l4lab.user.monitor.fault import MASK, Fault, Reply
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.paging import (
    GuestPageFault,
    Paging,
    locate,
    locate_some,
    read_code,
    read_linear,
    write_pieces,
)

CHUNK: Final = 4096  # repetitions done at one exit; a longer instruction is executed again for the rest

_ADDRESS_SIZE_PREFIX: Final = 0x67
_PREFIXES: Final = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))


class PortIo:
    """Does the guest's I/O instructions."""

    def __init__(self, ports: PortBus, vcpu: GuestCpu, memory: GuestMemory) -> None:
        self.ports = ports
        self.vcpu = vcpu
        self.memory = memory

    def handle(self, fault: Fault, reply: Reply) -> None:
        """An I/O exit."""
        access = IoAccess.decode(fault.words[1])
        if access.string:
            self._string(fault, reply, access)
            return
        port, size = access.port, access.width
        eax = fault.gpr(EAX)
        if access.is_in:
            value = self.ports.read(port, size)
            if size < 4:
                low = (1 << 8 * size) - 1
                value = eax & ~low | value & low  # the rest of EAX keeps its value
            reply.gpr(EAX, value)
        else:
            self.ports.write(port, size, eax & (1 << 8 * size) - 1)
        reply.skip(fault)

    def _string(self, fault: Fault, reply: Reply, access: IoAccess) -> None:
        registers = self.vcpu.read(*Paging.ITEMS)
        code, _ = read_code(self.memory, self.vcpu, fault.eip, max(fault.instruction_length, 1))
        wide = bool(SegmentAttributes.decode(registers[ItemId.CS][vm.ATTRIBUTES]).default_big)
        transfer = StringIo.of(fault, access, 4 if wide != _has_address_size_prefix(code) else 2)
        self._move(transfer, Paging.of(registers), reply)
        transfer.write_back(fault, reply)

    def _move(self, transfer: StringIo, paging: Paging, reply: Reply) -> None:
        """Move up to CHUNK elements; at a page fault of the guest, what was moved before stays done."""
        left = min(transfer.count, CHUNK)
        if transfer.step > 0:
            left -= self._move_block(transfer, paging, left)
        for _ in range(left):
            try:
                self._move_one(transfer, paging)
            except GuestPageFault as page_fault:
                reply.raise_page_fault(page_fault.address, page_fault.error_code)
                return
            transfer.advance()

    def _move_block(self, transfer: StringIo, paging: Paging, most: int) -> int:
        """Move as many elements as can be moved at once: up to a page fault, or where addresses wrap. How many."""
        port, width = transfer.access.port, transfer.access.width
        most = min(most, (transfer.mask + 1 - transfer.index) // width)
        is_in = bool(transfer.access.is_in)
        pieces = locate_some(self.memory, paging, transfer.linear, most * width, write=is_in)
        count = sum(size for _, size in pieces) // width
        if count == 0:
            return 0
        if is_in:
            write_pieces(self.memory, pieces, self.ports.read_block(port, width, count))
        else:
            data = b"".join(self.memory.read(physical, size) for physical, size in pieces)
            self.ports.write_block(port, width, data[: count * width])
        transfer.advance(count)
        return count

    def _move_one(self, transfer: StringIo, paging: Paging) -> None:
        linear, width = transfer.linear, transfer.access.width
        if transfer.access.is_in:
            pieces = locate(self.memory, paging, linear, width, write=True)  # may fault, before the device is read
            write_pieces(self.memory, pieces, self.ports.read(transfer.access.port, width).to_bytes(width, "little"))
        else:
            data = read_linear(self.memory, paging, linear, width)
            self.ports.write(transfer.access.port, width, int.from_bytes(data, "little"))


@dataclass(slots=True)
class StringIo:
    """An INS or OUTS under way. Index and count are as wide as addresses are, and wrap there."""

    access: IoAccess
    base: int  # of the buffer's segment
    index: int  # ESI or EDI, within the segment
    count: int  # elements still to be moved
    step: int  # from one element to the next; negative with DF
    mask: int  # of index and count

    @classmethod
    def of(cls, fault: Fault, access: IoAccess, address_size: int) -> StringIo:
        """As the exit found it: MR3 is the linear address of the first element."""
        mask = (1 << 8 * address_size) - 1
        index = (fault.edi if access.is_in else fault.esi) & mask
        step = -access.width if fault.eflags & FLAG_DF else access.width
        return cls(access, fault.info - index & MASK, index, fault.ecx & mask if access.rep else 1, step, mask)

    @property
    def linear(self) -> int:
        """Linear address of the next element."""
        return self.base + self.index & MASK

    def advance(self, moved: int = 1) -> None:
        """Elements were moved."""
        self.index = self.index + moved * self.step & self.mask
        self.count -= moved

    def write_back(self, fault: Fault, reply: Reply) -> None:
        """Leave index, count and EIP as the CPU does: EIP moves on when nothing is left to do."""
        number, old = (EDI, fault.edi) if self.access.is_in else (ESI, fault.esi)
        reply.gpr(number, old & ~self.mask | self.index)
        if self.access.rep:
            reply.gpr(ECX, fault.ecx & ~self.mask | self.count)
        if self.count == 0:
            reply.skip(fault)


def _has_address_size_prefix(code: bytes) -> bool:
    for byte in code:
        if byte == _ADDRESS_SIZE_PREFIX:
            return True
        if byte not in _PREFIXES:
            break
    return False
