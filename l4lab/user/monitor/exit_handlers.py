# SPDX-License-Identifier: GPL-2.0-or-later
"""Which part answers which exit, and the exits that need no part of their own.

Lives here: the table from exit reason to handler, reflecting exceptions, page faults of the guest-physical space, and
the ends of a guest that the CPU reports. A handler gets the fault and an empty reply, and writes into the reply what
the guest is to go on with. Does not live here: when the reply is sent, and interrupts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l4lab.abi import vm
from l4lab.abi.exceptions import GENERAL_PROTECTION, PAGE_FAULT, SHUTDOWN, UNDEFINED_OPCODE, escalated
from l4lab.abi.frame import EAX, EDX, FLAG_IF
from l4lab.abi.protocols import page_fault_rights
from l4lab.abi.vm import ExitReason, InterruptionInfo, InterruptionType, ItemId
from l4lab.devices.memory_bus import MemoryBus
from l4lab.user.monitor import guest_control
from l4lab.user.monitor.emulate import Emulator
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_cpu import END_OF_MAPPINGS, GuestCpu
from l4lab.user.monitor.guest_cpuid import Cpuid
from l4lab.user.monitor.guest_memory import PAGE, GuestMemory
from l4lab.user.monitor.guest_ports import PortIo
from l4lab.user.monitor.msrs import Msrs
from l4lab.user.monitor.outcome import End
from l4lab.user.monitor.outside_pager import OutsidePager
from l4lab.user.monitor.scratch import Unsupported
from l4lab.user.monitor.taskswitch import TaskSwitches
from l4lab.words import Rights, hex32

Handler = Callable[[Fault, Reply], None]
Stop = Callable[[End, str], None]
NO_DEVICES: Final = MemoryBus(())

MANY_IN_VAIN: Final = 5000  # accesses beyond memory, of which a person is told
_VMX_INSTRUCTIONS: Final = range(ExitReason.VMCALL, ExitReason.VMXON + 1)


class ExitHandlers:
    """The handlers of a monitor, by exit reason, in `handlers`: a dict, to be changed by whoever wants another one."""

    def __init__(
        self,
        now: Callable[[], int],
        vcpu: GuestCpu,
        memory: GuestMemory,
        cpuid: Cpuid,
        msrs: Msrs,
        io: PortIo,
        stop: Stop,
        tell: Callable[[str], None],
        devices: MemoryBus = NO_DEVICES,
    ) -> None:
        self.now = now  # the guest's time stamp counter
        self.vcpu = vcpu
        self.memory = memory
        self.stop = stop
        self.tell = tell
        self._in_vain = 0  # accesses to what is not there, but for reads that a page of ones answers
        self.devices = devices
        self.pager: OutsidePager | None = None  # in the place of what answers page faults here
        self.emulator = Emulator(devices, memory, vcpu, self.handle)
        reason = ExitReason
        self.handlers: dict[int, Handler] = {
            reason.IO_INSTRUCTION: io.handle,
            reason.CPUID: cpuid.handle,
            reason.RDMSR: msrs.read,
            reason.WRMSR: msrs.write,
            reason.HLT: self.halt,
            reason.INTERRUPT_WINDOW: self.nothing,  # whatever waited is delivered after every fault
            reason.CR_ACCESS: guest_control.cr_access,
            reason.DR_ACCESS: guest_control.dr_access,
            reason.RDTSC: self.read_time,
            reason.EXCEPTION_OR_NMI: self.reflect,
            **dict.fromkeys((reason.INVLPG, reason.INVD, reason.PAUSE), self.skip),
            # What CPUID does not offer does not exist.
            **dict.fromkeys((reason.MONITOR, reason.MWAIT, reason.RSM, *_VMX_INSTRUCTIONS), self.undefined),
            reason.RDPMC: self.no_counters,
            reason.TASK_SWITCH: TaskSwitches(vcpu, memory).handle,
            reason.TRIPLE_FAULT: self.triple_fault,
        }

    def handle(self, fault: Fault, reply: Reply) -> None:
        """Answer a virtualization fault."""
        if fault.internal:
            reply.resume_delivery(fault)
            return
        handler = self.handlers.get(fault.reason)
        if handler is None:
            self.stop(End.STOPPED, f"exit {fault.reason_name} is nothing this monitor can answer")
        else:
            handler(fault, reply)

    # -- instructions ----------------------------------------------------------------------------------------------

    def nothing(self, fault: Fault, reply: Reply) -> None:
        """Go on where the guest was."""

    def skip(self, fault: Fault, reply: Reply) -> None:
        """An instruction whose work the kernel has done, or that needs none."""
        reply.skip(fault)

    def undefined(self, fault: Fault, reply: Reply) -> None:
        """An instruction that this CPU does not have."""
        reply.raise_exception(UNDEFINED_OPCODE)

    def no_counters(self, fault: Fault, reply: Reply) -> None:
        """RDPMC: there are no performance counters to name."""
        reply.raise_exception(GENERAL_PROTECTION, 0)

    def read_time(self, fault: Fault, reply: Reply) -> None:
        """RDTSC."""
        now = self.now()
        reply.gpr(EAX, now)
        reply.gpr(EDX, now >> 32)
        reply.skip(fault)

    def halt(self, fault: Fault, reply: Reply) -> None:
        """HLT: the answer waits for an interrupt; with interrupts off there will be none."""
        if fault.eflags & FLAG_IF:
            reply.skip(fault)
            reply.hold = True
        else:
            self.stop(End.HALTED, f"the guest halted with interrupts off at {hex32(fault.eip)}")

    # -- events ------------------------------------------------------------------------------------------------------

    def reflect(self, fault: Fault, reply: Reply) -> None:
        """An exception that the exception bitmap sends here: the guest gets it, as it would have without."""
        nonregexc = fault.items[ItemId.NONREGEXC]
        event = InterruptionInfo.decode(nonregexc[vm.EXIT_INFO])
        first = fault.interrupted
        if first is not None and first.type is InterruptionType.HARDWARE_EXCEPTION:
            vector = escalated(first.vector, event.vector)
            if vector == SHUTDOWN:
                self.triple_fault(fault, reply)
                return
            if vector != event.vector:
                reply.raise_exception(vector, 0)
                return
        if event.vector == PAGE_FAULT:
            reply.write(ItemId.CREGS, vm.CR2, fault.qualification)
        by_instruction = event.type is InterruptionType.SOFTWARE_EXCEPTION
        reply.inject(
            event.replace(nmi_unblocking=0), nonregexc[vm.EXIT_EEC], fault.instruction_length if by_instruction else 0
        )

    def triple_fault(self, fault: Fault, reply: Reply) -> None:
        """The guest could not even deliver a double fault."""
        self.stop(End.TRIPLE_FAULT, f"no handler could be reached for an exception at {hex32(fault.eip)}")

    # -- guest-physical memory -----------------------------------------------------------------------------------------

    def page_fault(self, fault: Fault, reply: Reply) -> None:
        """The guest touched guest-physical memory that is not mapped: MR1 is the address, MR2 the guest's EIP."""
        address = fault.words[1]
        if self.pager is not None:
            self.pager.page_fault(fault, reply)
        elif self.devices.holes(address & -PAGE, PAGE):
            self.do_instead(fault, reply)
        elif address < self.memory.size:
            reply.typed = self.memory.map_item(address)
            reply.resume_delivery(fault)
        elif not page_fault_rights(fault.label) & Rights.W and address < END_OF_MAPPINGS:
            reply.typed = self.memory.map_ones(address)
            reply.resume_delivery(fault)
        else:
            self.do_instead(fault, reply)

    def do_instead(self, fault: Fault, reply: Reply) -> None:
        """No page can be given here that would do what is right: a device has to be told, or nothing is there."""
        address = fault.words[1]
        is_write = bool(page_fault_rights(fault.label) & Rights.W)
        if address >= self.memory.size and not self.devices.holes(address & -PAGE, PAGE):
            self.memory.note_unbacked(address, "write" if is_write else "read")
            self._in_vain += 1
            if self._in_vain == MANY_IN_VAIN:
                self.tell(
                    f"the guest writes where no memory is, at {hex32(address)} by now. Each time is a VM exit: if it "
                    "looks for the end of its memory, that takes long. Tell it the size, or give it more by --memory."
                )
        device = self.devices.owner(address)
        where = f"{hex32(address)}, " + (f"which is the {device.name}'s" if device else "beyond its memory")
        if fault.interrupted is not None:
            self.stop(
                End.STOPPED, f"the guest cannot take an event at {hex32(fault.eip)}: its stack or tables are at {where}"
            )
            return
        try:
            self.emulator.handle(fault, reply)
        except Unsupported as instruction:
            access = "writes" if is_write else "reads"
            self.stop(
                End.STOPPED,
                f"at {hex32(fault.eip)} the guest {access} {where}: {instruction}, which this monitor cannot do",
            )
