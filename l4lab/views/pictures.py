# SPDX-License-Identifier: GPL-2.0-or-later
"""The views as a notebook's cell shows them: a function per picture, from a snapshot to a `Picture`.

Lives here: what makes a picture appear, with its plain-text twin where there is no notebook. What is in a picture is
decided in the files beside this one.
"""

from __future__ import annotations

import shutil
import subprocess

import msgspec

from l4lab.errors import LabError
from l4lab.rig.comparison import PagingComparison
from l4lab.rig.snapshot import Snapshot, SpaceView
from l4lab.views import comparison as comparison_view
from l4lab.views import counters as counters_view
from l4lab.views import disassembly as disassembly_view
from l4lab.views import ipc, spaces, svg, text, vmexits
from l4lab.views import registers as registers_view
from l4lab.views import screen as screen_view
from l4lab.views import threads as threads_view


class Picture(msgspec.Struct, frozen=True):
    """Something to look at: markup where that can be shown, text elsewhere."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text

    def larger(self, factor: float = 1.5) -> Picture:
        """The same for the last row of a lecture hall."""
        return Picture(f'<div style="zoom: {factor:g}">{self.html}</div>', self.text)


# Notebooks align the cells of all tables to the right, which suits neither names nor instructions.
_LEFT = "<style>table[class^='l4-'] :is(td, th) { text-align: left !important; }</style>"
_RIGHT = """<style>table.l4-numbers :is(td, th + th) { text-align: right !important; }
table.l4-numbers :is(caption, th:first-child) { text-align: left !important; }
table.l4-numbers :is(td, tbody th) { white-space: nowrap; }</style>"""


def messages(snapshot: Snapshot, latest: int = ipc.MESSAGES) -> Picture:
    """The latest messages as a sequence chart."""
    shown = msgspec.structs.replace(snapshot, ipc=snapshot.ipc[-latest:])
    return Picture(ipc.sequence(shown), text.ipc(shown))


def screen(snapshot: Snapshot) -> Picture:
    """The guest's text screen."""
    if snapshot.screen is None:
        nothing = "The guest has put nothing on its screen."
        return Picture(f"<p>{nothing}</p>", nothing)
    return Picture(screen_view.as_svg(snapshot.screen), screen_view.as_text(snapshot.screen))


def exits(snapshot: Snapshot, latest: int = 10) -> Picture:
    """The latest VM exits as a table, the newest first."""
    shown = msgspec.structs.replace(snapshot, exits=snapshot.exits[-latest:])
    return Picture(_LEFT + vmexits.as_html(shown), text.exits(shown))


def histogram(snapshot: Snapshot) -> Picture:
    """How often each exit reason occurred."""
    return Picture(vmexits.histogram(snapshot.exit_counts), text.exit_counts(snapshot.exit_counts))


def counters(snapshot: Snapshot) -> Picture:
    """What each virtual machine and each of its CPUs cost so far."""
    return Picture(_RIGHT + counters_view.as_html(snapshot.machines), counters_view.as_text(snapshot.machines))


def comparison(compared: PagingComparison) -> Picture:
    """A guest under nested and under shadow paging, as `compare_paging` has run it."""
    return Picture(_RIGHT + comparison_view.as_html(compared), comparison_view.as_text(compared))


def disassembly(snapshot: Snapshot, lines: int = 8) -> Picture:
    """The instructions that come next."""
    shown = snapshot.disassembly[:lines]
    return Picture(_LEFT + disassembly_view.as_html(shown), text.disassembly(shown))


def registers(snapshot: Snapshot) -> Picture:
    """The registers; what changed since the last snapshot stands out."""
    return Picture(_LEFT + registers_view.as_html(snapshot), text.registers(snapshot))


def threads(snapshot: Snapshot) -> Picture:
    """The threads, and what each waits for."""
    return Picture(_LEFT + threads_view.as_html(snapshot), text.threads(snapshot))


def memory_map(snapshot: Snapshot, space: str) -> Picture:
    """One address space, by its name, from the lowest address to the highest."""
    for view in snapshot.spaces:
        if view.name == space:
            return _memory_map(snapshot, view)
    names = ", ".join(repr(view.name) for view in snapshot.spaces)
    raise LabError(f"there is no address space {space!r}; there are: {names}")


def address_spaces(snapshot: Snapshot) -> Picture:
    """Who mapped what to whom. Without Graphviz's `dot`: the memory maps of all spaces, one below the other."""
    spoken = text.spaces(snapshot)
    if shutil.which("dot") is None:
        return Picture("".join(_memory_map(snapshot, view).html for view in snapshot.spaces), spoken)
    drawn = subprocess.run(
        ["dot", "-Tsvg"], input=spaces.as_dot(snapshot), capture_output=True, text=True, check=True
    ).stdout
    # dot draws in black; ink is the text colour of the notebook's theme.
    inked = (
        drawn[drawn.index("<svg") :].replace('"black"', f'"{svg.INK}"').replace("<text ", f'<text fill="{svg.INK}" ')
    )
    return Picture(inked, spoken)


def _memory_map(snapshot: Snapshot, view: SpaceView) -> Picture:
    return Picture(spaces.memory_map(snapshot, view), text.space(snapshot, view))
