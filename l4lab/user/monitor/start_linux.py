# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux kernel as guest: carries out the plan of `images.linux`, and adds nothing to it."""

from __future__ import annotations

from l4lab.images.linux import LinuxPlan
from l4lab.user.monitor.monitor import GuestProgram
from l4lab.user.monitor.start import Start, flat_code, flat_data


def start_of(plan: LinuxPlan) -> Start:
    """The registers that the boot protocol prescribes."""
    registers = plan.registers()
    return Start(
        eip=registers["eip"],
        esi=registers["esi"],
        cr0=registers["cr0"],
        eflags=registers["eflags"],
        code=flat_code(registers["cs"]),
        data=flat_data(registers["ds"]),
        gdt=(plan.gdt, plan.gdt_limit),
    )


def program(plan: LinuxPlan, memory_size: int) -> GuestProgram:
    """A monitor program that boots Linux; the plan must have been made for a guest with so much memory."""
    contents = [(piece.address, piece.data) for piece in plan.pieces]
    return GuestProgram(contents, start_of(plan), memory_size)
