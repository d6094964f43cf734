# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID and MSRs: what the guest is told that its CPU is."""

from __future__ import annotations

import pytest

from l4lab.abi import vm
from l4lab.abi.frame import EAX, EBX, ECX, EDX, EIP
from l4lab.abi.vm import ExitReason, ItemId
from l4lab.user.monitor.fault import Reply
from l4lab.user.monitor.guest_cpuid import Cpuid
from l4lab.user.monitor.msrs import UNKNOWN_KINDS, Msrs
from tests.user.monitor.parts import fault, full, still_vcpu


def ask(leaf: int) -> tuple[int, int, int, int]:
    """What the guest has in EAX, EBX, ECX, EDX after CPUID."""
    reply = Reply()
    Cpuid().handle(fault(ExitReason.CPUID, {EAX: leaf}), reply)
    registers = reply.items[ItemId.GPREGS]
    assert registers[EIP] == 0x1002
    return registers[EAX], registers[EBX], registers[ECX], registers[EDX]


def text(*words: int) -> str:
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0").decode()


def test_the_vendor_is_one_that_operating_systems_know() -> None:
    """Does leaf 0 spell GenuineIntel in the order that the manual prescribes?"""
    _, ebx, ecx, edx = ask(0)

    assert "GenuineIntel" == text(ebx, edx, ecx)


@pytest.mark.parametrize(("name", "bit"), [("PAE", 6), ("MCE", 7), ("APIC", 9), ("SEP", 11), ("MTRR", 12), ("PAT", 16)])
def test_what_the_machine_lacks_is_not_offered(name: str, bit: int) -> None:
    """Is a feature that a guest would then try to use missing from leaf 1?"""
    assert not ask(1)[3] >> bit & 1, name


def test_the_guest_can_see_that_it_is_one() -> None:
    """Is the hypervisor bit set, and does the hypervisor give its name?"""
    _, ebx, ecx, edx = ask(0x4000_0000)

    assert ask(1)[2] >> 31
    assert "L4labL4labL4" == text(ebx, ecx, edx)


def test_the_time_stamp_counter_need_not_be_measured() -> None:
    """Do leaves 15 and 16 both tell of one time stamp per nanosecond?"""
    denominator, numerator, crystal, _ = ask(0x15)

    assert 10**9 == crystal * numerator // denominator
    assert 1000 == ask(0x16)[0]
    assert ask(0)[0] >= 0x16


def test_leaves_that_are_not_there_are_zero() -> None:
    """Does an unknown leaf read as nothing?"""
    assert (0, 0, 0, 0) == ask(0x14) == ask(0x9000_0000)


def msrs() -> Msrs:
    return Msrs(still_vcpu({ItemId.OTHERREGS: full(ItemId.OTHERREGS, {vm.SYSENTER_EIP: 0xC000})}), lambda: 5 << 32 | 7)


def test_a_written_msr_reads_back_and_a_read_only_one_does_not() -> None:
    """Does WRMSR change IA32_PAT and leave IA32_EFER alone?"""
    registers = msrs()
    for number in (0x277, 0xC000_0080):
        registers.write(fault(ExitReason.WRMSR, {ECX: number, EAX: 1, EDX: 2}), Reply())

    assert (2 << 32 | 1, 0) == (registers.values[0x277], registers.values[0xC000_0080])


@pytest.mark.parametrize(("number", "value"), [(0x10, 5 << 32 | 7), (0x176, 0xC000), (0x1234, 0)])
def test_reads_come_from_clock_virtual_cpu_or_nowhere(number: int, value: int) -> None:
    """Does RDMSR give the time, the SYSENTER registers, and 0 for what nobody knows?"""
    reply = Reply()
    msrs().read(fault(ExitReason.RDMSR, {ECX: number}), reply)

    assert (value & 0xFFFF_FFFF, value >> 32) == (reply.items[ItemId.GPREGS][EAX], reply.items[ItemId.GPREGS][EDX])


def test_hammering_unknown_msrs_takes_no_memory() -> None:
    """Is the list of unknown registers bounded?"""
    registers = msrs()
    for number in range(2 * UNKNOWN_KINDS):
        registers.write(fault(ExitReason.WRMSR, {ECX: 0x5000 + number}), Reply())

    assert UNKNOWN_KINDS == len(registers.unknown)
