# SPDX-License-Identifier: GPL-2.0-or-later
"""Register items of a virtual CPU: in faults, in replies and by ExchangeRegisters; and what a write of each does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.calls import ExregsControl
from l4lab.abi.message import CtrlXferItem, Message, typed_items
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.abi.vm import ITEM_REGISTERS, ExitReason, ItemId, fault_id_of, full_mask, reason_of
from l4lab.testing import Root, run
from l4lab.user.asm import assemble
from l4lab.user.l4 import L4

from .test_vm import CODE, EBX, EIP, GUEST, HLT, IO, KIP, UTCB, Vm, items, monitor, start_state

R = ExitReason
I = ItemId  # noqa: E741
PI = struct.unpack("<2IH", bytes.fromhex("35c26821a2da0fc90040"))  # significand, sign and exponent of FLDPI
SSE = {5: 1 << 9}  # CR4.OSFXSR


def in_guest(steps: object, source: str = "hlt") -> Vm:
    """Do something with a virtual CPU that stands at the exit of `source`; afterwards it is gone."""
    kept: list[Vm] = []

    def do(vm: Vm) -> None:
        kept.append(vm)
        steps(vm)  # type: ignore[operator]

    monitor(source, do)
    return kept[0]


# -- write rules


@pytest.mark.parametrize(
    ("item", "written", "read"),
    [
        (I.GPREGS, {1: 0xFFFF_FFFF}, {1: 0xFFFF_FFFF}),
        (I.GPREGS, {1: 0}, {1: 2}),
        (I.CREGS, {0: 0}, {0: 0x10}),
        (I.CREGS, {0: 0xFFFF_FFFF}, {0: 0xE005_003F}),
        (I.CREGS, {5: 0xFFFF_FFFF}, {5: 0x7DF}),
        (I.CREGS, {5: 0}, {5: 0x10}),
        (I.DREGS, {4: 0, 5: 0}, {4: 0xFFFF_0FF0, 5: 0x400}),
        (I.DREGS, {4: 0xFFFF_FFFF, 5: 0xFFFF_FFFF}, {4: 0xFFFF_EFFF, 5: 0xFFFF_2FFF}),
        (I.NONREGEXC, {6: 1, 7: 2, 8: 3, 9: 4}, {6: 0, 7: 0, 8: 0, 9: 0}),
        (I.EXECCTRL, {0: 0, 1: 0}, {0: 0x1F, 1: 0x0500_61F2}),
        (I.EXECCTRL, {0: 0xFFFF_FFFF, 1: 0xFFFF_FFFF}, {0: 0x1F, 1: 0x65B9_FFFE}),
        (I.OTHERREGS, {3: 1, 4: 2, 5: 3, 6: 4}, {3: 1, 4: 2, 5: 3, 6: 4}),
        (I.OTHERREGS, {8: 0xFFFF_FFFF}, {8: 15}),
        (I.CS, {0: 0x1_0008, 3: 0xFFFF_FFFF}, {0: 8, 3: 0x1_F0FF}),
        (I.FPUCTRL, {0: 0x1_0F7F, 1: 0xFFFF_FFFF, 2: 0x1AA, 3: 0x1_9FC0}, {0: 0xF7F, 1: 0xFFFF, 2: 0xAA, 3: 0x9FC0}),
    ],
    ids=lambda value: value.name if isinstance(value, ItemId) else "",
)
def test_what_a_write_leaves(item: ItemId, written: dict[int, int], read: dict[int, int]) -> None:
    """Do bits that are fixed, forced or missing read as what they are, whatever is written?"""
    got: list[int] = []

    def steps(vm: Vm) -> None:
        vm.write(item, written)
        got.extend(vm.read(item))

    in_guest(steps)

    assert read == {index: got[index] for index in read}


# -- the FPU


def test_the_fpu_of_a_guest_can_be_read() -> None:
    """Do x87 and SSE registers, their control words and what is in use read as the guest made them?"""
    got: dict[ItemId, list[int]] = {}

    def steps(vm: Vm) -> None:
        vm.write(I.CREGS, SSE)
        vm.skip()
        got.update({item: vm.read(item) for item in (I.FPUCTRL, I.X87REGS, I.XMMLOW, I.XMMHIGH)})

    in_guest(
        steps,
        "hlt\n fninit\n fld1\n fldpi\n movd xmm1, esp\n pshufd xmm1, xmm1, 0\n mov edi, 5\n movd xmm6, edi\n hlt",
    )

    assert [0x37F, 6 << 11, 0b1100_0000, 0x1F80] == got[I.FPUCTRL]
    assert [*PI[:2], 0, 1 << 31] == got[I.X87REGS][12:16]
    assert PI[2] | 0x3FFF << 16 == got[I.X87REGS][19]
    assert [0x9000] * 4 == got[I.XMMLOW][4:8]
    assert [5] == [word for word in got[I.XMMHIGH] if word] == got[I.XMMHIGH][8:9]


def test_the_fpu_of_a_guest_can_be_written() -> None:
    """Does a guest calculate with the registers and the rounding that its monitor wrote?"""
    memory: list[bytes] = []

    def steps(vm: Vm) -> None:
        vm.write(I.CREGS, SSE)
        vm.write(I.FPUCTRL, {0: 0xB7F, 1: 6 << 11, 2: 0b1100_0000, 3: 0x5F80})  # both round up
        vm.write(I.X87REGS, {12: PI[0], 13: PI[1], 19: PI[2] | 0x3FFF << 16, 14: 0, 15: 1 << 31})
        vm.write(I.XMMLOW, {4: 0x3F80_0001})
        vm.write(I.XMMHIGH, {15: 0xABCD})
        vm.skip()
        memory.append(vm.r.load(GUEST + 0x7000, 32))

    in_guest(
        steps,
        "hlt\n frndint\n fistp dword ptr [0x7000]\n fistp dword ptr [0x7004]\n cvtss2si eax, xmm1\n"
        "mov [0x7008], eax\n movups [0x7010], xmm7\n hlt",
    )

    assert struct.pack("<8I", 4, 1, 2, 0, 0, 0, 0, 0xABCD) == memory[0]


def test_each_virtual_cpu_has_an_fpu_of_its_own() -> None:
    """Does what one guest leaves in its FPU stay out of another's?"""
    got: list[list[int]] = []

    def root(r: Root) -> None:
        r.store(GUEST + CODE, assemble("fld1\n hlt", CODE).code)
        for _ in range(2):
            vm = Vm(r, r.create(r.space(KIP, UTCB, control=1 << 30)))
            got.append(vm.read(I.X87REGS))
            vm.go(start_state().append_registers(I.EXECCTRL, {1: HLT | IO, 2: 0}))
            got.append(vm.read(I.X87REGS))

    run(root)

    assert [0] * 20 == got[0] == got[2]
    assert got[1] == got[3] != got[0]


# -- configurations


def test_each_fault_has_items_of_its_own() -> None:
    """Do I/O, HLT and CPUID exits bring just the items configured for them, FPU and segments among them?"""

    def steps(vm: Vm) -> None:
        vm.conf(
            HLT=(I.GPREGS, I.FPUCTRL, I.X87REGS, I.XMMLOW),
            IO_INSTRUCTION=(I.GPREGS, I.DS, I.ES, I.NONREGEXC),
            CPUID=(),
        )
        vm.skip()
        vm.r.exchange_registers(vm.id, ExregsControl(0))
        eip = vm.read(I.GPREGS)[EIP]
        vm.go(Message().append_registers(I.GPREGS, {EIP: eip + 2}))
        vm.skip()

    seen = monitor("hlt\n cpuid\n out 0x80, al\n hlt", steps)

    assert [R.HLT, R.CPUID, R.IO_INSTRUCTION, R.HLT] == [reason_of(got.label) for got in seen]
    assert [[], [I.GPREGS, I.DS, I.ES, I.NONREGEXC], [I.GPREGS, I.FPUCTRL, I.X87REGS, I.XMMLOW]] == [
        list(items(got)) for got in seen[1:]
    ]


@given(st.integers(0, (1 << 20) - 1))
@settings(max_examples=15)
def test_a_fault_brings_no_more_items_than_fit(mask: int) -> None:
    """With any configuration, is the message whole, its items the first of the wanted ones that fit?"""

    def steps(vm: Vm) -> None:
        words = [CtrlXferItem.make(id=fault_id_of(R.HLT), mask=mask)]
        vm.r.exchange_registers(vm.id, ExregsControl.CONFIGURE_ITEMS, items=words)
        vm.go(Message().append_registers(I.GPREGS, {EIP: CODE}))

    got = monitor("hlt", steps)[1]
    left, wanted = MESSAGE_REGISTERS - 4, []
    for item in ItemId:
        if mask >> item & 1 and 1 + len(ITEM_REGISTERS[item]) <= left:
            left -= 1 + len(ITEM_REGISTERS[item])
            wanted.append(item)

    assert wanted == list(items(got))
    assert [len(ITEM_REGISTERS[item]) for item in wanted] == [len(values) for values in items(got).values()]


def test_faults_that_do_not_exist_cannot_be_configured() -> None:
    """Does a configuration skip fault ids that are none, and take the ones behind them?"""

    def steps(vm: Vm) -> None:
        words = [CtrlXferItem.make(id=id_, mask=1 << I.DREGS, more=1) for id_ in (0, 1, 6, 8, 53, 255)]
        words.append(CtrlXferItem.make(id=fault_id_of(R.HLT), mask=1 << I.CREGS))
        vm.r.exchange_registers(vm.id, ExregsControl.CONFIGURE_ITEMS, items=words)
        vm.go(Message().append_registers(I.GPREGS, {EIP: CODE}))

    assert [I.CREGS] == list(items(monitor("hlt", steps)[1]))


# -- several items at once

PLAIN = (I.GPREGS, I.DREGS, I.TR, I.OTHERREGS, I.X87REGS, I.XMMLOW, I.XMMHIGH)  # any mix of these can be written
registers = st.lists(
    st.sampled_from(PLAIN).flatmap(
        lambda item: st.tuples(st.just(item), st.integers(1, full_mask(item)), st.randoms(use_true_random=False))
    ),
    min_size=1,
    max_size=4,
)


@given(registers)
@settings(max_examples=25)
def test_a_list_of_items_is_written_and_read_in_order(chosen: list[tuple[ItemId, int, object]]) -> None:
    """Does one call write several items of any masks, the last one winning, and another one read them all?"""
    words: list[int] = []
    for item, mask, rng in chosen:
        count = mask.bit_count()
        if len(words) + count + 1 < MESSAGE_REGISTERS:
            words += [CtrlXferItem.make(id=item, mask=mask, more=1), *(rng.getrandbits(31) for _ in range(count))]  # type: ignore[attr-defined]
    got: list[tuple[list[int], dict[ItemId, list[int]]]] = []

    def steps(vm: Vm) -> None:
        vm.r.exchange_registers(vm.id, ExregsControl.WRITE_ITEMS, items=words)
        answer = vm.r.exchange_registers(vm.id, ExregsControl.READ_ITEMS, items=words)[2]
        got.append((answer, {item: vm.read(item) for item in PLAIN}))

    in_guest(steps)
    answer, state = got[0]

    for item, values in typed_items(answer):
        assert isinstance(item, CtrlXferItem)
        assert values == [state[ItemId(item.id)][index] for index in item.indices]
    last: dict[tuple[int, int], int] = {}
    for item, values in typed_items(words):
        assert isinstance(item, CtrlXferItem)
        last |= {(item.id, index): value for index, value in zip(item.indices, values, strict=True)}
    for (id_, index), value in last.items():
        if (id_ == I.GPREGS and index != 1) or id_ in (I.XMMLOW, I.XMMHIGH, I.X87REGS):
            assert value == state[ItemId(id_)][index]


def test_a_running_guest_can_be_read_and_written_at_any_moment() -> None:
    """Does another thread of the monitor see a running guest count, and is what it writes in force at once?"""
    seen: list[int] = []

    def root(r: Root) -> None:
        r.store(GUEST + CODE, assemble("again: inc ecx\n cmp ebx, 0\n je again\n hlt", CODE).code)
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=1 << 30)))

        def watch(l4: L4) -> None:
            read = [CtrlXferItem.make(id=I.GPREGS, mask=1 << 8), 0]
            for _ in range(20):
                l4.sleep(50)
                seen.append(l4.exchange_registers(vm.id, ExregsControl.READ_ITEMS, items=read)[2][1])
            write = Message().append_registers(I.GPREGS, {EBX: 1}).typed
            l4.exchange_registers(vm.id, ExregsControl.WRITE_ITEMS, items=write)

        r.hosted(watch, priority=200)
        vm.go(start_state().append_registers(I.EXECCTRL, {1: HLT | IO, 2: 0}))
        seen.append(vm.read(I.GPREGS)[8])

    run(root)

    assert 20 == len(set(seen[:20]))
    assert seen == sorted(seen)
    assert seen[20] - seen[19] <= 1
