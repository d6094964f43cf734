# SPDX-License-Identifier: GPL-2.0-or-later
"""A running system: machine, kernel and programs, with the means to run it, step it and look at it.

What lives here: putting a system together, running it for a while, input and output, and why it stopped. What a view
may show of it is taken in `inspect.py`; what happened is in `trace.py`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import greenlet
import msgspec

from l4lab.abi.ids import ROOT_TASK, ThreadId
from l4lab.abi.vm import exit_name
from l4lab.devices.disk import Image
from l4lab.devices.keys import scan_codes
from l4lab.devices.vga import TextPage
from l4lab.errors import LabError
from l4lab.kernel import events
from l4lab.kernel.boot import KERNEL_MEMORY, THE_KERNELS_OWN, Io, boot
from l4lab.kernel.calls.hosted import HostedCpu
from l4lab.kernel.kernel import Enough
from l4lab.kernel.objects.instants import BUTTON, DEVICES, KEYBOARD, SERIAL, Input, Instant
from l4lab.kernel.objects.program import HostedThread
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb, ThreadState
from l4lab.kernel.parts import Parts
from l4lab.machine.board import Machine
from l4lab.rig import counting, loader, savefile
from l4lab.rig.inspect import look, take_snapshot
from l4lab.rig.plan import MadeFrom, Plan, Root, made_from, plan_of
from l4lab.rig.snapshot import Snapshot
from l4lab.rig.trace import Trace
from l4lab.user import sigma0
from l4lab.user.guests.flat import FlatGuest
from l4lab.user.host import Host, HostRun
from l4lab.user.l4 import L4, Program
from l4lab.user.monitor import realmode, savedcheck, start_flat
from l4lab.user.monitor.hardware import PLAIN, Hardware
from l4lab.user.monitor.monitor import GuestProgram, GuestRun
from l4lab.user.monitor.monitor_parts import THE_MONITORS_OWN, MonitorParts
from l4lab.user.monitor.outcome import Outcome
from l4lab.user.monitor.saved import LONGEST_LINE, SavedGuest

SPARE_MEMORY = 8 << 20  # bytes of RAM beside the guest's: monitor, sigma0, alignment of 4 MB pages
SUPERPAGE = 4 << 20
TAKEN_OVER_BY = 1_000_000_000  # cycles: many more than a monitor takes to put a guest in its place
INSTANT_LOOK_BACK = 1024  # events among which are all since the last kernel entry
HALT_LOOK_BACK = 64  # events among which is the one that says why a thread was halted just now


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run came back."""

    reason: str  # deadline, enough, event, stopped, idle, finished, died
    finished: bool = False  # nothing more will happen
    detail: str = ""  # a sentence for people


class Rig:
    """One system. `root` is the program of the root task, in Python or in memory; it runs beside sigma0."""

    def __init__(
        self,
        root: Root,
        memory: int,
        name: str = "root",
        trace: Trace | None = None,
        programs: Mapping[ThreadId, Program] | None = None,
        io: Io = Io.FPAGES,
        parts: Parts = THE_KERNELS_OWN,
    ) -> None:
        """`memory`: bytes of RAM. The machine is on and the kernel booted; nothing has run yet.

        `programs`: what threads do that the root task is going to create, if they are hosted too. `io`: how all
        programs come by I/O ports. `parts`: what takes the place of parts of the kernel.
        """
        self.console = bytearray()  # all that left the machine's serial port
        self.carried = 0  # bytes of it that a restored guest brought along
        self.on_output: Callable[[int], None] | None = None
        self.trace = trace if trace is not None else Trace()
        self._thread = threading.current_thread()  # of the host: hosted programs cannot change theirs
        self._running = False
        self._open = True
        heard = weakref.WeakMethod(self._transmitted)  # nothing below holds the rig: who drops it frees the machine

        def transmit(byte: int) -> None:
            transmitted = heard()
            if transmitted is not None:
                transmitted(byte)

        self._made_from = MadeFrom(root, memory, name, dict(programs or {}), io, parts)
        self.guest = GuestRun(root) if isinstance(root, GuestProgram) else None
        self.host = HostRun(root) if isinstance(root, Host) else None
        self._essential = {ROOT_TASK}  # programs without which nothing goes on
        if self.host is not None:  # a monitor that raised has a defect, or no memory for its guest
            programs = self.host.programs
            self._essential |= programs.keys()
        self.machine = Machine(memory, transmit)
        first = HostedThread(_hosted(sigma0.main), "sigma0")
        if isinstance(root, loader.ProgramPlan):
            for at, data in (*root.firmware, *root.pieces):
                self.machine.memory.write(at, data)
            loaded = root.sigma0 or first, root.root, root.descriptors, root.boot_info
            self.kernel = boot(self.machine, self.trace, *loaded, io, parts)
        else:
            program = self.guest or self.host or root
            assert callable(program)
            hosted = HostedThread(_hosted(program), name)
            self.kernel = boot(self.machine, self.trace, first, hosted, io=io, parts=parts)
        for thread, program in (programs or {}).items():
            self.kernel.programs[thread] = HostedThread(_hosted(program), f"thread {thread.thread_no}")
        self._has_screen = isinstance(root, loader.ProgramPlan)  # then the first MB is laid out as a PC has it
        self._death: Stop | None = None
        self._previous: dict[str, int] = {}
        self.last_stop = Stop("deadline", detail="just booted")
        if isinstance(root, GuestProgram) and isinstance(root.start, SavedGuest):
            self._take_over(root.start)

    @classmethod
    def from_plan(
        cls,
        plan: Plan,
        images: Mapping[str, Image],
        functions: Mapping[str, Any] | None = None,
        trace: Trace | None = None,
    ) -> Rig:
        """The system that the plan describes, as often as one likes. `images`: contents by their hash, as `rig.images`.

        `functions`: programs and parts in Python by name, for those that cannot be imported.
        """
        made = made_from(plan, images, functions or {})
        return cls(made.root, made.memory, made.name, trace, made.programs, made.io, made.parts)

    @property
    def plan(self) -> Plan:
        """What this run is made from, as data: see `rig.plan`."""
        return plan_of(self._made_from)[0]

    @property
    def images(self) -> dict[str, Image]:
        """The contents that the plan names, by their hash."""
        return plan_of(self._made_from)[1]

    # -- systems that are often wanted -------------------------------------------------------------------------------

    @classmethod
    def for_flat_guest(
        cls,
        guest: FlatGuest,
        trace: Trace | None = None,
        hardware: Hardware = PLAIN,
        parts: Parts = THE_KERNELS_OWN,
        monitor: MonitorParts = THE_MONITORS_OWN,
    ) -> Rig:
        """A machine whose root task is a monitor that runs one of our own small systems.

        `monitor`: what takes the place of parts of the monitor, as `parts` does of the kernel's.
        """
        program = start_flat.program(guest)
        program.hardware, program.parts = hardware, monitor
        return cls.for_guest(program, trace, parts)

    @classmethod
    def for_guest(cls, program: GuestProgram, trace: Trace | None = None, parts: Parts = THE_KERNELS_OWN) -> Rig:
        """A machine whose root task is this monitor; see `rig.booting` for one that boots an image."""
        guest_memory = -(-program.memory_size // SUPERPAGE) * SUPERPAGE
        return cls(program, guest_memory + SPARE_MEMORY + KERNEL_MEMORY, "monitor", trace, parts=parts)

    @classmethod
    def for_linux(
        cls,
        image: bytes,
        name: str,
        initrd: bytes | None,
        append: str,
        memory_mib: int,
        trace: Trace | None = None,
        hardware: Hardware = PLAIN,
        screen: bool = False,
        parts: Parts = THE_KERNELS_OWN,
        monitor: MonitorParts = THE_MONITORS_OWN,
    ) -> Rig:
        """A machine whose root task is a monitor that boots a Linux kernel in `memory_mib` MiB.

        `screen`: the kernel is told that there is one. `monitor`: as for `for_flat_guest`.
        """
        from l4lab.images.kinds import Kind
        from l4lab.rig.booting import Options, guest_program

        options = Options(initrd, append, screen=screen)
        program = guest_program(image, name, Kind.LINUX, options, memory_mib << 20)
        program.hardware, program.parts = hardware, monitor
        return cls.for_guest(program, trace, parts)

    @classmethod
    def restore(
        cls,
        path: Path | str,
        trace: Trace | None = None,
        disk: Image | None = None,
        monitor: MonitorParts = THE_MONITORS_OWN,
    ) -> Rig:
        """A machine whose root task is a monitor that goes on with a saved guest (see `save`).

        `monitor`: as for `for_flat_guest`.
        """
        saved = savefile.read(path)
        savedcheck.check(saved, disk)
        program = GuestProgram.going_on(saved, disk)
        program.attach, program.parts = realmode.GO_ON, monitor
        return cls.for_guest(program, trace)

    def _take_over(self, saved: SavedGuest) -> None:
        self.console += saved.line
        self.carried = len(saved.line)
        self.run_until(TAKEN_OVER_BY, self._guest_is_served)  # until then nobody listens to what is typed

    def _guest_is_served(self) -> bool:
        return self.guest is not None and self.guest.monitor is not None and self.guest.monitor.serving

    @classmethod
    def for_host(cls, host: Host, trace: Trace | None = None, parts: Parts = THE_KERNELS_OWN) -> Rig:
        """A machine whose root task runs several virtual machines, and native programs beside them."""
        return cls(host, host.memory_size + SPARE_MEMORY + KERNEL_MEMORY, "root", trace, parts=parts)

    @classmethod
    def for_program(
        cls,
        image: bytes,
        name: str,
        memory_mib: int = loader.USUAL_MIB,
        sigma0: tuple[bytes, str] | None = None,
        modules: Sequence[loader.Module] = (),
        trace: Trace | None = None,
        io: Io = Io.IOPL3,
        command_line: str | None = None,
        parts: Parts = THE_KERNELS_OWN,
    ) -> Rig:
        """A machine whose root task is a native program, an ELF file; `sigma0` another one, and its name.

        `io`: how programs come by ports. Those that others wrote often know I/O privilege level 3 only, and those that
        ask for their ports run with it too. `command_line`: of the root task; without it, its name.
        """
        size = loader.memory_size(memory_mib)
        plan = loader.plan(image, name, size, sigma0, modules, command_line)
        return cls(plan, size, trace=trace, io=io, parts=parts)

    # -- the end of it -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Switch the machine off for good, and give back what it takes of the host. What happened can still be read.

        A rig that nobody has any more is closed by itself; `with` closes it at its end.
        """
        if self._open:
            self._check_usable()
            self._check_standing()
            self._free()

    def _free(self) -> None:
        self._open = False
        self.kernel.close()
        self.machine.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        booted = getattr(self, "_open", False) and hasattr(self, "kernel")
        if booted and not sys.is_finalizing():  # the end of the process frees all of it, and no greenlet runs any more
            self._free()

    def _check_usable(self) -> None:
        """LabError if the machine cannot be asked for anything now."""
        if threading.current_thread() is not self._thread:
            raise LabError(
                "this rig belongs to another thread, which has booted it. Call it there; here, only stop() works"
            )
        if not self._open:
            raise LabError("this rig was closed, and its machine is gone. Boot another one")

    def _check_standing(self) -> None:
        if self._running:
            raise LabError("this rig is running. Wait until it has come back, or let it come back by stop()")

    # -- input and output --------------------------------------------------------------------------------------------

    def _transmitted(self, byte: int) -> None:
        self.console.append(byte)
        self.trace.append(events.DeviceOutput(self.machine.cycles, byte))
        if self.on_output is not None:
            self.on_output(byte)

    def type(self, text: bytes) -> None:
        """Bytes arrive at the machine's serial port now: before anybody runs on."""
        self._check_usable()
        if text:
            self.give(SERIAL, text)

    def give(self, device: str, data: bytes = b"", at: Instant | None = None) -> None:
        """Input for a device, now or at an instant to come. It is in the trace when it has come: when the rig runs."""
        if device not in DEVICES:
            raise LabError(f"no input comes by {device!r}; there is: {', '.join(DEVICES)}")
        self.kernel.give(Input(at or self.instant, device, bytes(data)))

    @property
    def instant(self) -> Instant:
        """Where the run stands."""
        events_since = 0
        for event in reversed(self.trace.latest(INSTANT_LOOK_BACK)):
            if isinstance(event, events.KernelEntry):
                break
            events_since += 1
        return Instant(self.machine.cycles, self.kernel.entries, events_since)

    def press(self, text: str) -> None:
        """The keys of a text are pressed on the machine's keyboard now; arrows and such as a terminal sends them."""
        self._check_usable()
        try:
            codes = scan_codes(text)
        except ValueError as error:
            raise LabError(f"{error} on a US keyboard; type what it has, or give the text to type()") from None
        if codes:
            self.give(KEYBOARD, codes)

    # -- saving the guest --------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Have the monitor save its guest, and write it to a file; the guest can go on, here and elsewhere."""
        self._check_usable()
        if self.guest is None:
            raise LabError(
                "no guest runs here that could be saved: not those of a host, and no native programs. "
                "Save one that `l4lab boot` runs, or a Rig.for_flat_guest or Rig.for_linux."
            )
        before = self._last_saved()
        self.give(BUTTON)
        stop = self.run_until(NEVER_ENDS, lambda: self._last_saved() is not before)
        saved = self._last_saved()
        if saved is None or saved is before:
            raise LabError(f"the guest was not saved: {stop.detail or stop.reason}. Save it while it runs.")
        line = bytes(self.console[self.console.rfind(b"\n") + 1 :][-LONGEST_LINE:])
        savefile.write(path, msgspec.structs.replace(saved, line=line))

    def _last_saved(self) -> SavedGuest | None:
        monitor = self.guest.monitor if self.guest is not None else None
        return None if monitor is None else monitor.saved

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, cycles: int | None = None) -> Stop:
        """Run for so many cycles (nanoseconds of virtual time), or until nothing more happens."""
        return self.run_until(NEVER_ENDS if cycles is None else self.machine.cycles + cycles)

    def run_until(self, cycle: int, enough: Enough | None = None, watch: Enough | None = None) -> Stop:
        """Run until the clock reads `cycle`, or it is enough, or it all ends.

        `enough` is asked after each kernel entry; `watch` after each access to a port, and now and then: see
        `Kernel.run`.
        """
        with self._interruptible():
            while True:
                reason = self.kernel.run(cycle, enough, watch)
                if reason != "halted" or self.over() is not None:
                    return self._stopped(reason)

    def step(self) -> Stop:
        """One instruction of whoever is running; of a hosted program, up to its next system call."""
        with self._interruptible():
            reason = self.kernel.run(self.machine.cycles + 1, one_entry=True)
        return self._stopped(reason)

    def step_event(self) -> Stop:
        """Up to the next kernel entry."""
        before = self.kernel.entries
        with self._interruptible():
            reason = self.kernel.run(NEVER_ENDS, lambda: self.kernel.entries != before)
        return self._stopped("event" if reason == "enough" else reason)

    def stop(self) -> None:
        """Ask a run to come back at its next kernel entry."""
        self.kernel.request_stop()

    def _stopped(self, reason: str) -> Stop:
        if self.kernel.stop_requested:  # even if it was the last instant: nobody asks twice
            self.kernel.stop_requested, reason = False, "stopped"
        detail = {
            "idle": "everybody waits, and nobody will wake them without input from outside",
            "stopped": "stopped on request",
            "enough": "what was waited for happened",
        }.get(reason, "")
        self.last_stop = self.over() or Stop(reason, False, detail)
        return self.last_stop

    def over(self) -> Stop | None:
        """Has the system come to its end? Then how."""
        for thread, died in self.kernel.deaths:
            if thread.id in self._essential:
                return Stop("died", True, f"the program of {thread.name} raised {died.summary}")
        outcome = self.outcome
        if outcome is not None:
            return Stop("finished", True, outcome.why)
        root = self.kernel.find(ROOT_TASK, None)
        if root is not None and root.state is ThreadState.HALTED and self.guest is None:
            if root.program is None:
                return self._native_death()
            return Stop("finished", True, "the root task has ended")
        return None

    def _native_death(self) -> Stop | None:
        """Did the kernel halt the root task for what it did? One that was halted on request may go on."""
        if self._death is None:
            for event in reversed(self.trace.latest(HALT_LOOK_BACK)):
                if isinstance(event, events.ThreadHalted) and event.thread == ROOT_TASK:
                    if "ExchangeRegisters" not in event.why:
                        self._death = Stop("died", True, f"the root task was halted: {event.why}")
                    break
        return self._death

    @property
    def outcome(self) -> Outcome | None:
        """How the guest ended; None while it runs, and where there is none."""
        return self.guest.outcome if self.guest is not None else None

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and the notebook's stop button ask for a stop: an exception in the midst of the kernel would break it.

        A second one while a hosted program, or a part in the kernel's place, does not come back is raised there.
        """
        self._check_usable()
        self._check_standing()
        self._running = True
        try:
            with self._heeding_interrupts():
                yield
        finally:
            self._running = False

    @contextlib.contextmanager
    def _heeding_interrupts(self) -> Iterator[None]:
        if self._thread is not threading.main_thread():
            yield
            return

        kernel = greenlet.getcurrent()  # hosted programs run in greenlets of their own

        def interrupt(number: int, frame: Any) -> None:
            others_code = greenlet.getcurrent() is not kernel or self.kernel.part_at_work
            if self.kernel.stop_requested and others_code:
                raise KeyboardInterrupt
            self.kernel.request_stop()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # -- looking ------------------------------------------------------------------------------------------------------

    def snapshot(self, of_guest: bool = False) -> Snapshot:
        """An immutable picture of the system; its registers and code those of whoever runs, or of the guest."""
        self._check_usable()
        vcpus = (thread for thread in self.kernel.threads.values() if thread.vcpu is not None)
        snapshot = take_snapshot(
            self.kernel,
            self.trace,
            bytes(self.console[-65536:]),
            self.status(),
            self._previous,
            self.last_stop.reason == "idle",
            next(vcpus, None) if of_guest else None,
            self.screen(),
        )
        self._previous = dict(snapshot.registers)
        return snapshot

    def screen(self) -> TextPage | None:
        """What the guest's text screen shows, or the machine's; None if nothing was ever put there.

        A guest's buffer is its memory, and so its monitor's, through whose window it is read. The machine's own screen
        belongs to native programs.
        """
        self._check_usable()
        if self._has_screen:
            memory = self.machine.memory.u8
            return _unless_blank(self.machine.vga.page(lambda at, length: bytes(memory[at : at + length])))
        monitor = self.guest.monitor if self.guest is not None else None
        root = self.kernel.find(ROOT_TASK, None)
        if monitor is None or root is None:
            return None
        space, window = root.space, monitor.memory.window
        page = monitor.pc.vga.page(lambda at, length: look(self.kernel, space, window + at, length))
        return _unless_blank(page)

    def status(self) -> str:
        """Where it stands and why it stopped, in one line."""
        return self.last_stop.detail or self.last_stop.reason

    def stats(self) -> dict[str, Any]:
        """Counters of the whole run and of each virtual CPU; of a guest also what it asked for in vain, and said."""
        counters = self.kernel.counters
        monitor = self.guest.monitor if self.guest is not None else None
        of_guest: dict[str, Any] = {}
        if monitor is not None:
            of_guest = {"unknown": monitor.unknown(), "debug_port": monitor.pc.debug.said.decode("latin-1")}
        return {
            "instructions": self.machine.engine.retired,
            "virtual_s": self.machine.cycles / 1e9,
            "ipc_messages": counters.ipc_messages,
            "vm_exits": {exit_name(reason): count for reason, count in sorted(counters.vm_exits.items())},
            "page_faults": counters.page_faults,
            "injections": counters.injections,
            "virtual_machines": msgspec.to_builtins(counting.machines(counters.virtual_cpus)),
            **of_guest,
        }

    def thread(self, name: str) -> Tcb:
        """The thread of this name."""
        for thread in self.kernel.threads.values():
            if thread.name == name:
                return thread
        names = ", ".join(sorted(thread.name for thread in self.kernel.threads.values() if thread.name))
        raise LabError(f"there is no thread {name!r}. There are: {names}.")


def _unless_blank(page: TextPage | None) -> TextPage | None:
    return page if page is not None and any(page.cells) else None


def _hosted(program: Program) -> Callable[[HostedCpu], None]:
    """A program over the system-call bindings, as the kernel starts it."""
    return lambda cpu: program(L4(cpu))
