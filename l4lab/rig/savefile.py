# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved guests in files: a line that says what it is and in which version, then the record, packed and compressed.

Only reading and writing; what the record holds is said in `user.monitor.saved`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import zstandard

from l4lab.errors import LabError
from l4lab.user.monitor.saved import SavedGuest

VERSION: Final = 1
_MAGIC: Final = b"l4lab saved guest, version "
_LEVEL: Final = 1  # of compression: memory of guests shrinks well at any
_LARGEST: Final = 3 << 30  # bytes of a record: more than any guest's memory


def write(path: Path | str, saved: SavedGuest) -> None:
    """Write a saved guest."""
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.msgpack.encode(saved))
    try:
        Path(path).write_bytes(_MAGIC + b"%d\n" % VERSION + packed)
    except OSError as error:
        raise LabError(
            f"cannot write {path}: {(error.strerror or '').lower()}; name a file in a folder where you may write"
        ) from error


def read(path: Path | str) -> SavedGuest:
    """Read a saved guest."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise LabError(
            f"cannot read {path}: {(error.strerror or '').lower()}; give a file that --save-at or Rig.save wrote"
        ) from error
    if not data.startswith(_MAGIC):
        raise LabError(f"{path} holds no saved guest; give a file that --save-at or Rig.save wrote")
    version, _, packed = data[len(_MAGIC) :].partition(b"\n")
    if version != b"%d" % VERSION:
        said = version[:8].decode(errors="replace")
        raise LabError(
            f"{path} holds a guest in version {said}; this l4lab reads version {VERSION}; save the guest again"
        )
    try:
        record = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_LARGEST)
        return msgspec.msgpack.decode(record, type=SavedGuest)
    except (zstandard.ZstdError, msgspec.MsgspecError, MemoryError) as error:
        raise LabError(f"{path} is damaged ({error}); save the guest again") from error
