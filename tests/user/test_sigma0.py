# SPDX-License-Identifier: GPL-2.0-or-later
"""sigma0: everything is given out once, and only what the kernel does not keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi.calls import KIP_ENTRIES
from l4lab.abi.fpage import NILPAGE, Fpage, IoFpage
from l4lab.abi.ids import ROOT_TASK, ThreadId, global_id
from l4lab.abi.kip import Kip, MemoryDescriptor, MemoryType, ServerRegion
from l4lab.abi.kip_build import build_kip
from l4lab.abi.message import Message
from l4lab.abi.protocols import any_page, page_fault_label, sigma0_granted, sigma0_request
from l4lab.user.l4 import Received
from l4lab.user.sigma0 import FREE, Ownership, Sigma0
from l4lab.words import Rights

ALICE, BOB = global_id(60), global_id(61)
MIB = 1 << 20
LIMIT = 64
MODULE = 14 * MIB  # a page that the boot loader has filled


@pytest.fixture
def sigma0() -> Sigma0:
    """16 MiB of RAM, the last of them the kernel's, 64 KiB of the root task, and a device's memory."""
    page = build_kip(
        memory=[
            MemoryDescriptor(MemoryType.CONVENTIONAL, 0, 16 * MIB - 1),
            MemoryDescriptor(MemoryType.RESERVED, 15 * MIB, 16 * MIB - 1),
            MemoryDescriptor(MemoryType.DEDICATED, 0xA0000, 0xBFFFF),
            MemoryDescriptor(MemoryType.SHARED, 0xF0000, 0xFFFFF),
            MemoryDescriptor(MemoryType.BOOT_LOADER, MODULE, MODULE + 0xFFF, subtype=3),
        ],
        stubs=b"",
        entries=dict.fromkeys((call.entry_name for call in KIP_ENTRIES), 0),
        external_khz=1000,
        internal_khz=1000000,
        root=ServerRegion(low=1 * MIB, high=1 * MIB + 0x10000),
    )
    return Sigma0(Kip(page))


def ask(sigma0: Sigma0, who: ThreadId, message: Message) -> Fpage:
    """What a thread gets for a message."""
    words = message.words()
    reply = sigma0.answer(Received(who, words))
    assert reply is not None
    return sigma0_granted(reply)


def test_a_page_belongs_to_the_first_who_asks(sigma0: Sigma0) -> None:
    """Does a page go to the first thread, to that one again, and to no other?"""
    page = Fpage.at(0x5000)

    assert page == ask(sigma0, ALICE, sigma0_request(page))
    assert page == ask(sigma0, ALICE, sigma0_request(page))
    assert NILPAGE == ask(sigma0, BOB, sigma0_request(page))


def test_large_blocks_are_aligned_and_distinct(sigma0: Sigma0) -> None:
    """Are there three whole 4 MB blocks in 15 MiB from which a few small pages were taken, less the first?"""
    for _ in range(5):
        ask(sigma0, BOB, sigma0_request(any_page(12)))

    blocks = [ask(sigma0, ALICE, sigma0_request(any_page(22))) for _ in range(3)]

    assert [(4 * MIB, 22), (8 * MIB, 22)] == [(block.base, block.log2) for block in blocks[:2]]
    assert blocks[2] == NILPAGE


@pytest.mark.parametrize(
    "wanted",
    [Fpage.at(15 * MIB), Fpage.at(12 * MIB, 22), Fpage.at(64 * MIB), Fpage.at(1 * MIB), Fpage.at(0, 32)],
    ids=["the kernel's", "partly the kernel's", "no memory", "the root task's", "everything"],
)
def test_what_is_not_to_be_had_is_answered_with_nilpage(sigma0: Sigma0, wanted: Fpage) -> None:
    """Is a request refused that touches what somebody else owns?"""
    assert NILPAGE == ask(sigma0, ALICE, sigma0_request(wanted))


def test_the_root_task_gets_its_own_memory_by_faulting(sigma0: Sigma0) -> None:
    """Is a page fault of the root task answered with the page, identically mapped?"""
    fault = Message(page_fault_label(Rights.R | Rights.X)).append(1 * MIB + 0x234, 0)

    assert Fpage.at(1 * MIB) == ask(sigma0, ROOT_TASK, fault)
    assert NILPAGE == ask(sigma0, BOB, fault)


def test_device_memory_is_given_on_request_only(sigma0: Sigma0) -> None:
    """Is dedicated memory refused to a page fault and to a request for any page, but given by address?"""
    fault = Message(page_fault_label(Rights.W)).append(0xA0000, 0)

    assert NILPAGE == ask(sigma0, ALICE, fault)
    assert Fpage.at(0xA0000, 17) == ask(sigma0, ALICE, sigma0_request(Fpage.at(0xA0000, 17)))


def test_shared_memory_is_for_everyone(sigma0: Sigma0) -> None:
    """May two threads have the same shared page?"""
    page = Fpage.at(0xF0000)

    assert page == ask(sigma0, ALICE, sigma0_request(page))
    assert page == ask(sigma0, BOB, sigma0_request(page))


def test_ports_are_given_once(sigma0: Sigma0) -> None:
    """Does a range of ports go to the first who asks?"""
    ports = IoFpage.at(0x3F8, 3)

    assert int(ports) == int(ask(sigma0, ALICE, sigma0_request(ports)))
    assert NILPAGE == ask(sigma0, BOB, sigma0_request(IoFpage.at(0x3F8, 0)))


def test_other_messages_get_no_answer(sigma0: Sigma0) -> None:
    """Does sigma0 stay silent when it is sent something that is no request?"""
    for message in (Message(0x1234), Message(0xFFA0).append(1)):
        words = message.words()
        assert sigma0.answer(Received(ALICE, words)) is None


ranges = st.tuples(st.integers(0, LIMIT - 1), st.integers(1, LIMIT), st.integers(1, 3)).filter(
    lambda r: r[0] + r[1] <= LIMIT
)


@given(st.lists(ranges, max_size=20), st.sampled_from([1, 2, 4, 8]))
def test_runs_agree_with_a_list_of_owners(gifts: list[tuple[int, int, int]], size: int) -> None:
    """Do the runs say what a plain list with one owner per address says, and are they as few as possible?"""
    ownership, plain = Ownership(LIMIT, FREE), [FREE] * LIMIT
    for begin, length, owner in gifts:
        ownership.give(begin, begin + length, owner)
        plain[begin : begin + length] = [owner] * length
    free = [at for at in range(0, LIMIT, size) if plain[at : at + size] == [FREE] * size]

    assert plain == [ownership.owner(address) for address in range(LIMIT)]
    assert all(a != b for a, b in zip(ownership.owners, ownership.owners[1:], strict=False))
    found = ownership.find_free(size)
    assert found in free if free else found is None


def test_what_the_boot_loader_filled_is_given_by_address_only(sigma0: Sigma0) -> None:
    """Does the first who reads a module's page get it, nobody else, and nobody who asks for any memory?"""
    page = Fpage.at(MODULE)
    fault = Message(page_fault_label(Rights.R), [MODULE + 5, 0x1000])
    anything = [ask(sigma0, BOB, sigma0_request(any_page(12))).base for _ in range(200)]

    assert page == ask(sigma0, ALICE, fault)
    assert page == ask(sigma0, ALICE, sigma0_request(page))
    assert NILPAGE == ask(sigma0, BOB, fault)
    assert MODULE not in anything
