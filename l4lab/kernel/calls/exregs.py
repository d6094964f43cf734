# SPDX-License-Identifier: GPL-2.0-or-later
"""ExchangeRegisters: look at another thread, change its registers, stop it, start it, abort its IPC.

Source: X.2 manual, section ExchangeRegisters; for register items, reference section 8.3.
"""

from __future__ import annotations

from l4lab.abi import utcb as u
from l4lab.abi.calls import ErrorCode, ExregsControl
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP, USER_EFLAGS_MASK
from l4lab.abi.ids import LOCAL_BITS
from l4lab.abi.message import CtrlXferItem, ItemType
from l4lab.abi.protocols import FAULT_IDS
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.abi.vm import ITEM_REGISTERS, VM_FAULT_WORDS, ItemId
from l4lab.errors import Refused
from l4lab.kernel.events import Resumed
from l4lab.kernel.ipc import ctrlxfer, ipc
from l4lab.kernel.objects.thread import MR, Tcb, ThreadState
from l4lab.kernel.state import State
from l4lab.kernel.virtual import vmthread

ITEM_WORDS = MESSAGE_REGISTERS - 1 - VM_FAULT_WORDS  # what register items may take of a fault's message
_ZERO_FLAG = 1 << 6
_ITEM_CONTROLS = ExregsControl.CONFIGURE_ITEMS | ExregsControl.READ_ITEMS | ExregsControl.WRITE_ITEMS


def sys_exchange_registers(k: State, caller: Tcb) -> None:
    """Read and change a thread's registers; abort its IPC, halt or resume it. Always returns all old values."""
    regs = caller.regs
    dest, control = k.find(regs[EAX], caller), ExregsControl(regs[ECX] & 0xFFF)
    was_local = _was_local(caller)
    if dest is None or dest.utcb is None or not _may_exchange(k, caller, dest):
        raise Refused(ErrorCode.INVALID_THREAD)
    new_sp, new_ip, new_flags, handle, pager = regs[EDX], regs[ESI], regs[EDI], regs[EBX], regs[EBP]
    target = dest.regs
    regs[ECX] = _state_bits(dest)
    regs[EDX], regs[ESI], regs[EDI] = target[ESP], target[EIP], target[EFLAGS]
    regs[EBX], regs[EBP] = dest.tcr(u.USER_DEFINED_HANDLE), dest.tcr(u.PAGER)
    regs[EAX] = dest.id if was_local else dest.local_id

    if control & _phase(dest):
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
        ipc.set_pager(k, dest, pager)
    if control & _ITEM_CONTROLS:
        _exchange_items(caller, dest, control)
        if control & ExregsControl.WRITE_ITEMS:
            vmthread.wake(k, dest)
    if control & ExregsControl.ACT_ON_HALT:
        _halt(k, dest) if control & ExregsControl.HALT else _resume(k, dest)


def _was_local(caller: Tcb) -> bool:
    """Was dest given as a local identifier? The stub has made it global, and says so by ZF (reference section 4.2)."""
    if caller.program is None:
        return bool(caller.regs[EFLAGS] & _ZERO_FLAG)
    return not caller.regs[EAX] & LOCAL_BITS


def _may_exchange(k: State, caller: Tcb, dest: Tcb) -> bool:
    """Threads of its own space, of its pager's space, and of privileged ones may."""
    if caller.space is dest.space or caller.space.privileged:
        return True
    pager = k.find(dest.tcr(u.PAGER), dest)
    return pager is not None and pager.space is caller.space


def _state_bits(thread: Tcb) -> ExregsControl:
    """What the thread is doing, as the old control word tells it."""
    halted = thread.halting or thread.state is ThreadState.HALTED
    return _phase(thread) | (ExregsControl.HALT if halted else ExregsControl(0))


def _phase(thread: Tcb) -> ExregsControl:
    """The bit of the IPC phase that the thread is in: R, S, or none."""
    if thread.copying is not None:  # a fault's call in the midst of a message belongs to that message
        return ExregsControl.ABORT_SEND if thread.copying.sender is thread else ExregsControl.ABORT_RECEIVE
    match thread.state:
        case ThreadState.WAITING:
            return ExregsControl.ABORT_RECEIVE
        case ThreadState.POLLING:
            return ExregsControl.ABORT_SEND
        case _:
            return ExregsControl(0)


def _halt(k: State, thread: Tcb) -> None:
    """Stop it at user level. What it has under way in the kernel, an IPC or a fault's, goes on to its end first."""
    if thread.state in (ThreadState.RUNNING, ThreadState.INACTIVE):
        k.halt(thread, "by ExchangeRegisters")
    elif thread.state is not ThreadState.HALTED and not thread.halting:
        thread.halting = True


def _resume(k: State, thread: Tcb) -> None:
    thread.halting = False
    if thread.state is ThreadState.HALTED:
        thread.state = ThreadState.RUNNING
        k.trace.append(Resumed(k.now, thread.word))
        k.make_ready(thread)


# -- register items ----------------------------------------------------------------------------------------------------


def _exchange_items(caller: Tcb, dest: Tcb, control: int) -> None:
    """Register items in the caller's message registers from MR1 on: configure, then read, then write.

    Each list ends after the first item whose C bit is clear. Virtual CPUs always accept; the reference asks for the
    c bit of the thread's acceptor, which is a silent failure elsewhere (quirk Q12).
    """
    assert caller.utcb is not None
    utcb = caller.utcb
    words = utcb.words[MR : MR + MESSAGE_REGISTERS]
    at = 1

    def item_at(at: int) -> CtrlXferItem | None:
        if at >= MESSAGE_REGISTERS:
            return None
        item = CtrlXferItem.decode(words[at])
        return item if item.type == ItemType.CTRLXFER else None

    if control & ExregsControl.CONFIGURE_ITEMS:
        while (item := item_at(at)) is not None:
            if item.id in _CONFIGURABLE:
                dest.fault_items[item.id] = _items_that_fit(item)
            at += 1
            if not item.more:
                break
    for wanted in (ExregsControl.READ_ITEMS, ExregsControl.WRITE_ITEMS):
        while control & wanted and (item := item_at(at)) is not None:
            end = min(at + item.words, MESSAGE_REGISTERS)
            if wanted is ExregsControl.READ_ITEMS:
                for i, value in zip(range(at + 1, end), ctrlxfer.read(dest, item), strict=False):
                    utcb[MR + i] = value
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
_CONFIGURABLE = frozenset(FAULT_IDS)
