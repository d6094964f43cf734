# SPDX-License-Identifier: GPL-2.0-or-later
"""A small system of our own as guest (see `user.guests`): in flat segments, without paging, at its entry."""

from __future__ import annotations

from l4lab.user.guests.flat import RAM_SIZE, FlatGuest
from l4lab.user.monitor.monitor import GuestProgram
from l4lab.user.monitor.state import Start, flat_code, flat_data

CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10  # as boot loaders have them; a guest loads a GDT of its own first


def start_of(guest: FlatGuest) -> Start:
    """Protected mode at the entry."""
    return Start(eip=guest.entry, code=flat_code(CODE_SELECTOR), data=flat_data(DATA_SELECTOR))


def program(guest: FlatGuest, memory_size: int = RAM_SIZE) -> GuestProgram:
    """A monitor program that runs the guest."""
    return GuestProgram(guest.pieces, start_of(guest), memory_size)
