# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing cpio archives; that Linux itself accepts them is shown in tests/guests."""

from __future__ import annotations

import gzip
import stat

from hypothesis import given
from hypothesis import strategies as st

from l4lab.images.cpio import CharDevice, Directory, File, Node, Symlink, pack, pack_gzip

names = st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9})?", fullmatch=True)
nodes: st.SearchStrategy[Node] = st.one_of(
    st.builds(Directory),
    st.builds(File, st.binary(max_size=40)),
    st.builds(Symlink, st.text("abc/.", min_size=1)),
    st.builds(CharDevice, st.integers(0, 255), st.integers(0, 255)),
)


def unpack(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Path to mode, data and device, read as cpio(5) describes the format."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        begin = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[begin : begin + fields[6]], (fields[9], fields[10]))
        at = -(-(begin + fields[6]) // 4) * 4


@given(st.dictionaries(names, nodes))
def test_an_archive_holds_what_was_put_in(tree: dict[str, Node]) -> None:
    """Every node comes back with its kind, permissions, contents and device number."""
    found = unpack(pack(tree))

    assert set(tree) == set(found)
    for path, node in tree.items():
        mode, data, device = found[path]
        match node:
            case Directory(permissions):
                assert (stat.S_IFDIR | permissions, b"") == (mode, data)
            case File(contents, permissions):
                assert (stat.S_IFREG | permissions, contents) == (mode, data)
            case Symlink(target):
                assert (stat.S_IFLNK | 0o777, target.encode()) == (mode, data)
            case CharDevice(major, minor, permissions):
                assert (stat.S_IFCHR | permissions, (major, minor)) == (mode, device)


@given(st.dictionaries(names, nodes))
def test_the_same_tree_makes_the_same_bytes(tree: dict[str, Node]) -> None:
    """Neither the order in which a tree was built nor the time of day shows in the archive."""
    backwards = dict(reversed(tree.items()))

    assert pack_gzip(tree) == pack_gzip(backwards)
    assert pack(tree) == gzip.decompress(pack_gzip(tree))
