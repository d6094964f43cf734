# SPDX-License-Identifier: GPL-2.0-or-later
"""What virtual machines cost: the kernel's own counts, and the same counted again from the trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from l4lab.abi.ids import NIL_THREAD
from l4lab.kernel import events
from l4lab.kernel.objects import counters
from l4lab.rig.counting import VmCounts, machines, recount
from l4lab.rig.rig import Rig
from l4lab.rig.trace import Trace
from l4lab.user.guests import linked, loops, tinyos, twins
from l4lab.user.guests.flat import FlatGuest
from l4lab.user.host import Host, VmPlan
from l4lab.user.monitor.hardware import PLAIN, Hardware

SHADOW = Hardware(shadow_paging=True)
ROUNDS = 40


def counted(rig: Rig) -> tuple[VmCounts, ...]:
    """What the kernel has counted."""
    return machines(rig.kernel.counters.virtual_cpus)


def two_machines() -> Rig:
    """Two guests under a monitor each, one of them with shadow paging."""
    left = replace(VmPlan.flat("left", linked.caller(["drawer"], shares=True)), shares=True)
    right = replace(VmPlan.flat("right", linked.answerer(shares=True), shadow_paging=True), shares=True)
    return Rig.for_host(Host([[left], [right]], links=[("left", "right")]))


def two_cpus() -> Rig:
    """Machines with two CPUs, which are often preempted, under both kinds of paging."""
    plans = [
        replace(VmPlan.flat(f"machine {shadow}", twins.build(200, True), shadow, 2), time_slice_us=1)
        for shadow in (False, True)
    ]
    return Rig.for_host(Host([[plan] for plan in plans]))


SYSTEMS: dict[str, Callable[[], Rig]] = {
    "nested": lambda: Rig.for_flat_guest(tinyos.build()),
    "shadow": lambda: Rig.for_flat_guest(tinyos.build(), hardware=SHADOW),
    "touching pages": lambda: Rig.for_flat_guest(loops.paging(ROUNDS, loops.TOUCH), hardware=SHADOW),
    "two machines": two_machines,
    "two CPUs": two_cpus,
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_trace_tells_what_was_counted(system: str) -> None:
    """After a whole run, does every counter of every virtual CPU agree with the events of the trace?"""
    rig = SYSTEMS[system]()
    rig.run()
    found = counted(rig)

    assert machines(recount(rig.trace)) == found
    for one in found:
        assert one.total.instructions > 0
        assert one.total.messages >= sum(one.total.exits.values()) + one.total.nested_faults
    assert rig.kernel.counters.exit_count == rig.trace.counts()[events.VmExit.__name__]
    assert rig.kernel.counters.injections == rig.trace.counts()[events.Injected.__name__]


@pytest.mark.parametrize(
    ("body", "fills", "flushes", "exits"),
    [
        (loops.TOUCH, ROUNDS, 0, {}),
        (loops.INVALIDATE, 0, ROUNDS, {"INVLPG": ROUNDS}),
        (loops.RELOAD, 0, ROUNDS, {"CR_ACCESS": ROUNDS}),
    ],
)
def test_what_a_loop_does_is_counted_as_often(body: str, fills: int, flushes: int, exits: dict[str, int]) -> None:
    """For forty turns of a loop more: forty fills, or forty flushes and the exits that caused them, and no others."""
    few, many = (one_machine(loops.paging(turns, body), SHADOW).total for turns in (10, 10 + ROUNDS))
    more = {reason: count - few.kernel_exits.get(reason, 0) for reason, count in many.kernel_exits.items()}

    assert fills == many.vtlb_fills - few.vtlb_fills
    assert flushes == many.vtlb_flushes - few.vtlb_flushes
    assert {"EXCEPTION_OR_NMI": fills, **exits} == {"EXCEPTION_OR_NMI": 0, **{r: n for r, n in more.items() if n}}
    assert few.exits == many.exits
    retired = 4 if fills else 2  # of a turn: what the kernel does in the place of the CPU does not retire
    assert retired * ROUNDS == many.instructions - few.instructions


def test_nested_paging_has_no_shadow_tables() -> None:
    """Under nested paging, do the same loops end in no exit, no fill and no flush for each turn?"""
    for body in (loops.TOUCH, loops.INVALIDATE, loops.RELOAD):
        machine = one_machine(loops.paging(ROUNDS, body))

        assert ("nested", 0, 0, {}) == (
            machine.paging,
            machine.total.vtlb_fills,
            machine.total.vtlb_flushes,
            machine.total.kernel_exits,
        )
        assert machine.total.all_exits < ROUNDS


def one_machine(guest: FlatGuest, hardware: Hardware = PLAIN) -> VmCounts:
    """Run a guest to its end; what its machine cost."""
    rig = Rig.for_flat_guest(guest, hardware=hardware)
    assert rig.run().finished
    [machine] = counted(rig)
    return machine


def test_stats_tell_machines_and_cpus_apart() -> None:
    """In what --stats writes: does each machine's sum agree with its CPUs', and all machines' with the totals?"""
    rig = two_cpus()
    rig.run()
    stats = rig.stats()
    found = stats["virtual_machines"]

    assert ["nested", "shadow"] == [machine["paging"] for machine in found]
    assert [2, 2] == [len(machine["cpus"]) for machine in found]
    assert 4 == len({cpu["thread"] for machine in found for cpu in machine["cpus"]})
    for machine in found:
        for name in ("instructions", "nested_faults", "injections", "messages", "vtlb_fills", "vtlb_flushes"):
            assert machine["total"][name] == sum(cpu[name] for cpu in machine["cpus"])
    for reason, count in stats["vm_exits"].items():
        assert count == sum(machine["total"]["exits"].get(reason, 0) for machine in found)
    setting_up = stats["instructions"] - sum(machine["total"]["instructions"] for machine in found)
    assert 0 <= setting_up < 5  # which the board has its CPU execute for itself


def test_a_machine_that_was_deleted_is_still_told() -> None:
    """When all guests have ended and their virtual CPUs are gone, are their numbers there?"""
    rig = two_machines()
    rig.run()

    assert not any(thread.vcpu is not None for thread in rig.kernel.threads.values())
    assert all(machine.total.exits["HLT"] for machine in counted(rig))


def test_of_very_many_machines_only_the_sum_is_kept() -> None:
    """With more deleted virtual CPUs than are kept: do the totals still hold all of them?"""
    kept = counters.Counters()
    for number in range(counters.MOST_ENDED + 5):
        cpu = counters.VcpuCounters(number, number, "", False)
        cpu.exits, cpu.injections = {10: 2}, 3
        kept.virtual_cpus.append(cpu)
        kept.ended(cpu)

    assert counters.MOST_ENDED == len(kept.virtual_cpus)
    assert 2 * (counters.MOST_ENDED + 5) == kept.exit_count == kept.vm_exits[10]
    assert 3 * (counters.MOST_ENDED + 5) == kept.injections


def test_a_trace_without_its_beginning_is_counted_too() -> None:
    """Where the trace has dropped its oldest events, are the exits in the rest counted for a machine unknown?"""
    rig = Rig.for_flat_guest(tinyos.build(), trace=Trace(limit=20_000))
    rig.run()
    assert rig.trace.dropped
    [cpu] = recount(rig.trace)

    assert (0, "unknown") == (cpu.machine, cpu.name)
    assert sum(cpu.exits.values()) == rig.trace.counts()[events.VmExit.__name__] > 0
    assert NIL_THREAD != cpu.thread
