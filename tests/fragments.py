# SPDX-License-Identifier: GPL-2.0-or-later
"""Pieces of assembly that several guests of the tests have in common."""

from __future__ import annotations


def hexadecimal(register: str, digits: int, put: str) -> str:
    """Say a number as so many digits; `put` is what is done with each, in AL. Takes CX or ECX, and its own labels."""
    counter = "ecx" if register.startswith("e") else "cx"
    low = register.removeprefix("e")[0] + "l"
    return f"""
        mov     {counter}, {digits}
.digit: rol     {register}, 4
        mov     al, {low}
        and     al, 15
        add     al, 0x30
        cmp     al, 0x3a
        jb      .put
        add     al, 7
.put:   {put}
        loop    .digit"""
