# SPDX-License-Identifier: GPL-2.0-or-later
"""Entering a guest, whichever way its memory is translated: until it exits, and what became of the event it was given.

An event that waits at the entry is delivered before the first instruction, unless its delivery is cut short. Whether
an exit cut the delivery of this event short, or of one that the guest raised later, only who entered it can tell.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.vm import EVENT_VALID, ExitReason
from l4lab.kernel.events import Injected
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.objects.vcpu import Vcpu
from l4lab.kernel.state import State
from l4lab.kernel.virtual import vmfault
from l4lab.machine.guestmode import Pause
from l4lab.machine.vtx import EPT_WRITE, HARDWARE_EXCEPTION

EPT_VIOLATION: Final = ExitReason.EPT_VIOLATION
DELIVERY_CYCLES: Final = 1  # what the CPU takes to deliver an event, before it executes anything


def enter(k: State, thread: Tcb, vcpu: Vcpu, deadline: int) -> tuple[ExitReason | Pause, bool, bool]:
    """Run guest code until an exit, a pause or `deadline`. Why it stopped, and of the event whose delivery that cut
    short, if it did: is it the one that was to be delivered at the entry; and is that the guest's own exception, whose
    delivery had been cut short before?
    """
    vmcs, counters, clock, tables = vcpu.vmcs, vcpu.counters, k.clock, thread.space.tables
    while True:
        event, retired = vmcs.entry_info, clock.retired
        waiting = event & EVENT_VALID
        delivered = clock.cycles + DELIVERY_CYCLES if waiting else 0
        reason = k.machine.run_guest(vmcs, tables.generation, deadline)
        k.now = clock.cycles
        executed = clock.retired - retired
        counters.instructions += executed
        first = bool(waiting and vmcs.idt_info & EVENT_VALID) and not executed
        touched = reason is EPT_VIOLATION and tables.touch(vmcs.guest_physical, vmcs.exit_qualification == EPT_WRITE)
        if touched and first:
            vmcs.entry_info |= EVENT_VALID
        own = False
        if waiting and not vmcs.entry_info & EVENT_VALID:
            if vcpu.reflected:
                vcpu.reflected = False
                own = first
            else:
                counters.injections += 1
                k.note(Injected(delivered, thread.word, event))
        if not touched:
            return reason, first, own
        # A page was used, or written to, for the first time since Unmap asked: the CPU's own affair, in no time.
        if vmcs.idt_info & EVENT_VALID and not first and vmcs.idt_info >> 8 & 7 == HARDWARE_EXCEPTION:
            vmfault.deliver_again(vcpu)
