# SPDX-License-Identifier: GPL-2.0-or-later
"""The other system calls: SpaceControl, ExchangeRegisters, Schedule, ThreadSwitch, Unmap, SystemClock and the rest.

Each reads its arguments, refuses before it changes anything, and then acts. Source: X.2 manual, sections of the same
names; reference sections 4, 7 and 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4lab.abi import utcb as u
from l4lab.abi.calls import UNCHANGED, ErrorCode, ExregsControl, PrioControl, ScheduleResult, TimeControl, UnmapControl
from l4lab.abi.fpage import Fpage
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP, USER_EFLAGS_MASK
from l4lab.abi.ids import ThreadId
from l4lab.abi.kip import API_FLAGS, API_VERSION, KERNEL_DESC_POINTER
from l4lab.abi.message import CtrlXferItem, ItemType
from l4lab.abi.time import TimePeriod, microseconds
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.abi.vm import ITEM_REGISTERS, VM_FAULT_WORDS, ItemId
from l4lab.errors import Refused
from l4lab.kernel import ctrlxfer, events, ipc, vm
from l4lab.kernel.space import USER_LIMIT
from l4lab.kernel.thread import MR, NEVER_ENDS, Tcb, ThreadState

if TYPE_CHECKING:
    from l4lab.kernel.kernel import Kernel

VM = 1 << 30  # SpaceControl: this space is a virtual machine
MIN_AREA_LOG2 = 12
MIN_FRAMES = 2  # page tables of the KIP; and the blocks of virtual CPUs
ITEM_WORDS = MESSAGE_REGISTERS - 1 - VM_FAULT_WORDS  # what register items may take of a fault's message


def sys_space_control(k: Kernel, caller: Tcb) -> None:
    """Give a fresh space its KIP and UTCB areas; with the v bit, make it a virtual machine."""
    regs = caller.regs
    space_id, control = ThreadId.decode(regs[EAX]), regs[ECX]
    kip_area, utcb_area = Fpage.decode(regs[EDX]), Fpage.decode(regs[ESI])
    if not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    thread = k.threads.get(space_id.thread_no)
    if space_id.is_local or thread is None or thread.id != space_id:
        raise Refused(ErrorCode.INVALID_SPACE)
    space = thread.space
    k.frames.require(MIN_FRAMES + len(space.threads))
    if not space.initialised:
        if not _is_area(utcb_area):
            raise Refused(ErrorCode.UTCB_AREA)
        if not _is_area(kip_area) or _overlap(kip_area, utcb_area):
            raise Refused(ErrorCode.KIP_AREA)
    if control & VM and not space.is_vm:
        space.become_vm()
        for member in space.threads:
            vm.create(k, member)
    if not space.initialised:
        space.configure(kip_area, utcb_area, k.kip_frame)
    regs[EAX] = 1
    regs[ECX] = VM if space.is_vm else 0


def _is_area(area: Fpage) -> bool:
    return not area.is_nil and area.log2 >= MIN_AREA_LOG2 and area.base + area.size <= USER_LIMIT


def _overlap(a: Fpage, b: Fpage) -> bool:
    return a.base < b.base + b.size and b.base < a.base + a.size


# -- ExchangeRegisters -----------------------------------------------------------------------------------------------


def sys_exchange_registers(k: Kernel, caller: Tcb) -> None:
    """Read and change another thread's registers, and start, stop or abort it."""
    regs = caller.regs
    dest_word, control = regs[EAX], regs[ECX]
    dest = k.find(dest_word, caller)
    if dest is None or dest.utcb is None or not _may_exchange(k, caller, dest):
        regs[EAX] = 0
        raise Refused(ErrorCode.INVALID_THREAD)
    new_sp, new_ip, new_flags, handle, pager = regs[EDX], regs[ESI], regs[EDI], regs[EBX], regs[EBP]
    target = dest.regs
    old = _state_bits(dest)
    regs[EDX], regs[ESI], regs[EDI] = target[ESP], target[EIP], target[EFLAGS]
    regs[EBX], regs[EBP] = dest.tcr(u.USER_DEFINED_HANDLE), dest.tcr(u.PAGER)
    regs[ECX] = old
    regs[EAX] = dest.id if ThreadId.decode(dest_word).is_local else dest.local_id
    if dest.state is ThreadState.POLLING and control & ExregsControl.ABORT_SEND:
        ipc.cancel(k, dest)
    if dest.state is ThreadState.WAITING and control & ExregsControl.ABORT_RECEIVE:
        ipc.cancel(k, dest)
    if control & ExregsControl.SP:
        target[ESP] = new_sp
    if control & ExregsControl.IP:
        target[EIP] = new_ip
    if control & ExregsControl.FLAGS:
        target[EFLAGS] = new_flags & USER_EFLAGS_MASK | target[EFLAGS] & ~USER_EFLAGS_MASK
    if control & ExregsControl.USER_DEFINED_HANDLE:
        dest.set_tcr(u.USER_DEFINED_HANDLE, handle)
    if control & ExregsControl.PAGER:
        dest.set_tcr(u.PAGER, pager)
    if control & (ExregsControl.CONFIGURE_ITEMS | ExregsControl.READ_ITEMS | ExregsControl.WRITE_ITEMS):
        _exchange_items(caller, dest, control)
    if control & ExregsControl.ACT_ON_HALT:
        if control & ExregsControl.HALT:
            k.halt(dest, "by ExchangeRegisters")
        elif dest.state is ThreadState.HALTED:
            dest.state = ThreadState.RUNNING
            k.make_ready(dest)


def _may_exchange(k: Kernel, caller: Tcb, dest: Tcb) -> bool:
    if caller.space is dest.space or caller.space.privileged:
        return True
    pager = k.find(dest.tcr(u.PAGER), dest)
    return pager is not None and pager.space is caller.space


def _state_bits(thread: Tcb) -> int:
    match thread.state:
        case ThreadState.HALTED:
            return int(ExregsControl.HALT)
        case ThreadState.WAITING:
            return int(ExregsControl.ABORT_RECEIVE)
        case ThreadState.POLLING:
            return int(ExregsControl.ABORT_SEND)
        case _:
            return 0


def _exchange_items(caller: Tcb, dest: Tcb, control: int) -> None:
    """Register items in the caller's message registers from MR1 on: configure, then read, then write.

    Each list ends after the first item whose C bit is clear. Virtual CPUs always accept; the reference asks for the
    c bit of the thread's acceptor, which is a silent failure elsewhere (quirk Q12).
    """
    assert caller.utcb is not None
    words = caller.utcb[MR : MR + MESSAGE_REGISTERS]
    at = 1

    def item_at(at: int) -> CtrlXferItem | None:
        if at >= MESSAGE_REGISTERS:
            return None
        item = CtrlXferItem.decode(words[at])
        return item if item.type == ItemType.CTRLXFER else None

    if control & ExregsControl.CONFIGURE_ITEMS:
        while (item := item_at(at)) is not None:
            dest.fault_items[item.id] = _items_that_fit(item)
            at += 1
            if not item.more:
                break
    for wanted in (ExregsControl.READ_ITEMS, ExregsControl.WRITE_ITEMS):
        while control & wanted and (item := item_at(at)) is not None:
            end = min(at + item.words, MESSAGE_REGISTERS)
            if wanted is ExregsControl.READ_ITEMS:
                for i, value in zip(range(at + 1, end), ctrlxfer.read(dest, item), strict=False):
                    words[i] = value
            else:
                ctrlxfer.write(dest, item, words[at + 1 : end].tolist())
            at = end
            if not item.more:
                break


def _items_that_fit(configuration: CtrlXferItem) -> tuple[int, ...]:
    """The items of a configuration that exist, up to what a message can hold."""
    items: list[int] = []
    left = ITEM_WORDS
    for item in configuration.indices:
        if item in _ITEMS and 1 + len(ITEM_REGISTERS[ItemId(item)]) <= left:
            left -= 1 + len(ITEM_REGISTERS[ItemId(item)])
            items.append(item)
    return tuple(items)


_ITEMS = frozenset(ItemId)


# -- scheduling --------------------------------------------------------------------------------------------------------


def sys_schedule(k: Kernel, caller: Tcb) -> None:
    """Priority and time of a thread, for its scheduler."""
    regs = caller.regs
    dest = k.find(regs[EAX], caller)
    priority, time = regs[ECX], regs[EDX]
    if dest is None:
        raise Refused(ErrorCode.INVALID_THREAD)
    if not caller.space.privileged and caller.id != dest.scheduler:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    level = PrioControl.decode(priority).priority
    if priority != UNCHANGED and level > caller.priority and not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    slice_word, quantum_word = TimeControl.decode(time).time_slice, TimeControl.decode(time).total_quantum
    if time != UNCHANGED and (TimePeriod.decode(slice_word).point or TimePeriod.decode(quantum_word).point):
        raise Refused(ErrorCode.INVALID_PARAMETER)
    if priority != UNCHANGED:
        k.sched.set_priority(dest, level)
    if time != UNCHANGED:
        length = microseconds(slice_word)
        dest.time_slice = dest.slice_left = NEVER_ENDS if length is None else max(length, 1) * 1000
        quantum = microseconds(quantum_word)
        dest.total_quantum = NEVER_ENDS if quantum is None else quantum * 1000
    regs[EAX] = _RESULT[dest.state]
    regs[EDX] = (min(dest.slice_left // 1000, 0xFFFF) << 16) | (min(dest.total_quantum // 1000, 0xFFFF))


_RESULT = {
    ThreadState.ABORTED: ScheduleResult.DEAD,
    ThreadState.HALTED: ScheduleResult.INACTIVE,
    ThreadState.RUNNING: ScheduleResult.RUNNING,
    ThreadState.POLLING: ScheduleResult.PENDING_SEND,
    ThreadState.WAITING: ScheduleResult.WAITING,
}


def sys_thread_switch(k: Kernel, caller: Tcb) -> None:
    """Give up the rest of the time slice, to one thread or to whoever is next."""
    dest = k.find(caller.regs[EAX], caller)
    caller.slice_left = 0
    if dest is not None and dest.state is ThreadState.RUNNING and dest is not caller:
        k.favour(dest, caller)


# -- memory, time, kernel interface ----------------------------------------------------------------------------------


def sys_unmap(k: Kernel, caller: Tcb) -> None:
    """Revoke rights to pages that others got from the caller, and with the flush bit to its own."""
    regs, utcb = caller.regs, caller.utcb
    assert utcb is not None
    control = UnmapControl.decode(regs[EAX] & 0x7F)
    utcb[MR] = regs[ESI]
    for i in range(control.k + 1):
        fpage = Fpage.decode(utcb[MR + i])
        if fpage.is_nil or fpage.is_io:
            continue
        found = k.mappings.unmap(caller.space, fpage.base, max(fpage.log2, 12), fpage.rights, control.flush)
        utcb[MR + i] = fpage & ~7 | found.status
        now = k.now
        for page in found.pages:
            k.trace.append(events.Unmapped(now, page.space.name, page.va, page.log2, int(fpage.rights)))
    regs[ESI] = utcb[MR]


def sys_system_clock(k: Kernel, caller: Tcb) -> None:
    """Microseconds since power-on."""
    us = k.now // 1000
    caller.regs[EAX], caller.regs[EDX] = us & 0xFFFFFFFF, us >> 32


def sys_kernel_interface(k: Kernel, caller: Tcb) -> None:
    """Where the KIP is in the caller's space, and which kernel this is."""
    regs = caller.regs
    regs[EAX] = caller.space.kip_area.base
    regs[ECX], regs[EDX] = API_VERSION, API_FLAGS
    words = k.machine.memory.u32
    regs[ESI] = words[(k.kip_frame + words[k.kip_frame + KERNEL_DESC_POINTER >> 2]) >> 2]


def sys_memory_control(k: Kernel, caller: Tcb) -> None:
    """Cache attributes: the emulated machine has no caches, so a legal request is a done one."""
    if not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    if caller.regs[EAX] >= MESSAGE_REGISTERS:
        raise Refused(ErrorCode.INVALID_PARAMETER)
    caller.regs[EAX] = 1


def sys_processor_control(k: Kernel, caller: Tcb) -> None:
    """Frequencies and voltage cannot be changed here (quirk Q1: the reference does not even dispatch the call)."""
    if not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    caller.regs[EAX] = 1
