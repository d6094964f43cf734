# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads as the kernel knows them.

What lives here: the thread control block and the states a thread can be in. Creating and deleting threads is
`threadcontrol.py`; what states mean for communication is `ipc.py`; who runs is `processor/dispatch.py`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from l4lab.abi import utcb as u
from l4lab.abi.ids import NIL_THREAD, ThreadId
from l4lab.kernel.objects.waits import OWN_IPC
from l4lab.machine.memory import SharedWords

if TYPE_CHECKING:
    from l4lab.kernel.objects.copying import Copy
    from l4lab.kernel.objects.program import HostedThread
    from l4lab.kernel.objects.space import Space
    from l4lab.kernel.objects.vcpu import Vcpu

MR: Final = u.MR0_FROM_LOCATION // 4  # index of MR0 among the 128 words of a UTCB
TIME_SLICE: Final = 10_000_000  # cycles: 10 ms
NEVER_ENDS: Final = 1 << 62  # cycles: later than any run lasts


class ThreadState(Enum):
    """What a thread is doing."""

    ABORTED = auto()  # exists, but was never activated: has no UTCB yet
    RUNNING = auto()  # runs, or would like to
    POLLING = auto()  # wants to send; stands in the receiver's queue
    WAITING = auto()  # wants to receive
    TRANSFERRING = (
        auto()
    )  # is in the midst of a message with strings, and the partner's pager has been asked for a page
    INACTIVE = auto()  # a virtual CPU whose guest sleeps: until registers are written that wake it
    HALTED = auto()  # stopped by ExchangeRegisters, by an exception that nobody handles, or at its end


class Tcb:
    """One thread, as the kernel knows it."""

    def __init__(
        self,
        id: ThreadId,
        space: Space,
        frame: int,
        regs: memoryview,
        state: ThreadState = ThreadState.ABORTED,
        priority: int = 100,
    ) -> None:
        self.id = id  # number and version; a reused number gets a new version
        self.word = int(id)  # the same as a plain integer: the trace packs it without asking what it is
        self.told: Any = self.word  # the same as an object that is there already: an event needs no new one
        self.space = space
        self.frame = frame  # physical address of its register frame
        self.regs = regs  # the same: ten words, in the order of the GPREGS item
        # written by threadcontrol.py only
        self.scheduler = NIL_THREAD
        self.utcb_location = 0  # virtual address in its space; 0: none yet
        self.utcb: SharedWords | None = None  # the 128 words, in machine memory
        self.local_id = 0
        self.name = ""
        self.program: HostedThread | None = None  # a thread written in Python
        self.vcpu: Vcpu | None = None  # a virtual CPU
        # written by ipc.py only
        self.state = state
        self.wait = OWN_IPC  # what a call that the kernel made in its name is for
        self.wait_for = 0  # WAITING: from whom
        self.send_to: Tcb | None = None  # POLLING: in whose queue
        self.then_receive: tuple[int, int] | None = None  # POLLING: from whom afterwards (0: nobody), 16-bit timeout
        self.outgoing: tuple[int, ...] | None = None  # a message of the kernel's; None: it lies in the registers
        self.copying: Copy | None = None  # a message with strings, of which this thread is the one end or the other
        self.virtual_sender = 0  # propagation: in whose name it sends, until its message is taken
        self.intended_receiver = 0  # redirection: for whom the message was that the redirector gets
        self.senders: deque[Tcb] = deque()  # who stands in my queue, oldest first
        self.wake_ticket = 0  # counts waits, at the beginning of each; a timer that holds an older number is stale
        # who runs; times are in cycles. Written by state.py, processor/ and calls/schedule.py only
        self.priority = priority
        self.lent_priority = -1  # of who switched to it, or its sensitive one while it delays a preemption; -1: none
        self.ran = 0  # in all
        self.time_slice = TIME_SLICE
        self.slice_left = TIME_SLICE  # of the present stretch; not positive: ask preemption.py before it runs
        self.slice_rest: int | None = None  # of the slice beyond a stretch of donated or delayed time; None: no such
        self.slice_own = TIME_SLICE  # of both, at most so much is its own; the rest was donated, and is spent first
        self.yielded = False  # by ThreadSwitch, since it ran last
        self.total_quantum = NEVER_ENDS
        self.quantum_left = NEVER_ENDS  # what has not been given out as slices
        self.sensitive_priority = 0  # a preempter up to this one can be asked to wait ...
        self.max_delay = 0  # ... so long
        self.halting = False  # written by exregs.py: it halts when it would next run
        # fault id -> items to append to that fault's message (reference section 9.5)
        self.fault_items: dict[int, tuple[int, ...]] = {}

    def rename(self, identifier: ThreadId) -> None:
        """The thread's identifier is this one from now on."""
        self.id = identifier
        self.word = int(identifier)
        self.told = self.word

    def __repr__(self) -> str:
        return f"<{self.name or self.id!r} {self.state.name.lower()}>"

    @property
    def level(self) -> int:
        """The priority with which it competes for the processor while it has it."""
        return max(self.priority, self.lent_priority)

    @property
    def kind(self) -> str:
        """native, hosted or vcpu."""
        return "vcpu" if self.vcpu else "hosted" if self.program else "native"

    def tcr(self, offset: int) -> int:
        """A thread control register, by its offset in `abi.utcb`. The thread must have a UTCB."""
        assert self.utcb is not None, f"{self!r} has no UTCB"
        return self.utcb[MR + offset // 4]

    def set_tcr(self, offset: int, value: int) -> None:
        """Write a thread control register."""
        assert self.utcb is not None, f"{self!r} has no UTCB"
        self.utcb[MR + offset // 4] = value

    def refuse(self, code: int) -> None:
        """Leave an error code where the program looks for it."""
        if self.utcb is not None:
            self.utcb[MR + u.ERROR_CODE // 4] = code
