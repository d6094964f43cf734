# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo guest: a small operating system of its own, complete in one sitting.

What a kernel does between power-on and its first process, in the order in which it must: page tables, segments,
interrupt gates, devices; then a process in ring 3 with system calls, page faults and a clock; then it waits for a
while, reports, and switches the machine off. Its text is in `tinyos_kernel` and `tinyos_process`; here it is put
together.

    guest-physical          seen by the kernel at    seen by the process at
    0x101000  kernel        0xC0101000
    0x110000  process       0xC0110000               0x400000  read only
    0x120000  page tables   0xC0120000
    0x123000  clock page    0xC0123000               0x600000  read only: word 0 counts timer ticks
    0x124000  stack page    0xC0124000               0x6FF000
    0x130000  free frames   0xC0130000               0x500000  heap, mapped when first touched
"""

from __future__ import annotations

from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest
from l4lab.user.guests.tinyos_kernel import SOURCE
from l4lab.user.guests.tinyos_process import USER_SOURCE

__all__ = ["CONSTANTS", "SOURCE", "USER_SOURCE", "build", "expected_console"]

KERNEL_BASE = 0xC0000000  # what the kernel sees at address x + KERNEL_BASE is guest-physical x
USER_FRAME = 0x110000
USER_CODE = 0x400000
IDLE_TICKS = 50  # how long it waits after its process has ended: half a second
TICKS_PER_DOT = 10
PRIMES_BELOW = 10000  # three pages of heap, and that many page faults

CONSTANTS = {
    **COM1,
    "KERNEL_BASE": KERNEL_BASE,
    "USER_FRAME": USER_FRAME,
    "PAGE_DIRECTORY": 0x120000,
    "KERNEL_TABLE": 0x121000,
    "USER_TABLE": 0x122000,
    "CLOCK_FRAME": 0x123000,
    "STACK_FRAME": 0x124000,
    "FRAMES_END": 0x125000,
    "FREE_FRAMES": 0x130000,
    "USER_CODE": USER_CODE,
    "HEAP": 0x500000,
    "HEAP_END": 0x510000,
    "CLOCK": 0x600000,
    "STACK_TOP": 0x700000,
    "SYS_WRITE": 1,
    "SYS_EXIT": 2,
    "IDLE_TICKS": IDLE_TICKS,
    "TICKS_PER_DOT": TICKS_PER_DOT,
    "PRIMES_BELOW": PRIMES_BELOW,
}


def build(interactive: bool = False) -> FlatGuest:
    """The system; an interactive one takes commands on the serial port before it switches itself off."""
    constants = {**CONSTANTS, "INTERACTIVE": int(interactive)}
    kernel = assemble(SOURCE, ORIGIN + KERNEL_BASE, constants=constants)
    process = assemble(USER_SOURCE, USER_CODE, constants=constants)
    return FlatGuest(
        pieces=((ORIGIN, kernel.code), (USER_FRAME, process.code)),
        entry=kernel.symbols["start"] - KERNEL_BASE,
        symbols=kernel.symbols | process.symbols,
        description="A small operating system: paging, a ring-3 process, a clock; greets, computes, powers off.",
    )


def expected_console(vendor: str, interactive: bool = False) -> str:
    """What it sends when CPUID leaf 0 names this vendor: all of it, or up to the first prompt."""
    lines = [
        f"tinyos on {vendor}",
        "paging is on, the kernel is at 0xc0101000",
        "the clock ticks at 100 Hz",
        "process: hello from ring 3",
        *(f"page fault at {page:#010x} from ring 3: mapped a fresh page" for page in (0x500002, 0x501000, 0x502000)),
        "process: there are 1229 primes below 10000",
        "process: the clock has ticked",
        "process has ended",
        "idle " + "." * (IDLE_TICKS // TICKS_PER_DOT),
        "3 page faults, 5 system calls",
        "tiny> " if interactive else "powering off",
    ]
    return "\r\n".join(lines) + ("" if interactive else "\r\n")
