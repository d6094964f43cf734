# SPDX-License-Identifier: GPL-2.0-or-later
"""Several guests under one monitor thread, and guests with several virtual CPUs.

All virtual CPUs send their faults to the one thread, which tells them by their senders. Lives here: the loop of many,
and what a guest's further CPUs are. The loop of one guest with one CPU, and all that is done for it, is in `monitor`.

A guest starts with one CPU running. It starts the others itself: it writes to port START_PORT + 4 n, 32 bits wide,
where CPU n is to begin, in protected mode with flat segments, paging and interrupts off, and n in EAX. Reading
START_PORT tells how many CPUs there are. Interrupts of devices go to CPU 0 only; HLT parks any other for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from l4lab.abi.fpage import Fpage
from l4lab.abi.frame import EAX
from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId
from l4lab.abi.message import MapItem
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.time import Timeouts
from l4lab.abi.vm import ExitReason, ItemId
from l4lab.devices.device import Device
from l4lab.user.l4 import L4, REPLY, IpcFailed, Received
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_cpu import MOST_CPUS, GuestCpu
from l4lab.user.monitor.guest_memory import PAGE, GuestMemory
from l4lab.user.monitor.link import SHARED_PAGE
from l4lab.user.monitor.monitor import Answer, Monitor
from l4lab.user.monitor.outcome import End
from l4lab.user.monitor.start import FAULT_ITEMS, Start, flat_code, flat_data
from l4lab.words import hex32

START_PORT: Final = 0x4A0
CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10  # what a further CPU finds in its segment registers

Listener = Callable[[Received], None]


class ServedCpu(Monitor):
    """One CPU of a guest that is served beside others: what the common loop needs of a monitor.

    `shared`: where in the monitor's space the page is that the guest shares with others, if it does.
    """

    shared: int | None = None

    def take(self, received: Received) -> None:
        """A message of this CPU."""
        address = received.words[1] & -PAGE
        if address == SHARED_PAGE and self.shared is not None and is_page_fault(received.label):
            self._last, reply = Fault(received.words), Reply()
            reply.typed = [MapItem.at(SHARED_PAGE), Fpage.at(self.shared)]
            reply.resume_delivery(self._last)
            self._unanswered = self._last, reply
        else:
            self._take(received)

    def answer(self) -> Answer:
        """What to send to it now, if anything."""
        return self._answer()

    def lost(self, failed: IpcFailed) -> None:
        """It did not take its answer."""
        self._after_failure(failed.error)


class ServedGuest(ServedCpu):
    """A guest, and its first CPU. `name` is for people; `put` takes the bytes of its console."""

    def __init__(
        self, l4: L4, name: str, memory: GuestMemory, cpus: Sequence[ThreadId], put: Callable[[int], None]
    ) -> None:
        self.name = name
        self._put = put
        self._begin: Sequence[int] | None = None
        super().__init__(l4, memory.size, memory=memory, vcpu=GuestCpu(l4, cpus[0]))
        further = [FurtherCpu(self, GuestCpu(l4, id_), number) for number, id_ in enumerate(cpus[1:], start=1)]
        self.cpus: tuple[ServedCpu, ...] = (self, *further)
        if further:
            self.pc.attach(StartPort(further))

    def start(self, start: Start) -> None:
        """Have it begin with these registers when it is served."""
        for cpu in self.cpus:
            cpu.vcpu.configure(FAULT_ITEMS)
        self._begin = self.vcpu.launch(start.registers())

    def answer(self) -> Answer:
        if self._begin is not None:
            words, self._begin = self._begin, None
            return self.vcpu.id, words
        return self._answer()

    def transmit(self, byte: int) -> None:
        self._put(byte)

    @property
    def due(self) -> tuple[int, Timeouts] | None:
        """When a device next does something, in nanoseconds, and the timeouts of an IPC that waits until then."""
        return None if self._due is None else (self._due, self._times)

    def advance(self) -> None:
        """Let the devices do what is due."""
        if self._due is not None and self.l4.time_stamp() >= self._due:
            self.pc.advance()
            self._look_ahead()

    def look_again(self, port: int | None = None) -> None:
        """Something has happened to a device."""
        self._look_ahead(port)


class FurtherCpu(ServedCpu):
    """Another CPU of a guest: it shares memory and devices with the first, and has no interrupt controller."""

    def __init__(self, guest: ServedGuest, vcpu: GuestCpu, number: int) -> None:
        self.guest = guest
        self.number = number
        self.started = False
        self._begin: Sequence[int] | None = None
        super().__init__(guest.l4, guest.memory.size, memory=guest.memory, vcpu=vcpu)
        self.io.ports = guest.pc.ports
        self.memory.devices = self.exits.devices = self.exits.emulator.bus = guest.pc.addresses
        self.handlers[ExitReason.HLT] = self._park

    def start(self, address: int) -> None:
        """Have it begin at an address; it can be done once."""
        if self.started:
            return
        self.started = True
        registers = Start(address, flat_code(CODE_SELECTOR), flat_data(DATA_SELECTOR)).registers()
        registers[ItemId.GPREGS][EAX] = self.number
        self._begin = self.vcpu.launch(registers)

    def answer(self) -> Answer:
        if self._begin is not None:
            words, self._begin = self._begin, None
            return self.vcpu.id, words
        return self._answer()

    def stop(self, end: End, why: str) -> None:
        """One CPU's end is the guest's."""
        at = f" It was at {hex32(self._last.eip)}." if self._last else ""
        self.guest.stop(end, f"CPU {self.number}: {why}.{at}")

    def _park(self, fault: Fault, reply: Reply) -> None:
        """HLT: nothing will wake it."""
        reply.hold = True

    def _look_ahead(self, port: int | None = None) -> None:
        """The devices that it has touched are those of the first CPU."""
        self.guest.look_again(port)


class StartPort(Device):
    """Starts the further CPUs of a guest where it says."""

    name = "start port"
    ports = (range(START_PORT, START_PORT + 4 * MOST_CPUS),)
    widest = 4

    def __init__(self, further: Sequence[FurtherCpu]) -> None:
        self.further = further

    def read(self, port: int, size: int) -> int:
        return 1 + len(self.further) if port == START_PORT else 0

    def write(self, port: int, size: int, value: int) -> None:
        number, rest = divmod(port - START_PORT, 4)
        if size == 4 and rest == 0 and 1 <= number <= len(self.further):
            self.further[number - 1].start(value)


class Together:
    """Serves guests until all have ended. `ended` is told of each, after which it is not served any more.

    `listeners`: who else may send messages to this thread, and who takes them.
    """

    def __init__(self, l4: L4, guests: Sequence[ServedGuest], ended: Callable[[ServedGuest], None]) -> None:
        self.l4 = l4
        self.guests = list(guests)
        self.listeners: dict[ThreadId, Listener] = {}
        self._ended = ended
        self._cpus = {cpu.vcpu.id: cpu for guest in guests for cpu in guest.cpus}

    def run(self) -> None:
        """The loop."""
        self.l4.accept(0)
        while self.guests:
            received = self._exchange([answer for cpu in self._cpus.values() if (answer := cpu.answer())[0]])
            if received is not None:
                sender = received.sender
                if sender in self._cpus:
                    self._cpus[sender].take(received)
                elif sender in self.listeners:
                    self.listeners[sender](received)
            for guest in self.guests:
                guest.advance()
            self._bury()

    def _exchange(self, answers: Sequence[Answer]) -> Received | None:
        """Send the answers, the last together with waiting for the next message; None if there was none in time."""
        for to, words in answers[:-1]:
            try:
                self.l4.ipc(to, NIL_THREAD, words, REPLY)
            except IpcFailed as failed:
                self._cpus[ThreadId(to)].lost(failed)
        to, words = answers[-1] if answers else (NIL_THREAD, None)
        _, times = min((due for guest in self.guests if (due := guest.due) is not None), default=(0, REPLY))
        try:
            return self.l4.ipc(to, ANY_THREAD, words, times)
        except IpcFailed as failed:
            if not failed.error.in_receive:
                self._cpus[ThreadId(to)].lost(failed)
            return None

    def _bury(self) -> None:
        """Serve those no more that have ended."""
        for guest in [guest for guest in self.guests if guest.outcome is not None]:
            self.guests.remove(guest)
            for cpu in guest.cpus:
                del self._cpus[cpu.vcpu.id]
            self._ended(guest)
