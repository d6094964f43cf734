# SPDX-License-Identifier: GPL-2.0-or-later
"""The example's snapshot, and any snapshot at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from l4lab.rig.snapshot import Snapshot
from l4lab.views.example import example

sys.path.insert(0, str(Path(__file__).parent))  # for `strategies`


@pytest.fixture
def snapshot() -> Snapshot:
    return example()
