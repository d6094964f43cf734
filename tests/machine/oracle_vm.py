# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle's cases as guests of the kernel: a virtual machine with a monitor put together from the lab's own parts.

`oracle.py` enters a case with nothing but guest mode around it; here are the kernel's shadow page tables, its way of
delivering events again, and a monitor that gives a page when it is asked for one. What a case is, and where it ends, is
the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

from l4lab.abi import vm
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.vm import ExitReason, ItemId, fault_id_of
from l4lab.kernel.objects.thread import Tcb
from l4lab.machine.vmcs import CR4_PSE
from l4lab.testing import Root, System
from l4lab.user.monitor import guest_control
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.start import CPU_CONTROLS, FAULT_ITEMS
from l4lab.user.monitor.taskswitch import TaskSwitches

from .oracle import ENOUGH, SIZE, BeyondMemory, Case, State, first_state, run_here, state_of

MODES = ("shadow", "shadow, monitor not told")  # the second: the kernel itself delivers again what a miss cut short
_FIRST_ITEMS = (ItemId.GPREGS, ItemId.CREGS, ItemId.EXECCTRL, ItemId.GDTR, ItemId.IDTR)  # in the launching message
_TOLD = {**FAULT_ITEMS, fault_id_of(ExitReason.INVLPG): (ItemId.GPREGS,)}
_NOT_TOLD = {
    fault: (ItemId.GPREGS, ItemId.CREGS, *([ItemId.NONREGEXC] if fault == fault_id_of(ExitReason.TASK_SWITCH) else []))
    for fault in FAULT_ITEMS
}


@dataclass
class _Run:
    """One case, and what its monitor saw of it."""

    case: Case
    mode: str
    cpu: int = 0
    memory: bytes = b""
    ended: list[ExitReason | int] = field(default_factory=list)  # HLT, a triple fault, or an address beyond memory

    def monitor(self, r: Root) -> None:
        """Give pages, switch tasks and let PSE be set, until the case has ended."""
        memory = GuestMemory(r, SIZE, r.room(SIZE))
        memory.write(0, self.case.image)
        vcpu = GuestCpu.create(r, r.new_id(), shadow_paging=True)
        vcpu.configure(_TOLD if self.mode == "shadow" else _NOT_TOLD)
        self.cpu = vcpu.id
        registers = first_state(self.case)
        registers[ItemId.EXECCTRL] = {1: CPU_CONTROLS, 2: 0}
        registers[ItemId.CREGS] |= {vm.CR0_MASK: 0, vm.CR4_MASK: CR4_PSE, vm.CR4_SHADOW: 0}
        vcpu.write({item: values for item, values in registers.items() if item not in _FIRST_ITEMS})
        words = vcpu.launch({item: registers[item] for item in _FIRST_ITEMS})
        while not self.ended:
            fault, reply = Fault(r.call(vcpu.id, words).words), Reply()
            self._answer(vcpu, memory, fault, reply)
            words = reply.words()
        self.memory = memory.read(0, SIZE)

    def _answer(self, vcpu: GuestCpu, memory: GuestMemory, fault: Fault, reply: Reply) -> None:
        if is_page_fault(fault.label):
            if fault.words[1] >= SIZE:
                self.ended.append(fault.words[1])
                return
            reply.typed = memory.map_item(fault.words[1])
            reply.resume_delivery(fault)
        elif fault.internal:
            reply.resume_delivery(fault)
        elif fault.reason in (ExitReason.HLT, ExitReason.TRIPLE_FAULT):
            self.ended.append(ExitReason(fault.reason))
        elif fault.reason == ExitReason.CR_ACCESS:
            guest_control.cr_access(fault, reply)
        elif fault.reason == ExitReason.TASK_SWITCH:
            TaskSwitches(vcpu, memory).handle(fault, reply)
        else:
            raise AssertionError(f"{fault.reason_name} at {fault.eip:#x}")


def run_in_kernel(kind: str, mode: str, case: Case) -> State:
    """The end of a case in a guest under shadow page tables."""
    run = _Run(case, mode)
    with mock.patch.dict(os.environ, L4LAB_ENGINE=kind):
        system = System(run.monitor, memory=8 << 20, check=False)
    system.run(100 * ENOUGH)
    if not run.ended:
        raise AssertionError(f"no end at {system.thread(run.cpu).regs[0]:#x}")
    end = run.ended[0]
    if not isinstance(end, ExitReason):
        raise BeyondMemory(f"{end:#x}")
    if end is ExitReason.TRIPLE_FAULT:
        return State({}, b"", shut_down=True)
    return _state(system.thread(run.cpu), run.memory)


def _state(thread: Tcb, memory: bytes) -> State:
    assert thread.vcpu is not None
    return state_of(thread.vcpu.vmcs, thread.regs, memory)


def all_of_ours(case: Case) -> Iterator[tuple[str, State]]:
    """The end of a case on both cores: under nested paging in bare guest mode, under shadow paging in a kernel."""
    for kind in ("native", "python"):
        yield f"{kind}, nested", run_here(kind, case)
        for mode in MODES:
            yield f"{kind}, {mode}", run_in_kernel(kind, mode, case)
