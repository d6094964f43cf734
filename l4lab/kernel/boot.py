# SPDX-License-Identifier: GPL-2.0-or-later
"""From power-on to the first thread: kernel memory, the KIP, sigma0 and the root task.

0 ....................... conventional memory: sigma0's ....................... kernel's own ... end of RAM
                                                                               (page tables, UTCBs, frames)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from l4lab.abi.calls import SystemCall
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import ROOT_TASK, SIGMA0, ThreadId
from l4lab.abi.kip import STUBS, MemoryDescriptor, MemoryType, ServerRegion
from l4lab.abi.kip_build import NO_SERVER, build_kip
from l4lab.abi.protocols import thread_start
from l4lab.kernel import events
from l4lab.kernel.calls import kip_stubs, threadcontrol
from l4lab.kernel.devices import interrupts
from l4lab.kernel.ipc import faults
from l4lab.kernel.kernel import Kernel
from l4lab.kernel.objects.program import HostedThread
from l4lab.kernel.objects.space import DESCRIPTORS, UTCB_SLOT
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.waits import OWN_IPC
from l4lab.kernel.parts import Parts
from l4lab.kernel.state import EventSink
from l4lab.machine.board import FREQUENCY_KHZ, Machine
from l4lab.machine.guestmode import REGION_FRAMES
from l4lab.machine.memory import PAGE_SIZE

KERNEL_MEMORY = 4 << 20  # bytes at the top of RAM
KIP_AREA = Fpage.at(0xBFF0_0000, log2=12)
UTCB_AREA = Fpage.at(0xBF00_0000, log2=17)
ROOT_PRIORITY = 255
FEATURES = ("pagerexregs", "ctrlxfer", "x86-hvm")
IO_FPAGES = "ioflexpages"  # the feature that programs look for before they ask for ports
THE_KERNELS_OWN = Parts()


class Io(Enum):
    """How programs come by I/O ports. The reference can be built either way, and not every program runs on both.

    Whichever it is, ports can be mapped and unmapped; at I/O privilege level 3 that has no effect.
    """

    IOPL3 = "iopl3"  # every program may use all ports
    FPAGES = "fpages"  # a program may use those that were mapped to it; its pager hears of others


@dataclass(frozen=True, slots=True)
class Loaded:
    """A native program that a boot loader has put into memory already."""

    name: str
    region: ServerRegion


def boot(
    machine: Machine,
    trace: EventSink,
    sigma0: HostedThread | Loaded,
    root: HostedThread | Loaded,
    memory: Sequence[MemoryDescriptor] = (),
    boot_info: int = 0,
    io: Io = Io.FPAGES,
    parts: Parts = THE_KERNELS_OWN,
) -> Kernel:
    """Set a kernel up on a machine and start sigma0 and the root task.

    `memory` and `boot_info` are what a boot loader has to say of what it loaded; the KIP hands it on. `parts` takes the
    place of parts of the kernel.
    """
    end = machine.memory.size - KERNEL_MEMORY
    k = Kernel(machine, trace, end, parts)
    k.io_privileged = io is Io.IOPL3
    region = [k.frames.allocate() for _ in range(REGION_FRAMES)]
    assert region == list(range(region[0], region[0] + REGION_FRAMES * PAGE_SIZE, PAGE_SIZE)), "not contiguous"
    k.frames_of_boot += region
    machine.power_on(k.area.descriptor_frame, DESCRIPTORS, UTCB_SLOT, region[0])
    machine.user.start(k.kernel_space.tables.cr3)
    interrupts.initialise(k)
    _make_kip(k, end, memory, boot_info, _region(sigma0), _region(root))
    k.now = machine.clock.cycles
    trace.append(events.Booted(k.now, machine.memory.size))
    first = start_server(k, SIGMA0, sigma0)
    first.space.is_sigma0 = True
    start_server(k, ROOT_TASK, root)
    return k


def _region(program: HostedThread | Loaded) -> ServerRegion:
    """Where a program lies in memory. A hosted one does not."""
    return program.region if isinstance(program, Loaded) else NO_SERVER


def _make_kip(
    k: Kernel,
    end: int,
    memory: Sequence[MemoryDescriptor],
    boot_info: int,
    sigma0: ServerRegion,
    root: ServerRegion,
) -> None:
    stubs, entries, returns = kip_stubs.build()
    k.stub_returns = {STUBS + offset: SystemCall[name.upper()] for offset, name in returns.items()}
    size = k.machine.memory.size
    page = build_kip(
        memory=[
            MemoryDescriptor(MemoryType.CONVENTIONAL, 0, 0xDFFF_FFFF, virtual=True),
            MemoryDescriptor(MemoryType.CONVENTIONAL, 0, end - 1),
            MemoryDescriptor(MemoryType.RESERVED, end, size - 1),
            *memory,
        ],
        stubs=stubs,
        entries=entries,
        external_khz=FREQUENCY_KHZ,
        internal_khz=FREQUENCY_KHZ,
        features=FEATURES if k.io_privileged else (*FEATURES, IO_FPAGES),
        sigma0=sigma0,
        root=root,
        boot_info=boot_info,
    )
    k.kip_frame = k.frames.allocate()
    k.frames_of_boot.append(k.kip_frame)
    k.machine.memory.write(k.kip_frame, page)


def start_server(k: Kernel, id_: ThreadId, program: HostedThread | Loaded) -> Tcb:
    """Create one of the first threads in a space of its own, and start it in its pager's name."""
    space = k.new_space(program.name)
    space.configure(KIP_AREA, UTCB_AREA, k.kip_frame)
    k.trace.append(events.SpaceConfigured(k.now, space.number, int(KIP_AREA), int(UTCB_AREA)))
    space.privileged = True
    thread = threadcontrol.create(k, id_, space)
    thread.scheduler = ROOT_TASK
    thread.priority = ROOT_PRIORITY
    thread.utcb_location = UTCB_AREA.base
    if isinstance(program, HostedThread):
        k.programs[thread.id] = program
    thread.name = program.name
    threadcontrol.activate(k, thread, SIGMA0)
    # Nobody is there yet to send the start message: the kernel starts its first threads itself.
    thread.wait = OWN_IPC
    thread.state = ThreadState.RUNNING
    k.trace.append(events.Resumed(k.now, thread.word))
    region = _region(program)
    faults.started(k, thread, tuple(thread_start(region.ip, region.sp).words()), thread)
    k.make_ready(thread)
    return thread
