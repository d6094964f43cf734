# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a BIOS service: the registers it came with, by the names programmers know, and those it returns.

A service returns flags on the stack, from where IRET takes them. Lives here: reading and writing; what the services do
is in `bios`.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi import vm
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EIP, ESI, ESP
from l4lab.abi.vm import ItemId
from l4lab.user.monitor.fault import MASK, Fault, Reply
from l4lab.user.monitor.guest_cpu import Registers
from l4lab.user.monitor.guest_memory import GuestMemory

ITEMS: Final = (ItemId.CS, ItemId.SS, ItemId.DS, ItemId.ES)
CARRY, ZERO = 1 << 0, 1 << 6


class _Part:
    """A register, or a part of one: some bits of a word of the register frame."""

    def __init__(self, register: int, bits: int, shift: int = 0) -> None:
        self.register, self.shift, self.mask = register, shift, (1 << bits) - 1

    def __get__(self, call: BiosCall, owner: type[BiosCall]) -> int:
        return call.registers[self.register] >> self.shift & self.mask

    def __set__(self, call: BiosCall, value: int) -> None:
        old = call.registers[self.register] & ~(self.mask << self.shift)
        call.registers[self.register] = (old | (value & self.mask) << self.shift) & MASK


class BiosCall:
    """A service call under way."""

    eax, ebx, ecx, edx = _Part(EAX, 32), _Part(EBX, 32), _Part(ECX, 32), _Part(EDX, 32)
    ax, bx, cx, dx = _Part(EAX, 16), _Part(EBX, 16), _Part(ECX, 16), _Part(EDX, 16)
    al, bl, cl, dl = _Part(EAX, 8), _Part(EBX, 8), _Part(ECX, 8), _Part(EDX, 8)
    ah, bh, ch, dh = _Part(EAX, 8, 8), _Part(EBX, 8, 8), _Part(ECX, 8, 8), _Part(EDX, 8, 8)
    si, di, bp = _Part(ESI, 16), _Part(EDI, 16), _Part(EBP, 16)

    def __init__(self, vector: int, fault: Fault, reply: Reply, segments: Registers, memory: GuestMemory) -> None:
        self.vector = vector
        self.fault, self.reply, self.segments, self.memory = fault, reply, segments, memory
        self.goes_elsewhere = False  # the service has put all registers into the reply itself
        self.is_unknown = False  # there is no such service
        self.registers = {index: fault.gpr(index) for index in (EAX, EBX, ECX, EDX, ESI, EDI, EBP)}
        self._flags_at = self.base(ItemId.SS) + (fault.gpr(ESP) + 4 & 0xFFFF)  # behind IP and CS
        self.flags = int.from_bytes(memory.read(self._flags_at, 2), "little")

    def base(self, segment: ItemId) -> int:
        """The linear address at which a segment begins."""
        return self.segments[segment][vm.BASE]

    @property
    def caller(self) -> str:
        """Where the call came from, for people."""
        cs, ip = self._return_to
        return f"{cs:04x}:{ip:04x}"

    @property
    def instruction(self) -> bytes:
        """The two bytes before the place to return to: INT and its number, if it was one."""
        cs, ip = self._return_to
        return self.memory.read((cs << 4) + (ip - 2 & 0xFFFF), 2)

    @property
    def _return_to(self) -> tuple[int, int]:
        return self.memory.half(self._flags_at - 2), self.memory.half(self._flags_at - 4)

    def point(self, segment: ItemId, value: int) -> None:
        """Load a segment register, as real mode does."""
        self.reply.write(segment, vm.SELECTOR, value)
        self.reply.write(segment, vm.BASE, value << 4)

    def flag(self, flag: int, value: bool) -> None:
        """A flag for the caller."""
        self.flags = self.flags | flag if value else self.flags & ~flag

    @property
    def failed(self) -> bool:
        """Does the caller find the flag of an error?"""
        return bool(self.flags & CARRY)

    def end(self, status: int) -> None:
        """Return an error, or 0 for none."""
        self.ah = status
        self.flag(CARRY, status != 0)

    def fail(self, ah: int) -> None:
        """Return an error."""
        self.ah = ah
        self.flag(CARRY, True)

    def succeed(self, ah: int = 0) -> None:
        """Return without an error."""
        self.ah = ah
        self.flag(CARRY, False)

    def refuse(self) -> None:
        """Return an error: there is no such function."""
        self.is_unknown = True
        self.flag(CARRY, True)

    def wait_at(self, eip: int) -> None:
        """Nothing can be returned yet: have the guest wait in the ROM, and call again."""
        self.reply.gpr(EIP, eip)
        self.goes_elsewhere = True

    def finish(self) -> None:
        """Put everything where the caller will find it, and go on behind the VMCALL."""
        self.memory.write(self._flags_at, self.flags.to_bytes(2, "little"))
        self.reply.gprs(self.registers)
        self.reply.skip(self.fault)
