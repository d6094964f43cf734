# SPDX-License-Identifier: GPL-2.0-or-later
"""The IDE channels of a PC: the first with one disk on it, which transfers by programmed I/O; any without a drive.

Lives here: task file, commands, and the data port with its interrupts; the disk answers at once. Does not live here:
what is on the disk (`disk`), and what IDENTIFY says (`ide_identify`). There is no DMA, no second disk and no CD-ROM:
the disk answers for the absent one as the standard has it, with its own registers and a status of 0.
Source: ATA/ATAPI-6 (T13 1410D), clauses 7 (registers), 8 (commands), 9.5 and 9.6 (PIO protocols).
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from l4lab.devices.device import Device, Limits, Line
from l4lab.devices.disk import SECTOR, Disk
from l4lab.devices.ide_identify import HEADS, MULTIPLE_MAX, TRACK, identify

DATA, ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = range(0x1F0, 0x1F8)
FEATURES, COMMAND, CONTROL = ERROR, STATUS, 0x3F6
SECOND_DATA, SECOND_CONTROL = 0x170, 0x376

BUSY, READY, SEEK_DONE, DATA_REQUEST, FAILED = 0x80, 0x40, 0x10, 0x08, 0x01
IDLE: Final = READY | SEEK_DONE
ABORTED, NOT_FOUND, DIAGNOSED = 0x04, 0x10, 0x01  # of the error register
NO_INTERRUPTS, SOFT_RESET, HIGH_ORDER = 0x02, 0x04, 0x80  # of device control
SECOND_DISK, BY_LBA = 0x10, 0x40  # of the device register
OBSOLETE: Final = 0xA0  # bits that read as ones

# READ and WRITE: is the address one of 48 bits, and is there one interrupt for as many sectors as SET MULTIPLE says?
READS: Final = {
    0x20: (False, False),
    0x21: (False, False),
    0x24: (True, False),
    0xC4: (False, True),
    0x29: (True, True),
}
WRITES: Final = {
    0x30: (False, False),
    0x31: (False, False),
    0x34: (True, False),
    0xC5: (False, True),
    0x39: (True, True),
}
VERIFIES: Final = {0x40: False, 0x41: False, 0x42: True}
NOTHING_TO_DO: Final = frozenset(
    (*range(0x10, 0x20), *range(0x70, 0x80), 0xE0, 0xE1, 0xE2, 0xE3, 0xE6, 0xE7, 0xEA, 0x94, 0x95, 0x96, 0x97, 0x99)
)  # recalibrate, seek, power management (also by its old numbers), flush: what is written is written
FEATURES_KNOWN: Final = frozenset(
    (0x02, 0x82, 0x03, 0x55, 0xAA, 0x66, 0xCC)
)  # caches, transfer mode, read ahead, defaults


class EmptyIde(Device):
    """An IDE channel without a drive."""

    # Nobody drives the lines, and pull-downs make zeros of them, as ATA asks of bit 7 at least; so do QEMU's channels.
    # Who looks for drives sees at once that none is busy, and none is ready.

    def __init__(self, name: str, data: int, control: int) -> None:
        self.name = name
        self.ports = (range(data, data + STATUS - DATA + 1), range(control, control + 1))

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        """Nobody is there to take it."""


class Ide(Device):
    """The primary IDE channel with a disk."""

    name = "ide"
    ports = (range(DATA, STATUS + 1), range(CONTROL, CONTROL + 1))
    widest = 4
    saved = (
        "features", "count", "address", "device", "status", "error", "control", "interrupt", "buffer", "at",
        "writing", "left", "sector", "block", "long", "multiple", "heads", "track",
    )  # fmt: skip
    may_be: ClassVar[Limits] = {
        "buffer": range(MULTIPLE_MAX * SECTOR + 1), "at": range(MULTIPLE_MAX * SECTOR + 1), "left": range(0x10001),
        "sector": range(1 << 48), "block": range(MULTIPLE_MAX + 1), "multiple": range(MULTIPLE_MAX + 1),
        "heads": range(1, 17), "track": range(1, 0x100),
    }  # fmt: skip

    def __init__(self, disk: Disk, irq: Line) -> None:
        self.disk, self.irq = disk, irq
        self.features = 0
        self.count = [1, 0]  # the register, and what it held before: the high byte of a 48-bit command
        self.address = [1, 0, 0, 0, 0, 0]  # LBA low, mid, high; and what they held before
        self.device = 0
        self.status, self.error, self.control = IDLE, DIAGNOSED, 0
        self.interrupt = False  # pending
        # A transfer under way:
        self.buffer, self.at = bytearray(), 0  # what goes through the data port, and how far it has
        self.writing = False
        self.left = 0  # sectors after those in the buffer
        self.sector = 0  # the first of those in the buffer
        self.block = 1  # sectors that make one buffer
        self.long = False  # the address has 48 bits
        # Set by commands:
        self.multiple = MULTIPLE_MAX
        self.heads, self.track = HEADS, TRACK

    def save(self) -> dict[str, object]:
        return super().save() | {"disk": self.disk.save()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        under_way = self.status & DATA_REQUEST
        if under_way and not (self.block and self.at < len(self.buffer) and len(self.buffer) % SECTOR == 0):
            raise ValueError("a transfer under way has whole sectors in its buffer, and some of them left")
        self.disk.restore(state["disk"])

    # -- registers -------------------------------------------------------------------------------------------------

    def read(self, port: int, size: int) -> int:
        if port == DATA:
            return int.from_bytes(self.read_block(port, size, 1), "little")
        return sum(self._register(port + i) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        if port == DATA:
            self._take(value.to_bytes(size, "little"))
            return
        for i in range(size):
            self._set_register(port + i, value >> 8 * i & 0xFF)

    def read_block(self, port: int, width: int, count: int) -> bytes:
        if port != DATA:
            return super().read_block(port, width, count)
        data = bytearray()
        while len(data) < width * count:
            if not self.status & DATA_REQUEST or self.writing:
                return bytes(data.ljust(width * count, b"\0"))
            piece = self.buffer[self.at : self.at + width * count - len(data)]
            data += piece
            self.at += len(piece)
            if self.at == len(self.buffer):
                self._next_read()
        return bytes(data)

    def write_block(self, port: int, width: int, data: bytes) -> None:
        if port != DATA:
            super().write_block(port, width, data)
            return
        while data and self.status & DATA_REQUEST and self.writing:
            room = len(self.buffer) - self.at
            self._take(data[:room])
            data = data[room:]

    def _register(self, port: int) -> int:
        absent = bool(self.device & SECOND_DISK)
        high = bool(self.control & HIGH_ORDER)
        match port:
            case 0x1F7:
                if not absent:
                    self._raise(False)
                return 0 if absent else self.status
            case 0x3F6:
                return 0 if absent else self.status
            case 0x1F6:
                return self.device | OBSOLETE
            case 0x1F1:
                return self.error
            case 0x1F2:
                return self.count[high]
            case 0x1F3 | 0x1F4 | 0x1F5:
                return self.address[port - LBA_LOW + 3 * high]
            case _:
                return 0xFF

    def _set_register(self, port: int, value: int) -> None:
        if port == CONTROL:
            self._set_control(value)
            return
        self.control &= ~HIGH_ORDER  # any write to the task file shows its low order again
        match port:
            case 0x1F1:
                self.features = value
            case 0x1F2:
                self.count = [value, self.count[0]]
            case 0x1F3 | 0x1F4 | 0x1F5:
                at = port - LBA_LOW
                self.address[at], self.address[at + 3] = value, self.address[at]
            case 0x1F6:
                self.device = value & ~OBSOLETE
            case 0x1F7 if not self.status & BUSY:
                self._command(value)
            case _:
                pass

    def _set_control(self, value: int) -> None:
        before, self.control = self.control, value
        if value & SOFT_RESET:
            self.status = BUSY | SEEK_DONE
            self.interrupt = False
        elif before & SOFT_RESET:
            self._reset()
            self.multiple = MULTIPLE_MAX
        self.irq(self.interrupt and not value & NO_INTERRUPTS)

    def _reset(self) -> None:
        """The signature of a disk, by which drivers tell it from others."""
        self.count, self.address, self.device = [1, 0], [1, 0, 0, 0, 0, 0], 0
        self.status, self.error = IDLE, DIAGNOSED

    def _raise(self, level: bool) -> None:
        self.interrupt = level
        self.irq(level and not self.control & NO_INTERRUPTS)

    # -- commands --------------------------------------------------------------------------------------------------

    def _command(self, number: int) -> None:
        if self.device & SECOND_DISK and number != 0x90:
            return  # nobody is there
        self._raise(False)
        self.error = 0
        if number in READS:
            self._begin(*READS[number])
        elif number in WRITES:
            self._begin(*WRITES[number], write=True)
        elif number in VERIFIES:
            self._verify(VERIFIES[number])
        elif number in NOTHING_TO_DO:
            self._done()
        else:
            self._other(number)

    def _other(self, number: int) -> None:
        match number:
            case 0xEC:  # IDENTIFY DEVICE
                self.buffer, self.at = bytearray(identify(self.disk.sectors, self.heads, self.track, self.multiple)), 0
                self.writing, self.left = False, 0
                self._offer()
            case 0xC6 if self.count[0] <= MULTIPLE_MAX and self.count[0].bit_count() <= 1:  # SET MULTIPLE MODE
                self.multiple = self.count[0]
                self._done()
            case 0xEF if self.features in FEATURES_KNOWN and not (self.features == 0x03 and self.count[0] >= 0x20):
                self._done()  # SET FEATURES; with 3, the modes from 20 on are DMA
            case 0x91 if self.count[0]:  # INITIALIZE DEVICE PARAMETERS
                self.heads, self.track = (self.device & 0x0F) + 1, self.count[0]
                self._done()
            case 0x90:  # EXECUTE DEVICE DIAGNOSTIC
                self._reset()
                self._raise(True)
            case 0xE5 | 0x98:  # CHECK POWER MODE: active
                self.count[0] = 0xFF
                self._done()
            case 0xF8 | 0x27:  # READ NATIVE MAX ADDRESS
                self.long = number == 0x27
                self._set_address(self.disk.sectors - 1)
                self._done()
            case _:
                self._fail(ABORTED)

    def _done(self) -> None:
        self.status = IDLE
        self._raise(True)

    def _fail(self, error: int) -> None:
        self.status, self.error = READY | FAILED, error
        self._raise(True)

    def _sectors(self) -> int:
        """How many the command is for; 0 stands for one more than the register can hold."""
        if self.long:
            return (self.count[1] << 8 | self.count[0]) or 0x10000
        return self.count[0] or 0x100

    def _address(self) -> int | None:
        """Where the command begins; None if no such place can be."""
        low, mid, high, low48, mid48, high48 = self.address
        if self.device & BY_LBA:
            top = (high48 << 16 | mid48 << 8 | low48) if self.long else self.device & 0x0F
            return top << 24 | high << 16 | mid << 8 | low
        head, cylinder = self.device & 0x0F, high << 8 | mid
        if head >= self.heads or not 1 <= low <= self.track:
            return None
        return (cylinder * self.heads + head) * self.track + low - 1

    def _set_address(self, sector: int) -> None:
        if self.device & BY_LBA:
            self.address[:3] = sector.to_bytes(6, "little")[:3]
            if self.long:
                self.address[3:] = sector.to_bytes(6, "little")[3:]
            else:
                self.device = self.device & 0xF0 | sector >> 24 & 0x0F
        else:
            track, number = divmod(sector, self.track)
            cylinder, head = divmod(track, self.heads)
            self.address[:3] = number + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
            self.device = self.device & 0xF0 | head

    def _verify(self, long: bool) -> None:
        self.long = long
        first = self._address()
        if first is None or first + self._sectors() > self.disk.sectors:
            self._fail(NOT_FOUND)
        else:
            self._done()

    # -- transfers ---------------------------------------------------------------------------------------------------

    def _begin(self, long: bool, multiple: bool, write: bool = False) -> None:
        self.long, self.writing = long, write
        self.block = self.multiple if multiple else 1
        first = self._address()
        if multiple and not self.multiple:
            self._fail(ABORTED)
        elif first is None:
            self._fail(NOT_FOUND)
        else:
            self.sector, self.left = first, self._sectors()
            self._next_block()

    def _next_block(self) -> None:
        """Make the buffer ready for the next sectors."""
        count = min(self.block, self.left)
        if self.sector + count > self.disk.sectors:
            self._set_address(self.sector)
            self._fail(NOT_FOUND)
            return
        self.at, self.left = 0, self.left - count
        if self.writing:
            self.buffer = bytearray(count * SECTOR)
            self.status = IDLE | DATA_REQUEST
        else:
            self.buffer = bytearray(self.disk.read(self.sector, count))
            self._advance(count)
            self._offer()

    def _advance(self, count: int) -> None:
        """So many sectors are through: registers tell where the rest begins, and how much it is."""
        self.sector += count
        self.count = [self.left & 0xFF, self.left >> 8 & 0xFF]
        self._set_address(self.sector)

    def _offer(self) -> None:
        self.status = IDLE | DATA_REQUEST
        self._raise(True)

    def _next_read(self) -> None:
        """The buffer has been read."""
        if self.left:
            self._next_block()
        else:
            self.status = IDLE  # the end of the last data is no event of its own

    def _take(self, data: bytes) -> None:
        """Data for the disk."""
        if not self.status & DATA_REQUEST or not self.writing:
            return
        data = data[: len(self.buffer) - self.at]
        self.buffer[self.at : self.at + len(data)] = data
        self.at += len(data)
        if self.at < len(self.buffer):
            return
        self.disk.write(self.sector, bytes(self.buffer))
        self._advance(len(self.buffer) // SECTOR)
        if self.left:
            self._next_block()
            self._raise(True)
        else:
            self._done()
