# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands in each panel of the dashboard: pure functions from a snapshot to markup.

Lives here: which views make up a panel. What a view looks like is decided in `l4lab.views`, where the panels stand on
the page in `dashboard.js` and `dashboard.css`, and when a new snapshot is taken in `dashboard.py`.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import graphviz
import msgspec

from l4lab.rig.snapshot import Snapshot
from l4lab.views import console, counters, disassembly, ipc, registers, screen, spaces, svg, text, threads, vmexits
from l4lab.words import hex32, size_text

MESSAGES = 12  # in the chart: so many that its heads and its legend stay in sight
INSTRUCTIONS = 10
SPACE_HEADINGS = ("Space", "Address", "Size", "Rights", "From", "Physical address")


def contents(snapshot: Snapshot) -> dict[str, str]:
    """The markup, DOT or text of each panel, by the name of the widget's trait."""
    dot = spaces.as_dot(snapshot)
    return {
        "console": console.as_text(snapshot.console),
        "screen": screen.as_svg(snapshot.screen) if snapshot.screen is not None else "",
        "who": who(snapshot),
        "disassembly": disassembly.as_html(snapshot.disassembly[:INSTRUCTIONS]) if snapshot.disassembly else "",
        "registers": registers.as_html(snapshot),
        "threads": threads.as_html(snapshot),
        "graph_dot": dot,
        "graph_svg": drawn(dot),
        "graph_text": text.spaces(snapshot),
        "mappings": mappings(snapshot),
        "ipc": ipc.sequence(msgspec.structs.replace(snapshot, ipc=snapshot.ipc[-MESSAGES:])),
        "counters": counters.as_html(snapshot.machines),
        "kernel_exits": kernel_exits(snapshot),
        "exit_counts": vmexits.histogram(snapshot.exit_counts),
        "exits": vmexits.as_html(snapshot),
    }


def who(snapshot: Snapshot) -> str:
    """Who runs, and in which mode."""
    name = snapshot.thread_name(snapshot.thread)
    if any(view.id == snapshot.thread and view.state != "RUNNING" for view in snapshot.threads):
        return f"{name} has just entered the kernel, from {snapshot.mode} mode, and waits."
    match snapshot.mode:
        case "idle" if any(view.state == "RUNNING" for view in snapshot.threads):
            return "Nobody has run yet."
        case "idle":
            return "Nobody runs: every thread waits."
        case "hosted":
            return f"{name} runs, a hosted program: its instructions are Python."
        case "guest":
            return f"{name} runs in guest mode: these are the virtual machine's instructions and registers."
        case mode:
            return f"{name} runs in {mode} mode."


def kernel_exits(snapshot: Snapshot) -> str:
    """Exits that ended in the kernel, by reason; nothing where there were none, as always under nested paging."""
    counts = sum((Counter(machine.total.kernel_exits) for machine in snapshot.machines), Counter[str]())
    if not counts:
        return ""
    title = "Exits that ended in the kernel, by reason"
    return svg.group(svg.element("p", title, class_="l4-hint"), vmexits.histogram(counts, title))


def mappings(snapshot: Snapshot) -> svg.Markup:
    """A row for each mapping, space by space."""
    rows = [
        (
            view.name + (" (VM)" if view.is_vm else ""),
            hex32(region.va),
            size_text(region.size),
            region.rights.text,
            snapshot.space_name(region.parent),
            hex32(region.pa),
        )
        for view in snapshot.spaces
        for region in spaces.merge(view.regions)
    ]
    if not rows:
        return svg.element("p", "Nothing is mapped yet.")
    return svg.table("What is mapped where, and from whom", SPACE_HEADINGS, rows)


@lru_cache(maxsize=16)
def drawn(dot: str) -> str:
    """The picture as SVG if Graphviz's `dot` is installed; else nothing, and the browser draws it."""
    try:
        picture: str = graphviz.Source(dot).pipe(format="svg", encoding="utf-8")
    except graphviz.ExecutableNotFound:
        return ""
    return picture[picture.index("<svg") :]  # without the XML declaration, which HTML does not know
