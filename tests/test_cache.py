# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept for the next time: nothing that happens to it can be seen in what comes out."""

from __future__ import annotations

import lzma
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from l4lab import cache
from l4lab.images import bzimage

ELF = b"\x7fELF" + random.Random(1).randbytes(100_000) + bytes(bzimage.SMALLEST_KEPT)


@pytest.fixture(scope="module")
def image() -> bytes:
    """A payload as a bzImage has it: compressed, and the size at its end."""
    return lzma.compress(ELF) + len(ELF).to_bytes(4, "little")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; where in it unpacked kernels are."""
    monkeypatch.setenv("L4LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / bzimage.KEPT


def unpack(payload: bytes) -> bytes:
    """As a boot does it."""
    return bzimage.LinuxKernel("k", "", 0x20F, b"", payload, 0, 0, True, 0, 0).unpack()  # type: ignore[arg-type]


def test_the_second_boot_does_not_unpack(image: bytes, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was unpacked once comes from the cache, byte for byte, whatever its file is named."""
    assert ELF == unpack(image)
    assert 1 == len(list(place.iterdir()))

    monkeypatch.setattr(bzimage, "_FORMATS", [(b"\xfd7zXZ", "xz", lambda data: pytest.fail("unpacked again"))])
    assert ELF == unpack(image)


def flipped(file: Path) -> None:
    """One bit is wrong, in the midst of the data."""
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def in_the_checksum(file: Path) -> None:
    """One bit is wrong, in what ought to tell."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    """The end is missing."""
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    """A disk was full when somebody else wrote it."""
    file.write_bytes(b"")


def other(file: Path) -> None:
    """Another, whole file lies in its place."""
    import zstandard

    file.write_bytes(zstandard.ZstdCompressor().compress(ELF[:-1]))


def pipe(file: Path) -> None:
    """A pipe, of which nothing ever comes."""
    file.unlink()
    os.mkfifo(file)


def directory(file: Path) -> None:
    """A directory, which no file replaces."""
    file.unlink()
    (file / "x").mkdir(parents=True)


@pytest.mark.parametrize("damage", [flipped, in_the_checksum, cut, emptied, other, pipe, directory])
def test_a_damaged_cache_is_as_good_as_none(damage: Callable[[Path], None], image: bytes, place: Path) -> None:
    """What was damaged since it was written is not used, and is made anew where that can be done."""
    unpack(image)
    (file,) = place.iterdir()
    good = file.read_bytes()
    damage(file)

    assert ELF == unpack(image)
    assert file.is_dir() or good == file.read_bytes()


def test_a_home_that_cannot_be_written(image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache cannot be made, a kernel is unpacked all the same, and nothing is said."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("L4LAB_CACHE", str(tmp_path / "file" / "cache"))  # refused to root as well

    assert ELF == unpack(image)


def test_a_cache_that_can_only_be_read(image: bytes, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is used where nothing can be written, not even the time of its use."""
    unpack(image)

    def refused(*_: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(bzimage, "_FORMATS", [(b"\xfd7zXZ", "xz", lambda data: pytest.fail("unpacked again"))])
    assert ELF == unpack(image)


def test_no_home_at_all(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a home directory unpacks what it boots."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("L4LAB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert ELF == unpack(image)


def test_many_at_once(place: Path) -> None:
    """Processes that keep and read the same names at the same time see whole files only, and leave no drafts."""
    code = (
        "from l4lab import cache\n"
        "for turn in range(60):\n"
        "    for name in 'abc':\n"
        f"        cache.keep('{bzimage.KEPT}', name, name.encode() * 100_000, largest=250_000)\n"
        f"        found = cache.kept('{bzimage.KEPT}', name)\n"
        "        assert found is None or found == name.encode() * 100_000, len(found)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]

    assert [0] * 4 == [writer.wait(60) for writer in writers]
    assert {file.name for file in place.iterdir()} <= set("abc")
    assert 250_000 >= sum(file.stat().st_size for file in place.iterdir())


def test_what_was_unused_for_longest_goes_first(place: Path) -> None:
    """The cache has a bound; what goes is not what was used lately, and one that exceeds it alone is not kept."""
    for age, name in enumerate("abcd"):
        cache.keep(bzimage.KEPT, name, bytes(100), largest=400)
        os.utime(place / name, (age, age))
    cache.kept(bzimage.KEPT, "a")
    cache.keep(bzimage.KEPT, "e", bytes(150), largest=400)
    cache.keep(bzimage.KEPT, "f", bytes(401), largest=400)

    assert {"a", "d", "e"} == {file.name for file in place.iterdir()}
