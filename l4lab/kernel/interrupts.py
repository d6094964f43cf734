# SPDX-License-Identifier: GPL-2.0-or-later
"""Device interrupts as messages from interrupt threads.

Each line of the interrupt controllers has a thread of the kernel's. When the line is raised, that thread calls the
handler that ThreadControl associated with it; the line stays masked until the handler's answer, which acknowledges.
Source: X.2 manual, section Interrupt protocol; reference section 6.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4lab.abi.calls import ErrorCode
from l4lab.abi.ids import SYSTEM_BASE, ThreadId, interrupt_id
from l4lab.abi.protocols import INTERRUPT
from l4lab.errors import Refused
from l4lab.kernel import events, ipc
from l4lab.kernel.thread import Tcb, ThreadState

if TYPE_CHECKING:
    from l4lab.kernel.kernel import Kernel

VECTOR_BASE = 0x20  # where the kernel puts the first controller's vectors; the second's follow
_MASTER, _SLAVE, _CASCADE = 0x20, 0xA0, 2
PRIORITY = 255


class Interrupts:
    """The interrupt threads, and the controllers' masks."""

    def __init__(self) -> None:
        self._threads: dict[int, Tcb] = {}  # line -> its thread, while a handler is associated
        self._handlers: dict[int, ThreadId] = {}
        self._masked = 0xFFFF & ~(1 << _CASCADE)

    def initialise(self, k: Kernel) -> None:
        """Set the 8259s up as a PC's firmware and kernel do: vectors from VECTOR_BASE, all lines masked."""
        for port, vector, wiring in ((_MASTER, VECTOR_BASE, 1 << _CASCADE), (_SLAVE, VECTOR_BASE + 8, _CASCADE)):
            for offset, value in ((0, 0x11), (1, vector), (1, wiring), (1, 1)):
                k.machine.ports.write(port + offset, 1, value)
        self._write_mask(k)

    def associate(self, k: Kernel, line: ThreadId, handler: ThreadId) -> None:
        """ThreadControl on an interrupt thread: its pager is the handler; itself as pager means detach."""
        number = line.thread_no
        if line != interrupt_id(number) or number == _CASCADE:
            raise Refused(ErrorCode.INVALID_THREAD)
        if handler == line:
            self._detach(k, number)
            return
        if k.find(handler, None) is None:
            raise Refused(ErrorCode.INVALID_THREAD)
        k.frames.require(1)
        self._detach(k, number)  # from the handler before, who may not have answered yet
        frame = k.register_frames.allocate()
        regs = k.machine.memory.u32[frame >> 2 : (frame >> 2) + 10]
        thread = Tcb(line, k.kernel_space, frame, regs, state=ThreadState.HALTED, priority=PRIORITY)
        thread.name = f"irq {number}"
        self._threads[number] = thread
        k.threads[number] = thread
        k.trace.append(events.ThreadCreated(k.now, line, k.kernel_space.name, "interrupt"))
        self._handlers[number] = handler
        self._set_mask(k, number, False)

    def threads(self) -> dict[int, Tcb]:
        """The threads of the lines that have been associated, by line."""
        return dict(self._threads)

    def listens(self, number: int) -> bool:
        """Would an interrupt on this line be delivered now?"""
        return number in self._handlers and not self._masked >> number & 1

    def forget(self, thread: Tcb) -> None:
        """A thread is gone: it handles nothing any more."""
        for number in [n for n, handler in self._handlers.items() if handler == thread.id]:
            del self._handlers[number]

    def rename(self, old: ThreadId, new: ThreadId) -> None:
        """A thread has another version: its lines stay its own."""
        for number in [n for n, handler in self._handlers.items() if handler == old]:
            self._handlers[number] = new

    def deliver(self, k: Kernel) -> None:
        """The controllers ask for the CPU: acknowledge each request and tell its handler."""
        while k.machine.pics.pending():
            number = k.machine.pics.acknowledge() - VECTOR_BASE
            self._end_of_interrupt(k, number)
            if not 0 <= number < SYSTEM_BASE or number not in self._handlers:
                continue  # spurious, or nobody's
            self._set_mask(k, number, True)
            k.trace.append(events.Interrupt(k.now, number))
            thread = self._threads[number]
            thread.state = ThreadState.RUNNING
            ipc.call_for(k, thread, self._handlers[number], (INTERRUPT << 16,), self._acknowledged)

    def _acknowledged(self, k: Kernel, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
        """The handler's answer, whatever it says: the line may interrupt again."""
        thread.state = ThreadState.HALTED
        self._set_mask(k, thread.id.thread_no, False)
        return 0

    def failed(self, k: Kernel, thread: Tcb) -> None:
        """The handler is gone: the line stays masked."""
        thread.state = ThreadState.HALTED
        self._handlers.pop(thread.id.thread_no, None)

    def _detach(self, k: Kernel, number: int) -> None:
        self._set_mask(k, number, True)
        self._handlers.pop(number, None)
        thread = self._threads.pop(number, None)
        if thread is not None:
            ipc.cancel(k, thread)
            ipc.drop_senders(k, thread)
            del k.threads[number]
            k.register_frames.free(thread.frame)

    def _set_mask(self, k: Kernel, number: int, masked: bool) -> None:
        self._masked = self._masked | 1 << number if masked else self._masked & ~(1 << number)
        self._write_mask(k)

    def _write_mask(self, k: Kernel) -> None:
        k.machine.ports.write(_MASTER + 1, 1, self._masked & 0xFF)
        k.machine.ports.write(_SLAVE + 1, 1, self._masked >> 8)

    def _end_of_interrupt(self, k: Kernel, number: int) -> None:
        if number >= 8:
            k.machine.ports.write(_SLAVE, 1, 0x20)
        k.machine.ports.write(_MASTER, 1, 0x20)
