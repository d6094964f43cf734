# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a thread a virtual CPU: its control structure, its counters, its shadow page tables.

What lives here: the record. Running it is `virtual/vmthread.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4lab.kernel.objects.counters import VcpuCounters
from l4lab.machine.vmcs import Vmcs

if TYPE_CHECKING:
    from l4lab.kernel.parts import ShadowPaging


class Vcpu:
    """What makes a thread a virtual CPU."""

    def __init__(self, vmcs: Vmcs, block: int, vtlb: ShadowPaging | None, counters: VcpuCounters) -> None:
        self.counters = counters
        self.vmcs = vmcs
        self.block = block  # the frame that the CPU was given for it
        self.vtlb = vtlb  # under shadow paging
        self.reflected = False  # the event that waits to be delivered is the guest's own page fault

    def frames(self) -> list[int]:
        """The kernel's frames that exist for it."""
        return [self.block, *(self.vtlb.frames() if self.vtlb else ())]
