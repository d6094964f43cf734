# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests by name: what is listed, and what is said where one cannot be obtained."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from l4lab import cache
from l4lab.errors import LabError
from l4lab.guests import guest


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache of its own."""
    monkeypatch.setenv("L4LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_unknown_guest() -> None:
    """A name that is not known is refused with those that are."""
    with pytest.raises(LabError, match="no guest named 'plan9'; there is: linux"):
        guest.get("plan9")


def test_without_apt_it_says_what_to_do_instead(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no apt is, the message names the two files to put there, and the command that takes any others."""
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(LabError, match="no apt-get.*l4lab boot KERNEL --initrd FILE") as refusal:
        guest.get("linux")
    assert str(empty_cache / "guests" / "linux" / "by-hand" / "vmlinuz") in str(refusal.value)
    assert [None] == [listed.here for listed in guest.listed()]


def test_files_put_there_by_hand_are_the_guest(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doing what that message says helps, without apt."""
    monkeypatch.setenv("PATH", "/nonexistent")
    by_hand = empty_cache / "guests" / "linux" / "by-hand"
    by_hand.mkdir(parents=True)
    (by_hand / "vmlinuz").write_bytes(b"kernel")
    (by_hand / "initrd").write_bytes(b"initrd")

    found = guest.get("linux")

    assert (by_hand / "vmlinuz", by_hand / "initrd") == (found.kernel, found.initrd)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache below a file is refused with the variable that names another place."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("L4LAB_CACHE", str(tmp_path / "file"))

    with pytest.raises(LabError, match="set L4LAB_CACHE"):
        guest.get("linux")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """L4LAB_CACHE comes first, then an absolute XDG_CACHE_HOME, then ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("L4LAB_CACHE", "/mine")
    assert Path("/mine") == cache.root()

    monkeypatch.delenv("L4LAB_CACHE")
    assert Path("/xdg/l4lab") == cache.root()

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Path.home() / ".cache" / "l4lab" == cache.root()


def test_what_failed_half_way_leaves_nothing(tmp_path: Path) -> None:
    """A directory of the cache is there completely or not at all; who was first stays."""
    with contextlib.suppress(RuntimeError), cache.new_directory(tmp_path / "v1") as draft:
        (draft / "half").touch()
        raise RuntimeError
    assert [] == list(tmp_path.iterdir())

    for content in ("first", "second"):
        with cache.new_directory(tmp_path / "v1") as draft:
            (draft / "file").write_text(content)
    assert [tmp_path / "v1"] == list(tmp_path.iterdir())
    assert "first" == (tmp_path / "v1" / "file").read_text()
