# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened: one frozen record per kind of event.

The kernel reports facts; it never prints. Trace, views, debugger and grader read the same records, so what a picture
shows is what is graded. The records are complete: from them alone `rig/ledger.py` rebuilds every space's mappings and
ports, every thread's state and partner, and who runs.

`at` is the cycle of the event. Threads are given by their global identifiers. Spaces are given by numbers, which are
never used again within a run; number 0 is the kernel's own space. A `KernelEntry` ends what belongs to one kernel
entry, so an event's exact instant is: its cycle, how many of those came before it, and how many events since the last
of them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

KERNEL_SPACE = 0  # the number of the space in which interrupt threads are; nothing is mapped there

Ranges = tuple[tuple[int, int], ...]  # of I/O ports, by ascending number: the first, how many
Blocking = Literal["POLLING", "WAITING", "INACTIVE"]  # names of ThreadState
WaitName = Literal[  # names of `objects/waits.py`
    "own-ipc",
    "start",
    "page",
    "ports",
    "exception",
    "exception-items",
    "monitor",
    "quantum",
    "preempted",
    "string-page",
    "acknowledgement",
    "console",
]


class MessageKind(IntEnum):
    """How a message came about. The first five are sent by the sender's own Ipc, the others by the kernel in the
    sender's name; then the sender waits for the answer."""

    SEND = 0
    CALL = 1  # and the sender waits for the receiver's reply
    REPLY = 2  # the receiver waits for this sender alone
    START = 3  # by a pager, to a new thread
    ANSWER = 4  # to a call that the kernel made in the receiver's name
    PAGE_FAULT = 5
    PORT_FAULT = 6
    EXCEPTION = 7
    VM_EXIT = 8
    QUANTUM = 9  # the sender's total quantum is used up
    PREEMPTION = 10
    STRING_FAULT = 11  # a page fault in the midst of a string
    INTERRUPT = 12
    EXCEPTION_ITEMS = 13  # an exception, told by register items

    @property
    def by_kernel(self) -> bool:
        """Did the kernel send it in the sender's name?"""
        return self >= MessageKind.PAGE_FAULT


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What all events have."""

    at: int  # cycle


class Booted(Event, frozen=True, tag=1):
    """The kernel has set itself up and is about to run the first thread."""

    memory: int  # bytes of RAM


# -- threads -----------------------------------------------------------------------------------------------------------


class ThreadCreated(Event, frozen=True, tag=2):
    """A thread exists. It is ABORTED: not active yet; or, of an interrupt line, HALTED: it has nothing to say."""

    thread: int
    space: int
    kind: str  # thread, vcpu, interrupt


class ThreadActivated(Event, frozen=True, tag=44):
    """A thread has got its UTCB, and waits for its pager's start message."""

    thread: int
    pager: int
    name: str  # empty: it has none
    hosted: bool  # is its program written in Python?


class ThreadDeleted(Event, frozen=True, tag=3):
    """A thread is gone."""

    thread: int


class ThreadHalted(Event, frozen=True, tag=4):
    """A thread will not run again unless someone starts it anew."""

    thread: int
    why: str


class ThreadRenamed(Event, frozen=True, tag=38):
    """A thread got another identifier."""

    thread: int  # the old one
    name: int  # the new one


class ThreadMoved(Event, frozen=True, tag=45):
    """A thread went to another space."""

    thread: int
    space: int


class Blocked(Event, frozen=True, tag=42):
    """A thread cannot run on until somebody else does something. That a thread waits behind a message it has sent is
    said by the `Message`."""

    thread: int
    state: Blocking  # POLLING: it wants to send; WAITING: to receive; INACTIVE: its guest sleeps
    on: int  # to whom, or from whom: an identifier, or one of the wild ones; 0 for nobody
    wait: WaitName  # what the answer to a call of the kernel's is for; own-ipc: it was no call of the kernel's


class Resumed(Event, frozen=True, tag=43):
    """A thread can run on without a message or an error: the kernel or ExchangeRegisters started it, its guest woke, or
    there is input on the console."""

    thread: int


# -- the processor -----------------------------------------------------------------------------------------------------


class Switched(Event, frozen=True, tag=5):
    """The processor was given to a thread."""

    thread: int


class Preempted(Event, frozen=True, tag=6):
    """A thread lost the processor although it could have run on."""

    thread: int
    why: str  # slice, priority, quantum, or switch: it asked for it


class Idle(Event, frozen=True, tag=46):
    """Nobody can run. That ends with the next `Switched`."""


class KernelEntry(Event, frozen=True, tag=41):
    """A thread entered the kernel, and this is the end of it. What happened since the `KernelEntry` before, a switch to
    the thread included, belongs to this entry."""

    thread: int
    function: str  # the kernel's, by module and name, that did what was asked for: "ipc.sys_ipc"
    cycles: int  # that the kernel took: the thread stopped so long before `at`

    @property
    def began(self) -> int:
        """The cycle at which the thread stopped."""
        return self.at - self.cycles


class SystemCalled(Event, frozen=True, tag=7):
    """A thread entered the kernel by a system call other than Ipc."""

    thread: int
    call: str
    arguments: dict[str, int]


# -- messages ----------------------------------------------------------------------------------------------------------


class MessageSent(Event, frozen=True, tag=8):
    """A message was transferred. The receiver can run; the sender goes on to its receive phase, if there is one."""

    sender: int
    receiver: int
    words: tuple[int, ...]  # MR0 first, as the sender wrote them
    how: Annotated[
        int, Meta(ge=0, le=int(max(MessageKind)))
    ]  # it came about: a MessageKind, packed faster as a plain number
    then: int  # from whom the sender receives now; 0: it does not, and can run

    @property
    def kind(self) -> MessageKind:
        """How it came about."""
        return MessageKind(self.how)


class Suspended(Event, frozen=True, tag=47):
    """In the midst of a message with strings a page is missing: both wait, and one of them asks its pager."""

    sender: int
    receiver: int


class Transferred(Event, frozen=True, tag=48):
    """A message that was suspended has arrived, and what its `Message` said is true now."""

    sender: int
    receiver: int
    then: int  # as in the MessageSent


class IpcError(Event, frozen=True, tag=9):
    """An IPC failed; the thread can run."""

    thread: int
    error: int  # the UTCB's ErrorCode


# -- spaces, pages and ports -------------------------------------------------------------------------------------------


class SpaceCreated(Event, frozen=True, tag=49):
    """An address space exists."""

    space: int
    name: str


class SpaceConfigured(Event, frozen=True, tag=50):
    """A space got its KIP and UTCB areas, in the place of those that it had. Nobody can map anything there."""

    space: int
    kip: int  # fpages
    utcbs: int


class SpaceBecameVm(Event, frozen=True, tag=51):
    """A space is a virtual machine from now on."""

    space: int
    name: str  # the new one
    shadow: bool  # shadow paging, or nested


class SpaceDeleted(Event, frozen=True, tag=52):
    """A space is gone. What it had, and what others had from it, was taken before."""

    space: int


class Mapped(Event, frozen=True, tag=10):
    """A page was mapped, or granted, or given more rights.

    Where the target had the same memory already, a map only makes it writable, and a grant takes it out of its tree
    first: what others have from it they then have from its giver. Anything else that was there was taken before.
    """

    source: int  # the space that has it; the kernel's, of what sigma0 has by touching it
    origin: int  # address there
    target: int
    va: int
    pa: int
    log2: int
    writable: bool
    granted: bool  # it moved: a whole page has left the source, and what others have from it stays


class Unmapped(Event, frozen=True, tag=11):
    """A page was taken out of a space, or made read-only: by Unmap, because its space is gone or that of a giver, or
    because something else came there."""

    space: int
    va: int
    log2: int
    rights: int  # that were taken: 7, the page; 2, to write it


class PortsMapped(Event, frozen=True, tag=31):
    """Ports were mapped or granted: those of which the target got something new."""

    source: int
    target: int
    ranges: Ranges
    granted: bool  # the source has them no more, and who had them from it has them from the target


class PortsUnmapped(Event, frozen=True, tag=32):
    """Ports were taken from a space."""

    space: int
    ranges: Ranges


# -- faults ------------------------------------------------------------------------------------------------------------


class PageFault(Event, frozen=True, tag=12):
    """A thread touched what is not mapped; its pager will hear of it, but sigma0 gets what it touches at once."""

    thread: int
    address: int
    ip: int
    rights: int  # wanted


class IoPageFault(Event, frozen=True, tag=30):
    """A program touched ports that are not mapped; its pager will hear of it."""

    thread: int
    port: int
    size: int  # number of ports
    ip: int


class Exception_(Event, frozen=True, tag=13):
    """A thread caused an exception; its exception handler will hear of it."""

    thread: int
    vector: int
    error_code: int
    ip: int


# -- virtual CPUs ------------------------------------------------------------------------------------------------------


class VcpuCreated(Event, frozen=True, tag=36):
    """A thread became a virtual CPU."""

    vcpu: int
    machine: int  # the virtual machine's number
    name: str  # its space
    shadow: bool  # shadow paging, or nested


class VcpuDeleted(Event, frozen=True, tag=37):
    """A virtual CPU is gone, with its thread or without."""

    vcpu: int
    instructions: int  # that it has executed in all


class VmExit(Event, frozen=True, tag=14):
    """A guest did what only its monitor may decide; this is what the monitor is told."""

    vcpu: int
    reason: int  # ExitReason, numbered as the CPU numbers them
    qualification: int
    length: int
    ip: int
    instructions: int  # that the virtual CPU has executed so far


class KernelExit(Event, frozen=True, tag=39):
    """Under shadow paging a guest did what concerns nobody but the kernel: INVLPG, an access to CR3, a page fault that
    its own tables explain. A page fault that they do not explain is a VtlbFill. The guest goes on at once: this is no
    kernel entry."""

    vcpu: int
    reason: int  # ExitReason
    qualification: int
    ip: int


class VmEntry(Event, frozen=True, tag=15):
    """A guest goes on after an exit."""

    vcpu: int
    injected: int  # entry interruption-information field; 0 if no event is injected


class EntryRefused(Event, frozen=True, tag=35):
    """The CPU does not enter the guest in the state that its monitor gave it."""

    vcpu: int
    why: str


class Injected(Event, frozen=True, tag=40):
    """An event that a monitor asked for was delivered to its guest."""

    vcpu: int
    event: int  # entry interruption-information field


class VtlbFill(Event, frozen=True, tag=33):
    """A shadow table lacked what the guest's own tables have, and got it."""

    vcpu: int
    address: int  # guest-linear
    told: bool  # did the monitor hear of it, as a VM exit, because it cut short the delivery of an event?


class VtlbFlush(Event, frozen=True, tag=34):
    """The guest or its monitor loaded a control register, or memory was unmapped: shadow tables were compared; or the
    guest executed INVLPG."""

    vcpu: int
    directory: int  # the guest's CR3
    dropped: int  # entries that were no longer true
    page: int | None = None  # guest-linear, of INVLPG


# -- devices -----------------------------------------------------------------------------------------------------------


class Interrupt(Event, frozen=True, tag=16):
    """A device asked for attention."""

    line: int


class DeviceOutput(Event, frozen=True, tag=17):
    """A byte left the machine by its serial port."""

    byte: int


class DeviceInput(Event, frozen=True, tag=18):
    """Something came into the machine: bytes at its serial port, scan codes of set 1 from its keyboard, or its button
    was pressed. No other input is. It comes after all else that happens at its cycle before somebody runs on."""

    data: bytes
    device: str = "serial"  # or keyboard, or button


AnyEvent = (
    Booted
    | ThreadCreated
    | ThreadActivated
    | ThreadDeleted
    | ThreadHalted
    | ThreadRenamed
    | ThreadMoved
    | Blocked
    | Resumed
    | Switched
    | Preempted
    | Idle
    | KernelEntry
    | SystemCalled
    | MessageSent
    | Suspended
    | Transferred
    | IpcError
    | SpaceCreated
    | SpaceConfigured
    | SpaceBecameVm
    | SpaceDeleted
    | Mapped
    | Unmapped
    | PortsMapped
    | PortsUnmapped
    | PageFault
    | IoPageFault
    | Exception_
    | VcpuCreated
    | VcpuDeleted
    | VmExit
    | KernelExit
    | VmEntry
    | EntryRefused
    | Injected
    | VtlbFill
    | VtlbFlush
    | Interrupt
    | DeviceOutput
    | DeviceInput
)
