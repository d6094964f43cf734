# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign has found once stays mended; see `campaign.py`."""

from __future__ import annotations

import pytest

from .campaign import KINDS, known


@pytest.mark.parametrize(("kind", "seed", "amount"), known())
def test_a_seed_that_broke_something_breaks_nothing_any_more(kind: str, seed: int, amount: int) -> None:
    """Does the round that is made from this seed come as far as it did then, and hold what it claims?"""
    KINDS[kind](seed, amount)
