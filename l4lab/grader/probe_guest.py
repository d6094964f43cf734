# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that tries what the greeting does not: unknown leaves, other registers, prefixed instructions."""

from __future__ import annotations

from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest

STRANGE_LEAF = 0x7FFF_1234
FILLING = 0x1122_3300  # upper bits that IN and OUT have no business with
LETTER = ord("*")

SOURCE = """
start:  mov     eax, STRANGE_LEAF
        .byte   0x66, 0x0f, 0xa2        ; CPUID with a prefix that means nothing: three bytes
        mov     dx, 0x3fa               ; interrupt identification: a register that the greeting never reads
        mov     eax, FILLING
        in      al, dx
        mov     dx, 0x3f9               ; interrupt enable: what is written here is not sent
        mov     eax, FILLING + 0x21
        out     dx, al
        mov     dx, COM1
        mov     eax, FILLING + LETTER   ; AL is what is sent, and nothing else of EAX
        out     dx, al
        cli
halted: hlt
        jmp     halted
"""


def build() -> FlatGuest:
    """The guest."""
    constants = {**COM1, "STRANGE_LEAF": STRANGE_LEAF, "FILLING": FILLING, "LETTER": LETTER}
    return FlatGuest.of(assemble(SOURCE, ORIGIN, constants=constants), "Causes exits that the greeting does not.")
