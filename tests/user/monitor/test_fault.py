# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault and Reply: the words between a virtual CPU and its monitor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi import vm
from l4lab.abi.frame import EAX, ECX, EFLAGS, EIP, FLAG_IF
from l4lab.abi.message import CtrlXferItem, Message, MsgTag
from l4lab.abi.vm import EVENT_VALID, ExitReason, InterruptionType, ItemId
from l4lab.user.monitor.fault import Fault, Reply, exception
from tests.user.monitor.parts import fault

words = st.integers(0, 0xFFFF_FFFF)
registers = st.sampled_from([item for item in ItemId if vm.ITEM_REGISTERS[item]]).flatmap(
    lambda item: st.tuples(st.just(item), st.integers(0, len(vm.ITEM_REGISTERS[item]) - 1), words)
)


@given(st.lists(registers, max_size=30))
def test_a_reply_says_what_was_written_and_nothing_else(writes: list[tuple[ItemId, int, int]]) -> None:
    """Does the message carry each register's last value, each item once, items by ascending number?"""
    reply = Reply()
    expected: dict[int, dict[int, int]] = {}
    for item, index, value in writes:
        reply.write(item, index, value)
        expected.setdefault(item, {})[index] = value

    message = Message.of(reply.words())
    items = [(item, values) for item, values in message.items() if isinstance(item, CtrlXferItem)]

    assert sorted(expected) == [item.id for item, _ in items]
    assert expected == {item.id: dict(zip(item.indices, values, strict=True)) for item, values in items}
    assert message.label == vm.REPLY_LABEL
    assert not message.untyped


@given(st.lists(words, min_size=10, max_size=10), words)
def test_a_fault_gives_registers_by_name(values: list[int], qualification: int) -> None:
    """Is each register of GPREGS and of a later item found where the kernel put it?"""
    met = fault(
        ExitReason.CR_ACCESS,
        dict(enumerate(values[2:], start=2)),
        eip=values[0],
        eflags=values[1],
        qualification=qualification,
        more={ItemId.CREGS: {vm.CR3: 0x1234000}},
    )

    assert values == [met.gpr(index) for index in range(10)]
    assert (values[EIP], values[EAX], values[ECX]) == (met.eip, met.eax, met.ecx)
    assert (ExitReason.CR_ACCESS, qualification) == (met.reason, met.qualification)
    assert 0x1234000 == met.register(ItemId.CREGS, vm.CR3)
    assert "CR3 0x01234000" in met.text()


def test_a_fault_of_a_reason_nobody_knows_has_a_name() -> None:
    """Can the fault of an exit reason that is not in the table be looked at?"""
    met = Fault([(0xFF70 - 16 * 42) << 16 | 3, 0, 0, 0])

    assert (42, "exit reason 42") == (met.reason, met.reason_name)


def test_skipping_ends_the_shadow_of_sti() -> None:
    """Does passing over an instruction advance EIP and, with interrupts on, clear the blocking by STI?"""
    quiet, open_ = Reply(), Reply()
    quiet.skip(fault(ExitReason.CPUID, eip=0xFFFF_FFFF, length=2))
    open_.skip(fault(ExitReason.HLT, eip=0x2000, length=1, eflags=FLAG_IF | 2))

    assert {ItemId.GPREGS: {EIP: 1}} == quiet.items
    assert {ItemId.GPREGS: {EIP: 0x2001}, ItemId.NONREGEXC: {vm.INTERRUPTIBILITY: 0}} == open_.items


def test_an_interrupted_event_is_delivered_again() -> None:
    """Is an exception whose delivery an exit cut short put into the reply, its error code too?"""
    event = exception(14, with_error_code=True)
    met = fault(ExitReason.TASK_SWITCH, more={ItemId.NONREGEXC: {vm.IDT_INFO: event, vm.IDT_EEC: 6}})
    reply = Reply()
    reply.resume_delivery(met)

    assert {vm.ENTRY_INFO: event, vm.ENTRY_EEC: 6} == reply.items[ItemId.NONREGEXC]


def test_an_interrupted_int_instruction_is_not_delivered_again() -> None:
    """Is an INT n, which will be executed again anyway, left alone?"""
    event = EVENT_VALID | InterruptionType.SOFTWARE_INTERRUPT << 8 | 0x80
    reply = Reply()
    reply.resume_delivery(fault(ExitReason.TASK_SWITCH, more={ItemId.NONREGEXC: {vm.IDT_INFO: event}}))

    assert {} == reply.items


def test_a_reply_fits_a_message_and_counts_its_words() -> None:
    """Is the tag's count of typed words right, map items included?"""
    reply = Reply()
    reply.typed = [8, 0x1000_01C7]
    reply.gpr(EFLAGS, 2)

    assert 4 == MsgTag.decode(reply.words()[0]).typed == len(reply.words()) - 1
