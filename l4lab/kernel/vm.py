# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual CPUs: threads whose program is a guest.

A virtual CPU is a thread of a VM space. It runs guest code until the CPU exits; the exit becomes a message, the
virtualization fault, sent in the thread's name to its pager, the monitor, whose reply carries the new state. A guest
access to memory that is not mapped into the space is no exit to anybody: it is a page fault of the thread.
(The paper, sections 3 and 4; reference section 9.)
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

from l4lab.abi import utcb as u
from l4lab.abi.frame import EFLAGS, EIP
from l4lab.abi.message import Acceptor
from l4lab.abi.vm import CpuControls, ExitReason, ItemId, fault_id_of, label_of
from l4lab.abi.vm_state import INITIAL_STATE
from l4lab.kernel import ipc
from l4lab.kernel.events import EntryRefused, VmEntry, VmExit
from l4lab.kernel.faults import items_for, page_fault
from l4lab.kernel.thread import MR, Tcb, ThreadState
from l4lab.kernel.transfer import apply_items
from l4lab.machine import entrycheck
from l4lab.machine.vmcs import Vmcs

if TYPE_CHECKING:
    from l4lab.kernel.kernel import Kernel

EPT_VIOLATION = ExitReason.EPT_VIOLATION
_LABEL: dict[ExitReason, int] = {
    reason: label_of(reason) << 16 for reason in ExitReason if reason is not ExitReason.EPT_VIOLATION
}
_FAULT_ID = {reason: fault_id_of(reason) for reason in ExitReason}
# What goes into MR3, where it is not zero.
_ADDITIONAL: dict[int, Callable[[Vmcs], int]] = {
    **dict.fromkeys(
        (ExitReason.CR_ACCESS, ExitReason.DR_ACCESS, ExitReason.IO_INSTRUCTION), attrgetter("guest_linear")
    ),
    **dict.fromkeys(range(ExitReason.VMCALL, ExitReason.VMXON + 1), attrgetter("instruction_info")),
}
_REGISTERS_ONLY = Acceptor.of(ctrlxfer=True)  # a reply to a VM fault cannot map (reference section 5.7)
_VALID, _TYPE = 1 << 31, 7 << 8  # of an event
_NMI = entrycheck.NMI << 8
_WINDOW = CpuControls.INTERRUPT_WINDOW_EXITING
_DEBUG_DUE = entrycheck.SINGLE_STEP | 1 << 12  # what makes pending debug exceptions be delivered
_DEBUG_STATUS = entrycheck.SINGLE_STEP | 15  # what DR6 is then told
_PAGER = MR + u.PAGER // 4


class VirtualCpu:
    """What makes a thread a virtual CPU."""

    def __init__(self, vmcs: Vmcs, block: int) -> None:
        self.vmcs = vmcs
        self.block = block  # the frame that the CPU was given for it


def create(k: Kernel, thread: Tcb) -> None:
    """The thread's space is a virtual machine: make it a virtual CPU (reference section 9.9 for the first state)."""
    block = k.frames.allocate()
    vmcs = k.machine.guest.create(thread.frame, block, thread.space.tables.cr3)
    thread.vcpu = VirtualCpu(vmcs, block)
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


def destroy(k: Kernel, thread: Tcb) -> None:
    """The virtual CPU's thread is deleted, or moves to an ordinary space."""
    assert thread.vcpu is not None
    wake(k, thread)  # not a virtual CPU any more, it is not asleep either
    k.machine.unload(thread.vcpu.vmcs)
    k.frames.free(thread.vcpu.block)
    thread.vcpu = None


def run(k: Kernel, thread: Tcb, deadline: int) -> bool:
    """Run guest code until an exit or `deadline`. True: it exited, and the kernel has been entered."""
    assert thread.vcpu is not None
    vmcs = thread.vcpu.vmcs
    waiting, retired = False, 0
    if vmcs.entry_info & _VALID or vmcs.unchecked:
        if not _prepare(k, thread, vmcs):
            return True
        waiting = bool(vmcs.entry_info & _VALID)
        retired = k.machine.engine.retired
    reason = k.machine.run_guest(vmcs, thread.space.tables.generation, deadline)
    k.now = k.clock.cycles
    if waiting:
        if not vmcs.entry_info & _VALID:
            k.counters.injections += 1
        elif vmcs.entry_info & _TYPE == _NMI:
            vmcs.block_nmi(False)  # it was not its turn yet
    if reason is None:
        return False
    if reason is EPT_VIOLATION:
        if waiting and vmcs.idt_info & _VALID and k.machine.engine.retired == retired:
            vmcs.entry_info |= _VALID  # the page that was missing was needed to deliver the event: once more, then
        page_fault(k, thread, vmcs.guest_physical, bool(vmcs.exit_qualification & 2))
    else:
        fault(k, thread, vmcs, reason)
    return True


def _prepare(k: Kernel, thread: Tcb, vmcs: Vmcs) -> bool:
    """What a VM entry does before the first instruction, if the monitor has changed more than plain registers.

    False: the guest is not entered, because its state is refused, or it exits at once, or it sleeps.
    (Intel SDM vol. 3, sections "Activity State", "Pending Debug Exceptions after VM Entry".)
    """
    flags = thread.regs[EFLAGS]
    refused = entrycheck.problem(vmcs, flags)
    if refused:
        k.trace.append(EntryRefused(k.now, thread.word, refused))
        return _exit_at_once(k, thread, vmcs, ExitReason.ENTRY_FAILURE_GUEST_STATE)
    if not vmcs.entry_info & _VALID:
        held_back = vmcs.interruptibility & entrycheck.BY_MOV_SS or vmcs.activity > entrycheck.HALTED
        if vmcs.pending_debug & _DEBUG_DUE and not held_back:
            return _debug_exception(k, thread, vmcs, vmcs.pending_debug & _DEBUG_STATUS)
        if vmcs.activity != entrycheck.ACTIVE:
            if vmcs.activity == entrycheck.HALTED and vmcs.cpu_controls & _WINDOW and flags & entrycheck.FLAG_IF:
                return _exit_at_once(k, thread, vmcs, ExitReason.INTERRUPT_WINDOW)
            thread.state = ThreadState.INACTIVE  # its state stays unchecked: when it wakes, it comes here again
            return False
    elif vmcs.entry_info & _TYPE == _NMI:
        vmcs.block_nmi(True)
    vmcs.accepted()
    vmcs.activity = entrycheck.ACTIVE
    return True


def _exit_at_once(
    k: Kernel, thread: Tcb, vmcs: Vmcs, reason: ExitReason, event: int = 0, qualification: int = 0
) -> bool:
    """An exit before the first instruction. If the monitor changes nothing, it comes again."""
    vmcs.idt_info = vmcs.exit_error = vmcs.exit_length = 0
    vmcs.exit_info, vmcs.exit_qualification = event, qualification
    vmcs.unchecked |= 1 << ItemId.NONREGEXC
    fault(k, thread, vmcs, reason)
    return False


def _debug_exception(k: Kernel, thread: Tcb, vmcs: Vmcs, cause: int) -> bool:
    """A debug exception was held back until now: the monitor gets it, if it wants to, or else the guest."""
    vmcs.pending_debug, vmcs.activity = 0, entrycheck.ACTIVE
    event = _VALID | entrycheck.HARDWARE_EXCEPTION << 8 | entrycheck.DEBUG_EXCEPTION
    if vmcs.exception_bitmap & 1 << entrycheck.DEBUG_EXCEPTION:
        return _exit_at_once(k, thread, vmcs, ExitReason.EXCEPTION_OR_NMI, event, cause)
    vmcs.set_debug_register(6, vmcs.debug_register(6) | cause)
    vmcs.entry_info = event
    vmcs.accepted()
    return True


def wake(k: Kernel, thread: Tcb) -> None:
    """Registers of a virtual CPU that sleeps were written: it looks whether it goes on."""
    if thread.state is ThreadState.INACTIVE:
        thread.state = ThreadState.RUNNING
        k.make_ready(thread)


def fault(k: Kernel, thread: Tcb, vmcs: Vmcs, reason: ExitReason) -> None:
    """Send the virtualization fault to the monitor (reference section 9.3)."""
    k.counters.vm_exits[reason] += 1
    qualification, length = vmcs.exit_qualification, vmcs.exit_length
    k.trace.append(VmExit(k.now, thread.word, reason, qualification, length, thread.regs[EIP]))
    additional = _ADDITIONAL.get(reason)
    information = additional(vmcs) if additional else 0
    items = items_for(thread, _FAULT_ID[reason])
    words = (_LABEL[reason] | len(items) << 6 | 3, qualification, length, information, *items)
    assert thread.utcb is not None, f"{thread!r} has no UTCB"
    ipc.call_for(k, thread, thread.utcb[_PAGER], words, _resume)


def _resume(k: Kernel, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The monitor has replied: its register items become the guest's state, and the guest is entered again."""
    error = apply_items(k, sender, thread, words, _REGISTERS_ONLY)
    vcpu = thread.vcpu
    if vcpu is not None:
        info = vcpu.vmcs.entry_info
        k.trace.append(VmEntry(k.now, thread.word, info if info & _VALID else 0))
    return error
