# SPDX-License-Identifier: GPL-2.0-or-later
"""The bus that finds the device behind a memory address, as `PortBus` does for ports; and a way to put ports there.

Addresses that are nobody's read as all ones and swallow what is written. Lives here: who answers. Does not live here:
how an instruction becomes loads and stores, and which addresses are memory instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from l4lab.devices.device import Device


class MemoryBus:
    """Finds the device behind a guest-physical address."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices = tuple(device for device in devices if device.memory)
        self.ranges = sorted(((ranges, d) for d in self.devices for ranges in d.memory), key=lambda each: each[0].start)
        for (low, first), (high, second) in zip(self.ranges, self.ranges[1:], strict=False):
            if high.start < low.stop:
                raise ValueError(f"{first.name} and {second.name} both claim address {high.start:#x}")

    def owner(self, address: int) -> Device | None:
        """Whose address it is."""
        return next((device for addresses, device in self.ranges if address in addresses), None)

    def holes(self, begin: int, size: int) -> bool:
        """Is any device within these addresses?"""
        return any(addresses.start < begin + size and begin < addresses.stop for addresses, _ in self.ranges)

    def load(self, address: int, size: int) -> int:
        """A load of 1, 2 or 4 bytes; what is wider than the device takes is split, low byte first."""
        device = self.owner(address)
        if device is not None and size <= device.widest and self.owner(address + size - 1) is device:
            return device.load(address, size)
        found = 0
        for i in range(size):
            device = self.owner(address + i)
            found |= (0xFF if device is None else device.load(address + i, 1)) << 8 * i
        return found

    def store(self, address: int, size: int, value: int) -> None:
        """A store of 1, 2 or 4 bytes."""
        device = self.owner(address)
        if device is not None and size <= device.widest and self.owner(address + size - 1) is device:
            device.store(address, size, value)
            return
        for i in range(size):
            device = self.owner(address + i)
            if device is not None:
                device.store(address + i, 1, value >> 8 * i & 0xFF)


class AtMemory(Device):
    """Another device's ports at memory addresses, one register every `1 << shift` bytes.

    The device belongs to no port bus then, and is saved with this one.
    """

    def __init__(self, device: Device, base: int, shift: int = 0) -> None:
        self.name = f"{device.name} at {base:#x}"
        self.device, self.base, self.shift = device, base, shift
        self.first = min(ports.start for ports in device.ports)
        count = max(ports.stop for ports in device.ports) - self.first
        self.memory = (range(base, base + (count << shift)),)

    def load(self, address: int, size: int) -> int:
        register, between = divmod(address - self.base, 1 << self.shift)
        return 0 if between else self.device.read(self.first + register, 1)

    def store(self, address: int, size: int, value: int) -> None:
        register, between = divmod(address - self.base, 1 << self.shift)
        if not between:
            self.device.write(self.first + register, 1, value & 0xFF)

    def deadline(self) -> int | None:
        return self.device.deadline()

    def advance(self) -> None:
        self.device.advance()

    def save(self) -> dict[str, Any]:
        return self.device.save()

    def restore(self, state: dict[str, Any]) -> None:
        self.device.restore(state)
