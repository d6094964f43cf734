# SPDX-License-Identifier: GPL-2.0-or-later
"""Arbitrary guests under an arbitrary monitor; see `vmfuzz.py`, which can also play for hours."""

from __future__ import annotations

import pytest

from .vmfuzz import Round


@pytest.mark.parametrize("seed", range(4))
def test_no_monitor_and_no_guest_can_break_the_kernel(seed: int) -> None:
    """Whatever a monitor answers, do the kernel's invariants hold, and does the guest keep to its pages?"""
    one = Round(seed)

    assert one.run(800, check_every=50) >= 800
    one.stop()
    assert len(one.reasons) >= 4
