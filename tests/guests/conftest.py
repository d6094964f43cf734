# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest obtained from nothing, once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from l4lab.guests import guest


@pytest.fixture(scope="session")
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache, in place of the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cache")
        patch.setenv("L4LAB_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session")
def linux(fresh_cache: Path) -> guest.Guest:
    """Debian's Linux, downloaded and unpacked into that cache."""
    return guest.get("linux")
