# SPDX-License-Identifier: GPL-2.0-or-later
"""Device interrupts as messages from interrupt threads.

Each line of the interrupt controllers has a thread of the kernel's. When the line is raised, that thread calls the
handler that ThreadControl associated with it; the line stays masked until the handler's answer, which acknowledges.
Source: X.2 manual, section Interrupt protocol; reference section 6.5.
"""

from __future__ import annotations

from l4lab.abi.calls import ErrorCode
from l4lab.abi.ids import SYSTEM_BASE, ThreadId, interrupt_id
from l4lab.abi.protocols import INTERRUPT
from l4lab.abi.time import NEVER
from l4lab.errors import Refused
from l4lab.kernel import events
from l4lab.kernel.ipc import ipc
from l4lab.kernel.objects.lines import CASCADE
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.waits import ACKNOWLEDGEMENT
from l4lab.kernel.state import State

VECTOR_BASE = 0x20  # where the kernel puts the first controller's vectors; the second's follow
_MASTER, _SLAVE = 0x20, 0xA0
PRIORITY = 255


def initialise(k: State) -> None:
    """Set the 8259s up as a PC's firmware and kernel do: vectors from VECTOR_BASE, all lines masked."""
    for port, vector, wiring in ((_MASTER, VECTOR_BASE, 1 << CASCADE), (_SLAVE, VECTOR_BASE + 8, CASCADE)):
        for offset, value in ((0, 0x11), (1, vector), (1, wiring), (1, 1)):
            k.machine.ports.write(port + offset, 1, value)
    _write_mask(k)


def associate(k: State, line: ThreadId, handler: ThreadId) -> None:
    """ThreadControl on an interrupt thread: its pager is the handler; itself as pager means detach."""
    number = line.thread_no
    if line != interrupt_id(number) or number == CASCADE:
        raise Refused(ErrorCode.INVALID_THREAD)
    if handler == line:
        _detach(k, number)
        ipc.wait_in_vain(k, line)
        return
    if k.find(handler, None) is None:
        raise Refused(ErrorCode.INVALID_THREAD)
    k.frames.require(1)
    _detach(k, number)  # from the handler before, who may not have answered yet
    frame = k.register_frames.allocate()
    regs = k.machine.memory.register_frame(frame)
    thread = Tcb(line, k.kernel_space, frame, regs, state=ThreadState.HALTED, priority=PRIORITY)
    thread.name = f"irq {number}"
    k.lines.threads[number] = thread
    k.threads[number] = thread
    k.trace.append(events.ThreadCreated(k.now, thread.word, k.kernel_space.number, "interrupt"))
    k.lines.handlers[number] = handler
    _set_mask(k, number, False)


def forget(k: State, thread: Tcb) -> None:
    """A thread is gone: it handles nothing any more."""
    for number in [n for n, handler in k.lines.handlers.items() if handler == thread.id]:
        del k.lines.handlers[number]


def rename(k: State, old: ThreadId, new: ThreadId) -> None:
    """A thread has another version: its lines stay its own, and so does an interrupt that it has not answered yet."""
    for number in [n for n, handler in k.lines.handlers.items() if handler == old]:
        k.lines.handlers[number] = new
        thread = k.lines.threads[number]
        if thread.state is ThreadState.POLLING:
            thread.then_receive = int(new), NEVER
            k.note(events.Blocked(k.now, thread.word, "POLLING", int(new), thread.wait.name))
        elif thread.state is ThreadState.WAITING:
            thread.wait_for = int(new)
            k.note(events.Blocked(k.now, thread.word, "WAITING", int(new), thread.wait.name))
            k.unsettle(thread)


def deliver(k: State) -> None:
    """The controllers ask for the CPU: acknowledge each request and tell its handler.

    Their ports can be given to a program like all others. Whatever it did to the controllers, a line interrupts only
    while the kernel listens to it, and no more often at once than there are lines.
    """
    for _ in range(SYSTEM_BASE):
        if not k.machine.pics.pending():
            return
        number = k.machine.pics.acknowledge() - VECTOR_BASE
        _end_of_interrupt(k, number)
        if not k.lines.listens(number):  # spurious, or nobody's, or a program has opened what the kernel masked
            _write_mask(k)
            continue
        _set_mask(k, number, True)
        k.trace.append(events.Interrupt(k.now, number))
        thread = k.lines.threads[number]
        thread.state = ThreadState.RUNNING
        ipc.call_for(k, thread, k.lines.handlers[number], (INTERRUPT << 16,), ACKNOWLEDGEMENT)


def acknowledged(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The handler's answer, whatever it says: the line may interrupt again."""
    thread.state = ThreadState.HALTED
    _set_mask(k, thread.id.thread_no, False)
    return 0


def unhandled(k: State, thread: Tcb, error: int) -> None:
    """The handler is gone: the line stays masked."""
    thread.state = ThreadState.HALTED
    k.lines.handlers.pop(thread.id.thread_no, None)


def _detach(k: State, number: int) -> None:
    _set_mask(k, number, True)
    k.lines.handlers.pop(number, None)
    thread = k.lines.threads.pop(number, None)
    if thread is not None:
        ipc.cancel(k, thread)
        del k.threads[number]
        ipc.drop_senders(k, thread)
        k.register_frames.free(thread.frame)
        k.trace.append(events.ThreadDeleted(k.now, thread.word))


def _set_mask(k: State, number: int, masked: bool) -> None:
    """Mask a line, or let it interrupt again: then a device may have something to say at once, or soon."""
    lines = k.lines
    lines.masked = lines.masked | 1 << number if masked else lines.masked & ~(1 << number)
    _write_mask(k)
    if not masked:
        k.look_at_devices()


def _write_mask(k: State) -> None:
    k.machine.ports.write(_MASTER + 1, 1, k.lines.masked & 0xFF)
    k.machine.ports.write(_SLAVE + 1, 1, k.lines.masked >> 8)


def _end_of_interrupt(k: State, number: int) -> None:
    if number >= 8:
        k.machine.ports.write(_SLAVE, 1, 0x20)
    k.machine.ports.write(_MASTER, 1, 0x20)
