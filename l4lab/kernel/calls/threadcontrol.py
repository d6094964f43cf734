# SPDX-License-Identifier: GPL-2.0-or-later
"""ThreadControl: creating, activating, moving and deleting threads; attaching interrupts.

Source: X.2 manual, section ThreadControl; reference section 8.1.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi.calls import UNCHANGED, ErrorCode
from l4lab.abi.frame import EAX, ECX, EDI, EDX, EFLAGS, ESI, FRAME_WORDS, USER_EFLAGS, USER_EFLAGS_IOPL3
from l4lab.abi.ids import SYSTEM_BASE, THREAD_BITS, USER_BASE, ThreadId
from l4lab.errors import Refused
from l4lab.kernel import events
from l4lab.kernel.calls.hosted import HostedCpu
from l4lab.kernel.devices import interrupts
from l4lab.kernel.ipc import ipc
from l4lab.kernel.objects.space import Space
from l4lab.kernel.objects.thread import MR, Tcb, ThreadState
from l4lab.kernel.objects.waits import OWN_IPC, START
from l4lab.kernel.state import State
from l4lab.kernel.virtual import vmthread

# What one call may need: directory, KIP and UTCB tables, UTCB, register frames; and a virtual CPU's.
MOST_FRAMES: Final = 7 + vmthread.FRAMES

_BR0: Final = MR + u.BR0 // 4  # the thread control registers lie behind it, up to VirtualSender
_NO_REGISTERS: Final = memoryview(bytes(4 * FRAME_WORDS)).cast("I")


def sys_thread_control(k: State, caller: Tcb) -> None:
    """Create, modify or delete the thread `dest`. An existing thread is found by its number alone (quirk Q24)."""
    regs = caller.regs
    dest, location = ThreadId.decode(regs[EAX]), regs[EDI]
    pager, scheduler = k.global_id(regs[ECX], caller), k.global_id(regs[EDX], caller)
    space_id = k.global_id(regs[ESI], caller)
    if not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    if dest.is_nil or dest.is_local:
        raise Refused(ErrorCode.INVALID_SPACE)
    thread = k.threads.get(dest.thread_no)
    if dest.thread_no < SYSTEM_BASE:
        interrupts.associate(k, dest, pager)
    elif dest.thread_no < USER_BASE or dest.thread_no >> THREAD_BITS:
        raise Refused(ErrorCode.INVALID_THREAD)
    elif space_id.is_nil:
        if thread is caller or (thread is not None and _holds_all_memory(thread)):
            raise Refused(ErrorCode.INVALID_THREAD)
        if thread is not None:
            delete(k, thread)
    elif thread is None:
        _create(k, dest, space_id, scheduler, pager, location)
    else:
        _modify(k, thread, dest, space_id, scheduler, pager, location)
    ipc.confine(k)
    regs[EAX] = 1


def _holds_all_memory(thread: Tcb) -> bool:
    """Is it the last thread of sigma0's space, from which all mappings are derived?"""
    return thread.space.is_sigma0 and len(thread.space.threads) == 1


def _create(k: State, dest: ThreadId, space_id: ThreadId, scheduler: ThreadId, pager: ThreadId, location: int) -> None:
    space = None if space_id == dest else _space_of(k, space_id)
    if space is None and not pager.is_nil:
        raise Refused(ErrorCode.INVALID_SPACE)
    if scheduler.is_nil:
        raise Refused(ErrorCode.INVALID_THREAD)
    if space is not None and not pager.is_nil:
        _check_active(space, location, None)
    k.frames.require(MOST_FRAMES)
    thread = create(k, dest, space or k.new_space(f"space {dest.thread_no}"))
    thread.scheduler = scheduler
    if location != UNCHANGED:
        thread.utcb_location = location
    if thread.space.is_vm:
        vmthread.create(k, thread)
    if not pager.is_nil:
        activate(k, thread, pager)


def _modify(
    k: State, thread: Tcb, dest: ThreadId, space_id: ThreadId, scheduler: ThreadId, pager: ThreadId, location: int
) -> None:
    inactive = thread.state is ThreadState.ABORTED
    if location != UNCHANGED and (not inactive or (thread.space.initialised and not thread.space.holds_utcb(location))):
        raise Refused(ErrorCode.UTCB_AREA)
    space = _space_of(k, space_id)
    utcb = location if location != UNCHANGED else thread.utcb_location
    if space is not thread.space and (_holds_all_memory(thread) or thread.program is not None):
        raise Refused(ErrorCode.INVALID_SPACE)  # a Python function cannot be taken elsewhere
    if inactive and not pager.is_nil:
        _check_active(space, utcb, thread)
    elif not inactive and space is not thread.space and not (space.initialised and _is_free(space, utcb, thread)):
        raise Refused(ErrorCode.UTCB_AREA)
    k.frames.require(MOST_FRAMES)
    thread.utcb_location = utcb
    if space is not thread.space:
        _migrate(k, thread, space)
    if not pager.is_nil:
        if inactive:
            activate(k, thread, pager)
        else:
            ipc.set_pager(k, thread, pager)
    if not scheduler.is_nil:
        thread.scheduler = scheduler
    if dest != thread.id:
        _rename(k, thread, dest)


def _check_active(space: Space, location: int, thread: Tcb | None) -> None:
    """Could a thread be active in the space, with its UTCB there?"""
    if not space.initialised:
        raise Refused(ErrorCode.INVALID_SPACE)
    if not _is_free(space, location, thread):
        raise Refused(ErrorCode.UTCB_AREA)


def _is_free(space: Space, location: int, thread: Tcb | None) -> bool:
    """Is this a place for a UTCB that no other active thread has?"""
    for other in space.threads:
        if other.utcb_location == location and other.utcb is not None and other is not thread:
            return False
    return space.holds_utcb(location)


def _rename(k: State, thread: Tcb, dest: ThreadId) -> None:
    """Give the thread another version. Its old name names nobody: who sends to it or waits for it does so in vain."""
    old = thread.id
    thread.rename(dest)
    k.trace.append(events.ThreadRenamed(k.now, int(old), thread.word))
    if thread.vcpu is not None:
        thread.vcpu.counters.thread = thread.word
    if thread.utcb is not None:
        thread.set_tcr(u.MY_GLOBAL_ID, dest)
    interrupts.rename(k, old, dest)
    ipc.drop_senders(k, thread)
    ipc.wait_in_vain(k, old)
    k.unsettle(thread)  # a new thread may wait to be started by one of this name


def _space_of(k: State, space_id: ThreadId) -> Space:
    """The space that a thread identifier names: the space of that thread."""
    thread = k.threads.get(space_id.thread_no)
    if thread is None or thread.id != space_id or space_id.is_interrupt:
        raise Refused(ErrorCode.INVALID_SPACE)
    return thread.space


def _first_flags(space: Space) -> int:
    """EFLAGS of a program that begins."""
    return USER_EFLAGS_IOPL3 if space.io_privileged else USER_EFLAGS


def create(k: State, id_: ThreadId, space: Space) -> Tcb:
    """A thread that exists but is not active: it has a register frame and a number, no UTCB."""
    frame = k.register_frames.allocate()
    regs = k.machine.memory.register_frame(frame)
    regs[:] = _NO_REGISTERS
    regs[EFLAGS] = _first_flags(space)
    thread = Tcb(id_, space, frame, regs)
    k.threads[id_.thread_no] = thread
    space.threads.append(thread)
    k.trace.append(events.ThreadCreated(k.now, thread.word, space.number, "vcpu" if space.is_vm else "thread"))
    return thread


def activate(k: State, thread: Tcb, pager: ThreadId) -> None:
    """Give the thread its UTCB; it waits for its pager's start message."""
    assert thread.state is ThreadState.ABORTED, f"{thread!r} is active already"
    thread.utcb = thread.space.utcb_words(thread.utcb_location)
    thread.local_id = thread.utcb_location + u.MR0_FROM_LOCATION
    # BR0, MyGlobalId, ProcessorNo, UserDefinedHandle, Pager; and up to VirtualSender zero, nilthread or never, since
    # another thread may have had this UTCB before.
    thread.utcb.put(_BR0, (0, thread.word, 0, 0, pager, 0, 0, 0, 0, 0, 0))
    thread.fault_items.clear()
    thread.regs[EDI] = thread.local_id
    program = k.programs.pop(thread.id, None)
    if program is not None:
        thread.program = program
        thread.name = program.name
        program.start(HostedCpu(k, thread, thread.utcb))
    # Nobody can have sent to it yet, and its pager need not exist yet.
    thread.wait = START
    thread.wait_for = pager
    thread.state = ThreadState.WAITING
    k.trace.append(events.ThreadActivated(k.now, thread.word, pager, thread.name, program is not None))


def delete(k: State, thread: Tcb) -> None:
    """Take the thread out of everything, and its space too if it was the last one in it."""
    ipc.cancel(k, thread)
    k.unready(thread)
    thread.state = ThreadState.ABORTED
    thread.wake_ticket += 1
    thread.wait = OWN_IPC
    thread.outgoing = None
    del k.threads[thread.id.thread_no]
    ipc.drop_senders(k, thread)
    ipc.wait_in_vain(k, thread.id)
    interrupts.forget(k, thread)
    if thread.program is not None:
        thread.program.stop()
    if thread.vcpu is not None:
        vmthread.destroy(k, thread)
    k.machine.user.forget_thread(thread.frame)
    k.register_frames.free(thread.frame)
    thread.space.threads.remove(thread)
    if not thread.space.threads:
        k.delete_space(thread.space)
    k.trace.append(events.ThreadDeleted(k.now, thread.word))


def _migrate(k: State, thread: Tcb, space: Space) -> None:
    """Move the thread to another space; an active one takes its UTCB's contents along."""
    old = thread.space
    old.threads.remove(thread)
    space.threads.append(thread)
    thread.space = space
    k.trace.append(events.ThreadMoved(k.now, thread.word, space.number))
    if thread.utcb is not None:
        if thread.wait is not START:  # whom its pager has not started yet waits on
            ipc.cancel(k, thread)
        words = thread.utcb.words.tolist()
        thread.utcb = space.utcb_words(thread.utcb_location)
        for i, word in enumerate(words):
            thread.utcb[i] = word
        thread.local_id = thread.utcb_location + u.MR0_FROM_LOCATION
    if thread.vcpu is not None:
        vmthread.destroy(k, thread)
        thread.regs[EFLAGS] = _first_flags(space)  # a guest's may have had any, I/O privilege too
    if space.is_vm:
        vmthread.create(k, thread)
    if not old.threads:
        k.delete_space(old)
