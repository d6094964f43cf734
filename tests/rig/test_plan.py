# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a run: from it the same run can be made again, whatever way the rig was made in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import l4lab
from l4lab.abi.fpage import Fpage
from l4lab.abi.message import MapItem
from l4lab.errors import LabError
from l4lab.images.kinds import Kind
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.parts import Parts, Scheduler, Why
from l4lab.rig.booting import Options, disk_program, guest_program
from l4lab.rig.loader import Module
from l4lab.rig.plan import Code, Plan
from l4lab.rig.rig import Rig
from l4lab.user import cc
from l4lab.user.asm import assemble
from l4lab.user.console import say
from l4lab.user.guests import greeting, tinyos, twins
from l4lab.user.guests.flat import FlatGuest
from l4lab.user.host import Host, NativePlan, VmPlan
from l4lab.user.l4 import L4
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.monitor import Monitor
from l4lab.user.monitor.monitor_parts import GuestPager, GuestRam, MonitorParts
from tests.kernel.student_parts import PARTS

CYCLES = 40_000_000
MIB = 1 << 20
PRINT = b"\xbe\x12\x7c\xb4\x0e\xac\x84\xc0\x74\x04\xcd\x10\xeb\xf7\xfa\xf4\0\0booted\0"  # by INT 10, then halt


def sector(size: int) -> bytes:
    """A disk or diskette that prints a word."""
    return (PRINT.ljust(510, b"\0") + b"\x55\xaa").ljust(size, b"\0")


def speaker(l4: L4) -> None:
    """A program in Python."""
    say(l4, "said by a program")


def without_cpuid(monitor: Monitor) -> None:
    """What a student attaches to a monitor."""
    monitor.cpuid.unknown.clear()


def attached() -> Rig:
    """A guest whose monitor has something of the student's."""
    program = guest_program(greeting_image(), "greeting", Kind.FLAT, Options(), 16 * MIB)
    program.attach = without_cpuid
    return Rig.for_guest(program)


class InARow(Scheduler):
    """A scheduler of one's own: a list, the most important first."""

    def __init__(self) -> None:
        self.row: list[Tcb] = []

    def ready(self, thread: Tcb, why: Why) -> None:
        """Behind all."""
        self.row.append(thread)

    def gone(self, thread: Tcb) -> None:
        """Out of the list."""
        if thread in self.row:
            self.row.remove(thread)

    def next(self) -> Tcb | None:
        """The first of the most important ones."""
        thread = max(self.row, key=lambda thread: thread.priority, default=None)
        if thread is not None:
            self.row.remove(thread)
        return thread

    def preempts(self, thread: Tcb) -> bool:
        """Is somebody more important?"""
        return any(other.priority > thread.level for other in self.row)


class SmallPages(GuestPager):
    """A pager of one's own."""

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        """A page at a time; no reads beyond the memory."""
        page = fault.words[1] & -4096
        if page >= self.ram.size:
            self.ram.do(fault, reply)
            return
        reply.typed = [MapItem.at(page), Fpage.at(self.ram.at(page))]
        reply.resume_delivery(fault)


def greeting_image() -> bytes:
    """Flat code that halts."""
    return assemble("mov al, 'x'\n mov dx, 0x3f8\n out dx, al\n cli\n hlt", 0x100000).code


def host() -> Rig:
    """Several machines, one monitor for two of them, and a native program."""
    plans = [VmPlan.flat("os", tinyos.build()), VmPlan.flat("twins", twins.build(20), shadow_paging=True, cpus=2)]
    native = NativePlan("native", "mov eax, ROOT\n spin: jmp spin")
    return Rig.for_host(Host([plans, [VmPlan.flat("hello", greeting.build())]], [("os", "hello")], [native]))


def native(folder: Path) -> Rig:
    """A program in C, with modules."""
    source, image = folder / "program.c", folder / "program.elf"
    source.write_text("#include <l4/l4.h>\nint main(void) { L4_Sleep(L4_TimePeriod(1000)); return 0; }\n")
    assert "" == cc.build(source, image)
    return Rig.for_program(image.read_bytes(), "program", 16, modules=[Module("m", b"module", "m with words")])


def restored(folder: Path) -> Rig:
    """A saved guest that goes on, with a disk."""
    hardware = Hardware(disk=sector(1 * MIB))
    rig = Rig.for_flat_guest(tinyos.build(interactive=True), hardware=hardware)
    rig.run(100_000_000)
    rig.save(folder / "saved")
    return Rig.restore(folder / "saved", disk=hardware.disk)


def booted(image: bytes, kind: Kind | None = None, hardware: Hardware | None = None) -> Rig:
    """What `l4lab boot` does."""
    program = guest_program(image, "image", kind, Options(), 16 * MIB)
    if hardware is not None:
        program.hardware = hardware
    return Rig.for_guest(program)


WAYS: dict[str, Callable[[Path], Rig]] = {
    "greeting": lambda _: l4lab.boot("greeting"),
    "tinyos": lambda _: l4lab.boot("tinyos", interactive=True, disk=sector(1 * MIB), paging="shadow"),
    "a flat guest": lambda _: Rig.for_flat_guest(twins.build(20), hardware=Hardware(restarts=2)),
    "a boot sector": lambda _: booted(sector(1 * MIB)),
    "a small disk": lambda _: Rig.for_guest(disk_program(sector(4096), "disk", None, Options(), 16 * MIB)),
    "a diskette": lambda _: booted(sector(1440 << 10)),
    "flat code": lambda _: booted(greeting_image(), Kind.FLAT),
    "a host": lambda _: host(),
    "native programs": native,
    "a saved guest": restored,
    "a program in Python": lambda _: Rig(speaker, 16 * MIB),
    "a monitor with a part of one's own": lambda _: attached(),
    "a monitor with other parts": lambda _: l4lab.boot("tinyos", monitor=MonitorParts(SmallPages)),
    "a kernel with a part of one's own": lambda _: Rig.for_flat_guest(tinyos.build(), parts=Parts(scheduler=InARow)),
    "a kernel with other IPC and another walk": lambda _: Rig.for_flat_guest(tinyos.build(), parts=PARTS["both"]),
}


def played(rig: Rig) -> bytes:
    """The trace of a run."""
    rig.run_until(rig.machine.cycles + CYCLES)
    return msgspec.msgpack.encode(list(rig.trace), enc_hook=int)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_run_can_be_made_again(way: str, tmp_path: Path) -> None:
    """Does a plan give the same run, before and after the first one, twice, and when it has been in a file?"""
    rig = WAYS[way](tmp_path)
    plan, images = rig.plan, rig.images

    before = played(Rig.from_plan(plan, images))
    first = played(rig)

    assert first == before
    assert plan == rig.plan
    assert Plan.decode(plan.encode()) == plan
    again = Rig.from_plan(Plan.decode(rig.plan.encode()), {digest: bytes(data) for digest, data in images.items()})
    assert plan == again.plan
    assert first == played(again)


def test_a_plan_is_small() -> None:
    """Does a plan hold hashes in the place of contents?"""
    rig = Rig.for_guest(guest_program(sector(16 * MIB), "disk", None, Options(), 64 * MIB))

    assert len(rig.plan.encode()) < 1000
    assert 16 * MIB == max(map(len, rig.images.values()))


def test_what_is_missing_is_told() -> None:
    """Are missing contents, a program that cannot be imported and one that has changed told, with what to do?"""

    def local(l4: L4) -> None:
        say(l4, "x")

    rig = Rig(local, 16 * MIB)
    flat = Rig.for_flat_guest(greeting.build())

    with pytest.raises(LabError, match="give rig.images"):
        Rig.from_plan(flat.plan, {})
    with pytest.raises(LabError, match="functions="):
        Rig.from_plan(rig.plan, {})
    assert isinstance(rig.plan.root, Code)
    with pytest.raises(LabError, match="has changed"):
        Rig.from_plan(rig.plan, {}, {rig.plan.root.name: speaker})
    with pytest.raises(LabError, match="no plan"):
        Plan.decode(b"\x93\x01")
    assert played(rig) == played(Rig.from_plan(rig.plan, {}, {rig.plan.root.name: local}))


def test_running_changes_no_guest_and_no_host() -> None:
    """Are a guest's program and a host as they were, when two machines have run from the same?"""
    guest: FlatGuest = greeting.build()
    plans = Host([[VmPlan.flat("hello", guest)]])

    one, other = Rig.for_host(plans), Rig.for_host(plans)
    one.run()

    assert one.host is not None
    assert other.host is not None
    assert ["hello"] == list(one.host.outcomes)
    assert {} == other.host.outcomes
    other.run()
    assert one.host.outcomes == other.host.outcomes
