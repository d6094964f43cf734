# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that wait for each other meet, whatever made them so; and nobody else ends a wait.

After every kernel entry of these tests the invariants are checked: nobody waits to receive while a sender that it
accepts is queued.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from l4lab.abi import utcb as u
from l4lab.abi.calls import ExregsControl
from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId, global_id, interrupt_id
from l4lab.abi.message import Acceptor, CtrlXferItem, Message
from l4lab.abi.protocols import FaultId, thread_start
from l4lab.abi.time import ZERO, period
from l4lab.abi.vm import ItemId
from l4lab.kernel.objects import waits
from l4lab.kernel.objects.waits import Wait
from l4lab.testing import Root, run
from l4lab.user.l4 import L4, IpcFailed
from tests.kernel.test_vm import KIP, UTCB, VM_SPACE

PROPAGATED = 1 << 12
SHORT_SLICE = period(20) << 16
HANDLER = u.EXCEPTION_HANDLER & 0xFFFF_FFFF  # its place in the UTCB, from MR0


def by_thread_control(r: Root, thread: ThreadId, pager: ThreadId) -> None:
    r.thread_control(thread, thread, pager=pager)


def by_exchange_registers(r: Root, thread: ThreadId, pager: ThreadId) -> None:
    r.exchange_registers(thread, ExregsControl.PAGER, pager=pager)


@pytest.mark.parametrize("change", [by_thread_control, by_exchange_registers])
def test_a_new_pager_that_has_sent_already_starts_the_thread(
    change: Callable[[Root, ThreadId, ThreadId], None],
) -> None:
    """Is the start message of somebody taken when he becomes the pager, though it was queued before?"""
    log: list[str] = []

    def main(r: Root) -> None:
        child = r.hosted(lambda l4: log.append("started"), priority=90, start=False)

        def starter(l4: L4) -> None:
            l4.send(child, thread_start(0, 0))
            log.append("sent")

        pager = r.hosted(starter)
        r.sleep(1000)
        assert not log
        change(r, child, pager)
        r.sleep(1000)

    run(main)
    assert ["sent", "started"] == log


def test_who_takes_the_name_of_a_pager_starts_the_thread() -> None:
    """Is the queued message of a thread taken when that thread is given the name that the receiver waits for?"""
    log: list[str] = []

    def main(r: Root) -> None:
        awaited = global_id(400, 2)
        child = r.hosted(lambda l4: log.append("started"), pager=awaited, start=False)

        def starter(l4: L4) -> None:
            l4.send(child, thread_start(0, 0))

        other = r.hosted(starter, id_=global_id(400, 1))
        r.sleep(1000)
        assert not log
        r.thread_control(awaited, other)
        r.sleep(1000)

    run(main)
    assert ["started"] == log


def test_an_answer_that_was_queued_before_the_question_was_passed_on() -> None:
    """A client waits for its server; a message in the worker's name stands in the client's queue. When the server
    passes the call on to the worker, the client waits for that one: is the queued message its answer?"""
    log: list[object] = []

    def main(r: Root) -> None:
        ids = {name: r.new_id() for name in ("client", "server", "worker", "voice")}

        def client(l4: L4) -> None:
            log.append(l4.call(ids["server"], [1, 1]).untyped)

        def server(l4: L4) -> None:
            l4.wait()
            l4.sleep(1000)  # until the voice stands in the client's queue
            l4.set_tcr(u.VIRTUAL_SENDER, ids["client"])
            log.append("passed on")
            l4.send(ids["worker"], [PROPAGATED | 1, 2])

        def worker(l4: L4) -> None:
            l4.wait()

        def voice(l4: L4) -> None:
            l4.set_tcr(u.VIRTUAL_SENDER, ids["worker"])
            l4.send(ids["client"], [PROPAGATED | 1, 3])

        for program in (worker, server, client, voice):
            r.hosted(program, id_=ids[program.__name__])
        r.sleep(5000)

    run(main)
    assert ["passed on", [3]] == log


def test_a_chain_of_senders_may_have_any_length() -> None:
    """Each of many threads sends to the one before it, and wants to hear of anybody then. When the first receives, do
    all messages go, one because of the other?"""
    length, in_a_space = 400, 200
    arrived: list[int] = []

    def main(r: Root) -> None:
        ids = [r.new_id() for _ in range(length)]

        def link(number: int) -> Callable[[L4], None]:
            def first(l4: L4) -> None:
                l4.sleep(10**5)
                l4.wait()
                arrived.append(number)

            def other(l4: L4) -> None:
                l4.ipc(ids[number - 1], ANY_THREAD, [0])
                arrived.append(number)

            return other if number else first

        for number, id_ in enumerate(ids):
            if number % in_a_space == 0:
                space = r.space()
            r.hosted(link(number), space, id_=id_)
        r.sleep(10**6)

    run(main, check=False)
    assert list(range(length - 1)) == sorted(arrived)


# -- nobody else ends a wait -------------------------------------------------------------------------------------------

WAITING_PROGRAMS = {  # what a native program does so that the kernel has it wait
    waits.PAGE: "mov eax, [0x2000]",
    waits.PORTS: "in al, 0x60",
    waits.EXCEPTION: "mov edi, gs:[0]\n mov eax, MUTE\n mov [edi + HANDLER], eax\n ud2",
    waits.CONSOLE: "int3\n cmp al, 0x0d",
    waits.QUANTUM: "again: jmp again",
}


def put_into_waits(r: Root, mute: ThreadId) -> dict[Wait, ThreadId]:
    """A thread in each of these waits. Who is asked, in each, is a thread that never answers."""
    found: dict[Wait, ThreadId] = {waits.START: r.create(), waits.ACKNOWLEDGEMENT: interrupt_id(9)}
    for wait, program in WAITING_PROGRAMS.items():
        native = r.native(program + "\n ud2", MUTE=int(mute), HANDLER=HANDLER, start=False)
        r.send(native.id, thread_start(native.program.origin, native.stack))
        found[wait] = native.id
        if wait is waits.QUANTUM:
            r.thread_control(native.id, native.id, mute)
            r.schedule(native.id, time=SHORT_SLICE | period(40))
    items = r.native(WAITING_PROGRAMS[waits.EXCEPTION] + "\n ud2", MUTE=int(mute), HANDLER=HANDLER)
    configuration = CtrlXferItem.make(id=FaultId.EXCEPTION, mask=1)
    r.exchange_registers(items.id, ExregsControl.CONFIGURE_ITEMS, items=[configuration])
    found[waits.EXCEPTION_ITEMS] = items.id
    vcpu = r.create(r.space(KIP, UTCB, control=VM_SPACE["nested"]))
    r.send(vcpu, Message().append_registers(ItemId.CREGS, {0: 1 << 31}))  # paging without protection: no CPU enters
    found[waits.MONITOR] = vcpu
    for thread in (found[waits.PAGE], found[waits.PORTS], vcpu):
        r.exchange_registers(thread, ExregsControl.PAGER, pager=mute)
    r.thread_control(interrupt_id(9), interrupt_id(9), pager=mute)
    r.system.machine.press_button()
    r.system.kernel.look_at_devices()
    return found


def test_no_wait_of_the_kernels_is_ended_by_somebody_it_is_not_for() -> None:
    """Whatever the kernel has a thread wait for, is a stranger's message refused, and does the thread wait on?"""
    outcome: dict[str, tuple[str, str]] = {}

    def main(r: Root) -> None:
        def listen(l4: L4) -> None:
            while True:
                l4.wait()

        def intrude(l4: L4) -> None:
            for wait, thread in threads.items():
                for words in ([1, 7], [PROPAGATED | 1, 7]):
                    l4.set_tcr(u.VIRTUAL_SENDER, NIL_THREAD)
                    with pytest.raises(IpcFailed, match="timeout"):
                        l4.send(thread, words, ZERO)
                outcome[wait.name] = (r.system.thread(thread).wait.name, r.system.thread(thread).state.name)

        mute = r.hosted(listen, priority=200)
        threads = put_into_waits(r, mute)
        r.sleep(5000)
        r.hosted(intrude, r.space(), priority=200)
        r.sleep(5000)

    run(main)
    tried = set(WAITING_PROGRAMS) | {waits.START, waits.MONITOR, waits.ACKNOWLEDGEMENT, waits.EXCEPTION_ITEMS}
    assert {wait.name: (wait.name, "WAITING") for wait in tried} == outcome
    assert {waits.OWN_IPC, waits.PREEMPTED, waits.STRING_PAGE} == set(waits.WAITS) - tried


def test_a_wait_that_no_message_ends_is_ended_by_none() -> None:
    """May anybody send to a thread that waits for the console, in any name, of nobody or of the reader itself?"""
    refused: list[str] = []

    def main(r: Root) -> None:
        reader = r.native(WAITING_PROGRAMS[waits.CONSOLE] + "\n ud2", priority=200)
        r.sleep(1000)
        for virtual in (NIL_THREAD, r.my_id, reader.id, ANY_THREAD):
            for propagated in (0, PROPAGATED):
                r.set_tcr(u.VIRTUAL_SENDER, virtual)
                with pytest.raises(IpcFailed) as failed:
                    r.send(reader.id, [propagated | 1, 7], ZERO)
                refused.append(failed.value.error.code.name)
        assert r.system.thread(reader.id).wait is waits.CONSOLE

    run(main)
    assert ["TIMEOUT"] * 8 == refused


# -- messages that the kernel sends ------------------------------------------------------------------------------------

MARK = 0xABCD_1234
RECEIVING = {  # what the receiver does when the kernel's message comes from its partner, OTHER
    waits.START: "",
    waits.PAGE: "mov ebp, [0x3000]",
    waits.PORTS: "in al, 0x60",
    waits.EXCEPTION: "mov edi, gs:[0]\n mov eax, OTHER\n mov [edi + HANDLER], eax\n xor eax, eax\n ud2",
    waits.OWN_IPC: """
        mov edi, gs:[0]
        mov dword ptr [edi - 64], ACCEPT
        xor eax, eax
        mov edx, OTHER
        xor ecx, ecx
        xor esi, esi
        call Ipc
        jmp here""",
}


@pytest.mark.parametrize("wait", RECEIVING, ids=lambda wait: wait.name)
def test_register_items_of_the_kernels_messages_are_not_written_into_the_receiver(wait: Wait) -> None:
    """A page fault that carries the sender's registers meets a thread that accepts register items, waiting for that
    sender in some way: does it keep its own registers?"""
    registers: list[list[int]] = []

    def main(r: Root) -> None:
        sender, receiver = r.new_id(), r.new_id()
        names = {
            "OTHER": int(sender),
            "HANDLER": HANDLER,
            "ACCEPT": int(Acceptor.of(ctrlxfer=True)),
        }
        r.native(RECEIVING[wait] + "\nhere: jmp here", id_=receiver, start=wait is not waits.START, **names)
        faulting = f"mov eax, {MARK}\n mov ecx, eax\n mov edx, eax\n mov ebx, eax\n mov edi, [0x2000]\n ud2"
        code = r.native(faulting, id_=sender, start=False)
        by_exchange_registers(r, receiver, sender)
        configuration = CtrlXferItem.make(id=FaultId.PAGE_FAULT, mask=1)
        r.exchange_registers(sender, ExregsControl.CONFIGURE_ITEMS, items=[configuration])
        r.sleep(200)
        assert r.system.thread(receiver).wait is wait
        r.send(sender, thread_start(code.program.origin, code.stack))
        by_exchange_registers(r, sender, receiver)
        r.sleep(100)
        for thread in (receiver, sender):
            registers.append(r.system.thread(thread).regs.tolist())
            r.thread_control(thread, NIL_THREAD)

    run(main)
    receiver, sender = registers
    assert sender.count(MARK) == 4
    assert MARK not in receiver
