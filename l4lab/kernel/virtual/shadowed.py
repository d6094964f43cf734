# SPDX-License-Identifier: GPL-2.0-or-later
"""Running a guest under shadow paging: the exits that concern nobody but its shadow tables.

Page faults, INVLPG and loads of control registers exit to the kernel. Most of them end here, and the guest goes on at
once; the others become faults to the monitor or the pager. What the tables are is `vtlb.py`. (Reference section 9.4.)
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.exceptions import PAGE_FAULT, SHUTDOWN, escalated
from l4lab.abi.frame import EIP
from l4lab.abi.protocols import FaultId
from l4lab.abi.vm import (
    CR3_LOAD_EXITING,
    CR3_STORE_EXITING,
    EVENT_HAS_ERROR_CODE,
    EVENT_VALID,
    CrAccess,
    CrAccessType,
    ExitReason,
)
from l4lab.kernel.events import KernelExit, VtlbFill, VtlbFlush
from l4lab.kernel.ipc.faults import page_fault
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.objects.vcpu import Vcpu
from l4lab.kernel.parts import Miss, ShadowPaging
from l4lab.kernel.state import State
from l4lab.kernel.virtual import vmfault
from l4lab.kernel.virtual.entering import enter
from l4lab.machine.guestmode import Pause
from l4lab.machine.vmcs import Vmcs
from l4lab.machine.vtx import HARDWARE_EXCEPTION, INVLPG_EXITING

FILLED: Final = Miss.FILLED
MISSING: Final = Miss.MISSING
_EXCEPTION: Final = EVENT_VALID | EVENT_HAS_ERROR_CODE | HARDWARE_EXCEPTION << 8  # a hardware exception with a code
FILL_CYCLES: Final = 100  # what the kernel takes for an exit that nobody else hears of
MOST_ROUNDS: Final = 64  # exits that end here, before the caller may look whether somebody wants to stop


def run(k: State, thread: Tcb, vcpu: Vcpu, vtlb: ShadowPaging, deadline: int) -> bool:
    """`run` under shadow paging. What concerns the shadow tables only ends here (reference section 9.4)."""
    machine, vmcs = k.machine, vcpu.vmcs
    for _ in range(MOST_ROUNDS):
        generation = thread.space.tables.generation
        if vtlb.generation != generation or vmcs.paging_changed:
            _follow(k, thread, vcpu, vtlb, generation)
        reason, first, own = enter(k, thread, vcpu, deadline)
        if reason is Pause.PAGING_CHANGED:
            continue
        if isinstance(reason, Pause):
            return False
        if reason is ExitReason.EXCEPTION_OR_NMI and vmcs.exit_info & 0xFF == PAGE_FAULT:
            told = _shadow_fault(k, thread, vcpu, vtlb, first, own)
        elif reason is ExitReason.INVLPG:
            told = _invalidate(k, thread, vcpu, vtlb)
        elif reason is ExitReason.CR_ACCESS and _is_ours(vmcs):
            told = _access_cr3(k, thread, vcpu)
        else:
            vmfault.send(k, thread, vmcs, reason)
            told = True
        if told:
            return True
        k.now = machine.charge(FILL_CYCLES)
    return False


# The exits. True: somebody is told, so the guest does not go on at once.


def _shadow_fault(k: State, thread: Tcb, vcpu: Vcpu, vtlb: ShadowPaging, first: bool, own: bool) -> bool:
    """The CPU's walk failed: an entry is filled in, or a page is missing in the space, or it is the guest's own fault.

    `first`: what it cut short, if anything, is the event that was to be delivered at the entry. `own`: which was the
    guest's own page fault.
    """
    vmcs = vcpu.vmcs
    linear = vmcs.exit_qualification
    miss = vtlb.miss(linear, vmcs.exit_error)
    reason, counters = ExitReason.EXCEPTION_OR_NMI, vcpu.counters
    if miss is FILLED:
        told = False
        if own:
            vmfault.deliver_again(vcpu)
        elif vmcs.idt_info & EVENT_VALID:
            told = not vmfault.keep_event(thread, vcpu, vmfault.FAULT_ID[reason], first)
        counters.vtlb_fills += 1
        k.note(VtlbFill(k.now, thread.word, linear, told))
        if told:
            vmfault.send(k, thread, vmcs, reason, vmfault.INTERNAL_EXIT)
        else:
            vmfault.count(counters.kernel_exits, reason)
        return told
    if miss is MISSING:
        if own:
            vmfault.deliver_again(vcpu)
        elif vmcs.idt_info & EVENT_VALID:
            vmfault.keep_event(thread, vcpu, FaultId.PAGE_FAULT, first)
        counters.nested_faults += 1
        k.function = "faults.page_fault"
        page_fault(k, thread, vtlb.missing, vtlb.missing_write)
        return True
    k.machine.guest.is_guest_fault(vmcs, vtlb.error_code)
    if vmcs.exception_bitmap >> PAGE_FAULT & 1:
        vmfault.send(k, thread, vmcs, reason)
        return True
    if not _reflect(vmcs, linear):
        vmfault.send(k, thread, vmcs, ExitReason.TRIPLE_FAULT)
        return True
    vcpu.reflected = True
    _ended_here(k, thread, vcpu, reason)
    return False


def _invalidate(k: State, thread: Tcb, vcpu: Vcpu, vtlb: ShadowPaging) -> bool:
    """INVLPG: the shadow tables forget the page, and so does the CPU."""
    vmcs, before = vcpu.vmcs, vtlb.dropped
    vtlb.drop_page(vmcs.exit_qualification)
    k.machine.engine.flush_page(vmcs.exit_qualification)
    _flushed(k, thread, vcpu, vtlb.dropped - before, vmcs.exit_qualification)
    if vmcs.cpu_controls & INVLPG_EXITING:
        vmfault.send(k, thread, vmcs, ExitReason.INVLPG)
        return True
    _ended_here(k, thread, vcpu, ExitReason.INVLPG)
    k.machine.guest.skip(vmcs)
    return False


def _access_cr3(k: State, thread: Tcb, vcpu: Vcpu) -> bool:
    """MOV to or from CR3, of which the monitor does not want to hear."""
    vmcs = vcpu.vmcs
    _ended_here(k, thread, vcpu, ExitReason.CR_ACCESS)
    access = CrAccess.decode(vmcs.exit_qualification)
    if access.access is CrAccessType.MOV_FROM_CR:
        thread.regs[access.register] = vmcs.control_register(3)
    else:
        vmcs.set_control_register(3, thread.regs[access.register])
    k.machine.guest.skip(vmcs)
    return False


def _ended_here(k: State, thread: Tcb, vcpu: Vcpu, reason: ExitReason) -> None:
    """An exit of which nobody else hears."""
    vmfault.count(vcpu.counters.kernel_exits, reason)
    k.note(KernelExit(k.now, thread.word, reason, vcpu.vmcs.exit_qualification, thread.regs[EIP]))


def _flushed(k: State, thread: Tcb, vcpu: Vcpu, dropped: int, page: int | None = None) -> None:
    """The shadow tables were flushed: of what was no longer true, that is."""
    vcpu.counters.vtlb_flushes += 1
    k.note(VtlbFlush(k.now, thread.word, vcpu.vmcs.control_register(3), dropped, page))


def _follow(k: State, thread: Tcb, vcpu: Vcpu, vtlb: ShadowPaging, generation: int) -> None:
    """Have the shadow tables follow what was loaded into control registers, or unmapped from the space."""
    vmcs, before = vcpu.vmcs, vtlb.dropped
    vmcs.paging_changed = False
    if vtlb.generation != generation:
        vtlb.drop_all(generation)
    else:
        vtlb.activate()
    k.machine.engine.flush_tlb()
    _flushed(k, thread, vcpu, vtlb.dropped - before)


def _is_ours(vmcs: Vmcs) -> bool:
    """Is this an access to CR3 that only shadow paging wants to hear of?"""
    access = CrAccess.decode(vmcs.exit_qualification)
    exiting = CR3_STORE_EXITING if access.access is CrAccessType.MOV_FROM_CR else CR3_LOAD_EXITING
    return access.cr == 3 and not vmcs.cpu_controls & exiting


def _reflect(vmcs: Vmcs, linear: int) -> bool:
    """The guest's own page fault, which its monitor does not care for: deliver it. False: that shuts the guest down."""
    vector = PAGE_FAULT
    if vmcs.idt_info & EVENT_VALID and vmcs.idt_info >> 8 & 7 == HARDWARE_EXCEPTION:
        vector = escalated(vmcs.idt_info & 0xFF, PAGE_FAULT)
        if vector == SHUTDOWN:
            return False
    vmcs.set_control_register(2, linear)
    vmcs.entry_info = _EXCEPTION | vector
    vmcs.entry_error = vmcs.exit_error if vector == PAGE_FAULT else 0
    return True
