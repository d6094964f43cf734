# SPDX-License-Identifier: GPL-2.0-or-later
"""Several virtual machines and several virtual CPUs at the level of system calls, under both kinds of paging.

The invariants are checked after each kernel entry.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import utcb as u
from l4lab.abi.calls import ExregsControl, TimeControl
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ThreadId
from l4lab.abi.message import Acceptor, CtrlXferItem, Message
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.time import NEVER, period
from l4lab.abi.vm import ItemId, reason_of
from l4lab.testing import MEMORY, PAGE, Root, run
from l4lab.user.asm import assemble
from l4lab.user.l4 import L4, CallRefused, IpcFailed, Received
from tests.kernel.test_vm import CODE, EIP, GUEST, HLT, IO, KIP, UTCB, VM_SPACE, R, items, start_state

MINE, THEIRS = 0x2_0000, 0x3_0000  # pages that both guests read all the time; only the first is taken away
WINDOW = MEMORY.base + 0x30_0000  # of both monitors on their guests' memory

# Both CPUs: paging on with tables of their own, then change them, load CR3 and exit, for ever.
BUSY = """
start:  mov     ebx, eax                ; its number: 0 or 1
        shl     ebx, 13
        add     ebx, 0x10000            ; a directory and a table behind it
        lea     edi, [ebx + 0x1000]
        mov     ecx, 256
        mov     eax, 7
        cld
.fill:  stosd
        add     eax, 4096
        dec     ecx
        jnz     .fill
        lea     eax, [ebx + 0x1007]
        mov     [ebx], eax
        mov     cr3, ebx
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
.next:  mov     eax, [0x40000]
        add     dword ptr [0x41000], 1
        mov     eax, [ebx + 0x1000 + 0x42 * 4]
        xor     eax, 0x1000
        mov     [ebx + 0x1000 + 0x42 * 4], eax
        invlpg  [0x42000]
        mov     eax, [0x42000]
        mov     cr3, ebx
        cpuid_or_not
        jmp     .next
"""


@pytest.fixture(params=VM_SPACE)
def control(request: pytest.FixtureRequest) -> int:
    """SpaceControl's control word for the machines of a test."""
    return VM_SPACE[request.param]


def launch(eax: int = 0, entry: int = CODE) -> Message:
    """The message that starts a virtual CPU."""
    message = start_state()
    message.append_registers(ItemId.EXECCTRL, {1: HLT | IO, 2: 0})
    message.append_registers(ItemId.GPREGS, {EIP: entry, 9: eax})
    return message


def configure(r: L4, cpu: ThreadId) -> None:
    """Have all exits carry the general registers."""
    words = [CtrlXferItem.make(id=fault, mask=1 << ItemId.GPREGS, more=int(fault != 52)) for fault in range(9, 53)]
    r.exchange_registers(cpu, ExregsControl.CONFIGURE_ITEMS, items=words)


def answer(received: Received, window: int) -> Message:
    """What a plain monitor answers: the page, or to go on behind the instruction."""
    if is_page_fault(received.label):
        page = received.untyped[0] & -PAGE
        return Message().append_map(Fpage.at(window + page), page)
    eip = items(received)[ItemId.GPREGS][EIP] + received.untyped[1]
    return Message().append_registers(ItemId.GPREGS, {EIP: eip})


@settings(max_examples=4, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 150), st.booleans(), st.integers(0, 2)), min_size=4, max_size=4))
@pytest.mark.parametrize("kind", VM_SPACE)
def test_a_machine_with_two_cpus_can_be_deleted_at_any_time(kind: str, lives: list[tuple[int, bool, int]]) -> None:
    """Whenever and in whichever order its threads are deleted: are all of the kernel's frames back?"""
    used: list[int] = []

    def root(r: Root) -> None:
        for exits in (True, False):
            source = BUSY.replace("cpuid_or_not", "cpuid" if exits else "nop")
            r.store(GUEST + (CODE if exits else 2 * CODE), assemble(source, CODE if exits else 2 * CODE).code)
        system = r.system
        for life, (us, exits, first) in enumerate([(150, True, 0), *lives]):
            cpus = [ThreadId.make(thread_no=300 + 2 * life + n, version=1) for n in (0, 1)]
            r.thread_control(cpus[0], cpus[0], r.my_id, utcb_location=UTCB.base)
            r.space_control(cpus[0], VM_SPACE[kind], KIP, UTCB)
            for n, cpu in enumerate(cpus):
                r.thread_control(cpu, cpus[0], r.my_id, r.my_id, UTCB.base + n * u.SIZE)
                r.schedule(cpu, 90, time=TimeControl.make(time_slice=period(1), total_quantum=NEVER))
                configure(r, cpu)
                r.send(cpu, launch(n, CODE if exits else 2 * CODE))
            until = r.system_clock() + us
            with suppress(IpcFailed):  # the time is over
                while (left := until - r.system_clock()) > 0:
                    received = r.wait(period(left))
                    r.send(received.sender, answer(received, GUEST))
            if first == 2:  # the one that waits is told something last
                with suppress(IpcFailed):
                    received = r.wait(period(1))
            for cpu in cpus if first else reversed(cpus):
                r.thread_control(cpu, NIL_THREAD)
            used.append(system.kernel.frames.used)

    run(root)

    assert 5 == len(used)
    assert 1 == len(set(used)), used


def test_unmapping_by_one_monitor_touches_only_its_machine(control: int) -> None:
    """Two monitors, two machines, one page of memory in both: who loses it when one monitor takes it back?"""
    source = f"start: mov eax, [{MINE}]\n mov ebx, [{THEIRS}]\n cpuid\n jmp start"
    lost: dict[str, list[int]] = {"one": [], "other": []}

    def rounds(l4: L4, cpu: ThreadId, window: int, count: int, faults: list[int], message: Message) -> Message:
        """Serve so many exits; page faults are noted."""
        while count:
            received = l4.call(cpu, message)
            if is_page_fault(received.label):
                faults.append(received.untyped[0])
            else:
                assert R.CPUID == reason_of(received.label)
                count -= 1
            message = answer(received, window)
        return message

    def root(r: Root) -> None:
        me, cpus = r.my_id, [r.new_id(), r.new_id()]
        r.store(WINDOW + CODE, assemble(source, CODE).code)

        def other(l4: L4) -> None:
            l4.accept(Acceptor.of(MEMORY))
            for page in (CODE, MINE, THEIRS):  # root is its pager, and hands it the pages that its own machine has
                l4.load(WINDOW + page, 1)
            message = rounds(l4, cpus[1], WINDOW, 2, lost["other"], launch())
            lost["other"].clear()
            l4.call(me, Message(0x77))
            message = rounds(l4, cpus[1], WINDOW, 2, lost["other"], message)
            l4.call(me, Message(0x77))
            l4.unmap(Fpage.at(WINDOW + MINE))
            message = rounds(l4, cpus[1], WINDOW, 2, lost["other"], message)
            l4.call(me, Message(0x77))

        monitor = r.hosted(other, r.space(Fpage.at(0x90_0000), Fpage.at(0x90_1000)), start=False)
        for cpu, pager in zip(cpus, (me, monitor), strict=True):
            r.thread_control(cpu, cpu, me, utcb_location=UTCB.base)
            r.space_control(cpu, control, KIP, UTCB)
            r.thread_control(cpu, cpu, me, pager)
            configure(r, cpu)
            r.schedule(cpu, 90)

        def turn() -> None:
            """Let the other monitor go on up to its next message."""
            assert 0x77 == r.serve().label

        r.send(monitor, Message().append(0, 0))
        turn()
        message = rounds(r, cpus[0], WINDOW, 2, lost["one"], launch())
        lost["one"].clear()
        r.send(monitor, Message())
        turn()
        assert {"one": [], "other": []} == lost
        r.send(monitor, Message())
        turn()
        message = rounds(r, cpus[0], WINDOW, 2, lost["one"], message)

    run(root)

    assert {"one": [], "other": [MINE]} == lost


def test_a_monitor_cannot_touch_anothers_machine(control: int) -> None:
    """Are ExchangeRegisters and messages of a program that is not its pager in vain?"""
    seen: list[str] = []

    def root(r: Root) -> None:
        cpu = r.new_id()
        r.store(GUEST + CODE, assemble("start: jmp start", CODE).code)
        r.thread_control(cpu, cpu, r.my_id, utcb_location=UTCB.base)
        r.space_control(cpu, control, KIP, UTCB)
        r.thread_control(cpu, cpu, r.my_id, r.my_id)

        def stranger(l4: L4) -> None:
            try:
                l4.exchange_registers(cpu, ExregsControl.ACT_ON_HALT | ExregsControl.HALT)
            except CallRefused:
                seen.append("refused")
            try:
                l4.send(cpu, launch(), period(10))
            except IpcFailed:
                seen.append("unheard")

        r.hosted(stranger, r.space(Fpage.at(0x90_0000), Fpage.at(0x90_1000)))
        r.sleep(1000)

    run(root)

    assert ["refused", "unheard"] == seen
