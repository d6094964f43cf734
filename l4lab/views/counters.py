# SPDX-License-Identifier: GPL-2.0-or-later
"""What virtual machines cost: a row for each machine and for each of its CPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from l4lab.rig.counting import Counts, VmCounts
from l4lab.views.example import example
from l4lab.views.svg import Markup, element, table
from l4lab.views.text import figures, grouped

HEADINGS: Final = (
    *("Machine", "Instructions", "Exits to monitor", "Exits in kernel", "Nested faults"),
    *("vTLB fills", "vTLB flushes", "Events injected", "Messages"),
)
NOTHING: Final = "There has been no virtual machine so far."


def numbers(counts: Counts) -> tuple[int, ...]:
    """The counters, in the order of the headings."""
    return (
        counts.instructions,
        sum(counts.exits.values()),
        sum(counts.kernel_exits.values()),
        counts.nested_faults,
        counts.vtlb_fills,
        counts.vtlb_flushes,
        counts.injections,
        counts.messages,
    )


def rows(machines: Iterable[VmCounts]) -> Iterator[tuple[str, ...]]:
    """A row for each machine; where it has several CPUs, the sum, and then a row for each."""
    for machine in machines:
        yield f"{machine.name}, {machine.paging}", *map(grouped, numbers(machine.total))
        if len(machine.cpus) > 1:
            for index, cpu in enumerate(machine.cpus):
                yield f"· CPU {index}", *map(grouped, numbers(cpu))


def as_html(machines: Sequence[VmCounts]) -> Markup:
    """The counters as a table."""
    if not machines:
        return element("p", NOTHING)
    return table("What each virtual machine cost so far", HEADINGS, list(rows(machines)), "l4-numbers")


def as_text(machines: Sequence[VmCounts]) -> str:
    """The same for the terminal: numbers below each other."""
    if not machines:
        return f"{NOTHING}\n"
    return figures([HEADINGS, *rows(machines)])


if __name__ == "__main__":
    print(as_text(example().machines), end="")
