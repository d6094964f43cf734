# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking a snapshot: reading what a view may show out of kernel and machine, and changing nothing.

The only place that knows both the kernel's records and the views' ones.
"""

from __future__ import annotations

from l4lab.abi import utcb as u
from l4lab.abi.describe import label_text
from l4lab.abi.frame import EIP, REGISTER_NAMES
from l4lab.abi.message import MsgTag
from l4lab.abi.vm import CrAccess, ExitReason, IoAccess, exit_name
from l4lab.devices.vga import TextPage
from l4lab.kernel import events
from l4lab.kernel.events import MessageKind
from l4lab.kernel.kernel import Kernel
from l4lab.kernel.objects.space import Space
from l4lab.kernel.objects.thread import NEVER_ENDS, Tcb, ThreadState
from l4lab.kernel.objects.waits import OWN_IPC
from l4lab.kernel.processor import preemption
from l4lab.machine.decode import disassemble
from l4lab.machine.mmu import READ, NestedPageFault, host_walk
from l4lab.rig.counting import machines
from l4lab.rig.snapshot import (
    Area,
    DisasmLine,
    ExitView,
    IpcKind,
    IpcView,
    Mode,
    Ports,
    Region,
    Snapshot,
    SpaceView,
    ThreadKind,
    ThreadView,
)
from l4lab.rig.trace import Trace
from l4lab.words import Rights

LATEST = 30  # messages and exits shown
LOOK_BACK = 400  # events searched for them
PAGE = 4096
CODE_BYTES = 96  # read for the disassembly
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")


def take_snapshot(
    k: Kernel,
    trace: Trace,
    console: bytes,
    status: str,
    previous: dict[str, int],
    idle: bool,
    of: Tcb | None = None,
    screen: TextPage | None = None,
) -> Snapshot:
    """The system at this instant; registers and code of thread `of`, or of the one that runs."""
    current = of or k.current
    latest = trace.latest(LOOK_BACK)
    counters = k.counters
    return Snapshot(
        cycle=k.machine.cycles,
        virtual_ns=k.machine.cycles,
        retired=k.machine.engine.retired,
        status=status,
        thread=int(current.id) if current else None,
        mode=_mode(current),
        registers=_registers(current),
        previous=previous,
        disassembly=tuple(_disassembly(k, current)),
        threads=tuple(_thread(thread) for thread in k.threads.values()),
        spaces=tuple(_space(k, space) for space in k.spaces),
        ipc=tuple(_messages(latest)[-LATEST:]),
        exits=tuple(_exit(event) for event in latest if isinstance(event, events.VmExit))[-LATEST:],
        exit_counts={exit_name(reason): count for reason, count in counters.vm_exits.items()},
        counters={
            "IPC messages": counters.ipc_messages,
            "page faults": counters.page_faults,
            "injections": counters.injections,
        },
        machines=machines(counters.virtual_cpus),
        screen=screen,
        console=console.decode("latin-1"),
        input_expected=idle,
    )


def look(k: Kernel, space: Space, address: int, length: int) -> bytes:
    """Memory of a space as its programs would read it; zeros where nothing is mapped."""
    found = bytearray()
    translate = host_walk(k.machine.memory, space.tables.cr3, True, False)  # of virtual machines too
    while len(found) < length:
        size = min(length - len(found), PAGE - (address + len(found)) % PAGE)
        try:
            pa = translate(address + len(found), READ, False)
            found += k.machine.memory.u8[pa : pa + size]
        except NestedPageFault:
            found += bytes(size)
    return bytes(found)


def _mode(thread: Tcb | None) -> Mode:
    if thread is None:
        return "idle"
    if thread.vcpu is not None:
        return "guest"
    return "hosted" if thread.program is not None else "user"


def _registers(thread: Tcb | None) -> dict[str, int]:
    if thread is None:
        return {}
    registers = {name: int(value) for name, value in zip(REGISTER_NAMES, thread.regs.tolist(), strict=True)}
    if thread.vcpu is not None:
        vmcs = thread.vcpu.vmcs
        registers |= {f"CR{number}": vmcs.control_register(number) for number in (0, 2, 3, 4)}
        registers |= {name.upper(): vmcs.segment(name)[0] for name in _SELECTORS}
    else:
        registers["CR3"] = thread.space.tables.cr3
    return registers


def _disassembly(k: Kernel, thread: Tcb | None) -> list[DisasmLine]:
    """What the CPU will execute next; nothing for a hosted program, whose code is Python."""
    if thread is None or thread.program is not None:
        return []
    eip = thread.regs[EIP]
    if thread.vcpu is not None:
        vmcs, view = thread.vcpu.vmcs, k.machine.guest.view
        code, bits = view.read_code(vmcs, CODE_BYTES), view.bits(vmcs)
    else:
        code, bits = k.code_at(thread, CODE_BYTES), 32
    return [DisasmLine(at, data, text, at == eip) for at, data, text in disassemble(code, eip, bits)]


def _thread(thread: Tcb) -> ThreadView:
    kind: ThreadKind = "vcpu" if thread.vcpu else "hosted" if thread.program else "native"
    partner = None
    if thread.state is ThreadState.WAITING:
        partner = int(thread.wait_for)
    elif thread.send_to is not None:
        partner = int(thread.send_to.id)
    return ThreadView(
        id=int(thread.id),
        name=thread.name or ("vcpu" if thread.vcpu else f"thread {thread.id.thread_no}"),
        kind=kind,
        state=thread.state.name,
        priority=thread.priority,
        space=thread.space.number,
        partner=partner,
        waits="" if thread.wait is OWN_IPC else thread.wait.text,
        pager=None if thread.utcb is None else thread.tcr(u.PAGER) or None,
        time_slice=_finite(thread.time_slice),
        slice_left=_finite(max(preemption.remaining_slice(thread), 0)),
        quantum_left=_finite(preemption.remaining_quantum(thread)),
    )


def _finite(cycles: int) -> int | None:
    return None if cycles >= NEVER_ENDS // 2 else cycles


def _ports(space: Space) -> list[Ports]:
    """The ports of a space, neighbours from one giver together."""
    ranges: list[Ports] = []
    for port in sorted(space.ports):
        parent = space.ports[port].number
        last = ranges[-1] if ranges else None
        if last is not None and (last.first + last.count, last.parent) == (port, parent):
            ranges[-1] = Ports(last.first, last.count + 1, parent)
        else:
            ranges.append(Ports(port, 1, parent))
    return ranges


def _space(k: Kernel, space: Space) -> SpaceView:
    regions: list[Region] = []
    for page in space.tables.entries():
        if page.va >= space.user_limit or space.is_reserved(page.va, 1):
            continue
        giver = k.mappings.giver(space, page.va)
        parent = giver.number if giver is not None else None
        rights = Rights.R | Rights.X | (Rights.W if page.writable else Rights.NONE)
        last = regions[-1] if regions else None
        if (
            last is not None
            and last.va + last.size == page.va
            and last.pa + last.size == page.pa
            and (last.rights, last.parent) == (rights, parent)
        ):
            regions[-1] = Region(last.va, last.size + (1 << page.log2), last.pa, rights, parent)
        else:
            regions.append(Region(page.va, 1 << page.log2, page.pa, rights, parent))
    return SpaceView(
        id=space.number,
        name=space.name,
        is_vm=space.is_vm,
        kip=Area(space.kip_area.base, space.kip_area.size) if space.initialised else None,
        utcbs=Area(space.utcb_area.base, space.utcb_area.size) if space.initialised else None,
        regions=tuple(regions),
        ports=tuple(_ports(space)),
    )


# Kinds of messages as pictures tell them apart; what is not here the kernel has sent for a fault.
_KINDS: dict[MessageKind, IpcKind] = {
    MessageKind.SEND: "send",
    MessageKind.CALL: "send",
    MessageKind.START: "send",
    MessageKind.REPLY: "reply",
    MessageKind.ANSWER: "reply",
    MessageKind.VM_EXIT: "exit",
    MessageKind.INTERRUPT: "irq",
}


def _messages(latest: list[events.AnyEvent]) -> list[IpcView]:
    shown = []
    for event in latest:
        if isinstance(event, events.MessageSent):
            tag = MsgTag.decode(event.words[0])
            shown.append(
                IpcView(
                    cycle=event.at,
                    sender=event.sender,
                    receiver=event.receiver,
                    label=label_text(tag.label),
                    words=tuple(event.words[1:]),
                    kind=_KINDS.get(event.kind, "fault"),
                )
            )
    return shown


def _exit(event: events.VmExit) -> ExitView:
    return ExitView(event.at, event.vcpu, exit_name(event.reason), event.ip, exit_detail(event))


def exit_detail(event: events.VmExit) -> str:
    """The qualification of an exit in words."""
    if event.reason == ExitReason.IO_INSTRUCTION:
        io = IoAccess.decode(event.qualification)
        string = ("rep " if io.rep else "") + "string " if io.string else ""
        return f"{string}{'in' if io.is_in else 'out'} {io.port:#x}, {io.width} byte{'s' if io.width > 1 else ''}"
    if event.reason == ExitReason.CR_ACCESS:
        cr = CrAccess.decode(event.qualification)
        return f"{cr.access.name.lower().replace('_', ' ')} CR{cr.cr}"
    return f"{event.qualification:#x}" if event.qualification else ""
