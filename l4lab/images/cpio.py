# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes cpio archives in the "newc" format: the root file system that Linux unpacks from an initrd.

Source: cpio(5), "New ASCII Format", and Linux, Documentation/driver-api/early-userspace/buffer-format.rst. The same
tree always makes the same bytes: no time stamps, inode numbers in order of the paths. What belongs into such a tree
does not live here: see `l4lab.guests.initrd`.
"""

from __future__ import annotations

import gzip
import stat
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory. Every directory on a path has to be named: Linux makes none on the way."""

    permissions: int = 0o755


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    data: bytes
    permissions: int = 0o644


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link; its target is stored as it stands."""

    target: str


@dataclass(frozen=True, slots=True)
class CharDevice:
    """A character device, such as the console (5, 1)."""

    major: int
    minor: int
    permissions: int = 0o600


Node = Directory | File | Symlink | CharDevice


def pack(tree: Mapping[str, Node]) -> bytes:
    """The archive of a tree given as relative path to node."""
    entries = [_entry(number, path, tree[path]) for number, path in enumerate(sorted(tree), start=1)]
    return b"".join([*entries, _record(0, "TRAILER!!!", mode=0, data=b"")])


def pack_gzip(tree: Mapping[str, Node]) -> bytes:
    """The archive, compressed; as an initrd for a kernel with CONFIG_RD_GZIP."""
    return gzip.compress(pack(tree), compresslevel=6, mtime=0)


def _entry(inode: int, path: str, node: Node) -> bytes:
    match node:
        case Directory(permissions):
            return _record(inode, path, stat.S_IFDIR | permissions, b"")
        case File(data, permissions):
            return _record(inode, path, stat.S_IFREG | permissions, data)
        case Symlink(target):
            return _record(inode, path, stat.S_IFLNK | 0o777, target.encode())
        case CharDevice(major, minor, permissions):
            return _record(inode, path, stat.S_IFCHR | permissions, b"", (major, minor))


def _record(inode: int, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    # Magic, then 13 numbers of 8 hex digits each: inode, mode, uid, gid, links, mtime, file size, the device it lies
    # on (major, minor), the device it is (major, minor), size of the name with its final NUL, checksum (0 in newc).
    name = path.encode() + b"\0"
    numbers = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0]
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _aligned(header + name) + _aligned(data)


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
