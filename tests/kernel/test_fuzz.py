# SPDX-License-Identifier: GPL-2.0-or-later
"""Arbitrary code and arbitrary system calls; see `fuzz.py`, which can also play for hours."""

from __future__ import annotations

import pytest

from .fuzz import Round


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("privileged", [False, True], ids=["unprivileged", "privileged"])
def test_invariants_hold_under_attack(seed: int, privileged: bool) -> None:
    """Whatever attackers do, does no exception leave the kernel, and do its invariants hold?"""
    attack = Round(seed, privileged)

    assert attack.run(200, check_every=10)
    attack.stop()


@pytest.mark.parametrize("seed", range(10, 12))
def test_the_innocent_are_not_disturbed(seed: int) -> None:
    """Do two threads above the attackers' priority go on calling each other, and get what they send each other?"""
    attack = Round(seed, privileged=False)

    calls = attack.run(2000, check_every=1000)
    attack.stop()

    assert calls >= 1000
    assert attack.served >= 5
    assert not attack.broken


@pytest.mark.parametrize("seed", range(20, 22))
def test_who_has_all_privileges_cannot_break_the_kernel(seed: int) -> None:
    """Do attackers that may create, delete and move anybody leave a kernel whose invariants hold?"""
    attack = Round(seed, privileged=True)

    assert attack.run(2000, check_every=500)
    attack.stop()
