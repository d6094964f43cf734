# SPDX-License-Identifier: GPL-2.0-or-later
"""The keyboard controller, port 92 and the debug port: what an operating system and a BIOS ask of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.devices.debugport import DebugPort
from l4lab.devices.i8042 import I8042
from l4lab.devices.keys import has_key, scan_codes
from l4lab.devices.port92 import Port92
from l4lab.user.monitor.pc import Pc


class Bench:
    """A controller, its interrupts, and what it did to the machine."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0
        self.resets = 0
        self.gate: list[bool] = []
        self.device = I8042(self.irq, self.reset, self.gate.append)

    def irq(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def reset(self) -> None:
        self.resets += 1

    def ask(self, command: int, *parameters: int) -> None:
        self.device.write(0x64, 1, command)
        for byte in parameters:
            self.device.write(0x60, 1, byte)

    def drain(self) -> list[int]:
        found = []
        while self.device.read(0x64, 1) & 1:
            found.append(self.device.read(0x60, 1))
        return found


@pytest.mark.parametrize(
    ("command", "parameters", "reply"),
    [
        (0xAA, [], [0x55]),
        (0xAB, [], [0x00]),
        (0xA9, [], [0x02]),
        (0x20, [], [0x45]),
        (0xD3, [0x5A], [0x5A]),
        (0xD4, [0xF2], [0xFE]),
    ],
)
def test_controller_commands_are_answered(command: int, parameters: list[int], reply: list[int]) -> None:
    """Self-tests pass, there is no mouse, and the configuration reads as a BIOS left it."""
    bench = Bench()
    bench.ask(command, *parameters)

    assert reply == bench.drain()


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        ([0xFF], [0xFA, 0xAA]),
        ([0xF2], [0xFA, 0xAB, 0x41]),
        ([0xED, 0x07], [0xFA, 0xFA]),
        ([0xF0, 0x00], [0xFA, 0xFA, 0x41]),  # set 2, translated as any byte is
        ([0xEE], [0xEE]),
        ([0x01], [0xFE]),
    ],
)
def test_keyboard_commands_are_answered(sent: list[int], reply: list[int]) -> None:
    """Does the keyboard acknowledge, identify itself, and refuse what it does not know?"""
    bench = Bench()
    for byte in sent:
        bench.device.write(0x60, 1, byte)

    assert reply == bench.drain()


def test_typed_keys_come_one_interrupt_each() -> None:
    """The text aB is press and release of a, then of b between those of shift; IRQ1 rises for each byte."""
    bench = Bench()
    bench.device.type_keys("aB")

    assert [0x1E, 0x9E, 0x2A, 0x30, 0xB0, 0xAA] == bench.drain()
    assert 6 == bench.rises
    assert not bench.level


def test_keys_wait_while_the_keyboard_is_disabled() -> None:
    """Is a key typed while command AD holds the keyboard delivered after AE?"""
    bench = Bench()
    bench.ask(0xAD)
    bench.device.type_keys("a")
    assert [] == bench.drain()
    bench.ask(0xAE)

    assert [0x1E, 0x9E] == bench.drain()


def test_a_character_without_a_key_is_refused_by_name() -> None:
    """Is the character that cannot be typed named?"""
    with pytest.raises(ValueError, match="'é'"):
        Bench().device.type_keys("é")


def test_reset_and_a20_reach_the_machine() -> None:
    """Command FE pulses the CPU's reset; D1 drives A20 and, with bit 0 clear, resets too."""
    bench = Bench()
    bench.ask(0xFE)
    bench.ask(0xFF)  # pulses nothing
    assert 1 == bench.resets
    bench.ask(0xD1, 0xDD)
    bench.ask(0xD1, 0xDF)
    assert [False, True] == bench.gate
    bench.ask(0xD1, 0xDE)

    assert 2 == bench.resets


def test_port_92_resets_on_the_change_from_0_to_1() -> None:
    """Is the pulse made once, and A20 what bit 1 says?"""
    resets: list[int] = []
    gate: list[bool] = []
    port = Port92(lambda: resets.append(1), gate.append)
    for value in (0x00, 0x03, 0x03):
        port.write(0x92, 1, value)

    assert ([1], [False, True, True], 0x03) == (resets, gate, port.read(0x92, 1))


def test_the_debug_port_shows_what_it_is_told_and_tells_that_it_is_there() -> None:
    """Do bytes go out, and does the port read as its own number?"""
    shown = bytearray()
    port = DebugPort(shown.append)
    for byte in b"hello":
        port.write(0xE9, 1, byte)

    assert (b"hello", 0xE9) == (bytes(shown), port.read(0xE9, 1))


def test_without_translation_codes_are_those_of_set_2() -> None:
    """With translation off, is a release the prefix F0 and the key, and an arrow key's prefix the same as ever?"""
    bench = Bench()
    bench.ask(0x60, 0x05)
    bench.device.type_keys("a\x1b[A")

    assert [0x1C, 0xF0, 0x1C, 0xE0, 0x75, 0xE0, 0xF0, 0x75] == bench.drain()


@pytest.mark.parametrize(("translates", "shown"), [(0x40, 0x43), (0, 0x01)])
def test_a_keyboard_told_to_send_set_1_does(translates: int, shown: int) -> None:
    """After F0 01: are keys sent in set 1 if nobody translates, and is the answer to F0 00 translated like all else?"""
    bench = Bench()
    bench.ask(0x60, 0x05 | translates)
    for byte in (0xF0, 0x01, 0xF0, 0x00):
        bench.device.write(0x60, 1, byte)
    assert [0xFA, 0xFA, 0xFA, 0xFA, shown] == bench.drain()
    bench.device.type_keys("a")

    assert translates or [0x1E, 0x9E] == bench.drain()


@given(st.text(st.sampled_from([chr(code) for code in range(1, 127) if has_key(chr(code))])))
def test_whatever_is_typed_arrives_in_set_1(text: str) -> None:
    """Do set 2 and the controller's translation together change nothing?"""
    bench = Bench()
    bench.device.type_keys(text)

    assert scan_codes(text) == bytes(bench.drain())


def test_a20_reads_the_same_at_both_its_controls() -> None:
    """Is what port 92 or the output port does to A20 seen at the other one?"""
    pc = Pc(lambda: 0, 16 << 20, print, print)
    pc.ports.write(0x92, 1, 0)
    pc.ports.write(0x64, 1, 0xD0)
    assert not pc.ports.read(0x60, 1) & 2
    pc.ports.write(0x64, 1, 0xD1)
    pc.ports.write(0x60, 1, 0xDF)

    assert pc.ports.read(0x92, 1) & 2
