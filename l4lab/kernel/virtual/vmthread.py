# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual CPUs: threads whose program is a guest.

A virtual CPU is a thread of a VM space. It runs guest code until the CPU exits; the exit becomes a message, the
virtualization fault, sent in the thread's name to its pager, the monitor, whose reply carries the new state. A guest
access to memory that is not mapped into the space is no exit to anybody: it is a page fault of the thread.
(The paper, sections 3 and 4; reference section 9.)

Guest memory is translated in one of two ways, by the space's choice: *nested*, where the CPU walks the guest's tables
and then the space's, or *shadow*, where it walks tables that vtlb.py makes of both; then page faults, INVLPG and loads
of control registers come to the kernel first, and most of them go no further (`shadowed.py`). What the monitor is told
is `vmfault.py`.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.exceptions import DEBUG
from l4lab.abi.frame import EFLAGS, FLAG_IF, FLAG_VM
from l4lab.abi.protocols import FaultId
from l4lab.abi.vm import (
    EVENT_VALID,
    EptViolation,
    ExitReason,
    ItemId,
)
from l4lab.abi.vm_state import INITIAL_STATE
from l4lab.kernel.events import (
    Blocked,
    EntryRefused,
    Resumed,
    VcpuCreated,
    VcpuDeleted,
)
from l4lab.kernel.ipc.faults import page_fault
from l4lab.kernel.objects.counters import VcpuCounters
from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.vcpu import Vcpu
from l4lab.kernel.objects.waits import OWN_IPC
from l4lab.kernel.parts import ShadowFill, ShadowPaging
from l4lab.kernel.state import State
from l4lab.kernel.virtual import shadowed, vmfault
from l4lab.kernel.virtual.entering import EPT_VIOLATION, enter
from l4lab.kernel.virtual.filling import FilledTables
from l4lab.kernel.virtual.shadowtables import RESERVE
from l4lab.kernel.virtual.vtlb import Vtlb
from l4lab.machine import entrycheck
from l4lab.machine.guestmode import Pause
from l4lab.machine.vmcs import CR0_PE, Vmcs
from l4lab.machine.vtx import ACTIVE, BLOCKED_BY_MOV_SS, HALTED, HARDWARE_EXCEPTION, WINDOW

_DEBUG_DUE: Final = entrycheck.SINGLE_STEP | 1 << 12  # what makes pending debug exceptions be delivered
_DEBUG_STATUS: Final = entrycheck.SINGLE_STEP | 15  # what DR6 is then told
# What a virtual CPU takes at most: control block, first shadow directory, the vTLB's own.
FRAMES: Final[int] = 2 + RESERVE


def create(k: State, thread: Tcb) -> None:
    """The thread's space is a virtual machine: make it a virtual CPU (reference section 9.9 for the first state)."""
    directory = thread.space.tables.cr3
    block = k.frames.allocate()
    vmcs = k.machine.guest.create(thread.frame, block, directory)
    vtlb: ShadowPaging | None = None
    if thread.space.shadow_paging:
        vmcs.shadow_paging()
        vtlb = _shadow_tables(k, vmcs, directory)
    thread.vcpu = Vcpu(vmcs, block, vtlb, _counters(k, thread))
    vmcs.pin_controls, vmcs.cpu_controls, vmcs.exception_bitmap = INITIAL_STATE[ItemId.EXECCTRL]
    # Real CR0 and CR4 as after reset, since nested paging lets the CPU run real mode; masks and shadows as the table.
    vmcs.set_control_register(0, 0x6000_0010)
    vmcs.set_control_register(4, 0)
    for item, name in (
        *((ItemId.CS, "cs"), (ItemId.SS, "ss"), (ItemId.DS, "ds"), (ItemId.ES, "es")),
        *((ItemId.FS, "fs"), (ItemId.GS, "gs"), (ItemId.TR, "tr"), (ItemId.LDTR, "ldtr")),
    ):
        vmcs.set_segment(name, *INITIAL_STATE[item])
    vmcs.set_table("gdtr", *INITIAL_STATE[ItemId.GDTR])
    vmcs.set_table("idtr", *INITIAL_STATE[ItemId.IDTR])
    thread.regs[EFLAGS] = 2


def _shadow_tables(k: State, vmcs: Vmcs, directory: int) -> ShadowPaging:
    """The kernel's own, or simple ones that a part fills."""
    if k.parts.shadow is None:
        return Vtlb(k.machine.memory, k.frames, vmcs, directory)
    part = OutsidePart(ShadowFill, ("fill",), k.parts.shadow)
    k.outside.append(part)
    return FilledTables(k.machine.memory, k.frames, vmcs, directory, part)


def _counters(k: State, thread: Tcb) -> VcpuCounters:
    """What is going to be counted of a new virtual CPU."""
    space, counters = thread.space, k.counters
    if not space.machine:
        counters.machines += 1
        space.machine = counters.machines
    made = VcpuCounters(thread.word, space.machine, space.name, space.shadow_paging)
    counters.virtual_cpus.append(made)
    k.trace.append(VcpuCreated(k.now, thread.word, made.machine, made.name, made.shadow))
    return made


def destroy(k: State, thread: Tcb) -> None:
    """The virtual CPU's thread is deleted, or moves to an ordinary space."""
    assert thread.vcpu is not None
    k.trace.append(VcpuDeleted(k.now, thread.word, thread.vcpu.counters.instructions))
    k.counters.ended(thread.vcpu.counters)
    wake(k, thread)  # not a virtual CPU any more, it is not asleep either
    k.machine.unload(thread.vcpu.vmcs)
    k.frames.free(thread.vcpu.block)
    if thread.vcpu.vtlb is not None:
        thread.vcpu.vtlb.release()
    thread.vcpu = None


def run(k: State, thread: Tcb, deadline: int) -> bool:
    """Run guest code until an exit or `deadline`. True: it exited, and the kernel has been entered."""
    vcpu = thread.vcpu
    assert vcpu is not None
    vmcs = vcpu.vmcs
    k.function = "vmfault.send"
    if (vmcs.entry_info & EVENT_VALID or vmcs.unchecked) and not _prepare(k, thread, vmcs):
        return True
    if vcpu.vtlb is not None:
        return shadowed.run(k, thread, vcpu, vcpu.vtlb, deadline)
    reason, first, own = enter(k, thread, vcpu, deadline)
    if isinstance(reason, Pause):
        return False
    if reason is EPT_VIOLATION:
        if own:
            vmfault.deliver_again(vcpu)
        elif vmcs.idt_info & EVENT_VALID:  # the page that was missing was needed to deliver an event
            vmfault.keep_event(thread, vcpu, FaultId.PAGE_FAULT, first)
        vcpu.counters.nested_faults += 1
        k.function = "faults.page_fault"
        page_fault(k, thread, vmcs.guest_physical, EptViolation.decode(vmcs.exit_qualification).write)
    else:
        vmfault.send(k, thread, vmcs, reason)
    return True


def _prepare(k: State, thread: Tcb, vmcs: Vmcs) -> bool:
    """What a VM entry does before the first instruction, if the monitor has changed more than plain registers.

    False: the guest is not entered, because its state is refused, or it exits at once, or it sleeps.
    (Intel SDM vol. 3, sections "Activity State", "Pending Debug Exceptions after VM Entry".)
    """
    flags = thread.regs[EFLAGS]
    if flags & FLAG_VM and not vmcs.control_register(0) & CR0_PE:
        # In the reference PE of the real CR0 is always one, and a monitor that runs real-mode code in virtual-8086
        # mode writes CR0 as that code is to see it.
        vmcs.set_control_register(0, vmcs.control_register(0) | CR0_PE)
    refused = entrycheck.problem(vmcs, flags)
    if refused:
        k.trace.append(EntryRefused(k.now, thread.word, refused))
        return _exit_at_once(k, thread, vmcs, ExitReason.ENTRY_FAILURE_GUEST_STATE)
    if not vmcs.entry_info & EVENT_VALID:
        held_back = vmcs.interruptibility & BLOCKED_BY_MOV_SS or vmcs.activity > HALTED
        if vmcs.pending_debug & _DEBUG_DUE and not held_back:
            return _debug_exception(k, thread, vmcs, vmcs.pending_debug & _DEBUG_STATUS)
        if vmcs.activity != ACTIVE:
            if vmcs.activity == HALTED and vmcs.cpu_controls & WINDOW and flags & FLAG_IF:
                return _exit_at_once(k, thread, vmcs, ExitReason.INTERRUPT_WINDOW)
            k.function = "vmthread.run"
            thread.state = ThreadState.INACTIVE  # its state stays unchecked: when it wakes, it comes here again
            k.trace.append(Blocked(k.now, thread.word, "INACTIVE", 0, OWN_IPC.name))
            return False
    vmcs.accepted()
    vmcs.activity = ACTIVE
    return True


def _exit_at_once(
    k: State, thread: Tcb, vmcs: Vmcs, reason: ExitReason, event: int = 0, qualification: int = 0
) -> bool:
    """An exit before the first instruction. If the monitor changes nothing, it comes again."""
    vmcs.idt_info = vmcs.exit_error = vmcs.exit_length = 0
    vmcs.exit_info, vmcs.exit_qualification = event, qualification
    vmcs.unchecked |= 1 << ItemId.NONREGEXC
    vmfault.send(k, thread, vmcs, reason)
    return False


def _debug_exception(k: State, thread: Tcb, vmcs: Vmcs, cause: int) -> bool:
    """A debug exception was held back until now: the monitor gets it, if it wants to, or else the guest."""
    vmcs.pending_debug, vmcs.activity = 0, ACTIVE
    event = EVENT_VALID | HARDWARE_EXCEPTION << 8 | DEBUG
    if vmcs.exception_bitmap & 1 << DEBUG:
        return _exit_at_once(k, thread, vmcs, ExitReason.EXCEPTION_OR_NMI, event, cause)
    vmcs.set_debug_register(6, vmcs.debug_register(6) | cause)
    vmcs.entry_info = event
    vmcs.accepted()
    return True


def wake(k: State, thread: Tcb) -> None:
    """Registers of a virtual CPU that sleeps were written: it looks whether it goes on."""
    if thread.state is ThreadState.INACTIVE:
        thread.state = ThreadState.RUNNING
        k.trace.append(Resumed(k.now, thread.word))
        k.make_ready(thread)
