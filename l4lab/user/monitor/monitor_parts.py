# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a monitor that can be exchanged before its guest starts, and what each of them has to do.

A part is an object of a class that derives from one here: `GuestPager`, `GuestDevices`, `InterruptDelivery`,
`ServingLoop`. It is given what it needs and no more; the other classes say what that is. `MonitorParts` takes parts in
the place of the monitor's own. What is said here as a rule is checked: who breaks one ends the guest's run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from l4lab.abi.ids import ThreadId
from l4lab.abi.vm import ItemId
from l4lab.user.l4 import Received
from l4lab.user.monitor.fault import Fault, Reply

# -- memory ------------------------------------------------------------------------------------------------------------


class GuestRam(ABC):
    """The guest's memory, for a pager. Guest-physical addresses, unless something else is said."""

    size: int  # bytes, from address 0; what lies beyond is empty
    ones: int  # the monitor's own address of a page of ones: what a PC reads where nothing is

    @abstractmethod
    def at(self, address: int) -> int:
        """The monitor's own address of the guest's memory at `address`."""

    @abstractmethod
    def read(self, address: int, length: int) -> bytes:
        """Guest memory."""

    @abstractmethod
    def write(self, address: int, data: bytes) -> None:
        """Write guest memory."""

    @abstractmethod
    def has_device(self, address: int, size: int) -> bool:
        """Has a device its registers among these addresses? There nothing may be mapped."""

    @abstractmethod
    def do(self, fault: Fault, reply: Reply) -> None:
        """Do the instruction in the guest's stead, because no page would do what is right: a device has to be told, or
        nothing is there that could be written. It completes the reply."""


@mypyc_attr(allow_interpreted_subclasses=True)
class GuestPager(ABC):
    """The guest's memory is what its monitor maps. The pager is made with the `GuestRam`."""

    @abstractmethod
    def page_fault(self, fault: Fault, reply: Reply) -> None:
        """The guest touched guest-physical memory that is not mapped, or wrote to what is mapped read-only.

        `fault.words[1]` is the address, the rights wanted are in `fault.label`. Either `reply.typed` becomes map items
        of which one covers the address, and EIP stays, because the CPU executes the instruction again; an event whose
        delivery the fault cut short is delivered again (`reply.resume_delivery`). Or the instruction is done (`do`).
        """


# -- interrupts --------------------------------------------------------------------------------------------------------


class InterruptRequests(ABC):
    """The guest's interrupt controller, for who brings its interrupts to the guest."""

    @abstractmethod
    def pending(self) -> bool:
        """Does an interrupt wait?"""

    @abstractmethod
    def acknowledge(self) -> int:
        """Take the interrupt that is first; its vector. Only what is delivered at once may be taken."""


class CpuReach(ABC):
    """The guest's registers while it runs, by ExchangeRegisters."""

    @property
    @abstractmethod
    def controls(self) -> int:
        """The CPU-based controls, apart from the interrupt window (`CpuControls.INTERRUPT_WINDOW_EXITING`)."""

    @abstractmethod
    def read(self, *items: ItemId) -> Mapping[ItemId, Mapping[int, int]]:
        """All registers of some items, whatever the guest is doing."""

    @abstractmethod
    def write(self, registers: Mapping[ItemId, Mapping[int, int]]) -> None:
        """Set registers; a guest that runs goes on with them."""

    @abstractmethod
    def is_sending(self) -> bool:
        """Has it stopped with a fault that the monitor has not received yet? Then that is the next message."""


@mypyc_attr(allow_interpreted_subclasses=True)
class InterruptDelivery(ABC):
    """Brings interrupts to a guest that may not be disturbed at every moment. Made with the `InterruptRequests` and the
    `CpuReach`.

    Rules of both methods: an event is `external_interrupt(vector)` of the vector acknowledged for it; none goes to
    a guest whose IF is 0, nor right behind STI or MOV SS, nor over another event. The interrupt window is open when an
    interrupt still waits, and not otherwise: the guest then exits as soon as it can be interrupted.
    """

    @abstractmethod
    def deliver(self, fault: Fault, reply: Reply) -> None:
        """At the end of handling a fault, while the guest waits for this reply: add what a waiting interrupt needs."""

    @abstractmethod
    def kick(self) -> None:
        """The guest runs, and a device may have asked for an interrupt: deliver it by `CpuReach.write`, or open the
        window there. If the guest is sending, its fault comes next, and there is nothing to do."""


# -- devices -----------------------------------------------------------------------------------------------------------


class GuestPorts(ABC):
    """The ports of the guest's PC. Sizes are 1, 2 or 4 bytes."""

    @abstractmethod
    def read(self, port: int, size: int) -> int:
        """IN."""

    @abstractmethod
    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""


class LinearMemory(ABC):
    """The guest's memory by linear addresses: through the guest's own page tables, as its instructions see it.

    Raises `paging.GuestPageFault`, with `address` and `error_code`, if those do not allow the access; then nothing has
    been read or written.
    """

    @abstractmethod
    def read(self, linear: int, size: int) -> bytes:
        """Read memory."""

    @abstractmethod
    def write(self, linear: int, data: bytes) -> None:
        """Write memory."""

    @abstractmethod
    def check_write(self, linear: int, size: int) -> None:
        """May the guest write there? To be asked before a device is read for it."""


@mypyc_attr(allow_interpreted_subclasses=True)
class GuestDevices(ABC):
    """Does the instructions by which a guest reaches its devices and its model-specific registers. Made with the
    `GuestPorts`, the `LinearMemory`, and the values of the MSRs by number.

    Rules of all methods: the instruction is done, and EIP goes on by its length (`reply.skip`). Or it faults
    (`reply.raise_exception`, `reply.raise_page_fault`), and EIP stays. Or it is a repetition of which a part was done:
    EIP stays, and ECX says what is left.
    """

    @abstractmethod
    def port_io(self, fault: Fault, reply: Reply) -> None:
        """IN, OUT, INS or OUTS: `IoAccess.decode(fault.qualification)` says which. Of a string instruction `fault.info`
        is the linear address of the first element. How wide index and count are the exit does not say: where the guest
        has 16-bit addresses or prefixes, that takes reading the instruction."""

    def rdmsr(self, fault: Fault, reply: Reply) -> None:
        """RDMSR: number in ECX, value to EDX:EAX. A part without this method leaves it to the monitor's own."""
        raise NotImplementedError

    def wrmsr(self, fault: Fault, reply: Reply) -> None:
        """WRMSR: number in ECX, value from EDX:EAX. A part without this method leaves it to the monitor's own."""
        raise NotImplementedError


# -- the loop ----------------------------------------------------------------------------------------------------------


class GuestToServe(ABC):
    """What a loop may do for its guest. Times are nanoseconds of the machine's clock."""

    cpu: ThreadId  # who sends the guest's faults, and gets the answers
    first: tuple[int, Sequence[int] | None]  # whom to send what, to begin with; (NIL_THREAD, None): nobody anything

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Has the guest ended?"""

    @abstractmethod
    def exchange(self, to: int, words: Sequence[int] | None, until: int | None = None) -> Received | None:
        """Send words to the guest's CPU, or nothing to NIL_THREAD; then wait for a message. None if there is none until
        `until`. A fault must be answered by the next exchange, unless its reply says `hold` and injects nothing."""

    @abstractmethod
    def answer(self, fault: Fault, reply: Reply) -> None:
        """Have the other parts write the reply to a fault: an exit, or a page fault."""

    @abstractmethod
    def deliver(self, fault: Fault, reply: Reply) -> None:
        """Add an interrupt to the reply if one waits. A reply that is held needs that whenever a message has come."""

    @abstractmethod
    def kick(self) -> None:
        """Interrupt the guest while it runs, if an interrupt waits."""

    @abstractmethod
    def other(self, received: Received) -> None:
        """Take a message that is not the guest's: the console's, the keyboard's, the button's for saving."""

    @abstractmethod
    def due(self) -> int | None:
        """When a device next does something of its own accord; None for never."""

    @abstractmethod
    def advance(self) -> None:
        """Let the devices do what is due by now."""


@mypyc_attr(allow_interpreted_subclasses=True)
class ServingLoop(ABC):
    """Serves one guest. Made with nothing."""

    @abstractmethod
    def run(self, guest: GuestToServe) -> None:
        """Answer the guest's faults, and bring it its interrupts and its input. Come back when it has ended."""


# -- all of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MonitorParts:
    """What to make the parts of a monitor with; None: with the monitor's own. They are made anew at each reset."""

    memory: Callable[[GuestRam], GuestPager] | None = None
    interrupts: Callable[[InterruptRequests, CpuReach], InterruptDelivery] | None = None
    devices: Callable[[GuestPorts, LinearMemory, MutableMapping[int, int]], GuestDevices] | None = None
    loop: Callable[[], ServingLoop] | None = None


THE_MONITORS_OWN = MonitorParts()
