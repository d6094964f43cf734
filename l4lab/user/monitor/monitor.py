# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual-machine monitor: makes a guest, answers its faults, brings it its interrupts, until it ends.

Lives here: the main loop, the console, and saving the whole guest. Everything it does for the guest is in the parts
beside this file; a monitor of one's own replaces entries of `handlers`, or parts (`monitor_parts`).

One thread does everything, so nothing happens to the guest behind its back: while the monitor runs, the guest does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from mypy_extensions import mypyc_attr

from l4lab.abi import vm
from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId, global_id, interrupt_id
from l4lab.abi.message import IpcErrorCode, IpcErrorWord, Message
from l4lab.abi.protocols import INTERRUPT, is_page_fault
from l4lab.abi.time import FARTHEST_POINT, ZERO, Timeouts, point, timeouts
from l4lab.abi.vm import CpuControls, ExitReason, IoAccess, ItemId, is_vm_fault
from l4lab.devices.device import Device
from l4lab.devices.disk import Disk, Image
from l4lab.errors import LabError, PartFailed
from l4lab.user import console
from l4lab.user.l4 import L4, REPLY, IpcFailed, Received
from l4lab.user.monitor.exit_handlers import ExitHandlers
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_cpuid import Cpuid
from l4lab.user.monitor.guest_interrupts import Interrupts
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.guest_ports import PortIo
from l4lab.user.monitor.hardware import PLAIN, Hardware
from l4lab.user.monitor.monitor_parts import THE_MONITORS_OWN, MonitorParts
from l4lab.user.monitor.msrs import Msrs
from l4lab.user.monitor.outcome import End, Outcome
from l4lab.user.monitor.outside_devices import OutsideDevices
from l4lab.user.monitor.outside_interrupts import OutsideInterrupts
from l4lab.user.monitor.outside_pager import OutsidePager
from l4lab.user.monitor.pc import Pc
from l4lab.user.monitor.saved import SavedGuest, as_registers, pieces_of, registers_of
from l4lab.user.monitor.start import FAULT_ITEMS, Start
from l4lab.words import hex_rows

# The machine's own serial port is the guest's console. Its keyboard is the guest's, too.
KEYS, KEYS_STATUS, KEYBOARD_IRQ = 0x60, 0x64, interrupt_id(1)

SAVE_IRQ: Final = interrupt_id(9)  # the machine's button for saving the guest

IO_INSTRUCTION: Final = ExitReason.IO_INSTRUCTION
KERNEL_ENTRY_US: Final = 2  # more than it takes from looking at the clock to the system call

Contents = Iterable[tuple[int, bytes]]  # guest-physical address, bytes
Answer = tuple[int, Sequence[int] | None]  # to whom, and what; NIL_THREAD and None: nobody


@mypyc_attr(allow_interpreted_subclasses=True)
class Monitor:
    """The monitor of one guest with `memory_size` bytes. Runs in the thread that has this `l4`.

    `disk` is the guest's, if it has one; `devices` are devices beside those of every PC; `memory` and `vcpu` are for
    where they exist already: a guest that is started again, a further CPU.
    """

    def __init__(
        self,
        l4: L4,
        memory_size: int,
        vcpu_id: ThreadId | None = None,
        shadow_paging: bool = False,
        disk: Disk | None = None,
        memory: GuestMemory | None = None,
        devices: Sequence[Device] = (),
        clock: int | None = None,
        vcpu: GuestCpu | None = None,
        parts: MonitorParts = THE_MONITORS_OWN,
    ) -> None:
        """`clock`: what the guest's clock shows, in nanoseconds, if it does not begin with the machine's.

        `parts`: what takes the place of the monitor's own; for a loop see `outside_loop.LoopedMonitor`.
        """
        self.l4 = l4
        self._ahead = 0 if clock is None else clock - l4.time_stamp()  # of the machine's clock, in nanoseconds
        self.now: Callable[[], int] = l4.time_stamp if clock is None else self._shifted_time
        self.outcome: Outcome | None = None
        self.memory = memory or GuestMemory.allocate(l4, memory_size)
        self.disk = disk
        self.shadow_paging = shadow_paging
        vcpu_id = vcpu_id or global_id(l4.my_id.thread_no + 1)
        self.vcpu = vcpu or GuestCpu.create(l4, vcpu_id, shadow_paging=shadow_paging)
        self.pc = Pc(self.now, memory_size, self.transmit, self.stop, disk, devices)
        self.cpuid = Cpuid()
        self.msrs = Msrs(self.vcpu, self.now)
        self.io = PortIo(self.pc.ports, self.vcpu, self.memory)
        self.memory.devices = self.pc.addresses
        now, stop = self.now, self.stop
        self.exits = ExitHandlers(
            now, self.vcpu, self.memory, self.cpuid, self.msrs, self.io, stop, self.tell, self.pc.addresses
        )
        self.handlers = self.exits.handlers
        self._unanswered: tuple[Fault, Reply] | None = None  # the fault the guest waits in
        self._last: Fault | None = None
        self._due: int | None = None  # when a device next does something, in nanoseconds
        self._times = REPLY  # how long to wait for a message: until then
        self.serving = False  # has the guest begun to run?
        self.saved: SavedGuest | None = None  # the guest as it was when somebody last asked to save it
        self.parts = parts
        self.interrupts = self._exchange_parts()

    def _exchange_parts(self) -> Interrupts:
        """Have the parts that somebody else wrote do what they are to do. What brings interrupts."""
        parts, pic, vcpu, tell = self.parts, self.pc.pic, self.vcpu, self.part_failed
        if parts.memory is not None:
            self.exits.pager = OutsidePager(parts.memory, tell, self.memory, self.exits.do_instead)
        if parts.devices is not None:
            devices = OutsideDevices(parts.devices, tell, self.pc.ports, self.memory, vcpu, self.msrs.values)
            self.handlers[ExitReason.IO_INSTRUCTION] = devices.port_io
            if devices.answers("rdmsr"):
                self.handlers[ExitReason.RDMSR] = devices.rdmsr
            if devices.answers("wrmsr"):
                self.handlers[ExitReason.WRMSR] = devices.wrmsr
        if parts.interrupts is not None:
            return OutsideInterrupts(parts.interrupts, tell, pic, vcpu)
        return Interrupts(pic, vcpu)

    def part_failed(self, sentence: str) -> None:
        """A part breaks a rule."""
        self.stop(End.PART_FAILED, sentence)

    def _shifted_time(self) -> int:
        return self.l4.time_stamp() + self._ahead

    def load(self, contents: Contents) -> None:
        """Put something into the guest's memory."""
        for address, data in contents:
            self.memory.write(address, data)

    def unknown(self) -> dict[str, dict[str, int]]:
        """What the guest asked for that is not there, and how often: ports, MSRs, CPUID leaves, memory."""
        return {
            "ports": _ways(self.pc.ports.unclaimed),
            "msrs": _ways(self.msrs.unknown),
            "cpuid_leaves": hex_rows(self.cpuid.unknown),
            "memory": _ways(self.memory.unbacked),
        }

    def stop(self, end: End, why: str) -> None:
        """The guest ends here. The first reason given counts."""
        if self.outcome is None:
            self.outcome = Outcome(end, why, self._last.text() if self._last else "")

    def tell(self, text: str) -> None:
        """A line for whoever reads the guest's console, which the guest has not said."""
        for byte in f"\r\nl4lab: {text}\r\n".encode():
            self.transmit(byte)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, start: Start | SavedGuest) -> Outcome:
        """Start the guest, or go on with a saved one, and serve it until it ends."""
        l4 = self.l4
        self._open_console()
        l4.thread_control(SAVE_IRQ, SAVE_IRQ, pager=l4.my_id)
        self.vcpu.configure(FAULT_ITEMS)
        l4.accept(0)
        answer: Answer
        if isinstance(start, SavedGuest):
            answer = self._take_over(start)
        else:
            answer = self.vcpu.id, self.vcpu.launch(start.registers())
        self.serving = True
        try:
            self._serve(answer)
        except PartFailed:
            if self.outcome is None:
                raise
        assert self.outcome is not None
        return self.outcome

    def _serve(self, answer: Answer) -> None:
        """The loop, until the guest ends. It begins with sending this."""
        l4 = self.l4
        while True:
            to, words = answer
            try:
                received = l4.ipc(to, ANY_THREAD, words, self._times)
            except IpcFailed as failed:
                self._after_failure(failed.error)
            else:
                self._take(received)
            if self.outcome is not None:
                return
            self._let_devices_work()
            answer = self._answer()

    def _let_devices_work(self) -> None:
        """Let the devices do what is due by now."""
        if self._due is not None and self.l4.time_stamp() >= self._due:
            self.pc.advance()
            self._look_ahead()

    def _take(self, received: Received) -> None:
        """One message, from the guest or from the console."""
        if received.sender == self.vcpu.id:
            self._last = fault = Fault(received.words)
            reply = Reply()
            self._unanswered = fault, reply
            self._handle(fault, reply)
        elif received.sender == console.CONSOLE_IRQ:
            self._receive()
        elif received.sender == KEYBOARD_IRQ:
            self._take_keys()
        elif received.sender == SAVE_IRQ:
            self.saved = self.save()
            self.l4.send(SAVE_IRQ, Message(INTERRUPT))

    def _handle(self, fault: Fault, reply: Reply) -> None:
        """Have a fault answered, whatever its kind."""
        if is_vm_fault(fault.label):
            self.exits.handle(fault, reply)
            if fault.reason == IO_INSTRUCTION:  # the guest may have set a timer
                self._look_ahead(IoAccess.decode(fault.qualification).port)
        elif is_page_fault(fault.label):
            self.exits.page_fault(fault, reply)
            if self.pc.addresses.devices:
                self._look_ahead()
        else:
            self.stop(End.STOPPED, f"the virtual CPU sent label {fault.label:#x}, which is no fault")

    def _answer(self) -> Answer:
        """What to send now: the answer to the guest's fault, unless it waits for an interrupt that is not there."""
        if self._unanswered is None:
            self.interrupts.kick()
            return NIL_THREAD, None
        fault, reply = self._unanswered
        self.interrupts.deliver(fault, reply)
        if reply.hold and not reply.injects:
            return NIL_THREAD, None
        self._unanswered = None
        return self.vcpu.id, reply.words()

    def _look_ahead(self, port: int | None = None) -> None:
        """Find out when a device next does something of its own accord; until then messages are waited for."""
        due = self.pc.deadline(port)
        if due is not None:
            due -= self._ahead
        if due == self._due:
            return
        self._due = due
        self._times = REPLY if due is None else self._until(due)

    def _until(self, due: int) -> Timeouts:
        """The timeouts of an IPC that waits until then, in nanoseconds of the machine's clock."""
        # As a point in time the word stays right for all answers until then. It has to lie ahead of the clock whenever
        # the kernel reads it, the way into the kernel included.
        now = self.l4.time_stamp() // 1000
        when = min(max(due // 1000, now) + KERNEL_ENTRY_US, now + FARTHEST_POINT - 1)
        return timeouts(ZERO, point(now, when))

    def devices_changed(self) -> None:
        """A part of the monitor's own has written to the guest's devices."""
        self._look_ahead()

    def _after_failure(self, error: IpcErrorWord) -> None:
        """A receive timeout is a device's time; anything else means that there is no guest to serve."""
        if not (error.in_receive and error.code is IpcErrorCode.TIMEOUT):
            self.stop(End.STOPPED, f"the virtual CPU does not take its answer: {error!r}")

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(self) -> SavedGuest:
        """The whole guest as it stands, which goes on afterwards."""
        vcpu = self.vcpu
        vcpu.halt()
        if vcpu.is_sending():  # it has stopped for a reason that only its message tells
            self._take(self.l4.receive(vcpu.id))
        saved = SavedGuest(
            self.memory.size,
            pieces_of(self.memory),
            registers_of(vcpu, self._unanswered[1] if self._unanswered else None),
            self.pc.ports.save(),
            dict(self.msrs.values),
            self.now(),
            self.shadow_paging,
        )
        vcpu.resume()
        return saved

    def _take_over(self, saved: SavedGuest) -> Answer:
        """Put a saved guest into the virtual machine, whose memory holds its memory already, and let it go on."""
        here = {device.name for device in self.pc.ports.devices}
        if differing := here ^ saved.devices.keys():
            raise LabError(
                f"The guest was saved in a PC that differs from this one in: {', '.join(sorted(differing))}. "
                "Give this one the same devices."
            )
        self.pc.ports.restore(saved.devices)
        self.msrs.values |= saved.msrs
        registers = {number: dict(of) for number, of in saved.registers.items()}
        # The time stamp counter that the guest reads without an exit is the machine's: shift it to the guest's.
        ahead = self._ahead & (1 << 64) - 1
        registers[ItemId.OTHERREGS] |= {vm.TSC_OFFSET_LOW: ahead & 0xFFFF_FFFF, vm.TSC_OFFSET_HIGH: ahead >> 32}
        registers[ItemId.EXECCTRL][vm.CPU_CONTROLS] |= CpuControls.USE_TSC_OFFSET
        if self.parts.interrupts is not None:  # it begins with the window shut
            registers[ItemId.EXECCTRL][vm.CPU_CONTROLS] &= ~CpuControls.INTERRUPT_WINDOW_EXITING
        self.interrupts.controls |= CpuControls.USE_TSC_OFFSET
        self.interrupts.window = bool(
            registers[ItemId.EXECCTRL][vm.CPU_CONTROLS] & CpuControls.INTERRUPT_WINDOW_EXITING
        )
        self.vcpu.write(as_registers(registers))
        self._look_ahead()
        self.l4.send(self.vcpu.id, self.vcpu.launch({}))
        return self._answer()

    # -- the console -----------------------------------------------------------------------------------------------

    def _open_console(self) -> None:
        """Have received bytes announced by the machine's serial port, and keys by its keyboard, to this thread."""
        console.listen(self.l4)
        self.l4.thread_control(KEYBOARD_IRQ, KEYBOARD_IRQ, pager=self.l4.my_id)

    def transmit(self, byte: int) -> None:
        """A byte to the console."""
        self.l4.port_out(console.COM1, 1, byte)

    def _receive(self) -> None:
        """Take what has arrived at the machine's serial port to the guest's, and let the next interrupt come."""
        self.pc.uart.receive(console.typed(self.l4))
        self._look_ahead()

    def _take_keys(self) -> None:
        """Take what was pressed on the machine's keyboard to the guest's."""
        codes = bytearray()
        while self.l4.port_in(KEYS_STATUS, 1) & 1:
            codes.append(self.l4.port_in(KEYS, 1))
        self.l4.send(KEYBOARD_IRQ, Message(INTERRUPT))
        self.pc.keyboard.press(bytes(codes))


class GuestRun:
    """One run of a guest's program, which the rig starts as a hosted thread: what running changes is here."""

    def __init__(self, program: GuestProgram) -> None:
        self.program = program
        self.monitor: Monitor | None = None  # made anew at each reset of the guest
        self.outcome: Outcome | None = None  # how the guest ended; None while it runs

    def __call__(self, l4: L4) -> None:
        """The program."""
        self.program.run(l4, self)


@mypyc_attr(allow_interpreted_subclasses=True)
class GuestProgram:
    """How to run a guest: plain data, from which any number of runs can be made."""

    def __init__(
        self,
        contents: Sequence[tuple[int, bytes]],
        start: Start | SavedGuest,
        memory_size: int,
        attach: Callable[[Monitor], None] | None = None,
    ) -> None:
        """`attach` gives a monitor what this guest needs of it beyond the usual; data, too: see `realmode.LabBios`."""
        self.contents = contents
        self.start = start
        self.memory_size = memory_size
        self.attach = attach
        self.hardware = PLAIN  # of the guest's PC; may be changed before the program runs
        self.parts = THE_MONITORS_OWN  # of the monitor, and what takes their place; this, too

    @classmethod
    def going_on(cls, saved: SavedGuest, disk: Image | None = None) -> GuestProgram:
        """A program that goes on with a saved guest; one that had a disk needs the same again."""
        program = cls(saved.memory, saved, saved.memory_size)
        program.hardware = Hardware(saved.shadow_paging, disk)
        return program

    def run(self, l4: L4, run: GuestRun) -> None:
        """Run the guest until it ends."""
        try:
            self._lives(l4, run)
        except PartFailed as failed:  # before there was a monitor to say so
            run.outcome = Outcome(End.PART_FAILED, str(failed))

    def _lives(self, l4: L4, run: GuestRun) -> None:
        disk = None if self.hardware.disk is None else Disk(self.hardware.disk)
        clock = self.start.clock if isinstance(self.start, SavedGuest) else None
        monitor = self._life(run, self._monitor(l4, disk, clock=clock))
        for _ in range(self.hardware.restarts):
            if monitor.outcome is None or not monitor.outcome.end.is_reset:
                break
            l4.thread_control(monitor.vcpu.id, space=NIL_THREAD)  # deletes it, and the virtual machine with it
            monitor = self._life(run, self._monitor(l4, disk, memory=monitor.memory))
        run.outcome = monitor.outcome

    def _monitor(
        self, l4: L4, disk: Disk | None, memory: GuestMemory | None = None, clock: int | None = None
    ) -> Monitor:
        size, shadow, parts = self.memory_size, self.hardware.shadow_paging, self.parts
        if parts.loop is None:
            return Monitor(l4, size, shadow_paging=shadow, disk=disk, memory=memory, clock=clock, parts=parts)
        from l4lab.user.monitor.outside_loop import LoopedMonitor

        return LoopedMonitor(l4, size, shadow_paging=shadow, disk=disk, memory=memory, clock=clock, parts=parts)

    def _life(self, run: GuestRun, monitor: Monitor) -> Monitor:
        """One life of the guest, from power-on or reset on. What it does not load keeps what it holds, as RAM does."""
        run.monitor = monitor
        monitor.load(self.contents)
        if self.attach is not None:
            self.attach(monitor)
        monitor.run(self.start)
        return monitor


def _ways(counts: Mapping[tuple[int, str], int]) -> dict[str, int]:
    """How often each number was used in each way."""
    found: dict[str, int] = {}
    for way in sorted({way for _, way in counts}):
        rows = hex_rows({number: times for (number, each), times in counts.items() if each == way})
        found |= {f"{way} {row}": times for row, times in rows.items()}
    return found
