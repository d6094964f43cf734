# SPDX-License-Identifier: GPL-2.0-or-later
"""A Multiboot kernel as guest: carries out the plan of `images.multiboot_kernel`, and adds nothing to it."""

from __future__ import annotations

from l4lab.images.loader_area import CODE_SELECTOR, DATA_SELECTOR
from l4lab.images.multiboot_kernel import LOADED, MultibootPlan
from l4lab.user.monitor.monitor import GuestProgram
from l4lab.user.monitor.start import Start, flat_code, flat_data


def start_of(plan: MultibootPlan) -> Start:
    """The machine state of the specification, section 3.2; and a GDT and a stack, as every loader has them."""
    return Start(
        eip=plan.entry,
        eax=LOADED,
        ebx=plan.info,
        esp=plan.area.stack,
        gdt=plan.area.gdt,
        code=flat_code(CODE_SELECTOR),
        data=flat_data(DATA_SELECTOR),
    )


def program(plan: MultibootPlan, memory_size: int) -> GuestProgram:
    """A monitor program that boots the kernel; the plan must have been made for a guest with so much memory."""
    return GuestProgram([(piece.address, piece.data) for piece in plan.pieces], start_of(plan), memory_size)
