# SPDX-License-Identifier: GPL-2.0-or-later
"""Where obtained guests are kept: a directory per version below the user's cache, complete or not there at all.

`L4LAB_CACHE` names another place for all of it; else the XDG Base Directory Specification says where.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from l4lab.errors import LabError


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
    """Write a file so that readers see all of it or none of it."""
    with tempfile.NamedTemporaryFile(prefix=f".{file.name}-", dir=file.parent, delete=False) as draft:
        draft.write(data)
    Path(draft.name).chmod(0o644)
    Path(draft.name).rename(file)
