# SPDX-License-Identifier: GPL-2.0-or-later
"""An immutable picture of all that a view may show, taken at one instant of a run.

Lives here: the records, and the few questions about them that several views ask. Data only: no machine, no kernel, and
nothing that could step one. Does not live here: how a snapshot is taken (the rig's) and how it is drawn (`views`).

Every collection may be empty, and whatever the rig does not know is left out: a view must draw that too.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from l4lab.devices.vga import TextPage
from l4lab.rig.counting import VmCounts
from l4lab.words import Rights

Mode = Literal["user", "guest", "kernel", "hosted", "idle"]
ThreadKind = Literal["native", "hosted", "vcpu"]
# How a message came about: by a thread's own system call, its answer to a call, or the kernel speaking for someone.
IpcKind = Literal["send", "reply", "fault", "exit", "irq"]


class DisasmLine(msgspec.Struct, frozen=True):
    """One instruction as the disassembler shows it."""

    address: int
    code: bytes
    text: str
    current: bool = False  # the next one to be executed


class ThreadView(msgspec.Struct, frozen=True):
    """One thread, as the kernel knows it."""

    id: int  # global identifier
    name: str
    kind: ThreadKind
    state: str  # name of the kernel's ThreadState
    priority: int
    space: int  # SpaceView.id
    partner: int | None = None  # whom it is sending to, or waiting for
    waits: str = ""  # what for, if the kernel has called somebody in its name: the text of the kernel's Wait
    pager: int | None = None
    # virtual time in nanoseconds, None for without end:
    time_slice: int | None = None  # how long it runs at a time, where others have its priority
    slice_left: int | None = None  # of the present one
    quantum_left: int | None = None  # what it may run in all, before its scheduler is asked


class Region(msgspec.Struct, frozen=True):
    """A contiguous piece of an address space, mapped with one set of rights from one place."""

    va: int  # guest-physical if the space is a virtual machine
    size: int
    pa: int  # machine-physical
    rights: Rights
    parent: int | None = None  # SpaceView.id of the space that mapped it here; None for the kernel's own gift
    label: str = ""


class Area(msgspec.Struct, frozen=True):
    """A piece of address space that the kernel keeps for itself: the KIP or the UTCBs."""

    va: int
    size: int


class Ports(msgspec.Struct, frozen=True):
    """I/O ports that programs of a space may use, one behind the other, from one giver."""

    first: int
    count: int
    parent: int | None = None  # SpaceView.id of the space that has given them


class SpaceView(msgspec.Struct, frozen=True):
    """One address space and what is mapped in it, by ascending address."""

    id: int
    name: str
    is_vm: bool = False
    kip: Area | None = None
    utcbs: Area | None = None
    regions: tuple[Region, ...] = ()
    ports: tuple[Ports, ...] = ()  # by ascending number


class IpcView(msgspec.Struct, frozen=True):
    """One message that was transferred."""

    cycle: int
    sender: int  # thread identifiers
    receiver: int
    label: str  # readable: "page fault w", "cpuid exit", or the number
    words: tuple[int, ...] = ()  # MR1 and the following
    kind: IpcKind = "send"


class ExitView(msgspec.Struct, frozen=True):
    """A guest did what only its monitor may decide."""

    cycle: int
    vcpu: int  # thread identifier
    reason: str  # name of the exit reason
    guest_ip: int
    detail: str = ""  # the qualification in words: "out 0x3f8 ← 0x41"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A system at one instant."""

    # where in the run
    cycle: int  # the address of this instant: the machine's one clock
    virtual_ns: int  # virtual time since power-on
    retired: int  # instructions executed so far
    status: str  # where it stands and why it stopped, in one line

    # where in the program
    thread: int | None  # who is running
    mode: Mode
    registers: dict[str, int] = {}  # EIP first, as in the register frame; then CR0, CR3, CR4, selectors where known
    previous: dict[str, int] = {}  # the same at the last stop: what differs is highlighted
    disassembly: tuple[DisasmLine, ...] = ()

    # the system
    threads: tuple[ThreadView, ...] = ()
    spaces: tuple[SpaceView, ...] = ()
    ipc: tuple[IpcView, ...] = ()  # the latest ones, oldest first
    exits: tuple[ExitView, ...] = ()  # the latest ones, oldest first
    exit_counts: dict[str, int] = {}  # of the whole run, by reason
    counters: dict[str, int] = {}  # of the whole run: IPC messages, page faults, injections, ...
    machines: tuple[VmCounts, ...] = ()  # what each virtual machine cost in the whole run, those that are gone too

    # the guest's screen; None if it has none, or nothing was ever put on it
    screen: TextPage | None = None

    # the guest's serial line
    console: str = ""  # the latest output, bytes as Latin-1 or decoded, escape sequences included
    input_expected: bool = False  # does the guest, or the program, wait for someone to type?

    def thread_name(self, thread: int | None) -> str:
        """The thread's name; its number if it has none or is gone; a dash for no thread."""
        if thread is None:
            return "–"
        return next((view.name for view in self.threads if view.id == thread and view.name), f"{thread:#x}")

    def space_name(self, space: int | None) -> str:
        """The address space's name; its number if it has none or is gone; "kernel" for the kernel's own, or none."""
        if not space:
            return "kernel"
        return next((view.name for view in self.spaces if view.id == space and view.name), f"{space:#x}")

    def changed(self) -> frozenset[str]:
        """The registers that differ from the last stop. None do when there was no such stop."""
        return frozenset(
            name for name, value in self.registers.items() if name in self.previous and self.previous[name] != value
        )
