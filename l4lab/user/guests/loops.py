# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests to measure with: one that only exits, one that only computes, one whose TLB misses, one that only flushes. All
halt with interrupts off when done.

None touches a device, so the time they take is the time of the exit path and of plain execution.
"""

from __future__ import annotations

from collections.abc import Mapping

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

PAGING_SOURCE = """
        ; One directory whose first entry maps the first 4 MB as they are, and whose next TABLES lead to tables in which
        ; each entry maps the page `data`.
start:  mov     edi, TABLES_AT
        mov     eax, data + 0x67        ; present, writable, user, accessed, dirty
        mov     ecx, TABLES * 1024
        cld
        rep     stosd
        mov     dword ptr [DIRECTORY], 0xE3
        mov     edi, DIRECTORY + 4
        mov     eax, TABLES_AT + 0x27
        mov     ecx, TABLES
.link:  stosd
        add     eax, 4096
        dec     ecx
        jnz     .link
        mov     eax, DIRECTORY
        mov     cr3, eax
        mov     eax, cr4
        or      eax, 0x10               ; PSE
        mov     cr4, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        mov     ebx, 0x400000           ; the first address behind the first 4 MB
        mov     eax, DIRECTORY
        mov     edi, ITERATIONS
.next:  BODY
        dec     edi
        jnz     .next
        cli
done:   hlt
        jmp     done
        .align  4096
data:                                   ; the page behind the program
"""
TOUCH = "mov al, [ebx]\n add ebx, 4096"  # a page not touched before
INVALIDATE = "invlpg [ebx]"
RELOAD = "mov cr3, eax"
DIRECTORY, TABLES_AT, TABLES = 0x8_0000, 0x8_1000, 16

INSTRUCTIONS_PER_COMPUTE_ITERATION = 7


def cpuid(iterations: int) -> FlatGuest:
    """CPUID in a loop: `iterations` VM exits, then HLT."""
    return _build(CPUID_SOURCE, iterations, f"Executes CPUID {iterations} times, then halts.")


def compute(iterations: int) -> FlatGuest:
    """A tight integer loop with a load and a store in each turn, then HLT; the result is at `result`."""
    return _build(COMPUTE_SOURCE, iterations, f"Computes for {iterations} turns of a loop, then halts.")


def paging(iterations: int, body: str) -> FlatGuest:
    """TOUCH, INVALIDATE or RELOAD in a loop, with paging on. There are TABLES * 1024 pages to touch."""
    names = {"DIRECTORY": DIRECTORY, "TABLES_AT": TABLES_AT, "TABLES": TABLES}
    told = "; ".join(map(str.strip, body.splitlines()))
    return _build(
        PAGING_SOURCE.replace("BODY", body), iterations, f"Executes {told} {iterations} times, then halts.", names
    )


def compute_result(iterations: int) -> int:
    """What `compute` must leave at `result`."""
    value = 1
    for _ in range(iterations):
        value = (value * 1664525 + 1013904223) & 0xFFFFFFFF
    return value


def _build(source: str, iterations: int, description: str, names: Mapping[str, int] | None = None) -> FlatGuest:
    if not 1 <= iterations < 1 << 32:
        raise LabError(f"{iterations} iterations do not fit in a register. Try a number from 1 to 4294967295.")
    return FlatGuest.of(assemble(source, ORIGIN, constants={"ITERATIONS": iterations, **(names or {})}), description)
