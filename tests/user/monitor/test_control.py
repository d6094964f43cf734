# SPDX-License-Identifier: GPL-2.0-or-later
"""Control registers, debug registers and exceptions that a monitor has asked to see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi import vm
from l4lab.abi.frame import EAX, EBX, EIP
from l4lab.abi.vm import EVENT_VALID, CrAccess, CrAccessType, DrAccess, ExitReason, InterruptionType, ItemId
from l4lab.devices.device import PortBus
from l4lab.user.monitor.exit_handlers import ExitHandlers
from l4lab.user.monitor.fault import Fault, Reply, exception
from l4lab.user.monitor.guest_control import cr_access, dr_access
from l4lab.user.monitor.guest_cpuid import Cpuid
from l4lab.user.monitor.guest_ports import PortIo
from l4lab.user.monitor.msrs import Msrs
from l4lab.user.monitor.outcome import End
from tests.user.monitor.parts import fault, guest_memory, still_vcpu

words = st.integers(0, 0xFFFF_FFFF)
PE, TS, ET, PG = 1, 1 << 3, 1 << 4, 1 << 31


def access(kind: CrAccessType, number: int, *, gpr: int = 0, lmsw: int = 0, **registers: int) -> Reply:
    """The reply to a control-register access; `registers` are CREGS by their names in lower case."""
    cregs = {getattr(vm, name.upper()): value for name, value in registers.items()}
    reply = Reply()
    cr_access(
        fault(
            ExitReason.CR_ACCESS,
            {EBX: 0x8000_0011, EAX: 0x1234},
            qualification=CrAccess.make(cr=number, access=kind, gpr=gpr, lmsw_source=lmsw),
            more={ItemId.CREGS: cregs},
        ),
        reply,
    )
    return reply


def test_mov_to_cr0_sets_the_register_and_what_the_guest_reads() -> None:
    """Does MOV CR0, EBX write the real register and its shadow, and go on behind the instruction?"""
    reply = access(CrAccessType.MOV_TO_CR, 0, gpr=3)

    assert {vm.CR0: 0x8000_0011, vm.CR0_SHADOW: 0x8000_0011} == reply.items[ItemId.CREGS]
    assert {EIP: 0x1002} == reply.items[ItemId.GPREGS]


def test_paging_without_protection_is_refused() -> None:
    """Does a MOV that sets PG but not PE raise #GP, with nothing changed?"""
    reply = access(CrAccessType.LMSW, 0, cr0_shadow=PG, cr0_mask=0xFFFF_FFFF)

    assert {ItemId.NONREGEXC: {vm.ENTRY_INFO: exception(13, True), vm.ENTRY_EEC: 0}} == reply.items


@given(shadow=words.map(lambda word: word | PE), source=st.integers(0, 0xFFFF))
def test_lmsw_changes_four_bits_and_cannot_leave_protected_mode(shadow: int, source: int) -> None:
    """Does LMSW set or clear MP, EM and TS, keep PE, and leave the rest alone?"""
    reply = access(CrAccessType.LMSW, 0, lmsw=source, cr0_shadow=shadow, cr0_mask=0xFFFF_FFFF)

    assert shadow & ~0xE | source & 0xE == reply.items[ItemId.CREGS][vm.CR0]


@given(real=words, shadow=words, mask=words)
def test_clts_clears_what_the_guest_sees_of_ts(real: int, shadow: int, mask: int) -> None:
    """Does CLTS start from the shadow where masked and from the register elsewhere, and clear TS?"""
    seen = (shadow & mask | real & ~mask) & ~PG  # PG without PE would be another test
    reply = access(CrAccessType.CLTS, 0, cr0=seen, cr0_shadow=seen, cr0_mask=mask)

    assert seen & ~TS == reply.items[ItemId.CREGS][vm.CR0] == reply.items[ItemId.CREGS][vm.CR0_SHADOW]


def test_cr3_is_moved_both_ways() -> None:
    """Does MOV from CR3 fill the general register, and MOV to CR3 the control register?"""
    assert 0x5000 == access(CrAccessType.MOV_FROM_CR, 3, gpr=3, cr3=0x5000).items[ItemId.GPREGS][EBX]
    assert {vm.CR3: 0x1234} == access(CrAccessType.MOV_TO_CR, 3, gpr=0).items[ItemId.CREGS]


@pytest.mark.parametrize(("number", "index"), [(0, vm.DR0), (4, vm.DR6), (5, vm.DR7), (7, vm.DR7)])
def test_debug_registers_are_moved_both_ways(number: int, index: int) -> None:
    """Do MOV to and from DR reach the register named, 4 and 5 being other names of 6 and 7?"""
    to, from_ = Reply(), Reply()
    registers = {EAX: 0x77}
    more = {ItemId.DREGS: {index: 0x99}}
    dr_access(fault(ExitReason.DR_ACCESS, registers, qualification=DrAccess.make(dr=number), more=more), to)
    dr_access(
        fault(ExitReason.DR_ACCESS, registers, qualification=DrAccess.make(dr=number, from_dr=1), more=more), from_
    )

    assert {index: 0x77} == to.items[ItemId.DREGS]
    assert 0x99 == from_.items[ItemId.GPREGS][EAX]


# -- exceptions ----------------------------------------------------------------------------------------------------


def exits(ends: list[End]) -> ExitHandlers:
    memory, vcpu = guest_memory(1 << 16), still_vcpu({})
    io = PortIo(PortBus([]), vcpu, memory)
    return ExitHandlers(
        lambda: 0,
        vcpu,
        memory,
        Cpuid(),
        Msrs(vcpu, lambda: 0),
        io,
        lambda end, why: ends.append(end),
        lambda text: None,
    )


def exception_exit(vector: int, during: int = 0, qualification: int = 0) -> Fault:
    """A hardware exception that came to the monitor, perhaps while another event was delivered."""
    with_code = vector in (8, 10, 11, 12, 13, 14)
    return fault(
        ExitReason.EXCEPTION_OR_NMI,
        qualification=qualification,
        more={ItemId.NONREGEXC: {vm.EXIT_INFO: exception(vector, with_code), vm.EXIT_EEC: 4, vm.IDT_INFO: during}},
    )


def test_an_exception_that_exits_is_given_to_the_guest() -> None:
    """Does a page fault go on to the guest with its error code, its address in CR2?"""
    reply = Reply()
    exits([]).handle(exception_exit(14, qualification=0xDEAD000), reply)

    assert {vm.ENTRY_INFO: exception(14, True), vm.ENTRY_EEC: 4} == reply.items[ItemId.NONREGEXC]
    assert {vm.CR2: 0xDEAD000} == reply.items[ItemId.CREGS]


@pytest.mark.parametrize(
    ("first", "second", "delivered"),
    [(13, 14, 14), (14, 13, 8), (14, 14, 8), (13, 11, 8), (6, 13, 13), (13, 6, 6), (8, 13, None)],
)
def test_two_exceptions_at_once_make_what_the_manual_says(first: int, second: int, delivered: int | None) -> None:
    """Is an exception during the delivery of another one delivered by itself, as a double fault, or the end?"""
    ends: list[End] = []
    reply = Reply()
    exits(ends).handle(exception_exit(second, during=exception(first)), reply)

    if delivered is None:
        assert [End.TRIPLE_FAULT] == ends
    else:
        assert delivered == reply.items[ItemId.NONREGEXC][vm.ENTRY_INFO] & 0xFF


def test_a_software_exception_brings_its_length() -> None:
    """Does INT3, sent on to the guest, carry the length by which the CPU has to advance EIP?"""
    event = EVENT_VALID | InterruptionType.SOFTWARE_EXCEPTION << 8 | 3
    reply = Reply()
    met = fault(ExitReason.EXCEPTION_OR_NMI, length=1, more={ItemId.NONREGEXC: {vm.EXIT_INFO: event}})
    exits([]).handle(met, reply)

    assert {vm.ENTRY_INFO: event, vm.ENTRY_ILEN: 1} == reply.items[ItemId.NONREGEXC]


def test_what_cpuid_does_not_offer_is_undefined() -> None:
    """Do MWAIT and VMCALL raise #UD with EIP where it is?"""
    for reason in (ExitReason.MWAIT, ExitReason.VMCALL):
        reply = Reply()
        exits([]).handle(fault(reason), reply)

        assert {ItemId.NONREGEXC: {vm.ENTRY_INFO: exception(6)}} == reply.items


def test_an_exit_that_nobody_answers_ends_the_guest() -> None:
    """Is an exit that this monitor knows nothing of, here a failed entry, reported instead of guessed at?"""
    ends: list[End] = []
    exits(ends).handle(fault(ExitReason.ENTRY_FAILURE_GUEST_STATE), Reply())

    assert [End.STOPPED] == ends
