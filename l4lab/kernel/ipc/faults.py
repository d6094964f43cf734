# SPDX-License-Identifier: GPL-2.0-or-later
"""Page faults, I/O page faults and exceptions become messages: to the pager, to the exception handler.

The kernel calls in the faulting thread's name; the answer may bring mappings and register items, and then the thread
goes on where it was. Its message registers are not touched. (X.2 manual, sections Page fault protocol and Exception
protocol; reference section 6.5.)
"""

from __future__ import annotations

from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi.frame import EFLAGS, EIP, ESP, USER_EFLAGS_MASK
from l4lab.abi.message import ACCEPT_NOTHING, Acceptor, IpcErrorCode, MsgTag
from l4lab.abi.protocols import ARCH_EXCEPTION, EXCEPTION_FRAME, IO_PAGE_FAULT, PAGE_FAULT, FaultId
from l4lab.kernel import events
from l4lab.kernel.events import KERNEL_SPACE
from l4lab.kernel.ipc import ctrlxfer, ipc
from l4lab.kernel.ipc.ctrlxfer import GPREGS_HEADER, ONLY_GPREGS
from l4lab.kernel.ipc.transfer import EVERYTHING, apply_items
from l4lab.kernel.memory import ports
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.objects.waits import EXCEPTION, EXCEPTION_ITEMS, PAGE, PORTS, Wait
from l4lab.kernel.state import State

READ_OR_EXECUTE: Final = 5  # the CPU cannot tell a read from an instruction fetch
WRITE: Final = 2
_WRITE_BIT: Final = 2  # of a page fault's error code


def page_fault(k: State, thread: Tcb, address: int, write: bool) -> None:
    """Ask the thread's pager for the page at `address`."""
    ask_pager(k, thread, address, None, write, PAGE)


def ask_pager(k: State, thread: Tcb, address: int, ip: int | None, write: bool, wait: Wait) -> bool:
    """Send the page fault. `ip`: of the fault, if it is not the thread's. False: the page is there without asking."""
    ip = thread.regs[EIP] if ip is None else ip
    rights = WRITE if write else READ_OR_EXECUTE
    k.trace.append(events.PageFault(k.now, thread.word, address, ip, rights))
    k.counters.page_faults += 1
    if thread.space.is_sigma0:
        if address < k.kernel_memory:
            page = k.mappings.own_page(thread.space, address)
            space = thread.space.number
            note = events.Mapped(k.now, KERNEL_SPACE, page.va, space, page.va, page.pa, page.log2, True, False)
            k.trace.append(note)
            return False
        k.halt(thread, f"sigma0 touched {address:#x}, which is not its memory")
        return True
    items = items_for(thread, FaultId.PAGE_FAULT)
    words = ((PAGE_FAULT | rights) << 16 | len(items) << 6 | 2, address, ip, *items)
    ipc.call_for(k, thread, thread.tcr(u.PAGER), words, wait)
    return True


def io_page_fault(k: State, thread: Tcb, port: int, size: int) -> None:
    """Ask the thread's pager for `size` ports from `port` on."""
    ip = thread.regs[EIP]
    k.trace.append(events.IoPageFault(k.now, thread.word, port, size, ip))
    words = IO_PAGE_FAULT << 16 | 2, int(ports.missing(thread.space, port, size)), ip
    ipc.call_for(k, thread, thread.tcr(u.PAGER), words, PORTS)


def ports_given(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The pager has answered. Ports are taken without a window, and nothing else is (reference section 5.7)."""
    return apply_items(k, sender, thread, words, ACCEPT_NOTHING)


def items_for(thread: Tcb, fault: int) -> tuple[int, ...]:
    """The register items that the monitor or pager wants with this fault's message."""
    wanted = thread.fault_items.get(fault, ())
    if wanted == ONLY_GPREGS:  # what most exits carry
        return GPREGS_HEADER, *thread.regs.tolist()
    return tuple(word for item in wanted for word in ctrlxfer.encode(thread, item)) if wanted else ()


def resolved(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The pager or monitor has answered: take its mappings and registers; then the thread tries again."""
    return apply_items(k, sender, thread, words, EVERYTHING)


def exception(k: State, thread: Tcb, vector: int, error_code: int) -> None:
    """Tell the thread's exception handler; without one, the thread halts."""
    regs = thread.regs
    ip = regs[EIP]
    k.trace.append(events.Exception_(k.now, thread.word, vector, error_code, ip))
    handler = thread.tcr(u.EXCEPTION_HANDLER)
    if not handler:
        k.halt(thread, f"exception {vector}, error code {error_code:#x}, at {ip:#x}; it has no exception handler")
        return
    items = items_for(thread, FaultId.EXCEPTION)
    if items:
        words = (ARCH_EXCEPTION << 16 | len(items) << 6 | 2, vector, error_code, *items)
        ipc.call_for(k, thread, handler, words, EXCEPTION_ITEMS)
        return
    frame = [ARCH_EXCEPTION << 16 | 12, *(0 if register is None else regs[register] for register in EXCEPTION_FRAME)]
    frame[3], frame[4] = vector, error_code
    ipc.call_for(k, thread, handler, tuple(frame), EXCEPTION)


def frame_returned(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The answer has the same layout as the message: its registers become the thread's (Q23: as far as u goes).

    Items are taken as the thread's own acceptor says, but for strings: it has no receive of its own that could wait.
    """
    untyped = MsgTag.decode(words[0]).untyped
    regs = thread.regs
    for mr, register in enumerate(EXCEPTION_FRAME[:untyped], start=1):
        if register == EFLAGS:
            regs[EFLAGS] = words[mr] & USER_EFLAGS_MASK | regs[EFLAGS] & ~USER_EFLAGS_MASK
        elif register is not None:
            regs[register] = words[mr]
    return apply_items(k, sender, thread, words, Acceptor.decode(thread.tcr(u.BR0)).replace(strings=False))


def started(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The first message to a new thread: two untyped words are IP and SP; register items are taken in any case."""
    tag = MsgTag.decode(words[0])
    if tag.untyped == 2:
        thread.regs[EIP], thread.regs[ESP] = words[1], words[2]
    return resolved(k, thread, words, sender)


def unanswered(k: State, thread: Tcb, error: int) -> None:
    """A call that the kernel made for the thread found no partner, or was cancelled. In the latter case what caused the
    call recurs when the thread goes on."""
    if error >> 1 & 7 == IpcErrorCode.NO_PARTNER:  # nobody will ever resolve the fault
        k.halt(thread, "the thread that should hear of its fault, or of its time being over, does not exist")
