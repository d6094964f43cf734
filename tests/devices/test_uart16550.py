# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial port against QEMU's in loopback, and against what Linux's driver asks of it.

Deliberate differences, which the common scripts avoid or mask: MSR bits 3..0 note changes here also in loopback; MCR
is 0 after reset (QEMU: OUT2 set); FCR is written as the data sheet wants it, with bit 0 set or all bits clear.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.devices.uart16550 import Uart16550

from .qemu import In, Out, Script, Wait, run, times

SHIFT = 8
PIC, SERIAL_LINE = 0x20, 1 << 4
DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = (0x3F8 + offset for offset in (0, 1, 2, 2, 3, 4, 5, 6, 7))


class Bench:
    """A port, what it sent, and its line."""

    def __init__(self) -> None:
        self.time = 0
        self.sent = bytearray()
        self.level = False
        self.rises = 0
        self.uart = Uart16550(lambda: self.time, self.irq, self.sent.append)

    def irq(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def get(self, port: int) -> int:
        return self.uart.read(port, 1)

    def put(self, port: int, value: int) -> None:
        self.uart.write(port, 1, value)


def random_script(rng: random.Random, length: int) -> Script:
    """Loops bytes back, with FIFOs and without, and looks at everything on the way."""
    script: Script = [Out(MCR, 0x10), Out(LCR, 0x83), Out(DATA, 1), Out(IER, 0), Out(LCR, 3), Out(FCR, 0), In(LSR)]
    while len(script) < length:
        match rng.randrange(12):
            case 0 | 1 | 2:
                script += [Out(DATA, rng.randrange(256))] * rng.choice((1, 1, 3, 20))
            case 3 | 4:
                script += [In(DATA)] * rng.choice((1, 1, 5))
            case 5:
                script.append(Out(IER, rng.randrange(8)))
            case 6 | 7:
                script.append(In(IIR))
            case 8:
                script.append(In(LSR))
            case 9:
                script.append(
                    rng.choice(
                        (Out(FCR, rng.choice((0, 1, 0x41, 0x83, 0xC1, 0xC7))), Out(MCR, 0x10 | rng.randrange(16)))
                    )
                )
            case 10:
                script += rng.choice(
                    ([In(MSR)], [In(MCR)], [In(LCR)], [Out(SCR, rng.randrange(256)), In(SCR)], [In(IER)])
                )
            case _:
                # A character of 10 bits takes 86805 ns, or 339 instructions; four of them make a time-out.
                script.append(Wait(rng.choice((10, 300, 1300, 1400, 3000))))
    return script


@pytest.mark.parametrize("seed", range(6))
def test_reads_are_those_of_qemu(seed: int) -> None:
    """Do FIFOs, identification, overruns and time-outs read as QEMU's, whatever the program and the time?"""
    script = random_script(random.Random(seed), 5000)
    theirs = run(script, SHIFT)

    bench, ours, masks = Bench(), [], []
    for op, bench.time in zip(script, times(script, SHIFT), strict=True):
        match op:
            case In(port):
                ours.append(bench.get(port))
                masks.append(0xF0 if port == MSR else 0xFF)
            case Out(port, value):
                bench.put(port, value)
    assert len(theirs) == len(ours)
    assert [byte & mask for byte, mask in zip(theirs, masks, strict=True)] == [
        byte & mask for byte, mask in zip(ours, masks, strict=True)
    ]


def test_linux_finds_a_16550a() -> None:
    """The probes of Linux's driver: IER holds 4 bits, loopback shows in MSR, IIR shows FIFOs, EFR is not there."""
    bench = Bench()
    bench.put(IER, 0x00)
    none = bench.get(IER)
    bench.put(IER, 0xFF)
    assert (0x00, 0x0F) == (none, bench.get(IER))
    bench.put(IER, 0x00)
    bench.put(MCR, 0x1A)
    assert 0x90 == bench.get(MSR) & 0xF0
    bench.put(MCR, 0x00)
    bench.put(FCR, 0x01)
    assert 0xC0 == bench.get(IIR) & 0xE0
    bench.put(LCR, 0xBF)
    assert 0 != bench.get(IIR)  # where a 16650 has EFR, which reads 0
    bench.put(LCR, 0x00)
    bench.put(FCR, 0x21)

    assert 0xC0 == bench.get(IIR) & 0xE0  # a 16750 would show its 64-byte FIFO


def test_linux_finds_sixteen_bytes_of_fifo() -> None:
    """Of 256 bytes looped back, are 16 kept?"""
    bench = Bench()
    bench.put(FCR, 0x07)
    bench.put(MCR, 0x10)
    for byte in range(256):
        bench.put(DATA, byte)
    kept = []
    while bench.get(LSR) & 1:
        kept.append(bench.get(DATA))

    assert list(range(16)) == kept


def test_enabling_the_transmit_interrupt_raises_it_again() -> None:
    """Linux's two tests for broken chips: IIR announces the empty transmitter each time IER bit 1 goes on."""
    bench = Bench()
    seen = []
    for _ in range(2):
        bench.put(IER, 0x02)
        seen.append(bench.get(IIR) & 0x0F)
        seen.append(bench.get(IIR) & 0x0F)
        bench.put(IER, 0x00)

    assert [0x02, 0x01] * 2 == seen


@given(st.binary(max_size=40))
def test_each_byte_sent_makes_one_edge(data: bytes) -> None:
    """With the transmit interrupt on, does every byte go out and the line rise once for it?"""
    bench = Bench()
    bench.put(MCR, 0x08)
    bench.put(IER, 0x02)
    for byte in data:
        bench.get(IIR)
        bench.put(DATA, byte)

    assert (data, len(data) + 1) == (bytes(bench.sent), bench.rises)


@given(st.binary(min_size=1, max_size=100), st.sampled_from((0x00, 0x01, 0x41, 0x81, 0xC1)))
def test_input_arrives_whole_and_in_order(data: bytes, fcr: int) -> None:
    """Does an interrupt-driven reader get all bytes from the host, the last few after a time-out?"""
    bench = Bench()
    bench.put(MCR, 0x08)
    bench.put(FCR, fcr)
    bench.put(IER, 0x01)
    bench.uart.receive(data)
    got = bytearray()
    while len(got) < len(data):
        if not bench.level:
            due = bench.uart.deadline()
            assert due is not None
            bench.time = due
            bench.uart.advance()
        assert bench.level
        assert bench.get(IIR) & 0x0F in (0x04, 0x0C)
        while bench.get(LSR) & 1 and bench.get(IIR) & 0x0F != 0x01:
            got.append(bench.get(DATA))

    assert data == bytes(got)


@given(st.binary(min_size=1, max_size=40))
def test_who_takes_a_byte_at_each_edge_gets_all(data: bytes) -> None:
    """Without FIFOs there is one byte at a time: does the line fall when it is taken, and rise for the next?"""
    bench = Bench()
    bench.put(IER, 0x01)
    bench.uart.receive(data)
    got = bytearray()
    while bench.rises:
        bench.rises = 0
        got.append(bench.get(DATA))

    assert data == bytes(got)


@pytest.mark.parametrize(("mcr", "level"), [(0x00, True), (0x08, True), (0x0B, True), (0x10, False), (0x18, False)])
def test_the_interrupt_is_heard_without_out2_as_on_qemu(mcr: int, level: bool) -> None:
    """Does the line rise whatever OUT2 is, as QEMU's does; and does it stay low in loopback, where QEMU's rises?"""
    bench = Bench()
    bench.put(MCR, mcr)
    bench.put(IER, 0x02)

    assert level == bench.level
    ask: Script = [Out(PIC, 0x0A), In(PIC)]
    begin: Script = [Out(PIC, 0x11), Out(PIC + 1, 8), Out(PIC + 1, 4), Out(PIC + 1, 1), Out(PIC + 1, 0xFF)]
    before, after = run([*begin, Out(IER, 0), In(IIR), Out(MCR, mcr), *ask, Out(IER, 2), *ask], SHIFT)[1:]
    assert (0, True) == (before & SERIAL_LINE, bool(after & SERIAL_LINE))
