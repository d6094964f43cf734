# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a monitor as a student would write them, one of each kind, in plain Python."""

from __future__ import annotations

from collections.abc import MutableMapping

from l4lab.abi import vm
from l4lab.abi.fpage import Fpage
from l4lab.abi.frame import EAX, ECX, EDI, EDX, EFLAGS, ESI, FLAG_DF, FLAG_IF
from l4lab.abi.ids import NIL_THREAD
from l4lab.abi.message import MapItem
from l4lab.abi.protocols import page_fault_rights
from l4lab.abi.vm import EVENT_VALID, CpuControls, ExitReason, Interruptibility, IoAccess, ItemId
from l4lab.user.monitor.fault import Fault, Reply, external_interrupt
from l4lab.user.monitor.monitor_parts import (
    CpuReach,
    GuestDevices,
    GuestPager,
    GuestPorts,
    GuestRam,
    GuestToServe,
    InterruptDelivery,
    InterruptRequests,
    LinearMemory,
    ServingLoop,
)
from l4lab.user.monitor.paging import GuestPageFault
from l4lab.words import Rights

SMALL, LARGE = 12, 22
BLOCKED = Interruptibility.BLOCKED_BY_STI | Interruptibility.BLOCKED_BY_MOV_SS
WINDOW = CpuControls.INTERRUPT_WINDOW_EXITING


class Pager(GuestPager):
    """Pages of 4 KB."""

    log2 = SMALL

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        """A page of memory, a page of ones, or no page."""
        address, ram = fault.words[1], self.ram
        write = bool(page_fault_rights(fault.label) & Rights.W)
        if ram.has_device(address & -4096, 4096) or (write and address >= ram.size):
            ram.do(fault, reply)
            return
        if address < ram.size:
            log2 = self.log2
            while ram.has_device(address & -1 << log2, 1 << log2):
                log2 -= 1
            base = address & -1 << log2
            reply.typed = [MapItem.at(base), Fpage.at(ram.at(base), log2)]
        else:
            reply.typed = [MapItem.at(address & -4096), Fpage.at(ram.ones, SMALL, "rx")]
        reply.resume_delivery(fault)


class LargePager(Pager):
    """Pages of 4 MB where there is no device, as the monitor's own."""

    log2 = LARGE


class Delivery(InterruptDelivery):
    """Interrupts."""

    def __init__(self, requests: InterruptRequests, cpu: CpuReach) -> None:
        self.requests, self.cpu, self.window = requests, cpu, False

    def deliver(self, fault: Fault, reply: Reply) -> None:
        """Into the reply, or else ask for the window."""
        if self.requests.pending() and not reply.injects and self.can(fault, reply):
            reply.inject(external_interrupt(self.requests.acknowledge()))
        waiting = self.requests.pending()
        if waiting != self.window:
            self.window = waiting
            reply.write(ItemId.EXECCTRL, vm.CPU_CONTROLS, self.cpu.controls | (WINDOW if waiting else 0))

    def can(self, fault: Fault, reply: Reply) -> bool:
        """May the guest be interrupted? What the message does not say, the window will."""
        if not fault.eflags & FLAG_IF:
            return False
        if fault.reason == ExitReason.INTERRUPT_WINDOW:
            return True
        for items in (reply.items, fault.items):
            blocking = items.get(ItemId.NONREGEXC, {}).get(vm.INTERRUPTIBILITY)
            if blocking is not None:
                return not blocking & BLOCKED
        return False

    def kick(self) -> None:
        """Reach in."""
        if self.window or not self.requests.pending() or self.cpu.is_sending():
            return
        registers = self.cpu.read(ItemId.GPREGS, ItemId.NONREGEXC)
        flags, other = registers[ItemId.GPREGS][EFLAGS], registers[ItemId.NONREGEXC]
        writes: dict[ItemId, dict[int, int]] = {}
        if flags & FLAG_IF and not other[vm.INTERRUPTIBILITY] & BLOCKED and not other[vm.ENTRY_INFO] & EVENT_VALID:
            writes[ItemId.NONREGEXC] = {vm.ENTRY_INFO: external_interrupt(self.requests.acknowledge())}
        if self.requests.pending():
            self.window = True
            writes[ItemId.EXECCTRL] = {vm.CPU_CONTROLS: self.cpu.controls | WINDOW}
        self.cpu.write(writes)


class Devices(GuestDevices):
    """Ports, strings of them, and the MSRs that have values."""

    def __init__(self, ports: GuestPorts, memory: LinearMemory, msrs: MutableMapping[int, int]) -> None:
        self.ports, self.memory, self.msrs = ports, memory, msrs

    def port_io(self, fault: Fault, reply: Reply) -> None:
        """One element, or ECX of them."""
        access = IoAccess.decode(fault.qualification)
        port, width, low = access.port, access.width, (1 << 8 * access.width) - 1
        if access.string:
            self.string(fault, reply, access)
            return
        if access.is_in:
            reply.gpr(EAX, fault.eax & ~low | self.ports.read(port, width) & low)
        else:
            self.ports.write(port, width, fault.eax & low)
        reply.skip(fault)

    def string(self, fault: Fault, reply: Reply, access: IoAccess) -> None:
        """In 32-bit code; what was done before a page fault stays done."""
        step = -access.width if fault.eflags & FLAG_DF else access.width
        linear, left, done = fault.info, fault.ecx if access.rep else 1, 0
        try:
            while left:
                if access.is_in:
                    self.memory.check_write(linear, access.width)
                    self.memory.write(
                        linear, self.ports.read(access.port, access.width).to_bytes(access.width, "little")
                    )
                else:
                    element = self.memory.read(linear, access.width)
                    self.ports.write(access.port, access.width, int.from_bytes(element, "little"))
                linear, left, done = linear + step & 0xFFFF_FFFF, left - 1, done + 1
            reply.skip(fault)
        except GuestPageFault as missing:
            reply.raise_page_fault(missing.address, missing.error_code)
        index, old = (EDI, fault.edi) if access.is_in else (ESI, fault.esi)
        reply.gpr(index, old + done * step)
        if access.rep:
            reply.gpr(ECX, left)


class DevicesAndMsrs(Devices):
    """With registers that may not exist."""

    def rdmsr(self, fault: Fault, reply: Reply) -> None:
        """Its value, or #GP."""
        value = self.msrs.get(fault.ecx)
        if value is None:
            reply.raise_exception(13, 0)
            return
        reply.gpr(EAX, value)
        reply.gpr(EDX, value >> 32)
        reply.skip(fault)

    def wrmsr(self, fault: Fault, reply: Reply) -> None:
        """Its value, or #GP."""
        if fault.ecx not in self.msrs:
            reply.raise_exception(13, 0)
            return
        self.msrs[fault.ecx] = fault.edx << 32 | fault.eax
        reply.skip(fault)


class Loop(ServingLoop):
    """One message after the other."""

    def run(self, guest: GuestToServe) -> None:
        """Until the guest has ended."""
        waiting: tuple[Fault, Reply] | None = None
        to, words = guest.first
        while not guest.ended:
            received = guest.exchange(to, words, guest.due())
            if received is not None and received.sender == guest.cpu:
                waiting = Fault(received.words), Reply()
                guest.answer(*waiting)
                if guest.ended:
                    return
            elif received is not None:
                guest.other(received)
            guest.advance()
            to, words = NIL_THREAD, None
            if waiting is None:
                guest.kick()
                continue
            fault, reply = waiting
            guest.deliver(fault, reply)
            if not reply.hold or reply.injects:
                to, words, waiting = guest.cpu, reply.words(), None
