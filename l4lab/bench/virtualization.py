# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two ways to translate a guest's memory cost: programs that are measured, in seconds for one operation."""

from __future__ import annotations

import time
from typing import Final

from l4lab.bench.programs import PROMPT
from l4lab.guests.guest import Guest
from l4lab.rig.rig import Rig
from l4lab.rig.session import ENTER, Script, Session, Status
from l4lab.user.guests import loops

OPERATIONS: Final = 15_000
_FORKS: Final = 150
SHELL_LOOP: Final = f"i=0; while [ $i -lt {_FORKS} ]; do /bin/true; i=$((i+1)); done; echo all $i done"


def shadow(body: str) -> float:
    """Seconds for one turn of a paging loop (see `loops.paging`) under shadow page tables."""
    rig = Rig.for_flat_guest(loops.paging(OPERATIONS, body), shadow_paging=True)
    made = loops.TABLES * 1024  # instructions that fill the guest's tables, more or less
    rig.run_until(1 << 60, lambda: rig.machine.engine.retired > made)
    start = time.perf_counter()
    rig.run()
    return (time.perf_counter() - start) / OPERATIONS


def shell_loop(guest: Guest, shadow_paging: bool) -> float:
    """Seconds for a shell loop of Linux that forks and executes a program in each turn, the boot not counted."""
    kernel, initrd = guest.kernel.read_bytes(), guest.initrd.read_bytes()
    rig = Rig.for_linux(kernel, "linux", initrd, guest.append, 128, shadow_paging=shadow_paging)
    _reach(rig, PROMPT)
    start = time.perf_counter()
    rig.type(SHELL_LOOP.encode() + ENTER)
    _reach(rig, f"all {_FORKS} done")
    return time.perf_counter() - start


def _reach(rig: Rig, until: str) -> None:
    ending = Session(rig, Script.parse(until, (), 300)).run()
    if ending.status is not Status.MATCHED:
        raise RuntimeError(f"the guest did not get to {until!r}: {ending}")
