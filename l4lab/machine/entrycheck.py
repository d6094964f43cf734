# SPDX-License-Identifier: GPL-2.0-or-later
"""What a virtual CPU's state must satisfy before the CPU enters it: the checks of a VM entry.

Source: Intel SDM vol. 3, sections "Checks on VM-Entry Control Fields", "Checks on the Guest State Area"; the rules for
a 32-bit guest with "unrestricted guest" on, because real mode and unpaged protected mode run natively here.

Lives here: judging. What becomes of a refused entry is the kernel's (exit reason 33), and when to judge as well. Looked
at is only what was written since the last entry (`Vmcs.unchecked`), and the event to deliver: all else the guest has
got by running. Real mode is judged more mildly than by the manual: the privilege level of segments, which means nothing
there, may be anything, since the state in which virtual CPUs begin has them as in virtual-8086 mode.
"""

from __future__ import annotations

from l4lab.abi.exceptions import DEBUG, MACHINE_CHECK, WITH_ERROR_CODE
from l4lab.abi.frame import FLAG_IF, FLAG_TF, FLAG_VM
from l4lab.abi.vm import EVENT_HAS_ERROR_CODE, EVENT_VALID, SEGMENTS, ItemId
from l4lab.machine.vmcs import CR0_PE, CR0_PG, UNUSABLE, Vmcs
from l4lab.machine.vtx import (
    ACTIVE,
    BLOCKED_BY_MOV_SS,
    BLOCKED_BY_SMI,
    BLOCKED_BY_STI,
    EXTERNAL,
    HALTED,
    HARDWARE_EXCEPTION,
    NMI,
    PRIVILEGED_SOFTWARE,
    SHUTDOWN,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    WAIT_FOR_SIPI,
)

EVENT_RESERVED = 0x7FFF_F000
EFLAGS_RESERVED, EFLAGS_ONE = 0xFFC0_8028, 1 << 1
DEBUGCTL_BTF, DEBUGCTL_RESERVED = 1 << 1, ~0xFFC3

INTERRUPTIBILITY_RESERVED = ~0xF
SINGLE_STEP, PENDING_RESERVED = 1 << 14, ~0x500F

# Items in `Vmcs.unchecked`, by what they have a part in.
_CONTROL = 1 << ItemId.GPREGS | 1 << ItemId.CREGS | 1 << ItemId.OTHERREGS
_CODE_OR_STACK = 1 << ItemId.CS | 1 << ItemId.SS
_IN_USE = {item: item.name.lower() for item in SEGMENTS}
_SYSTEM = {ItemId.TR: (3, 11), ItemId.LDTR: (2,)}  # and the types that they may have
_SELECTING = 1 << ItemId.GPREGS | sum(1 << item for item in (*SEGMENTS, *_SYSTEM))
_TABLES = 1 << ItemId.GDTR | 1 << ItemId.IDTR
_NON_REGISTER = 1 << ItemId.NONREGEXC

# Access rights of a segment.
_ACCESSED, _WRITABLE_OR_READABLE, _CONFORMING, _CODE = 1, 2, 4, 8
_DATA_OR_CODE, _PRESENT, _PAGES = 1 << 4, 1 << 7, 1 << 15
_V8086 = 0xF3
_TABLE_LIMIT = 0xFFFF


def problem(v: Vmcs, eflags: int) -> str:
    """Why the CPU refuses to enter this state, in a few words; nothing if it enters."""
    written = v.unchecked
    return (
        (_event(v, eflags) if v.entry_info & EVENT_VALID else "")
        or (_control_registers(v, eflags) if written & _CONTROL else "")
        or (_segments(v, eflags, written) if written & _SELECTING else "")
        or (_tables(v) if written & _TABLES else "")
        or (_non_register(v, eflags) if written & _NON_REGISTER else "")
    )


def _event(v: Vmcs, eflags: int) -> str:
    """The event to deliver, and whether the guest is in a state to take it."""
    info, blocking = v.entry_info, v.interruptibility
    kind, vector = info >> 8 & 7, info & 0xFF
    if info & EVENT_RESERVED:
        return "reserved bits are set in the event"
    if kind in (1, 7):
        return f"there are no events of type {kind}"
    if kind == NMI and vector != 2:
        return f"an NMI has vector 2, not {vector}"
    if kind == HARDWARE_EXCEPTION and vector > 31:
        return f"exceptions have vectors up to 31, not {vector}"
    pushes = kind == HARDWARE_EXCEPTION and vector in WITH_ERROR_CODE and v.control_register(0) & CR0_PE
    if bool(info & EVENT_HAS_ERROR_CODE) != bool(pushes):
        return f"event {vector} {'needs' if pushes else 'has no'} error code"
    if pushes and v.entry_error > 0xFFFF:
        return "an error code has 16 bits"
    if kind in (SOFTWARE_INTERRUPT, PRIVILEGED_SOFTWARE, SOFTWARE_EXCEPTION) and not 1 <= v.entry_length <= 15:
        return f"no instruction is {v.entry_length} bytes long"
    if kind == EXTERNAL and not eflags & FLAG_IF:
        return "an external interrupt cannot be delivered while IF is clear"
    if kind == EXTERNAL and blocking & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS):
        return "an external interrupt cannot be delivered behind STI or MOV SS"
    if kind == NMI and blocking & BLOCKED_BY_MOV_SS:
        return "an NMI cannot be delivered behind MOV SS"
    if v.activity != ACTIVE and not _wakes(v.activity, kind, vector):
        return "the event cannot wake the guest from its activity state"
    return ""


def _wakes(activity: int, kind: int, vector: int) -> bool:
    """Is it an event that the activity state lets through?"""
    if activity == HALTED:
        return kind in (EXTERNAL, NMI) or (kind == HARDWARE_EXCEPTION and vector in (DEBUG, MACHINE_CHECK))
    return activity == SHUTDOWN and (kind == NMI or (kind == HARDWARE_EXCEPTION and vector == MACHINE_CHECK))


def _control_registers(v: Vmcs, eflags: int) -> str:
    cr0 = v.control_register(0)
    if cr0 & CR0_PG and not cr0 & CR0_PE:
        return "CR0.PG is set without CR0.PE"
    if eflags & EFLAGS_RESERVED or not eflags & EFLAGS_ONE:
        return "EFLAGS has reserved bits that are not as they must be"
    if v.debugctl & DEBUGCTL_RESERVED:
        return "reserved bits are set in DEBUGCTL"
    return ""


def _segments(v: Vmcs, eflags: int, written: int) -> str:
    if v.misfits:
        return f"reserved bits are set in the attributes of {min(v.misfits)}"
    v8086 = bool(eflags & FLAG_VM)
    protected = bool(v.control_register(0) & CR0_PE)
    stack_dpl = v.segment("ss")[3] >> 5 & 3
    for item, name in _IN_USE.items():
        selector, base, limit, attributes = v.segment(name)
        if v8086:
            if base != selector << 4 or limit != 0xFFFF or attributes != _V8086:
                return f"{name} is not as virtual-8086 mode has it"
        elif written & (_CODE_OR_STACK if name == "cs" else 1 << item) and (name == "cs" or not attributes & UNUSABLE):
            why = _segment(name, limit, attributes, stack_dpl, protected)
            if why:
                return why
    for item, kinds in _SYSTEM.items():
        if written & 1 << item:
            why = _system_segment(v, item.name.lower(), kinds)
            if why:
                return why
    return ""


def _segment(name: str, limit: int, attributes: int, stack_dpl: int, protected: bool) -> str:
    """A segment register that is in use, outside virtual-8086 mode."""
    kind, dpl = attributes & 15, attributes >> 5 & 3
    if attributes & UNUSABLE or not attributes & _PRESENT or not attributes & _DATA_OR_CODE:
        return f"{name} is not a code or data segment that is present"
    if not _granularity_fits(limit, attributes):
        return f"limit and granularity of {name} do not go together"
    if not kind & _ACCESSED:
        return f"{name} has a type that no loaded segment has"
    match name:
        case "cs":
            if not kind & _CODE and kind != 3:
                return "cs is not a code segment"
            if not kind & _CODE:
                wrong = dpl != 0
            else:
                wrong = dpl > stack_dpl if kind & _CONFORMING else dpl != stack_dpl
            if protected and wrong:
                return "the privilege levels of cs and ss do not go together"
        case "ss":
            if kind not in (3, 7):
                return "ss cannot be written"
        case _:
            if kind & _CODE and not kind & _WRITABLE_OR_READABLE:
                return f"{name} cannot be read"
    return ""


def _system_segment(v: Vmcs, name: str, kinds: tuple[int, ...]) -> str:
    """TR names a task that is busy; LDTR names a table or nothing."""
    selector, _, limit, attributes = v.segment(name)
    if attributes & UNUSABLE and name == "ldtr":
        return ""
    if attributes & (UNUSABLE | _DATA_OR_CODE) or not attributes & _PRESENT or attributes & 15 not in kinds:
        return f"{name} is not what can be loaded there"
    if selector & 4:
        return f"{name} selects from the local table"
    if not _granularity_fits(limit, attributes):
        return f"limit and granularity of {name} do not go together"
    return ""


def _tables(v: Vmcs) -> str:
    for table in ("gdtr", "idtr"):
        if v.table(table)[1] > _TABLE_LIMIT:
            return f"the limit of {table} has more than 16 bits"
    return ""


def _granularity_fits(limit: int, attributes: int) -> bool:
    """A limit that counts pages ends with twelve ones; one that counts bytes has twenty bits."""
    return limit & 0xFFF == 0xFFF if attributes & _PAGES else limit < 1 << 20


def _non_register(v: Vmcs, eflags: int) -> str:
    activity, blocking, pending = v.activity, v.interruptibility, v.pending_debug
    if activity > WAIT_FOR_SIPI:
        return f"there is no activity state {activity}"
    if activity == HALTED and v.segment("ss")[3] >> 5 & 3 and v.control_register(0) & CR0_PE:
        return "only ring 0 halts"
    if activity != ACTIVE and blocking & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS):
        return "behind STI or MOV SS a guest is active"
    if blocking & (INTERRUPTIBILITY_RESERVED | BLOCKED_BY_SMI):
        return "bits are set in the interruptibility state that cannot be"
    if blocking & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS) == BLOCKED_BY_STI | BLOCKED_BY_MOV_SS:
        return "events are blocked by STI and MOV SS at once"
    if blocking & BLOCKED_BY_STI and not eflags & FLAG_IF:
        return "events are blocked by STI while IF is clear"
    if pending & PENDING_RESERVED:
        return "reserved bits are set in the pending debug exceptions"
    if blocking & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS) or activity == HALTED:
        steps = bool(eflags & FLAG_TF) and not v.debugctl & DEBUGCTL_BTF
        if bool(pending & SINGLE_STEP) != steps:
            return "a pending single step and EFLAGS.TF do not go together"
    return ""
