# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody else's delivery of interrupts, and what is checked of it.

An interrupt that is acknowledged and not delivered is lost, one that is delivered when it must not be breaks the guest
at some later place; so both are told where they happen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from l4lab.abi import vm
from l4lab.abi.frame import EFLAGS, FLAG_IF
from l4lab.abi.vm import EVENT_VALID, CpuControls, ExitReason, Interruptibility, ItemId
from l4lab.devices.i8259 import I8259Pair
from l4lab.errors import PartFailed
from l4lab.user.monitor.fault import Fault, Reply, external_interrupt
from l4lab.user.monitor.guarded_part import GuardedPart, Tell
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_interrupts import Interrupts
from l4lab.user.monitor.monitor_parts import CpuReach, InterruptDelivery, InterruptRequests
from l4lab.words import hex32

WINDOW: Final = int(CpuControls.INTERRUPT_WINDOW_EXITING)
_BLOCKED: Final = int(Interruptibility.BLOCKED_BY_STI | Interruptibility.BLOCKED_BY_MOV_SS)


class OutsideInterrupts(Interrupts):
    """Somebody else's delivery of interrupts."""

    def __init__(
        self,
        make: Callable[[InterruptRequests, CpuReach], InterruptDelivery],
        tell: Tell,
        pic: I8259Pair,
        vcpu: GuestCpu,
    ) -> None:
        super().__init__(pic, vcpu)
        self.method = ""  # which is at work
        self.taken: list[int] = []  # vectors that it has acknowledged
        self.sending = False  # does it know that the guest is sending?
        self.part: GuardedPart | None = None  # None while it is made
        given = _Requests(self), _Reach(self)
        self.part = GuardedPart(InterruptDelivery, ("deliver", "kick"), tell, make, given)

    def deliver(self, fault: Fault, reply: Reply) -> None:
        part, nonregexc = self._begin("deliver"), ItemId.NONREGEXC
        before = reply.items.get(nonregexc, {}).get(vm.ENTRY_INFO)
        part.ask("deliver", fault, reply)
        part.check("deliver", reply)
        after = reply.items.get(nonregexc, {}).get(vm.ENTRY_INFO)
        if before is not None and (after != before or self.taken):
            raise part.failed(".deliver() delivers an interrupt over an event that is in the reply already.")
        if before is None:
            self.check_event(after)
        if self.taken:
            self.check_flags(fault.eflags)
            if fault.reason != ExitReason.INTERRUPT_WINDOW:
                for items in (reply.items, fault.items):
                    blocking = items.get(nonregexc, {}).get(vm.INTERRUPTIBILITY)
                    if blocking is not None:
                        self.check_shadow(blocking)
                        break
        self.note_controls(reply.items.get(ItemId.EXECCTRL, {}).get(vm.CPU_CONTROLS))
        waiting = self.pic.pending()
        if waiting and not self.window:
            raise part.failed(".deliver() leaves an interrupt waiting, and the interrupt window shut.")
        if self.window and not waiting:
            raise part.failed(".deliver() leaves the interrupt window open, though no interrupt waits.")

    def kick(self) -> None:
        part = self._begin("kick")
        part.ask("kick")
        if self.taken:
            raise part.failed(f".kick() acknowledged vector {self.taken[-1]:#x} and did not deliver it: it is lost.")
        if not self.window and not self.sending and self.pic.pending():
            raise part.failed(".kick() leaves an interrupt waiting, and the interrupt window shut.")

    def _begin(self, method: str) -> GuardedPart:
        assert self.part is not None
        self.method, self.sending = method, False
        self.taken.clear()
        return self.part

    def step(self) -> GuardedPart | None:
        """The part makes use of what it was given."""
        if self.part is not None:
            self.part.step(self.method)
        return self.part

    def failed(self, what: str) -> PartFailed:
        """The method at work has done something wrong."""
        assert self.part is not None
        return self.part.failed(f".{self.method}() {what}")

    # -- rules -------------------------------------------------------------------------------------------------------

    def check_event(self, event: int | None) -> None:
        """Is it the one that was acknowledged?"""
        if event is None:
            if self.taken:
                raise self.failed(f"acknowledged vector {self.taken[-1]:#x} and did not deliver it: it is lost.")
        elif len(self.taken) != 1:
            raise self.failed(f"delivers event {hex32(event)}, and acknowledged {len(self.taken)} interrupts.")
        elif event != external_interrupt(self.taken[0]):
            wanted = hex32(external_interrupt(self.taken[0]))
            raise self.failed(f"delivers event {hex32(event)}; that of vector {self.taken[0]:#x} is {wanted}.")

    def check_flags(self, eflags: int) -> None:
        """May the guest be interrupted?"""
        if not eflags & FLAG_IF:
            raise self.failed("interrupts a guest that has its interrupts off.")

    def check_shadow(self, blocking: int) -> None:
        """Nor while STI or MOV SS hold interrupts back."""
        if blocking & _BLOCKED:
            raise self.failed("interrupts the guest right behind STI or MOV SS.")

    def note_controls(self, written: int | None) -> None:
        """The CPU-based controls were written."""
        if written is None:
            return
        if written & ~WINDOW != self.controls & ~WINDOW:
            raise self.failed(f"writes {hex32(written)} as CPU-based controls; they are {hex32(self.controls)}.")
        self.window = bool(written & WINDOW)


class _Requests(InterruptRequests):
    """The guest's interrupt controller."""

    def __init__(self, owner: OutsideInterrupts) -> None:
        self._owner = owner

    def pending(self) -> bool:
        self._owner.step()
        return self._owner.pic.pending()

    def acknowledge(self) -> int:
        owner = self._owner
        owner.step()
        if not owner.pic.pending():
            raise owner.failed("acknowledges an interrupt, and none is pending.")
        vector = owner.pic.acknowledge()
        owner.taken.append(vector)
        return vector


class _Reach(CpuReach):
    """The guest's registers while it runs."""

    def __init__(self, owner: OutsideInterrupts) -> None:
        self._owner = owner
        self._seen: dict[ItemId, dict[int, int]] = {}

    @property
    def controls(self) -> int:
        return self._owner.controls

    def read(self, *items: ItemId) -> Mapping[ItemId, Mapping[int, int]]:
        self._owner.step()
        found = self._owner.vcpu.read(*items)
        self._seen |= found
        return found

    def write(self, registers: Mapping[ItemId, Mapping[int, int]]) -> None:
        owner = self._owner
        owner.step()
        event = registers.get(ItemId.NONREGEXC, {}).get(vm.ENTRY_INFO)
        if event is not None:
            owner.check_event(event)
            if not self._seen.keys() >= {ItemId.GPREGS, ItemId.NONREGEXC}:
                self._seen |= owner.vcpu.read(ItemId.GPREGS, ItemId.NONREGEXC)
            other = self._seen[ItemId.NONREGEXC]
            owner.check_flags(self._seen[ItemId.GPREGS][EFLAGS])
            owner.check_shadow(other[vm.INTERRUPTIBILITY])
            if other[vm.ENTRY_INFO] & EVENT_VALID:
                raise owner.failed("delivers an interrupt over an event that waits to be delivered.")
        owner.note_controls(registers.get(ItemId.EXECCTRL, {}).get(vm.CPU_CONTROLS))
        owner.vcpu.write(registers)
        self._seen = {}
        if event is not None:
            owner.taken.clear()

    def is_sending(self) -> bool:
        self._owner.step()
        self._owner.sending = self._owner.vcpu.is_sending()
        return self._owner.sending
