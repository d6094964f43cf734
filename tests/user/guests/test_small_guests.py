# SPDX-License-Identifier: GPL-2.0-or-later
"""Greeting, loops and misbehaving guests do on a bare PC what they claim to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from l4lab.errors import LabError
from l4lab.user.guests import greeting, loops, misbehave
from l4lab.user.guests.flat import ORIGIN

PowerOn = Callable[..., Any]


@pytest.mark.parametrize(("cpu", "vendor"), [("athlon", "AuthenticAMD"), ("qemu32", "GenuineIntel")])
def test_greeting_names_the_vendor(power_on: PowerOn, cpu: str, vendor: str) -> None:
    """The greeting carries the name that CPUID gives, and then the machine halts for good."""
    console = power_on(greeting.build(), cpu).wait_for_halt()

    assert greeting.expected_console(vendor) == console
    assert f"Hello from {vendor}, guest!\r\n" == console


def test_greeting_has_labels_to_stop_at() -> None:
    """Its entry and its halt can be found by name."""
    guest = greeting.build()

    assert guest.entry == guest.symbols["start"] == ORIGIN
    assert {"print", "halted", "vendor"} <= guest.symbols.keys()


def test_cpuid_loop_runs_to_its_halt(power_on: PowerOn) -> None:
    """The counter is down to zero when it halts."""
    guest = loops.cpuid(1000)
    pc = power_on(guest)
    pc.wait_for_halt()

    assert (0, guest.symbols["done"] + 1) == (pc.register("EDI"), pc.register("EIP"))


def test_compute_loop_computes(power_on: PowerOn) -> None:
    """The result in memory is the one that Python finds."""
    guest = loops.compute(5000)
    pc = power_on(guest)
    pc.wait_for_halt()

    assert loops.compute_result(5000) == pc.word(guest.symbols["result"])


@pytest.mark.parametrize("iterations", [0, -1, 1 << 32])
def test_loops_refuse_counts_that_no_register_holds(iterations: int) -> None:
    """An impossible count is refused with the possible ones named."""
    with pytest.raises(LabError, match="Try a number from 1"):
        loops.cpuid(iterations)


def test_triple_fault_ends_the_pc(power_on: PowerOn) -> None:
    """A PC resets on a triple fault; ours was told to stop instead."""
    assert power_on(misbehave.triple_fault()).wait_for_end() == ""


def test_jump_nowhere_gets_there(power_on: PowerOn) -> None:
    """It goes on where a PC of 16 MiB has no memory."""
    pc = power_on(misbehave.jump_nowhere())
    while pc.register("EIP") < misbehave.NOWHERE:
        pass

    assert pc.console == ""


def test_spin_spins(power_on: PowerOn) -> None:
    """However often one looks, it is at the same instruction, interrupts off, not halted."""
    guest = misbehave.spin()
    pc = power_on(guest)
    while pc.register("EIP") != guest.symbols["loop"]:
        pass

    assert [guest.symbols["loop"]] * 5 == [pc.register("EIP") for _ in range(5)]
    assert (0, 0) == (pc.register("HLT"), pc.register("EFL") & 1 << 9)


@pytest.mark.parametrize("seed", range(3))
def test_hammer_survives(power_on: PowerOn, seed: int) -> None:
    """Unknown ports and MSRs do a PC no harm."""
    assert power_on(misbehave.hammer(seed)).wait_for_halt() == "survived\r\n"


def test_hammer_survives_protection_faults(power_on: PowerOn) -> None:
    """Its handler steps over what raises #GP: one bad selector for certain, each MSR access once at most."""
    guest = misbehave.hammer(count=8)
    pc = power_on(guest)
    pc.wait_for_halt()

    assert 1 <= pc.word(guest.symbols["faults"]) <= 1 + 2 * 8


def test_noise_is_the_same_for_the_same_seed() -> None:
    """Random bytes, but reproducible ones."""
    assert misbehave.noise(5).pieces == misbehave.noise(5).pieces != misbehave.noise(6).pieces


def test_noise_can_be_run(power_on: PowerOn) -> None:
    """With this seed a bare PC shuts down."""
    assert power_on(misbehave.noise(0)).wait_for_end() == ""
