# SPDX-License-Identifier: GPL-2.0-or-later
"""The drivers that Debian's Linux needs for a disk on an IDE channel: kernel modules, in the order to load them.

They make an archive of their own, which goes behind the initrd when the guest has a disk: Linux unpacks one over the
other. Where the kernel package comes from lives in `guest.py`; who loads the modules is process 1, in `initrd.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from l4lab.errors import LabError
from l4lab.images.cpio import Directory, File, Node, pack_gzip

WANTED: Final = ("pata_legacy", "sd_mod", "crc32c_generic", "ext4")  # the channel, disks, and what is usually on them
OPTIONS: Final = {"pata_legacy": "probe_mask=1"}  # the first channel only: each of the others costs a while
FOLDER: Final = "modules"

_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")  # in the section .modinfo


def disk_archive(package: Path) -> bytes:
    """The archive, from an unpacked kernel package; the modules' names begin with their places in the order."""
    files = {_name(file): file for file in package.rglob("*.ko")}
    order: list[str] = []
    for name in WANTED:
        _add(name, files, order)
    tree: dict[str, Node] = {FOLDER: Directory()}
    for place, name in enumerate(order):
        tree[f"{FOLDER}/{place:02}-{name}.ko"] = File(files[name].read_bytes())
        if name in OPTIONS:
            tree[f"{FOLDER}/{place:02}-{name}.ko.options"] = File(OPTIONS[name].encode())
    return pack_gzip(tree)


def _add(name: str, files: dict[str, Path], order: list[str]) -> None:
    """A module, behind all that it depends on."""
    if name in order:
        return
    if name not in files:
        raise LabError(f"the kernel package has no module {name}")
    found = _DEPENDS.search(files[name].read_bytes())
    for other in found[1].decode().split(",") if found and found[1] else ():
        _add(other.replace("-", "_"), files, order)
    order.append(name)


def _name(file: Path) -> str:
    """A module's name as modules call each other: file names may have dashes instead."""
    return file.stem.replace("-", "_")
