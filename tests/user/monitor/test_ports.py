# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O instructions: the monitor's against a model that goes byte by byte."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import vm
from l4lab.abi.frame import EAX, ECX, EDI, EIP, ESI, FLAG_DF
from l4lab.abi.vm import ExitReason, IoAccess, ItemId
from l4lab.devices.device import Device, PortBus
from l4lab.user.monitor.fault import Reply
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.guest_ports import CHUNK, PortIo
from l4lab.user.monitor.start import CODE_32, DATA_32
from tests.user.monitor.parts import fault, full, guest_memory, still_vcpu

SIZE = 1 << 17
CODE_AT = 0x1000  # EIP of the tests' faults
PORT = 0x300
PREFIX = b"\x67"
CR0_PG = 1 << 31


class Tape(Device):
    """Gives ascending numbers and remembers what it is told."""

    name = "tape"
    ports = (range(PORT, PORT + 4),)
    widest = 4

    def __init__(self) -> None:
        self.given = 0x01020304
        self.told: list[tuple[int, int]] = []

    def read(self, port: int, size: int) -> int:
        self.given = self.given * 0x01010101 + 1 & 0xFFFF_FFFF
        return self.given & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        self.told.append((size, value))


def machine(cr0: int = 1, cr3: int = 0) -> tuple[PortIo, GuestMemory, Tape]:
    """The part under test, with its guest's memory and the one device."""
    memory, tape = guest_memory(SIZE), Tape()
    vcpu = still_vcpu(
        {
            ItemId.CREGS: full(ItemId.CREGS, {vm.CR0: cr0, vm.CR3: cr3}),
            ItemId.CS: full(ItemId.CS, {vm.ATTRIBUTES: CODE_32}),
            ItemId.SS: full(ItemId.SS, {vm.ATTRIBUTES: DATA_32}),
        }
    )
    return PortIo(PortBus([tape]), vcpu, memory), memory, tape


def qualify(width: int, *, is_in: bool, string: bool = False, rep: bool = False) -> int:
    return IoAccess.make(port=PORT, size=width - 1, is_in=is_in, string=string, rep=rep)


@given(width=st.sampled_from([1, 2, 4]), eax=st.integers(0, 0xFFFF_FFFF))
def test_in_changes_only_the_register_it_names(width: int, eax: int) -> None:
    """Does IN to AL or AX leave the rest of EAX alone, and OUT send exactly as many bytes?"""
    io, _, tape = machine()
    reply = Reply()
    io.handle(fault(ExitReason.IO_INSTRUCTION, {EAX: eax}, qualification=qualify(width, is_in=True), length=1), reply)
    io.handle(fault(ExitReason.IO_INSTRUCTION, {EAX: eax}, qualification=qualify(width, is_in=False)), Reply())

    low = (1 << 8 * width) - 1
    assert {EAX: eax & ~low | tape.given & low, EIP: 0x1001} == reply.items[ItemId.GPREGS]
    assert [(width, eax & low)] == tape.told


@settings(max_examples=300, deadline=None)
@given(
    width=st.sampled_from([1, 2, 4]),
    is_in=st.booleans(),
    rep=st.booleans(),
    down=st.booleans(),
    narrow=st.booleans(),
    base=st.integers(0, 0x4000),
    index=st.integers(0x4000, 0xFFFF) | st.just(0xFFFE),
    high=st.integers(0, 3),
    count=st.integers(0, 40),
)
def test_string_instructions_do_what_their_loop_would(
    width: int, is_in: bool, rep: bool, down: bool, narrow: bool, base: int, index: int, high: int, count: int
) -> None:
    """For both directions, address sizes and DF: same memory, same device traffic, same registers as one by one?"""
    io, memory, tape = machine()
    memory.write(0, bytes(range(256)) * (SIZE // 256))
    memory.write(CODE_AT, PREFIX + b"\xf3\x6c" if narrow else b"\xf3\x6c")
    model_memory, model_tape = bytearray(memory.read(0, SIZE)), Tape()
    mask = 0xFFFF if narrow else 0xFFFF_FFFF
    register = EDI if is_in else ESI
    first = index | (high << 16 if narrow else 0)  # with 16-bit addresses the upper half must not matter
    counter = count | (high << 16 if narrow else 0)
    met = fault(
        ExitReason.IO_INSTRUCTION,
        {register: first, ECX: counter},
        qualification=qualify(width, is_in=is_in, string=True, rep=rep),
        length=3,
        info=base + (first & mask),
        eflags=2 | (FLAG_DF if down else 0),
    )
    reply = Reply()
    io.handle(met, reply)

    offset = first & mask
    for _ in range(count if rep else 1):
        if is_in:
            value = model_tape.read(PORT, width).to_bytes(width, "little")
            model_memory[base + offset : base + offset + width] = value
        else:
            at = base + offset
            model_tape.write(PORT, width, int.from_bytes(model_memory[at : at + width], "little"))
        offset = offset + (-width if down else width) & mask
    after = {register: first & ~mask | offset, EIP: CODE_AT + 3} | ({ECX: counter & ~mask} if rep else {})

    assert after == reply.items[ItemId.GPREGS]
    assert bytes(model_memory[:SIZE]) == memory.read(0, SIZE)
    assert (model_tape.told, model_tape.given) == (tape.told, tape.given)


def test_a_long_instruction_is_done_in_pieces() -> None:
    """Does REP with a huge count come back with EIP where it was and the rest of the count?"""
    io, _, tape = machine()
    reply = Reply()
    io.handle(
        fault(
            ExitReason.IO_INSTRUCTION,
            {ECX: 1 << 30, ESI: 0},
            qualification=qualify(1, is_in=False, string=True, rep=True),
        ),
        reply,
    )

    assert {ESI: CHUNK, ECX: (1 << 30) - CHUNK} == reply.items[ItemId.GPREGS]
    assert CHUNK == len(tape.told)


def test_a_missing_page_of_the_guest_is_the_guests_page_fault() -> None:
    """Does INS into a page that the guest has not mapped move what it can, and then raise the guest's page fault?"""
    io, memory, tape = machine(cr0=1 | CR0_PG, cr3=0x2000)
    memory.set_word(0x2000, 0x3007)
    memory.set_word(0x3000 + 4 * 1, 0x1007)  # the code
    memory.set_word(0x3000 + 4 * 8, 0x9007)  # the first page of the buffer; the second is missing
    reply = Reply()
    io.handle(
        fault(
            ExitReason.IO_INSTRUCTION,
            {ECX: 8, EDI: 0x8FFE},
            qualification=qualify(1, is_in=True, string=True, rep=True),
            info=0x8FFE,
        ),
        reply,
    )

    assert {EDI: 0x9000, ECX: 6} == reply.items[ItemId.GPREGS]
    assert {vm.CR2: 0x9000} == reply.items[ItemId.CREGS]
    assert {vm.ENTRY_INFO: 0x8000_0B0E, vm.ENTRY_EEC: 2} == reply.items[ItemId.NONREGEXC]
    assert tape.given & 0xFF == memory.read(0x9FFF, 1)[0]
