# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests to measure with: one that only exits, one that only computes. Both halt with interrupts off when done.

Neither touches a device, so the time they take is the time of the exit path and of plain execution.
"""

from __future__ import annotations

from l4lab.errors import LabError
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import ORIGIN, FlatGuest

CPUID_SOURCE = """
start:  mov     edi, ITERATIONS
.next:  mov     eax, 0                  ; leaf 0; CPUID overwrites EAX, EBX, ECX, EDX
        cpuid                           ; always exits to the monitor (SDM vol. 3, 26.1.2)
        dec     edi
        jnz     .next
        cli
done:   hlt
        jmp     done
"""

COMPUTE_SOURCE = """
start:  mov     edi, ITERATIONS
        mov     eax, 1                  ; the result, so that the work cannot be skipped
        mov     ecx, 0                  ; index into the table
.next:  add     [table + ecx*4], eax    ; load, add, store
        imul    eax, eax, 1664525       ; a linear congruential generator
        add     eax, 1013904223
        add     ecx, 1
        and     ecx, 1023               ; around the table, 4 KiB
        dec     edi
        jnz     .next
        mov     [result], eax
        cli
done:   hlt
        jmp     done
        .align  64
result: .long   0
        .align  4096
table:                                  ; the page behind the program
"""

INSTRUCTIONS_PER_COMPUTE_ITERATION = 7


def cpuid(iterations: int) -> FlatGuest:
    """CPUID in a loop: `iterations` VM exits, then HLT."""
    return _build(CPUID_SOURCE, iterations, f"Executes CPUID {iterations} times, then halts.")


def compute(iterations: int) -> FlatGuest:
    """A tight integer loop with a load and a store in each turn, then HLT; the result is at `result`."""
    return _build(COMPUTE_SOURCE, iterations, f"Computes for {iterations} turns of a loop, then halts.")


def compute_result(iterations: int) -> int:
    """What `compute` must leave at `result`."""
    value = 1
    for _ in range(iterations):
        value = (value * 1664525 + 1013904223) & 0xFFFFFFFF
    return value


def _build(source: str, iterations: int, description: str) -> FlatGuest:
    if not 1 <= iterations < 1 << 32:
        raise LabError(f"{iterations} iterations do not fit in a register. Try a number from 1 to 4294967295.")
    return FlatGuest.of(assemble(source, ORIGIN, constants={"ITERATIONS": iterations}), description)
