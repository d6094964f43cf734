# SPDX-License-Identifier: GPL-2.0-or-later
"""The same guest under nested and under shadow paging: what each of the two costs. How it is drawn is
`views.counters`."""

from __future__ import annotations

import msgspec

from l4lab.errors import LabError
from l4lab.rig.counting import Counts, Paging, machines
from l4lab.rig.named import boot
from l4lab.rig.rig import Rig
from l4lab.user.guests.flat import FlatGuest
from l4lab.user.monitor.hardware import Hardware

LONGEST_S = 10.0  # of virtual time, unless more is asked for


class PagedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two runs."""

    paging: Paging
    counts: Counts
    cycles: int
    ended: str  # why it came to its end


class PagingComparison(msgspec.Struct, frozen=True):
    """What a guest cost under either kind of paging."""

    guest: str  # what it is
    nested: PagedRun
    shadow: PagedRun


def compare_paging(guest: str | FlatGuest, seconds: float = LONGEST_S, until: str = "") -> PagingComparison:
    """Run a guest twice, under nested and under shadow paging: until it ends, or for so many seconds of virtual time,
    or until its console says `until`.

    The guest is one of our small systems, or named as for `boot`.
    """
    if seconds <= 0:
        raise LabError(f"a guest cannot run for {seconds} seconds; give a number above zero, such as {LONGEST_S}")
    told = guest if isinstance(guest, str) else guest.description
    nested, shadow = (_run(guest, paging, int(seconds * 1e9), until.encode()) for paging in ("nested", "shadow"))
    return PagingComparison(told, nested, shadow)


def _run(guest: str | FlatGuest, paging: Paging, cycles: int, until: bytes) -> PagedRun:
    if isinstance(guest, str):
        rig = boot(guest, paging=paging)
    else:
        rig = Rig.for_flat_guest(guest, hardware=Hardware(shadow_paging=paging == "shadow"))
    stop = rig.run_until(cycles, watch=(lambda: until in rig.console) if until else None)
    [machine] = machines(rig.kernel.counters.virtual_cpus)
    return PagedRun(
        paging=paging,
        counts=machine.total,
        cycles=rig.machine.cycles,
        ended="its time was over" if stop.reason == "deadline" else stop.detail,
    )
