# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel counts: for each virtual CPU what its guest cost, and for the whole run what is left.

What lives here: the numbers, and their sums. Each is counted at one place (`vmthread.py`, `ipc.py`, `faults.py`), and
each of a virtual CPU's can be counted again from the trace (`rig.counting` does). A virtual CPU's numbers outlive it,
so that those of a run that has ended are complete.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

MOST_ENDED: Final = 1000  # deleted virtual CPUs told one by one; of earlier ones only the sums are kept


class VcpuCounters:
    """What happened to one virtual CPU so far."""

    def __init__(self, thread: int, machine: int, name: str, shadow: bool) -> None:
        self.thread = thread  # its identifier
        self.machine = machine  # the virtual machine's number: in the order of their first virtual CPUs, from 1
        self.name = name  # of the virtual machine's space
        self.shadow = shadow  # how its memory is translated: by shadow page tables, or by nested paging
        self.instructions = 0  # that the CPU retired in guest mode; what exits is done by somebody else, if at all
        self.exits: dict[int, int] = {}  # exits that the monitor was told of, by basic exit reason
        self.kernel_exits: dict[int, int] = {}  # exits that the kernel alone dealt with, for its shadow tables
        self.nested_faults = 0  # page faults on guest-physical memory: the pager was told of them
        self.injections = 0  # events that a monitor had the CPU deliver
        self.messages = 0  # sent in its name, and the answers
        self.vtlb_fills = 0
        self.vtlb_flushes = 0  # of one page, or of an address space

    def add(self, other: VcpuCounters) -> None:
        """Take in what happened to another one."""
        self.instructions += other.instructions
        self.nested_faults += other.nested_faults
        self.injections += other.injections
        self.messages += other.messages
        self.vtlb_fills += other.vtlb_fills
        self.vtlb_flushes += other.vtlb_flushes
        for mine, others in (self.exits, other.exits), (self.kernel_exits, other.kernel_exits):
            for reason, count in others.items():
                mine[reason] = mine.get(reason, 0) + count


class Counters:
    """What `--stats` tells. Everything else can be counted from the trace."""

    def __init__(self) -> None:
        self.ipc_messages = 0
        self.page_faults = 0  # of all threads
        self.machines = 0  # virtual machines so far
        self.virtual_cpus: list[VcpuCounters] = []  # in the order in which they came into being
        self.earlier = VcpuCounters(0, 0, "", False)  # the sum of those that are not in the list any more
        self._ended: deque[VcpuCounters] = deque()

    def ended(self, cpu: VcpuCounters) -> None:
        """The virtual CPU is deleted. A program may make and delete as many as it likes: not all can be kept."""
        self._ended.append(cpu)
        if len(self._ended) > MOST_ENDED:
            oldest = self._ended.popleft()
            self.virtual_cpus.remove(oldest)
            self.earlier.add(oldest)

    @property
    def all_virtual_cpus(self) -> VcpuCounters:
        """The sum over all virtual CPUs."""
        total = VcpuCounters(0, 0, "", False)
        for cpu in (self.earlier, *self.virtual_cpus):
            total.add(cpu)
        return total

    @property
    def exit_count(self) -> int:
        """How many exits monitors were told of."""
        return sum(sum(cpu.exits.values()) for cpu in (self.earlier, *self.virtual_cpus))

    @property
    def vm_exits(self) -> Counter[int]:
        """The same by basic exit reason."""
        return Counter(self.all_virtual_cpus.exits)

    @property
    def injections(self) -> int:
        """How many events monitors had delivered."""
        return self.all_virtual_cpus.injections
