# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest as data: what a monitor reads out of a virtual machine that it has stopped, and puts into another one.

Lives here: the record, and taking registers and memory for it, by register items and through the monitor's window.
When this is done, and how a guest goes on, is in `monitor`; how the record lies in a file, in the rig.

Nothing in it belongs to the space, the threads or the run in which it was made. The guest's clock stands still between
the two: a monitor that takes the guest over shifts the machine's clock to where the guest's stopped.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from l4lab.abi import vm
from l4lab.abi.vm import ActivityState, ItemId
from l4lab.user.monitor.fault import NONREGEXC, Reply
from l4lab.user.monitor.guest_cpu import GuestCpu, Registers
from l4lab.user.monitor.guest_memory import PAGE, GuestMemory

LONGEST_LINE: Final = 200  # bytes of the last line that are kept: as a rule a prompt
READ_AT_ONCE: Final = 256 * PAGE
_EMPTY: Final = bytes(PAGE)


class SavedGuest(msgspec.Struct, frozen=True):
    """A whole guest, between two instructions."""

    memory_size: int
    memory: list[tuple[int, bytes]]  # guest-physical address, bytes; the rest is zero
    registers: dict[int, dict[int, int]]  # by item, then by number within the item
    devices: dict[str, dict[str, Any]]  # by name
    msrs: dict[int, int]  # those that the monitor keeps
    clock: int  # what the guest takes for the time, in nanoseconds
    shadow_paging: bool  # how its memory is translated
    line: bytes = b""  # what stands on the last line of its console


def registers_of(vcpu: GuestCpu, pending: Reply | None) -> dict[int, dict[int, int]]:
    """All registers of a virtual CPU that is stopped, as they will be when it has got the answer that it waits for.

    A guest that waits in HLT has the activity state of such a one, and so does it wait on wherever it is put.
    """
    registers: dict[int, dict[int, int]] = {int(item): dict(of) for item, of in vcpu.read(*ItemId).items()}
    if pending is not None:
        for number, changes in pending.items.items():
            registers[number] |= changes
        if pending.hold and not pending.injects:
            registers[NONREGEXC][vm.ACTIVITY] = ActivityState.HLT
    return registers


def as_registers(registers: dict[int, dict[int, int]]) -> Registers:
    """As `GuestCpu.write` takes them."""
    return {ItemId(number): of for number, of in registers.items() if of}


def pieces_of(memory: GuestMemory) -> list[tuple[int, bytes]]:
    """The guest's memory without its empty pages."""
    pieces: list[tuple[int, bytes]] = []
    for begin in range(0, memory.size, READ_AT_ONCE):
        data = memory.read(begin, min(READ_AT_ONCE, memory.size - begin))
        full = [at for at in range(0, len(data), PAGE) if data[at : at + PAGE] != _EMPTY]
        for at in full:
            page = data[at : at + PAGE]
            if pieces and pieces[-1][0] + len(pieces[-1][1]) == begin + at and len(pieces[-1][1]) < READ_AT_ONCE:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + page)
            else:
                pieces.append((begin + at, page))
    return pieces
