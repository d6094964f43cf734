# SPDX-License-Identifier: GPL-2.0-or-later
"""The threads as an HTML table: who they are, what they wait for, and which one runs."""

from __future__ import annotations

from l4lab.rig.snapshot import Snapshot
from l4lab.views import text
from l4lab.views.example import example
from l4lab.views.svg import Markup, element, table

KINDS = {"native": "native", "hosted": "hosted", "vcpu": "virtual CPU"}
HEADINGS = ("Thread", "Kind", "State", "Priority", "Space", "Waits for", "Pager", "Time left")


def as_html(snapshot: Snapshot) -> Markup:
    """One row per thread; an arrow and the word for the running one."""
    if not snapshot.threads:
        return element("p", "There are no threads yet.")
    rows = [
        (
            ("▶ " if view.id == snapshot.thread else "") + (view.name or f"{view.id:#x}"),
            KINDS[view.kind],
            view.state.lower(),
            str(view.priority),
            text.home(snapshot, view.space),
            text.waits(snapshot, view),
            snapshot.thread_name(view.pager),
            text.time(view) or "–",
        )
        for view in snapshot.threads
    ]
    runs = "nobody runs" if snapshot.thread is None else f"▶ runs, in {snapshot.mode} mode"
    return table(f"Threads; {runs}", HEADINGS, rows)


if __name__ == "__main__":
    print(as_html(example()))
