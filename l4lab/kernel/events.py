# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened: one frozen record per kind of event.

The kernel reports facts; it never prints. Trace, views, debugger and grader read the same records, so what a picture
shows is what is graded. `at` is the cycle of the event. Threads are given by their global identifiers, spaces by name.
"""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What all events have."""

    at: int  # cycle


class Booted(Event, frozen=True, tag=1):
    """The kernel has set itself up and is about to run the first thread."""

    memory: int  # bytes of RAM


class ThreadCreated(Event, frozen=True, tag=2):
    """A thread exists."""

    thread: int
    space: str
    kind: str  # native, hosted, vcpu, interrupt


class ThreadDeleted(Event, frozen=True, tag=3):
    """A thread is gone."""

    thread: int


class ThreadHalted(Event, frozen=True, tag=4):
    """A thread will not run again unless someone starts it anew."""

    thread: int
    why: str


class Switched(Event, frozen=True, tag=5):
    """The processor was given to a thread."""

    thread: int


class Preempted(Event, frozen=True, tag=6):
    """A thread lost the processor although it could have run on."""

    thread: int
    why: str  # slice, priority, quantum, or switch: it asked for it


class SystemCalled(Event, frozen=True, tag=7):
    """A thread entered the kernel by a system call other than Ipc."""

    thread: int
    call: str
    arguments: dict[str, int]


class Message(Event, frozen=True, tag=8):
    """A message was transferred."""

    sender: int
    receiver: int
    words: tuple[int, ...]  # MR0 first, as the sender wrote them


class IpcError(Event, frozen=True, tag=9):
    """An IPC failed."""

    thread: int
    error: int  # the UTCB's ErrorCode


class Mapped(Event, frozen=True, tag=10):
    """A page was mapped, or granted, or given more rights."""

    source: str
    target: str
    va: int
    pa: int
    log2: int


class Unmapped(Event, frozen=True, tag=11):
    """A page was taken out of a space, or made read-only."""

    space: str
    va: int
    log2: int
    rights: int


class PageFault(Event, frozen=True, tag=12):
    """A thread touched what is not mapped; its pager will hear of it."""

    thread: int
    address: int
    ip: int
    rights: int  # wanted


class Exception_(Event, frozen=True, tag=13):
    """A thread caused an exception; its exception handler will hear of it."""

    thread: int
    vector: int
    error_code: int
    ip: int


class VmExit(Event, frozen=True, tag=14):
    """A guest did what only its monitor may decide; this is what the monitor is told."""

    vcpu: int
    reason: int  # ExitReason, numbered as the CPU numbers them
    qualification: int
    length: int
    ip: int
    instructions: int  # that the virtual CPU has executed so far


class VmEntry(Event, frozen=True, tag=15):
    """A guest goes on after an exit."""

    vcpu: int
    injected: int  # entry interruption-information field; 0 if no event is injected


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


class IoPageFault(Event, frozen=True, tag=30):
    """A program touched ports that are not mapped; its pager will hear of it."""

    thread: int
    port: int
    size: int  # number of ports
    ip: int


class PortsMapped(Event, frozen=True, tag=31):
    """Ports were mapped or granted."""

    source: str
    target: str
    port: int  # the first
    count: int


class PortsUnmapped(Event, frozen=True, tag=32):
    """Ports were taken from a space."""

    space: str
    port: int  # the first
    count: int


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


class EntryRefused(Event, frozen=True, tag=35):
    """The CPU does not enter the guest in the state that its monitor gave it."""

    vcpu: int
    why: str


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


class ThreadRenamed(Event, frozen=True, tag=38):
    """A thread got another identifier."""

    thread: int  # the old one
    name: int  # the new one


class KernelExit(Event, frozen=True, tag=39):
    """Under shadow paging a guest did what concerns nobody but the kernel: INVLPG, an access to CR3, a page fault that
    its own tables explain. A page fault that they do not explain is a VtlbFill."""

    vcpu: int
    reason: int  # ExitReason
    qualification: int
    ip: int


class Injected(Event, frozen=True, tag=40):
    """An event that a monitor asked for was delivered to its guest."""

    vcpu: int
    event: int  # entry interruption-information field


AnyEvent = (
    Booted
    | ThreadCreated
    | ThreadDeleted
    | ThreadHalted
    | Switched
    | Preempted
    | SystemCalled
    | Message
    | IpcError
    | Mapped
    | Unmapped
    | PageFault
    | Exception_
    | VmExit
    | VmEntry
    | Interrupt
    | DeviceOutput
    | DeviceInput
    | IoPageFault
    | PortsMapped
    | PortsUnmapped
    | VtlbFill
    | VtlbFlush
    | EntryRefused
    | VcpuCreated
    | VcpuDeleted
    | ThreadRenamed
    | KernelExit
    | Injected
)
