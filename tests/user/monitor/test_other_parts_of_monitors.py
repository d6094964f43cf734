# SPDX-License-Identifier: GPL-2.0-or-later
"""Other parts in the place of a monitor's own: right ones carry a guest, wrong ones are found out and named."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l4lab.abi import vm
from l4lab.abi.fpage import Fpage
from l4lab.abi.frame import EAX, EIP
from l4lab.abi.ids import NIL_THREAD
from l4lab.abi.message import MapItem
from l4lab.abi.vm import EVENT_VALID, IoAccess, ItemId
from l4lab.devices.device import Device
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.guests import tinyos
from l4lab.user.guests.flat import ORIGIN, RAM_SIZE, FlatGuest
from l4lab.user.l4 import L4
from l4lab.user.monitor import start_flat
from l4lab.user.monitor.fault import Fault, Reply, external_interrupt
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.monitor import Monitor
from l4lab.user.monitor.monitor_parts import GuestPager, GuestRam, GuestToServe, MonitorParts
from l4lab.user.monitor.outcome import End, Outcome

from .others import WINDOW, Delivery, Devices, DevicesAndMsrs, LargePager, Loop, Pager

BOTH = pytest.mark.parametrize("hardware", [Hardware(), Hardware(shadow_paging=True)], ids=["nested", "shadow"])
ALL = MonitorParts(LargePager, Delivery, Devices, Loop)


def life(parts: MonitorParts, hardware: Hardware | None = None, guest: FlatGuest | None = None) -> Rig:
    """A guest's whole run."""
    rig = Rig.for_flat_guest(guest or tinyos.build(), hardware=hardware or Hardware(), monitor=parts)
    rig.run(2_000_000_000)
    return rig


@BOTH
@pytest.mark.parametrize(
    "parts",
    [
        MonitorParts(memory=LargePager),
        MonitorParts(interrupts=Delivery),
        MonitorParts(devices=Devices),
        MonitorParts(loop=Loop),
        ALL,
    ],
    ids=["memory", "interrupts", "devices", "loop", "all"],
)
def test_a_part_that_does_the_same_leaves_the_same_trace(parts: MonitorParts, hardware: Hardware) -> None:
    """A whole operating system runs on somebody else's part as on the monitor's own, to the last event."""
    own, others = life(MonitorParts(), hardware), life(parts, hardware)

    assert own.outcome == others.outcome
    assert own.console == others.console
    assert own.trace.latest(len(own.trace)) == others.trace.latest(len(others.trace))


@BOTH
def test_small_pages_carry_a_guest(hardware: Hardware) -> None:
    """A pager that gives a page at a time has more faults to answer, some in the midst of an event's delivery."""
    own, others = life(MonitorParts(), hardware), life(MonitorParts(memory=Pager), hardware)

    assert own.console == others.console
    assert len(own.trace) < len(others.trace)


STRINGS = """
start:  mov esp, 0x110000
        lea esi, [text + 4]
        mov ecx, 5
        mov dx, 0xe9
        std
        rep outsb
        cld
        mov edi, 0x180000
        mov ecx, 3
        mov dx, 0x402
        rep insd
        mov esi, 0x180000
        mov ecx, 12
        mov dx, 0xe9
        rep outsb
        mov ecx, 0x1a0
        rdmsr
        inc eax
        wrmsr
        rdmsr
        add al, '0'
        out 0xe9, al
        cli
        hlt
text:   .ascii "olleh"
"""


@pytest.mark.parametrize("part", [Devices, DevicesAndMsrs])
def test_strings_and_msrs(part: Callable[..., Any]) -> None:
    """What string instructions and MSRs do is what it is with the monitor's own part."""
    guest = FlatGuest.of(assemble(STRINGS, ORIGIN), "strings")
    own, others = life(MonitorParts(), guest=guest), life(MonitorParts(devices=part), guest=guest)

    assert own.console.startswith(b"hello")
    assert own.console.endswith(b"2")
    assert (own.console, own.outcome) == (others.console, others.outcome)


class Register(Device):
    """A register in the midst of memory."""

    name = "register"
    memory = (range(0x20_0000, 0x20_1000),)
    widest = 4

    def load(self, address: int, size: int) -> int:
        return 0x21

    def store(self, address: int, size: int, value: int) -> None:
        pass


REGISTER = "mov eax, [0x200004]\n out 0xe9, al\n mov [0xf0000000], al\n cli\n hlt"


def with_register(parts: MonitorParts) -> tuple[bytes, Outcome | None]:
    """What a guest says that reads the device, and how it ends."""
    ends: list[Outcome] = []
    guest = FlatGuest.of(assemble(REGISTER, ORIGIN), "register")

    def main(l4: L4) -> None:
        monitor = Monitor(l4, RAM_SIZE, devices=[Register()], parts=parts)
        monitor.load(guest.pieces)
        ends.append(monitor.run(start_flat.start_of(guest)))

    rig = Rig(main, 64 << 20)
    rig.run(100_000_000)
    assert not rig.kernel.deaths
    return bytes(rig.console), ends[0]


def test_a_device_among_the_memory() -> None:
    """Somebody else's pager has the monitor do what is a device's, and what is nobody's."""
    assert with_register(MonitorParts()) == with_register(MonitorParts(memory=Pager))
    assert b"!" == with_register(MonitorParts(memory=LargePager))[0]


# -- wrong ones --------------------------------------------------------------------------------------------------------


class MapsDevice(Pager):
    """Does not ask where devices are."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        base = fault.words[1] & -4096
        reply.typed = [MapItem.at(base), Fpage.at(self.ram.at(base))]
        reply.resume_delivery(fault)


class WindowAsBase(Pager):
    """Mixes up the monitor's addresses and the guest's."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        there = self.ram.at(fault.words[1] & -4096)
        reply.typed = [MapItem.at(there), Fpage.at(there)]


class GuestAddress(Pager):
    """The other way round."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        reply.typed = [MapItem.at(fault.words[1] & -4096), Fpage.at(fault.words[1] & -4096)]


class NoPage(Pager):
    """Forgets to answer."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        pass


class NoWords(Pager):
    """Answers with something else."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        reply.typed = ["page"]  # type: ignore[list-item]


class HalfItem(Pager):
    """Half a map item."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        reply.typed = [MapItem.at(fault.words[1] & -4096)]


class Skips(Pager):
    """Goes on behind the instruction."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        super().page_fault(fault, reply)
        reply.gpr(EIP, fault.eip + 3)


class LosesEvent(Pager):
    """Forgets the event that the fault cut short."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        copy = Reply()
        super().page_fault(fault, copy)
        reply.typed = copy.typed


class ReadOnly(Pager):
    """The guest cannot write."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        base = fault.words[1] & -4096
        reply.typed = [MapItem.at(base), Fpage.at(self.ram.at(base), 12, "rx")]
        reply.resume_delivery(fault)


class Divides(Pager):
    """A mistake in it."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        reply.typed = [fault.words[1] // 0]


class Comes(Pager):
    """Does not come back; whoever waits presses Ctrl-C, and again."""

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        while True:
            pass


class Duck:
    """Derives from nothing."""

    def __init__(self, ram: object) -> None:
        pass


@pytest.mark.parametrize(
    ("pager", "said"),
    [
        (WindowAsBase, r"WindowAsBase\.page_fault\(\) maps memory at 0x\w+, where the guest has none"),
        (GuestAddress, r"GuestAddress\.page_fault\(\) maps .* of the monitor, which is not the guest's memory"),
        (NoPage, r"NoPage\.page_fault\(\) neither maps a page at 0x\w+ nor does the instruction"),
        (NoWords, r"NoWords\.page_fault\(\) (made a reply that cannot be sent|answers with \['page'\])"),
        (HalfItem, r"HalfItem\.page_fault\(\) answers with MapItem.*no whole map item"),
        (Skips, r"Skips\.page_fault\(\) maps a page at 0x\w+ and moves EIP"),
        (ReadOnly, r"ReadOnly\.page_fault\(\) is stuck: the guest's access to 0x\w+ faults again"),
        (Divides, r"Divides\.page_fault\(\) raised ZeroDivisionError"),
        (Comes, r"Comes\.page_fault\(\) did not come back"),
        (Duck, r"Duck is no GuestPager\. Derive it"),
        (Loop, r"Loop is no GuestPager"),
    ],
)
def test_a_wrong_pager_is_named(pager: Callable[..., Any], said: str) -> None:
    """A pager that breaks a rule ends its guest's run with its name and what was wrong."""
    failed(MonitorParts(memory=pager), said)


UNTOUCHED = """
start:  mov esp, 0x110000
        lgdt [gdtr]
        lidt [idtr]
        xor ecx, ecx
        div ecx
        .align 8
gdt:    .long 0, 0, 0xffff, 0x00cf9a00, 0xffff, 0x00cf9200
gdtr:   .word 23
        .long gdt
idtr:   .word 7
        .long gates
        .align 4096
gates:  .long 0x00081010, 0x00108e00
        .align 16
        cli
        hlt
"""


def test_an_event_that_a_page_fault_cut_short() -> None:
    """The guest's exception meets a page that nobody has touched: a right pager hands it back, a wrong one is told."""
    guest = FlatGuest.of(assemble(UNTOUCHED, ORIGIN), "untouched")

    assert life(MonitorParts(), guest=guest).outcome == life(MonitorParts(memory=Pager), guest=guest).outcome
    failed(MonitorParts(memory=LosesEvent), r"LosesEvent\.page_fault\(\) loses the event", guest)


def test_a_device_that_is_mapped() -> None:
    """Memory in the place of a device is no answer."""
    _, end = with_register(MonitorParts(memory=MapsDevice))

    assert end is not None
    assert re.match(r"MapsDevice\.page_fault\(\) maps 0x1000 bytes at 0x200000, where", end.why)


def failed(parts: MonitorParts, said: str, guest: FlatGuest | None = None) -> None:
    """The guest ends by its monitor's part, in a sentence; the machine stands, and can be looked at."""
    rig = life(parts, guest=guest)

    assert rig.outcome is not None
    assert (End.PART_FAILED, []) == (rig.outcome.end, rig.kernel.deaths), rig.kernel.deaths and rig.kernel.deaths[0]
    assert re.match(said, rig.outcome.why), rig.outcome.why
    assert "\n" not in rig.outcome.why
    assert rig.outcome.why.endswith("in l4lab/user/monitor/monitor_parts.py.")
    assert rig.over()
    assert rig.snapshot()


class IgnoresIf(Delivery):
    """Whether the guest wants it or not."""

    def can(self, fault: Fault, reply: Reply) -> bool:
        return True


class IgnoresShadow(Delivery):
    """Right behind STI."""

    def can(self, fault: Fault, reply: Reply) -> bool:
        return bool(fault.eflags & 0x200)


class NeverKicks(Delivery):
    """A guest that runs is left alone."""

    def kick(self) -> None:
        pass


class NeverShut(Delivery):
    """The window stays open."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        super().deliver(fault, reply)
        if not self.window:
            reply.write(ItemId.EXECCTRL, vm.CPU_CONTROLS, self.cpu.controls | WINDOW)


class NeverOpen(Delivery):
    """Waits for an exit."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        if self.requests.pending() and not reply.injects and self.can(fault, reply):
            reply.inject(external_interrupt(self.requests.acknowledge()))


class Loses(Delivery):
    """Acknowledges first, and then cannot."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        if self.requests.pending():
            vector = self.requests.acknowledge()
            if self.can(fault, reply):
                reply.inject(external_interrupt(vector))


class Line(Delivery):
    """The number of the line instead of the vector."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        if self.requests.pending() and self.can(fault, reply):
            reply.inject(EVENT_VALID | self.requests.acknowledge() & 7)
        super().deliver(fault, reply)


class KicksWrong(Delivery):
    """An exception instead of an interrupt."""

    def kick(self) -> None:
        if self.requests.pending() and not self.cpu.is_sending():
            event = 3 << 8 | external_interrupt(self.requests.acknowledge())
            self.cpu.write({ItemId.NONREGEXC: {vm.ENTRY_INFO: event}})


class ForgetsControls(Delivery):
    """Nothing but the window."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        reply.write(ItemId.EXECCTRL, vm.CPU_CONTROLS, WINDOW)


class Greedy(Delivery):
    """Takes what is not there."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        self.requests.acknowledge()


class Invents(Delivery):
    """Interrupts as it likes."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        reply.inject(external_interrupt(0x20))


class Polls(Delivery):
    """Waits for ever."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        while not self.requests.pending():
            pass


class Swallows(Delivery):
    """Hears of no failure."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        with contextlib.suppress(Exception):
            self.requests.acknowledge()


class NoRegister(Delivery):
    """Writes where nothing is."""

    def deliver(self, fault: Fault, reply: Reply) -> None:
        reply.gpr(99, 1)


TICKS = """
start:  mov esp, 0x110000
        lgdt [gdtr]
        mov eax, tick
        mov [gates + 0x100], ax
        shr eax, 16
        mov [gates + 0x106], ax
        lidt [idtr]
        mov al, 0x11
        out 0x20, al
        mov al, 0x20
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 0
        out 0x40, al
        mov al, 4
        out 0x40, al
        mov edi, 3
again:  cli                     ; exits with interrupts off
        mov ecx, 1500
off:    out 0x80, al
        loop off
        sti                     ; an exit right behind it
        in al, 0x80
        mov ecx, 3000000        ; no exits
spin:   loop spin
        dec edi
        jnz again
        cli
        hlt
tick:   push eax
        mov al, 0x20
        out 0x20, al
        pop eax
        iretd
        .align 8
gates:  .space 0x100
        .long 0x00080000, 0x00008e00
gdt:    .long 0, 0, 0xffff, 0x00cf9a00, 0xffff, 0x00cf9200
gdtr:   .word 23
        .long gdt
idtr:   .word 0x107
        .long gates
"""


def ticking() -> FlatGuest:
    """A guest with a timer: stretches with interrupts off and many exits, then one behind STI, then none."""
    return FlatGuest.of(assemble(TICKS, ORIGIN), "ticks")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (IgnoresIf, r"IgnoresIf\.deliver\(\) interrupts a guest that has its interrupts off"),
        (NeverKicks, r"NeverKicks\.kick\(\) leaves an interrupt waiting, and the interrupt window shut"),
        (NeverShut, r"NeverShut\.deliver\(\) leaves the interrupt window open"),
        (NeverOpen, r"NeverOpen\.deliver\(\) leaves an interrupt waiting, and the interrupt window shut"),
        (Loses, r"Loses\.deliver\(\) acknowledged vector 0x20 and did not deliver it: it is lost"),
        (Line, r"Line\.deliver\(\) delivers event 0x80000000; that of vector 0x20 is 0x80000020"),
        (KicksWrong, r"KicksWrong\.kick\(\) delivers event 0x80000320; that of vector 0x20 is 0x80000020"),
        (ForgetsControls, r"ForgetsControls\.deliver\(\) writes 0x00000004 as CPU-based controls"),
        (Greedy, r"Greedy\.deliver\(\) acknowledges an interrupt, and none is pending"),
        (Invents, r"Invents\.deliver\(\) delivers event 0x80000020, and acknowledged 0 interrupts"),
        (Polls, r"Polls\.deliver\(\) is stuck: it has taken 10000 steps"),
        (Swallows, r"Swallows\.deliver\(\) acknowledges an interrupt, and none is pending"),
        (NoRegister, r"NoRegister\.deliver\(\) writes register 99 of GPREGS"),
    ],
)
def test_a_wrong_delivery_is_named(part: Callable[..., Any], said: str) -> None:
    """A delivery that breaks a rule ends its guest's run with its name and what was wrong."""
    failed(MonitorParts(interrupts=part), said, ticking())


def test_a_right_delivery_brings_the_ticks() -> None:
    """What the wrong ones fail at can be done, and then the trace is the monitor's own."""
    own, others = life(MonitorParts(), guest=ticking()), life(MonitorParts(interrupts=Delivery), guest=ticking())

    assert own.outcome is not None
    assert End.HALTED is own.outcome.end
    assert own.trace.latest(len(own.trace)) == others.trace.latest(len(others.trace))


class Stays(Devices):
    """EIP is left where it was."""

    def port_io(self, fault: Fault, reply: Reply) -> None:
        reply.gpr(EAX, 0)


class FixedLength(Devices):
    """All instructions are as long as the first one."""

    def port_io(self, fault: Fault, reply: Reply) -> None:
        reply.gpr(EIP, fault.eip + 3)


class FaultsAndGoesOn(Devices):
    """An exception, and the next instruction."""

    def port_io(self, fault: Fault, reply: Reply) -> None:
        reply.raise_exception(13, 0)
        reply.skip(fault)


class TooWide(Devices):
    """All of EAX to a port of a byte."""

    def port_io(self, fault: Fault, reply: Reply) -> None:
        self.ports.write(IoAccess.decode(fault.qualification).port, 1, 0x1234)
        reply.skip(fault)


class Three(Devices):
    """A size that is none."""

    def port_io(self, fault: Fault, reply: Reply) -> None:
        self.ports.read(0x40, 3)


class Text(Devices):
    """A register is no text."""

    def port_io(self, fault: Fault, reply: Reply) -> None:
        reply.gprs({EAX: "x"})  # type: ignore[dict-item]
        reply.skip(fault)


class NoPortIo(DevicesAndMsrs):
    """Not derived from what it has to be."""


class BadMsr(DevicesAndMsrs):
    """A value that is none."""

    def wrmsr(self, fault: Fault, reply: Reply) -> None:
        self.msrs[fault.ecx] = None  # type: ignore[assignment]
        reply.skip(fault)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Stays, r"Stays\.port_io\(\) leaves EIP where it was"),
        (FixedLength, r"FixedLength\.port_io\(\) goes on at 0x\w+, and the instruction ends at 0x\w+"),
        (FaultsAndGoesOn, r"FaultsAndGoesOn\.port_io\(\) raises an exception and moves EIP"),
        (TooWide, r"TooWide\.port_io\(\) writes 4660 to port 0xe9, which are not 1 bytes"),
        (Three, r"Three\.port_io\(\) reaches for 3 bytes at port 64"),
        (Text, r"Text\.port_io\(\) writes 'x' to EAX, which is no word"),
        (BadMsr, r"BadMsr\.wrmsr\(\) leaves None in MSR 416"),
    ],
)
def test_wrong_devices_are_named(part: Callable[..., Any], said: str) -> None:
    """Port and MSR instructions that break a rule end the guest's run with their part's name and what was wrong."""
    failed(MonitorParts(devices=part), said, FlatGuest.of(assemble(STRINGS, ORIGIN), "strings"))


class Returns(Loop):
    """Is done at once."""

    def run(self, guest: GuestToServe) -> None:
        guest.exchange(*guest.first)


class Mute(Loop):
    """Does not answer."""

    def run(self, guest: GuestToServe) -> None:
        guest.exchange(*guest.first)
        guest.exchange(NIL_THREAD, None)


class Elsewhere(Loop):
    """Sends to somebody else."""

    def run(self, guest: GuestToServe) -> None:
        guest.exchange(1, [0])


class Nonsense(Loop):
    """Sends what is no message."""

    def run(self, guest: GuestToServe) -> None:
        guest.exchange(guest.cpu, [17, "x"])  # type: ignore[list-item]


class Kicks(Loop):
    """Kicks a guest that waits for its answer."""

    def run(self, guest: GuestToServe) -> None:
        guest.exchange(*guest.first)
        guest.kick()


class Idle(Loop):
    """Looks at the devices for ever."""

    def run(self, guest: GuestToServe) -> None:
        while not guest.ended:
            guest.advance()


class NoAnswer(Loop):
    """Answers nobody."""

    def run(self, guest: GuestToServe) -> None:
        guest.answer(Fault([0, 0, 0]), Reply())


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Returns, r"Returns\.run\(\) came back, and the guest has not ended"),
        (Mute, r"Mute\.run\(\) waits for a message, and the guest waits for an answer"),
        (Elsewhere, r"Elsewhere\.run\(\) sends to 1, which is not the guest's CPU"),
        (Nonsense, r"Nonsense\.run\(\) sends \[17, 'x'\], which is no message"),
        (Kicks, r"Kicks\.run\(\) calls kick\(\), and the guest waits for an answer"),
        (Idle, r"Idle\.run\(\) is stuck: it has taken 10000 steps"),
        (NoAnswer, r"NoAnswer\.run\(\) calls answer\(\), and no fault of the guest waits"),
    ],
)
def test_a_wrong_loop_is_named(part: Callable[..., Any], said: str) -> None:
    """A loop that breaks a rule ends its guest's run with its name and what was wrong."""
    failed(MonitorParts(loop=part), said, FlatGuest.of(assemble(STRINGS, ORIGIN), "strings"))


class Again(Loop):
    """Sends an answer when nobody has asked."""

    def run(self, guest: GuestToServe) -> None:
        received = guest.exchange(*guest.first, 0)
        while received is not None:
            fault, reply = Fault(received.words), Reply()
            guest.answer(fault, reply)
            received = guest.exchange(guest.cpu, reply.words(), 0)
        guest.exchange(guest.cpu, Reply().words())


def test_a_loop_that_answers_a_guest_that_runs() -> None:
    """A message for a guest that has not stopped is one too many."""
    spinning = FlatGuest.of(assemble("spin: jmp spin", ORIGIN), "spinning")

    failed(MonitorParts(loop=Again), r"Again\.run\(\) sends an answer to the guest, which has not asked", spinning)


def test_a_saved_guest_goes_on_under_other_parts(tmp_path: Path) -> None:
    """Saving and restoring are as with the monitor's own parts, wherever in its life the guest is saved."""
    whole = life(MonitorParts())
    for at in (1_000_000, 100_000_000, 250_300_000):
        rig = Rig.for_flat_guest(tinyos.build(), monitor=ALL)
        rig.run_until(at)
        rig.save(tmp_path / "saved")
        said = bytes(rig.console)
        restored = Rig.restore(tmp_path / "saved", monitor=ALL)
        restored.run(2_000_000_000)
        assert whole.console == said + restored.console[restored.carried :]


def test_a_guest_that_resets_itself_gets_new_parts() -> None:
    """Each life of a guest has parts of its own."""
    made: list[int] = []

    def make(ram: GuestRam) -> GuestPager:
        made.append(ram.size)
        return Pager(ram)

    reset = FlatGuest.of(assemble("mov al, 0xfe\n out 0x64, al\n hlt", ORIGIN), "resets")
    life(MonitorParts(memory=make), Hardware(restarts=2), reset)

    assert 3 == len(made)
