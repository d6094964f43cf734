# SPDX-License-Identifier: GPL-2.0-or-later
"""Is a saved guest one that can go on? Asked before a machine is made for it, and of each field.

A file tells what was once written to it only as long as nobody has changed it, so nothing that a record says is
believed. What becomes of a guest whose registers make no sense is decided where they are loaded, by the checks of
a VM entry; here they must be registers that there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from l4lab.abi import vm
from l4lab.abi.vm import ItemId
from l4lab.devices.device import TIME
from l4lab.devices.disk import Disk, Image
from l4lab.errors import LabError
from l4lab.user.monitor.guest_memory import LARGEST, PAGE
from l4lab.user.monitor.msrs import TABLE
from l4lab.user.monitor.outcome import End
from l4lab.user.monitor.pc import Pc
from l4lab.user.monitor.saved import LONGEST_LINE, SavedGuest

WORD, LONG = range(1 << 32), range(1 << 64)


def check(saved: SavedGuest, disk: Image | None) -> None:
    """LabError if the guest cannot go on in a PC with this disk."""
    had_disk = "ide" in saved.devices
    if had_disk and disk is None:
        raise LabError("the guest was saved with a disk, and goes on with the same one only; give it: --disk FILE")
    if disk is not None and not had_disk:
        raise LabError("the guest was saved without a disk, and cannot find one now; leave --disk out")
    for wrong in _wrong(saved, disk):
        raise LabError(f"this is no guest that was saved here: {wrong}; save the guest again")


def _wrong(saved: SavedGuest, disk: Image | None) -> Iterator[str]:
    """What cannot be."""
    if saved.memory_size not in range(PAGE, LARGEST + 1, PAGE):
        yield f"{saved.memory_size} bytes of memory"
    for address, data in saved.memory:
        if address < 0 or address + len(data) > saved.memory_size:
            yield f"{len(data)} bytes at {address:#x} in a memory of {saved.memory_size:#x}"
    for item in ItemId:
        registers = saved.registers.get(item, {})
        if registers.keys() != set(range(len(vm.ITEM_REGISTERS[item]))):
            yield f"the registers of {item.name} are {sorted(registers)}"
        if not all(value in WORD for value in registers.values()):
            yield f"the registers of {item.name} have more than 32 bits"
    if saved.registers.keys() - set(ItemId):
        yield f"there are no registers {sorted(saved.registers.keys() - set(ItemId))}"
    if saved.msrs.keys() != TABLE.keys() or not all(value in LONG for value in saved.msrs.values()):
        yield "the MSRs"
    if saved.clock not in TIME:
        yield f"a clock that shows {saved.clock}"
    if len(saved.line) > LONGEST_LINE:
        yield f"{len(saved.line)} bytes on the last line of the console"
    yield from _wrong_devices(saved, disk)


def _wrong_devices(saved: SavedGuest, disk: Image | None) -> Iterator[str]:
    """Devices that nobody is connected to take the state, or do not."""
    pc = Pc(lambda: saved.clock, PAGE, _nothing, _no_end, None if disk is None else Disk(disk))
    if differing := {device.name for device in pc.ports.devices} ^ saved.devices.keys():
        yield f"its PC differs from this one in {', '.join(sorted(differing))}"
        return
    for device in pc.ports.devices:
        try:
            device.restore(saved.devices[device.name])
        except ValueError as error:
            yield f"in its {device.name}, {error}"


def _nothing(byte: int) -> None:
    pass


def _no_end(end: End, why: str) -> None:
    pass
