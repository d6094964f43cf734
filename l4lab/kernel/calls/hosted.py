# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosted threads: L4 threads whose program is written in Python.

A hosted program runs in a greenlet until it does what makes a native program enter the kernel: a system call, or
a load or store that its address space does not allow. Then the kernel goes on, and the program sees nothing of it but
the results in its registers. `HostedCpu` is the program's whole world: what a CPU can do in ring 3, no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from l4lab.abi.calls import SystemCall
from l4lab.errors import LabError, PartFailed
from l4lab.kernel.memory import ports
from l4lab.kernel.objects.program import PortFault
from l4lab.kernel.state import State
from l4lab.machine.memory import PAGE_SIZE, SharedWords
from l4lab.machine.mmu import USER, WRITE, WalkFault

if TYPE_CHECKING:
    from l4lab.kernel.objects.thread import Tcb

STEP_CYCLES: Final = 1000  # what a hosted program's way from one kernel entry to the next takes


class HostedCpu:
    """The CPU as one hosted program sees it. Each access goes through the thread's own page tables."""

    def __init__(self, k: State, thread: Tcb, utcb: SharedWords) -> None:
        self.registers = thread.regs
        self.utcb = utcb
        self._memory = k.machine.memory
        self._tables = thread.space.tables
        self._space = thread.space
        self._machine = k.machine
        self._kernel = k

    def trap(self, call: SystemCall) -> None:
        """Enter the kernel by a system call; back when the kernel lets the thread go on."""
        self._kernel.home.switch(call)

    def load(self, address: int, length: int) -> bytes:
        """Read memory; a missing page is a page fault like any program's."""
        parts = []
        while length > 0:
            size = min(length, PAGE_SIZE - address % PAGE_SIZE)
            pa = self._translate(address, USER)
            parts.append(bytes(self._memory.u8[pa : pa + size]))
            address, length = address + size & 0xFFFFFFFF, length - size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write memory."""
        done = 0
        total = len(data)
        while done < total:
            at = address + done & 0xFFFFFFFF
            size = min(total - done, PAGE_SIZE - at % PAGE_SIZE)
            pa = self._translate(at, USER | WRITE)
            self._memory.write(pa, data[done : done + size])
            done += size

    def port_in(self, port: int, size: int) -> int:
        """IN; a missing port is an I/O page fault like any program's."""
        self._reach(port, size)
        self._machine.charge(1)
        return self._kernel.port_in(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT."""
        self._reach(port, size)
        self._machine.charge(1)
        self._kernel.port_out(port, size, value)

    def _reach(self, port: int, size: int) -> None:
        if port + size > ports.PORTS:
            raise LabError(f"There are no {size} ports at {port:#x}. The last port is {ports.PORTS - 1:#x}.")
        while not ports.allows(self._space, port, size):
            self._kernel.home.switch(PortFault(port, size))

    def time_stamp(self) -> int:
        """RDTSC."""
        self._machine.charge(1)
        return self._machine.cycles

    def _translate(self, address: int, access: int) -> int:
        while True:
            try:
                return self._kernel.translate(self._tables.cr3, address, access)
            except WalkFault as fault:
                self._kernel.home.switch(fault)
            except PartFailed as failed:  # not the program's affair: it is the kernel that stops
                self._kernel.home.switch(failed)
