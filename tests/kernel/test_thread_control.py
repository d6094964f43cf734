# SPDX-License-Identifier: GPL-2.0-or-later
"""ThreadControl and SpaceControl: every refusal, and threads that go, move and change their names in every state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import utcb as u
from l4lab.abi.calls import ErrorCode, ExregsControl, SpaceControlBits, TimeControl
from l4lab.abi.fpage import NILPAGE, Fpage
from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ROOT_TASK, SIGMA0, ThreadId, global_id, interrupt_id
from l4lab.abi.message import IpcErrorCode, Message
from l4lab.abi.protocols import PAGE_FAULT, thread_start
from l4lab.abi.time import ZERO, period
from l4lab.kernel import events
from l4lab.kernel.boot import KIP_AREA, UTCB_AREA
from l4lab.kernel.objects.thread import ThreadState
from l4lab.testing import MEMORY, Root, run
from l4lab.user.l4 import L4, CallRefused, IpcFailed

DATA = MEMORY.base + 0x1000
E = ErrorCode
OTHER_KIP, OTHER_UTCB = Fpage.at(0x00C0_0000), Fpage.at(0x0080_0000, 13)
MS = 1_000_000


def refusal(r: L4, call: Callable[[], object]) -> int:
    """The error code of a call; 0 if it is granted."""
    try:
        call()
    except CallRefused as refused:
        return refused.code
    return 0


# -- arguments


def test_thread_control_refuses_in_the_order_of_the_manual() -> None:
    """Does each wrong argument give its error, also where several are wrong, and is nothing changed by it?"""
    got: dict[str, int] = {}

    def root(r: Root) -> None:
        me, new, at = r.my_id, r.new_id(), UTCB_AREA.base + 100 * u.SIZE
        active, inactive, raw = r.create(), r.new_id(), r.new_id()
        r.thread_control(inactive, me, me)
        r.thread_control(raw, raw, me)  # in a space without areas
        machine = r.space(utcb=OTHER_UTCB, kip=OTHER_KIP)
        before = r.system.kernel.frames.available, len(r.system.kernel.threads)

        def t(name: str, *args: int, **kw: int) -> None:
            got[name] = refusal(r, lambda: r.thread_control(*args, **kw))

        t("3 local dest", UTCB_AREA.base + 0x100, me, me)
        t("3 nil dest", NIL_THREAD, me, me)
        t("2 kernel's", global_id(20), me, me)
        t("2 beyond the bits", global_id(1 << 17), me, me)
        t("2 oneself", me, NIL_THREAD)
        t("0 nobody", new, NIL_THREAD)
        t("3 active in its own new space", new, new, me, me, at)
        t("3 no such space", new, global_id(999), me, me, at)
        t("3 version of the space", new, global_id(me.thread_no, 2), me, me, at)
        t("3 no space, no scheduler", new, global_id(999))
        t("2 no scheduler", new, me, NIL_THREAD, me, at)
        t("3 a space without areas", new, raw, me, me, at)
        t("6 no location", new, me, me, me)
        t("6 unaligned", new, me, me, me, at + 256)
        t("6 below", new, me, me, me, UTCB_AREA.base - u.SIZE)
        t("6 above", new, me, me, me, UTCB_AREA.base + UTCB_AREA.size)
        t("6 the KIP", new, me, me, me, KIP_AREA.base)
        t("6 taken", new, me, me, me, UTCB_AREA.base)
        t("6 of an active thread", active, me, utcb_location=at)
        t("6 outside its space", inactive, me, utcb_location=0x1000)
        t("3 moved to nowhere", active, global_id(999))
        t("6 moved where its UTCB cannot be", active, machine)
        t("3 moved to a space without areas", inactive, raw, NIL_THREAD, me, at)
        t("6 activated without location", inactive, me, NIL_THREAD, me)
        t("6 activated in a taken place", inactive, me, NIL_THREAD, me, UTCB_AREA.base)
        t("2 a line's version", global_id(3, 2), global_id(3, 2), NIL_THREAD, me)
        t("2 a line's handler", interrupt_id(3), interrupt_id(3), NIL_THREAD, global_id(999))
        outside = r.new_id()
        t("0 inactive, outside", outside, me, me, NIL_THREAD, at + 256)
        t("6 and activated there", outside, me, NIL_THREAD, me)
        t("0 gone again", outside, NIL_THREAD)
        got["frames"] = int(before == (r.system.kernel.frames.available, len(r.system.kernel.threads)))
        got["location"] = r.system.thread(inactive).utcb_location

    run(root)

    assert {name: int(name[0]) for name in got if name[0].isdigit()} | {"frames": 1, "location": 0} == got


def test_space_control_refuses_in_the_order_of_the_manual() -> None:
    """Does each wrong argument give its error and leave the space without areas; are both legal at odd places?"""
    got: dict[str, int] = {}

    def root(r: Root) -> None:
        raw = r.new_id()
        r.thread_control(raw, raw, r.my_id)
        kip, utcb = Fpage.at(0x1000), Fpage.at(0x2000)

        def t(
            name: str, space: int, kip: Fpage = kip, utcb: Fpage = utcb, redirector: int = 0, control: int = 0
        ) -> None:
            got[name] = refusal(r, lambda: r.space_control(space, control, kip, utcb, redirector))

        t("3 local", UTCB_AREA.base + 0x100)
        t("3 nil", NIL_THREAD)
        t("3 version", global_id(raw.thread_no, 2))
        t("3 nobody", global_id(999))
        t("3 a line", interrupt_id(3))
        t("6 nil", raw, utcb=NILPAGE, kip=NILPAGE)
        t("6 small", raw, utcb=Fpage.make(b=0x2000 >> 10, s=11))
        t("6 ports", raw, utcb=Fpage.make(b=0, s=2))
        t("6 beyond the user area", raw, utcb=Fpage.at(0xE000_0000), kip=NILPAGE)
        t("6 complete", raw, utcb=Fpage.at(0, 32))
        t("7 nil", raw, kip=NILPAGE)
        t("7 beyond", raw, kip=Fpage.at(0xFFFF_F000))
        t("7 overlap", raw, kip=Fpage.at(0, 16))
        t("2 redirector", raw, redirector=global_id(999))
        got["initialised"] = int(r.system.thread(raw).space.initialised)
        t("0 legal", raw, kip=Fpage.at(0), utcb=Fpage.at(0xDFFF_F000))
        t("0 ignored the second time", raw, kip=NILPAGE, utcb=NILPAGE)
        t("3 a hosted program's as a virtual machine", r.my_id, control=SpaceControlBits.VM)

    run(root)

    assert {name: int(name[0]) for name in got if name[0].isdigit()} | {"initialised": 0} == got


@pytest.mark.parametrize("kip", [0, 0x7FFF_F000, 0xDFFF_F000], ids=hex)
@pytest.mark.parametrize("utcb", [0x1000, 0x3FFF_F000, 0xDFFF_E000], ids=hex)
def test_areas_can_be_anywhere(kip: int, utcb: int) -> None:
    """Do programs run with KIP and UTCBs at the edges of the user area?"""

    def root(r: Root) -> None:
        space = r.space(Fpage.at(kip), Fpage.at(utcb))
        r.native(
            f"call SystemClock\n mov [{DATA}], eax\n mov eax, gs:[0]\n mov [{DATA + 4}], eax\n ud2", space, kip=kip
        )
        r.serve()

    clock, local = run(root).words(DATA, 2)

    assert clock > 0
    assert utcb + u.MR0_FROM_LOCATION == local


def test_the_redirector_is_kept() -> None:
    """Is a space's redirector what was set last, nobody at first and by anythread, and left alone by nilthread?"""
    got: list[int] = []

    def root(r: Root) -> None:
        space, thread = r.space(), r.create()
        for redirector in (NIL_THREAD, thread, NIL_THREAD, ANY_THREAD):
            r.space_control(space, 0, NILPAGE, NILPAGE, redirector)
            got.append(r.system.thread(space).space.redirector)
        got.append(thread)

    run(root)

    assert [NIL_THREAD, got[-1], got[-1], NIL_THREAD] == got[:4]


def test_local_identifiers_are_good_arguments() -> None:
    """Do pager, scheduler and space of ThreadControl mean the same as local identifiers, natively and hosted?"""
    got: list[int] = []

    def root(r: Root) -> None:
        helper = r.create()
        local = UTCB_AREA.base + u.MR0_FROM_LOCATION
        r.thread_control(r.new_id(), local, local, local, UTCB_AREA.base + 60 * u.SIZE)
        new = r.new_id()
        text = (
            f"mov edi, {UTCB_AREA.base + 61 * u.SIZE}\n mov eax, NEW\n mov ecx, LOCAL\n mov edx, ecx\n mov esi, ecx\n"
        )
        r.native(f"{text} call ThreadControl\n mov [{DATA}], eax\n ud2", NEW=int(new), LOCAL=int(local))
        r.sleep(1000)
        for thread in (new, global_id(new.thread_no - 1)):
            tcb = r.system.thread(thread)
            got.extend((tcb.scheduler, tcb.tcr(u.PAGER), tcb.space is r.system.thread(helper).space))

    assert [1] == run(root).words(DATA)
    assert [ROOT_TASK, ROOT_TASK, True] * 2 == got


def test_a_fresh_thread_finds_a_fresh_utcb() -> None:
    """Does a thread that gets a deleted one's UTCB find its control registers as a new thread has them?"""
    got: list[int] = []

    def root(r: Root) -> None:
        first = r.native(
            "mov edi, gs:[0]\n mov ecx, 14\n mov dword ptr [edi - 64], -1\n"
            "next: mov dword ptr [edi + ecx*4 - 60], -1\n loop next\n hlt"
        )
        r.sleep(100)
        location = r.system.thread(first.id).utcb_location
        r.thread_control(first.id, NIL_THREAD)
        new = r.new_id()
        r.thread_control(new, r.my_id, r.my_id, SIGMA0, location)
        tcb = r.system.thread(new)
        got.extend(tcb.tcr(offset) for offset in (u.BR0, u.PREEMPTION_FLAGS, u.XFER_TIMEOUTS, u.EXCEPTION_HANDLER))
        got.extend((tcb.tcr(u.USER_DEFINED_HANDLE), tcb.tcr(u.PAGER), tcb.tcr(u.MY_GLOBAL_ID) == new))

    run(root)

    assert [0, 0, 0, 0, 0, SIGMA0, True] == got


# -- threads in every state

SPIN = "again: inc dword ptr [DATA]\n jmp again"
CALL = "mov edi, gs:[0]\n mov eax, TO\n mov edx, FROM\n mov ecx, TIMES\n xor esi, esi\n call Ipc\n" + SPIN


def inactive(r: Root, space: ThreadId) -> ThreadId:
    thread = r.new_id()
    r.thread_control(thread, space or r.my_id, r.my_id)
    return thread


def ipc(to: ThreadId, from_: ThreadId, times: int = 0) -> Callable[[Root, ThreadId], ThreadId]:
    return lambda r, space: r.native(CALL, space, TO=int(to), FROM=int(from_), TIMES=times, DATA=DATA).id


def quantum(r: Root, space: ThreadId) -> ThreadId:
    n = r.native(SPIN, space, start=False, DATA=DATA)
    r.schedule(n.id, time=TimeControl.make(time_slice=period(1000), total_quantum=period(10)))
    r.send(n.id, thread_start(n.program.origin, n.stack))
    return n.id


def halted(r: Root, space: ThreadId) -> ThreadId:
    n = r.native(SPIN, space, DATA=DATA)
    r.exchange_registers(n.id, ExregsControl.HALT | ExregsControl.ACT_ON_HALT)
    return n.id


def halting(r: Root, space: ThreadId) -> ThreadId:
    thread = ipc(NIL_THREAD, ROOT_TASK)(r, space)
    r.exchange_registers(thread, ExregsControl.HALT | ExregsControl.ACT_ON_HALT)
    return thread


def excepting(r: Root, space: ThreadId) -> ThreadId:
    text = f"mov edi, gs:[0]\n mov dword ptr [edi + {u.EXCEPTION_HANDLER}], HANDLER\n ud2"
    return r.native(text, space, HANDLER=int(ROOT_TASK)).id


def faulting(r: Root, space: ThreadId) -> ThreadId:
    thread = r.native("mov eax, [0x00900000]", space).id
    r.thread_control(thread, space or r.my_id, pager=BUSY)
    return thread


BUSY = global_id(300)  # a thread that never receives
STATES: dict[str, Callable[[Root, ThreadId], ThreadId]] = {
    "inactive": inactive,
    "not started": lambda r, space: r.create(space),
    "running": lambda r, space: r.native(SPIN, space, DATA=DATA).id,
    "polling": ipc(BUSY, NIL_THREAD),
    "polling, with timeout": ipc(BUSY, BUSY, period(60_000_000) << 16),
    "waiting": ipc(NIL_THREAD, BUSY),
    "waiting for anyone, with timeout": ipc(NIL_THREAD, ANY_THREAD, period(60_000_000)),
    "faulting": lambda r, space: r.native("mov eax, [0x00900000]", space).id,
    "faulting, pager busy": faulting,
    "at a port": lambda r, space: r.native("in al, 0x60", space).id,
    "at an exception": excepting,
    "without time": quantum,
    "halted": halted,
    "halted in IPC": halting,
}


def busy(r: Root) -> None:
    r.native("ud2", id_=BUSY)  # halted for good


def settle(r: Root) -> None:
    """Let everybody get where they will be; serve their memory."""
    with suppress(IpcFailed):
        while True:
            received = r.wait(period(300))
            if received.label & ~7 == PAGE_FAULT and MEMORY.covers(received.untyped[0]):
                page = Fpage.at(received.untyped[0] & -4096)
                r.send(received.sender, Message().append_map(page, page.base), ZERO)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_deletion_in_every_state_leaves_nothing_behind(state: str, apart: bool) -> None:
    """Is a thread deleted in this state gone for good, with every frame, and whoever sends to it told?"""
    free: list[int] = []
    codes: list[int] = []

    def root(r: Root) -> None:
        busy(r)
        for _ in range(3):
            space = r.space() if apart else NIL_THREAD
            thread = STATES[state](r, space)
            settle(r)

            def sender(l4: L4, thread: ThreadId = thread) -> None:
                try:
                    l4.send(thread, [0])
                except IpcFailed as failed:
                    codes.append(failed.error.code)

            other = r.hosted(sender)
            settle(r)
            r.thread_control(thread, NIL_THREAD)
            if apart:
                r.thread_control(space, NIL_THREAD)
            settle(r)
            r.thread_control(other, NIL_THREAD)
            assert thread.thread_no not in r.system.kernel.threads
            free.append(r.system.kernel.frames.available)

    run(root, 20 * MS)

    assert [free[-1]] * 2 == free[1:]  # the first time register frames and tables of the mappings stay
    takes_it = state in ("waiting for anyone, with timeout",)
    assert ([] if takes_it else [IpcErrorCode.NO_PARTNER] * 3) == codes


@pytest.mark.parametrize("state", STATES)
def test_moving_in_every_state(state: str) -> None:
    """Is a thread that is moved in this state at home in the new space, its IPC aborted; does its old space end?"""

    def root(r: Root) -> None:
        busy(r)
        old, new = r.space(), r.space()
        thread = STATES[state](r, old)
        settle(r)
        r.thread_control(old, NIL_THREAD)  # the thread is the last one there
        spaces = len(r.system.kernel.spaces)
        before = r.system.thread(thread)
        state_before, was_started = before.state, before.state is not ThreadState.ABORTED
        r.thread_control(thread, new)
        after = r.system.thread(thread)
        assert spaces - 1 == len(r.system.kernel.spaces)
        assert after.space is r.system.thread(new).space
        if state_before in (ThreadState.WAITING, ThreadState.POLLING) and state != "not started":
            assert after.state is ThreadState.RUNNING
        else:
            assert after.state is state_before
        settle(r)
        if was_started and state != "not started":
            assert after.tcr(u.MY_GLOBAL_ID) == thread
        r.thread_control(thread, NIL_THREAD)
        r.thread_control(new, NIL_THREAD)

    run(root, 100 * MS)


def test_a_thread_can_be_moved_before_it_starts() -> None:
    """Does a thread that was moved while it waited for its start message start in the new space?"""

    def root(r: Root) -> None:
        old, new = r.space(), r.space()
        n = r.native(f"mov dword ptr [{DATA}], 1\n ud2", old, start=False)
        r.thread_control(n.id, new)
        r.send(n.id, thread_start(n.program.origin, n.stack))
        r.serve(2)

    assert [1] == run(root).words(DATA)


def test_a_thread_that_has_not_started_outlives_its_pager() -> None:
    """Does a new thread whose pager is deleted wait on, and start when a new pager sends?"""

    def root(r: Root) -> None:
        pager = r.create()
        n = r.native(f"mov dword ptr [{DATA}], 1\n hlt", pager=pager, start=False)
        r.thread_control(pager, NIL_THREAD)
        r.sleep(100)
        assert r.system.thread(n.id).state is ThreadState.WAITING
        r.thread_control(n.id, r.my_id, NIL_THREAD, r.my_id)
        r.send(n.id, thread_start(n.program.origin, n.stack), ZERO)

    assert [1] == run(root).words(DATA)


@pytest.mark.parametrize("kind", ["native", "hosted"])
def test_a_new_version_is_a_new_name(kind: str) -> None:
    """After a change of version: does the old name name nobody, for senders and waiters, and the new one the thread?"""
    codes: list[tuple[int, bool]] = []
    got: list[bool] = []

    def root(r: Root) -> None:
        thread = r.native(SPIN, DATA=DATA).id if kind == "native" else r.hosted(lambda l4: l4.sleep(10**6))

        def client(times: str) -> Callable[[L4], None]:
            def main(l4: L4) -> None:
                try:
                    l4.send(thread, [0]) if times == "send" else l4.receive(thread)
                except IpcFailed as failed:
                    codes.append((failed.error.code, failed.error.in_receive))

            return main

        for what in ("send", "receive"):
            r.hosted(client(what))
        r.thread_control(interrupt_id(3), interrupt_id(3), pager=thread)
        r.sleep(1000)
        new = global_id(thread.thread_no, 2)
        r.thread_control(new, thread)
        r.sleep(1000)
        got.append(refusal(r, lambda: r.schedule(thread, 50)) == E.INVALID_THREAD)
        got.append(refusal(r, lambda: r.schedule(new, 50)) == 0)
        got.append(r.system.thread(new).tcr(u.MY_GLOBAL_ID) == new)
        r.thread_control(new, NIL_THREAD)

    run(root, 100 * MS)

    assert [(IpcErrorCode.NO_PARTNER, False), (IpcErrorCode.CANCELLED, True)] == sorted(codes)
    assert [True] * 3 == got


def test_an_exception_of_a_deleted_handlers_client_halts_it() -> None:
    """When the pager or handler that a fault waits for is deleted, does the faulting thread halt?"""

    def root(r: Root) -> None:
        handler = r.hosted(lambda l4: l4.sleep(10**7))
        text = f"mov edi, gs:[0]\n mov dword ptr [edi + {u.EXCEPTION_HANDLER}], HANDLER\n ud2"
        r.native(text, HANDLER=int(handler))
        r.sleep(100)
        r.thread_control(handler, NIL_THREAD)

    assert any("does not exist" in e.why for e in run(root, 50 * MS).trace.of(events.ThreadHalted))


# -- anything in any order


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["make", "make apart", "delete", "move", "rename", "halt", "resume", "abort", "wait", "pager"]),
        st.sampled_from(sorted(STATES)),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS)
def test_no_order_of_calls_breaks_the_kernel(actions: list[tuple[str, str, int, int]]) -> None:
    """For any sequence of ThreadControl and ExchangeRegisters: do the invariants hold, and is all given back?"""
    free: list[int] = []

    def root(r: Root) -> None:
        busy(r)
        homes = [r.space() for _ in range(3)]
        threads: list[ThreadId] = []
        settle(r)

        def all_gone() -> None:
            for thread in threads:
                r.thread_control(thread, NIL_THREAD)
            threads.clear()
            settle(r)
            free.append(r.system.kernel.frames.available)

        for what, state, a, b in actions:
            with suppress(CallRefused):
                if what.startswith("make"):
                    threads.append(STATES[state](r, homes[a % 3] if what == "make apart" else NIL_THREAD))
                    continue
                if what == "wait":
                    settle(r)
                if not threads:
                    continue
                at = a % len(threads)
                thread = threads[at]
                if what == "delete":
                    r.thread_control(threads.pop(at), NIL_THREAD)
                elif what == "move":
                    r.thread_control(thread, homes[b % 3])
                elif what == "rename":
                    new = global_id(thread.thread_no, thread.version % 60 + 1)
                    r.thread_control(new, thread)
                    threads[at] = new
                elif what == "halt":
                    r.exchange_registers(thread, ExregsControl.HALT | ExregsControl.ACT_ON_HALT)
                elif what == "resume":
                    r.exchange_registers(thread, ExregsControl.ACT_ON_HALT)
                elif what == "abort":
                    r.exchange_registers(thread, ExregsControl.ABORT_SEND | ExregsControl.ABORT_RECEIVE)
                elif what == "pager":
                    r.thread_control(thread, thread, NIL_THREAD, threads[b % len(threads)])
        all_gone()
        for home in homes:
            r.thread_control(home, NIL_THREAD)
        free.append(r.system.kernel.frames.available)
        pages = len(r.system.kernel.register_frames.pages)
        free.append(r.system.kernel.frames.available + pages)

    def nothing(r: Root) -> None:
        busy(r)
        settle(r)
        free.append(r.system.kernel.frames.available + len(r.system.kernel.register_frames.pages))

    run(root, 100 * MS)
    used = free[-1]
    run(nothing, 10 * MS)

    assert free[-1] - used in (0, 1)  # root's UTCB area may have got a second page


def test_frames_of_a_machine_that_was_made_and_moved() -> None:
    """Are a virtual CPU's frames given back when it is deleted, moved away, or its space ends?"""
    free: list[int] = []

    def root(r: Root) -> None:
        for way in ("delete", "move", "delete"):
            machine, plain = r.space(control=SpaceControlBits.VM), r.space()
            vcpu = r.create(machine)
            if way == "move":
                r.thread_control(vcpu, plain)
            r.thread_control(vcpu, NIL_THREAD)
            r.thread_control(plain, NIL_THREAD)
            r.thread_control(machine, NIL_THREAD)
            free.append(r.system.kernel.frames.available)

    run(root)

    assert [free[0]] * 3 == free
