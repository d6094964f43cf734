# SPDX-License-Identifier: GPL-2.0-or-later
"""IPC between real threads on the real machine, native and hosted: each script is played by both kinds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD, NIL_THREAD, ThreadId, global_id
from l4lab.abi.message import IpcErrorCode, MapItem
from l4lab.abi.time import ZERO, period, point
from l4lab.kernel import events
from l4lab.testing import EventList, Root, run
from l4lab.user.l4 import L4

from .twins import KINDS, PAIRS, A, B, C, Ipc, error, play

TIMEOUT, NO_PARTNER, CANCELLED = IpcErrorCode.TIMEOUT, IpcErrorCode.NO_PARTNER, IpcErrorCode.CANCELLED
OVERFLOW = IpcErrorCode.MESSAGE_OVERFLOW
SEND, RECEIVE = 0, 1
NOBODY = global_id(999)
both = pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
each = pytest.mark.parametrize("kind", KINDS)
apart_or_not = pytest.mark.parametrize("apart", [False, True], ids=["one space", "two spaces"])


def message(count: int, label: int = 0x1234) -> list[int]:
    """A message of so many untyped words."""
    return [label << 16 | count, *(0x1000_0000 + i for i in range(1, count + 1))]


@both
@apart_or_not
@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 62, 63])
def test_all_words_arrive(kinds: tuple[str, str], apart: bool, count: int) -> None:
    """Does a message of 0 to 63 words arrive whole, the first three also in registers?"""
    sent = message(count)

    _, (a, b) = play(kinds, [Ipc(from_=B)], [Ipc(to=A, words=sent)], apart=apart)

    assert sent == a[0].mrs[: count + 1]
    assert (a[0].mrs[0], a[0].mrs[1], a[0].mrs[2]) == a[0].in_registers
    assert not b[0].tag.error
    assert NIL_THREAD == b[0].from_


@both
@apart_or_not
def test_the_name_of_the_sender(kinds: tuple[str, str], apart: bool) -> None:
    """Is From the local identifier within a space and the global one across spaces?"""
    _, (a, b) = play(kinds, [Ipc(from_=ANY_THREAD), Ipc(to=B, words=[7 << 16])], [Ipc(to=A, from_=A)], apart=apart)

    if apart:
        assert (B, A) == (a[0].from_, b[0].from_)
    else:
        assert a[0].sender.is_local
        assert b[0].sender.is_local
        assert a[0].from_ != b[0].from_
    assert 7 == b[0].tag.label


@both
def test_a_local_identifier_is_as_good_as_a_global_one(kinds: tuple[str, str]) -> None:
    """Can a thread of the same space be sent to, and received from, by its local identifier?"""
    _, (first, _) = play(kinds, [Ipc(from_=B)], [Ipc(to=A)])
    local = first[0].from_

    _, (a, b) = play(kinds, [Ipc(to=local, from_=local, words=message(1))], [Ipc(from_=A), Ipc(to=A, words=[9 << 16])])

    assert local == a[0].from_
    assert 9 == a[0].tag.label
    assert [0x1000_0001] == b[0].untyped


@each
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Ipc(to=B, send=ZERO), error(TIMEOUT, SEND)),
        (Ipc(to=B, send=period(100)), error(TIMEOUT, SEND)),
        (Ipc(from_=B, receive=ZERO), error(TIMEOUT, RECEIVE)),
        (Ipc(from_=B, receive=period(100)), error(TIMEOUT, RECEIVE)),
        (Ipc(from_=ANY_THREAD, receive=ZERO), error(TIMEOUT, RECEIVE)),
        (Ipc(from_=ANY_LOCAL_THREAD, receive=period(1)), error(TIMEOUT, RECEIVE)),
        (Ipc(from_=A, receive=period(1)), error(TIMEOUT, RECEIVE)),
        (Ipc(to=NOBODY), error(NO_PARTNER, SEND)),
        (Ipc(to=A | 2), error(NO_PARTNER, SEND)),
        (Ipc(from_=NOBODY), error(NO_PARTNER, RECEIVE)),
        (Ipc(from_=A | 2), error(NO_PARTNER, RECEIVE)),
        (Ipc(to=ANY_THREAD), error(NO_PARTNER, SEND)),
        (Ipc(), 0),
    ],
    ids=lambda value: "" if isinstance(value, int) else repr(value).replace("Word", ""),
)
def test_what_fails_and_how(kind: str, step: Ipc, expected: int) -> None:
    """Does each kind of failure give its error code, and no sender?"""
    _, (a, _) = play([kind], [step], [Ipc(from_=C, receive=period(10_000))])

    assert expected == a[0].error
    assert bool(expected) == a[0].tag.error
    assert NIL_THREAD == a[0].from_


@each
@pytest.mark.parametrize("us", [1, 7, 100, 1023, 1024, 1_000_000])
@pytest.mark.parametrize("phase", [SEND, RECEIVE])
def test_a_timeout_expires_at_its_cycle(kind: str, us: int, phase: int) -> None:
    """Does an IPC without partner end exactly so many microseconds after the kernel was entered?"""
    step = Ipc(to=B, send=period(us)) if phase == SEND else Ipc(from_=B, receive=period(us))
    system, (a, _) = play([kind], [step], [Ipc(from_=C)], priorities=(90, 110, 100))
    expiry = [event.at for event in system.trace.of(events.IpcError) if event.thread == A]
    waits = period(us)
    length = (waits.mantissa << waits.exponent) * 1000

    assert error(TIMEOUT, phase) == a[0].error
    # The thread entered the kernel last of all: the clock then stood `length` before.
    switched = [event.at for event in system.trace.of(events.Switched) if event.thread == A and event.at < expiry[0]]
    spent = 1000 if kind == "hosted" else None
    if spent is not None:
        assert [expiry[0] - length - spent] == switched[-1:]
    else:
        assert 0 < expiry[0] - length - switched[-1] < 40


@each
def test_a_point_in_time(kind: str) -> None:
    """Does a receive with an absolute timeout end when the clock shows it?"""
    system, (a,) = play([kind], [Ipc(from_=A, receive=point(0, 5000))])

    assert error(TIMEOUT, RECEIVE) == a[0].error
    assert [5_000_000] == [event.at for event in system.trace.of(events.IpcError) if event.thread == A]


@both
def test_senders_are_served_first_come_first_served(kinds: tuple[str, str]) -> None:
    """Does the receiver get waiting messages in the order of sending, whatever the senders' priorities?"""
    scripts = (
        [Ipc(from_=A, receive=period(1000)), Ipc(from_=ANY_THREAD), Ipc(from_=ANY_THREAD), Ipc(from_=ANY_THREAD)],
        [Ipc(to=A, words=[1 << 16]), Ipc(to=A, words=[3 << 16])],
        [Ipc(from_=C, receive=period(100)), Ipc(to=A, words=[2 << 16])],
    )

    _, (a, _, _) = play(kinds, *scripts, priorities=(100, 90, 200))

    assert [1, 2, 3] == [got.tag.label for got in a[1:]]


@both
def test_a_closed_wait_lets_others_queue(kinds: tuple[str, str]) -> None:
    """Does a receive from one thread pass over an earlier sender, who stays in the queue?"""
    scripts = (
        [Ipc(from_=A, receive=period(1000)), Ipc(from_=C), Ipc(from_=ANY_THREAD)],
        [Ipc(to=A, words=[1 << 16])],
        [Ipc(from_=C, receive=period(100)), Ipc(to=A, words=[2 << 16])],
    )

    _, (a, _, _) = play(kinds, *scripts)

    assert [2, 1] == [got.tag.label for got in a[1:]]


@both
def test_any_local_thread_is_not_any_thread(kinds: tuple[str, str]) -> None:
    """Does a receive from any local thread leave out a sender of another space?"""
    scripts = (
        [Ipc(from_=ANY_LOCAL_THREAD, receive=period(1000)), Ipc(from_=ANY_THREAD)],
        [Ipc(to=A, words=[1 << 16])],
    )

    _, (a, _) = play(kinds, *scripts, apart=True)
    _, (near, _) = play(kinds, *scripts)

    assert error(TIMEOUT, RECEIVE) == a[0].error
    assert 1 == a[1].tag.label
    assert 1 == near[0].tag.label


@both
def test_a_failed_send_has_no_receive_phase(kinds: tuple[str, str]) -> None:
    """When the send phase fails, does the call end there?"""
    _, (a, b) = play(
        kinds, [Ipc(to=B, from_=ANY_THREAD, send=ZERO)], [Ipc(from_=C, receive=period(100)), Ipc(to=A, send=period(9))]
    )

    assert error(TIMEOUT, SEND) == a[0].error
    assert error(TIMEOUT, SEND) == b[1].error


@both
@apart_or_not
def test_message_registers_survive_what_does_not_bring_a_message(kinds: tuple[str, str], apart: bool) -> None:
    """After a send, and after an IPC that failed, do MR1 and MR2 still hold what they held, in registers too?"""
    words = message(5)
    script = [Ipc(to=B, words=words), Ipc(from_=A, receive=ZERO, words=words), Ipc(to=NOBODY, words=words)]

    _, (a, _) = play(kinds, script, [Ipc(from_=A)], apart=apart)

    for got in a:
        assert words[1:6] == got.mrs[1:6]
        assert tuple(words[1:3]) == got.in_registers[1:]


@both
def test_the_error_bit_of_a_sent_tag_means_nothing(kinds: tuple[str, str]) -> None:
    """Does a tag whose error, crossing and redirection bits the sender set arrive, and return, without them?"""
    _, (a, b) = play(kinds, [Ipc(to=B, words=[0x5_E001, 77])], [Ipc(from_=A)])

    assert (0x5_0001, 0x5_0001) == (b[0].tag, a[0].tag)


@both
@pytest.mark.parametrize("sender_first", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        [2 << 6, MapItem.at(0), 0x400007],
        [1 << 6, MapItem.at(0)],
        [60 | 5 << 6],
        [2 << 6, 0x0000_0400, 0x400000],
        [1 << 6, 0xE],
    ],
    ids=["no window", "half an item", "65 words", "a string", "unknown item"],
)
def test_overflow_is_told_to_both(kinds: tuple[str, str], sender_first: bool, words: list[int]) -> None:
    """Does a typed item that cannot be taken end the IPC of both sides with an overflow, whoever came first?"""
    late = [Ipc(from_=A, receive=period(500))]
    window = 0x10 if words[0] == 1 << 6 else 0
    sender, receiver = [Ipc(to=B, from_=B, words=words)], [Ipc(from_=A, accept=window)]

    if sender_first:
        _, (a, b) = play(kinds, sender, [Ipc(from_=C, receive=ZERO), Ipc(from_=B, receive=period(500)), *receiver])
    else:
        _, (a, b) = play(kinds, [*late, *sender], receiver)

    assert error(OVERFLOW, SEND) == a[-1].error
    assert error(OVERFLOW, RECEIVE) == b[-1].error


def test_a_server_with_many_clients() -> None:
    """Does reply-and-wait serve three clients of mixed kinds, in spaces of their own, in turn?"""
    got: list[tuple[int, int]] = []

    def server(r: Root) -> None:
        clients = []
        for i in range(4):
            space = r.space()
            if i % 2:
                clients.append(r.hosted(lambda l4: [l4.call(r.my_id, [n << 16]) for n in (1, 2, 3)] and None, space))
            else:
                loop = "".join(_call(n) for n in (1, 2, 3))
                clients.append(r.native(loop + "ud2", space, ROOT=int(r.my_id)).id)
        received = r.serve()
        for _ in range(11):
            got.append((received.sender, received.label))
            r.send(received.sender, [0])
            received = r.serve()
        got.append((received.sender, received.label))

    run(server)

    assert 4 == len({who for who, _ in got})
    for client in {who for who, _ in got}:
        assert [1, 2, 3] == [label for who, label in got if who == client]


def _call(label: int) -> str:
    return f"mov edi, gs:[0]\n mov eax, ROOT\n mov edx, ROOT\n xor ecx, ecx\n mov esi, {label << 16}\n call Ipc\n"


def test_a_thread_that_meets_three_others_in_one_kernel_entry_is_queued_once() -> None:
    """When a sender's message is taken and another message for it waits already: does it run once, and get it?"""
    got: list[tuple[int, int]] = []

    def root(r: Root) -> None:
        server = r.new_id()

        def waits(l4: L4) -> None:
            got.append((1, l4.receive(server).label))

        def sends_and_waits(l4: L4) -> None:
            got.append((2, l4.ipc(server, ANY_THREAD, [2 << 16]).label))

        waiter = r.hosted(waits, priority=200)
        sender = r.hosted(sends_and_waits, priority=200)
        r.hosted(lambda l4: l4.send(sender, [3 << 16]), priority=200)

        def serves(l4: L4) -> None:
            got.append((4, l4.ipc(waiter, sender, [4 << 16]).label))

        r.hosted(serves, id_=server, start=False)
        r.sleep(100)
        r.send(server, [2, 0, 0])
        r.sleep(100)

    run(root)

    assert [(1, 4), (2, 3), (4, 2)] == sorted(got)


IDS = st.sampled_from([NIL_THREAD, A, B, C, ANY_THREAD, NOBODY, ANY_LOCAL_THREAD])
TIMES = st.sampled_from([ZERO, period(50), period(1000), period(3000)])
STEPS = st.builds(
    Ipc,
    to=IDS.filter(lambda id_: id_ != ANY_LOCAL_THREAD),  # the stub would look for a UTCB there, and fault
    from_=IDS,
    words=st.sampled_from([[1 << 16], [2 << 16 | 2, 8, 9], [2 << 6, MapItem.at(0), 0x400007]]),
    send=TIMES,
    receive=TIMES,
    accept=st.sampled_from([0, 0x10]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=2, max_size=3), st.booleans())
def test_hosted_and_native_twins_cannot_be_told_apart(scripts: list[list[Ipc]], apart: bool) -> None:
    """For any scripts of IPCs: do native threads and hosted ones get the same errors, labels and partners?"""

    def outcome(kind: str) -> list[list[tuple[int, int, int]]]:
        _, results = play([kind], *scripts, apart=apart)
        return [[(got.error, got.tag, got.from_) for got in player] for player in results]

    assert outcome("hosted") == outcome("native")


def test_a_trace_reads_as_the_ipcs_happened() -> None:
    """Is every message in the trace once, as the sender wrote it?"""
    system, _ = play(KINDS, [Ipc(to=B, from_=B, words=message(2))], [Ipc(from_=A), Ipc(to=A, words=message(1))])
    trace: EventList = system.trace
    between = [event for event in trace.of(events.MessageSent) if {event.sender, event.receiver} == {A, B}]

    assert [message(2), message(1)] == [list(event.words) for event in between]
    assert [ThreadId(A), ThreadId(B)] == [event.sender for event in between]
