# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the CPU share: QEMU, which takes longer to start than to run a case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .oracle import Qemu


@pytest.fixture(scope="module")
def qemu() -> Iterator[Qemu]:
    """One QEMU for all cases of a file."""
    oracle = Qemu()
    yield oracle
    oracle.close()
