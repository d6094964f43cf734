# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual-machine monitor: makes a guest, answers its faults, brings it its interrupts, until it ends.

Lives here: the main loop and the console. Everything it does for the guest is in the parts beside this file; a monitor
of one's own replaces entries of `handlers`, or parts.

One thread does everything, so nothing happens to the guest behind its back: while the monitor runs, the guest does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId, global_id, interrupt_id
from l4lab.abi.message import IpcError, IpcErrorCode, Message
from l4lab.abi.protocols import INTERRUPT, is_page_fault
from l4lab.abi.time import FARTHEST_POINT, ZERO, point, timeouts
from l4lab.abi.vm import QUALIFICATION_MR, ExitReason, is_vm_fault
from l4lab.user.l4 import L4, REPLY, IpcFailed, Received
from l4lab.user.monitor.cpuid import Cpuid
from l4lab.user.monitor.exits import Exits
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.interrupts import Interrupts
from l4lab.user.monitor.memory import GuestMemory
from l4lab.user.monitor.msrs import Msrs
from l4lab.user.monitor.outcome import End, Outcome
from l4lab.user.monitor.pc import Pc
from l4lab.user.monitor.ports import PortIo
from l4lab.user.monitor.state import FAULT_ITEMS, Start
from l4lab.user.monitor.vcpu import VirtualCpu

# The machine's own serial port (PC16550D data sheet): it is the guest's console.
CONSOLE: Final = 0x3F8
CONSOLE_IRQ: Final = interrupt_id(4)
INTERRUPT_ENABLE, FIFO_CONTROL, MODEM_CONTROL, LINE_STATUS = 1, 2, 4, 5  # registers, from its first port

IO_INSTRUCTION: Final = ExitReason.IO_INSTRUCTION
KERNEL_ENTRY_US: Final = 2  # more than it takes from looking at the clock to the system call

Contents = Iterable[tuple[int, bytes]]  # guest-physical address, bytes
Answer = tuple[int, Sequence[int] | None]  # to whom, and what; NIL_THREAD and None: nobody


class Monitor:
    """The monitor of one guest with `memory_size` bytes. Runs in the thread that has this `l4`."""

    def __init__(
        self,
        l4: L4,
        memory_size: int,
        vcpu_id: ThreadId | None = None,
        shadow_paging: bool = False,
        memory: GuestMemory | None = None,
        vcpu: VirtualCpu | None = None,
    ) -> None:
        """`memory`, `vcpu`: where somebody else has made them."""
        self.l4 = l4
        self.outcome: Outcome | None = None
        self.memory = memory or GuestMemory.allocate(l4, memory_size)
        vcpu_id = vcpu_id or global_id(l4.my_id.thread_no + 1)
        self.vcpu = vcpu or VirtualCpu.create(l4, vcpu_id, shadow_paging=shadow_paging)
        self.pc = Pc(l4.time_stamp, memory_size, self.transmit, self.stop)
        self.cpuid = Cpuid()
        self.msrs = Msrs(self.vcpu, l4.time_stamp)
        self.io = PortIo(self.pc.ports, self.vcpu, self.memory)
        self.exits = Exits(l4, self.vcpu, self.memory, self.cpuid, self.msrs, self.io, self.stop)
        self.handlers = self.exits.handlers
        self.interrupts = Interrupts(self.pc.pic, self.vcpu)
        self._unanswered: tuple[Fault, Reply] | None = None  # the fault the guest waits in
        self._last: Fault | None = None
        self._due: int | None = None  # when a device next does something, in nanoseconds
        self._times = REPLY  # how long to wait for a message: until then

    def load(self, contents: Contents) -> None:
        """Put something into the guest's memory."""
        for address, data in contents:
            self.memory.write(address, data)

    def stop(self, end: End, why: str) -> None:
        """The guest ends here. The first reason given counts."""
        if self.outcome is None:
            self.outcome = Outcome(end, why, self._last.text() if self._last else "")

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, start: Start) -> Outcome:
        """Start the guest and serve it until it ends."""
        l4 = self.l4
        self._open_console()
        self.vcpu.configure(FAULT_ITEMS)
        answer: Answer = self.vcpu.id, self.vcpu.launch(start.registers())
        l4.accept(0)
        while True:
            to, words = answer
            try:
                received = l4.ipc(to, ANY_THREAD, words, self._times)
            except IpcFailed as failed:
                self._after_failure(failed.error)
            else:
                self._take(received)
            if self.outcome is not None:
                return self.outcome
            if self._due is not None and l4.time_stamp() >= self._due:
                self.pc.advance()
                self._look_ahead()
            answer = self._answer()

    def _take(self, received: Received) -> None:
        """One message, from the guest or from the console."""
        if received.sender == self.vcpu.id:
            self._last = fault = Fault(received.words)
            reply = Reply()
            self._unanswered = fault, reply
            if is_vm_fault(fault.label):
                self.exits.handle(fault, reply)
                if fault.reason == IO_INSTRUCTION:  # the guest may have set a timer
                    self._look_ahead(fault.words[QUALIFICATION_MR] >> 16)
            elif is_page_fault(fault.label):
                self.exits.page_fault(fault, reply)
            else:
                self.stop(End.STOPPED, f"the virtual CPU sent label {fault.label:#x}, which is no fault")
        elif received.sender == CONSOLE_IRQ:
            self._receive()

    def _answer(self) -> Answer:
        """What to send now: the answer to the guest's fault, unless it waits for an interrupt that is not there."""
        if self._unanswered is None:
            self.interrupts.kick()
            return NIL_THREAD, None
        fault, reply = self._unanswered
        self.interrupts.deliver(fault, reply)
        if reply.hold and not reply.injects:
            return NIL_THREAD, None
        self._unanswered = None
        return self.vcpu.id, reply.words()

    def _look_ahead(self, port: int | None = None) -> None:
        """Find out when a device next does something of its own accord; until then messages are waited for."""
        due = self.pc.deadline(port)
        if due == self._due:
            return
        self._due = due
        if due is None:
            self._times = REPLY
            return
        # As a point in time the word stays right for all answers until then. It has to lie ahead of the clock whenever
        # the kernel reads it, the way into the kernel included.
        now = self.l4.time_stamp() // 1000
        when = min(max(due // 1000, now) + KERNEL_ENTRY_US, now + FARTHEST_POINT - 1)
        self._times = timeouts(ZERO, point(now, when))

    def _after_failure(self, error: IpcError) -> None:
        """A receive timeout is a device's time; anything else means that there is no guest to serve."""
        if not (error.in_receive and error.code is IpcErrorCode.TIMEOUT):
            self.stop(End.STOPPED, f"the virtual CPU does not take its answer: {error!r}")

    # -- the console -----------------------------------------------------------------------------------------------

    def _open_console(self) -> None:
        """Have received bytes announced by the machine's serial port, to this thread."""
        self.l4.thread_control(CONSOLE_IRQ, CONSOLE_IRQ, pager=self.l4.my_id)
        self.l4.port_out(CONSOLE + FIFO_CONTROL, 1, 0x07)  # on, both cleared, announce each byte
        self.l4.port_out(CONSOLE + MODEM_CONTROL, 1, 0x0B)  # DTR, RTS, and OUT2, which lets interrupts through
        self.l4.port_out(CONSOLE + INTERRUPT_ENABLE, 1, 0x01)

    def transmit(self, byte: int) -> None:
        """A byte to the console."""
        self.l4.port_out(CONSOLE, 1, byte)

    def _receive(self) -> None:
        """Take what has arrived at the machine's serial port to the guest's, and let the next interrupt come."""
        data = bytearray()
        while self.l4.port_in(CONSOLE + LINE_STATUS, 1) & 1:
            data.append(self.l4.port_in(CONSOLE, 1))
        self.l4.send(CONSOLE_IRQ, Message(INTERRUPT))
        self.pc.uart.receive(bytes(data))
        self._look_ahead()


class GuestProgram:
    """A program that runs a guest: what the rig starts as a hosted thread. Afterwards `outcome` says how it ended."""

    def __init__(
        self, contents: Sequence[tuple[int, bytes]], start: Start, memory_size: int, shadow_paging: bool = False
    ) -> None:
        self.contents = contents
        self.start = start
        self.memory_size = memory_size
        self.shadow_paging = shadow_paging
        self.monitor: Monitor | None = None  # made anew each time the program runs

    def __call__(self, l4: L4) -> None:
        """The program."""
        monitor = self.monitor = Monitor(l4, self.memory_size, shadow_paging=self.shadow_paging)
        monitor.load(self.contents)
        monitor.run(self.start)

    @property
    def outcome(self) -> Outcome | None:
        """How the guest ended; None while it runs."""
        return self.monitor.outcome if self.monitor else None
