# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces: the graph of who mapped what to whom, the memory map, and the joining of neighbours."""

from __future__ import annotations

import subprocess
from xml.etree import ElementTree

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import snapshots

from l4lab.rig.snapshot import Area, Region, Snapshot, SpaceView
from l4lab.views import spaces, text
from l4lab.words import Rights

GRAPH = r"""digraph "Address spaces: who mapped what to whom" {
  graph [rankdir=LR, bgcolor=transparent]
  node [shape=box, style=rounded, fontname="sans-serif", fontsize=12]
  edge [fontname="monospace", fontsize=10]
  s1 [label="sigma0\n64M mapped"]
  s4 [label="guest (virtual machine)\n4K mapped", peripheries=2]
  s1 -> s4 [label="00001000 4K r-x"]
}
"""


def test_the_graph_has_an_edge_from_giver_to_taker(snapshot: Snapshot) -> None:
    """sigma0 mapped one page to a virtual machine: two nodes, one edge, the machine with a double border."""
    page = Region(0x1000, 0x1000, 0x5000, Rights.R | Rights.X, parent=1)
    small = msgspec.structs.replace(
        snapshot, spaces=(snapshot.spaces[0], SpaceView(4, "guest", is_vm=True, regions=(page,)))
    )

    assert spaces.as_dot(small) == GRAPH


@settings(max_examples=25, deadline=None)
@given(snapshots)
def test_dot_reads_what_we_write(snapshot: Snapshot) -> None:
    """For any names Graphviz itself finds no fault with the graph, and draws each space, or says there is none."""
    run = subprocess.run(["dot", "-Tsvg"], input=spaces.as_dot(snapshot).encode(), capture_output=True, check=True)

    nodes = [group for group in ElementTree.fromstring(run.stdout).iter() if group.get("class") == "node"]
    assert (len({view.id for view in snapshot.spaces}) or 1) == len(nodes)
    assert b"" == run.stderr


def test_pages_that_continue_each_other_are_one_mapping() -> None:
    """Three pages in a row, the last with other rights, are two mappings."""
    pages = [Region(va, 0x1000, va + 0x9000, Rights.RWX, 1) for va in (0x2000, 0x1000)]
    last = Region(0x3000, 0x1000, 0xC000, Rights.R, 1)

    assert [Region(0x1000, 0x2000, 0xA000, Rights.RWX, 1), last] == spaces.merge([*pages, last])


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([Rights.R, Rights.RWX])), unique_by=lambda page: page[0]))
def test_merging_loses_no_page(pages: list[tuple[int, Rights]]) -> None:
    """Page by page, the joined mappings say the same as the separate ones."""
    regions = [Region(number * 4096, 4096, number * 4096, rights) for number, rights in pages]

    found = {
        (at // 4096, region.rights)
        for region in spaces.merge(regions)
        for at in range(region.va, region.va + region.size, 4096)
    }
    assert set(pages) == found


def test_a_memory_map_names_what_lies_where() -> None:
    """The map of a space has its mappings, the kernel's areas, and the gaps between them, in the order of addresses."""
    view = SpaceView(
        2, "root", kip=Area(0x4000, 0x1000), regions=(Region(0x1000, 0x1000, 0x7000, Rights.R, None, "program"),)
    )
    system = Snapshot(cycle=0, virtual_ns=0, retired=0, status="", thread=None, mode="idle", spaces=(view,))

    drawn = ElementTree.fromstring(spaces.memory_map(system, view))
    assert [
        "root",
        "from, at physical address",
        "4K not mapped",
        "00001000",
        "4K r-- program",
        "← kernel 0x00007000",
        "8K not mapped",
        "00004000",
        "4K KIP",
        "",
    ] == [found.text or "" for found in drawn.iter("{http://www.w3.org/2000/svg}text")]


def test_a_long_memory_map_is_cut_and_says_so(snapshot: Snapshot) -> None:
    """Of fifty scattered pages forty are drawn, and the others counted."""
    pages = tuple(Region(number * 0x2000, 0x1000, 0, Rights.RWX, 1) for number in range(50))

    assert "and 10 more mappings above 0004f000" in spaces.memory_map(snapshot, SpaceView(9, "big", regions=pages))


def test_ports_are_shown_with_who_gave_them(snapshot: Snapshot) -> None:
    """Do graph, memory map and text name the I/O ports of a space and where it has them from?"""
    view = snapshot.spaces[2]

    assert "8 ports from 0x3f8 on" in spaces.as_dot(snapshot)
    assert "ports 0x3f8–0x3ff ← root" in spaces.memory_map(snapshot, view)
    assert "  ports 0x3f8–0x3ff ← root\n" in text.space(snapshot, view)
