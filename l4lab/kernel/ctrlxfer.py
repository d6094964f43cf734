# SPDX-License-Identifier: GPL-2.0-or-later
"""Register items: reading and writing a thread's registers by groups (reference sections 9.6 and 9.7).

Every thread has GPREGS; the other items exist on virtual CPUs only, and carry no words elsewhere. A monitor reads and
writes them in fault messages, in replies, and through ExchangeRegisters; all three come here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from l4lab.abi.frame import EFLAGS, USER_EFLAGS_MASK, VM_EFLAGS_MASK
from l4lab.abi.message import CtrlXferItem
from l4lab.abi.vm import ITEM_REGISTERS, ItemId, PinControls
from l4lab.kernel.thread import Tcb
from l4lab.machine.vmcs import Vmcs

# Under nested paging the guest's CR0 and CR4 are its own: the CPU runs real mode and unpaged protected mode natively.
# What stays fixed: CR0.ET is one, and the bits of CR4 that the emulated CPU does not have are zero.
CR0_FIXED_ONE = 1 << 4
CR4_WRITABLE = 0x0000_06FF
REQUIRED_PINS = (
    PinControls.EXTERNAL_INTERRUPT_EXITING | PinControls.NMI_EXITING
)  # quirk Q16: a monitor cannot clear them
REQUIRED_CPU = 1 << 7 | 1 << 24  # HLT and I/O exiting; INVLPG exits only where there are shadow tables to keep
UNSUPPORTED_CPU = 1 << 25 | 1 << 28  # I/O and MSR bitmaps


def encode(thread: Tcb, item: int) -> tuple[int, ...]:
    """The item with all its registers, as words of a message."""
    if item == GPREGS:
        return GPREGS_HEADER, *thread.regs.tolist()
    if thread.vcpu is None:
        return ()
    return _HEADERS[item], *_READ[item](thread.vcpu.vmcs)


def read(thread: Tcb, item: CtrlXferItem) -> list[int]:
    """The registers that the item's mask names; mask bits beyond the item's registers give zeros."""
    values: Sequence[int]
    if item.id == ItemId.GPREGS:
        values = thread.regs.tolist()
    elif thread.vcpu is not None and item.id in _READ:
        values = _READ[item.id](thread.vcpu.vmcs)
    else:
        values = ()
    return [values[index] if index < len(values) else 0 for index in item.indices]


def write(thread: Tcb, item: CtrlXferItem, values: Sequence[int]) -> None:
    """Write the registers that the item's mask names, with the rules of reference section 9.7."""
    if item.id == GPREGS:
        regs = thread.regs
        before = regs[EFLAGS]
        for index, value in zip(item.frame_indices, values, strict=False):
            regs[index] = value
        if regs[EFLAGS] != before:
            after = regs[EFLAGS]
            mask = VM_EFLAGS_MASK if thread.vcpu else USER_EFLAGS_MASK
            if thread.vcpu and (after ^ before) & 1 << 17:
                thread.vcpu.vmcs.stale = True  # virtual-8086 mode changes what the CPU derives
            regs[EFLAGS] = after & mask | before & ~mask
    elif thread.vcpu is not None and item.id in _WRITE:
        put = _WRITE[item.id]
        count = len(ITEM_REGISTERS[ItemId(item.id)])
        for index, value in zip(item.indices, values, strict=False):
            if index < count:
                put(thread.vcpu.vmcs, index, value)


# -- one reader and one writer per item --------------------------------------------------------------------------------


def _read_cregs(v: Vmcs) -> tuple[int, ...]:
    cr = v.control_register
    return (cr(0), v.cr0_shadow, v.cr0_mask, cr(2), cr(3), cr(4), v.cr4_shadow, v.cr4_mask)


def _write_cregs(v: Vmcs, index: int, value: int) -> None:
    match index:
        case 0:
            v.set_control_register(0, value | CR0_FIXED_ONE)
        case 1:
            v.cr0_shadow, v.stale = value, True
        case 2:
            v.cr0_mask, v.stale = value, True
        case 3:
            v.set_control_register(2, value)
        case 4:
            v.set_control_register(3, value)
        case 5:
            v.set_control_register(4, value & CR4_WRITABLE)
        case 6:
            v.cr4_shadow, v.stale = value, True
        case _:
            v.cr4_mask, v.stale = value, True
            v.paging_changed = v.shadowed


_DEBUG_NUMBERS = (0, 1, 2, 3, 6, 7)


def _read_dregs(v: Vmcs) -> tuple[int, ...]:
    return tuple(v.debug_register(number) for number in _DEBUG_NUMBERS)


def _write_dregs(v: Vmcs, index: int, value: int) -> None:
    v.set_debug_register(_DEBUG_NUMBERS[index], value)


def _segment_reader(name: str) -> Callable[[Vmcs], Sequence[int]]:
    return lambda v: v.segment(name)


def _segment_writer(name: str) -> Callable[[Vmcs, int, int], None]:
    def write_segment(v: Vmcs, index: int, value: int) -> None:
        parts = list(v.segment(name))
        parts[index] = value
        v.set_segment(name, *parts)

    return write_segment


def _table_reader(name: str) -> Callable[[Vmcs], Sequence[int]]:
    return lambda v: v.table(name)


def _table_writer(name: str) -> Callable[[Vmcs, int, int], None]:
    def write_table(v: Vmcs, index: int, value: int) -> None:
        base, limit = v.table(name)
        v.set_table(name, value if index == 0 else base, value if index == 1 else limit)

    return write_table


def _read_nonregexc(v: Vmcs) -> tuple[int, ...]:
    return (
        *(v.activity, v.interruptibility, v.pending_debug, v.entry_info, v.entry_error, v.entry_length),
        *(v.exit_info, v.exit_error, v.idt_info, v.idt_error),
    )


def _write_nonregexc(v: Vmcs, index: int, value: int) -> None:
    match index:
        case 0:
            v.activity = value & 3
        case 1:
            v.interruptibility = value
        case 2:
            v.pending_debug = value
        case 3:
            v.entry_info = value
        case 4:
            v.entry_error = value
        case 5:
            v.entry_length = value
        case _:
            pass  # exit and IDT-vectoring information are read only


def _read_execctrl(v: Vmcs) -> tuple[int, ...]:
    return (v.pin_controls, v.cpu_controls, v.exception_bitmap)


def _write_execctrl(v: Vmcs, index: int, value: int) -> None:
    match index:
        case 0:
            v.pin_controls = value | REQUIRED_PINS
        case 1:
            new = (value | REQUIRED_CPU) & ~UNSUPPORTED_CPU
            if (new ^ v.cpu_controls) & ~4:  # the interrupt window alone needs no new intercepts
                v.stale = True
            v.cpu_controls = new
        case _:
            v.exception_bitmap, v.stale = value, True


def _read_other(v: Vmcs) -> tuple[int, ...]:
    return (
        *(v.sysenter(0), v.sysenter(2), v.sysenter(1), v.debugctl & 0xFFFFFFFF, v.debugctl >> 32),
        *(v.tsc_offset & 0xFFFFFFFF, v.tsc_offset >> 32 & 0xFFFFFFFF, v.virtual_apic, v.tpr_threshold),
    )


def _write_other(v: Vmcs, index: int, value: int) -> None:
    match index:
        case 0:
            v.set_sysenter(0, value)
        case 1:
            v.set_sysenter(2, value)
        case 2:
            v.set_sysenter(1, value)
        case 3:
            v.debugctl = v.debugctl >> 32 << 32 | value
        case 4:
            v.debugctl = v.debugctl & 0xFFFFFFFF | value << 32
        case 5:
            v.tsc_offset = v.tsc_offset >> 32 << 32 | value
        case 6:
            v.tsc_offset = v.tsc_offset & 0xFFFFFFFF | value << 32
        case 7:
            v.virtual_apic = value
        case _:
            v.tpr_threshold = value & 15


_SEGMENT_ITEMS = {
    ItemId.CS: "cs",
    ItemId.SS: "ss",
    ItemId.DS: "ds",
    ItemId.ES: "es",
    ItemId.FS: "fs",
    ItemId.GS: "gs",
    ItemId.TR: "tr",
    ItemId.LDTR: "ldtr",
}
_READ: dict[int, Callable[[Vmcs], Sequence[int]]] = {
    ItemId.FPUREGS: lambda v: (),
    ItemId.CREGS: _read_cregs,
    ItemId.DREGS: _read_dregs,
    **{item: _segment_reader(name) for item, name in _SEGMENT_ITEMS.items()},
    ItemId.IDTR: _table_reader("idtr"),
    ItemId.GDTR: _table_reader("gdtr"),
    ItemId.NONREGEXC: _read_nonregexc,
    ItemId.EXECCTRL: _read_execctrl,
    ItemId.OTHERREGS: _read_other,
}
_WRITE: dict[int, Callable[[Vmcs, int, int], None]] = {
    ItemId.CREGS: _write_cregs,
    ItemId.DREGS: _write_dregs,
    **{item: _segment_writer(name) for item, name in _SEGMENT_ITEMS.items()},
    ItemId.IDTR: _table_writer("idtr"),
    ItemId.GDTR: _table_writer("gdtr"),
    ItemId.NONREGEXC: _write_nonregexc,
    ItemId.EXECCTRL: _write_execctrl,
    ItemId.OTHERREGS: _write_other,
}
GPREGS = ItemId.GPREGS
ONLY_GPREGS = (GPREGS,)
_HEADERS: dict[int, int] = {
    item: int(CtrlXferItem.make(id=item, mask=(1 << len(ITEM_REGISTERS[item])) - 1)) for item in ItemId
}
GPREGS_HEADER = _HEADERS[ItemId.GPREGS]
