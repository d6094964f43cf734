# SPDX-License-Identifier: GPL-2.0-or-later
"""Propagation: messages in another's name; who may send them, what both ends see, and whom an answer reaches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from l4lab.abi import utcb as u
from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId, global_id
from l4lab.abi.time import period
from l4lab.kernel.boot import KIP_AREA, UTCB_AREA
from l4lab.testing import Root, run
from l4lab.user.l4 import L4, IpcFailed, Received

CLIENT, SERVER, WORKER = global_id(300), global_id(301), global_id(302)
PROPAGATED = 1 << 12


def relay(
    client_space: int, server_space: int, worker_space: int, virtual: ThreadId = CLIENT
) -> tuple[list[Received], dict[str, int]]:
    """A client calls a server, which passes the call on to a worker in the client's name. What worker and client got.

    Spaces are numbered; equal numbers are one space.
    """
    got: dict[str, Received] = {}
    words: dict[str, int] = {}

    def client(l4: L4) -> None:
        got["client"] = l4.call(SERVER, [0x11 << 16 | 1, 42])

    def server(l4: L4) -> None:
        received = l4.wait()
        l4.set_tcr(u.VIRTUAL_SENDER, virtual)
        l4.send(WORKER, [0x22 << 16 | PROPAGATED | 1, received.untyped[0] + 1], period(1000))

    def worker(l4: L4) -> None:
        received = got["worker"] = l4.receive(ANY_THREAD)
        words["actual sender"] = l4.tcr(u.ACTUAL_SENDER)
        with contextlib.suppress(IpcFailed):  # the server in its own name waits for no answer
            l4.send(received.sender, [0x33 << 16 | 1, 44], period(1000))

    def main(r: Root) -> None:
        spaces = [r.space() for _ in range(3)]
        r.hosted(worker, spaces[worker_space], 120, id_=WORKER)
        r.hosted(server, spaces[server_space], 120, id_=SERVER)
        r.hosted(client, spaces[client_space], 110, id_=CLIENT)
        r.serve()

    run(main)
    return [got.get("worker", NOTHING), got.get("client", NOTHING)], words


NOTHING = Received(NIL_THREAD, (0,))


@pytest.mark.parametrize(("client", "server", "worker"), [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2)])
def test_who_may_send_in_whose_name(client: int, server: int, worker: int) -> None:
    """If server and client, or server and worker, share a space, the worker hears the client, which its answer reaches;
    else the server sends in its own name, and the tag does not say otherwise."""
    allowed = server in (client, worker)

    (at_worker, at_client), words = relay(client, server, worker)

    named = CLIENT if allowed else SERVER
    named_space = client if allowed else server
    assert [43] == at_worker.untyped
    assert allowed == bool(at_worker.words[0] & PROPAGATED)
    if named_space == worker:
        assert at_worker.sender.is_local
    else:
        assert named == at_worker.sender
    if allowed:
        assert SERVER == words["actual sender"]
        assert (0x33, [44]) == (at_client.label, at_client.untyped)  # it had called the server, not the worker


def test_a_virtual_sender_that_does_not_exist_is_ignored() -> None:
    """The message goes out in the sender's own name."""
    (at_worker, _), _ = relay(0, 0, 0, virtual=global_id(999))

    assert not at_worker.words[0] & PROPAGATED
    assert [43] == at_worker.untyped


@pytest.mark.parametrize("wants", [CLIENT, SERVER], ids=["the virtual sender", "the real sender"])
@pytest.mark.parametrize("first", [True, False], ids=["receiver first", "sender first"])
def test_a_closed_receive_takes_it_for_either(wants: ThreadId, first: bool) -> None:
    """A receiver that waits for one of the two only takes a propagated message of both, whoever comes first."""
    got: list[Received] = []

    def main(r: Root) -> None:
        def worker(l4: L4) -> None:
            got.append(l4.receive(wants))

        def server(l4: L4) -> None:
            l4.set_tcr(u.VIRTUAL_SENDER, CLIENT)
            l4.send(WORKER, [7 << 16 | PROPAGATED])

        r.create(id_=CLIENT)
        r.hosted(worker, priority=120 if first else 110, id_=WORKER)
        r.hosted(server, priority=110 if first else 120, id_=SERVER)
        r.serve()

    run(main)

    assert [7] == [received.label for received in got]


def test_a_later_message_is_the_sender_s_own_again() -> None:
    """Does nothing of a propagated message stick to its sender?"""
    got: list[Received] = []

    def main(r: Root) -> None:
        def worker(l4: L4) -> None:
            got.extend((l4.receive(ANY_THREAD), l4.receive(ANY_THREAD)))

        def server(l4: L4) -> None:
            l4.set_tcr(u.VIRTUAL_SENDER, CLIENT)
            l4.send(WORKER, [7 << 16 | PROPAGATED])
            l4.send(WORKER, [8 << 16])

        r.create(id_=CLIENT, space=r.space())
        r.hosted(worker, r.space(), priority=110, id_=WORKER)
        r.hosted(server, r.space(), priority=120, id_=SERVER)
        r.serve()

    run(main)

    assert [SERVER, SERVER] == [received.sender for received in got]  # of three spaces: nobody may speak for another
    assert [0, 0] == [received.words[0] & PROPAGATED for received in got]


def test_a_call_is_answered_by_who_speaks_for_the_partner() -> None:
    """A calls B, while C stands in A's queue with a message in B's name: does A's receive phase take that?"""
    got: list[Received] = []

    def main(r: Root) -> None:
        def client(l4: L4) -> None:
            l4.sleep(500)  # C comes meanwhile, and B waits
            with contextlib.suppress(IpcFailed):
                got.append(l4.call(WORKER, [1]))

        def speaker(l4: L4) -> None:
            l4.set_tcr(u.VIRTUAL_SENDER, WORKER)
            l4.send(CLIENT, [7 << 16 | PROPAGATED])

        servers = r.space()
        r.hosted(lambda l4: l4.receive(CLIENT) and l4.sleep(10**6), servers, id_=WORKER)
        r.hosted(client, r.space(), priority=120, id_=CLIENT)
        r.hosted(speaker, servers, id_=SERVER)

    run(main, 20_000_000)

    assert [(WORKER, 7)] == [(received.sender, received.label) for received in got]


def confined(change: Callable[[Root, ThreadId, ThreadId], None]) -> list[object]:
    """An inmate of a space with a redirector sends to somebody outside three times: before a change, while it happens,
    and afterwards. What the inmate, its guard and the one outside got."""
    log: list[object] = []

    def main(r: Root) -> None:
        prison, guards, inmate, outside = r.space(), r.space(), r.new_id(), r.new_id()

        def listen(name: str) -> Callable[[L4], None]:
            def once(l4: L4) -> None:
                l4.wait()
                log.append(name)
                l4.sleep(10**6)

            return once

        guard = r.hosted(listen("guard"), guards, 200)
        r.hosted(listen("outside"), id_=outside, priority=200)
        r.space_control(prison, 0, KIP_AREA, UTCB_AREA, guard)

        def main_of_inmate(l4: L4) -> None:
            for timeout in (period(10), period(10_000), period(10)):
                try:
                    l4.send(outside, [1, 7], timeout)
                    log.append("sent")
                except IpcFailed as failed:
                    log.append(failed.error.code.name)

        r.hosted(main_of_inmate, prison, 150, id_=inmate)
        r.sleep(2000)
        change(r, guard, prison)
        r.sleep(20_000)

    run(main)
    return log


def delete_guard(r: Root, guard: ThreadId, prison: ThreadId) -> None:
    r.thread_control(guard, NIL_THREAD)


def rename_guard(r: Root, guard: ThreadId, prison: ThreadId) -> None:
    r.thread_control(global_id(guard.thread_no, 5), guard)


@pytest.mark.parametrize("change", [delete_guard, rename_guard])
def test_a_space_without_its_redirector_stays_confined(change: Callable[[Root, ThreadId, ThreadId], None]) -> None:
    """When the redirector is deleted or has another name, do messages that would leave the space fail from then on,
    and does one that waits for the redirector fail too?"""
    assert ["guard", "sent", "NO_PARTNER", "NO_PARTNER"] == confined(change)


def test_a_space_is_free_when_its_redirector_is_taken_back() -> None:
    """After SpaceControl with anythread, does a message reach whoever it is for?"""

    def release(r: Root, guard: ThreadId, prison: ThreadId) -> None:
        r.space_control(prison, 0, KIP_AREA, UTCB_AREA, ANY_THREAD)

    assert ["guard", "sent", "TIMEOUT", "outside", "sent"] == confined(release)


def test_a_message_that_is_on_its_way_out_is_cancelled_when_its_space_is_confined() -> None:
    """Somebody has sent to outside and waits. When his space gets a redirector, is that message never received?"""
    log: list[object] = []

    def main(r: Root) -> None:
        space, outside = r.space(), r.new_id()

        def send(l4: L4) -> None:
            with pytest.raises(IpcFailed, match="cancelled"):
                l4.send(outside, [1, 7])
            log.append("cancelled")

        def receive(l4: L4) -> None:
            l4.sleep(2000)
            with pytest.raises(IpcFailed, match="timeout"):
                l4.wait(period(1000))
            log.append("heard nothing")

        r.hosted(receive, r.space(), id_=outside)
        r.hosted(send, space)
        r.sleep(1000)
        r.space_control(space, 0, KIP_AREA, UTCB_AREA, r.my_id)
        r.sleep(5000)

    run(main)
    assert ["cancelled", "heard nothing"] == log


def test_a_message_in_its_receivers_own_name_ends_the_wait_once() -> None:
    """Does the receiver of a message that is propagated in its own name go on, as the trace has it too?"""
    got: list[Received] = []

    def receiver(l4: L4) -> None:
        got.append(l4.receive(SERVER))

    def sender(l4: L4) -> None:
        l4.set_tcr(u.VIRTUAL_SENDER, CLIENT)
        l4.send(CLIENT, [0x22 << 16 | PROPAGATED | 1, 7], period(1000))

    def main(r: Root) -> None:
        space = r.space()
        r.hosted(receiver, space, 120, id_=CLIENT)
        r.hosted(sender, space, 110, id_=SERVER)
        r.serve()

    run(main)

    assert [[7]] == [received.untyped for received in got]
