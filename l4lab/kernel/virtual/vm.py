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
from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi.exceptions import DEBUG, PAGE_FAULT, SHUTDOWN, escalated
from l4lab.abi.frame import EFLAGS, EIP, FLAG_IF, FLAG_VM, of_gpr
from l4lab.abi.message import Acceptor
from l4lab.abi.protocols import FaultId
from l4lab.abi.vm import (
    CR3_LOAD_EXITING,
    CR3_STORE_EXITING,
    EVENT_HAS_ERROR_CODE,
    EVENT_NMI_UNBLOCKING,
    EVENT_VALID,
    INTERNAL,
    CrAccessType,
    ExitReason,
    ItemId,
    fault_id_of,
    label_of,
)
from l4lab.abi.vm_state import INITIAL_STATE
from l4lab.kernel.events import (
    Blocked,
    EntryRefused,
    Injected,
    KernelExit,
    Resumed,
    VcpuCreated,
    VcpuDeleted,
    VmEntry,
    VmExit,
    VtlbFill,
    VtlbFlush,
)
from l4lab.kernel.ipc import ipc
from l4lab.kernel.ipc.faults import items_for, page_fault
from l4lab.kernel.ipc.transfer import apply_items
from l4lab.kernel.objects.counters import VcpuCounters
from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.objects.thread import MR, Tcb, ThreadState
from l4lab.kernel.objects.vcpu import Vcpu
from l4lab.kernel.objects.waits import MONITOR, OWN_IPC
from l4lab.kernel.parts import Miss, ShadowFill, ShadowPaging
from l4lab.kernel.state import State
from l4lab.kernel.virtual.filling import FilledTables
from l4lab.kernel.virtual.shadowtables import RESERVE
from l4lab.kernel.virtual.vtlb import Vtlb
from l4lab.machine import entrycheck
from l4lab.machine.vmcs import CR0_PE, Vmcs
from l4lab.machine.vtx import ACTIVE, BLOCKED_BY_MOV_SS, EPT_WRITE, HALTED, HARDWARE_EXCEPTION, INVLPG_EXITING, WINDOW

EPT_VIOLATION = ExitReason.EPT_VIOLATION
FILLED, MISSING = Miss.FILLED, Miss.MISSING
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
_DEBUG_DUE = entrycheck.SINGLE_STEP | 1 << 12  # what makes pending debug exceptions be delivered
_DEBUG_STATUS = entrycheck.SINGLE_STEP | 15  # what DR6 is then told
_INTERNAL: Final = INTERNAL << 16  # of the tag: the kernel has dealt with it, but an event's delivery was cut short
_EXCEPTION = EVENT_VALID | EVENT_HAS_ERROR_CODE | HARDWARE_EXCEPTION << 8  # a hardware exception with an error code
_FROM_CR: Final = CrAccessType.MOV_FROM_CR << 4  # of the qualification of an access to a control register
FRAMES = 2 + RESERVE  # what a virtual CPU takes at most: control block, first shadow directory, the vTLB's own
FILL_CYCLES = 100  # what the kernel takes for an exit that nobody else hears of
DELIVERY_CYCLES = 1  # what the CPU takes to deliver an event, before it executes anything
MOST_ROUNDS = 64  # of those, before the caller may look whether somebody wants to stop
_PAGER = MR + u.PAGER // 4


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
    k.function = "vm.fault"
    if (vmcs.entry_info & EVENT_VALID or vmcs.unchecked) and not _prepare(k, thread, vmcs):
        return True
    if vcpu.vtlb is not None:
        return _run_shadowed(k, thread, vcpu, vcpu.vtlb, deadline)
    counters, clock, tables = vcpu.counters, k.clock, thread.space.tables
    while True:
        event, retired = vmcs.entry_info, clock.retired
        waiting = event & EVENT_VALID
        delivered = clock.cycles + DELIVERY_CYCLES if waiting else 0
        reason = k.machine.run_guest(vmcs, tables.generation, deadline)
        k.now = clock.cycles
        executed = clock.retired - retired
        counters.instructions += executed
        # Is the event whose delivery the exit cut short the one that was to be delivered at the entry?
        first = bool(waiting and vmcs.idt_info & EVENT_VALID) and not executed
        touched = reason is EPT_VIOLATION and tables.touch(
            vmcs.guest_physical, vmcs.exit_qualification & 3 == EPT_WRITE
        )
        if touched and first:
            vmcs.entry_info |= EVENT_VALID
        own = False  # is it the guest's own exception, whose delivery was cut short before?
        if waiting and not vmcs.entry_info & EVENT_VALID:
            if vcpu.reflected:
                vcpu.reflected = False
                own = first
            else:
                counters.injections += 1
                k.note(Injected(delivered, thread.word, event))
        if not touched:
            break
        # A page was used, or written to, for the first time since Unmap asked: the CPU's own affair, in no time.
        if vmcs.idt_info & EVENT_VALID and not first and vmcs.idt_info >> 8 & 7 == HARDWARE_EXCEPTION:
            _deliver_again(vcpu)
    if reason is None:
        return False
    if reason is EPT_VIOLATION:
        if own:
            _deliver_again(vcpu)
        elif vmcs.idt_info & EVENT_VALID:  # the page that was missing was needed to deliver an event
            _keep_event(thread, vcpu, FaultId.PAGE_FAULT, first)
        counters.nested_faults += 1
        k.function = "faults.page_fault"
        page_fault(k, thread, vmcs.guest_physical, bool(vmcs.exit_qualification & EPT_WRITE))
    else:
        fault(k, thread, vmcs, reason)
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
            k.function = "vm.run"
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
    fault(k, thread, vmcs, reason)
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


def _run_shadowed(k: State, thread: Tcb, vcpu: Vcpu, vtlb: ShadowPaging, deadline: int) -> bool:
    """`run` under shadow paging. What concerns the shadow tables only ends here (reference section 9.4)."""
    machine, vmcs, counters, clock = k.machine, vcpu.vmcs, vcpu.counters, k.clock
    for _ in range(MOST_ROUNDS):
        generation = thread.space.tables.generation
        if vtlb.generation != generation or vmcs.paging_changed:
            _follow(k, thread, vcpu, vtlb, generation)
        event, retired = vmcs.entry_info, clock.retired
        waiting = event & EVENT_VALID
        delivered = clock.cycles + DELIVERY_CYCLES if waiting else 0
        reason = machine.run_guest(vmcs, generation, deadline)
        k.now = clock.cycles
        executed = clock.retired - retired
        counters.instructions += executed
        # Is the event whose delivery the exit cut short the one that was to be delivered at the entry?
        first = bool(waiting and vmcs.idt_info & EVENT_VALID) and not executed
        own = False  # and is it the guest's own page fault: nobody else's affair?
        if waiting and not vmcs.entry_info & EVENT_VALID:
            if vcpu.reflected:
                vcpu.reflected = False
                own = first
            else:
                counters.injections += 1
                k.note(Injected(delivered, thread.word, event))
        if reason is None:
            if vmcs.paging_changed:
                continue
            return False
        if reason is ExitReason.EXCEPTION_OR_NMI and vmcs.exit_info & 0xFF == PAGE_FAULT:
            told = _shadow_fault(k, thread, vcpu, vtlb, first, own)
        elif reason is ExitReason.INVLPG:
            told = _invalidate(k, thread, vcpu, vtlb)
        elif reason is ExitReason.CR_ACCESS and _is_ours(vmcs):
            told = _access_cr3(k, thread, vcpu)
        else:
            fault(k, thread, vmcs, reason)
            told = True
        if told:
            return True
        k.now = machine.charge(FILL_CYCLES)
    return False


# The exits of shadow paging. True: somebody is told, so the guest does not go on at once.


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
            _deliver_again(vcpu)
        elif vmcs.idt_info & EVENT_VALID:
            told = not _keep_event(thread, vcpu, _FAULT_ID[reason], first)
        counters.vtlb_fills += 1
        k.note(VtlbFill(k.now, thread.word, linear, told))
        if told:
            fault(k, thread, vmcs, reason, _INTERNAL)
        else:
            _count(counters.kernel_exits, reason)
        return told
    if miss is MISSING:
        if own:
            _deliver_again(vcpu)
        elif vmcs.idt_info & EVENT_VALID:
            _keep_event(thread, vcpu, FaultId.PAGE_FAULT, first)
        counters.nested_faults += 1
        k.function = "faults.page_fault"
        page_fault(k, thread, vtlb.missing, vtlb.missing_write)
        return True
    k.machine.guest.is_guest_fault(vmcs, vtlb.error_code)
    if vmcs.exception_bitmap >> PAGE_FAULT & 1:
        fault(k, thread, vmcs, reason)
        return True
    if not _reflect(vmcs, linear):
        fault(k, thread, vmcs, ExitReason.TRIPLE_FAULT)
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
        fault(k, thread, vmcs, ExitReason.INVLPG)
        return True
    _ended_here(k, thread, vcpu, ExitReason.INVLPG)
    k.machine.guest.skip(vmcs)
    return False


def _access_cr3(k: State, thread: Tcb, vcpu: Vcpu) -> bool:
    """MOV to or from CR3, of which the monitor does not want to hear."""
    vmcs = vcpu.vmcs
    _ended_here(k, thread, vcpu, ExitReason.CR_ACCESS)
    register = of_gpr(vmcs.exit_qualification >> 8 & 15)
    if vmcs.exit_qualification & _FROM_CR:
        thread.regs[register] = vmcs.control_register(3)
    else:
        vmcs.set_control_register(3, thread.regs[register])
    k.machine.guest.skip(vmcs)
    return False


def _keep_event(thread: Tcb, vcpu: Vcpu, fault_id: int, injected: bool) -> bool:
    """An event's delivery was cut short. Will the kernel deliver it again, since the monitor will not hear of it?

    A monitor that gets NONREGEXC with this fault finds the event in idt_info, and decides itself (reference section
    9.8). What an instruction causes comes again by itself when that is executed again.
    """
    vmcs = vcpu.vmcs
    if ItemId.NONREGEXC in thread.fault_items.get(fault_id, ()):
        return False
    if injected:
        vmcs.entry_info |= EVENT_VALID
    elif vmcs.idt_info >> 8 & 7 == HARDWARE_EXCEPTION:
        _deliver_again(vcpu)
    return True


def _deliver_again(vcpu: Vcpu) -> None:
    """Deliver the guest's own exception, whose delivery was cut short, at the next entry."""
    vmcs = vcpu.vmcs
    vmcs.entry_info, vmcs.entry_error, vmcs.idt_info = vmcs.idt_info & ~EVENT_NMI_UNBLOCKING, vmcs.idt_error, 0
    vcpu.reflected = True


def _count(counts: dict[int, int], reason: ExitReason) -> None:
    """One more exit for this reason."""
    counts[reason] = counts.get(reason, 0) + 1


def _ended_here(k: State, thread: Tcb, vcpu: Vcpu, reason: ExitReason) -> None:
    """An exit of which nobody else hears."""
    _count(vcpu.counters.kernel_exits, reason)
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
    qualification = vmcs.exit_qualification
    exiting = CR3_STORE_EXITING if qualification & _FROM_CR else CR3_LOAD_EXITING
    return qualification & 15 == 3 and not vmcs.cpu_controls & exiting


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


def fault(k: State, thread: Tcb, vmcs: Vmcs, reason: ExitReason, internal: int = 0) -> None:
    """Send the virtualization fault to the monitor (reference section 9.3)."""
    assert thread.vcpu is not None, f"{thread!r} has no guest"
    counters = thread.vcpu.counters
    _count(counters.exits, reason)
    qualification, length = vmcs.exit_qualification, vmcs.exit_length
    k.note(VmExit(k.now, thread.told, reason, qualification, length, thread.regs[EIP], counters.instructions))
    additional = _ADDITIONAL.get(reason)
    information = additional(vmcs) if additional else 0
    items = items_for(thread, _FAULT_ID[reason])
    words = (_LABEL[reason] | internal | len(items) << 6 | 3, qualification, length, information, *items)
    assert thread.utcb is not None, f"{thread!r} has no UTCB"
    ipc.call_for(k, thread, thread.utcb[_PAGER], words, MONITOR)


def resumed(k: State, thread: Tcb, words: tuple[int, ...], sender: Tcb) -> int:
    """The monitor has replied: its register items become the guest's state, and the guest is entered again."""
    error = apply_items(k, sender, thread, words, _REGISTERS_ONLY)
    vcpu = thread.vcpu
    if vcpu is not None:
        info = vcpu.vmcs.entry_info
        k.note(VmEntry(k.now, thread.told, info if info & EVENT_VALID else 0))
    return error
