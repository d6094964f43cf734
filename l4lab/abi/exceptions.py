# SPDX-License-Identifier: GPL-2.0-or-later
"""The exceptions of IA-32: their vectors, which of them have an error code, and what two of them together become.

Source: Intel SDM vol. 3, chapter "Interrupt and Exception Handling". Lives here: what CPU, kernel and monitor have to
agree upon, whichever of them delivers an exception. How events are described to and by a VM is in `vm`.
"""

from __future__ import annotations

from typing import Final

DEBUG: Final = 1
BREAKPOINT: Final = 3
OVERFLOW: Final = 4
UNDEFINED_OPCODE: Final = 6
DEVICE_NOT_AVAILABLE: Final = 7
DOUBLE_FAULT: Final = 8
INVALID_TSS: Final = 10
NOT_PRESENT: Final = 11
STACK_FAULT: Final = 12
GENERAL_PROTECTION: Final = 13
PAGE_FAULT: Final = 14
MACHINE_CHECK: Final = 18

WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
CONTRIBUTORY: Final = frozenset((0, 10, 11, 12, 13))
# Traps, NMI and aborts: the instruction is not executed again, so RF is not set for it.
NOT_RESTARTED: Final = frozenset((1, 2, 3, 4, 8, 18))

SHUTDOWN: Final = -1


def escalated(first: int, second: int) -> int:
    """What is delivered when exception `second` arises in the delivery of `first`: it, a double fault, or SHUTDOWN.

    Source: Intel SDM vol. 3, table "Conditions for Generating a Double Fault", and the shutdown described with it.
    """
    if first == DOUBLE_FAULT:
        return SHUTDOWN
    if first == PAGE_FAULT:
        double = second == PAGE_FAULT or second in CONTRIBUTORY
    else:
        double = first in CONTRIBUTORY and second in CONTRIBUTORY
    return DOUBLE_FAULT if double else second
