# SPDX-License-Identifier: GPL-2.0-or-later
"""String items between two spaces whose pages come as they are touched: what arrives, and how it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import utcb as u
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, SIGMA0, ThreadId, global_id
from l4lab.abi.message import IpcErrorCode, Message, StringItem
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.time import ZERO, period, timeouts
from l4lab.abi.utcb import BUFFER_REGISTERS
from l4lab.kernel import events
from l4lab.testing import MEMORY, PAGE, Root, System, run
from l4lab.user.l4 import L4, CallRefused, IpcFailed

SENDER, RECEIVER = global_id(300), global_id(301)
SEND, RECEIVE = 0, 1
OVERFLOW, ABORTED = IpcErrorCode.MESSAGE_OVERFLOW, IpcErrorCode.ABORTED
SOURCE, TARGET = MEMORY.base + 0x20_0000, MEMORY.base + 0x30_0000
ROOM = 16 * PAGE
FAULT_IP_OF_A_COPY = 0xFFFF_FFFF

Piece = tuple[int, int]  # address, bytes
Compound = tuple[int, list[int]]  # bytes of each substring, their addresses
String = list[Compound]


def words_of(string: String, more: bool = False) -> list[int]:
    """A string or a buffer as the words of its item. `more`: another buffer follows."""
    words: list[int] = []
    for i, (length, addresses) in enumerate(string):
        last = i == len(string) - 1
        first = StringItem.make(length=length, j=len(addresses) - 1, compound=not last, more=more and i == 0)
        words += [first, *addresses]
    return words


def bytes_in(string: String) -> list[int]:
    """The address of each byte, in order."""
    return [address + i for length, addresses in string for address in addresses for i in range(length)]


@dataclass
class Outcome:
    """How one message went."""

    errors: list[int] = field(default_factory=lambda: [0, 0])  # the sender's, the receiver's
    tag: int = 0
    data: bytes = b""  # of the receiver's room, as the root task sees it
    faults: list[tuple[ThreadId, int, int]] = field(default_factory=list)  # who, address, IP


def exchange(
    strings: list[String],
    buffers: list[String],
    untyped: int = 0,
    accept: int = 1,
    xfer: tuple[int, int] = (0, 0),
    pager: Callable[[Root], None] | None = None,
    one_space: bool = False,
) -> tuple[Outcome, System]:
    """One message with these strings; the memory around SOURCE holds a pattern. By default every page comes."""
    outcome = Outcome()

    def send(l4: L4) -> None:
        l4.set_tcr(u.XFER_TIMEOUTS, timeouts(xfer[0], period(1)))
        typed = [word for string in strings for word in words_of(string)]
        words = [len(typed) << 6 | untyped, *range(1, untyped + 1), *typed]
        try:
            l4.send(RECEIVER, words)
        except IpcFailed as failed:
            outcome.errors[0] = int(failed.error)

    def receive(l4: L4) -> None:
        l4.set_tcr(u.XFER_TIMEOUTS, timeouts(period(1), xfer[1]))
        registers = [word for i, buffer in enumerate(buffers) for word in words_of(buffer, i < len(buffers) - 1)]
        l4.accept(accept, *registers)
        try:
            outcome.tag = int(l4.receive(SENDER).tag)
        except IpcFailed as failed:
            outcome.errors[1] = int(failed.error)

    def main(r: Root) -> None:
        r.store(SOURCE, pattern())
        r.store(TARGET, bytes(ROOM))
        here = r.space()
        r.hosted(receive, here, 120, id_=RECEIVER)
        r.hosted(send, here if one_space else r.space(), 120, id_=SENDER)
        (pager or Root.serve)(r)

    system = run(main)
    outcome.faults = [(ThreadId.decode(e.thread), e.address, e.ip) for e in system.trace.of(events.PageFault)]
    outcome.data = b"".join(word.to_bytes(4, "little") for word in system.words(TARGET, ROOM // 4))
    return outcome, system


def pattern() -> bytes:
    return bytes(i * 7 + (i >> 8) & 0xFF for i in range(ROOM))


def error(code: int, phase: int, offset: int) -> int:
    return offset << 4 | code << 1 | phase


def model(strings: list[String], buffers: list[String]) -> tuple[bytes, int, bool]:
    """What the receiver's room holds afterwards, how many bytes were copied, and whether it was an overflow."""
    source, room, copied = pattern(), bytearray(ROOM), 0
    for i, string in enumerate(strings):
        if i >= len(buffers):
            return bytes(room), copied, True
        from_, to = bytes_in(string), bytes_in(buffers[i])
        for a, b in zip(from_, to, strict=False):
            room[b - TARGET] = source[a - SOURCE]
        copied += min(len(from_), len(to))
        if len(from_) > len(to):
            return bytes(room), copied, True
    return bytes(room), copied, False


@st.composite
def laid_out(draw: st.DrawFn, base: int, most: int) -> list[String]:
    """Strings whose pieces lie one behind the other with gaps, some across pages."""
    at, room, strings, words = base, base + ROOM, [], 0
    for _ in range(draw(st.integers(1, most))):
        string: String = []
        for _ in range(draw(st.integers(1, 2))):
            length = draw(st.one_of(st.integers(0, 40), st.integers(0, 2 * PAGE)))
            addresses = []
            for _ in range(draw(st.integers(1, 3))):
                at += draw(st.sampled_from((0, 1, 100, PAGE - 5)))
                if at + length > room or words > BUFFER_REGISTERS - 8:
                    break
                addresses.append(at)
                at += length
            if addresses:
                string.append((length, addresses))
                words += 1 + len(addresses)
        if string:
            strings.append(string)
    return strings or [[(1, [base])]]


@settings(max_examples=60, deadline=None)
@given(strings=laid_out(SOURCE, 3), buffers=laid_out(TARGET, 4), one_space=st.booleans())
def test_bytes_go_where_a_naive_copy_puts_them(strings: list[String], buffers: list[String], one_space: bool) -> None:
    """Scatter, gather, several strings and short buffers: the same bytes as byte by byte, the same offset if cut."""
    expected, copied, is_cut = model(strings, buffers)

    outcome, _ = exchange(strings, buffers, untyped=2, one_space=one_space)

    assert expected == outcome.data
    codes = [error(OVERFLOW, SEND, copied), error(OVERFLOW, RECEIVE, copied)] if is_cut else [0, 0]
    assert codes == outcome.errors


def test_who_hears_of_the_missing_pages() -> None:
    """The sender's pager hears of reads at its IP, the receiver's of writes at IP -1; each page once."""
    outcome, _ = exchange([[(PAGE + 8, [SOURCE])]], [[(2 * PAGE, [TARGET + PAGE - 4])]])

    by_copy = [(who, address) for who, address, ip in outcome.faults if ip == FAULT_IP_OF_A_COPY]
    assert [(RECEIVER, TARGET + PAGE - 4), (RECEIVER, TARGET + PAGE), (RECEIVER, TARGET + 2 * PAGE)] == by_copy
    reads = [address for who, address, ip in outcome.faults if who == SENDER and ip != FAULT_IP_OF_A_COPY]
    assert [SOURCE, SOURCE + PAGE] == reads
    assert [0, 0] == outcome.errors


@pytest.mark.parametrize(
    ("strings", "buffers", "accept"),
    [
        ([[(4, [SOURCE])]], [[(4, [TARGET])]], 0),  # the acceptor takes no strings
        ([[(4, [SOURCE])]], [[(0, [TARGET])]], 1),  # no room at all
        ([[(4, [0xFFFF_FFFC])]], [[(4, [TARGET])]], 1),  # the kernel's memory, from
        ([[(4, [SOURCE])]], [[(4, [0xF000_0000])]], 1),  # and to
    ],
    ids=["not accepted", "no room", "from the kernel", "into the kernel"],
)
def test_an_overflow_is_told_to_both(strings: list[String], buffers: list[String], accept: int) -> None:
    """Do both get code 4 with offset 0, and nothing else?"""
    outcome, _ = exchange(strings, buffers, accept=accept)

    assert [error(OVERFLOW, SEND, 0), error(OVERFLOW, RECEIVE, 0)] == outcome.errors
    assert bytes(ROOM) == outcome.data


OWN, PARTNER = IpcErrorCode.OWN_XFER_TIMEOUT, IpcErrorCode.PARTNER_XFER_TIMEOUT


@pytest.mark.parametrize(
    ("xfer", "codes"),
    [
        ((ZERO, 0), (OWN, PARTNER)),
        ((0, ZERO), (PARTNER, OWN)),
        ((period(500), period(1000)), (OWN, PARTNER)),
        ((period(1000), period(500)), (PARTNER, OWN)),
        ((period(500), period(500)), (OWN, PARTNER)),  # a tie is the sender's
        ((period(500), 0), (OWN, PARTNER)),
    ],
    ids=["sender zero", "receiver zero", "sender first", "receiver first", "tie", "receiver never"],
)
@pytest.mark.parametrize("first_page_comes", [False, True], ids=["no page", "one page"])
def test_transfer_timeouts(xfer: tuple[int, int], codes: tuple[int, int], first_page_comes: bool) -> None:
    """A pager that does not answer: the earlier of both times ends the transfer, from the first fault on."""

    def pager(r: Root) -> None:
        if first_page_comes:
            serve_until(r, TARGET + PAGE)
        else:
            serve_until(r, TARGET)
        sleep(r, 5000)

    outcome, system = exchange([[(PAGE, [SOURCE])]], [[(PAGE, [TARGET + 8])]], xfer=xfer, pager=pager)

    offset = 0 if not first_page_comes or ZERO in xfer else PAGE - 8
    assert [error(codes[0], SEND, offset), error(codes[1], RECEIVE, offset)] == outcome.errors
    if ZERO not in xfer:
        first = next(e.at for e in system.trace.of(events.PageFault) if e.thread == SENDER and e.address == SOURCE)
        failed = next(e.at for e in system.trace.of(events.IpcError) if e.thread == SENDER)
        assert 500_000 == failed - first


def serve_until(r: Root, address: int) -> None:
    """Map whatever is asked for, up to a fault in the page of `address`, which nobody answers."""
    received = r.wait()
    while is_page_fault(received.label) and received.untyped[0] & -PAGE != address & -PAGE:
        page = Fpage.at(received.untyped[0] & -PAGE)
        received = r.reply_wait(received.sender, Message().append_map(page, page.base))


def sleep(r: Root, us: int) -> None:
    """Let time pass."""
    with pytest.raises(IpcFailed):
        r.receive(r.my_id, period(us))


@pytest.mark.parametrize("victim", [SENDER, RECEIVER], ids=["sender", "receiver"])
def test_deleting_one_side_in_the_midst_tells_the_other(victim: ThreadId) -> None:
    """Is the other told that the transfer was aborted, with the bytes that had arrived?"""

    def pager(r: Root) -> None:
        serve_until(r, TARGET + PAGE)
        r.thread_control(victim, 0)
        sleep(r, 100)

    outcome, system = exchange([[(2 * PAGE, [SOURCE])]], [[(2 * PAGE, [TARGET])]], pager=pager)

    other = RECEIVE if victim == SENDER else SEND
    assert error(ABORTED, other, PAGE) == outcome.errors[other]
    assert victim.thread_no not in system.kernel.threads


def test_a_pager_that_is_gone_aborts_the_transfer() -> None:
    """A page that nobody can bring: both are told, nobody halts."""

    def pager(r: Root) -> None:
        sleep(r, 100)

    def with_dead_pager(l4: L4) -> None:
        l4.set_tcr(u.PAGER, global_id(900))
        l4.accept(1, *words_of([(PAGE, [TARGET])]))
        with pytest.raises(IpcFailed) as failed:
            l4.receive(SENDER)
        errors[1] = int(failed.value.error)

    def send(l4: L4) -> None:
        with pytest.raises(IpcFailed) as failed:
            l4.send(RECEIVER, [2 << 6, *words_of([(PAGE, [SOURCE])])])
        errors[0] = int(failed.value.error)

    errors = [0, 0]

    def main(r: Root) -> None:
        r.store(SOURCE, pattern())
        r.hosted(with_dead_pager, r.space(), 120, id_=RECEIVER)
        r.hosted(send, NIL_THREAD, 120, id_=SENDER)
        r.serve()

    run(main)

    assert [error(ABORTED, SEND, 0), error(ABORTED, RECEIVE, 0)] == errors


def test_a_string_in_the_answer_to_a_fault_is_refused() -> None:
    """Does a faulting thread's acceptor concern its own messages only, not what its pager answers?"""
    errors: list[int] = []
    got: list[int] = []

    def faults(l4: L4) -> None:
        l4.accept(1, *words_of([(PAGE, [TARGET])]))
        got.append(l4.load_word(SOURCE))

    def main(r: Root) -> None:
        r.store_word(SOURCE, 7)
        thread = r.hosted(faults, r.space())
        assert is_page_fault(r.receive(thread).label)
        for _ in range(2):
            with pytest.raises(IpcFailed) as failed:
                r.send(thread, [2 << 6, *words_of([(16, [SOURCE])])])
            errors.append(int(failed.value.error))
            assert is_page_fault(r.receive(thread).label)
        r.send(thread, Message().append_map(Fpage.at(SOURCE), SOURCE))

    run(main)

    assert [error(OVERFLOW, SEND, 0)] * 2 == errors
    assert [7] == got


@pytest.mark.parametrize("direction", ["to", "from"])
def test_sigma0_has_no_pager(direction: str) -> None:
    """Does a string to or from memory that sigma0 has never touched go through, and does its sender go on?"""
    got: list[bytes] = []
    untouched = 0x10_0000
    sent = words_of([(8, [untouched if direction == "from" else SOURCE])])
    buffer = words_of([(8, [untouched if direction == "to" else TARGET])])

    def send(l4: L4) -> None:
        l4.send(RECEIVER, [2 << 6, *sent])
        got.append(b"sent")

    def receive(l4: L4) -> None:
        l4.accept(1, *buffer)
        l4.receive(SENDER)
        got.append(l4.load(buffer[1], 8))

    def main(r: Root) -> None:
        r.store(SOURCE, b"to sigma")
        r.store(TARGET, bytes(8))
        with contextlib.suppress(CallRefused):
            r.create(SIGMA0)  # where sigma0's first thread has its UTCB
        r.hosted(receive, SIGMA0 if direction == "to" else NIL_THREAD, 130, id_=RECEIVER)
        r.hosted(send, SIGMA0 if direction == "from" else NIL_THREAD, 120, id_=SENDER)
        r.serve()

    run(main, 20_000_000)

    assert [bytes(8) if direction == "from" else b"to sigma", b"sent"] == sorted(got, reverse=direction == "to")
