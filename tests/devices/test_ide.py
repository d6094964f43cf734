# SPDX-License-Identifier: GPL-2.0-or-later
"""The IDE disk against QEMU's, and against the standard where QEMU differs.

Deliberate differences, which the common scripts avoid:
  - an address beyond the disk's end is "not found" here, as the standard has it; in QEMU the command is aborted;
  - what IDENTIFY says of model, cache and DMA, and how many sectors READ MULTIPLE may take at most;
  - an absent second disk has registers of its own in QEMU, and other bits are kept beside "busy";
  - power commands leave "seek done" clear in QEMU;
  - QEMU knows DMA, NOP, security and SMART commands, which are aborted here.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from l4lab.devices import ide
from l4lab.devices.device import PortBus
from l4lab.devices.disk import SECTOR, Disk
from l4lab.devices.ide import BUSY, CONTROL, DATA, STATUS, EmptyIde, Ide

from .qemu import In, InWords, Out, OutWords, Script, Until, run

SECTORS = 400
IMAGE = random.Random(1).randbytes(SECTORS * SECTOR)
WORDS = SECTOR // 2
TWO_AT_A_TIME: Script = [Out(DATA + 2, 2), Out(STATUS, 0xC6), Until(CONTROL, BUSY)]  # SET MULTIPLE MODE


class Bench:
    """The channel, and its interrupt line."""

    def __init__(self, image: bytes = IMAGE) -> None:
        self.disk = Disk(image)
        self.level = False
        self.rises = 0
        self.ide = Ide(self.disk, self.irq)

    def irq(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def command(self, number: int, *, lba: int = 0, count: int = 1, features: int = 0) -> None:
        low, mid, high, top = lba.to_bytes(4, "little")
        for register, value in enumerate((features, count, low, mid, high, 0xE0 | top), start=1):
            self.ide.write(DATA + register, 1, value)
        self.ide.write(STATUS, 1, number)

    def status(self) -> int:
        return self.ide.read(STATUS, 1)

    def play(self, script: Script) -> bytes:
        """What the reads of a script return."""
        found = bytearray()
        for op in script:
            match op:
                case In(port):
                    found.append(self.ide.read(port, 1))
                case Out(port, value):
                    self.ide.write(port, 1, value)
                case InWords(port, count, shown):
                    data = self.ide.read_block(port, 2, count)
                    found += data if shown else b""
                case OutWords(port, count):
                    words = b"".join(n.to_bytes(2, "little") for n in range(count, 0, -1))
                    self.ide.write_block(port, 2, words)
                case _:
                    pass
        return bytes(found)


def task_file() -> Script:
    """All registers, and the status without and with acknowledging the interrupt."""
    return [*(In(port) for port in (CONTROL, *range(DATA + 1, STATUS + 1)))]


def address(rng: random.Random, count: int, long: bool) -> Script:
    """Registers for a place on the disk, by CHS or LBA."""
    first = rng.randrange(SECTORS - count)
    if not long and rng.random() < 0.3:
        track, number = divmod(first, 63)
        low, mid, high, device = number + 1, track // 16, 0, 0xA0 | track % 16
    else:
        low, mid, high, device = first & 0xFF, first >> 8, 0, 0xE0
    zeros = [Out(DATA + register, 0) for register in range(2, 6)] if long else []
    registers = enumerate((count & 0xFF, low, mid, high, device), start=2)
    return [*zeros, *(Out(DATA + register, value) for register, value in registers)]


def some_command(rng: random.Random) -> Script:
    """A command with its data, and all registers at each stage."""
    idle: Script = [Until(CONTROL, BUSY), *task_file()]
    count = rng.randrange(1, 5)
    match rng.randrange(8):
        case 0 | 1:
            number = rng.choice((0x20, 0x21, 0x24, 0x30, 0x34))
            stages = [WORDS] * count
        case 2:
            number = rng.choice((0xC4, 0x29, 0xC5, 0x39))
            stages = [WORDS * min(2, count - at) for at in range(0, count, 2)]
        case 3:
            number = rng.choice((0x40, 0x42, 0x10, 0x70, 0xE7, 0xEA))
            stages = []
        case 4:
            high = Out(CONTROL, rng.choice((0x80, 0x82)))
            return [Out(DATA + 2, rng.randrange(256)), Out(DATA + 2, rng.randrange(256)), high, *task_file()[2:6]]
        case 5:
            return [Out(CONTROL, 4), Out(CONTROL, 0), *idle, *TWO_AT_A_TIME]
        case 6:
            return [Out(DATA + 6, 0xB0), Out(STATUS, 0xEC), In(CONTROL), In(STATUS), Out(DATA + 6, 0xA0), *task_file()]
        case _:
            number = rng.choice((0xFF, 0x01, 0x5F))
            stages = []
    writes = number in ide.WRITES
    data: Script = []
    for words in stages:
        data += [OutWords(DATA, words) if writes else InWords(DATA, words), *idle]
    return [*address(rng, count, number in (0x24, 0x34, 0x29, 0x39, 0x42)), Out(STATUS, number), *idle, *data]


@pytest.mark.parametrize("seed", range(6))
def test_commands_go_as_in_qemu(seed: int, tmp_path: Path) -> None:
    """After each stage of random commands: the same registers, the same data, and what was written read back?"""
    rng = random.Random(seed)
    script: Script = [Out(DATA + 6, 0xE0), *TWO_AT_A_TIME]
    for _ in range(40):
        script += some_command(rng)
    image = tmp_path / "disk"
    image.write_bytes(IMAGE)

    assert run(script, 0, ["-drive", f"file={image},format=raw,if=ide", "-snapshot"]) == Bench().play(script)


@pytest.mark.parametrize(("data", "control"), [(DATA, CONTROL), (ide.SECOND_DATA, ide.SECOND_CONTROL)])
def test_a_channel_without_a_drive_reads_as_qemus(data: int, control: int) -> None:
    """Whatever is written to it, commands and resets too: do all registers and the data port read as on QEMU?"""
    rng = random.Random(data)
    registers = [*range(data, data + 8), control]
    script: Script = [In(port) for port in registers]
    for _ in range(60):
        port = rng.choice(registers)
        command = rng.choice((0x20, 0x30, 0x90, 0xEC, 0xA1, 0xE7))
        script.append(Out(port, command if port == data + 7 else rng.randrange(256)))
        script += [InWords(data, 2), *(In(port) for port in registers)]
    ours = bytearray()
    empty = PortBus([EmptyIde("it", data, control)])
    for op in script:
        match op:
            case In(port):
                ours.append(empty.read(port, 1))
            case Out(port, value):
                empty.write(port, 1, value)
            case InWords(port, count):
                ours += empty.read_block(port, 2, count)
            case _:
                pass

    assert run(script, 0) == ours


def test_the_image_is_never_written() -> None:
    """Does a write go into the overlay, be read back, and leave the image and its neighbours alone?"""
    bench = Bench()
    bench.command(0x30, lba=7)
    bench.ide.write_block(DATA, 4, b"\xa5" * SECTOR)

    assert bytes([0xA5] * SECTOR) == bench.disk.read(7, 1)
    assert IMAGE == bench.disk.image
    assert IMAGE[: 7 * SECTOR] + b"\xa5" * SECTOR + IMAGE[8 * SECTOR :] == bench.disk.contents()


def test_an_interrupt_for_each_block_that_can_be_read() -> None:
    """With READ SECTORS there is one interrupt a sector, with READ MULTIPLE one for sixteen; none at the end."""
    for number, interrupts in ((0x20, 20), (0xC4, 2)):
        bench = Bench()
        bench.command(number, count=20)
        data = b""
        while bench.status() & ide.DATA_REQUEST:
            assert not bench.level  # reading the status has taken the interrupt back
            data += bench.ide.read_block(DATA, 2, WORDS)

        assert (IMAGE[: 20 * SECTOR], interrupts) == (data, bench.rises)


def test_no_interrupt_comes_while_they_are_off() -> None:
    """Does bit 1 of device control hold the line low, and does the interrupt come once it is cleared?"""
    bench = Bench()
    bench.ide.write(CONTROL, 1, ide.NO_INTERRUPTS)
    bench.command(0xE7)
    assert not bench.level
    bench.ide.write(CONTROL, 1, 0)

    assert bench.level


@pytest.mark.parametrize(("lba", "count"), [(SECTORS, 1), (SECTORS - 2, 3), (0x0FFF_FFFF, 1)])
def test_beyond_its_end_nothing_is_found(lba: int, count: int) -> None:
    """Is the first sector that is not there named in the registers, after those that are were read?"""
    bench = Bench()
    bench.command(0x20, lba=lba, count=count)
    while bench.status() & ide.DATA_REQUEST:
        bench.ide.read_block(DATA, 2, WORDS)

    assert ide.FAILED | ide.READY == bench.status()
    assert ide.NOT_FOUND == bench.ide.read(DATA + 1, 1)
    named = sum(bench.ide.read(DATA + 3 + i, 1) << 8 * i for i in range(3)) | (bench.ide.read(DATA + 6, 1) & 15) << 24
    assert max(lba, SECTORS) == named


def test_identify_tells_size_and_name() -> None:
    """Do the words for LBA28, LBA48, geometry and model say what the disk is?"""
    bench = Bench(bytes(3000 * SECTOR + 1))  # an image that ends within a sector
    bench.command(0xEC)
    words = bench.ide.read_block(DATA, 2, 256)
    word = [int.from_bytes(words[at : at + 2], "little") for at in range(0, SECTOR, 2)]

    assert [3001, 3001, 2, 16, 63] == [word[60], word[100], word[1], word[3], word[6]]
    assert b"L4LAB DISK" == b"".join(w.to_bytes(2, "big") for w in word[27:47]).rstrip()
    assert word[83] & 1 << 10


def test_dma_is_refused() -> None:
    """Are READ DMA, and DMA as transfer mode, aborted, so that drivers do without?"""
    bench = Bench()
    for number, features, count in ((0xC8, 0, 1), (0xEF, 3, 0x45)):
        bench.command(number, features=features, count=count)

        assert (ide.READY | ide.FAILED, ide.ABORTED) == (bench.status(), bench.ide.read(DATA + 1, 1))
