# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedule and ThreadSwitch: time slices, total quantum, donated time, delayed and signalled preemption."""

from __future__ import annotations

import itertools

import pytest

from l4lab.abi import utcb as u
from l4lab.abi.calls import (
    ErrorCode,
    ExregsControl,
    PreemptionControl,
    ScheduleResult,
    SpaceControlBits,
    TimeControl,
)
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ThreadId, interrupt_id
from l4lab.abi.message import CtrlXferItem, Message
from l4lab.abi.protocols import PREEMPTION, FaultId, is_page_fault, thread_start
from l4lab.abi.time import NEVER, ZERO, period, point
from l4lab.abi.utcb import PreemptionFlags
from l4lab.abi.vm import ExitReason, ItemId, label_of
from l4lab.kernel import events
from l4lab.testing import MEMORY, Root, System, run
from l4lab.user.asm import assemble
from l4lab.user.l4 import L4, CallRefused, IpcFailed, Received

from .test_vm import CODE, GUEST, items, start_state

DATA = MEMORY.base + 0x1000
MS = 1_000_000  # cycles
SPIN = "again: inc dword ptr [DATA]\n jmp again"
SET_FLAGS = f"mov edi, gs:[0]\n mov byte ptr [edi + {u.PREEMPTION_FLAGS}], FLAGS\n"


def times(slice_us: int | None, quantum_us: int | None = None) -> int:
    """A TimeControl word; None: infinite."""
    length, quantum = (NEVER if us is None else period(us) for us in (slice_us, quantum_us))
    return TimeControl.make(time_slice=length, total_quantum=quantum)


# -- total quantum


@pytest.mark.parametrize("answers", [1, 3])
@pytest.mark.parametrize("slice_us", [400, 1000, 100_000, None])
def test_a_used_up_quantum_is_a_message_to_the_scheduler(answers: int, slice_us: int | None) -> None:
    """Does a thread run for its total quantum, then call its scheduler, and for as long again after each answer?"""
    got: list[Received] = []
    counts: list[int] = []

    def root(r: Root) -> None:
        n = r.native(SPIN, start=False, DATA=DATA)
        r.schedule(n.id, time=times(slice_us, 2500))
        r.send(n.id, thread_start(n.at("again"), n.stack))
        for _ in range(answers):
            got.append(r.receive(n.id))
            r.sleep(7000)  # meanwhile it does not run
            counts.append(r.load_word(DATA))
            r.send(n.id, [0])
        got.append(r.receive(n.id))
        counts.append(r.load_word(DATA))

    system = run(root, 200 * MS)

    assert [(PREEMPTION, 2)] * (answers + 1) == [(m.label, m.tag.untyped) for m in got]
    waited = 7000 + 2500
    clocks = [m.untyped[0] | m.untyped[1] << 32 for m in got]
    assert all(waited <= b - a <= waited + 20 for a, b in itertools.pairwise(clocks))
    runs = [b - a for a, b in itertools.pairwise([0, *counts])]
    assert all(abs(2.5 * MS - 2 * count) < 20_000 for count in runs)  # two instructions for each
    assert answers + 1 == sum(e.why == "quantum" for e in system.trace.of(events.Preempted))


def test_a_new_quantum_counts_from_when_it_was_given() -> None:
    """Does writing the total quantum begin a new one, whatever was used of the old; is the old one's rest returned?"""
    got: list[tuple[int, int]] = []
    counts: list[int] = []

    def root(r: Root) -> None:
        n = r.native(SPIN, DATA=DATA)
        r.schedule(n.id, time=times(1000, 5000))
        r.sleep(3200)
        r.schedule(n.id)
        got.append(r.time_left)
        r.schedule(n.id, time=times(1000, 5000))
        counts.append(r.load_word(DATA))
        r.receive(n.id)
        counts.append(r.load_word(DATA))
        r.schedule(n.id, time=times(1000, 1000))
        r.send(n.id, [0])
        r.receive(n.id)
        counts.append(r.load_word(DATA))
        r.schedule(n.id, time=times(1000, None))
        r.send(n.id, [0])
        with pytest.raises(IpcFailed):
            r.receive(n.id, period(50_000))

    run(root, 100 * MS)

    (slice_left, quantum_left) = got[0]
    assert 5000 - 3200 - 20 <= quantum_left <= 5000 - 3200 + 20
    assert 780 <= slice_left <= 820
    assert abs(2.5 * MS - (counts[1] - counts[0])) < 20_000
    assert abs(0.5 * MS - (counts[2] - counts[1])) < 20_000


def test_time_in_ipc_does_not_count() -> None:
    """Does a thread that mostly waits use its quantum by its running time alone?"""
    clocks: list[int] = []

    def root(r: Root) -> None:
        def main(l4: L4) -> None:
            while True:
                l4.sleep(1000)  # some microseconds of running for each

        thread = r.hosted(main, start=False)
        r.schedule(thread, time=times(1000, 100))
        r.send(thread, thread_start(0, 0))
        r.receive(thread)
        clocks.append(r.system_clock())

    run(root, 500 * MS)

    assert 50_000 < clocks[0] < 110_000


@pytest.mark.parametrize("end", ["delete", "cancel", "new scheduler"])
def test_what_ends_the_wait_for_a_scheduler(end: str) -> None:
    """When the scheduler is deleted, the thread halts; when its call is cancelled it calls again, a new one perhaps."""
    got: list[ThreadId] = []

    def root(r: Root) -> None:
        n = r.native(SPIN, start=False, DATA=DATA)
        scheduler = r.hosted(lambda l4: l4.sleep(10**6))
        r.schedule(n.id, time=times(1000, 1000))
        r.thread_control(n.id, r.my_id, scheduler)
        r.send(n.id, thread_start(n.at("again"), n.stack))
        r.sleep(3000)
        if end == "delete":
            r.thread_control(scheduler, NIL_THREAD)
        elif end == "new scheduler":
            r.thread_control(n.id, r.my_id, r.my_id)
        if end != "delete":
            r.exchange_registers(n.id, ExregsControl.ABORT_SEND | ExregsControl.ABORT_RECEIVE)
        if end == "new scheduler":
            got.append(r.receive(n.id).sender)
        r.sleep(3000)
        got.append(n.id)

    system = run(root, 100 * MS)
    thread = got[-1]

    assert (end == "new scheduler") == (len(got) == 2)
    assert (end == "delete") == any(e.thread == thread for e in system.trace.of(events.ThreadHalted))


# -- donated time


def test_thread_switch_donates_the_rest_of_the_slice() -> None:
    """Does the named thread run for what the other had left, at the other's priority, and then for its own slice?"""

    def root(r: Root) -> None:
        low = r.native("again: jmp again", priority=90)
        r.schedule(low.id, time=times(2000))
        high = r.native("mov eax, TO\n call ThreadSwitch\n again: jmp again", start=False, TO=int(low.id))
        r.schedule(high.id, time=times(5000))
        r.send(high.id, thread_start(high.program.origin, high.stack))
        r.schedule(low.id)

    system = run(root, 30 * MS)
    ends = [e for e in system.trace.of(events.Preempted) if e.why != "slice"]

    assert ["switch", "priority"] == [e.why for e in ends][:2]
    assert 5 * MS - 1000 < ends[1].at - ends[0].at < 5 * MS
    assert ends[0].thread != ends[1].thread


def test_thread_switch_to_equals_prolongs_their_slice() -> None:
    """Among equals, does the one that got time run for it and for its own slice without a break?"""

    def root(r: Root) -> None:
        other = r.native("again: jmp again")
        r.schedule(other.id, time=times(2000))
        donor = r.native("mov eax, TO\n call ThreadSwitch\n again: jmp again", start=False, TO=int(other.id))
        r.schedule(donor.id, time=times(5000))
        r.send(donor.id, thread_start(donor.program.origin, donor.stack))
        r.receive(r.my_id)

    system = run(root, 30 * MS)
    donation = next(e for e in system.trace.of(events.Preempted) if e.why == "switch")
    end = next(e for e in system.trace.of(events.Preempted) if e.at > donation.at)

    assert donation.thread != end.thread
    assert 7 * MS - 1000 < end.at - donation.at < 7 * MS


def test_a_yielded_slice_is_not_used() -> None:
    """Does a thread that yields keep of its total quantum what it did not run?"""
    left: list[tuple[int, int]] = []

    def root(r: Root) -> None:
        def main(l4: L4) -> None:
            for _ in range(20):
                l4.thread_switch()
            l4.sleep(10**6)

        thread = r.hosted(main, start=False)
        r.schedule(thread, time=times(1000, 10_000))
        r.send(thread, thread_start(0, 0))
        r.sleep(1000)
        r.schedule(thread)
        left.append(r.time_left)

    run(root, 50 * MS)

    assert 10_000 - 60 < left[0][1] < 10_000


def test_donated_time_is_not_kept() -> None:
    """Does a thread that is given time and yields keep its total quantum, and no more than that?"""
    left: list[int] = []

    def root(r: Root) -> None:
        def taker(l4: L4) -> None:
            for _ in range(20):
                l4.thread_switch()
            l4.sleep(10**6)

        def donor(l4: L4) -> None:
            for _ in range(20):
                l4.thread_switch(given)

        given = r.hosted(taker, r.space(), start=False)
        r.schedule(given, time=times(20, 500))
        donors = r.hosted(donor, r.space())
        r.schedule(donors, time=times(20_000))
        r.send(given, thread_start(0, 0))
        r.sleep(50_000)
        r.schedule(given)
        left.append(r.time_left[1])

    run(root, 200 * MS)

    assert 500 - 20 * 3 < left[0] < 500


# -- delayed and signalled preemption


def _delayed(
    flags: int, sensitive: int, delay: int, preempter: int, source: str = SPIN
) -> tuple[System, ThreadId, int]:
    """A thread that spins with these flags, while one of priority `preempter` wakes at 5 ms. When it ran, in cycles."""
    ids: list[ThreadId] = []

    def root(r: Root) -> None:
        n = r.native(SET_FLAGS + source, start=False, DATA=DATA, FLAGS=flags)
        ids.append(n.id)
        r.schedule(n.id, preemption=PreemptionControl.make(sensitive_priority=sensitive, max_delay=delay))
        r.send(n.id, thread_start(n.program.origin, n.stack))

        def wakes(l4: L4) -> None:
            l4.sleep(5000 - l4.system_clock())
            l4.store_word(DATA + 8, l4.system_clock())
            l4.receive(l4.my_id)

        r.hosted(wakes, priority=preempter)

    system = run(root, 30 * MS)
    return system, ids[0], system.words(DATA + 8)[0]


DELAY, SIGNAL, PENDING = (
    int(flag) for flag in (PreemptionFlags.DELAY, PreemptionFlags.SIGNAL, PreemptionFlags.PENDING)
)


@pytest.mark.parametrize(
    ("flags", "sensitive", "delay", "preempter", "delayed"),
    [
        (DELAY, 150, 700, 150, True),
        (DELAY, 150, 3000, 120, True),
        (DELAY, 150, 9000, 120, True),  # beyond the time slice
        (DELAY, 150, 700, 151, False),
        (DELAY, 150, 0, 120, False),
        (0, 150, 700, 120, False),
    ],
)
def test_preemption_waits_for_who_asks(flags: int, sensitive: int, delay: int, preempter: int, delayed: bool) -> None:
    """With d set, is one of at most the sensitive priority kept waiting for exactly the maximal delay, with I set?"""
    system, thread, woke = _delayed(flags, sensitive, delay, preempter)
    tcb = system.thread(thread)

    assert (delay if delayed else 0) <= woke - 5000 <= (delay if delayed else 0) + 5
    assert delayed == bool(tcb.tcr(u.PREEMPTION_FLAGS) & PENDING)


@pytest.mark.parametrize("to_whom", ["eax, eax", "eax, eax\n mov eax, 0x7f0001"])
def test_thread_switch_ends_a_delay(to_whom: str) -> None:
    """Does a thread that finds I set and calls ThreadSwitch let the preempter run at once, with I clear again?"""
    source = f"""
        again: test byte ptr [edi + {u.PREEMPTION_FLAGS}], {PENDING}
        jz again
        mov ecx, 50000
        more: dec ecx
        jnz more
        xor {to_whom}
        call ThreadSwitch
        mov al, [edi + {u.PREEMPTION_FLAGS}]
        mov [DATA], al
        inc dword ptr [DATA + 4]
        spin: jmp spin
    """
    system, thread, woke = _delayed(DELAY, 150, 3000, 120, source)

    assert 100 <= woke - 5000 <= 110  # 100 000 instructions
    assert [DELAY, 1] == system.words(DATA, 2)
    assert 1 == sum(e.thread == thread for e in system.trace.of(events.Preempted) if e.why == "switch")


def test_a_slice_can_end_later() -> None:
    """Does a thread with d set keep the processor from its equals for the delay when its slice ends, each time anew?"""

    def root(r: Root) -> None:
        for flags in (DELAY, 0):
            n = r.native(SET_FLAGS + SPIN, start=False, DATA=DATA, FLAGS=flags)
            r.schedule(n.id, time=times(2000), preemption=PreemptionControl.make(sensitive_priority=100, max_delay=500))
            r.send(n.id, thread_start(n.program.origin, n.stack))

    system = run(root, 20 * MS)
    ends = [e for e in system.trace.of(events.Preempted) if e.why in ("slice", "priority")]
    lengths = [b.at - a.at for a, b in itertools.pairwise(ends)]

    assert {2 * MS, 2 * MS + MS // 2} == set(lengths)


@pytest.mark.parametrize("handler", [True, False])
def test_preemption_is_signalled_to_who_handles_exceptions(handler: bool) -> None:
    """With s set, does a preempted thread call its exception handler, and wait for the answer; not without handler?"""
    got: list[Received] = []
    counts: list[int] = []

    def root(r: Root) -> None:
        set_handler = f"mov edi, gs:[0]\n mov dword ptr [edi + {u.EXCEPTION_HANDLER}], HANDLER\n"
        n = r.native(set_handler + SET_FLAGS + SPIN, DATA=DATA, FLAGS=SIGNAL, HANDLER=int(r.my_id) if handler else 0)
        r.sleep(3000)
        if handler:
            got.append(r.receive(n.id))
            counts.append(r.load_word(DATA))
            r.sleep(3000)
            counts.append(r.load_word(DATA))
            r.send(n.id, [0])
        r.sleep(3000)
        counts.append(r.load_word(DATA))

    run(root, 30 * MS)

    if handler:
        assert (PREEMPTION, 2) == (got[0].label, got[0].tag.untyped)
        assert 3000 <= got[0].untyped[0] <= 3020
        assert counts[0] == counts[1] < counts[2]
    else:
        assert counts[0] > 2 * MS


def test_a_signalled_message_finds_its_handler_first() -> None:
    """Is the handler of higher priority than the preempter run first, and does all go on after its answer?"""
    order: list[str] = []

    def root(r: Root) -> None:
        def handle(l4: L4) -> None:
            received = l4.wait()
            while True:
                order.append("handler")
                received = l4.reply_wait(received.sender, [0])

        def wakes(l4: L4) -> None:
            for _ in range(3):
                l4.sleep(1000)
                order.append("preempter")

        handler = r.hosted(handle, priority=200)
        set_handler = f"mov edi, gs:[0]\n mov dword ptr [edi + {u.EXCEPTION_HANDLER}], HANDLER\n"
        r.native(set_handler + SET_FLAGS + SPIN, DATA=DATA, FLAGS=SIGNAL, HANDLER=int(handler))
        r.hosted(wakes, priority=150)

    run(root, 30 * MS)

    assert ["handler", "preempter"] * 3 == order


def test_schedules_are_the_same_however_a_run_is_paused() -> None:
    """Quantum, delay, signal and donation: do many short runs leave the same trace as one long one?"""

    def root(r: Root) -> None:
        flags = (DELAY, SIGNAL, DELAY | SIGNAL)
        threads = []
        for flag in flags:
            source = f"mov edi, gs:[0]\n mov dword ptr [edi + {u.EXCEPTION_HANDLER}], ROOT\n" + SET_FLAGS
            source += "again: mov ecx, 30000\n more: dec ecx\n jnz more\n xor eax, eax\n call ThreadSwitch\n"
            source += "mov ecx, 300000\n most: dec ecx\n jnz most\n jmp again"
            n = r.native(source, start=False, ROOT=int(r.my_id), FLAGS=flag)
            control = PreemptionControl.make(sensitive_priority=120, max_delay=70)
            r.schedule(n.id, 100, times(300, 2000), preemption=control)
            threads.append(n)
        for n in threads:
            r.send(n.id, thread_start(n.program.origin, n.stack))
        while True:
            received = r.wait()
            r.sleep(50)
            r.send(received.sender, [0])

    def trace(step: int) -> list[events.Event]:
        system = System(root, check=False)
        while system.machine.clock.cycles < 12 * MS:
            system.kernel.run(min(system.machine.clock.cycles + step, 12 * MS))
        return system.trace.events

    whole = trace(12 * MS)

    assert {"slice", "switch", "quantum", "priority"} == {e.why for e in whole if isinstance(e, events.Preempted)}
    assert whole == trace(777)


# -- arguments and results of Schedule


def _refusal(r: Root, *args: int, **kw: int) -> int:
    try:
        r.schedule(*args, **kw)
    except CallRefused as refused:
        return refused.code
    return int(r.tcr(u.ERROR_CODE))


def test_schedule_refuses_what_the_manual_says() -> None:
    """Does each wrong argument give its error, and change nothing?"""
    codes: dict[str, int] = {}

    def root(r: Root) -> None:
        n = r.native("again: jmp again", priority=90)
        r.set_tcr(u.ERROR_CODE, 77)
        now = r.system_clock()
        control = PreemptionControl.make
        codes["nobody"] = _refusal(r, NIL_THREAD)
        codes["unknown"] = _refusal(r, r.new_id())
        codes["version"] = _refusal(r, n.id + 1)
        codes["point"] = _refusal(r, n.id, 80, time=TimeControl.make(time_slice=point(now, now + 1000)))
        codes["quantum point"] = _refusal(r, n.id, 80, time=TimeControl.make(total_quantum=point(now, now + 1000)))
        codes["processor"] = _refusal(r, n.id, 80, processor=1)
        codes["insensitive"] = _refusal(r, n.id, 80, preemption=control(sensitive_priority=79, max_delay=1))
        codes["interrupt"] = _refusal(r, interrupt_id(3), 200)
        r.thread_control(interrupt_id(3), interrupt_id(3), pager=r.my_id)
        codes["attached"] = _refusal(r, interrupt_id(3), 200)
        codes["all"] = _refusal(r, n.id, 91, times(1000, ZERO), 0, control(sensitive_priority=91, max_delay=1))
        codes["priority"] = r.system.thread(n.id).priority

    run(root, 50 * MS)

    invalid = ErrorCode.INVALID_PARAMETER
    assert {
        **dict.fromkeys(("nobody", "unknown", "version", "interrupt"), ErrorCode.INVALID_THREAD),
        **dict.fromkeys(("point", "quantum point", "processor", "insensitive"), invalid),
        **dict.fromkeys(("attached", "all"), ErrorCode.OK),
        "priority": 91,
    } == codes


def test_an_ordinary_scheduler_stays_below_its_own_priority() -> None:
    """May a scheduler without privilege raise its threads up to its own priority, and only its own threads?"""
    codes: list[int] = []

    def root(r: Root) -> None:
        space = r.space()
        n = r.native("again: jmp again", priority=1)
        stranger = r.native("again: jmp again", priority=1)

        def ordinary(l4: L4) -> None:
            control = PreemptionControl.make
            for dest, kw in (
                (n.id, {"priority": 120}),
                (n.id, {"priority": 121}),
                (n.id, {"preemption": control(sensitive_priority=121)}),
                (n.id, {"preemption": control(sensitive_priority=120, max_delay=5)}),
                (stranger.id, {"priority": 2}),
            ):
                try:
                    l4.schedule(dest, **kw)
                    codes.append(0)
                except CallRefused as refused:
                    codes.append(refused.code)

        thread = r.hosted(ordinary, space, priority=120)
        r.thread_control(n.id, r.my_id, thread)
        r.serve()

    run(root, 50 * MS)

    no = ErrorCode.NO_PRIVILEGE
    assert [0, no, no, 0, no] == codes


def test_schedule_tells_what_a_thread_does() -> None:
    """Is the result dead, inactive, running, pending send or waiting, as the thread is?"""
    got: list[ScheduleResult] = []

    def root(r: Root) -> None:
        utcb = Fpage.at(0x0080_0000)
        dead, spinner = r.space(utcb=utcb), r.native("again: jmp again", priority=10)
        halted, waiting = r.native("ud2"), r.create()
        sender = r.hosted(lambda l4: l4.send(spinner.id, [0]))
        r.sleep(1000)
        for thread in (dead, halted.id, spinner.id, sender, waiting):
            got.append(r.schedule(thread))
        r.exchange_registers(waiting, ExregsControl.HALT | ExregsControl.ACT_ON_HALT)
        got.append(r.schedule(waiting))

    run(root, 50 * MS)

    s = ScheduleResult
    assert [s.DEAD, s.INACTIVE, s.RUNNING, s.PENDING_SEND, s.WAITING, s.INACTIVE] == got


def test_an_infinite_slice_never_ends() -> None:
    """Does a thread with an infinite time slice keep its equals waiting?"""

    def root(r: Root) -> None:
        first = r.native(SPIN, start=False, DATA=DATA)
        second = r.native(SPIN, start=False, DATA=DATA + 4)
        r.schedule(first.id, time=times(None))
        for n in (second, first):  # the last one that was sent to is the first to run
            r.send(n.id, thread_start(n.program.origin, n.stack))

    assert [0] == run(root, 50 * MS).words(DATA + 4)


def test_a_virtual_cpu_has_a_quantum_too() -> None:
    """Does a guest that only spins end its vCPU's quantum, and do register items of the scheduler's answer count?"""
    got: list[Received] = []
    ips: list[int] = []

    def root(r: Root) -> None:
        vcpu = r.create(r.space(Fpage.at(0x80_0000), Fpage.at(0x80_1000), SpaceControlBits.VM))
        r.store(GUEST + CODE, assemble("again: jmp again\n nop\n hlt", CODE).code)
        item = CtrlXferItem.make(id=FaultId.PREEMPTION, mask=1 << ItemId.GPREGS)
        r.exchange_registers(vcpu, ExregsControl.CONFIGURE_ITEMS, items=[item])
        r.schedule(vcpu, time=times(1000, 3000))
        received = r.call(vcpu, start_state())
        while is_page_fault(received.label):
            page = received.untyped[0] & -4096
            received = r.call(vcpu, Message().append_map(Fpage.at(GUEST + page), page))
        got.append(received)
        ips.append(items(received)[ItemId.GPREGS][0])
        got.append(r.call(vcpu, Message().append_registers(ItemId.GPREGS, {0: CODE + 3})))

    run(root, 50 * MS)

    assert (PREEMPTION, CODE) == (got[0].label, ips[0])
    assert label_of(ExitReason.HLT) == got[1].label


def test_a_virtual_cpu_that_becomes_a_program_leaves_its_privileges() -> None:
    """Does a virtual CPU with I/O privilege in its EFLAGS run without it after it was moved to an ordinary space?"""

    def root(r: Root) -> None:
        plain = r.space()
        thread = r.create(r.space(control=SpaceControlBits.VM))
        words = Message().append_registers(ItemId.GPREGS, {1: 0x3002}).typed
        r.exchange_registers(thread, ExregsControl.WRITE_ITEMS, items=words)
        r.thread_control(thread, plain)
        program = r.assemble(f"pushfd\n pop dword ptr [{DATA}]\n cli\n mov dword ptr [{DATA + 4}], 1\n hlt")
        r.send(thread, thread_start(program.origin, DATA + 0x800))
        r.serve()

    assert [0x202, 0] == run(root, 50 * MS).words(DATA, 2)
