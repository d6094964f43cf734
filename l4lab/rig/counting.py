# SPDX-License-Identifier: GPL-2.0-or-later
"""What virtual machines cost: counted for each virtual CPU and summed up, by the kernel while it runs or from a trace.

Lives here: the records, and counting again from a trace what the kernel has counted. Data only; how it is drawn is
`views.counters`. Where the kernel counts is said in `kernel.counters`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Literal, TypeVar

import msgspec

from l4lab.abi.vm import ExitReason, exit_name
from l4lab.kernel import events
from l4lab.kernel.objects.counters import VcpuCounters

Paging = Literal["nested", "shadow"]
C = TypeVar("C", bound="Counts")


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a virtual CPU, or to all of a virtual machine."""

    instructions: int = 0
    exits: dict[str, int] = {}  # by reason: those that the monitor was told of
    kernel_exits: dict[str, int] = {}  # by reason: those that ended in the kernel, for its shadow tables
    nested_faults: int = 0  # page faults on guest-physical memory
    vtlb_fills: int = 0
    vtlb_flushes: int = 0
    injections: int = 0
    messages: int = 0  # between it and its monitor

    @property
    def all_exits(self) -> int:
        """How often the CPU left the guest, whoever saw to it."""
        return sum(self.exits.values()) + sum(self.kernel_exits.values()) + self.nested_faults


class CpuCounts(Counts, frozen=True, kw_only=True):
    """What happened to one virtual CPU."""

    thread: int  # global identifier


class VmCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to one virtual machine."""

    number: int  # in the order in which they came into being
    name: str
    paging: Paging
    total: Counts = Counts()
    cpus: tuple[CpuCounts, ...] = ()  # deleted ones too


def machines(counters: Iterable[VcpuCounters]) -> tuple[VmCounts, ...]:
    """The virtual machines of these virtual CPUs."""
    ordered = sorted(counters, key=lambda cpu: cpu.machine)  # and those of one as they came into being
    return tuple(_machine(list(cpus)) for _, cpus in groupby(ordered, key=lambda cpu: cpu.machine))


def _machine(cpus: list[VcpuCounters]) -> VmCounts:
    first = cpus[0]
    total = VcpuCounters(first.thread, first.machine, first.name, first.shadow)
    for cpu in cpus:
        total.add(cpu)
    return VmCounts(
        number=first.machine,
        name=first.name,
        paging="shadow" if first.shadow else "nested",
        total=_counts(Counts, total),
        cpus=tuple(_counts(CpuCounts, cpu, thread=cpu.thread) for cpu in cpus),
    )


def _counts(kind: type[C], of: VcpuCounters, **more: int) -> C:
    return kind(
        instructions=of.instructions,
        exits=_named(of.exits),
        kernel_exits=_named(of.kernel_exits),
        nested_faults=of.nested_faults,
        vtlb_fills=of.vtlb_fills,
        vtlb_flushes=of.vtlb_flushes,
        injections=of.injections,
        messages=of.messages,
        **more,
    )


def _named(exits: dict[int, int]) -> dict[str, int]:
    return {exit_name(reason): count for reason, count in sorted(exits.items())}


def recount(trace: Iterable[events.Event]) -> list[VcpuCounters]:
    """What the kernel has counted, from the trace alone.

    Instructions are those up to a virtual CPU's last VM exit, or to its end. Of what a trace has dropped nothing is
    counted; a virtual CPU that came into being in that part belongs to machine 0.
    """
    counted: list[VcpuCounters] = []
    living: dict[int, VcpuCounters] = {}

    def cpu_of(vcpu: int) -> VcpuCounters:
        if vcpu not in living:
            living[vcpu] = VcpuCounters(vcpu, 0, "unknown", False)
            counted.append(living[vcpu])
        return living[vcpu]

    for event in trace:
        match event:
            case events.VcpuCreated(vcpu=vcpu):
                living[vcpu] = VcpuCounters(vcpu, event.machine, event.name, event.shadow)
                counted.append(living[vcpu])
            case events.VcpuDeleted(vcpu=vcpu):
                cpu_of(vcpu).instructions = event.instructions
                del living[vcpu]
            case events.ThreadRenamed(thread=old, name=new) if old in living:
                living[new] = living.pop(old)
                living[new].thread = new
            case events.MessageSent():
                for thread in (event.sender, event.receiver):
                    if thread in living:
                        living[thread].messages += 1
            case events.PageFault(thread=thread) if thread in living:
                living[thread].nested_faults += 1
            case events.VmExit(vcpu=vcpu):
                cpu = cpu_of(vcpu)
                cpu.instructions = event.instructions
                _count(cpu.exits, event.reason)
            case events.KernelExit(vcpu=vcpu):
                _count(cpu_of(vcpu).kernel_exits, event.reason)
            case events.VtlbFill(vcpu=vcpu):
                cpu_of(vcpu).vtlb_fills += 1
                if not event.told:
                    _count(cpu_of(vcpu).kernel_exits, ExitReason.EXCEPTION_OR_NMI)
            case events.VtlbFlush(vcpu=vcpu):
                cpu_of(vcpu).vtlb_flushes += 1
            case events.Injected(vcpu=vcpu):
                cpu_of(vcpu).injections += 1
    return counted


def _count(counts: dict[int, int], reason: int) -> None:
    counts[reason] = counts.get(reason, 0) + 1
