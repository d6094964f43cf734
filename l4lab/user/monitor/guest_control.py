# SPDX-License-Identifier: GPL-2.0-or-later
"""MOV to and from control and debug registers, CLTS and LMSW, done for the guest.

They exit only as far as a monitor has asked for it: where bits of CR0 or CR4 are masked, or CR3 or MOV-DR exiting is
on. The real register then gets what the guest wrote, and so does the read shadow, which is what the guest reads back.
Source: Intel SDM vol. 3, section "Changes to Instruction Behavior in VMX Non-Root Operation"; reference section 11.2.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi import vm
from l4lab.abi.exceptions import GENERAL_PROTECTION, UNDEFINED_OPCODE
from l4lab.abi.vm import CrAccess, CrAccessType, DrAccess, ItemId
from l4lab.user.monitor.fault import Fault, Reply

CR0_PE, CR0_TS, CR0_PG = 1, 1 << 3, 1 << 31
LMSW_BITS: Final = 0xF  # PE, MP, EM, TS

# Where each register that can be masked is in CREGS: real value, shadow, mask.
_MASKED: Final[dict[int, tuple[int, int, int]]] = {
    0: (vm.CR0, vm.CR0_SHADOW, vm.CR0_MASK),
    4: (vm.CR4, vm.CR4_SHADOW, vm.CR4_MASK),
}
_DEBUG: Final = {0: vm.DR0, 1: vm.DR1, 2: vm.DR2, 3: vm.DR3, 4: vm.DR6, 5: vm.DR7, 6: vm.DR6, 7: vm.DR7}


def cr_access(fault: Fault, reply: Reply) -> None:
    """An access to CR0, CR3 or CR4. The fault has to carry CREGS."""
    access = CrAccess.decode(fault.qualification)
    registers = fault.items[ItemId.CREGS]
    if access.cr not in (0, 3, 4):
        reply.raise_exception(UNDEFINED_OPCODE)
        return
    if access.access is CrAccessType.MOV_FROM_CR:
        value = registers[vm.CR3] if access.cr == 3 else visible(fault, access.cr)
        reply.gpr(access.register, value)
    elif access.cr == 3:
        reply.write(ItemId.CREGS, vm.CR3, fault.gpr(access.register))
    else:
        match access.access:
            case CrAccessType.CLTS:
                value = visible(fault, 0) & ~CR0_TS
            case CrAccessType.LMSW:
                old = visible(fault, 0)  # LMSW can set PE and cannot clear it
                value = old & ~LMSW_BITS | access.lmsw_source & LMSW_BITS | old & CR0_PE
            case _:
                value = fault.gpr(access.register)
        if access.cr == 0 and value & CR0_PG and not value & CR0_PE:
            reply.raise_exception(GENERAL_PROTECTION, 0)
            return
        real, shadow, _ = _MASKED[access.cr]
        reply.write(ItemId.CREGS, real, value)
        reply.write(ItemId.CREGS, shadow, value)
    reply.skip(fault)


def visible(fault: Fault, number: int) -> int:
    """CR0 or CR4 as the guest reads it: the shadow where the mask is set, the real bit elsewhere."""
    real, shadow, mask = (fault.items[ItemId.CREGS][index] for index in _MASKED[number])
    return shadow & mask | real & ~mask


def dr_access(fault: Fault, reply: Reply) -> None:
    """An access to a debug register. The fault has to carry DREGS."""
    access = DrAccess.decode(fault.qualification)
    index = _DEBUG[access.dr]
    if access.from_dr:
        reply.gpr(access.register, fault.items[ItemId.DREGS][index])
    else:
        reply.write(ItemId.DREGS, index, fault.gpr(access.register))
    reply.skip(fault)
