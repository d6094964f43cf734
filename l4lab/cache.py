# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab keeps for the next time, below the user's cache: obtained guests, and kernels that were unpacked before.

A guest has a directory for each version, which is complete or not there at all. What can be made again at any time is
a file, named after the contents it was made from (`kept`, `keep`): a cache that cannot be read or written is as good as
an empty one. `L4LAB_CACHE` names another place for all of it; else the XDG Base Directory Specification says where.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from l4lab import files
from l4lab.errors import LabError

LARGEST: Final = 256 << 20  # bytes of all the files that `keep` leaves in one directory


def root() -> Path:
    """The lab's cache directory. It need not exist yet."""
    if chosen := os.environ.get("L4LAB_CACHE"):
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path there is to be ignored.
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "l4lab"


def unwritable(error: OSError) -> LabError:
    """What to say when something cannot be written there."""
    return LabError(f"cannot write to the cache {root()}: {error.strerror}; set L4LAB_CACHE to a directory of yours")


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """An empty directory to fill; it becomes `final` in one step when the block ends well, else nothing remains.

    Whoever finds `final` there already was simply faster: both made the same thing, and the first one stays.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield draft
        draft.chmod(0o755)
        try:
            draft.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write(file: Path, data: bytes) -> None:
    """Write a file so that readers see all of it or none of it, whoever they are."""
    files.replace(file, [data], 0o644)


# -- what can be made again --------------------------------------------------------------------------------------------


def kept(kind: str, name: str) -> bytes | None:
    """The file of this name, if it is there and can be read. Whether it is what was written, the caller checks."""
    try:
        file = root() / kind / name
        if not file.is_file():  # a pipe in its place would never end
            return None
        data = file.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return None
    with contextlib.suppress(OSError):  # a cache that is only read keeps no order
        os.utime(file)
    return data


def keep(kind: str, name: str, data: bytes, largest: int = LARGEST) -> None:
    """Leave a file for the next time if that can be done, and give up those unused for longest if there are too many.

    Any number of processes may do so at the same time: each file comes into its place as a whole.
    """
    if len(data) > largest:
        return
    with contextlib.suppress(OSError, RuntimeError):
        directory = root() / kind
        directory.mkdir(parents=True, exist_ok=True)
        write(directory / name, data)
        _make_room(directory, largest)


def _make_room(directory: Path, largest: int) -> None:
    """Remove the files that were used least recently, until those that stay have at most so many bytes."""
    found = []
    for file in directory.iterdir():  # drafts of processes that were killed are among them
        with contextlib.suppress(FileNotFoundError):  # another process makes room as well
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_size, file))
    room = largest
    for _, size, file in sorted(found, reverse=True):
        room -= size
        if room < 0:
            file.unlink(missing_ok=True)
