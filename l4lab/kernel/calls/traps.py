# SPDX-License-Identifier: GPL-2.0-or-later
"""What an entry into the kernel means: traps of native programs, requests of hosted ones, and the system calls.

The main loop in `kernel.py` has run a thread until it entered the kernel. Here the vector, or what a hosted program
asked for, leads to the function that does it; `SYSTEM_CALLS` is the table of those. Exits of virtual CPUs are
`vmthread.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l4lab.abi import kip
from l4lab.abi.calls import CONVENTIONS, SystemCall
from l4lab.abi.exceptions import BREAKPOINT, GENERAL_PROTECTION, OVERFLOW, PAGE_FAULT, UNDEFINED_OPCODE
from l4lab.abi.frame import EAX, EIP
from l4lab.errors import PartFailed, Refused
from l4lab.kernel import events
from l4lab.kernel.calls import control, exregs, schedule, threadcontrol
from l4lab.kernel.calls.kip_stubs import CALL_VECTOR, IPC_VECTOR
from l4lab.kernel.devices import debugtraps, nativefaults, portio
from l4lab.kernel.ipc import faults, ipc
from l4lab.kernel.objects.program import Died, PortFault, Request
from l4lab.kernel.objects.thread import Tcb
from l4lab.kernel.state import State
from l4lab.machine import engine as e
from l4lab.machine.mmu import WRITE, WalkFault

_INT_ERROR: Final = 2  # a software interrupt without a gate is #GP with error code 8 * n + 2


def user_trap(k: State, thread: Tcb, event: int) -> None:
    """A native program trapped."""
    info = k.machine.engine.info
    if event == IPC_VECTOR and info[e.INFO_IS_INT]:
        k.function = "ipc.sys_ipc"
        ipc.sys_ipc(k, thread)
    elif event in (e.EVENT_IN, e.EVENT_OUT):
        k.function = "portio.access"
        portio.access(k, thread, event == e.EVENT_IN)
    elif event == e.EVENT_ERROR:
        k.function = "traps.user_trap"
        k.halt(thread, f"the CPU engine gave up (error {info[e.INFO_UC_ERROR]:#x}) at {thread.regs[EIP]:#x}")
    elif info[e.INFO_IS_INT]:
        _software_interrupt(k, thread, event)
    elif event == PAGE_FAULT:
        address = k.machine.engine.read_register("CR2")
        k.function = "faults.page_fault"
        faults.page_fault(k, thread, address, bool(info[e.INFO_ERROR_CODE] & WRITE))
    elif event == UNDEFINED_OPCODE and k.code_at(thread, 2) == kip.LOCK_NOP:
        thread.regs[EIP] += 2
        system_call(k, thread, SystemCall.KERNEL_INTERFACE)
    elif event == GENERAL_PROTECTION and nativefaults.done_for(k, thread):
        k.function = "nativefaults.done_for"
    else:
        k.function = "faults.exception"
        faults.exception(k, thread, event, info[e.INFO_ERROR_CODE])


def _software_interrupt(k: State, thread: Tcb, vector: int) -> None:
    regs = thread.regs
    k.function = "traps.user_trap"
    if vector == CALL_VECTOR:
        call = k.stub_returns.get(regs[EIP] - thread.space.kip_area.base)
        if call is not None:
            system_call(k, thread, call)
        return  # from elsewhere it is no call; registers are unchanged (reference section 4.1)
    if vector == BREAKPOINT and debugtraps.breakpoint_trap(k, thread):
        k.function = "debugtraps.breakpoint_trap"
        return
    if vector in (BREAKPOINT, OVERFLOW):
        k.function = "faults.exception"
        faults.exception(k, thread, vector, 0)
    elif k.machine.user.gate_dpl(vector) < 3:
        regs[EIP] -= 2  # the fault is at the instruction
        k.function = "faults.exception"
        faults.exception(k, thread, GENERAL_PROTECTION, 8 * vector + _INT_ERROR)


def system_call(k: State, thread: Tcb, call: SystemCall) -> None:
    """Decode, check, act: the function in the table does it. A refusal becomes result 0 and an error code."""
    if call is SystemCall.IPC or call is SystemCall.LIPC:
        k.function = "ipc.sys_ipc"
        ipc.sys_ipc(k, thread)
        return
    k.trace.append(events.SystemCalled(k.now, thread.word, call.title, CONVENTIONS[call].read_inputs(thread.regs)))
    k.function = FUNCTIONS[call]
    try:
        SYSTEM_CALLS[call](k, thread)
    except Refused as refused:
        thread.regs[EAX] = 0
        thread.refuse(refused.code)


def hosted_request(k: State, thread: Tcb, request: Request) -> None:
    """A hosted program ran up to its next kernel entry, which is not Ipc."""
    if isinstance(request, SystemCall):
        system_call(k, thread, request)
    elif isinstance(request, WalkFault):
        k.function = "faults.page_fault"
        faults.page_fault(k, thread, request.address, bool(request.error_code & WRITE))
    elif isinstance(request, PortFault):
        k.function = "faults.io_page_fault"
        faults.io_page_fault(k, thread, request.port, request.size)
    elif isinstance(request, PartFailed):
        raise request
    elif isinstance(request, Died):
        k.function = "traps.hosted_request"
        k.deaths.append((thread, request))
        k.halt(thread, f"its program raised {request.summary}")
    else:
        k.function = "traps.hosted_request"
        k.halt(thread, "its program ended")


SYSTEM_CALLS: dict[SystemCall, Callable[[State, Tcb], None]] = {
    SystemCall.SPACE_CONTROL: control.sys_space_control,
    SystemCall.THREAD_CONTROL: threadcontrol.sys_thread_control,
    SystemCall.PROCESSOR_CONTROL: control.sys_processor_control,
    SystemCall.MEMORY_CONTROL: control.sys_memory_control,
    SystemCall.UNMAP: control.sys_unmap,
    SystemCall.EXCHANGE_REGISTERS: exregs.sys_exchange_registers,
    SystemCall.SYSTEM_CLOCK: control.sys_system_clock,
    SystemCall.THREAD_SWITCH: schedule.sys_thread_switch,
    SystemCall.SCHEDULE: schedule.sys_schedule,
    SystemCall.KERNEL_INTERFACE: control.sys_kernel_interface,
}
FUNCTIONS: Final = {
    call: f"{does.__module__.rpartition('.')[2]}.{does.__name__}" for call, does in SYSTEM_CALLS.items()
}
