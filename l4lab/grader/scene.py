# SPDX-License-Identifier: GPL-2.0-or-later
"""The systems in which the student's functions are tried: real machine, real kernel, and the lab's own monitor.

Lives here: putting the student's functions into that monitor, and running it until it ends or leads nowhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from l4lab.abi.vm import ExitReason, IoAccess
from l4lab.grader import probe_guest
from l4lab.grader.exchange import Exchange, exchanges
from l4lab.grader.result import Trouble
from l4lab.grader.student import Function, OutOfTime, Student, Troubled
from l4lab.kernel.boot import KERNEL_MEMORY
from l4lab.rig.rig import SPARE_MEMORY, Rig
from l4lab.user.console import COM1
from l4lab.user.guests import greeting
from l4lab.user.guests.flat import RAM_SIZE, FlatGuest
from l4lab.user.l4 import L4
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.monitor import GuestProgram, GuestRun, Monitor
from l4lab.user.monitor.outcome import End
from l4lab.user.monitor.start_flat import start_of

GUESTS: Mapping[str, Callable[[], FlatGuest]] = {"greeting": greeting.build, "probe": probe_guest.build}
SERIAL_PORTS = range(0x3F8, 0x400)

SAME_AGAIN = 1000  # times the very same exit: nothing new will come
CYCLES = 5_000_000  # virtual nanoseconds; the guests here need a twentieth of it
PATIENCE = 50_000  # of them without any exit: the guest has left its way, and executes whatever lies there


class Console:
    """What a student's handler is given to send bytes with."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def send(self, byte: int) -> None:
        """One byte appears on the guest's console."""
        if not isinstance(byte, int) or not 0 <= byte <= 0xFF:
            shown = hex(byte) if isinstance(byte, int) else repr(byte)
            raise ValueError(f"console.send takes one byte, 0 to 255, and was given {shown}; OUT sends AL: EAX & 0xFF")
        self._monitor.l4.port_out(COM1, 1, byte)


@dataclass(frozen=True, slots=True)
class Run:
    """One guest under the student's functions, after it has ended or was ended."""

    rig: Rig
    trouble: Trouble | None  # why the student's functions could not go on
    stuck: bool  # the guest caused the very same exit SAME_AGAIN times
    exchanges: tuple[Exchange, ...]

    @property
    def console(self) -> bytes:
        """All that was sent."""
        return bytes(self.rig.console)


class StudentsMonitor(GuestProgram):
    """The lab's monitor, with the student's functions for some of its handlers."""

    def __init__(self, guest: FlatGuest, student: Student) -> None:
        super().__init__(guest.pieces, start_of(guest), RAM_SIZE)
        self.student = student
        self.functions: Mapping[str, Function] = {}
        self.trouble: Trouble | None = None
        self.stuck = False
        self._last: object = None
        self._times = 0

    def run(self, l4: L4, run: GuestRun) -> None:
        """Run the guest until it ends."""
        monitor = run.monitor = Monitor(l4, self.memory_size)
        monitor.load(self.contents)
        self._install(monitor)
        run.outcome = monitor.run(self.start)

    def _install(self, monitor: Monitor) -> None:
        """A function called "cpuid" answers CPUID, one called "serial" the ports of the serial line."""
        handlers, console = monitor.handlers, Console(monitor)
        ours = handlers[ExitReason.IO_INSTRUCTION]

        def cpuid(fault: Fault, reply: Reply) -> None:
            self._ask(monitor, fault, self.functions["cpuid"], fault, reply)

        def ports(fault: Fault, reply: Reply) -> None:
            if IoAccess.decode(fault.qualification).port in SERIAL_PORTS:
                self._ask(monitor, fault, self.functions["serial"], fault, reply, console)
            else:
                ours(fault, reply)

        if "cpuid" in self.functions:
            handlers[ExitReason.CPUID] = cpuid
        if "serial" in self.functions:
            handlers[ExitReason.IO_INSTRUCTION] = ports

    def _ask(self, monitor: Monitor, fault: Fault, function: Function, *arguments: object) -> None:
        """Let the student's function answer, unless that leads nowhere."""
        same, self._last = self._last == fault.words, fault.words
        self._times = self._times + 1 if same else 1
        if self._times > SAME_AGAIN:
            self.stuck = True
            monitor.stop(End.STOPPED, "the same exit came again and again")
            return
        try:
            self.student.call(function, *arguments)
        except Troubled as troubled:
            self.trouble = troubled.trouble
            monitor.stop(End.STOPPED, "the handler failed")


class Scene:
    """A machine that is on, with a guest that waits for the student's functions.

    Made before the student's file is loaded, because an engine alone takes more memory than a student's file may.
    """

    def __init__(self, guest: str, student: Student) -> None:
        self._program = StudentsMonitor(GUESTS[guest](), student)
        memory = self._program.memory_size + SPARE_MEMORY + KERNEL_MEMORY
        self._rig = Rig(self._program, memory, "monitor")

    def play(self, functions: Mapping[str, Function]) -> Run:
        """Run the guest under the student's functions."""
        self._program.functions = functions
        with contextlib.suppress(OutOfTime):  # not in the student's code: the checks tell how far it came
            self._run()
        return Run(self._rig, self._program.trouble, self._program.stuck, tuple(exchanges(self._rig.trace)))

    def _run(self) -> None:
        """Until the guest ends, or leaves its way."""
        rig, before = self._rig, -1
        while rig.machine.cycles < CYCLES:
            stop = rig.run(PATIENCE)
            exits = rig.kernel.counters.exit_count
            if stop.finished or stop.reason == "idle" or exits == before:
                return
            before = exits
