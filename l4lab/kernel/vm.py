# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual CPUs: threads whose program is a guest.

A virtual CPU is a thread of a VM space. It runs guest code until the CPU exits; the exit becomes a message, the
virtualization fault, sent in the thread's name to its pager, the monitor, whose reply carries the new state. A guest
access to memory that is not mapped into the space is no exit to anybody: it is a page fault of the thread.
(The paper, sections 3 and 4; reference section 9.)

Guest memory is translated in one of two ways, by the space's choice: *nested*, where the CPU walks the guest's tables
and then the space's, or *shadow*, where it walks tables that vtlb.py makes of both; then page faults, INVLPG and loads
of control registers come here first, and most of them go no further.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

from l4lab.abi import utcb as u
from l4lab.abi.frame import EFLAGS, EIP
from l4lab.abi.message import Acceptor
from l4lab.abi.protocols import FaultId
from l4lab.abi.vm import CpuControls, ExitReason, ItemId, fault_id_of, label_of
from l4lab.abi.vm_state import INITIAL_STATE
from l4lab.kernel import ipc
from l4lab.kernel.events import EntryRefused, VmEntry, VmExit, VtlbFill, VtlbFlush
from l4lab.kernel.faults import items_for, page_fault
from l4lab.kernel.thread import MR, Tcb, ThreadState
from l4lab.kernel.transfer import apply_items
from l4lab.kernel.vtlb import FILLED, MISSING, RESERVE, Vtlb
from l4lab.machine import entrycheck
from l4lab.machine.guestmode import CR3_LOAD_EXITING, CR3_STORE_EXITING, HARDWARE_EXCEPTION, INVLPG_EXITING
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
_VALID = 1 << 31  # of an event
_WINDOW = CpuControls.INTERRUPT_WINDOW_EXITING
_DEBUG_DUE = entrycheck.SINGLE_STEP | 1 << 12  # what makes pending debug exceptions be delivered
_DEBUG_STATUS = entrycheck.SINGLE_STEP | 15  # what DR6 is then told
_INTERNAL = 8 << 16  # of the tag: the kernel has dealt with it, but the delivery of an event was cut short
_PAGE_FAULT, _DOUBLE_FAULT = 14, 8
_CONTRIBUTORY = frozenset((0, 10, 11, 12, 13))
_EXCEPTION = _VALID | 1 << 11 | HARDWARE_EXCEPTION << 8  # the event word of a hardware exception with an error code
FRAMES = 2 + RESERVE  # what a virtual CPU takes at most: control block, first shadow directory, the vTLB's own
FILL_CYCLES = 100  # what the kernel takes for an exit that nobody else hears of
MOST_ROUNDS = 64  # of those, before the caller may look whether somebody wants to stop
_PAGER = MR + u.PAGER // 4


class VirtualCpu:
    """What makes a thread a virtual CPU."""

    def __init__(self, vmcs: Vmcs, block: int, vtlb: Vtlb | None) -> None:
        self.vmcs = vmcs
        self.block = block  # the frame that the CPU was given for it
        self.vtlb = vtlb  # under shadow paging
        self.reflected = False  # the event that waits to be delivered is the guest's own page fault

    def frames(self) -> list[int]:
        """The kernel's frames that exist for it."""
        return [self.block, *(self.vtlb.frames() if self.vtlb else ())]


def create(k: Kernel, thread: Tcb) -> None:
    """The thread's space is a virtual machine: make it a virtual CPU (reference section 9.9 for the first state)."""
    directory = thread.space.tables.cr3
    block = k.frames.allocate()
    vmcs = k.machine.guest.create(thread.frame, block, directory)
    vtlb = None
    if thread.space.shadow_paging:
        vmcs.shadow_paging()
        vtlb = Vtlb(k.machine.memory, k.frames, vmcs, directory)
    thread.vcpu = VirtualCpu(vmcs, block, vtlb)
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
    if thread.vcpu.vtlb is not None:
        thread.vcpu.vtlb.release()
    thread.vcpu = None


def run(k: Kernel, thread: Tcb, deadline: int) -> bool:
    """Run guest code until an exit or `deadline`. True: it exited, and the kernel has been entered."""
    vcpu = thread.vcpu
    assert vcpu is not None
    vmcs = vcpu.vmcs
    if (vmcs.entry_info & _VALID or vmcs.unchecked) and not _prepare(k, thread, vmcs):
        return True
    if vcpu.vtlb is not None:
        return _run_shadowed(k, thread, vcpu, vcpu.vtlb, deadline)
    waiting = vmcs.entry_info & _VALID
    retired = k.machine.engine.retired if waiting else 0
    reason = k.machine.run_guest(vmcs, thread.space.tables.generation, deadline)
    k.now = k.clock.cycles
    if waiting and not vmcs.entry_info & _VALID:
        k.counters.injections += 1
    if reason is None:
        return False
    if reason is EPT_VIOLATION:
        if vmcs.idt_info & _VALID:  # the page that was missing was needed to deliver an event
            _keep_event(thread, vcpu, FaultId.PAGE_FAULT, bool(waiting) and k.machine.engine.retired == retired)
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


def _run_shadowed(k: Kernel, thread: Tcb, vcpu: VirtualCpu, vtlb: Vtlb, deadline: int) -> bool:
    """`run` under shadow paging. What concerns the shadow tables only ends here (reference section 9.4)."""
    machine, vmcs = k.machine, vcpu.vmcs
    for _ in range(MOST_ROUNDS):
        generation = thread.space.tables.generation
        if vtlb.generation != generation or vmcs.paging_changed:
            _follow(k, thread, vmcs, vtlb, generation)
        waiting = vmcs.entry_info & _VALID
        retired = machine.engine.retired if waiting else 0
        reason = machine.run_guest(vmcs, generation, deadline)
        k.now = k.clock.cycles
        own = False  # is what was cut short the guest's own page fault: nobody else's affair?
        if waiting and not vmcs.entry_info & _VALID:
            if vcpu.reflected:
                vcpu.reflected = False
                own = bool(vmcs.idt_info & _VALID) and machine.engine.retired == retired
            else:
                k.counters.injections += 1
        if reason is None:
            if vmcs.paging_changed:
                continue
            return False
        if reason is ExitReason.EXCEPTION_OR_NMI and vmcs.exit_info & 0xFF == _PAGE_FAULT:
            linear = vmcs.exit_qualification
            miss = vtlb.miss(linear, vmcs.exit_error)
            if miss is FILLED:
                k.trace.append(VtlbFill(k.now, thread.word, linear))
                if own:
                    _deliver_again(vcpu)
                elif vmcs.idt_info & _VALID:
                    first = bool(waiting) and machine.engine.retired == retired
                    if not _keep_event(thread, vcpu, _FAULT_ID[reason], first):
                        fault(k, thread, vmcs, reason, _INTERNAL)
                        return True
            elif miss is MISSING:
                if own:
                    _deliver_again(vcpu)
                elif vmcs.idt_info & _VALID:
                    first = bool(waiting) and machine.engine.retired == retired
                    _keep_event(thread, vcpu, FaultId.PAGE_FAULT, first)
                page_fault(k, thread, vtlb.missing, vtlb.missing_write)
                return True
            else:
                machine.guest.is_guest_fault(vmcs, vtlb.error_code)
                if vmcs.exception_bitmap >> _PAGE_FAULT & 1:
                    fault(k, thread, vmcs, reason)
                    return True
                if not _reflect(vmcs, linear):
                    fault(k, thread, vmcs, ExitReason.TRIPLE_FAULT)
                    return True
                vcpu.reflected = True
        elif reason is ExitReason.INVLPG:
            vtlb.drop_page(vmcs.exit_qualification)
            machine.engine.flush_page(vmcs.exit_qualification)
            if vmcs.cpu_controls & INVLPG_EXITING:
                fault(k, thread, vmcs, reason)
                return True
            machine.guest.skip(vmcs)
        elif reason is ExitReason.CR_ACCESS and _is_ours(vmcs):
            register = 9 - (vmcs.exit_qualification >> 8 & 15)
            if vmcs.exit_qualification & 16:
                thread.regs[register] = vmcs.control_register(3)
            else:
                vmcs.set_control_register(3, thread.regs[register])
            machine.guest.skip(vmcs)
        else:
            fault(k, thread, vmcs, reason)
            return True
        k.now = machine.charge(FILL_CYCLES)
    return False


def _keep_event(thread: Tcb, vcpu: VirtualCpu, fault_id: int, injected: bool) -> bool:
    """An event's delivery was cut short. Will the kernel deliver it again, since the monitor will not hear of it?

    A monitor that gets NONREGEXC with this fault finds the event in idt_info, and decides itself (reference section
    9.8). What an instruction causes comes again by itself when that is executed again.
    """
    vmcs = vcpu.vmcs
    if ItemId.NONREGEXC in thread.fault_items.get(fault_id, ()):
        return False
    if injected:
        vmcs.entry_info |= _VALID
    elif vmcs.idt_info >> 8 & 7 == HARDWARE_EXCEPTION:
        _deliver_again(vcpu)
    return True


def _deliver_again(vcpu: VirtualCpu) -> None:
    """Deliver the guest's own exception, whose delivery was cut short, at the next entry."""
    vmcs = vcpu.vmcs
    vmcs.entry_info, vmcs.entry_error, vmcs.idt_info = vmcs.idt_info & ~(1 << 12), vmcs.idt_error, 0
    vcpu.reflected = True


def _follow(k: Kernel, thread: Tcb, vmcs: Vmcs, vtlb: Vtlb, generation: int) -> None:
    """Have the shadow tables follow what was loaded into control registers, or unmapped from the space."""
    before = vtlb.dropped
    vmcs.paging_changed = False
    if vtlb.generation != generation:
        vtlb.drop_all(generation)
    else:
        vtlb.activate()
    k.machine.engine.flush_tlb()
    k.trace.append(VtlbFlush(k.now, thread.word, vmcs.control_register(3), vtlb.dropped - before))


def _is_ours(vmcs: Vmcs) -> bool:
    """Is this an access to CR3 that only shadow paging wants to hear of?"""
    qualification = vmcs.exit_qualification
    exiting = CR3_STORE_EXITING if qualification & 16 else CR3_LOAD_EXITING
    return qualification & 15 == 3 and not vmcs.cpu_controls & exiting


def _reflect(vmcs: Vmcs, linear: int) -> bool:
    """The guest's own page fault, which its monitor does not care for: deliver it. False: that shuts the guest down."""
    vector, error_code = _PAGE_FAULT, vmcs.exit_error
    first = vmcs.idt_info & 0xFF
    if vmcs.idt_info & _VALID and vmcs.idt_info >> 8 & 7 == HARDWARE_EXCEPTION:
        if first == _DOUBLE_FAULT:
            return False
        if first == _PAGE_FAULT or first in _CONTRIBUTORY:
            vector, error_code = _DOUBLE_FAULT, 0
    vmcs.set_control_register(2, linear)
    vmcs.entry_info, vmcs.entry_error = _EXCEPTION | vector, error_code
    return True


def fault(k: Kernel, thread: Tcb, vmcs: Vmcs, reason: ExitReason, internal: int = 0) -> None:
    """Send the virtualization fault to the monitor (reference section 9.3)."""
    k.counters.vm_exits[reason] += 1
    qualification, length = vmcs.exit_qualification, vmcs.exit_length
    k.trace.append(VmExit(k.now, thread.word, reason, qualification, length, thread.regs[EIP]))
    additional = _ADDITIONAL.get(reason)
    information = additional(vmcs) if additional else 0
    items = items_for(thread, _FAULT_ID[reason])
    words = (_LABEL[reason] | internal | len(items) << 6 | 3, qualification, length, information, *items)
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
