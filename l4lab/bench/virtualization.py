# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two ways to translate a guest's memory cost: programs that are measured, in CPU seconds an operation."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from l4lab.bench.programs import PROMPT
from l4lab.guests.guest import Guest
from l4lab.kernel.boot import KERNEL_MEMORY
from l4lab.rig.rig import SPARE_MEMORY, Rig
from l4lab.rig.session import ENTER, Script, Session, Status
from l4lab.rig.trace import Trace
from l4lab.user.guests import loops, tinyos
from l4lab.user.guests.flat import RAM_SIZE
from l4lab.user.host import Host, VmPlan
from l4lab.user.monitor.hardware import Hardware

OPERATIONS: Final = 15_000
SHADOW: Final = Hardware(shadow_paging=True)
_FORKS: Final = 150
_MANY: Final = 5
_WAITING: Final = b"5 system calls\r\n"  # what comes right before the prompt
_A_WHILE: Final = 50_000_000  # cycles
_LOG: Final = 64 << 10  # bytes
SHELL_LOOP: Final = f"i=0; while [ $i -lt {_FORKS} ]; do /bin/true; i=$((i+1)); done; echo all $i done"


def shadow(body: str) -> float:
    """Seconds for one turn of a paging loop (see `loops.paging`) under shadow page tables."""
    rig = Rig.for_flat_guest(loops.paging(OPERATIONS, body), hardware=SHADOW)
    made = loops.TABLES * 1024  # instructions that fill the guest's tables, more or less
    rig.run_until(1 << 60, lambda: rig.machine.engine.retired > made)
    start = time.process_time()
    rig.run()
    return (time.process_time() - start) / OPERATIONS


def shell_loop(guest: Guest, shadow_paging: bool) -> float:
    """Seconds for a shell loop of Linux that forks and executes a program in each turn, the boot not counted."""
    kernel, initrd = guest.kernel.read_bytes(), guest.initrd.read_bytes()
    rig = Rig.for_linux(kernel, "linux", initrd, guest.append, 128, hardware=Hardware(shadow_paging))
    _reach(rig, PROMPT)
    start = time.process_time()
    rig.type(SHELL_LOOP.encode() + ENTER)
    _reach(rig, f"all {_FORKS} done")
    return time.process_time() - start


def memory_of_a_vm(shadow_paging: bool) -> float:
    """MiB that one more virtual machine takes beyond its RAM: of the process and of the kernel's frames together.

    Machines of the same size run 1 and MANY guests, each under a monitor of its own, up to their prompts.
    """
    few, many = (_in_use(count, shadow_paging) for count in (1, _MANY))
    return (many - few) / (_MANY - 1) / (1 << 20)


def _in_use(count: int, shadow_paging: bool) -> int:
    """`bytes_in_use` in a process of its own."""
    code = f"from l4lab.bench import virtualization as v; print(v.bytes_in_use({count}, {shadow_paging}))"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def bytes_in_use(count: int, shadow_paging: bool) -> int:
    """Bytes of this process and of the kernel's frames, with so many guests. The machine's RAM is not among them, nor
    is the log of the run but for its end: it is as long as the run."""
    guest = tinyos.build(interactive=True)
    host = Host([[VmPlan.flat(f"vm{number}", guest, shadow_paging)] for number in range(count)])
    rig = Rig(host, (_MANY + 1) * (RAM_SIZE + SPARE_MEMORY) + KERNEL_MEMORY, trace=Trace(_LOG))
    while bytes(rig.console).count(_WAITING) < count:
        if rig.run(_A_WHILE).finished:
            raise RuntimeError("the guests ended before their prompts")
    gc.collect()
    # The RAM is mapped memory, which Linux counts apart from what the process allocates.
    status = Path("/proc/self/status").read_text()
    allocated = int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) << 10
    return allocated + rig.kernel.frames.used * 4096


def _reach(rig: Rig, until: str) -> None:
    ending = Session(rig, Script.parse(until, (), 300)).run()
    if ending.status is not Status.MATCHED:
        raise RuntimeError(f"the guest did not get to {until!r}: {ending}")
