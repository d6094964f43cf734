# SPDX-License-Identifier: GPL-2.0-or-later
"""Task switches, which VT-x does not do for a guest: CALL, JMP and IRET to a task-state segment, and task gates.

Source: Intel SDM vol. 3, chapter "Task Management", and section "Treatment of Task Switches" of the VMX chapters. The
CPU has made its checks of gate and TSS descriptor before it exits. What is left, in this order:

    all memory is found that will be needed       a page fault still belongs to the old task
    the old task's registers go to its TSS        and its descriptor is no longer busy, unless it will be returned to
    link and busy bit of the new task are set
    registers and selectors come from its TSS     from here on an exception belongs to the new task
    descriptors of the selectors are loaded

Lives here: what that does to memory and registers, as a function; and the handler of the exit, around it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from l4lab.abi import vm
from l4lab.abi.exceptions import DEBUG, INVALID_TSS, NOT_PRESENT, STACK_FAULT
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP, FLAG_NT, FLAG_VM
from l4lab.abi.vm import InterruptionType, ItemId, TaskSwitch, TaskSwitchSource
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_control import CR0_PG, CR0_TS
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.paging import GuestPageFault, Paging, locate, read_linear, write_linear, write_pieces

_BUSY, _WIDE = 2, 8  # in the type of a TSS
_ACCESSED, _WRITABLE_OR_READABLE, _CONFORMING, _CODE, _SEGMENT, _PRESENT = 1, 2, 4, 8, 0x10, 0x80
_UNUSABLE: Final = 1 << 16
_TASK_DEBUG: Final = 1 << 15  # BT in DR6
_LOCAL_ENABLES: Final = 0x155  # of DR7

SEGMENTS: Final = (ItemId.ES, ItemId.CS, ItemId.SS, ItemId.DS, ItemId.FS, ItemId.GS)
ITEMS: Final = (ItemId.GPREGS, ItemId.CREGS, ItemId.DREGS, *SEGMENTS, ItemId.TR, ItemId.LDTR, ItemId.GDTR)
Registers = Mapping[ItemId, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """A task-state segment: where what is saved begins, and what it holds in all."""

    saved: struct.Struct  # EIP, EFLAGS, eight general registers, selectors
    saved_at: int
    ldt_at: int
    cr3_at: int | None
    trap_at: int | None
    selectors: tuple[ItemId, ...]
    size: int


_LAYOUT: Final = {
    True: _Layout(struct.Struct("<16I"), 0x20, 0x60, 0x1C, 0x64, SEGMENTS, 104),
    False: _Layout(struct.Struct("<14H"), 0x0E, 0x2A, None, None, SEGMENTS[:4], 44),
}
_GENERAL: Final = (EIP, EFLAGS, EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI)  # as a TSS has them


class TaskFault(Exception):
    """An exception that the new task is given before its first instruction."""

    def __init__(self, vector: int, error_code: int | None) -> None:
        super().__init__(f"exception {vector} in the new task")
        self.vector = vector
        self.error_code = error_code


@dataclass(slots=True)
class TaskSwitched:
    """What a task switch has changed, beside memory: registers, and an exception to begin with."""

    registers: dict[ItemId, dict[int, int]] = field(default_factory=dict)
    fault: TaskFault | None = None
    page_fault: GuestPageFault | None = None


def switch_task(
    memory: GuestMemory,
    registers: Registers,
    switch: TaskSwitch,
    next_eip: int,
    error_code: int | None = None,
) -> TaskSwitched:
    """Do the switch. `next_eip`: where the old task will go on; `error_code`: of the exception that came by a gate.

    GuestPageFault if the old task has to be given one first; then nothing has changed.
    """
    control = registers[ItemId.CREGS]
    paging = Paging(control[vm.CR0], control[vm.CR3], control[vm.CR4], user=False)
    tables = _Tables(memory, paging, registers)
    source = switch.source
    nests = source in (TaskSwitchSource.CALL, TaskSwitchSource.TASK_GATE)

    old = registers[ItemId.TR]
    old_layout = _LAYOUT[bool(old[vm.ATTRIBUTES] & _WIDE)]
    old_at = old[vm.BASE] + old_layout.saved_at
    place = locate(memory, paging, old_at, old_layout.saved.size, write=True)
    _, low, high = tables.find(switch.selector)
    base, limit, attributes = _expand(low, high)
    layout = _LAYOUT[bool(attributes & _WIDE)]
    link = locate(memory, paging, base, 2, write=True)
    image = read_linear(memory, paging, base, layout.size)

    gprs = registers[ItemId.GPREGS]
    eflags = gprs[EFLAGS] & ~FLAG_NT if source is TaskSwitchSource.IRET else gprs[EFLAGS]
    values = [next_eip, eflags, *(gprs[n] for n in _GENERAL[2:])]
    values += [registers[item][vm.SELECTOR] for item in old_layout.selectors]
    if old_layout is not _LAYOUT[True]:
        values = [value & 0xFFFF for value in values]
    if not nests:
        tables.set_busy(old[vm.SELECTOR], False)
    write_pieces(memory, place, old_layout.saved.pack(*values))
    if nests:
        write_pieces(memory, link, old[vm.SELECTOR].to_bytes(2, "little"))
    if source is not TaskSwitchSource.IRET:
        tables.set_busy(switch.selector, True)

    words = layout.saved.unpack_from(image, layout.saved_at)
    new = TaskSwitched()
    general = dict(zip(_GENERAL, words, strict=False))
    general[EFLAGS] = general[EFLAGS] & 0x3F7FD5 | 2 | (FLAG_NT if nests else 0)
    new.registers[ItemId.GPREGS] = general
    new.registers[ItemId.TR] = dict(enumerate((switch.selector, base, limit, attributes | _BUSY)))
    new.registers[ItemId.DREGS] = {vm.DR7: registers[ItemId.DREGS][vm.DR7] & ~_LOCAL_ENABLES | 0x400}
    cregs = new.registers[ItemId.CREGS] = {
        vm.CR0: control[vm.CR0] | CR0_TS,
        vm.CR0_SHADOW: control[vm.CR0_SHADOW] | CR0_TS,
    }
    if layout.cr3_at is not None and control[vm.CR0] & CR0_PG:
        cregs[vm.CR3] = int.from_bytes(image[layout.cr3_at : layout.cr3_at + 4], "little")
        tables.paging = Paging(paging.cr0, cregs[vm.CR3], paging.cr4, user=False)
    selectors = {item: word & 0xFFFF for item, word in zip(layout.selectors, words[10:], strict=True)}
    ldt = int.from_bytes(image[layout.ldt_at : layout.ldt_at + 2], "little")
    try:
        _load_segments(tables, new.registers, selectors, ldt, bool(general[EFLAGS] & FLAG_VM))
        if error_code is not None:
            _push(memory, tables.paging, new.registers, error_code, 4 if attributes & _WIDE else 2)
        if layout.trap_at is not None and image[layout.trap_at] & 1:
            new.registers[ItemId.DREGS][vm.DR6] = registers[ItemId.DREGS][vm.DR6] | _TASK_DEBUG
            raise TaskFault(DEBUG, None)
    except TaskFault as fault:
        new.fault = fault
    except GuestPageFault as fault:
        new.page_fault = fault
    return new


class _Tables:
    """The guest's descriptor tables."""

    def __init__(self, memory: GuestMemory, paging: Paging, registers: Registers) -> None:
        self.memory = memory
        self.paging = paging
        gdt = registers[ItemId.GDTR]
        self._gdt = gdt[vm.TABLE_BASE], gdt[vm.TABLE_LIMIT]
        self.ldt: tuple[int, int] | None = None

    def find(self, selector: int) -> tuple[int, int, int]:
        """Linear address and both words of a descriptor; #TS if there is none."""
        table = self.ldt if selector & 4 else self._gdt
        index = selector & ~7
        if table is None or index + 7 > table[1]:
            raise TaskFault(INVALID_TSS, selector & 0xFFFC)
        at = table[0] + index & 0xFFFF_FFFF
        low, high = struct.unpack("<2I", read_linear(self.memory, self.paging, at, 8))
        return at, low, high

    def set_busy(self, selector: int, busy: bool) -> None:
        """Mark the descriptor of a TSS."""
        at, _, high = self.find(selector)
        kind = high >> 8 & 0xFF
        self.write_access(at, kind | _BUSY if busy else kind & ~_BUSY)

    def write_access(self, at: int, byte: int) -> None:
        """Change the access byte of the descriptor at `at`."""
        write_linear(self.memory, self.paging, at + 5 & 0xFFFF_FFFF, bytes((byte,)))


def _expand(low: int, high: int) -> tuple[int, int, int]:
    """Base, limit and attributes of a descriptor."""
    base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000
    limit = low & 0xFFFF | high & 0xF_0000
    attributes = high >> 8 & 0xF0FF
    return base, limit << 12 | 0xFFF if attributes & 1 << 15 else limit, attributes


def _load_segments(
    tables: _Tables, new: dict[ItemId, dict[int, int]], selectors: Mapping[ItemId, int], ldt: int, v8086: bool
) -> None:
    """LDTR and the segment registers: selectors first, so that a fault finds them all there."""
    for item in SEGMENTS:
        selector = selectors.get(item, 0)
        values = (selector, selector << 4, 0xFFFF, 0xF3) if v8086 else (selector, 0, 0, _UNUSABLE)
        new[item] = dict(enumerate(values))
    new[ItemId.LDTR] = dict(enumerate((ldt, 0, 0, _UNUSABLE)))
    if ldt & 0xFFFC:
        if ldt & 4:
            raise TaskFault(INVALID_TSS, ldt & 0xFFFC)
        base, limit, attributes = _expand(*tables.find(ldt)[1:])
        if attributes & 0x9F != 0x82:
            raise TaskFault(INVALID_TSS, ldt & 0xFFFC)
        tables.ldt = base, limit
        new[ItemId.LDTR] = dict(enumerate((ldt, base, limit, attributes)))
    if v8086:
        return
    cpl = selectors[ItemId.CS] & 3
    # A fault in the new task is taken in its ring: what SS says until it is loaded.
    new[ItemId.SS][vm.ATTRIBUTES] |= cpl << 5
    for item in (ItemId.CS, ItemId.SS, ItemId.DS, ItemId.ES, ItemId.FS, ItemId.GS):
        selector = selectors.get(item, 0)
        if not selector & 0xFFFC and item not in (ItemId.CS, ItemId.SS):
            continue
        bad = TaskFault(INVALID_TSS, selector & 0xFFFC)
        if not selector & 0xFFFC:
            raise bad
        at, low, high = tables.find(selector)
        base, limit, attributes = _expand(low, high)
        if not _fits(item, attributes, selector & 3, cpl):
            raise bad
        if not attributes & _PRESENT:
            raise TaskFault(STACK_FAULT if item is ItemId.SS else NOT_PRESENT, selector & 0xFFFC)
        if not attributes & _ACCESSED:
            tables.write_access(at, attributes & 0xFF | _ACCESSED)
        new[item] = dict(enumerate((selector, base, limit, attributes | _ACCESSED)))


def _fits(item: ItemId, attributes: int, rpl: int, cpl: int) -> bool:
    """May this segment register be loaded with such a segment?"""
    dpl = attributes >> 5 & 3
    if not attributes & _SEGMENT:
        return False
    is_code = bool(attributes & _CODE)
    if item is ItemId.CS:
        return is_code and (dpl <= rpl if attributes & _CONFORMING else dpl == rpl)
    if item is ItemId.SS:
        return not is_code and bool(attributes & _WRITABLE_OR_READABLE) and dpl == cpl == rpl
    if is_code and not attributes & _WRITABLE_OR_READABLE:
        return False
    return bool(is_code and attributes & _CONFORMING) or (dpl >= cpl and dpl >= rpl)


def _push(memory: GuestMemory, paging: Paging, new: Mapping[ItemId, dict[int, int]], value: int, size: int) -> None:
    """The error code of the exception that came by a task gate, onto the new task's stack."""
    stack, general = new[ItemId.SS], new[ItemId.GPREGS]
    mask = 0xFFFF_FFFF if stack[vm.ATTRIBUTES] & 1 << 14 else 0xFFFF
    esp = general[ESP] - size & mask
    write_linear(memory, paging, stack[vm.BASE] + esp & 0xFFFF_FFFF, value.to_bytes(4, "little")[:size])
    general[ESP] = general[ESP] & ~mask | esp


class TaskSwitches:
    """The handler of the exit."""

    def __init__(self, vcpu: GuestCpu, memory: GuestMemory) -> None:
        self.vcpu = vcpu
        self.memory = memory

    def handle(self, fault: Fault, reply: Reply) -> None:
        """Answer a task switch."""
        registers = self.vcpu.read(*ITEMS)
        event = fault.interrupted
        switch = TaskSwitch.decode(fault.qualification)
        by_instruction = event is None or event.type not in (
            InterruptionType.EXTERNAL_INTERRUPT,
            InterruptionType.NMI,
            InterruptionType.HARDWARE_EXCEPTION,
        )
        next_eip = fault.eip + (fault.instruction_length if by_instruction else 0) & 0xFFFF_FFFF
        error_code = None
        if event is not None and event.error_code_valid:
            error_code = fault.items[ItemId.NONREGEXC][vm.IDT_EEC]
        try:
            done = switch_task(self.memory, registers, switch, next_eip, error_code)
        except GuestPageFault as missing:
            reply.raise_page_fault(missing.address, missing.error_code)
            return
        except TaskFault as wrong:
            reply.raise_exception(wrong.vector, wrong.error_code)
            return
        for item, values in done.registers.items():
            for index, value in values.items():
                reply.write(item, index, value)
        if done.fault is not None:
            reply.raise_exception(done.fault.vector, done.fault.error_code)
        elif done.page_fault is not None:
            reply.raise_page_fault(done.page_fault.address, done.page_fault.error_code)
