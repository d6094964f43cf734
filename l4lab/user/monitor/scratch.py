# SPDX-License-Identifier: GPL-2.0-or-later
"""An instruction that touches a device or nothing at all, executed by the CPU: on pages that are lent for it.

`emulate` does what software uses on device memory, at the price of one exit. Any other instruction (of the FPU, a far
jump, a push of everything, ...) the guest executes where it stands, in its own mode: a page is put under the address,
with what the device says or with ones, the CPU steps over the instruction, and what it has stored goes to the device.
So there is no list of what works, and none of it is imitated. It is not done for all: it costs two exits more, and what
the CPU reads and writes is not seen, so of a device only the operands that the instruction names are asked and told.

Addresses at which nothing can be mapped into the VM's space get their page elsewhere: the guest's page table leads
there meanwhile. While it steps, all exceptions come here and no interrupt is delivered, so that nobody sees EFLAGS.TF.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from l4lab.abi import vm
from l4lab.abi.exceptions import DEBUG
from l4lab.abi.fpage import PAGE_LOG2, Fpage
from l4lab.abi.frame import EFLAGS, FLAG_TF
from l4lab.abi.message import MapItem
from l4lab.abi.protocols import is_page_fault, page_fault_rights
from l4lab.abi.vm import CpuControls, ExitReason, InterruptionInfo, ItemId
from l4lab.devices.memory_bus import MemoryBus
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_cpu import END_OF_MAPPINGS, GuestCpu
from l4lab.user.monitor.guest_memory import LENT_PAGES, PAGE, GuestMemory
from l4lab.user.monitor.paging import CR0_PG, LARGE, PRESENT, USER, WRITABLE, GuestPageFault, Paging
from l4lab.user.monitor.start import CR0_PE
from l4lab.words import Rights

ALL_EXCEPTIONS: Final = 0xFFFF_FFFF
DR6_SINGLE_STEP: Final = 1 << 14
# Where pages are put instead of beyond END_OF_MAPPINGS: the last part of what an entry of a page directory leads to.
INSTEAD: Final = END_OF_MAPPINGS - (4 << 20)
_OFFSET: Final = 0x3F_F000
_ADDRESS: Final = 0xFFFF_F000  # of a page-table entry; in that of a large page it says more, which is zero


class Unsupported(Exception):
    """The instruction is none that is done here."""


class Operand(NamedTuple):
    """Memory that an instruction names. `modified`: what is written depends on what is read."""

    linear: int
    size: int
    modified: bool = False


class Scratch:
    """Lends pages to one virtual CPU. `others` answers what the instruction does beside touching memory."""

    def __init__(self, memory: GuestMemory, vcpu: GuestCpu, others: Callable[[Fault, Reply], None]) -> None:
        self.memory, self.vcpu, self.others = memory, vcpu, others

    def execute(
        self,
        fault: Fault,
        reply: Reply,
        bus: MemoryBus,
        registers: Mapping[ItemId, Mapping[int, int]],
        operands: Sequence[Operand],
    ) -> None:
        """Have the instruction executed at which `fault` is; `reply` then answers the fault at which the CPU stands.

        Raises Unsupported if no page can be lent.
        """
        vcpu, memory = self.vcpu, self.memory
        controls = vcpu.read(ItemId.EXECCTRL)[ItemId.EXECCTRL]
        step = Reply()
        step.gpr(EFLAGS, fault.eflags | FLAG_TF)
        without_window = controls[vm.CPU_CONTROLS] & ~CpuControls.INTERRUPT_WINDOW_EXITING
        step.write(ItemId.EXECCTRL, vm.CPU_CONTROLS, without_window)
        step.write(ItemId.EXECCTRL, vm.EXCEPTION_BITMAP, ALL_EXCEPTIONS)
        met = fault
        with ExitStack() as given_back:
            lending = _Lending(self, bus, Paging.of(registers), operands, given_back)
            while True:
                if is_page_fault(met.label):
                    address = met.words[1]
                    if address < memory.size and not bus.holes(address & -PAGE, PAGE):
                        step.typed = memory.map_item(address)
                    else:
                        is_write = bool(page_fault_rights(met.label) & Rights.W)
                        step.typed = lending.page(address, is_write, step, registers)
                elif not met.internal:
                    break
                if met is not fault:
                    step.resume_delivery(met)
                met = Fault(vcpu.l4.call(vcpu.id, step.words()).words)
                step = Reply()
            stepped = met.reason == ExitReason.EXCEPTION_OR_NMI and _event(met).vector == DEBUG
            if stepped:
                lending.tell_devices()
        reply.write(ItemId.EXECCTRL, vm.CPU_CONTROLS, controls[vm.CPU_CONTROLS])
        reply.write(ItemId.EXECCTRL, vm.EXCEPTION_BITMAP, controls[vm.EXCEPTION_BITMAP])
        reply.gpr(EFLAGS, met.eflags & ~FLAG_TF | fault.eflags & FLAG_TF)
        if lending.paged:
            for register in (vm.CR0, vm.CR3):
                reply.write(ItemId.CREGS, register, registers[ItemId.CREGS][register])
        if not stepped:
            self.others(met, reply)
        elif fault.eflags & FLAG_TF:
            reply.write(ItemId.DREGS, vm.DR6, vcpu.read(ItemId.DREGS)[ItemId.DREGS][vm.DR6] | DR6_SINGLE_STEP)
            reply.raise_exception(DEBUG)


def _event(fault: Fault) -> InterruptionInfo:
    return InterruptionInfo.decode(fault.items[ItemId.NONREGEXC][vm.EXIT_INFO])


class _Lending:
    """The pages that are lent for one instruction."""

    def __init__(
        self, scratch: Scratch, bus: MemoryBus, paging: Paging, operands: Sequence[Operand], given_back: ExitStack
    ) -> None:
        self.bus, self.memory, self.l4 = bus, scratch.memory, scratch.vcpu.l4
        self.paging, self.operands, self.given_back = paging, operands, given_back
        self.devices = self._of_devices()
        self.taken = 0
        self.at: dict[int, Fpage] = {}  # the monitor's own, by the guest-physical address for which it is lent
        self.put: dict[int, int] = {}  # where the guest has it
        self.lent_for: dict[int, int] = {}  # the other way round
        self.written: set[int] = set()  # those that the instruction writes to
        self.region: int | None = None  # of 4 MiB, of which all leads to INSTEAD
        self.paged = False  # has paging been turned on for a guest that had none?

    def page(
        self, address: int, is_write: bool, step: Reply, registers: Mapping[ItemId, Mapping[int, int]]
    ) -> list[int]:
        """The map items that put a page under a guest-physical address; `step` may get registers for it.

        A device's page cannot be written at first, so that it shows whether the instruction does.
        """
        items = list[int]()
        met = address & -PAGE
        if self.region is not None and INSTEAD <= met < END_OF_MAPPINGS:
            page = self.region | met & _OFFSET
        else:
            page = self.lent_for.get(met, met)
        if page in self.at:
            if not is_write or page in self.written:
                raise Unsupported("an access that no page answers")
            self.written.add(page)
            return [MapItem.at(self.put[page]), self.at[page]]
        if page < END_OF_MAPPINGS or met != page:
            put = met
        elif self.paging.cr0 & CR0_PG:
            put = self._redirect(page)
        else:
            put, items = self._turn_on_paging(page, step, registers)
        mine = self._lend(self._contents(page, is_write))
        self.at[page], self.put[page], self.lent_for[put] = mine, put, page
        if is_write or not self.bus.holes(page, PAGE):
            self.written.add(page)
        return [
            *items,
            MapItem.at(put),
            mine if page in self.written else Fpage.at(mine.base, PAGE_LOG2, Rights.R | Rights.X),
        ]

    def _lend(self, contents: bytes) -> Fpage:
        if self.taken == LENT_PAGES:
            raise Unsupported("an access to more pages than can be lent")
        mine = self.memory.lent_page(self.l4, self.taken)
        self.taken += 1
        self.l4.store(mine, contents)
        whole = Fpage.at(mine, PAGE_LOG2, Rights.R | Rights.W | Rights.X)
        self.given_back.callback(self.l4.unmap, whole)
        return whole

    # -- what is in them -----------------------------------------------------------------------------------------------

    def _of_devices(self) -> list[tuple[Operand, int, int]]:
        """The accesses to devices: operand, guest-physical address, size; low address first."""
        found = []
        for operand in self.operands if self.bus.devices else ():
            done = 0
            while done < operand.size:
                linear = operand.linear + done & 0xFFFF_FFFF
                size = min(4, operand.size - done, PAGE - linear % PAGE)
                size = 2 if size == 3 else size
                done += size
                with suppress(GuestPageFault):  # which the CPU will find
                    physical = self.paging.translate(self.memory, linear)
                    if self.bus.holes(physical, size):
                        found.append((operand, physical, size))
        return found

    def _contents(self, page: int, is_write: bool) -> bytes:
        """Ones, and what a device says where an operand is read."""
        contents = bytearray(b"\xff" * PAGE)
        for operand, physical, size in self.devices:
            if physical & -PAGE == page and (operand.modified or not is_write):
                at = physical % PAGE
                contents[at : at + size] = self.bus.load(physical, size).to_bytes(size, "little")
        return bytes(contents)

    def tell_devices(self) -> None:
        """What the instruction has stored goes to the devices."""
        for _, physical, size in self.devices:
            page = physical & -PAGE
            if page in self.written:
                value = int.from_bytes(self.l4.load(self.at[page].base + physical % PAGE, size), "little")
                self.bus.store(physical, size, value)

    # -- where nothing can be mapped -----------------------------------------------------------------------------------

    def _redirect(self, page: int) -> int:
        """Have the guest's page table lead to where something can be mapped; the address there."""
        put = INSTEAD | page & _OFFSET
        for operand in self.operands:
            for linear in (operand.linear, operand.linear + operand.size - 1 & 0xFFFF_FFFF):
                try:
                    physical = self.paging.translate(self.memory, linear)
                except GuestPageFault:
                    continue
                if physical & -PAGE == page:
                    self._change_entry(linear, put)
                    return put
        raise Unsupported("an access where nothing can be mapped")

    def _change_entry(self, linear: int, put: int) -> None:
        memory = self.memory
        at, large = self.paging.last_entry(memory, linear)
        entry = memory.word(at)
        memory.set_word(at, entry & ~_ADDRESS | (INSTEAD if large else put))
        if large:
            self.region = entry & ~_OFFSET & _ADDRESS
        self.given_back.callback(lambda: memory.set_word(at, entry & _ADDRESS | memory.word(at) & ~_ADDRESS))

    def _turn_on_paging(
        self, page: int, step: Reply, registers: Mapping[ItemId, Mapping[int, int]]
    ) -> tuple[int, list[int]]:
        """The same for a guest without paging: it gets a directory of large pages that is the identity elsewhere."""
        if self.paged or not self.paging.cr0 & CR0_PE:
            raise Unsupported("an access where nothing can be mapped")
        self.paged = True
        entries = [number << 22 | PRESENT | WRITABLE | USER | LARGE for number in range(1024)]
        entries[page >> 22] = INSTEAD | PRESENT | WRITABLE | USER | LARGE
        self.region = page & ~_OFFSET
        directory = INSTEAD | ~page & _OFFSET
        step.write(ItemId.CREGS, vm.CR0, registers[ItemId.CREGS][vm.CR0] | CR0_PG)
        step.write(ItemId.CREGS, vm.CR3, directory)
        return INSTEAD | page & _OFFSET, [MapItem.at(directory), self._lend(struct.pack("<1024I", *entries))]
