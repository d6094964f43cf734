# SPDX-License-Identifier: GPL-2.0-or-later
"""All that a beginner's boot sector asks of a BIOS, call by call: registers and flags as SeaBIOS leaves them on QEMU.

Where the two differ on purpose, the call says in which registers:
  - SeaBIOS keeps the last cylinder of a hard disk, and half a megabyte of memory, to itself;
  - it has version 3 of the disk extensions, 32-bit APM, a mouse, fonts, and its tables elsewhere;
  - it leaves in AL what it read last from the clock;
  - behind the end of a diskette QEMU finds sectors.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.user.monitor.bios_calls import LOOK, Call, disk_of, rows
from tests.user.monitor.realmode import END, MIB, on_qemu, on_the_lab

BUFFER = 0x9000
PACKETS = 0x8A00
DISKETTE_SIZE = 1440 << 10


def call(vector: int, *apart: str, **registers: int) -> Call:
    return Call(vector, registers, apart)


def disk_calls(*calls: tuple[int, int, int] | tuple[int, int, int, str]) -> list[Call]:
    """Calls of INT 13 with AX, CX, DX."""
    return [call(0x13, *apart, ax=ax, bx=BUFFER, cx=cx, dx=dx) for ax, cx, dx, *apart in calls]


HARD_DISK = disk_calls(
    *((0x0201, 0x0001, 0x80), (0x0100, 0, 0x80), (0x0200, 1, 0x80), (0x0100, 0, 0x80), (0x0280, 1, 0x80)),
    *((0x0281, 1, 0x80), (0x0201, 0, 0x80), (0x0201, 0x3F, 0x80), (0x0201, 0x40, 0x80), (0x0201, 0x0201, 0x80)),
    *((0x0201, 0xFF01, 0x80), (0x0201, 1, 0x1080), (0x0201, 1, 0x0F80), (0x0201, 1, 0xFF80), (0x0240, 1, 0x80)),
    *((0x0220, 0x013F, 0x0F80), (0x0100, 0, 0x80), (0x0201, 1, 0x81), (0x0201, 1, 0x00), (0x0100, 0, 0x00)),
    *((0x0001, 1, 0x80), (0x0000, 0, 0x81), (0x0000, 0, 0xFF), (0x0401, 1, 0x80), (0x0400, 1, 0x80)),
    *((0x0481, 1, 0x80), (0x0301, 0x3F, 0x0F80), (0x0300, 0x3F, 0x0F80), (0x0381, 0x3F, 0x80), (0x0500, 1, 0x80)),
    *((0x0800, 0, 0x80, "cx"), (0x0800, 0, 0x81), (0x0800, 0, 0x00), (0x0800, 0, 0x01), (0x0900, 0, 0x80)),
    *((0x0C00, 1, 0x80), (0x0D00, 0, 0x80), (0x1000, 0, 0x80), (0x1000, 0, 0x81), (0x1100, 0, 0x80)),
    *((0x1400, 0, 0x80), (0x1500, 0, 0x80, "dx"), (0x1500, 0, 0x81), (0x1500, 0, 0x00), (0x1600, 0, 0x80)),
    *((0x3300, 0, 0x80), (0xFF00, 0, 0x80), (0x4100, 0, 0x80, "ax", "cx"), (0x4100, 0, 0x81)),
)
PACKET_FIELDS = (
    *((1, BUFFER, 0, 5), (0, BUFFER, 0, 5), (127, 0, 0x1000, 5), (128, 0, 0x1000, 5), (1, BUFFER, 0, 2047)),
    *((2, BUFFER, 0, 2047), (1, BUFFER, 0, 2048), (1, BUFFER, 0, 1 << 33), (3, BUFFER, 0, 2046)),
)
PACKET_DATA = b"".join(struct.pack("<BBHHHQ", 16, 0, *fields) for fields in PACKET_FIELDS)
RESULT = PACKETS + len(PACKET_DATA)
BY_PACKET = [
    *(call(0x13, ax=0x4200, si=PACKETS + at, dx=0x80) for at in range(0, len(PACKET_DATA), 16)),
    call(0x13, ax=0x4400, si=PACKETS, dx=0x80),
    call(0x13, ax=0x4700, si=PACKETS, dx=0x80),
    call(0x13, ax=0x4200, si=PACKETS, dx=0x81),
    call(0x13, ax=0x4800, si=RESULT, dx=0x80),  # a buffer of 26 bytes
    call(0x13, ax=0x4800, si=RESULT + 2, dx=0x80),  # one of none
]
DISKETTE = [
    *disk_calls(
        *(
            (0x0201, 1, 0),
            (0x0200, 1, 0),
            (0x0100, 0, 0),
            (0x0212, 1, 0),
            (0x0213, 1, 0),
            (0x0224, 1, 0),
            (0x0225, 1, 0),
        ),
        *(
            (0x0211, 2, 0),
            (0x0212, 2, 0),
            (0x021F, 2, 0),
            (0x0223, 2, 0),
            (0x0238, 1, 0),
            (0x0239, 1, 0),
            (0x0100, 0, 0),
        ),
        *((0x0281, 1, 0), (0x0201, 0, 0), (0x0201, 0x12, 0), (0x0201, 0x13, 0), (0x0201, 0x41, 0), (0x0201, 0x4F01, 0)),
        *((0x0201, 0x5001, 0), (0x0201, 0xFF01, 0), (0x0201, 1, 0x0100), (0x0201, 1, 0x0200), (0x0202, 0x12, 0x0100)),
        *((0x0224, 0x4F01, 0), (0x0202, 0x4F12, 0x0100, "ax", "flags"), (0x0201, 1, 1), (0x0100, 0, 0), (0x0000, 0, 0)),
        *((0x0000, 0, 1), (0x0401, 1, 0), (0x0423, 1, 0), (0x0400, 1, 0), (0x0480, 1, 0), (0x0500, 1, 0)),
        *((0x0800, 0, 0, "di"), (0x0800, 0, 1), (0x0800, 0, 0x80), (0x0900, 0, 0), (0x0C00, 0, 0), (0x0D00, 0, 0)),
        *((0x1000, 0, 0), (0x1100, 0, 0), (0x1500, 0, 0), (0x1500, 0, 1), (0x1600, 0, 0), (0x1700, 0, 0)),
        *((0x1800, 0x4F12, 0), (0x4100, 0, 0), (0x4200, 0, 0)),
    ),
    call(0x13, ax=0x0201, bx=0xFF00, cx=1),  # across the end of 64 KiB
    call(0x13, ax=0x0201, bx=0xFE00, cx=1),
    call(0x13, ax=0x0201, bx=0xFE10, cx=1, es=0x0FFF),
    call(0x13, ax=0x0410, bx=0xFF00, cx=1),
]

SHOWN = call(0x10, ax=0x0F00)
CURSOR = call(0x10, ax=0x0300)
LOOKED = call(LOOK)
TEXT_AT, COLOURS_AT = 0x8A00, 0x8A10


def video(ax: int, bx: int = 0, cx: int = 0, dx: int = 0, bp: int = 0) -> Call:
    return call(0x10, ax=ax, bx=bx, cx=cx, dx=dx, bp=bp)


def letters(text: bytes) -> list[Call]:
    return [video(0x0E00 | char, 7) for char in text]


MODES = [
    each for mode in (*range(8), *range(0x0D, 0x14), 0x83, 0x93, 0x14, 0x03) for each in (video(mode), SHOWN, CURSOR)
]
SCREEN = [
    each
    for group in (
        *([video(3)], [video(0x0200, dx=0x0507), CURSOR], [video(0x0941, 0x1E, 3), video(0x0800)]),
        *([video(0x0A42, 0x55, 2)], letters(b"one\r\ntwo\b\bo\x07\t!"), [video(0x0200, dx=0x174E)], letters(b"abcd")),
        *([video(0x0200, dx=0x184F), video(0x0943, 0x30, 1), *letters(b"xy")],),
        *([video(0x0200, dx=0x1830), *letters(b"\n\n")], [video(0x0200, dx=0x1900), CURSOR]),
        *([video(0x0200, dx=0xFFFF), CURSOR], [video(0x0200, dx=0x0300), video(0x094D, 0x21, 200)]),
        *([video(0x0602, 0x1700, 0x0205, 0x0A20)], [video(0x0703, 0x4F00, 0x0100, 0x184F)]),
        *([video(0x0600, 0x2000, 0x0A0A, 0x0C0C)], [video(0x0630, 0x3100, 0x0101, 0x0303)]),
        *([video(0x1301, 5, 5, 0x0A4D, TEXT_AT)], [video(0x1300, 6, 5, 0x0C02, TEXT_AT)]),
        *([video(0x1303, 0, 2, 0x0E02, TEXT_AT)], [video(0x0600, 0x0700, 0, 0x184F)]),
        *([video(0x0200, 0x0100, 0, 0x0102), video(0x0300, 0x0100)], [video(0x0950, 0x0134, 2)]),
        *([video(0x0501), SHOWN], letters(b"page"), [video(0x0300, 0x0100)], [video(0x0500), SHOWN]),
        *([video(0x0100, cx=0x2000), CURSOR], [video(0x0100, cx=7)], [video(0x0100, cx=0x0607)]),
        *([video(0x0100, cx=0x0407)], [video(0x1112), CURSOR], letters(b"small\n"), [video(0x1111), CURSOR]),
        *([video(0x1114), CURSOR], [video(1)], [video(0x0200, dx=0x0526), *letters(b"forty")], [video(3)]),
    )
    for each in (*group, LOOKED)
]
ADAPTER = [
    *(call(0x10, ax=3), call(0x10, ax=0x0400), call(0x10, ax=0x0B00, bx=4), call(0x10, ax=0x1008)),
    *(call(0x10, ax=0x1000, bx=0x0102), call(0x10, ax=0x1001, bx=0x0300), call(0x10, ax=0x1003, bx=0)),
    *(call(0x10, ax=0x1007, bx=1), call(0x10, ax=0x1007, bx=0x10), call(0x10, ax=0x1003, bx=1)),
    *(call(0x10, ax=0x1007, bx=0x10), call(0x10, ax=0x1007, bx=5), call(0x10, ax=0x1008)),
    *(call(0x10, ax=0x1009, dx=BUFFER), call(0x10, ax=0x1010, bx=1, cx=0x1234, dx=0x3F00)),
    *(call(0x10, ax=0x1015, bx=1), call(0x10, ax=0x1015, bx=7), call(0x10, ax=0x1012, bx=0x20, cx=2, dx=COLOURS_AT)),
    *(call(0x10, ax=0x1015, bx=0x20), call(0x10, ax=0x1015, bx=0x21), call(0x10, ax=0x1017, bx=0x20, cx=2, dx=BUFFER)),
    *(call(0x10, "bp", "es", ax=0x1130), call(0x10, "bp", "es", ax=0x1130, bx=0x0600), call(0x10, ax=0x1200, bx=0x10)),
    *(call(0x10, ax=0x1202, bx=0x30), call(0x10, ax=0x1200, bx=0x31), call(0x10, ax=0x1201, bx=0x33)),
    *(call(0x10, ax=0x1200, bx=0x34), call(0x10, ax=0x1201, bx=0x36), call(0x10, ax=0x1200, bx=0x36)),
    *(call(0x10, ax=0x1200, bx=0x55), call(0x10, ax=0x1A00), call(0x10, ax=0x1A01, bx=8), call(0x10, ax=0xFE00)),
    *(call(0x10, ax=0x13), call(0x10, ax=0x0C2A, cx=319, dx=199), call(0x10, ax=0x0D00, cx=319, dx=199)),
    *(call(0x10, ax=0x0D00, cx=318, dx=199), call(0x10, ax=3)),
]
SYSTEM = [
    *(call(0x12), call(0x14, ax=0x00E3), call(0x14, ax=0x0300), call(0x14, ax=0x0300, dx=1), call(0x14, ax=0x0200)),
    *(call(0x17, ax=0x0200), call(0x17, ax=0x0041), call(0x05), call(0x1C), call(0x1B)),
    *(call(0x15, ax=ax) for ax in (0x2400, 0x2401, 0x2402, 0x2403, 0x2404, 0x4F1E, 0x8000, 0x8100, 0x8200, 0x8500)),
    *(call(0x15, ax=ax) for ax in (0x8600, 0x9000, 0x9100, 0xC100, 0xC900, 0xD800, 0xE881, 0xE820, 0x0000, 0x2100)),
    *(call(0x15, "bx", ax=0xC000), call(0x15, "ax", ax=0x8800), call(0x15, "ax", "cx", ax=0xE801)),
    *(call(0x15, "cx", ax=0x5300), call(0x15, ax=0x5301), call(0x15, ax=0x5304), call(0x15, ax=0x530E)),
    *(call(0x15, ax=0x530F), call(0x15, ax=0x8301), call(0x15, ax=0x8300, bx=BUFFER, cx=1, dx=0)),
    *(call(0x15, ax=0x8600, dx=1000), call(0x15, ax=0x8301), call(0x15, ax=0x8600, dx=1000), call(0x15, ax=0x8600)),
]
CLOCK = [
    *(
        call(0x1A, ax=0x0100, cx=1, dx=2),
        call(0x1A, "dx", ax=0x0000),
        call(0x1A, "ax", ax=0x0300, cx=0x1234, dx=0x5600),
    ),
    *(call(0x1A, "ax", ax=0x0200), call(0x1A, "ax", ax=0x0500, cx=0x2024, dx=0x0229)),
    *(call(0x1A, "dx", "ax", ax=0x0400), call(0x1A, ax=0x0600, cx=0x1240), call(0x1A, ax=0x0600, cx=0x1240)),
    *(call(0x1A, "ax", ax=0x0700), call(0x1A, ax=0x0600, cx=0x1240), call(0x1A, "ax", ax=0x0700)),
    *(call(0x1A, ax=0x0900), call(0x1A, ax=0x0B00), call(0x1A, ax=0x0F00), call(0x1A, ax=0xFF00)),
]
KEYS = [
    *(call(0x16, ax=ax) for ax in (0x0100, 0x1100, 0x0200, 0x1200, 0x0300, 0x0305, 0x0400, 0x0900, 0x0A00, 0x9200)),
    *(call(0x16, ax=ax) for ax in (0xA200, 0x2000, 0xFF00)),
    *(
        each
        for key in (0x1E61, 0x47E0, 0x8500, 0x1CE0, 0xE00D, 0xE02F, 0x00E0, 0x00F0, 0x8DE0, 0x0000, 0xA600, 0x0E08)
        for each in (
            *(call(0x16, ax=0x0500, cx=key), call(0x16, ax=0x0100), call(0x16, ax=0x1100), call(0x16, ax=0x0000)),
            *(call(0x16, ax=0x0500, cx=key), call(0x16, ax=0x1000)),
        )
    ),
    *(call(0x16, ax=0x0500, cx=0x1E61 + n) for n in range(17)),
    *(call(0x16, ax=0x1000), call(0x16, ax=0x0500, cx=0x3920), *[call(0x16, ax=0x0000)] * 15, call(0x16, ax=0x0100)),
]
DATA = {TEXT_AT: b"A\x1eB\x2fC?xyz", COLOURS_AT: b"\x01\x02\x03\x3f\x2a\x15"}
LISTS = {
    "hard disk": (HARD_DISK, MIB, {}),
    "packets": (BY_PACKET, MIB, {PACKETS: PACKET_DATA + struct.pack("<H", 26) + bytes(32)}),
    "diskette": (DISKETTE, DISKETTE_SIZE, {}),
    "modes": (MODES, MIB, {}),
    "screen": (SCREEN, MIB, DATA),
    "adapter": (ADAPTER, MIB, DATA),
    "system": (SYSTEM, MIB, {}),
    "clock": (CLOCK, MIB, {}),
    "keys": (KEYS, MIB, {}),
}


@pytest.mark.parametrize(("calls", "size", "data"), LISTS.values(), ids=LISTS)
def test_calls_return_what_they_do_on_qemu(
    calls: list[Call], size: int, data: dict[int, bytes], tmp_path: Path
) -> None:
    """After each call of the list: the same registers, carry and zero flag, and the same on the screen?"""
    disk = disk_of(calls, size, data)
    rig = on_the_lab(disk, 20.0)

    said = rig.console.decode("latin-1")
    assert said.endswith(END), (rig.status(), rig.outcome)
    assert rows(calls, on_qemu(disk, tmp_path, diskette=size == DISKETTE_SIZE)) == rows(calls, said)
