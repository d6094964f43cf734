# SPDX-License-Identifier: GPL-2.0-or-later
"""What two exceptions together become, as the manual's table has it."""

from __future__ import annotations

import pytest

from l4lab.abi.exceptions import (
    DOUBLE_FAULT,
    GENERAL_PROTECTION,
    PAGE_FAULT,
    SHUTDOWN,
    STACK_FAULT,
    UNDEFINED_OPCODE,
    escalated,
)

BENIGN, CONTRIBUTORY, PAGE = UNDEFINED_OPCODE, STACK_FAULT, PAGE_FAULT


@pytest.mark.parametrize(
    ("first", "benign", "contributory", "page"),
    [
        (BENIGN, BENIGN, CONTRIBUTORY, PAGE),
        (GENERAL_PROTECTION, BENIGN, DOUBLE_FAULT, PAGE),
        (PAGE, BENIGN, DOUBLE_FAULT, DOUBLE_FAULT),
        (DOUBLE_FAULT, SHUTDOWN, SHUTDOWN, SHUTDOWN),
    ],
)
def test_two_exceptions_become_what_the_table_says(first: int, benign: int, contributory: int, page: int) -> None:
    """Is each pair of classes handled serially, or as a double fault, or the end, as the SDM's table says?"""
    assert (benign, contributory, page) == tuple(escalated(first, second) for second in (BENIGN, CONTRIBUTORY, PAGE))
