# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtualization fault: how a VM exit becomes a message to the monitor, and what its answer does.

What lives here: the message, the answer, and what becomes of an event whose delivery the exit cut short. When a guest
exits is `vmthread.py` and `shadowed.py`. (Reference sections 9.3 and 9.8.)
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi.frame import EIP
from l4lab.abi.message import Acceptor
from l4lab.abi.vm import EVENT_NMI_UNBLOCKING, EVENT_VALID, INTERNAL, ExitReason, ItemId, fault_id_of, label_of
from l4lab.kernel.events import VmEntry, VmExit
from l4lab.kernel.ipc import ipc
from l4lab.kernel.ipc.faults import items_for
from l4lab.kernel.ipc.transfer import apply_items
from l4lab.kernel.objects.thread import MR, Tcb
from l4lab.kernel.objects.vcpu import Vcpu
from l4lab.kernel.objects.waits import MONITOR
from l4lab.kernel.state import State
from l4lab.machine.vmcs import Vmcs
from l4lab.machine.vtx import HARDWARE_EXCEPTION

_LABEL: dict[ExitReason, int] = {
    reason: label_of(reason) << 16 for reason in ExitReason if reason is not ExitReason.EPT_VIOLATION
}
FAULT_ID: Final = {reason: fault_id_of(reason) for reason in ExitReason}
# What goes into MR3, where it is not zero.
_ADDITIONAL: dict[int, Callable[[Vmcs], int]] = {
    **dict.fromkeys(
        (ExitReason.CR_ACCESS, ExitReason.DR_ACCESS, ExitReason.IO_INSTRUCTION), attrgetter("guest_linear")
    ),
    **dict.fromkeys(range(ExitReason.VMCALL, ExitReason.VMXON + 1), attrgetter("instruction_info")),
}
_REGISTERS_ONLY: Final = Acceptor.of(ctrlxfer=True)  # a reply to a VM fault cannot map (reference section 5.7)
INTERNAL_EXIT: Final = INTERNAL << 16  # of the tag: the kernel has dealt with it, but an event's delivery was cut short
_PAGER: Final = MR + u.PAGER // 4


def send(k: State, thread: Tcb, vmcs: Vmcs, reason: ExitReason, internal: int = 0) -> None:
    """Send the virtualization fault to the monitor (reference section 9.3)."""
    assert thread.vcpu is not None, f"{thread!r} has no guest"
    counters = thread.vcpu.counters
    count(counters.exits, reason)
    qualification, length = vmcs.exit_qualification, vmcs.exit_length
    k.note(VmExit(k.now, thread.told, reason, qualification, length, thread.regs[EIP], counters.instructions))
    additional = _ADDITIONAL.get(reason)
    information = additional(vmcs) if additional else 0
    items = items_for(thread, FAULT_ID[reason])
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


def keep_event(thread: Tcb, vcpu: Vcpu, fault_id: int, injected: bool) -> bool:
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
        deliver_again(vcpu)
    return True


def deliver_again(vcpu: Vcpu) -> None:
    """Deliver the guest's own exception, whose delivery was cut short, at the next entry."""
    vmcs = vcpu.vmcs
    vmcs.entry_info, vmcs.entry_error, vmcs.idt_info = vmcs.idt_info & ~EVENT_NMI_UNBLOCKING, vmcs.idt_error, 0
    vcpu.reflected = True


def count(counts: dict[int, int], reason: ExitReason) -> None:
    """One more exit for this reason."""
    counts[reason] = counts.get(reason, 0) + 1
