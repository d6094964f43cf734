# SPDX-License-Identifier: GPL-2.0-or-later
"""The register frame: the ten words in which every thread's registers are kept, in the order of the GPREGS item.

Lives here: the indices, and what a program's selectors and flags look like. Frames themselves are in machine memory.
"""

from __future__ import annotations

from typing import Final

EIP: Final = 0
EFLAGS: Final = 1
EDI: Final = 2
ESI: Final = 3
EBP: Final = 4
ESP: Final = 5
EBX: Final = 6
EDX: Final = 7
ECX: Final = 8
EAX: Final = 9

REGISTER_NAMES: Final = ("EIP", "EFLAGS", "EDI", "ESI", "EBP", "ESP", "EBX", "EDX", "ECX", "EAX")
FRAME_WORDS: Final = len(REGISTER_NAMES)
FRAME_SIZE: Final = 4 * FRAME_WORDS

# Reference section 4.4. A program may change the six arithmetic flags, by whatever way; the rest is the kernel's.
USER_EFLAGS: Final = 0x0000_0202  # at start: IOPL 0, interrupts on, and the bit that is always one
USER_EFLAGS_IOPL3: Final = 0x0000_3202  # the same where programs may use all ports
USER_EFLAGS_MASK: Final = 0x0000_08D5  # CF PF AF ZF SF OF
VM_EFLAGS_MASK: Final = 0xFFFF_FFFD  # what a monitor may change of a guest: all but bit 1, which is always one

# Bits of EFLAGS (Intel manual, volume 1, section EFLAGS register).
FLAG_TF: Final = 1 << 8
FLAG_IF: Final = 1 << 9
FLAG_DF: Final = 1 << 10
FLAG_IOPL: Final = 3 << 12
FLAG_NT: Final = 1 << 14
FLAG_RF: Final = 1 << 16
FLAG_VM: Final = 1 << 17
FLAG_AC: Final = 1 << 18

# Selectors of user mode (reference section 2). GS holds one word: the address of the running thread's MR0.
USER_CS: Final = 0x1B
USER_DS: Final = 0x23
UTCB_GS: Final = 0x2B


def of_gpr(number: int) -> int:
    """Frame index of a register as instructions and exit qualifications number it: 0 EAX, 1 ECX, ... 7 EDI."""
    return 9 - number
