# SPDX-License-Identifier: GPL-2.0-or-later
"""VM entries: which states the CPU refuses, which it takes, and what it does with events and with guests that sleep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.calls import ExregsControl
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD
from l4lab.abi.message import Message
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.time import period
from l4lab.abi.vm import ITEM_REGISTERS, ExitReason, ItemId, reason_of
from l4lab.kernel import events
from l4lab.kernel.objects.thread import ThreadState
from l4lab.testing import PAGE, Root, System, run
from l4lab.user.asm import assemble
from l4lab.user.l4 import IpcFailed, Received

from .test_vm import (
    CODE,
    EFLAGS,
    EIP,
    ESP,
    GUEST,
    HLT,
    IDT,
    IO,
    KIP,
    SIZE,
    STACK,
    UTCB,
    VALID,
    WINDOW,
    Vm,
    items,
    monitor,
)
from .test_vm import start_state as protected

R = ExitReason
I = ItemId  # noqa: E741
IF, TF, V8086 = 1 << 9, 1 << 8, 1 << 17
HARDWARE, SOFTWARE, NMI, WITH_CODE = 3 << 8, 4 << 8, 2 << 8, 1 << 11
ENTRY_INFO, ENTRY_EEC, ENTRY_ILEN = 3, 4, 5
ACTIVITY, BLOCKING, PENDING = 0, 1, 2
Writes = dict[ItemId, dict[int, int]]
NOP = "nop\n nop\n hlt"


def message(writes: Writes) -> Message:
    """A reply with these registers."""
    m = Message()
    for item in sorted(writes):
        m.append_registers(item, writes[item])
    return m


def after(writes: Writes, source: str = NOP, then: Callable[[Vm], None] | None = None) -> Received:
    """The exit after a guest that stands at CODE, having halted once, was given these registers."""

    def steps(vm: Vm) -> None:
        vm.go(message({**writes, I.GPREGS: {EIP: CODE} | writes.get(I.GPREGS, {})}))
        if then is not None:
            then(vm)

    return monitor("hlt\n" + source if then else source, steps)[1]


# -- what is refused

REFUSED: dict[str, Writes] = {
    "reserved bit of the event": {I.NONREGEXC: {ENTRY_INFO: VALID | HARDWARE | 6 | 1 << 13}},
    "NMI unblocking on entry": {I.NONREGEXC: {ENTRY_INFO: VALID | NMI | 2 | 1 << 12}},
    "type 1": {I.NONREGEXC: {ENTRY_INFO: VALID | 1 << 8 | 6}},
    "type 7": {I.NONREGEXC: {ENTRY_INFO: VALID | 7 << 8}},
    "NMI of vector 3": {I.NONREGEXC: {ENTRY_INFO: VALID | NMI | 3}},
    "exception 32": {I.NONREGEXC: {ENTRY_INFO: VALID | HARDWARE | 32}},
    "#GP without error code": {I.NONREGEXC: {ENTRY_INFO: VALID | HARDWARE | 13}},
    "#UD with error code": {I.NONREGEXC: {ENTRY_INFO: VALID | HARDWARE | WITH_CODE | 6}},
    "INT n with error code": {I.NONREGEXC: {ENTRY_INFO: VALID | SOFTWARE | WITH_CODE | 14, ENTRY_ILEN: 2}},
    "error code of 17 bits": {I.NONREGEXC: {ENTRY_INFO: VALID | HARDWARE | WITH_CODE | 14, ENTRY_EEC: 1 << 16}},
    "#GP with error code in real mode": {
        I.NONREGEXC: {ENTRY_INFO: VALID | HARDWARE | WITH_CODE | 13},
        I.CREGS: {0: 0x10},
    },
    "INT n of no length": {I.NONREGEXC: {ENTRY_INFO: VALID | SOFTWARE | 0x80, ENTRY_ILEN: 0}},
    "INT n of 16 bytes": {I.NONREGEXC: {ENTRY_INFO: VALID | SOFTWARE | 0x80, ENTRY_ILEN: 16}},
    "interrupt with IF clear": {I.NONREGEXC: {ENTRY_INFO: VALID | 0x30}},
    "interrupt behind STI": {I.NONREGEXC: {ENTRY_INFO: VALID | 0x30, BLOCKING: 1}, I.GPREGS: {EFLAGS: 2 | IF}},
    "interrupt behind MOV SS": {I.NONREGEXC: {ENTRY_INFO: VALID | 0x30, BLOCKING: 2}, I.GPREGS: {EFLAGS: 2 | IF}},
    "NMI behind MOV SS": {I.NONREGEXC: {ENTRY_INFO: VALID | NMI | 2, BLOCKING: 2}},
    "activity 4": {I.NONREGEXC: {ACTIVITY: 4}},
    "HLT in ring 3": {I.NONREGEXC: {ACTIVITY: 1}, I.SS: {3: 0xC0F3}, I.CS: {3: 0xC0FB}},
    "HLT behind MOV SS": {I.NONREGEXC: {ACTIVITY: 1, BLOCKING: 2}},
    "HLT woken by #UD": {I.NONREGEXC: {ACTIVITY: 1, ENTRY_INFO: VALID | HARDWARE | 6}},
    "shutdown woken by an interrupt": {
        I.NONREGEXC: {ACTIVITY: 2, ENTRY_INFO: VALID | 0x30},
        I.GPREGS: {EFLAGS: 2 | IF},
    },
    "wait-for-SIPI woken by an NMI": {I.NONREGEXC: {ACTIVITY: 3, ENTRY_INFO: VALID | NMI | 2}},
    "STI and MOV SS": {I.NONREGEXC: {BLOCKING: 3}, I.GPREGS: {EFLAGS: 2 | IF}},
    "STI with IF clear": {I.NONREGEXC: {BLOCKING: 1}},
    "SMI": {I.NONREGEXC: {BLOCKING: 4}},
    "interruptibility bit 4": {I.NONREGEXC: {BLOCKING: 16}},
    "pending debug bit 4": {I.NONREGEXC: {PENDING: 16}},
    "BS behind MOV SS without TF": {I.NONREGEXC: {PENDING: 1 << 14, BLOCKING: 2}},
    "TF behind MOV SS without BS": {I.NONREGEXC: {BLOCKING: 2}, I.GPREGS: {EFLAGS: 2 | TF}},
    "PG without PE": {I.CREGS: {0: 1 << 31}},
    "EFLAGS bit 3": {I.GPREGS: {EFLAGS: 2 | 8}},
    "EFLAGS bit 31": {I.GPREGS: {EFLAGS: 2 | 1 << 31}},
    "VM with flat segments": {I.GPREGS: {EFLAGS: 2 | V8086}},
    "DEBUGCTL bit 3": {I.OTHERREGS: {3: 8}},
    "code segment absent": {I.CS: {3: 0xC01B}},
    "code segment unusable": {I.CS: {3: 0x1_C09B}},
    "code segment of a system type": {I.CS: {3: 0xC08B}},
    "data segment as code": {I.CS: {3: 0xC091}},
    "code not accessed is read as accessed, but not data": {I.CS: {3: 0xC092 | 4}},
    "code of another ring": {I.CS: {3: 0xC0FB}},
    "conforming code below the stack": {I.CS: {3: 0xC0DF}},
    "pages that end early": {I.CS: {2: 0xF_0000, 3: 0xC09B}},
    "bytes beyond 20 bits": {I.DS: {2: 0xFFFF_FFFF, 3: 0x4093}},
    "attribute bit 8": {I.DS: {3: 0xC193}},
    "attribute bit 17": {I.ES: {3: 0x2_C093}},
    "stack that cannot be written": {I.SS: {3: 0xC091}},
    "code as stack": {I.SS: {3: 0xC09B}},
    "code that cannot be read as data": {I.DS: {3: 0xC099}},
    "no task": {I.TR: {3: 0x1_0000}},
    "a table as task": {I.TR: {3: 0x82}},
    "task in the local table": {I.TR: {0: 4}},
    "a task as local table": {I.LDTR: {3: 0x8B}},
    "IDT of 17 bits": {I.IDTR: {1: 0x1_0000}},
    "GDT of 17 bits": {I.GDTR: {1: 0x1_0000}},
}


@pytest.mark.parametrize("writes", REFUSED.values(), ids=REFUSED)
def test_an_invalid_state_is_never_entered(writes: Writes) -> None:
    """Does the monitor hear of a failed entry, nothing executed and the event kept, as often as it does not repair?"""
    at: list[list[int]] = []

    def steps(vm: Vm) -> None:
        vm.go(message({**writes, I.GPREGS: {EIP: CODE} | writes.get(I.GPREGS, {})}))
        at.append(vm.read(I.NONREGEXC))
        vm.go(Message())

    seen = monitor(NOP, steps)
    event = writes.get(I.NONREGEXC, {}).get(ENTRY_INFO, 0)

    assert [R.HLT, R.ENTRY_FAILURE_GUEST_STATE, R.ENTRY_FAILURE_GUEST_STATE] == [reason_of(got.label) for got in seen]
    assert [CODE, CODE] == [items(got)[I.GPREGS][EIP] for got in seen[1:]]
    assert [0, 0, 0] == seen[1].untyped
    assert event == at[0][ENTRY_INFO]


@pytest.mark.parametrize("name", ["interrupt with IF clear", "code segment absent", "HLT in ring 3", "attribute bit 8"])
def test_a_refused_state_can_be_repaired(name: str) -> None:
    """After the monitor has put right what was wrong, does the guest go on as if nothing had been?"""
    repair: Writes = {
        I.NONREGEXC: {ENTRY_INFO: 0, ACTIVITY: 0},
        I.SS: {3: 0xC093},
        I.DS: {3: 0xC093},
        I.CS: {3: 0xC09B},
    }

    def steps(vm: Vm) -> None:
        vm.go(message({**REFUSED[name], I.GPREGS: {EIP: CODE}}))
        vm.go(message(repair))

    seen = monitor(NOP, steps)

    assert [R.ENTRY_FAILURE_GUEST_STATE, R.HLT] == [reason_of(got.label) for got in seen[1:]]
    assert CODE + 2 == items(seen[2])[I.GPREGS][EIP]


def test_why_an_entry_was_refused_is_in_the_trace() -> None:
    """Does the trace say what was wrong with the state?"""

    def root(r: Root) -> None:
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=1 << 30)))
        vm.go(protected().append_registers(I.NONREGEXC, {ENTRY_INFO: VALID | NMI | 3}))

    system = run(root)

    assert ["an NMI has vector 2, not 3"] == [event.why for event in system.trace.of(events.EntryRefused)]


# -- what is accepted

ACCEPTED: dict[str, Writes] = {
    "nothing": {},
    "conforming code above the stack": {I.CS: {3: 0xC09F}},
    "data segments that cannot be used": {item: {3: 0x1_0000} for item in (I.DS, I.ES, I.FS, I.GS)},
    "a stack that cannot be used": {I.SS: {3: 0x1_0000}},
    "code as data": {I.DS: {3: 0xC09B}},
    "a stack that grows down": {I.SS: {2: 0xFFF, 3: 0xC097}},
    "code of type 3": {I.CS: {3: 0xC093}},
    "a task of 16 bits": {I.TR: {3: 0x83}},
    "a local table": {I.LDTR: {0: 8, 3: 0x82}},
    "blocked behind MOV SS": {I.NONREGEXC: {BLOCKING: 2}},
    "blocked by an NMI": {I.NONREGEXC: {BLOCKING: 8}},
    "wide limits in real mode": {I.CREGS: {0: 0x10}},
    "the privilege of virtual-8086 mode in real mode": {I.CREGS: {0: 0x10}, I.CS: {0: 0, 2: 0xFFFF, 3: 0xF3}},
    "a breakpoint that is pending but not enabled": {I.NONREGEXC: {PENDING: 1}},
}


@pytest.mark.parametrize("writes", ACCEPTED.values(), ids=ACCEPTED)
def test_a_valid_state_is_entered(writes: Writes) -> None:
    """Does the guest run in each state that the checks allow?"""
    got = after(writes)

    assert (R.HLT, CODE + 2) == (reason_of(got.label), items(got)[I.GPREGS][EIP])


def v8086(iopl: int) -> Writes:
    """The registers of a guest that begins at CODE in virtual-8086 mode."""
    segments = {item: {0: 0x10, 1: 0x100, 2: 0xFFFF, 3: 0xF3} for item in (I.SS, I.DS, I.ES, I.FS, I.GS)}
    code = {I.CS: {0: CODE >> 4, 1: CODE, 2: 0xFFFF, 3: 0xF3}}
    return {I.GPREGS: {EIP: 0, ESP: 0x100, EFLAGS: 2 | V8086 | iopl << 12}, **segments, **code}


@pytest.mark.parametrize("cr0", [0x11, 0x10, 0x6000_0010])
def test_virtual_8086_mode_is_entered(cr0: int) -> None:
    """With all segments as it has them, does a guest run in virtual-8086 mode, and has CR0.PE whatever was written?"""
    read: list[int] = []

    def steps(vm: Vm) -> None:
        start = v8086(3)
        vm.go(message({I.CREGS: {0: cr0}, **start, I.GPREGS: start[I.GPREGS] | {EIP: 1}}))
        read.extend(vm.read(I.CREGS))

    got = monitor("hlt\n nop\n cpuid", steps)[1]

    assert (R.CPUID, 2) == (reason_of(got.label), items(got)[I.GPREGS][EIP])
    assert cr0 | 1 == read[0]


@pytest.mark.parametrize(
    ("source", "length"),
    [("cli", 1), ("int 0x10", 2), (".byte 0x66, 0x9d", 2), (".byte 0x2e, 0xf4", 2), (".byte 0x0f, 0x22, 0xc0", 3)],
)
def test_what_virtual_8086_mode_refuses_has_a_length(source: str, length: int) -> None:
    """Does the exit for a #GP of virtual-8086 code tell how long the instruction is that the monitor is to do?"""
    got = after({I.EXECCTRL: {2: 0xFFFF_FFFF}, I.CREGS: {0: 0x6000_0010}, **v8086(0)}, source)

    assert (R.EXCEPTION_OR_NMI, length) == (reason_of(got.label), got.untyped[1])
    assert VALID | WITH_CODE | HARDWARE | 13 == items(got)[I.NONREGEXC][6]


# -- any state at all

WORD = st.one_of(
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0x1FF),
    st.builds(lambda bit: 1 << bit, st.integers(0, 31)),
    st.sampled_from((0xC09B, 0xC093, 0xF3, 0x93, 0x8B, 0x82, 0x1_0000, 0xFFFF, 0xFFFF_FFFF, 0x11, 0x8000_0011, CODE)),
    st.builds(
        lambda kind, vector, code: VALID | kind << 8 | vector | code << 11,
        st.integers(0, 7), st.sampled_from((0, 1, 2, 3, 8, 13, 14, 18, 32, 128, 255)), st.integers(0, 1),
    ),
)  # fmt: skip
REGISTERS = st.sampled_from([(item, index) for item in ItemId for index in range(len(ITEM_REGISTERS[item]))])
STATES = st.lists(st.dictionaries(REGISTERS, WORD, max_size=8), min_size=1, max_size=4)


@given(STATES)
@settings(max_examples=60)
def test_any_state_is_entered_or_refused(states: list[dict[tuple[ItemId, int], int]]) -> None:
    """Whatever a monitor writes, does the guest run or the entry fail, and the kernel stand?"""

    def root(r: Root) -> None:
        r.store(GUEST + CODE, assemble("again: inc eax\n push eax\n pop ss\n sti\n int 0x30\n jmp again", CODE).code)
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=1 << 30)))
        vm.conf(all=(I.GPREGS, I.NONREGEXC))
        r.send(vm.id, protected())
        for state in states:
            for (item, index), word in state.items():
                vm.write(item, {index: word})
            for _ in range(3):  # let it run, page for it, and answer nothing else that it may want
                try:
                    received = r.wait(period(100))
                except IpcFailed:
                    continue
                reply = Message()
                if is_page_fault(received.label) and received.untyped[0] < SIZE:
                    page = received.untyped[0] & -PAGE
                    reply.append_map(Fpage.at(GUEST + page), page)
                r.send(vm.id, reply)
        r.thread_control(vm.id, NIL_THREAD)
        r.store(GUEST, b"done")

    system = System(root)
    system.run(10_000_000)

    assert b"done" == system.words(GUEST)[0].to_bytes(4, "little")


# -- guests that sleep


def asleep(
    activity: int, writes: Writes, then: Callable[[Vm], None], source: str = NOP
) -> tuple[list[Received], System]:
    """A guest that is put into an activity state by a reply; what its monitor saw after `then`."""
    seen: list[Received] = []

    def root(r: Root) -> None:
        r.store(GUEST + CODE, assemble(source, CODE).code)
        for vector in range(256):
            handler = 0x6000 + 16 * vector
            r.store(GUEST + IDT + 8 * vector, (handler | 8 << 16 | 0xEE00 << 32).to_bytes(8, "little"))
            r.store(GUEST + handler, b"\xf4")
        r.store(GUEST + 0x5008, bytes.fromhex("ffff0000009bcf00 ffff00000093cf00"))
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=1 << 30)), seen)
        vm.conf(all=(I.GPREGS, I.NONREGEXC))
        state = protected().append_registers(I.EXECCTRL, {1: HLT | IO, 2: 0})
        state.append_registers(I.NONREGEXC, {ACTIVITY: activity} | writes.get(I.NONREGEXC, {}))
        for item in writes:
            if item is not I.NONREGEXC:
                vm.write(item, writes[item])
        gprs = {EIP: CODE, ESP: STACK, EFLAGS: 2} | writes.get(I.GPREGS, {})
        state.append_registers(I.GPREGS, gprs)
        r.send(vm.id, state)
        r.sleep(1000)
        then(vm)

    return seen, run(root)


def woken(vm: Vm, writes: Writes) -> None:
    """Write registers by ExchangeRegisters, and take what the guest says then."""
    for item in sorted(writes):
        vm.write(item, writes[item])
    received = vm.r.receive(vm.id)
    while is_page_fault(received.label):
        page = received.untyped[0] & -PAGE
        received = vm.r.call(vm.id, Message().append_map(Fpage.at(GUEST + page), page))
    vm.seen.append(received)


@pytest.mark.parametrize(
    ("activity", "writes", "eip"),
    [
        (1, {I.NONREGEXC: {ENTRY_INFO: VALID | 0x30}}, 0x6300),
        (1, {I.NONREGEXC: {ENTRY_INFO: VALID | NMI | 2}}, 0x6020),
        (1, {I.NONREGEXC: {ENTRY_INFO: VALID | HARDWARE | 1}}, 0x6010),
        (1, {I.NONREGEXC: {ACTIVITY: 0}}, CODE + 2),
        (2, {I.NONREGEXC: {ENTRY_INFO: VALID | NMI | 2}}, 0x6020),
        (2, {I.NONREGEXC: {ACTIVITY: 0}}, CODE + 2),
        (3, {I.NONREGEXC: {ACTIVITY: 0}}, CODE + 2),
    ],
)
def test_a_sleeping_guest_runs_when_something_wakes_it(activity: int, writes: Writes, eip: int) -> None:
    """Does a guest that sleeps execute nothing, until an event that its state lets through or its monitor wakes it?"""
    before: list[int] = []

    def then(vm: Vm) -> None:
        before.append(vm.read(I.GPREGS)[EIP])
        before.append(vm.read(I.NONREGEXC)[ACTIVITY])
        woken(vm, writes)

    seen, _ = asleep(activity, {I.GPREGS: {EFLAGS: 2 | IF}}, then)

    assert [CODE, activity] == before
    assert (R.HLT, eip) == (reason_of(seen[0].label), items(seen[0])[I.GPREGS][EIP])
    assert 0 == items(seen[0])[I.NONREGEXC][ACTIVITY]


def test_what_does_not_wake_a_guest_lets_it_sleep() -> None:
    """Do other register writes, and a stop and resume, leave it asleep, and is there nothing to do for the machine?"""

    def then(vm: Vm) -> None:
        vm.write(I.GPREGS, {5: 0x8000})
        vm.r.exchange_registers(vm.id, ExregsControl.ACT_ON_HALT | ExregsControl.HALT)
        vm.r.exchange_registers(vm.id, ExregsControl.ACT_ON_HALT)
        vm.r.receive(vm.id)

    seen, system = asleep(1, {}, then)
    sleeping = [t for t in system.kernel.threads.values() if t.state is ThreadState.INACTIVE]

    assert [] == seen
    assert [CODE] == [thread.regs[EIP] for thread in sleeping]


def test_the_interrupt_window_opens_for_a_halted_guest() -> None:
    """Does a guest in HLT with IF set exit at once when window exiting is turned on, and with IF clear sleep on?"""
    seen, _ = asleep(1, {I.GPREGS: {EFLAGS: 2 | IF}}, lambda vm: woken(vm, {I.EXECCTRL: {1: HLT | IO | WINDOW}}))
    assert (R.INTERRUPT_WINDOW, CODE) == (reason_of(seen[0].label), items(seen[0])[I.GPREGS][EIP])

    seen, _ = asleep(1, {}, lambda vm: woken(vm, {I.EXECCTRL: {1: HLT | IO | WINDOW}}))
    assert [] == seen


# -- events


def test_an_nmi_blocks_the_next_one_until_iret() -> None:
    """Does the interruptibility state show an NMI in its handler, and no longer behind its IRET?"""
    seen: list[int] = []

    def steps(vm: Vm) -> None:
        vm.r.store(GUEST + 0x6020, b"\xf4\xcf")  # hlt, iret
        vm.go(message({I.GPREGS: {EIP: CODE + 1}, I.NONREGEXC: {ENTRY_INFO: VALID | NMI | 2}}))
        seen.append(items(vm.seen[-1])[I.NONREGEXC][BLOCKING])
        vm.skip()
        seen.append(items(vm.seen[-1])[I.NONREGEXC][BLOCKING])

    monitor("hlt\n hlt", steps)

    assert [8, 0] == seen


def test_an_interrupted_event_can_be_delivered_again() -> None:
    """When an interrupt's gate is missing, does the exit name the interrupt, and arrives it when it is tried again?"""

    def steps(vm: Vm) -> None:
        vm.r.store(GUEST + IDT + 8 * 0x30, bytes(8))
        vm.write(I.EXECCTRL, {2: 1 << 13})
        vm.go(message({I.GPREGS: {EIP: CODE + 1, EFLAGS: 2 | IF}, I.NONREGEXC: {ENTRY_INFO: VALID | 0x30}}))
        vm.r.store(GUEST + IDT + 8 * 0x30, (0x6300 | 8 << 16 | 0xEE00 << 32).to_bytes(8, "little"))
        vm.go(message({I.NONREGEXC: {ENTRY_INFO: items(vm.seen[-1])[I.NONREGEXC][8]}}))

    seen = monitor("hlt\n hlt", steps)
    state = items(seen[1])[I.NONREGEXC]

    assert R.EXCEPTION_OR_NMI == reason_of(seen[1].label)
    assert [VALID | WITH_CODE | HARDWARE | 13, VALID | 0x30] == [state[6], state[8]]
    assert 0x30 * 8 | 2 == state[7] & ~1
    assert (R.HLT, 0x6300) == (reason_of(seen[2].label), items(seen[2])[I.GPREGS][EIP])


@pytest.mark.parametrize("wanted", [False, True])
def test_a_pending_single_step_is_delivered(wanted: bool) -> None:
    """Does a debug exception that was held back reach the guest with DR6 set, or its monitor if it wants it?"""
    dr6: list[int] = []

    def steps(vm: Vm) -> None:
        vm.write(I.EXECCTRL, {2: 2 if wanted else 0})
        vm.go(message({I.GPREGS: {EIP: CODE + 1}, I.NONREGEXC: {PENDING: 1 << 14}}))
        dr6.append(vm.read(I.DREGS)[4])

    got = monitor("hlt\n nop\n hlt", steps)[1]

    if wanted:
        assert (R.EXCEPTION_OR_NMI, CODE + 1) == (reason_of(got.label), items(got)[I.GPREGS][EIP])
        assert ([1 << 14, 0, 0], VALID | HARDWARE | 1) == (got.untyped, items(got)[I.NONREGEXC][6])
    else:
        assert (R.HLT, 0x6010) == (reason_of(got.label), items(got)[I.GPREGS][EIP])
        assert [0xFFFF_4FF0] == dr6
    assert 0 == items(got)[I.NONREGEXC][PENDING]
