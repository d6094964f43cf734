# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions on device memory. The oracle is the machine's CPU, to which the same memory is plain RAM."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import vm
from l4lab.abi.frame import EFLAGS, EIP, ESP, FLAG_DF, REGISTER_NAMES
from l4lab.abi.vm import ExitReason, ItemId
from l4lab.devices.device import Device
from l4lab.devices.memory_bus import MemoryBus
from l4lab.user.monitor import alu
from l4lab.user.monitor.emulate import Emulator
from l4lab.user.monitor.fault import MASK, Reply
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.start import CODE_32, DATA_32, REAL_16
from tests.machine.guestbench import CODE, DATA, GUEST_SIZE, STACK, Guest
from tests.user.monitor.parts import Ram, fault, full, still_vcpu

WORDS_32 = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")
BY_SIZE = {
    1: ("al", "cl", "dl", "bl", "ah", "ch", "dh", "bh"),
    2: ("ax", "cx", "dx", "bx", "bp", "si", "di"),
    4: WORDS_32,
}
FS_BASE = 0x1230
SIZES = {1: "byte", 2: "word", 4: "dword"}
FORMS_16 = (("bx", "si"), ("bx", "di"), ("bp", "si"), ("bp", "di"), ("si", ""), ("di", ""), ("bp", ""), ("bx", ""))
BINARY = ("add", "adc", "sub", "sbb", "and", "or", "xor", "cmp", "test", "mov", "xchg", "xadd", "cmpxchg")
UNDEFINED_BY_BT = alu.STATUS & ~alu.CF & ~alu.ZF


class RamDevice(Device):
    """A device that is memory, and notes that it was asked."""

    name = "ram device"
    widest = 4

    def __init__(self, contents: bytes) -> None:
        self.memory = (range(DATA, DATA + len(contents)),)
        self.contents = bytearray(contents)
        self.asked = 0

    def load(self, address: int, size: int) -> int:
        self.asked += 1
        at = address - DATA
        return int.from_bytes(self.contents[at : at + size], "little")

    def store(self, address: int, size: int, value: int) -> None:
        self.asked += 1
        at = address - DATA
        self.contents[at : at + size] = value.to_bytes(size, "little")


@dataclass
class Case:
    """An instruction, and the registers it begins with."""

    source: str
    bits: int
    registers: dict[str, int]  # 32-bit names; the others are 0
    flags: int


def frame_index(name: str) -> int:
    return REGISTER_NAMES.index(name.upper())


def by_cpu(case: Case, contents: bytes) -> tuple[list[int], bytes]:
    """Registers and memory after the CPU has done it."""
    guest = Guest("native", f"{case.source}\n hlt", bits=case.bits)
    guest.memory.write(DATA, contents)
    selector, _, limit, attributes = guest.vmcs.segment("fs")
    guest.vmcs.set_segment("fs", selector, FS_BASE, limit, attributes)
    for name, value in case.registers.items():
        guest.frame[frame_index(name)] = value
    guest.frame[EFLAGS] = 2 | case.flags
    assert ExitReason.HLT is guest.enter(), case
    return guest.frame.tolist(), bytes(guest.memory.u8[:GUEST_SIZE])


def by_monitor(case: Case, contents: bytes) -> tuple[list[int], bytes, int]:
    """The same by the monitor, the data being a device's; and how often the device was asked."""
    guest = Guest("native", f"{case.source}\n hlt", bits=case.bits)  # for memory and registers; it does not run
    ram = Ram(GUEST_SIZE)
    ram.bytes[:] = guest.memory.u8[:GUEST_SIZE]
    device = RamDevice(contents)
    memory = GuestMemory(ram, GUEST_SIZE, window=0)
    code, data = (CODE_32, DATA_32) if case.bits == 32 else (REAL_16, REAL_16)
    vcpu = still_vcpu(
        {
            ItemId.CREGS: full(ItemId.CREGS, {vm.CR0: 0x11 if case.bits == 32 else 0x10}),
            **{item: full(item, {vm.ATTRIBUTES: data}) for item in vm.SEGMENTS},
            ItemId.FS: full(ItemId.FS, {vm.ATTRIBUTES: data, vm.BASE: FS_BASE}),
            ItemId.CS: full(ItemId.CS, {vm.ATTRIBUTES: code}),
        }
    )
    before = {ESP: guest.frame[ESP]} | {frame_index(name): value for name, value in case.registers.items()}
    frame = before | {EIP: CODE, EFLAGS: 2 | case.flags}
    reply = Reply()
    met = fault(ExitReason.EXCEPTION_OR_NMI, frame, eip=CODE, eflags=2 | case.flags)
    Emulator(MemoryBus([device]), memory, vcpu, lambda *_: None).handle(met, reply)
    after = [frame.get(index, 0) for index in range(10)]
    for index, value in reply.items[ItemId.GPREGS].items():
        after[index] = value
    ram.bytes[DATA : DATA + len(contents)] = device.contents
    return after, bytes(ram.bytes), device.asked


def compare(case: Case, seed: int, ignored: int = 0) -> None:
    contents = random.Random(seed).randbytes(0x2000)
    registers, memory = by_cpu(case, contents)
    found, found_memory, asked = by_monitor(case, contents)
    for each in (registers, found):
        each[EFLAGS] &= ~ignored

    assert [f"{name} {value:#x}" for name, value in zip(REGISTER_NAMES, registers, strict=True)] == [
        f"{name} {value:#x}" for name, value in zip(REGISTER_NAMES, found, strict=True)
    ], case
    assert memory == found_memory, case
    assert asked > 0


@st.composite
def places(draw: st.DrawFn, registers: dict[str, int], bits: int) -> str:
    """A memory operand in any form of address, that leads to the data; its registers get what that takes."""
    target = draw(st.integers(DATA + 64, DATA + 0x1F80))
    segment = draw(st.sampled_from(("", "fs:")))
    target -= FS_BASE if segment else 0
    if draw(st.booleans()) or bits == 16:
        base, index = draw(st.sampled_from(FORMS_16))
        total = registers["e" + base] + (registers["e" + index] if index else 0)
        displacement = target - total & 0xFFFF
        # Keystone takes the displacement as signed.
        displacement -= displacement >> 15 << 16
        return (
            f"{segment}[{base}{' + ' + index if index else ''} {'-' if displacement < 0 else '+'} {abs(displacement)}]"
        )
    base = draw(st.sampled_from(("", "esp", *WORDS_32)))
    index = draw(st.sampled_from(("", *WORDS_32)))
    scale = draw(st.sampled_from((1, 2, 4, 8)))
    total = (registers[base] if base else 0) + (registers[index] * scale if index else 0)
    displacement = target - total & MASK
    displacement -= displacement >> 31 << 32
    parts = [*([base] if base else []), *([f"{index}*{scale}"] if index else [])]
    if not parts:
        return f"{segment}[{displacement & MASK}]"
    return f"{segment}[{' + '.join(parts)} {'-' if displacement < 0 else '+'} {abs(displacement)}]"


words = st.integers(0, MASK) | st.sampled_from((0, 1, 0x7F, 0x80, 0x7FFF_FFFF, 0x8000_0000, MASK))
seeds = st.integers(0, 1 << 30)
flags = st.integers(0, alu.STATUS).map(lambda value: value & alu.STATUS)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), bits=st.sampled_from((16, 32)), size=st.sampled_from((1, 2, 4)), seed=seeds)
def test_what_the_monitor_does_is_what_the_cpu_does(data: st.DataObject, bits: int, size: int, seed: int) -> None:
    """Moves, arithmetic, bit tests and the stack, by any form of address: same registers, flags and memory?"""
    draw = data.draw
    registers = {name: draw(words) for name in WORDS_32} | {"esp": STACK + 0x800}
    place = draw(places(registers, bits))
    memory = f"{SIZES[size]} ptr {place}"
    register = draw(st.sampled_from(BY_SIZE[size]))
    number = draw(st.integers(0, (1 << 8 * size - 1) - 1))
    ignored = 0
    match draw(st.sampled_from(("to", "from", "number", "one", "extend", "stack", "bits"))):
        case "to":
            source = f"{draw(st.sampled_from(BINARY))} {memory}, {register}"
        case "from":
            source = f"{draw(st.sampled_from((*BINARY[:7], 'cmp', 'mov', 'xchg')))} {register}, {memory}"
        case "number":
            source = f"{draw(st.sampled_from((*BINARY[:9], 'mov')))} {memory}, {number}"
        case "one":
            source = f"{draw(st.sampled_from(('inc', 'dec', 'neg', 'not')))} {memory}"
        case "extend":
            smaller = min(size, 2)
            wide = draw(st.sampled_from(BY_SIZE[4] if smaller == 2 else BY_SIZE[2] + BY_SIZE[4]))
            source = f"{draw(st.sampled_from(('movzx', 'movsx')))} {wide}, {SIZES[smaller]} ptr {place}"
        case "stack":
            source = f"{draw(st.sampled_from(('push', 'pop')))} {SIZES[max(size, 2)]} ptr {place}"
        case _:
            size = max(size, 2)
            by = draw(st.integers(0, 127))
            source = f"{draw(st.sampled_from(('bt', 'bts', 'btr', 'btc')))} {SIZES[size]} ptr {place}, {by}"
            ignored = UNDEFINED_BY_BT
    compare(Case(source, bits, registers, draw(flags)), seed, ignored)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(("bt", "bts", "btr", "btc")),
    size=st.sampled_from((2, 4)),
    number=st.integers(-3000, 3000),
    seed=seeds,
)
def test_a_bit_may_lie_far_from_its_operand(name: str, size: int, number: int, seed: int) -> None:
    """With the bit's number in a register, negative ones too: is it found where the CPU finds it?"""
    register = {2: "cx", 4: "ecx"}[size]
    case = Case(f"{name} {SIZES[size]} ptr [{DATA + 0x800}], {register}", 32, {"ecx": number & MASK}, 0)
    compare(case, seed, UNDEFINED_BY_BT)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(("movs", "stos", "lods", "scas", "cmps")),
    size=st.sampled_from("bwd"),
    prefix=st.sampled_from(("", "rep ", "repne ")),
    bits=st.sampled_from((16, 32)),
    down=st.booleans(),
    count=st.integers(1, 40),
    to=st.integers(DATA + 0x200, DATA + 0x1D00),
    outside=st.booleans(),
    eax=words,
    seed=seeds,
)
def test_strings_go_as_far_as_the_cpu_goes(
    kind: str, size: str, prefix: str, bits: int, down: bool, count: int, to: int, outside: bool, eax: int, seed: int
) -> None:
    """With each repetition and direction, within the device or between it and RAM: same registers, flags and memory?"""
    if prefix == "repne " and kind not in ("scas", "cmps"):
        prefix = "rep "
    source = 0x18000 - 0x10000 * (bits == 16) if outside and kind in ("movs", "cmps") else to + 0x80
    registers = {"esi": source, "edi": to, "ecx": count, "eax": eax}
    if kind == "lods":
        registers["esi"] = to
    compare(Case(f"cld\n {prefix}{kind}{size}".removeprefix("cld\n "), bits, registers, FLAG_DF * down), seed)
