# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosted threads: L4 threads whose program is written in Python.

A hosted program runs in a greenlet until it does what makes a native program enter the kernel: a system call, or
a load or store that its address space does not allow. Then the kernel goes on, and the program sees nothing of it but
the results in its registers. `HostedCpu` is the program's whole world: what a CPU can do in ring 3, no more.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import greenlet

from l4lab.abi.calls import SystemCall
from l4lab.errors import LabError
from l4lab.kernel import ports
from l4lab.machine.memory import PAGE_SIZE
from l4lab.machine.mmu import USER, WRITE, PageFault, walk

if TYPE_CHECKING:
    from l4lab.kernel.kernel import Kernel
    from l4lab.kernel.thread import Tcb

STEP_CYCLES = 1000  # what a hosted program's way from one kernel entry to the next takes
FINISHED = "finished"


class PortFault(NamedTuple):
    """The program touched ports that are not mapped into its space."""

    port: int
    size: int


class Died:
    """The program raised: the exception as text, for whoever looks."""

    def __init__(self, exception: BaseException) -> None:
        self.summary = traceback.format_exception_only(exception)[-1].strip()
        self.text = "".join(traceback.format_exception(exception))


Request = SystemCall | PageFault | PortFault | Died | str


class HostedCpu:
    """The CPU as one hosted program sees it. Each access goes through the thread's own page tables."""

    def __init__(self, k: Kernel, thread: Tcb, utcb: memoryview) -> None:
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
            self._memory.u8[pa : pa + size] = data[done : done + size]
            self._kernel.code_written(pa, size)
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
                return walk(self._memory, self._tables.cr3, address, access)
            except PageFault as fault:
                self._kernel.home.switch(fault)


class HostedThread:
    """The greenlet of one hosted program, and what it asked for last."""

    def __init__(self, main: Callable[[HostedCpu], None], name: str) -> None:
        self.name = name
        self._main = main
        self._cpu: HostedCpu | None = None
        self._greenlet: greenlet.greenlet | None = None
        self.died: Died | None = None
        self.resume: Callable[[], Request]  # let the program run up to its next kernel entry

    def start(self, k: Kernel, thread: Tcb, utcb: memoryview) -> None:
        """The thread was activated: it has a UTCB, and runs from the beginning when first resumed."""
        self._cpu = HostedCpu(k, thread, utcb)
        self._greenlet = greenlet.greenlet(self._run)
        self.resume = self._greenlet.switch

    def _run(self) -> Request:
        assert self._cpu is not None
        try:
            self._main(self._cpu)
        except greenlet.GreenletExit:
            return FINISHED
        except BaseException as exception:  # SystemExit, Ctrl-C: whatever it is, it halts this thread only
            self.died = Died(exception)
            return self.died
        return FINISHED

    def stop(self) -> None:
        """The thread is deleted: unwind the program."""
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.throw(greenlet.GreenletExit)
        self._greenlet = None
