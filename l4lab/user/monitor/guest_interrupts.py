# SPDX-License-Identifier: GPL-2.0-or-later
"""How an interrupt of the guest's interrupt controller reaches the guest (reference sections 9.8 and 12.5).

    the guest waits for the answer to a fault    the event goes into the answer
    the guest runs                               the event is written into it by ExchangeRegisters
    it cannot be interrupted just now            interrupt-window exiting is turned on: it exits as soon as it can

Only when the event is on its way is the interrupt acknowledged at the controller, so a vector never has to be put back.
"""

from __future__ import annotations

from l4lab.abi import vm
from l4lab.abi.frame import EFLAGS, FLAG_IF
from l4lab.abi.vm import EVENT_VALID, CpuControls, ExitReason, Interruptibility, ItemId
from l4lab.devices.i8259 import I8259Pair
from l4lab.user.monitor.fault import Fault, Reply, external_interrupt
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.start import CPU_CONTROLS

_BLOCKED = Interruptibility.BLOCKED_BY_STI | Interruptibility.BLOCKED_BY_MOV_SS


class Interrupts:
    """Brings the controller's interrupts to one virtual CPU."""

    def __init__(self, pic: I8259Pair, vcpu: GuestCpu, controls: int = CPU_CONTROLS) -> None:
        self.pic = pic
        self.vcpu = vcpu
        self.controls = controls  # the CPU-based controls, apart from the interrupt window
        self.window = False  # is interrupt-window exiting on?

    def deliver(self, fault: Fault, reply: Reply) -> None:
        """At the end of handling a fault: add to the reply what a waiting interrupt needs."""
        pending = self.pic.pending()
        if not pending and not self.window:
            return
        if pending and not reply.injects and _can_take(fault, reply):
            reply.inject(external_interrupt(self.pic.acknowledge()))
            pending = self.pic.pending()
        if pending != self.window:
            self.window = pending
            reply.write(ItemId.EXECCTRL, vm.CPU_CONTROLS, self._controls())

    def kick(self) -> None:
        """A device did something while the guest runs: interrupt it, or ask to be told when that can be done."""
        if self.window or not self.pic.pending() or self.vcpu.is_sending():
            return  # if it is sending, its fault is the next message, and the interrupt goes into the answer
        registers = self.vcpu.read(ItemId.GPREGS, ItemId.NONREGEXC)
        flags, other = registers[ItemId.GPREGS][EFLAGS], registers[ItemId.NONREGEXC]
        writes: dict[ItemId, dict[int, int]] = {}
        if flags & FLAG_IF and not other[vm.INTERRUPTIBILITY] & _BLOCKED and not other[vm.ENTRY_INFO] & EVENT_VALID:
            writes[ItemId.NONREGEXC] = {vm.ENTRY_INFO: external_interrupt(self.pic.acknowledge())}
        if self.pic.pending():
            self.window = True
            writes[ItemId.EXECCTRL] = {vm.CPU_CONTROLS: self._controls()}
        self.vcpu.write(writes)

    def _controls(self) -> int:
        return self.controls | (CpuControls.INTERRUPT_WINDOW_EXITING if self.window else 0)


def _can_take(fault: Fault, reply: Reply) -> bool:
    """Will the guest be interruptible when it goes on after this reply?"""
    if not fault.eflags & FLAG_IF:
        return False
    if fault.reason == ExitReason.INTERRUPT_WINDOW:
        return True
    for items in (reply.items, fault.items):
        blocking = items.get(ItemId.NONREGEXC, {}).get(vm.INTERRUPTIBILITY)
        if blocking is not None:
            return not blocking & _BLOCKED
    return False  # the message does not say; the interrupt window will
