# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and writing what people name: whole or not at all, and never without end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from l4lab import files
from l4lab.errors import LabError


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Do its rights and the link that leads to it stay, and is nothing left beside it?"""
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"before")
    file.chmod(0o640)
    link.symlink_to(file)
    files.write(link, [b"af", b"ter"])

    assert (b"after", 0o640) == (file.read_bytes(), file.stat().st_mode & 0o777)
    assert link.is_symlink()
    assert {file, link} == set(tmp_path.iterdir())


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    """In the midst of it, for whatever reason: is the file the old one, and no piece of the new one left?"""
    file = tmp_path / "file"
    file.write_bytes(b"before")

    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(LabError, match="no space left"):
        files.write(file, pieces())
    assert (b"before", [file]) == (file.read_bytes(), list(tmp_path.iterdir()))


def test_a_pipe_and_a_device_are_written_where_they_are(tmp_path: Path) -> None:
    """Is nothing renamed over what is no plain file?"""
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, [b"through"])
    reader.join()
    files.write("/dev/null", [b"gone"])

    assert [b"through"] == got
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    with pytest.raises(LabError, match="no space left"):
        files.write("/dev/full", [b"x"])


def test_a_name_as_long_as_can_be_is_written(tmp_path: Path) -> None:
    """Does what is written beside the file have a name that is not too long?"""
    file = tmp_path / ("n" * 255)
    files.write(file, [b"x"])

    assert b"x" == file.read_bytes()


def test_of_what_is_something_else_only_the_beginning_is_read(tmp_path: Path) -> None:
    """Is a file that would not fit into memory read only where it begins as it should, and refused then?"""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(b"magic")
        file.truncate(1 << 42)

    assert b"magi" == files.read(large, "a better one", b"cook")
    with pytest.raises(LabError, match=r"more than 3 GiB, .* give a smaller"):
        files.read(large, "a better one", b"magic")


@pytest.mark.parametrize("name", ["/dev/zero", "/", "/nonexistent", "n" * 256, "a\0b"])
def test_what_has_no_contents_is_refused(name: str) -> None:
    """Is it told what to give in its place?"""
    with pytest.raises(LabError, match="give a better one"):
        files.read(name, "a better one")


@pytest.mark.parametrize("name", ["/", "/nonexistent/file", "n" * 256, "a\0b"])
def test_what_cannot_be_written_is_refused(name: str) -> None:
    """Before the run and after it."""
    with pytest.raises(LabError, match="cannot write"):
        files.check_writable(Path(name))
    with pytest.raises(LabError, match="cannot write"):
        files.write(name, [b""])
