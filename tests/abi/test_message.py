# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages: what is assembled can be taken apart, and reads well."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi import protocols, vm
from l4lab.abi.describe import describe
from l4lab.abi.fpage import COMPLETE_ADDRESS_SPACE, NILPAGE, Fpage
from l4lab.abi.message import (
    Acceptor,
    CtrlXferItem,
    GrantItem,
    IpcErrorCode,
    IpcErrorWord,
    MapItem,
    Message,
    MsgTag,
    StringItem,
    describe_error,
    typed_item,
)
from l4lab.errors import LabError
from l4lab.words import Rights

WORDS = st.integers(0, 0xFFFF_FFFF)


def test_the_tag_reads_as_in_the_manual() -> None:
    """Label, flags and the two counts are where the manual puts them."""
    assert repr(MsgTag(0xFFE5_0002)) == "MsgTag(label=0xffe5, typed=0, untyped=2)"
    assert MsgTag(0x8000).error
    assert MsgTag(0x8000).flags == 8
    assert MsgTag.make(propagated=1, crossed=1) == 0x5000


def test_items_begin_with_their_nibble() -> None:
    """Low nibbles 8, a and c are map, grant and registers; all others below are strings."""
    assert (MapItem.at(), GrantItem.at(), CtrlXferItem.make()) == (0x8, 0xA, 0xC)
    assert [type(typed_item(n)) for n in (0, 6, 8, 0xA, 0xC)] == [
        StringItem, StringItem, MapItem, GrantItem, CtrlXferItem,
    ]  # fmt: skip
    assert CtrlXferItem.make(id=14, mask=0x3FF) == 0x3FF0EC


@given(st.integers(0, 0xFFFF), st.lists(WORDS, max_size=20), st.dictionaries(st.integers(0, 9), WORDS, max_size=10))
def test_a_message_is_taken_apart_as_it_was_put_together(label: int, data: list[int], values: dict[int, int]) -> None:
    """Untyped words and each item come back in order."""
    page = Fpage.at(0x4000)
    message = Message(label).append(*data).append_map(page, 0x8000).append_string(0x5000, 99).append_grant(page)
    words = message.append_registers(0, values).words()
    again = Message.of(words)

    assert message == again
    mapped, string, granted, registers = again.items()
    assert (MapItem.at(0x8000), [page]) == mapped
    assert isinstance(string[0], StringItem)
    assert (string[0].length, string[1]) == (99, [0x5000])
    assert (GrantItem.at(), [page]) == granted
    assert isinstance(registers[0], CtrlXferItem)
    assert values == dict(zip(registers[0].indices, registers[1], strict=True))
    assert len(words) == 1 + MsgTag(words[0]).untyped + MsgTag(words[0]).typed


@given(st.lists(WORDS, min_size=1, max_size=64))
def test_any_words_can_be_described(words: list[int]) -> None:
    """A program can send anything; describing it never fails."""
    assert describe(words)


def test_a_message_that_is_too_long_is_refused() -> None:
    """There are 63 registers besides the tag."""
    assert len(Message().append(*range(63)).words()) == 64
    with pytest.raises(LabError, match="63 words"):
        Message().append(*range(64)).words()


def test_the_acceptor_is_a_window_and_two_bits() -> None:
    """A complete window is 0x10; nilpage accepts no mappings."""
    assert Acceptor.of(COMPLETE_ADDRESS_SPACE, ctrlxfer=True) == 0x12
    assert Acceptor(0x10).window == COMPLETE_ADDRESS_SPACE
    assert Acceptor(0x3).window == NILPAGE
    assert repr(Acceptor.of(Fpage.at(0x4000), strings=True)) == "Acceptor(Fpage(0x4000..0x4fff, 4K, rwx), strings)"


@pytest.mark.parametrize(("code", "send"), [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12), (7, 14)])
def test_ipc_errors_have_the_values_of_the_table(code: int, send: int) -> None:
    """Twice the code in the send phase, one more in the receive phase, plus sixteen times the offset."""
    assert send == IpcErrorWord.make(code=code)
    assert send + 1 + 16 * 252 == IpcErrorWord.make(code=code, in_receive=1, offset=252)
    assert IpcErrorWord(send).code is IpcErrorCode(code)
    assert describe_error(send).startswith("send phase: ")
    assert describe_error(send + 1).startswith("receive phase: ")


def test_a_string_that_was_cut_says_where() -> None:
    """The offset is part of the text."""
    assert describe_error(9 + 16 * 252).endswith("after 252 bytes of strings")


def test_describe_names_the_words_of_the_kernels_messages() -> None:
    """A page fault and a VM fault read without a manual."""
    fault = Message(protocols.page_fault_label(Rights.W)).append(0x1000, 0x40_0000)
    cpuid = Message(vm.label_of(vm.ExitReason.CPUID)).append(0, 2, 0).append_registers(0, {0: 0x7C00, 9: 1})

    assert describe(fault.words()) == [
        "MR0 MsgTag(label=0xffe2, typed=0, untyped=2): page fault -w-",
        "MR1 0x00001000 address",
        "MR2 0x00400000 IP",
    ]
    assert describe(cpuid.words())[0].endswith("VM fault CPUID")
    assert describe(cpuid.words())[2:] == [
        "MR2 0x00000002 instruction length",
        "MR3 0x00000000 additional information",
        "MR4 GPREGS: EIP=0x7c00, EAX=0x1",
    ]
