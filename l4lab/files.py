# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that people name: read so that none of them can hang the lab, written so that nothing is lost.

Lives here: which files are read and how much of them, and that a file is written as a whole or not at all. What is in
a file is its owner's affair. Every error is the user's, and told in one line.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

from l4lab.errors import LabError

LARGEST: Final = 3 << 30  # bytes: no guest has more memory
_PIECE: Final = 1 << 24
_NAMES_OF_OTHERS: Final = ("/dev/", "/proc/")  # what is there is not replaced: /dev/stdout may lead to a plain file


def read(path: Path | str, instead: str, magic: bytes = b"") -> bytes:
    """The contents of a file, or of a pipe up to its end. `instead` is what to give in its place.

    A device or a terminal may have no end, and is refused. Of what does not begin with `magic`, only that much is read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
                return _contents(file, path, magic)
    except IsADirectoryError:
        pass
    except (OSError, ValueError) as error:  # ValueError: no file system has such a name
        raise LabError(f"cannot read {path}: {reason(error)}; give {instead}") from error
    except MemoryError:
        raise LabError(f"{path} does not fit into this computer's memory; give {instead}") from None
    raise LabError(f"{path} is not a file; give {instead}")


def _contents(file: IO[bytes], path: Path | str, magic: bytes) -> bytes:
    data = bytearray()
    while len(data) < len(magic):
        if not (piece := file.read(len(magic) - len(data))):
            break
        data += piece
    if data != magic:
        return bytes(data)
    size = os.fstat(file.fileno()).st_size  # 0 of a pipe
    while size <= LARGEST and (piece := file.read(_PIECE)):
        data += piece
        size = max(size, len(data))
    if size > LARGEST:
        raise LabError(f"{path} has more than {LARGEST >> 30} GiB, which no guest has room for; give a smaller file")
    return bytes(data)


def write(path: Path | str, pieces: Iterable[bytes]) -> None:
    """Write a file: beside what is there, which it then replaces. If that fails, what is there stays as it is."""
    try:
        _write(Path(path), pieces)
    except (OSError, ValueError) as error:
        raise LabError(
            f"cannot write {path}: {reason(error)}; name a file in a folder where you may write and where there is room"
        ) from error


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    mode = _mode(path)
    target = Path(os.path.realpath(path))
    ordinary = mode is None or (stat.S_ISREG(mode) and not str(path.absolute()).startswith(_NAMES_OF_OTHERS))
    if not ordinary or not os.access(target.parent, os.W_OK | os.X_OK):
        with open(path, "wb") as file:
            file.writelines(pieces)
        return
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(0, "permission denied")  # renaming would not ask
    replace(target, pieces, None if mode is None else stat.S_IMODE(mode))


def replace(target: Path, pieces: Iterable[bytes], mode: int | None = None) -> None:
    """Put a file in its place, by its real name, as a whole or not at all; OSError. `mode`: rights, if not usual."""
    beside = target.parent / f".l4lab-{secrets.token_hex(8)}"
    try:
        with open(beside, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # a full disk may be noticed no sooner
        os.replace(beside, target)
    except BaseException:  # Ctrl-C, too
        beside.unlink(missing_ok=True)
        raise


def check_writable(*paths: Path | None) -> None:
    """Say it before the run rather than after it."""
    for path in paths:
        if path is None:
            continue
        try:
            mode = _mode(path)
        except (OSError, ValueError) as error:
            raise LabError(f"cannot write {path}: {reason(error)}; name another file") from error
        if mode is not None:
            writable = os.access(path, os.W_OK) and not stat.S_ISDIR(mode)
        else:
            writable = os.access(path.absolute().parent, os.W_OK | os.X_OK)
        if not writable:
            raise LabError(f"cannot write {path}; name a file in a folder where you may write")


def _mode(path: Path) -> int | None:
    """Kind and rights of a file; None if there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def reason(error: OSError | ValueError) -> str:
    """Why the system refused, in its own words."""
    return ((isinstance(error, OSError) and error.strerror) or str(error)).lower()
