# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads as the kernel knows them.

What lives here: the thread control block and the states a thread can be in. Creating and deleting threads is
`threadcontrol.py`; what states mean for communication is `ipc.py`; who runs is `sched.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from l4lab.abi import utcb as u
from l4lab.abi.ids import NIL_THREAD, ThreadId

if TYPE_CHECKING:
    from l4lab.kernel.hosted import HostedThread
    from l4lab.kernel.kernel import Kernel
    from l4lab.kernel.space import Space
    from l4lab.kernel.strings import Copy
    from l4lab.kernel.vm import VirtualCpu

MR = u.MR0_FROM_LOCATION // 4  # index of MR0 among the 128 words of a UTCB
TIME_SLICE = 10_000_000  # cycles: 10 ms
NEVER_ENDS = 1 << 62  # cycles: later than any run lasts


class ThreadState(Enum):
    """What a thread is doing."""

    ABORTED = auto()  # exists, but was never activated: has no UTCB yet
    RUNNING = auto()  # runs, or would like to
    POLLING = auto()  # wants to send; stands in the receiver's queue
    WAITING = auto()  # wants to receive
    TRANSFERRING = (
        auto()
    )  # is in the midst of a message with strings, and the partner's pager has been asked for a page
    HALTED = auto()  # stopped by ExchangeRegisters, by an exception that nobody handles, or at its end


# What a kernel-issued IPC does with the answer: the words as the sender wrote them, MR0 first. 0, or the error code
# that the sender gets: the thread for which the kernel called goes on in any case.
OnReply = Callable[["Kernel", "Tcb", tuple[int, ...], "Tcb"], int]


@dataclass(slots=True, eq=False)
class Tcb:
    """One thread, as the kernel knows it."""

    id: ThreadId  # number and version; a reused number gets a new version
    space: Space
    frame: int  # physical address of its register frame
    regs: memoryview  # the same: ten words, in the order of the GPREGS item
    # written by threadcontrol.py only
    scheduler: ThreadId = NIL_THREAD
    utcb_location: int = 0  # virtual address in its space; 0: none yet
    utcb: memoryview | None = None  # the 128 words, in machine memory
    local_id: int = 0
    name: str = ""
    program: HostedThread | None = None  # a thread written in Python
    vcpu: VirtualCpu | None = None  # a virtual CPU
    # written by ipc.py only
    state: ThreadState = ThreadState.ABORTED
    wait_for: int = 0  # WAITING: from whom
    send_to: Tcb | None = None  # POLLING: in whose queue
    then_receive: tuple[int, int] | None = None  # POLLING: from whom afterwards (0: nobody), 16-bit timeout
    outgoing: tuple[int, ...] | None = None  # a message of the kernel's; None: what lies in the message registers
    on_reply: OnReply | None = None  # a kernel-issued IPC: who takes the answer in place of the thread
    copying: Copy | None = None  # a message with strings, of which this thread is the one end or the other
    virtual_sender: int = 0  # propagation: in whose name it sends, until its message is taken
    intended_receiver: int = 0  # redirection: for whom the message was that the redirector gets
    senders: deque[Tcb] = field(default_factory=deque)  # who stands in my queue, oldest first
    wake_ticket: int = 0  # counts waits, at the beginning of each; a timer that holds an older number is stale
    priority: int = 100  # written by sched.py and boot.py only
    # written by schedule.py and preemption.py only; times are in cycles
    time_slice: int = TIME_SLICE
    slice_left: int = TIME_SLICE  # of the present stretch; not positive: ask preemption.py before it runs
    slice_rest: int | None = None  # of the slice beyond a stretch of donated or delayed time; None: no such stretch
    yielded: bool = False  # by ThreadSwitch, since it ran last
    total_quantum: int = NEVER_ENDS
    quantum_left: int = NEVER_ENDS  # what has not been given out as slices
    sensitive_priority: int = 0  # a preempter up to this one can be asked to wait ...
    max_delay: int = 0  # ... so long
    halting: bool = False  # written by exregs.py: it halts when it would next run
    # fault id -> items to append to that fault's message (reference section 9.5)
    fault_items: dict[int, tuple[int, ...]] = field(default_factory=dict)
    word: int = 0  # `id` as a plain integer: the trace packs it without asking what it is

    def __post_init__(self) -> None:
        self.rename(self.id)

    def rename(self, identifier: ThreadId) -> None:
        """The thread's identifier is this one from now on."""
        self.id = identifier
        self.word = int(identifier)

    def __repr__(self) -> str:
        return f"<{self.name or self.id!r} {self.state.name.lower()}>"

    @property
    def kind(self) -> str:
        """native, hosted or vcpu."""
        return "vcpu" if self.vcpu else "hosted" if self.program else "native"

    def tcr(self, offset: int) -> int:
        """A thread control register, by its offset in `abi.utcb`. The thread must have a UTCB."""
        assert self.utcb is not None, f"{self!r} has no UTCB"
        return int(self.utcb[MR + offset // 4])

    def set_tcr(self, offset: int, value: int) -> None:
        """Write a thread control register."""
        assert self.utcb is not None, f"{self!r} has no UTCB"
        self.utcb[MR + offset // 4] = value

    def refuse(self, code: int) -> None:
        """Leave an error code where the program looks for it."""
        if self.utcb is not None:
            self.utcb[MR + u.ERROR_CODE // 4] = code
