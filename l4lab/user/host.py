# SPDX-License-Identifier: GPL-2.0-or-later
"""A root task that runs several virtual machines at once, and native programs beside them.

Only the root task may create threads and spaces. So it makes the virtual machines, and each monitor, an ordinary
program in a space of its own, becomes the pager of the virtual CPUs that it serves; from then on it needs nobody's
leave. The root task stays for three things: it is the console, each line with the name of whom it comes from, and what
is typed there is one guest's, the first one's until Ctrl-A n gives the keyboard to the next; it
deletes what has ended; and it hands out the page that guests share.

    sigma0 <--- memory --- monitor "left"  <--- faults --- VM "left"   (one thread for each virtual CPU)
                              |  ^
              serial line  by | IPC                                     root task: console, deletes what ended
                              v  |
    sigma0 <--- memory --- monitor "right" <--- faults --- VM "right"   native program

Lives here: the root task, and what it and the monitors say to each other. What a monitor does is in `monitor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from l4lab.abi.calls import KIP_ENTRIES, TimeControl
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ROOT_TASK, SIGMA0, USER_BASE, ThreadId, global_id
from l4lab.abi.message import Acceptor, IpcErrorCode, Message
from l4lab.abi.protocols import any_page, is_page_fault, sigma0_granted, sigma0_request, thread_start
from l4lab.abi.time import NEVER, period
from l4lab.errors import LabError
from l4lab.user import console
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import RAM_SIZE, FlatGuest
from l4lab.user.keyboard import SharedKeyboard
from l4lab.user.l4 import L4, IpcFailed, Program, Received
from l4lab.user.monitor.guest_cpu import MOST_CPUS, GuestCpu
from l4lab.user.monitor.guest_memory import PAGE, WINDOW, GuestMemory
from l4lab.user.monitor.link import COM2_IRQ, MOST_BYTES, LinkedUart, link_bytes, link_message
from l4lab.user.monitor.outcome import Outcome
from l4lab.user.monitor.start import Start
from l4lab.user.monitor.start_flat import start_of
from l4lab.user.monitor.together import ServedGuest, Together

FIRST_THREAD: Final = USER_BASE + 16
SUPERPAGE: Final = 4 << 20

# Of the root task and the monitors: where things are in their spaces. A monitor's window on its guest begins higher.
KIP_AREA, UTCB_AREA = Fpage.at(0xBFF0_0000), Fpage.at(0xBF00_0000)
PROGRAMS: Final = 0x0040_0000  # native programs lie here, one behind the other, each at the same place in its own space
PROGRAM_LOG2: Final = 14  # bytes of one, its stack at the end included
SHARED: Final = 0x0080_0000  # the page that guests share

# What monitors and native programs say to the root task; MR1 is the guest's number under its monitor, or 0.
PUT: Final = 0x101  # MR2: a byte for the console
ENDED: Final = 0x102  # is answered by a monitor's guest's having been deleted
SHARE: Final = 0x103  # asks for the shared page

MONITOR_PRIORITY, GUEST_PRIORITY = 150, 100
TRY_AGAIN: Final = period(1000)  # to take what was typed to a monitor that was busy
# How long to try. A monitor with several guests always has messages to receive, so we have to queue among them; but it
# may be waiting for us to take its guest's output.
LISTEN: Final = period(100)


@dataclass(frozen=True, slots=True)
class VmPlan:
    """A virtual machine to be made: what is in its memory, and how it starts."""

    name: str
    contents: Sequence[tuple[int, bytes]]
    start: Start
    memory_size: int
    cpus: int = 1
    shadow_paging: bool = False
    shares: bool = False  # does it have the page that guests share?
    time_slice_us: int | None = None  # of each virtual CPU, if not the usual

    @classmethod
    def flat(cls, name: str, guest: FlatGuest, shadow_paging: bool = False, cpus: int = 1) -> VmPlan:
        """A virtual machine for one of our own small systems."""
        return cls(name, guest.pieces, start_of(guest), RAM_SIZE, cpus, shadow_paging)


@dataclass(frozen=True, slots=True)
class NativePlan:
    """A native program to be run beside: assembly text. It may use the names of system calls, ROOT, PUT and ENDED."""

    name: str
    source: str


@dataclass(slots=True)
class _Party:
    """Whom the root task serves: a monitor, or a native program."""

    names: Sequence[str]  # of its guests, or its own
    threads: list[list[ThreadId]]  # the virtual CPUs of each guest
    left: int  # guests that run
    lines: list[bytearray] = field(init=False)  # the unfinished line of each

    def __post_init__(self) -> None:
        self.lines = [bytearray() for _ in self.names]


class Host:
    """What there is to run: plain data. `monitors`: the guests of each; `links`: pairs of guests whose second serial
    ports are joined."""

    def __init__(
        self,
        monitors: Sequence[Sequence[VmPlan]],
        links: Iterable[tuple[str, str]] = (),
        natives: Sequence[NativePlan] = (),
    ) -> None:
        self.monitors = monitors
        self.natives = natives
        self.links = tuple(links)
        self.peers: dict[str, str] = {}
        for one, other in self.links:
            self.peers |= {one: other, other: one}
        numbers = iter(range(FIRST_THREAD, FIRST_THREAD + 10_000))
        self.places: dict[str, tuple[ThreadId, int]] = {}  # by a guest's name: its monitor, and its number there
        self.cpus: dict[str, list[ThreadId]] = {}
        self.monitor_ids: list[ThreadId] = []
        for plans in monitors:
            monitor = global_id(next(numbers))
            self.monitor_ids.append(monitor)
            for number, plan in enumerate(plans):
                self._check(plan)
                self.places[plan.name] = monitor, number
                self.cpus[plan.name] = [global_id(next(numbers)) for _ in range(plan.cpus)]
        self.native_ids = [global_id(next(numbers)) for _ in natives]
        for name in self.peers:
            if name not in self.places:
                raise LabError(f"no guest is called {name!r}. Link those that there are: {', '.join(self.places)}.")

    def _check(self, plan: VmPlan) -> None:
        if plan.name in self.places:
            raise LabError(f"two guests are called {plan.name!r}. Give each a name of its own.")
        if not 1 <= plan.cpus <= MOST_CPUS:
            raise LabError(f"a guest cannot have {plan.cpus} CPUs. Give it 1 to {MOST_CPUS}.")

    @property
    def memory_size(self) -> int:
        """Bytes of memory that all guests and programs take."""
        guests = sum(_whole(plan.memory_size) + PAGE for plans in self.monitors for plan in plans)
        return guests + (len(self.natives) << PROGRAM_LOG2) + PAGE


class HostRun:
    """One run of a host: the program of the root task, those of the monitors, and what running changes."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.outcomes: dict[str, Outcome] = {}  # how guests have ended
        self.programs: dict[ThreadId, Program] = {}  # of the monitors: what the rig has to know
        for monitor, plans in zip(host.monitor_ids, host.monitors, strict=True):
            self.programs[monitor] = self._monitor(plans)

    # -- the root task -------------------------------------------------------------------------------------------------

    def __call__(self, l4: L4) -> None:
        """The program of the root task."""
        parties: dict[ThreadId, _Party] = {}
        for monitor, plans in zip(self.host.monitor_ids, self.host.monitors, strict=True):
            _create(l4, monitor, MONITOR_PRIORITY)
            for plan in plans:
                self._create_vm(l4, plan, monitor)
            names = [plan.name for plan in plans]
            parties[monitor] = _Party(names, [self.host.cpus[name] for name in names], len(plans))
        if any(plan.shares for plans in self.host.monitors for plan in plans):
            _take(l4, SHARED, PAGE.bit_length() - 1)
        starts = {monitor: thread_start(0, 0) for monitor in parties}
        for number, (id_, native) in enumerate(zip(self.host.native_ids, self.host.natives, strict=True)):
            starts[id_] = _load(l4, PROGRAMS + (number << PROGRAM_LOG2), native)
            _create(l4, id_, GUEST_PRIORITY)
            parties[id_] = _Party([native.name], [[]], 1)
        for id_, start in starts.items():
            l4.send(id_, start)
        self._serve(l4, parties)

    def _create_vm(self, l4: L4, plan: VmPlan, monitor: ThreadId) -> None:
        first, *further = self.host.cpus[plan.name]
        vcpu = GuestCpu.create(l4, first, GUEST_PRIORITY, plan.shadow_paging, monitor)
        for number, id_ in enumerate(further, start=1):
            vcpu.join(id_, number, monitor, GUEST_PRIORITY)
        if plan.time_slice_us is not None:
            time = TimeControl.make(time_slice=period(plan.time_slice_us), total_quantum=NEVER)
            for id_ in (first, *further):
                l4.schedule(id_, time=time)

    def _serve(self, l4: L4, parties: dict[ThreadId, _Party]) -> None:
        """Until all have ended."""
        console.listen(l4)
        keyboard = self._keyboard = SharedKeyboard(list(self.host.places))
        to, reply = NIL_THREAD, None
        while True:
            until = TRY_AGAIN if keyboard.waiting else NEVER
            try:
                received = l4.wait(until) if reply is None else l4.reply_wait(to, reply, until)
            except IpcFailed:  # nobody waits for the reply any more, or it is time to try again
                reply = None
                self._pass_on(l4, keyboard)
                continue
            to = received.sender
            party = parties.get(to)
            reply = None if party is None else self._answer(l4, received, party)
            if party is not None and party.left == 0:
                for id_ in (to, *(id_ for threads in party.threads for id_ in threads)):
                    l4.thread_control(id_, space=NIL_THREAD)
                del parties[to]
                if not parties:
                    console.stop_listening(l4)
                    return
                reply = None
            if to == console.CONSOLE_IRQ and keyboard.type(console.typed(l4)):
                console.say(l4, f"the keyboard is {keyboard.owner}'s\r")
            self._pass_on(l4, keyboard)

    def _pass_on(self, l4: L4, keyboard: SharedKeyboard) -> None:
        """What was typed goes to the monitors, as far as they listen."""
        for name, data in list(keyboard.waiting.items()):
            monitor, number = self.host.places[name]
            if _carry(l4, monitor, link_message(number, bytes(data[:MOST_BYTES])), LISTEN):
                del data[:MOST_BYTES]
            if not data:
                del keyboard.waiting[name]

    def _answer(self, l4: L4, received: Received, party: _Party) -> Message | None:
        """The answer to a message of a monitor or a native program; None for none."""
        number, byte = (*received.untyped[:2], 0, 0)[:2]
        if is_page_fault(received.label):
            return self._page(l4, received, party)
        if number >= len(party.names):
            return None
        if received.label == PUT:
            _put(l4, party, number, byte & 0xFF)
        elif received.label == SHARE:
            return Message().append_map(Fpage.at(SHARED))
        elif received.label == ENDED:
            self._bury(l4, party, number)
            return Message()
        return None

    def _bury(self, l4: L4, party: _Party, number: int) -> None:
        """A guest has ended: delete its virtual machine."""
        if party.lines[number]:
            _put(l4, party, number, ord("\n"))
        for id_ in party.threads[number]:
            l4.thread_control(id_, space=NIL_THREAD)
        party.threads[number] = []
        if party.names[number] in self.host.places:
            self._keyboard.forget(party.names[number])
        party.left = max(party.left - 1, 0)

    def _page(self, l4: L4, received: Received, party: _Party) -> Message | None:
        """A native program gets its own piece of memory; one that touches anything else ends."""
        address = received.untyped[0]
        if received.sender in self.host.native_ids:
            own = Fpage.at(PROGRAMS + (self.host.native_ids.index(received.sender) << PROGRAM_LOG2), PROGRAM_LOG2)
            if own.covers(address):
                return Message().append_map(own, own.base)
        for byte in f"touched {address:#x}, where it has no memory\n".encode():
            _put(l4, party, 0, byte)
        party.left = 0
        return None

    # -- a monitor -----------------------------------------------------------------------------------------------------

    def _monitor(self, plans: Sequence[VmPlan]) -> Program:
        """The program of the monitor that has these guests."""

        def program(l4: L4) -> None:
            window, guests = WINDOW, []
            for number, plan in enumerate(plans):
                guests.append(self._guest(l4, plan, number, window))
                window += _whole(plan.memory_size) + SUPERPAGE

            def ended(guest: ServedGuest) -> None:
                assert guest.outcome is not None
                if guest.name in lines:
                    lines[guest.name].close()
                self.outcomes[guest.name] = guest.outcome
                l4.call(ROOT_TASK, Message(ENDED).append(guests.index(guest)))

            together = Together(l4, guests, ended)
            lines = self._join_lines(l4, together, guests)
            together.run()

        return program

    def _guest(self, l4: L4, plan: VmPlan, number: int, window: int) -> ServedGuest:
        def put(byte: int) -> None:
            l4.send(ROOT_TASK, Message(PUT).append(number, byte))

        memory = GuestMemory.allocate(l4, plan.memory_size, window)
        guest = ServedGuest(l4, plan.name, memory, self.host.cpus[plan.name], put)
        if plan.shares:
            shared = window - SUPERPAGE
            l4.accept(Acceptor.of(Fpage.at(shared)))
            l4.call(ROOT_TASK, Message(SHARE).append(number))
            for cpu in guest.cpus:
                cpu.shared = shared
        guest.load(plan.contents)
        guest.start(plan.start)
        return guest

    def _join_lines(self, l4: L4, together: Together, guests: Sequence[ServedGuest]) -> dict[str, LinkedUart]:
        """Give each linked guest its second serial port, and have what arrives for it taken there."""
        lines: dict[str, LinkedUart] = {}

        def arrived(line: int, data: bytes) -> None:
            if line < len(guests) and (name := guests[line].name) in lines:
                lines[name].receive(data)
                guests[line].look_again()

        def listen(received: Received) -> None:
            arrived(*link_bytes(received.untyped))

        def port(guest: ServedGuest, monitor: ThreadId, line: int) -> LinkedUart:
            def carry(data: bytes, timeout: int) -> bool:
                if monitor == l4.my_id:
                    arrived(line, data)
                    return True
                return _carry(l4, monitor, link_message(line, data), timeout)

            return LinkedUart(l4.time_stamp, guest.pc.pic.line(COM2_IRQ), carry)

        def typed(received: Received) -> None:
            number, data = link_bytes(received.untyped)
            guests[number].pc.uart.receive(data)
            guests[number].look_again()

        together.listeners[ROOT_TASK] = typed
        for guest in guests:
            if guest.name in self.host.peers:
                monitor, line = self.host.places[self.host.peers[guest.name]]
                lines[guest.name] = port(guest, monitor, line)
                guest.pc.attach(lines[guest.name])
                together.listeners[monitor] = listen
        return lines


def _whole(size: int) -> int:
    return -(-size // SUPERPAGE) * SUPERPAGE


def _create(l4: L4, id_: ThreadId, priority: int) -> None:
    """A thread in a space of its own, with the caller as its pager; it waits to be started."""
    me = l4.my_id
    l4.thread_control(id_, id_, me, utcb_location=UTCB_AREA.base)
    l4.space_control(id_, 0, KIP_AREA, UTCB_AREA)
    l4.schedule(id_, priority=priority)
    l4.thread_control(id_, id_, me, pager=me)


def _take(l4: L4, address: int, log2: int) -> None:
    """Have sigma0 map memory of its choice at an address."""
    l4.accept(Acceptor.of(Fpage.at(address, log2)))
    granted = sigma0_granted(l4.call(SIGMA0, sigma0_request(any_page(log2))).words)
    l4.accept(0)
    if granted.is_nil:
        raise LabError("The machine has no memory left for all these programs. Give it more, or the guests less.")


def _load(l4: L4, address: int, native: NativePlan) -> Message:
    """Put a native program into memory; the message that starts it."""
    kip = l4.kip()
    names: Mapping[str, int] = {call.title: KIP_AREA.base + kip.entry(call) for call in KIP_ENTRIES}
    code = assemble(native.source, address, constants={**names, "ROOT": ROOT_TASK, "PUT": PUT, "ENDED": ENDED}).code
    size = 1 << PROGRAM_LOG2
    if len(code) > size - PAGE:
        raise LabError(f"The program {native.name!r} has {len(code)} bytes. Make it fit into {size - PAGE}.")
    _take(l4, address, PROGRAM_LOG2)
    l4.store(address, code)
    return thread_start(address, address + size)


def _put(l4: L4, party: _Party, number: int, byte: int) -> None:
    """A byte for the console: lines go out whole, with a name in front."""
    line = party.lines[number]
    if byte == ord("\r"):
        return
    line.append(byte)
    if byte == ord("\n"):
        for each in f"{party.names[number]}: ".encode() + line.replace(b"\n", b"\r\n"):
            l4.port_out(console.COM1, 1, each)
        line.clear()


def _carry(l4: L4, monitor: ThreadId, message: Message, timeout: int) -> bool:
    """Send to another monitor if it waits for a message in time. What is for one that is gone, is gone too."""
    try:
        l4.send(monitor, message, timeout)
    except IpcFailed as failed:
        return failed.error.code is not IpcErrorCode.TIMEOUT
    return True
