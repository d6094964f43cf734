# SPDX-License-Identifier: GPL-2.0-or-later
"""Flat code as guest: a small system of our own (see `user.guests`), or any image. Protected mode, flat segments."""

from __future__ import annotations

from l4lab.images.flat_image import FlatPlan
from l4lab.images.loader_area import CODE_SELECTOR, DATA_SELECTOR
from l4lab.user.guests.flat import RAM_SIZE, FlatGuest
from l4lab.user.monitor.monitor import GuestProgram
from l4lab.user.monitor.start import Start, flat_code, flat_data


def start_of(guest: FlatGuest) -> Start:
    """Protected mode at the entry."""
    return Start(eip=guest.entry, code=flat_code(CODE_SELECTOR), data=flat_data(DATA_SELECTOR))


def program(guest: FlatGuest, memory_size: int = RAM_SIZE) -> GuestProgram:
    """A monitor program that runs the guest."""
    return GuestProgram(guest.pieces, start_of(guest), memory_size)


def image_program(plan: FlatPlan, memory_size: int) -> GuestProgram:
    """A monitor program that runs an image. Nobody promised it more than a loader gives: a GDT and a stack."""
    start = Start(
        eip=plan.entry,
        esp=plan.area.stack,
        code=flat_code(CODE_SELECTOR),
        data=flat_data(DATA_SELECTOR),
        gdt=plan.area.gdt,
    )
    return GuestProgram([(piece.address, piece.data) for piece in plan.pieces], start, memory_size)
