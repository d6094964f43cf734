# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign has found once stays mended; see `campaign.py`."""

from __future__ import annotations

import selectors
import subprocess
import sys
from pathlib import Path

import pytest

from . import campaign
from .campaign import KINDS, known

FIRST = [(kind, 0, 300, 10) for kind in KINDS]  # so that a player is tried even while nothing has broken


@pytest.mark.parametrize(("kind", "seed", "amount", "every"), [*FIRST, *known()])
def test_a_seed_that_broke_something_breaks_nothing_any_more(kind: str, seed: int, amount: int, every: int) -> None:
    """Does the round that is made from this seed come as far as it did then, and hold what it claims?"""
    played = KINDS[kind](seed, amount, every)

    assert played.calls + played.exits


def test_a_campaign_writes_down_what_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a player tells that a round broke, and when it dies without a word, is the seed written down, with how much
    to play and why, in the form in which it is read?"""
    seeds = tmp_path / "seeds.txt"
    seeds.write_text("# comment\n")
    monkeypatch.setattr(campaign, "SEEDS", seeds)
    one = campaign.Campaign(["kernel"], 0, 50, 1)
    told = "print('playing 7'); print('broke 7 41'); raise ValueError('reason')"
    for program in (told, "print('playing 8', flush=True); import os; os.abort()"):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        player = campaign.Player("kernel", process, 0, 5000)
        one.players.append(player)
        one.selector.register(player.output, selectors.EVENT_READ, player)
        while one.players:
            one.hear(player)

    assert [("kernel", 7, 42, 50), ("kernel", 8, 5000, 50)] == list(known())
    assert "ValueError: reason" in seeds.read_text()
