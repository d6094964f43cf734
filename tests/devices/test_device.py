# SPDX-License-Identifier: GPL-2.0-or-later
"""The port bus, and that a checkpoint of any device holds all of its state."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from l4lab.devices.debugport import DebugPort
from l4lab.devices.device import Device, PortBus
from l4lab.devices.disk import Disk
from l4lab.devices.i8042 import I8042
from l4lab.devices.i8254 import I8254
from l4lab.devices.i8259 import I8259Pair
from l4lab.devices.ide import Ide
from l4lab.devices.mc146818 import Mc146818
from l4lab.devices.port92 import Port92
from l4lab.devices.uart16550 import Uart16550
from l4lab.devices.vga import Vga


class Pc:
    """All devices, wired as in a PC."""

    def __init__(self) -> None:
        self.time = 0
        self.log: list[object] = []
        self.pic = I8259Pair()
        self.uart = Uart16550(self.now, self.pic.line(4), self.log.append)
        self.keyboard = I8042(self.pic.line(1), self.reset, self.log.append)
        self.bus = PortBus(
            [
                self.pic,
                I8254(self.now, self.pic.line(0)),
                self.uart,
                Mc146818(self.now, self.pic.line(8), 16 << 20),
                self.keyboard,
                Port92(self.reset, self.log.append),
                DebugPort(self.log.append),
                Vga(self.now),
                Ide(Disk(bytes(range(256)) * 100), self.pic.line(14)),
            ]
        )

    def now(self) -> int:
        return self.time

    def reset(self) -> None:
        self.log.append("reset")

    def live(self, rng: random.Random, steps: int) -> list[object]:
        """Do random things; return all that could be seen of them."""
        self.log.clear()
        ports = sorted(self.bus.owner)
        for _ in range(steps):
            match rng.randrange(8):
                case 0:
                    self.time += rng.choice((1, 1000, 10**6, 10**9))
                    self.bus.advance()
                case 1:
                    self.log.append(self.pic.acknowledge() if self.pic.pending() else self.bus.deadline())
                case 2:
                    self.uart.receive(rng.randbytes(rng.randrange(20)))
                    self.keyboard.type_keys("Key")
                case 3 | 4:
                    self.bus.write(rng.choice(ports), 1, rng.randrange(256))
                case _:
                    self.log.append(self.bus.read(rng.choice(ports), rng.choice((1, 1, 2, 4))))
        return list(self.log)


@pytest.mark.parametrize("seed", range(40))
def test_a_restored_pc_goes_on_as_the_saved_one(seed: int) -> None:
    """Whatever went before and comes after, does a fresh PC with the saved state behave like the first one?"""
    first, second = Pc(), Pc()
    first.live(random.Random(seed), 400)
    state = first.bus.save()
    second.live(random.Random(-seed - 1), 50)  # so that it has something to forget
    second.time = first.time
    second.bus.restore(state)
    assert state == second.bus.save()

    assert first.live(random.Random(seed + 1000), 400) == second.live(random.Random(seed + 1000), 400)


def test_a_saved_state_is_plain_and_does_not_change() -> None:
    """Does a checkpoint stay as it was while the devices go on?"""
    pc = Pc()
    state = pc.bus.save()
    before = repr(state)
    pc.live(random.Random(1), 500)

    assert before == repr(state)
    assert "object at" not in before


class Recorder(Device):
    """Notes what arrives."""

    name = "recorder"

    def __init__(self, ports: range) -> None:
        self.ports = (ports,)
        self.seen: list[tuple[int, int, int]] = []

    def read(self, port: int, size: int) -> int:
        return port & 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        self.seen.append((port, size, value))


def test_wide_accesses_are_split_low_byte_first() -> None:
    """Does a double word reach a byte device as four bytes, those beyond its ports reading as ones?"""
    device = Recorder(range(0x10, 0x13))
    bus = PortBus([device])
    bus.write(0x10, 4, 0x44332211)

    assert [(0x10, 1, 0x11), (0x11, 1, 0x22), (0x12, 1, 0x33)] == device.seen
    assert 0xFF121110 == bus.read(0x10, 4)
    assert {(0x13, "in"): 1, (0x13, "out"): 1} == bus.unclaimed


def test_a_wide_device_gets_wide_accesses_whole() -> None:
    """Is an access that the device declares to take not split?"""

    class Wide(Recorder):
        widest = 4

    device = Wide(range(0x10, 0x14))
    PortBus([device]).write(0x10, 4, 0x44332211)

    assert [(0x10, 4, 0x44332211)] == device.seen


def test_nobodys_ports_read_as_ones_and_are_counted_within_bounds() -> None:
    """Do ports without a device float high, and does a scan of all of them not fill memory?"""
    bus = PortBus([])

    assert [0xFF, 0xFFFF, 0xFFFF_FFFF] == [bus.read(0xCF8, size) for size in (1, 2, 4)]
    assert 3 == bus.unclaimed[0xCF8, "in"]
    for port in range(0x10000):
        bus.write(port, 1, 0)
    assert len(bus.unclaimed) <= bus.UNCLAIMED_KINDS + 2
    assert 3 + 0x10000 == bus.unclaimed.total()


def test_two_devices_cannot_claim_a_port() -> None:
    """Is the port and are both devices named?"""
    make: Callable[[], DebugPort] = lambda: DebugPort(print)  # noqa: E731

    with pytest.raises(ValueError, match="debugport and debugport both claim port 0xe9"):
        PortBus([make(), make()])


def test_every_device_says_in_a_line_what_it_is() -> None:
    """Has each device a name of its own and a line about it?"""
    devices = Pc().bus.devices

    assert len(devices) == len({device.name for device in devices})
    assert all(device.about.endswith(".") for device in devices)
