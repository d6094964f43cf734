# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the monitor's parts share: guest memory without a kernel, faults as the kernel words them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from l4lab.abi import vm
from l4lab.abi.frame import EFLAGS, EIP
from l4lab.abi.vm import ExitReason, ItemId
from l4lab.user.monitor.fault import Fault, item_words
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory

Registers = Mapping[ItemId, Mapping[int, int]]


class Ram:
    """An address space of plain RAM from address 0."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)

    def load(self, address: int, length: int) -> bytes:
        return bytes(self.bytes[address : address + length])

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.bytes[address : address + len(data)] = data


def guest_memory(size: int) -> GuestMemory:
    """Guest memory over plain RAM."""
    return GuestMemory(Ram(size), size, window=0)


def still_vcpu(registers: Registers) -> GuestCpu:
    """A virtual CPU that can be asked for these registers and does nothing."""

    class Still:
        def read(self, *items: ItemId) -> dict[ItemId, dict[int, int]]:
            return {item: dict(registers[item]) for item in items}

    return cast(GuestCpu, Still())


def full(item: ItemId, values: Mapping[int, int]) -> dict[int, int]:
    """All registers of an item, those not given being 0."""
    return dict.fromkeys(range(len(vm.ITEM_REGISTERS[item])), 0) | dict(values)


def fault(
    reason: ExitReason,
    gpregs: Mapping[int, int] | None = None,
    *,
    qualification: int = 0,
    length: int = 2,
    info: int = 0,
    eip: int = 0x1000,
    eflags: int = 2,
    more: Registers | None = None,
) -> Fault:
    """A virtualization fault as the kernel sends it, with GPREGS and further items in full."""
    items = {ItemId.GPREGS: {EIP: eip, EFLAGS: eflags, **(gpregs or {})}, **(more or {})}
    typed = [word for item in sorted(items) for word in item_words(item, full(item, items[item]))]
    return Fault([vm.label_of(reason) << 16 | len(typed) << 6 | 3, qualification, length, info, *typed])
