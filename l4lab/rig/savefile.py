# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved guests in files: a line that says what it is and in which version, a checksum, then the record, compressed.

Only reading and writing; what the record holds is said in `user.monitor.saved`, and whether it can be in `savedcheck`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from l4lab import files
from l4lab.errors import LabError
from l4lab.user.monitor.saved import SavedGuest

VERSION: Final = 2
_MAGIC: Final = b"l4lab saved guest, version "
_LEVEL: Final = 1  # of compression: memory of guests shrinks well at any
_LARGEST: Final = 3 << 30  # bytes of a record: more than any guest's memory
_CHECKSUM: Final = hashlib.sha256().digest_size


def write(path: Path | str, saved: SavedGuest) -> None:
    """Write a saved guest."""
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.msgpack.encode(saved))
    files.write(path, [_MAGIC + b"%d\n" % VERSION, hashlib.sha256(packed).digest(), packed])


def read(path: Path | str) -> SavedGuest:
    """Read a saved guest. Whether it makes sense is asked later."""
    data = files.read(path, "a file that --save-at or Rig.save wrote", _MAGIC)
    if not data.startswith(_MAGIC):
        raise LabError(f"{path} holds no saved guest; give a file that --save-at or Rig.save wrote")
    version, _, rest = data[len(_MAGIC) :].partition(b"\n")
    if version != b"%d" % VERSION:
        said = version[:8].decode(errors="replace")
        raise LabError(
            f"{path} holds a guest in version {said!r}; this l4lab reads version {VERSION}; save the guest again"
        )
    checksum, packed = rest[:_CHECKSUM], rest[_CHECKSUM:]
    if hashlib.sha256(packed).digest() != checksum:
        raise LabError(f"{path} is damaged: its checksum does not fit; save the guest again")
    try:
        record = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_LARGEST)
        return msgspec.msgpack.decode(record, type=SavedGuest)
    except (zstandard.ZstdError, msgspec.MsgspecError, RecursionError, MemoryError) as error:
        raise LabError(f"{path} holds a guest that no l4lab has saved ({error}); save the guest again") from error
