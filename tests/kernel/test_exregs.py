# SPDX-License-Identifier: GPL-2.0-or-later
"""ExchangeRegisters, bit by bit; and the calls that only look: MemoryControl, ProcessorControl, the KIP."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from l4lab.abi import utcb as u
from l4lab.abi.calls import ErrorCode, ExregsControl, ScheduleResult
from l4lab.abi.fpage import NILPAGE, Fpage
from l4lab.abi.frame import EBP, EBX, EDI, EDX, ESI
from l4lab.abi.ids import NIL_THREAD, SIGMA0, ThreadId, interrupt_id
from l4lab.abi.kip import MemoryType
from l4lab.abi.message import Acceptor, IpcErrorCode, Message, StringItem
from l4lab.abi.protocols import SIGMA0_EXTENDED, any_page, sigma0_granted, thread_start
from l4lab.abi.time import period
from l4lab.kernel.boot import KERNEL_MEMORY, UTCB_AREA
from l4lab.kernel.objects.thread import ThreadState
from l4lab.testing import MEMORY, Root, run
from l4lab.user.l4 import L4, CallRefused, IpcFailed
from l4lab.words import Rights

DATA = MEMORY.base + 0x1000
X = ExregsControl
HALT, RESUME = X.HALT | X.ACT_ON_HALT, X.ACT_ON_HALT
SPIN = "again: inc dword ptr [DATA]\n jmp again"
MS = 1_000_000


def exchange(l4: L4, dest: int, control: int, *values: int) -> tuple[int, int, list[int]]:
    """Result, old control, and old SP, IP, FLAGS, handle, pager. Values are given in the same order."""
    sp, ip, flags, handle, pager = (*values, *(0,) * (5 - len(values)))
    result, old, _ = l4.exchange_registers(dest, control, sp, ip, flags, handle, pager)
    regs = l4.cpu.registers
    return result, old, [regs[EDX], regs[ESI], regs[EDI], regs[EBX], regs[EBP]]


@pytest.mark.parametrize("control", range(1 << 5))
def test_each_bit_writes_its_register_and_no_other(control: int) -> None:
    """For every set of s, i, f, u, p: are just these written, and are all old values returned in any case?"""
    values = [0x0050_0000, 0x0040_0123, 0xFFFF_FFFF, 77, int(SIGMA0)]
    got: list[list[int]] = []

    def root(r: Root) -> None:
        n = r.native(SPIN, DATA=DATA)
        r.exchange_registers(n.id, HALT)
        got.append(exchange(r, n.id, 0)[2])
        got.append(exchange(r, n.id, control << 3, *values)[2])
        got.append(exchange(r, n.id, 0)[2])

    run(root)
    before, returned, after = got
    values[2] = 0x202 | 0x8D5  # FLAGS: only the arithmetic ones can be written
    expected = [new if control >> i & 1 else old for i, (old, new) in enumerate(zip(before, values, strict=True))]

    assert before == returned
    assert expected == after


@pytest.mark.parametrize("kind", ["native", "hosted"])
def test_the_result_is_the_other_form_of_the_name(kind: str) -> None:
    """Is a global identifier answered with the local one and the other way round, for both kinds of callers?"""
    got: list[int] = []
    ids: list[int] = []

    def root(r: Root) -> None:
        thread = r.create()
        local = r.system.thread(thread).local_id
        ids.extend((thread, local))
        if kind == "native":
            text = ""
            for i, dest in enumerate(ids):
                text += f"mov eax, {int(dest)}\n xor ecx, ecx\n call ExchangeRegisters\n mov [{DATA + 4 * i}], eax\n"
            r.native(text + "ud2")
            r.sleep(1000)
            got.extend(r.words(DATA, 2))
        else:
            got.extend(exchange(r, dest, 0)[0] for dest in ids)

    run(root)

    assert [ids[1], ids[0]] == got


def test_who_may_exchange_registers() -> None:
    """May threads of the same space, of the pager's space and of a privileged one, and nobody else?"""
    got: list[int] = []

    def root(r: Root) -> None:
        home, abroad = r.space(), r.space()
        pager = r.hosted(lambda l4: ask(l4, inside, stranger), abroad, start=False)
        inside = r.native("again: jmp again", home, priority=1, start=False).id
        r.thread_control(inside, home, pager=pager)
        stranger = r.native("again: jmp again", home, priority=1, start=False).id
        dead = r.new_id()
        r.thread_control(dead, home, r.my_id)

        def ask(l4: L4, *threads: ThreadId) -> None:
            for thread in threads:
                try:
                    l4.exchange_registers(thread, 0)
                    got.append(0)
                except CallRefused as refused:
                    got.append(refused.code)

        r.send(pager, thread_start(0, 0))
        r.sleep(1000)
        r.hosted(lambda l4: ask(l4, stranger, r.my_id, l4.my_id), home)
        r.sleep(1000)
        ask(r, stranger, dead, NIL_THREAD, ThreadId(stranger + 1), interrupt_id(3), ThreadId(UTCB_AREA.base + 0x2100))

    run(root)
    no = ErrorCode.INVALID_THREAD

    assert [0, no, 0, no, 0, 0, no, no, no, no, no] == got


@pytest.mark.parametrize(
    ("source", "bit", "state"),
    [
        ("mov eax, TO\n xor edx, edx", X.ABORT_SEND, ThreadState.POLLING),
        ("xor eax, eax\n mov edx, TO", X.ABORT_RECEIVE, ThreadState.WAITING),
        ("mov eax, TO\n mov edx, eax", X.ABORT_SEND, ThreadState.POLLING),
    ],
    ids=["send", "receive", "call"],
)
def test_abort_ends_the_phase_that_it_names(source: str, bit: X, state: ThreadState) -> None:
    """Does S abort a send and R a receive, each not the other, and does the old control word tell which it was?"""
    got: list[object] = []

    def root(r: Root) -> None:
        busy = r.native("ud2")
        text = f"mov edi, gs:[0]\n xor ecx, ecx\n xor esi, esi\n {source}\n call Ipc\n mov edi, gs:[0]\n"
        n = r.native(f"{text} mov eax, [edi + {u.ERROR_CODE}]\n mov [{DATA}], eax\n ud2", TO=int(busy.id))
        r.sleep(1000)
        got.append(exchange(r, n.id, (X.ABORT_SEND | X.ABORT_RECEIVE) & ~bit)[1])
        r.sleep(1000)
        got.append(r.system.thread(n.id).state)
        got.append(exchange(r, n.id, bit)[1])
        r.sleep(1000)
        got.append(exchange(r, n.id, 0)[1])

    system = run(root)
    phase = 0 if bit is X.ABORT_SEND else 1

    assert [bit, state, bit, X.HALT] == got  # halted: it ran into ud2
    assert [3 << 1 | phase] == system.words(DATA)


def test_a_halted_thread_does_not_run_and_goes_on_where_it_was() -> None:
    """Does H stop a running thread with all its registers, and H off let it go on?"""
    counts: list[int] = []
    states: list[int] = []

    def root(r: Root) -> None:
        n = r.native(SPIN, DATA=DATA)
        for control in (HALT, HALT, RESUME, RESUME, X(0)):
            r.sleep(100)
            states.append(exchange(r, n.id, control)[1])
            counts.append(r.load_word(DATA))

    run(root, 50 * MS)

    assert [0, X.HALT, X.HALT, 0, 0] == states
    assert 0 < counts[0] == counts[1] == counts[2] < counts[3] < counts[4]


@pytest.mark.parametrize("kind", ["native", "hosted"])
@pytest.mark.parametrize("resume_first", [False, True])
def test_halting_does_not_touch_an_ipc(kind: str, resume_first: bool) -> None:
    """Does a thread that is halted while it waits still take its message, and run only when it is resumed?"""
    got: list[object] = []

    def root(r: Root) -> None:
        if kind == "native":
            text = f"mov edi, gs:[0]\n xor eax, eax\n mov edx, {int(r.my_id)}\n xor ecx, ecx\n call Ipc\n"
            thread = r.native(f"{text} mov [{DATA}], ebx\n ud2").id
        else:
            thread = r.hosted(lambda l4: l4.store_word(DATA, l4.receive(r.my_id).untyped[0]))
        r.sleep(1000)
        got.append(exchange(r, thread, HALT)[1])
        got.append(exchange(r, thread, 0)[1])
        if resume_first:
            r.exchange_registers(thread, RESUME)
        r.send(thread, Message(0, [123]), period(1000))
        r.sleep(1000)
        got.append(r.load_word(DATA))
        if not resume_first:
            got.append(exchange(r, thread, RESUME)[1])
        r.sleep(1000)
        got.append(r.load_word(DATA))

    run(root)
    receiving = X.ABORT_RECEIVE

    if resume_first:
        assert [receiving, receiving | X.HALT, 123, 123] == got
    else:
        assert [receiving, receiving | X.HALT, 0, X.HALT, 123] == got


def test_halting_at_a_fault_ends_after_it() -> None:
    """Is a fault of a thread that is halted meanwhile answered as any, and does it go on from it when resumed?"""
    got: list[int] = []

    def root(r: Root) -> None:
        r.store_word(DATA, 41)
        n = r.native(f"inc dword ptr [{DATA}]\n ud2", r.space())
        r.serve(1)
        received = r.wait()
        r.exchange_registers(n.id, HALT)
        page = Fpage.at(received.untyped[0] & -4096)
        r.send(n.id, Message().append_map(page, page.base))
        r.sleep(100)
        got.append(r.load_word(DATA))
        r.exchange_registers(n.id, RESUME)
        r.sleep(100)
        got.append(r.load_word(DATA))

    run(root)

    assert [41, 42] == got


def test_a_thread_can_halt_itself_and_change_its_own_registers() -> None:
    """Does ExchangeRegisters on oneself write SP and IP, so that the call returns there; and does H stop at once?"""

    def root(r: Root) -> None:
        on_myself = "mov edi, gs:[0]\n mov eax, [edi - 60]\n mov ecx, {}\n"
        n = r.native(
            f"""
            mov esi, there
            mov edx, 0x00400f00
            {on_myself.format(int(X.SP | X.IP))}
            call ExchangeRegisters
            hlt
            there: mov [{DATA}], esp
            {on_myself.format(int(HALT))}
            call ExchangeRegisters
            mov dword ptr [{DATA + 4}], 1
            hlt
            """
        )
        r.sleep(1000)
        assert [0x0040_0F00, 0] == r.words(DATA, 2)
        assert X.HALT == exchange(r, n.id, 0)[1]
        r.exchange_registers(n.id, RESUME)

    assert [1] == run(root).words(DATA + 4)


# -- MemoryControl and ProcessorControl


def code_of(call: Callable[[], object]) -> int:
    try:
        call()
    except CallRefused as refused:
        return refused.code
    return 0


def test_memory_control_knows_the_attributes_of_the_hardware() -> None:
    """Is each attribute accepted or refused as the table says, but only where an fpage uses it?"""
    got: list[int] = []

    def root(r: Root) -> None:
        page = Fpage.at(DATA & -4096, rights="")
        got.extend(code_of(lambda a=a: r.memory_control([page], [a])) for a in range(12))  # type: ignore[misc]
        got.append(code_of(lambda: r.memory_control([NILPAGE, page], [7])))
        got.append(code_of(lambda: r.memory_control([NILPAGE], [7])))
        got.append(code_of(lambda: r.memory_control([Fpage(page | 1)], [7, 1])))

    run(root)
    bad = ErrorCode.INVALID_PARAMETER

    assert [0, 0, 0, 0, 0, 0, bad, bad, 0, bad, bad, bad, bad, 0, 0] == got


def test_there_is_one_processor() -> None:
    """Does ProcessorControl take processor 0 and refuse the others?"""
    got: list[int] = []

    def root(r: Root) -> None:
        got.extend(code_of(lambda n=n: r.processor_control(n)) for n in (0, 1, 0xFFFF_FFFF))  # type: ignore[misc]

    run(root)

    assert [0, ErrorCode.INVALID_PARAMETER, ErrorCode.INVALID_PARAMETER] == got


# -- the KIP and sigma0 by messages


def test_the_kip_tells_the_truth() -> None:
    """Are clock, processor, pages, thread numbers, memory and features in the KIP those of this machine?"""

    def root(r: Root) -> None:
        kip = r.kip()
        machine = r.system.machine
        assert (1, 1) == (kip.clock_info.read_precision, kip.clock_info.schedule_precision)
        assert 0x0040_1006 == kip.page_info
        assert Rights.R | Rights.W == kip.page_info.rights
        assert [1_000_000] == [processor.internal_khz for processor in kip.processors]
        assert (17, 16, 48) == (kip.thread_info.t, kip.thread_info.system_base, kip.thread_info.user_base)
        assert {"pagerexregs", "ctrlxfer", "x86-hvm", "ioflexpages"} == set(kip.features)
        physical = [piece for piece in kip.memory if not piece.virtual]
        assert machine.memory.size == max(piece.high for piece in physical) + 1
        reserved = [piece for piece in physical if piece.type is MemoryType.RESERVED]
        assert [machine.memory.size - KERNEL_MEMORY] == [piece.low for piece in reserved]
        assert r.kernel_interface().kernel_id == kip.kernel_id

    run(root)


def test_sigma0_speaks_its_whole_protocol() -> None:
    """Attributes, upper address bits, and the dump: are the answers those of the manual, and is sigma0 still there?"""
    got: list[object] = []

    def root(r: Root) -> None:
        def ask(*words: int, label: int = 0xFFA0) -> object:
            r.accept(0x0090_00C0 | 4)
            try:
                return sigma0_granted(
                    r.call(SIGMA0, Message(label, list(words)), period(5000) | period(5000) << 16).words
                )
            except IpcFailed:
                return "no answer"

        page = Fpage.at(0x0080_0000)
        got.append(ask(page, 1))
        got.append(ask(page, 6))
        got.append(ask(Fpage(page | 8), 0, 0))
        got.append(ask(Fpage(page | 8), 0, 1))
        got.append(ask(any_page(30), 0))
        got.append(ask(page))
        got.append(ask(page, 0, 0, 0))
        got.append(ask(label=0xFFE2))  # a page fault without words
        got.append(ask(1, 2, label=SIGMA0_EXTENDED))
        got.append(ask(2, 0, label=SIGMA0_EXTENDED))
        got.append(ask(2, 1, label=SIGMA0_EXTENDED))
        got.append(ask(page, 0))

    system = run(root)
    page, none, silent = Fpage.at(0x0080_0000), NILPAGE, "no answer"

    assert [page, none, page, none, none, *[silent] * 5, none, page] == got
    assert b"memory" in system.console
    assert b"ports" in system.console


@pytest.mark.parametrize("who", ["sender", "receiver"])
@pytest.mark.parametrize("halted", [False, True])
def test_a_string_under_way_is_its_two_ends_ipc(who: str, halted: bool) -> None:
    """While a page for a string is fetched: are both ends sending and receiving, and does S or R abort it for both?"""
    got: list[object] = []
    codes: dict[str, int] = {}

    def root(r: Root) -> None:
        space = r.space()
        r.store(DATA, b"text" * 16)

        def receive(l4: L4) -> None:
            l4.accept(Acceptor.of(strings=True), StringItem.make(length=64), 0x0090_0000)
            try:
                l4.receive(sender)
            except IpcFailed as failed:
                codes["receiver"] = failed.error.code

        def send(l4: L4) -> None:
            try:
                l4.send(receiver, Message().append_string(DATA, 64))
            except IpcFailed as failed:
                codes["sender"] = failed.error.code

        sender = r.new_id()
        receiver = r.hosted(receive, space)
        r.hosted(send, id_=sender)
        assert r.receive(receiver).untyped[0] == 0x0090_0000
        got.extend((exchange(r, sender, 0)[1], exchange(r, receiver, 0)[1]))
        got.extend((r.schedule(sender), r.schedule(receiver)))
        victim, bit = (sender, X.ABORT_SEND) if who == "sender" else (receiver, X.ABORT_RECEIVE)
        if halted:
            r.exchange_registers(victim, HALT)
        r.exchange_registers(victim, (X.ABORT_SEND | X.ABORT_RECEIVE) & ~bit)  # not this phase: nothing happens
        r.sleep(100)
        assert not codes
        r.exchange_registers(victim, bit)
        r.sleep(100)
        got.append(sorted(codes))
        r.exchange_registers(victim, RESUME)
        r.sleep(100)

    run(root)
    other = "receiver" if who == "sender" else "sender"

    assert [X.ABORT_SEND, X.ABORT_RECEIVE, ScheduleResult.SENDING, ScheduleResult.RECEIVING] == got[:4]
    assert ([other] if halted else ["receiver", "sender"]) == got[4]
    assert dict.fromkeys(("sender", "receiver"), IpcErrorCode.ABORTED) == codes
