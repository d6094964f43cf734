# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that are measured: each returns CPU seconds of this process for one round trip, or for one run."""

from __future__ import annotations

import time

from l4lab.abi.calls import SystemCall
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import SIGMA0, global_id
from l4lab.abi.message import Acceptor
from l4lab.abi.protocols import any_page, sigma0_request, thread_start
from l4lab.machine import baseline
from l4lab.machine.board import Machine
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.guests import loops
from l4lab.user.l4 import L4

PROMPT = r"/ # "
STOPS = 20_000
_CODE, _STACKS = 0x0040_0000, 0x0040_8000  # where the native threads' code and stacks are
_UTCBS = 0xBF00_0000

# How each thread that is called goes on for ever: it answers, with an empty message, and waits for the next call.
ANSWER = """
.again:
    mov eax, PING
    mov edx, eax
    xor ecx, ecx
    xor esi, esi
    call IPC
    jmp .again
"""

# Each of the two threads has its partner in EBX at the start, and calls it for ever.
_PING_PONG = f"""
ping:
    mov edi, gs:[0]
.again:
    mov eax, PONG
    mov edx, eax
    xor ecx, ecx
    xor esi, esi
    call IPC
    jmp .again
pong:
    mov edi, gs:[0]
    xor eax, eax
    mov edx, PING
    xor ecx, ecx
    call IPC
{ANSWER}"""


def bare_stop() -> float:
    """Seconds for one stop-and-resume of the bare engine."""
    return baseline.stop_and_resume(STOPS)


def vm_exit(count: int) -> float:
    """Seconds for one VM exit: guest CPUID, IPC to the hosted monitor, its reply, VM entry."""
    rig = Rig.for_flat_guest(loops.cpuid(count))
    rig.run_until(1 << 60, lambda: rig.kernel.counters.exit_count > count // 10)  # past the start
    before, start = rig.kernel.counters.exit_count, time.process_time()
    rig.run()
    return (time.process_time() - start) / (rig.kernel.counters.exit_count - before)


def native_ipc(count: int) -> float:
    """Seconds for one call and reply between two native threads of one space."""
    rig = Rig(_ping_pong, 32 << 20)
    rig.run_until(1 << 60, lambda: rig.kernel.counters.ipc_messages > 200)
    before, start = rig.kernel.counters.ipc_messages, time.process_time()
    rig.run_until(1 << 60, lambda: rig.kernel.counters.ipc_messages - before >= 2 * count)
    return (time.process_time() - start) / count


def _ping_pong(l4: L4) -> None:
    """The root task: puts two native threads into its own space, starts them and sleeps."""
    ping, pong, me = global_id(60), global_id(61), l4.my_id
    l4.accept(Acceptor.of(Fpage.at(_CODE, 16)))
    l4.call(SIGMA0, sigma0_request(any_page(16)))
    l4.accept(0)
    kip = l4.kip()
    names = {"PING": ping, "PONG": pong, "IPC": l4.kernel_interface().base + kip.entry(SystemCall.IPC)}
    program = assemble(_PING_PONG, _CODE, constants={name: int(value) for name, value in names.items()})
    l4.store(_CODE, program.code)
    for number, (thread, label) in enumerate(((pong, "pong"), (ping, "ping")), start=1):
        l4.thread_control(thread, me, me, me, _UTCBS + 512 * number)
        l4.send(thread, thread_start(program.symbols[label], _STACKS + 0x1000 * number))
    while True:
        l4.wait()


def new_machine_ms() -> float:
    """Milliseconds to make a machine with 64 MiB."""
    start = time.process_time()
    Machine(64 << 20, lambda byte: None)
    return (time.process_time() - start) * 1000
