# SPDX-License-Identifier: GPL-2.0-or-later
"""An instruction of the guest done in its stead, because the memory it touches is a device's, or is not there.

The CPU has checked the instruction already: it faulted for the guest-physical address alone. So what is left is to find
its operands, load, compute, and store. Capstone decodes; what becomes of the numbers is in `alu`.
Lives here: operands and the instructions that software uses on device memory: moves, arithmetic, bit tests, the stack,
string instructions. Does not live here: all other instructions (`scratch`), and which device answers
(`devices.memory_bus`).

Nothing is loaded or stored before all addresses of the instruction (of a repetition, of the element) are translated:
the guest's own page faults come first, and no device sees an instruction twice.
Source: Intel SDM vol. 1, "Operand Addressing"; vol. 2, the instructions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from l4lab.abi import vm
from l4lab.abi.frame import EAX, EBX, ECX, EDI, EFLAGS, ESI, ESP, FLAG_DF, of_gpr
from l4lab.abi.vm import ItemId, SegmentAttributes
from l4lab.devices.memory_bus import MemoryBus
from l4lab.user.monitor import alu
from l4lab.user.monitor.fault import MASK, Fault, Reply
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.paging import GuestPageFault, Paging, code_at, locate
from l4lab.user.monitor.scratch import Operand, Scratch, Unsupported

LONGEST_INSTRUCTION: Final = 15
CHUNK: Final = 4096  # repetitions done at one exit; a longer instruction is executed again for the rest

_NUMBERS: Final = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
_REGISTERS: Final[dict[str, tuple[int, int, int]]] = {  # index in the frame, first bit, bits
    **{f"e{name}": (of_gpr(n), 0, 32) for n, name in enumerate(_NUMBERS)},
    **{name: (of_gpr(n), 0, 16) for n, name in enumerate(_NUMBERS)},
    **{f"{letter}l": (of_gpr(n), 0, 8) for n, letter in enumerate("acdb")},
    **{f"{letter}h": (of_gpr(n), 8, 8) for n, letter in enumerate("acdb")},
}
_SEGMENT_PREFIXES: Final = {
    0x26: ItemId.ES, 0x2E: ItemId.CS, 0x36: ItemId.SS, 0x3E: ItemId.DS, 0x64: ItemId.FS, 0x65: ItemId.GS,
}  # fmt: skip
_REP, _REPNE = 0xF3, 0xF2
_MEMORY, _READS_AND_WRITES = 3, 3  # as Capstone has them: a kind of operand, and what an instruction does with it
_MODIFYING: Final = frozenset(("cmpxchg8b", "rol", "ror", "rcl", "rcr", "arpl"))  # of which Capstone does not know it
_XLAT: Final = 0xD7
_LARGEST_NUMBER: Final = 16
_LOAD_FAR: Final = frozenset(("lds", "les", "lfs", "lgs", "lss"))
_STATE: Final = {"fnsave": 108, "frstor": 108, "fxsave": 512, "fxrstor": 512}
LARGEST_FRAME: Final = 32  # bytes that an instruction pushes or pops: PUSHAD and POPAD
# String instructions by the first byte of their opcode, without the bit that tells bytes from words.
_MOVS, _CMPS, _STOS, _LODS, _SCAS = 0xA4, 0xA6, 0xAA, 0xAC, 0xAE
_STRINGS: Final = frozenset((_MOVS, _CMPS, _STOS, _LODS, _SCAS))

Pieces = list[tuple[int, int]]  # guest-physical address and size


class Emulator:
    """Does instructions of one guest."""

    def __init__(
        self, bus: MemoryBus, memory: GuestMemory, vcpu: GuestCpu, others: Callable[[Fault, Reply], None]
    ) -> None:
        """`others` answers faults of another kind that the instruction makes when the CPU executes it."""
        self.bus = bus
        self.memory = memory
        self.vcpu = vcpu
        self.scratch = Scratch(memory, vcpu, others)

    def handle(self, fault: Fault, reply: Reply) -> None:
        """Do the instruction that the guest stopped at, or deliver the page fault that it meets.

        Raises Unsupported, with what it is, if that cannot be done.
        """
        registers = cast("dict[ItemId, Mapping[int, int]]", dict(fault.items))  # by their numbers, which compare equal
        if missing := [item for item in Paging.ITEMS if item not in registers]:
            registers |= self.vcpu.read(*missing)
        instruction = decode(*code_at(self.memory, registers, fault.eip, LONGEST_INSTRUCTION))
        if instruction is None:
            if fault.words[1] - fault.eip & 0xFFF <= LONGEST_INSTRUCTION and not self.memory.holds(fault.words[1]):
                raise Unsupported("the fetch of an instruction")
            self.scratch.execute(fault, reply, self.bus, registers, ())
            return
        execution = _Execution(self, fault, registers, instruction)
        try:
            done = execution.run()
        except Unsupported:
            self.scratch.execute(fault, reply, self.bus, registers, execution.named())
            return
        except GuestPageFault as page_fault:
            execution.write_back(reply)
            reply.raise_page_fault(page_fault.address, page_fault.error_code)
            return
        execution.write_back(reply)
        if done:
            reply.skip(fault, instruction.size)


@functools.lru_cache(maxsize=1024)  # a guest that sizes its memory comes here with the same one a million times
def decode(code: bytes, width: int) -> Any:
    """The first instruction, as Capstone has it; None if the bytes are none. `width` is 16 or 32."""
    return next(_decoder(width).disasm(code, 0, 1), None)


@functools.cache
def _decoder(width: int) -> Any:
    import capstone  # the few guests that come here may wait for it to be loaded

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32 if width == 32 else capstone.CS_MODE_16)
    decoder.detail = True
    return decoder


class _Execution:
    """One instruction on its way."""

    def __init__(
        self, emulator: Emulator, fault: Fault, registers: dict[ItemId, Mapping[int, int]], instruction: Any
    ) -> None:
        self.bus, self.memory, self.vcpu = emulator.bus, emulator.memory, emulator.vcpu
        self.registers = registers
        self.instruction = instruction
        self.operands = instruction.operands
        self.text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        self.paging = Paging.of(registers)
        self.stack_mask = _mask(32 if SegmentAttributes.decode(registers[ItemId.SS][vm.ATTRIBUTES]).default_big else 16)
        self.address_mask = _mask(8 * instruction.addr_size)
        self.before = {index: fault.gpr(index) for index in (*map(of_gpr, range(8)), EFLAGS)}
        self.now = dict(self.before)

    def write_back(self, reply: Reply) -> None:
        """Leave in the reply what has changed in the registers."""
        reply.gprs({index: value for index, value in self.now.items() if value != self.before[index]})

    def named(self) -> list[Operand]:
        """The memory that the instruction names, and around the top of the stack, which it may use as well."""
        top = self.base(ItemId.SS) + (self.now[ESP] & self.stack_mask)
        operands = []
        for operand in self.operands:
            if operand.type == _MEMORY:
                size = self._size(operand)
                modified = operand.access == _READS_AND_WRITES or self.instruction.mnemonic.split()[-1] in _MODIFYING
                # Of the FPU's whole state not all is written.
                operands.append(Operand(self.linear(operand), size, modified or size > _LARGEST_NUMBER))
        if self.instruction.opcode[0] == _XLAT:
            offset = self.now[EBX] + (self.now[EAX] & 0xFF) & self.address_mask
            operands.append(Operand(self.base(self._segment(ItemId.DS)) + offset & MASK, 1))
        top = self.base(ItemId.SS) + (self.now[ESP] & self.stack_mask)
        return [*operands, Operand(top - LARGEST_FRAME & MASK, 2 * LARGEST_FRAME)]

    def _size(self, operand: Any) -> int:
        """Bytes of an operand, where Capstone is mistaken: the FPU's whole state, and far pointers."""
        name, opcode = self.instruction.mnemonic, self.instruction.opcode
        far = name in _LOAD_FAR or (opcode[0] == 0xFF and self.instruction.modrm >> 3 & 7 == 3)
        return _STATE.get(name, int(operand.size) + (2 if far else 0))

    # -- registers -----------------------------------------------------------------------------------------------------

    def get_register(self, name: str) -> int:
        index, first, bits = self._place(name)
        return self.now[index] >> first & _mask(bits)

    def set_register(self, name: str, value: int) -> None:
        index, first, bits = self._place(name)
        self.now[index] = self.now[index] & ~(_mask(bits) << first) | (value & _mask(bits)) << first

    def _place(self, name: str) -> tuple[int, int, int]:
        if name not in _REGISTERS:  # of a segment, or of the FPU
            raise Unsupported(self.text)
        return _REGISTERS[name]

    def add_to(self, index: int, step: int, mask: int) -> None:
        """Count a register that addresses use up or down: it wraps as addresses do."""
        self.now[index] = self.now[index] & ~mask | self.now[index] + step & mask

    def set_flags(self, flags: int, affected: int = alu.STATUS) -> None:
        self.now[EFLAGS] = self.now[EFLAGS] & ~affected | flags & affected

    # -- memory --------------------------------------------------------------------------------------------------------

    def linear(self, operand: Any, offset: int = 0) -> int:
        """The linear address of a memory operand; `offset` is added within the segment."""
        memory, name = operand.mem, self.instruction.reg_name
        base, index = (name(register) if register else "" for register in (memory.base, memory.index))
        address: int = memory.disp + offset
        address += self.get_register(base) if base else 0
        address += self.get_register(index) * memory.scale if index and index != "eiz" else 0
        usual = ItemId.SS if base in ("bp", "ebp", "esp") else ItemId.DS
        return self.base(self._segment(usual)) + (address & self.address_mask) & MASK

    def base(self, segment: ItemId) -> int:
        """Where a segment begins. Those that are seldom used do not come with the fault."""
        if segment not in self.registers:
            self.registers |= self.vcpu.read(segment)
        return self.registers[segment][vm.BASE]

    def _segment(self, usual: ItemId) -> ItemId:
        return _SEGMENT_PREFIXES.get(self.instruction.prefix[1], usual)

    def locate(self, linear: int, size: int, write: bool = False) -> Pieces:
        return locate(self.memory, self.paging, linear, size, write)

    def load(self, pieces: Pieces) -> int:
        data = b"".join(self._load(physical, size) for physical, size in pieces)
        return int.from_bytes(data, "little")

    def _load(self, physical: int, size: int) -> bytes:
        if not self.bus.holes(physical, size):
            return self.memory.read(physical, size)
        if size == 3:  # a part of a word that lies on two pages
            return self._load(physical, 1) + self._load(physical + 1, 2)
        return self.bus.load(physical, size).to_bytes(size, "little")

    def store(self, pieces: Pieces, value: int) -> None:
        data = value.to_bytes(sum(size for _, size in pieces), "little")
        for physical, size in pieces:
            self._store(physical, data[:size])
            data = data[size:]

    def _store(self, physical: int, data: bytes) -> None:
        if not self.bus.holes(physical, len(data)):
            self.memory.write(physical, data)
        elif len(data) == 3:
            self._store(physical, data[:1])
            self._store(physical + 1, data[1:])
        else:
            self.bus.store(physical, len(data), int.from_bytes(data, "little"))

    # -- instructions --------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Do it; False if it is repeated, and there is more to do."""
        opcode = self.instruction.opcode
        if opcode[0] & ~1 in _STRINGS:
            return self.string(opcode[0] & ~1)
        operands = [_Operand(self, operand) for operand in self.operands]
        mnemonic = self.instruction.mnemonic.split()[-1]  # behind "lock"
        match mnemonic, operands:
            case "mov" | "movzx", [target, source]:
                target.locate(write=True)
                source.locate()
                target.put(source.get())
            case "movsx", [target, source]:
                source.locate()
                target.put(_signed(source.get(), source.bits))
            case "push", [source]:
                self.push(source)
            case "pop", [target]:
                self.pop(target)
            case "xchg", [one, other]:
                one.locate(write=True)
                other.locate(write=True)
                held = one.get(), other.get()
                other.put(held[0])
                one.put(held[1])
            case _:
                self.arithmetic(mnemonic, operands)
        return True

    def arithmetic(self, mnemonic: str, operands: list[_Operand]) -> None:
        carry = self.now[EFLAGS] & alu.CF
        match mnemonic, operands:
            case name, [target, source] if name in alu.BINARY:
                target.locate(write=True)
                source.locate()
                result, flags = alu.BINARY[name](target.get(), source.get(), carry, target.bits)
                target.put(result)
                self.set_flags(flags)
            case name, [target, source] if name in alu.COMPARING:
                target.locate()
                source.locate()
                _, flags = alu.COMPARING[name](target.get(), source.get(), carry, target.bits)
                self.set_flags(flags)
            case name, [target] if name in alu.UNARY:
                target.locate(write=True)
                result, flags = alu.UNARY[name](target.get(), 0, carry, target.bits)
                target.put(result)
                self.set_flags(flags, alu.AFFECTED.get(name, alu.STATUS))
            case name, [target, source] if name in alu.BITS:
                self.bit_test(name, target, source)
            case "xadd", [target, source]:
                target.locate(write=True)
                held = target.get(), source.get()
                result, flags = alu.add(*held, 0, target.bits)
                source.put(held[0])
                target.put(result)
                self.set_flags(flags)
            case "cmpxchg", [target, source]:
                self.compare_and_exchange(target, source)
            case _:
                raise Unsupported(self.text)

    def bit_test(self, name: str, target: _Operand, source: _Operand) -> None:
        """BT and its kin: a bit's number in a register may lie outside of the operand, which then is elsewhere."""
        number = source.get()
        if source.is_register:
            words = _signed(number, source.bits) >> (4 if target.bits == 16 else 5)
            target.locate(write=name != "bt", offset=words * target.bits // 8)
        else:
            target.locate(write=name != "bt")
        bit = 1 << number % target.bits
        value = target.get()
        if name != "bt":
            target.put(alu.BITS[name](value, bit))
        self.set_flags(alu.CF if value & bit else 0, alu.CF)

    def compare_and_exchange(self, target: _Operand, source: _Operand) -> None:
        target.locate(write=True)
        accumulator, held = self.now[EAX] & _mask(target.bits), target.get()
        _, flags = alu.subtract(accumulator, held, 0, target.bits)
        target.put(source.get() if flags & alu.ZF else held)  # the CPU stores in either case
        if not flags & alu.ZF:
            self.now[EAX] = self.now[EAX] & ~_mask(target.bits) | held
        self.set_flags(flags)

    def push(self, source: _Operand) -> None:
        source.locate()
        top = self.now[ESP] - source.bits // 8 & self.stack_mask
        pieces = self.locate(self.base(ItemId.SS) + top & MASK, source.bits // 8, write=True)
        self.store(pieces, source.get())
        self.add_to(ESP, -source.bits // 8, self.stack_mask)

    def pop(self, target: _Operand) -> None:
        """The address of the target is computed with the stack pointer as it is afterwards."""
        size = target.bits // 8
        pieces = self.locate(self.base(ItemId.SS) + (self.now[ESP] & self.stack_mask) & MASK, size)
        before = self.now[ESP]
        self.add_to(ESP, size, self.stack_mask)
        try:
            target.locate(write=True)
        except GuestPageFault:
            self.now[ESP] = before
            raise
        target.put(self.load(pieces))

    def string(self, kind: int) -> bool:
        """A string instruction with its repetition, up to CHUNK elements; False if there are more."""
        size = self.operands[0].size
        repeats = self.instruction.prefix[0] in (_REP, _REPNE)
        mask = self.address_mask
        for _ in range(CHUNK):
            if repeats and not self.now[ECX] & mask:
                return True
            self.element(kind, size)
            if not repeats:
                return True
            self.add_to(ECX, -1, mask)
            if kind in (_CMPS, _SCAS) and bool(self.now[EFLAGS] & alu.ZF) != (self.instruction.prefix[0] == _REP):
                return True
        return not self.now[ECX] & mask

    def element(self, kind: int, size: int) -> None:
        """One element; the index registers move on."""
        mask, bits = self.address_mask, 8 * size
        step = -size if self.now[EFLAGS] & FLAG_DF else size
        source = self.base(self._segment(ItemId.DS)) + (self.now[ESI] & mask) & MASK
        target = self.base(ItemId.ES) + (self.now[EDI] & mask) & MASK
        accumulator = self.now[EAX] & _mask(bits)
        match kind:
            case 0xA4:  # MOVS
                pieces = self.locate(target, size, write=True)
                self.store(pieces, self.load(self.locate(source, size)))
            case 0xAA:  # STOS
                self.store(self.locate(target, size, write=True), accumulator)
            case 0xAC:  # LODS
                self.now[EAX] = self.now[EAX] & ~_mask(bits) | self.load(self.locate(source, size))
            case 0xAE:  # SCAS
                _, flags = alu.subtract(accumulator, self.load(self.locate(target, size)), 0, bits)
                self.set_flags(flags)
            case _:  # CMPS
                pieces = self.locate(target, size)
                _, flags = alu.subtract(self.load(self.locate(source, size)), self.load(pieces), 0, bits)
                self.set_flags(flags)
        if kind not in (_STOS, _SCAS):
            self.add_to(ESI, step, mask)
        if kind != _LODS:
            self.add_to(EDI, step, mask)


class _Operand:
    """A register, a number, or a place in memory, which has to be located before it is used."""

    def __init__(self, execution: _Execution, operand: Any) -> None:
        from capstone.x86 import X86_OP_IMM, X86_OP_REG

        self.execution = execution
        self.operand = operand
        self.bits = 8 * operand.size
        self.is_register = operand.type == X86_OP_REG
        self.is_number = operand.type == X86_OP_IMM
        self.pieces: Pieces = []

    def locate(self, write: bool = False, offset: int = 0) -> None:
        """Find the place in memory, if it is one; a register has to be one that can be named."""
        if self.is_register:
            self.execution.get_register(self.execution.instruction.reg_name(self.operand.reg))
        elif not self.is_number:
            linear = self.execution.linear(self.operand, offset)
            self.pieces = self.execution.locate(linear, self.bits // 8, write)

    def get(self) -> int:
        if self.is_number:
            return int(self.operand.imm) & _mask(self.bits)
        if self.is_register:
            return self.execution.get_register(self.execution.instruction.reg_name(self.operand.reg))
        return self.execution.load(self.pieces)

    def put(self, value: int) -> None:
        if self.is_register:
            self.execution.set_register(self.execution.instruction.reg_name(self.operand.reg), value)
        else:
            self.execution.store(self.pieces, value & _mask(self.bits))


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def _signed(value: int, bits: int) -> int:
    return value - (value >> bits - 1 << bits)
