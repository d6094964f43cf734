# SPDX-License-Identifier: GPL-2.0-or-later
"""Register items: reading and writing a thread's registers by groups (reference sections 9.6 and 9.7).

Every thread has GPREGS; the other items exist on virtual CPUs only, and carry no words elsewhere. A monitor reads and
writes them in fault messages, in replies, and through ExchangeRegisters; all three come here. A write cannot fail:
where it may make a state that no CPU enters, it marks the item as unchecked, and the entry is refused (see `vm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from l4lab.abi.frame import EFLAGS, USER_EFLAGS_MASK, VM_EFLAGS_MASK
from l4lab.abi.message import CtrlXferItem
from l4lab.abi.vm import ATTRIBUTES, ITEM_REGISTERS, CpuControls, ItemId, PinControls
from l4lab.abi.vm_state import CPU_REQUIRED, PIN_REQUIRED
from l4lab.kernel.objects.thread import Tcb
from l4lab.machine import fpu
from l4lab.machine.vmcs import CR4_EXISTING, Vmcs

# Under nested paging the guest's CR0 and CR4 are its own: the CPU runs real mode and unpaged protected mode natively.
# What stays fixed: CR0.ET is one, and bits that the emulated CPU does not have are zero, among them CR4.PAE. So M0 and
# M4, the bits that a monitor may write, are wider than the reference's: a guest has set some of the others by itself,
# and it goes on elsewhere with what its monitor has read.
CR0_FIXED_ONE: Final = 1 << 4
CR0_WRITABLE: Final = 0xE005_003F
# A monitor cannot clear what VMX requires (but CR3 loads and stores need not exit), nor what keeps the host in charge
# (quirk Q16): interrupts of the host, HLT and I/O. INVLPG exits only where there are shadow tables to keep. What the
# CPU does not have, such as bitmaps of ports and MSRs, cannot be set.
REQUIRED_PINS: Final = PIN_REQUIRED | PinControls.EXTERNAL_INTERRUPT_EXITING | PinControls.NMI_EXITING
CR3_EXITING: Final = 3 << 15
REQUIRED_CPU: Final = CPU_REQUIRED & ~CR3_EXITING | CpuControls.HLT_EXITING | CpuControls.UNCONDITIONAL_IO_EXITING
SUPPORTED_CPU: Final = (sum(CpuControls) | CPU_REQUIRED) & ~CpuControls.USE_IO_BITMAPS & ~CpuControls.USE_MSR_BITMAPS
MISSING_ATTRIBUTES: Final = ~0x1F0FF  # bits that no segment's attributes have; the entry check hears of them


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
            if thread.vcpu:
                thread.vcpu.vmcs.unchecked |= 1 << GPREGS
                if (after ^ before) & 1 << 17:
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
    v.unchecked |= 1 << ItemId.CREGS
    match index:
        case 0:
            v.set_control_register(0, value & CR0_WRITABLE | CR0_FIXED_ONE)
        case 1:
            v.cr0_shadow, v.stale = value, True
        case 2:
            v.cr0_mask, v.stale = value, True
        case 3:
            v.set_control_register(2, value)
        case 4:
            v.set_control_register(3, value)
        case 5:
            v.set_control_register(4, value & CR4_EXISTING)
        case 6:
            v.cr4_shadow, v.stale = value, True
        case _:
            v.cr4_mask, v.stale = value, True
            v.paging_changed = v.shadowed


_DEBUG_NUMBERS: Final = (0, 1, 2, 3, 6, 7)


def _read_dregs(v: Vmcs) -> tuple[int, ...]:
    return tuple(v.debug_register(number) for number in _DEBUG_NUMBERS)


def _write_dregs(v: Vmcs, index: int, value: int) -> None:
    v.set_debug_register(_DEBUG_NUMBERS[index], value)


def _segment_reader(name: str) -> Callable[[Vmcs], Sequence[int]]:
    return lambda v: v.segment(name)


def _segment_writer(item: ItemId, name: str) -> Callable[[Vmcs, int, int], None]:
    def write_segment(v: Vmcs, index: int, value: int) -> None:
        parts = list(v.segment(name))
        parts[index] = value
        v.set_segment(name, *parts)
        v.unchecked |= 1 << item
        if index == ATTRIBUTES:
            (v.misfits.add if value & MISSING_ATTRIBUTES else v.misfits.discard)(name)

    return write_segment


def _table_reader(name: str) -> Callable[[Vmcs], Sequence[int]]:
    return lambda v: v.table(name)


def _table_writer(item: ItemId, name: str) -> Callable[[Vmcs, int, int], None]:
    def write_table(v: Vmcs, index: int, value: int) -> None:
        base, limit = v.table(name)
        v.set_table(name, value if index == 0 else base, value if index == 1 else limit)
        v.unchecked |= 1 << item

    return write_table


def _read_nonregexc(v: Vmcs) -> tuple[int, ...]:
    return (
        *(v.activity, v.interruptibility, v.pending_debug, v.entry_info, v.entry_error, v.entry_length),
        *(v.exit_info, v.exit_error, v.idt_info, v.idt_error),
    )


def _write_nonregexc(v: Vmcs, index: int, value: int) -> None:
    match index:
        case 0:
            v.activity = value
            v.unchecked |= 1 << ItemId.NONREGEXC
        case 1:
            v.interruptibility = value
            if value:  # to block nothing is right in any state, and what most replies write
                v.unchecked |= 1 << ItemId.NONREGEXC
        case 2:
            v.pending_debug = value
            v.unchecked |= 1 << ItemId.NONREGEXC
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
            v.pin_controls = int(REQUIRED_PINS)  # there are no others
        case 1:
            new = (value | REQUIRED_CPU) & SUPPORTED_CPU
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
            v.unchecked |= 1 << ItemId.OTHERREGS
        case 4:
            v.debugctl = v.debugctl & 0xFFFFFFFF | value << 32
            v.unchecked |= 1 << ItemId.OTHERREGS
        case 5:
            v.tsc_offset = v.tsc_offset >> 32 << 32 | value
        case 6:
            v.tsc_offset = v.tsc_offset & 0xFFFFFFFF | value << 32
        case 7:
            v.virtual_apic = value
        case _:
            v.tpr_threshold = value & 15


def _xmm_reader(first: int) -> Callable[[Vmcs], Sequence[int]]:
    return lambda v: fpu.xmm(v.state, first)


def _xmm_writer(first: int) -> Callable[[Vmcs, int, int], None]:
    return lambda v, index, value: fpu.set_xmm(v.state, first, index, value)


_SEGMENT_ITEMS: Final = {
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
    ItemId.FPUCTRL: lambda v: fpu.control(v.state),
    ItemId.X87REGS: lambda v: fpu.x87(v.state),
    ItemId.XMMLOW: _xmm_reader(0),
    ItemId.XMMHIGH: _xmm_reader(4),
}
_WRITE: dict[int, Callable[[Vmcs, int, int], None]] = {
    ItemId.CREGS: _write_cregs,
    ItemId.DREGS: _write_dregs,
    **{item: _segment_writer(item, name) for item, name in _SEGMENT_ITEMS.items()},
    ItemId.IDTR: _table_writer(ItemId.IDTR, "idtr"),
    ItemId.GDTR: _table_writer(ItemId.GDTR, "gdtr"),
    ItemId.NONREGEXC: _write_nonregexc,
    ItemId.EXECCTRL: _write_execctrl,
    ItemId.OTHERREGS: _write_other,
    ItemId.FPUCTRL: lambda v, index, value: fpu.set_control(v.state, index, value),
    ItemId.X87REGS: lambda v, index, value: fpu.set_x87(v.state, index, value),
    ItemId.XMMLOW: _xmm_writer(0),
    ItemId.XMMHIGH: _xmm_writer(4),
}
GPREGS: Final = ItemId.GPREGS
ONLY_GPREGS: Final = (GPREGS,)
_HEADERS: dict[int, int] = {
    item: int(CtrlXferItem.make(id=item, mask=(1 << len(ITEM_REGISTERS[item])) - 1)) for item in ItemId
}
GPREGS_HEADER: Final = _HEADERS[ItemId.GPREGS]
