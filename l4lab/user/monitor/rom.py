# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's own BIOS, as it lies in memory: vectors, data area and code. Its services are answered in `bios`.

Each interrupt vector leads to a stub of four bytes, VMCALL and IRET, so a service call becomes a VM exit whose EIP
tells which one it is. What remains for code is what has to go on while the guest runs: the timer's tick, waiting, and
the start. All other state of a BIOS lies in the guest's memory, where programs expect it.

    0x00000  interrupt vectors      0xf0000  stubs, code, tables
    0x00400  BIOS data area         0xffff0  the first instruction after a reset
    0x07c00  boot sector
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Final

from l4lab.devices.vga import TEXT_BUFFER, TEXT_WINDOW
from l4lab.devices.vga_modes import MODES, TEXT_MODE
from l4lab.images.boot_params import E820Region, RegionKind
from l4lab.images.pieces import HIGH_RAM, LOW_RAM_END, Piece
from l4lab.user.asm import Program, assemble
from l4lab.words import PAddr

SEGMENT: Final = 0xF000
ROM_AT: Final = SEGMENT << 4
ROM_SIZE: Final = 0x10000
RESET: Final = 0xFFF0
BOOT_AT: Final = 0x7C00

SCREEN: Final = MODES[TEXT_MODE]
STUB: Final = b"\x0f\x01\xc1\xcf"  # VMCALL, IRET
STUB_SIZE: Final = len(STUB)
TIMER, DISKETTE_TABLE, CLOCK = 0x08, 0x1E, 0x70  # vectors

# The BIOS data area: what is told there of the machine, by address.
EQUIPMENT, MEMORY_KB, SHIFTS, KEYBOARD_STATE = 0x410, 0x413, 0x417, 0x496
KEYS_HEAD, KEYS_TAIL, KEYS = 0x41A, 0x41C, 0x41E  # the keyboard's ring buffer, 16 words, as offsets from 0x400
KEYS_END: Final = KEYS + 32
KEYS_101, AFTER_E0, AFTER_E1 = 0x10, 0x02, 0x01  # of the keyboard's state: how many keys it has, what it has sent last
VIDEO_MODE, COLUMNS, PAGE_SIZE, PAGE_START, CURSOR = 0x449, 0x44A, 0x44C, 0x44E, 0x450
CURSOR_SHAPE, VIDEO_PAGE, CRTC_PORT = 0x460, 0x462, 0x463
LAST_ROW, CHARACTER_HEIGHT, VIDEO_CONTROL = 0x484, 0x485, 0x487
TICKS, MIDNIGHT, DISKS = 0x46C, 0x470, 0x475
DISKETTE_STATUS, DISK_STATUS = 0x441, 0x474  # how the last call of INT 13 went
WAIT_FLAG_AT, WAIT_LEFT, WAIT_ACTIVE = 0x498, 0x49C, 0x4A0  # a wait: where its end is told, microseconds, is there one?
TICKS_A_DAY: Final = 0x1800B0
PIECE: Final = 976  # microseconds from one of the clock's interrupts to the next, rounded down
CONTROL: Final = 0x60  # what `VIDEO_CONTROL` holds: 256 KiB of memory, the adapter is active

_SOURCE = """
; --- one stub for each vector ---------------------------------------------------------------------
stubs:
{stubs}

; --- the start: interrupt controllers, timer, and then whatever is to be booted -------------------
post:   cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     al, 0x11                ; ICW1: edges, a cascade, ICW4 follows
        out     0x20, al
        out     0xa0, al
        mov     al, 0x08                ; ICW2: IRQ 0 to 7 at vectors 08 to 0F, where PCs have them,
        out     0x21, al
        mov     al, 0x70                ;       IRQ 8 to 15 at 70 to 77
        out     0xa1, al
        mov     al, 0x04                ; ICW3: the second one hangs on IRQ 2
        out     0x21, al
        mov     al, 0x02
        out     0xa1, al
        mov     al, 0x01                ; ICW4: 8086
        out     0x21, al
        out     0xa1, al
        mov     al, 0xf8                ; timer, keyboard and cascade are let through
        out     0x21, al
        mov     al, 0xff
        out     0xa1, al
        mov     al, 0x36                ; timer 0 counts 65536 in mode 3: 18.2 ticks a second
        out     0x43, al
        xor     al, al
        out     0x40, al
        out     0x40, al
        sti
        int     0x19

; --- INT 08: a tick of the timer ------------------------------------------------------------------
timer:  push    ds
        push    ax
        xor     ax, ax
        mov     ds, ax
        inc     dword ptr [TICKS]
        cmp     dword ptr [TICKS], TICKS_A_DAY
        jb      .day
        mov     dword ptr [TICKS], 0
        mov     byte ptr [MIDNIGHT], 1
.day:   int     0x1c                    ; whoever wants to know
        mov     al, 0x20
        out     0x20, al
        pop     ax
        pop     ds
        iret

; --- INT 70: the clock's interrupt, at the end of each piece of a wait, and at the alarm's time ----
clock:  push    ds
        push    ax
        xor     ax, ax
        mov     ds, ax
        mov     al, 0x0c                ; what it is about; reading that ends it
        out     0x70, al
        in      al, 0x71
        mov     ah, al
        mov     al, 0x0b                ; of it, what somebody wants to know
        out     0x70, al
        in      al, 0x71
        and     ah, al
        test    ah, 0x40                ; a piece of a wait
        jz      .alarm
        sub     dword ptr [WAIT_LEFT], PIECE
        ja      .alarm
        and     al, 0xbf                ; the last one: no more of these interrupts
        out     0x71, al
        push    es
        push    bx
        les     bx, [WAIT_FLAG_AT]
        or      byte ptr es:[bx], 0x80
        pop     bx
        pop     es
        and     byte ptr [WAIT_ACTIVE], 0xfe
.alarm: test    ah, 0x20
        jz      .ended
        int     0x4a                    ; whoever wants to be woken
.ended: mov     al, 0x20
        out     0xa0, al
        out     0x20, al
        pop     ax
        pop     ds
        iret

; --- the rest of INT 15, 86: wait until the clock's interrupt says that it is over -----------------
wait15: push    ds
        push    ax
        xor     ax, ax
        mov     ds, ax
.again: cli
        test    byte ptr [WAIT_ACTIVE], 0x80
        jnz     .over
        sti
        hlt
        jmp     .again
.over:  mov     byte ptr [WAIT_ACTIVE], 0
        pop     ax
        pop     ds
        push    bp
        mov     bp, sp
        and     byte ptr [bp + 6], 0xfe ; behind BP, IP and CS: the caller's carry flag
        pop     bp
        iret

; --- a service that has nothing to say yet: ask again after the next interrupt --------------------
wait16: sti
        hlt
        jmp     stubs + 4 * 0x16

; --- INT 1E is no call: it is the address of this table of what a diskette drive is like -------------
diskette: .byte 0xdf, 0x02, 0x25, 0x02, 18, 0x1b, 0xff, 0x6c, 0xf6, 0x0f, 0x08

; --- what INT 15, C0 points to: a PC/AT with two interrupt controllers, a clock, an extended data area ---
configuration: .byte 8, 0, 0xfc, 0, 1, 0x64, 0, 0, 0, 0

; --- there are no letters here: whoever draws them finds blank ones ----------------------------------------
fonts:  .space  256 * 16
"""


@cache
def program() -> Program:
    """The code of the ROM, at offset 0 of its segment."""
    stubs = "\n".join("        vmcall\n        iret" for _ in range(256))
    constants = {
        "TICKS": TICKS, "TICKS_A_DAY": TICKS_A_DAY, "MIDNIGHT": MIDNIGHT, "WAIT_FLAG_AT": WAIT_FLAG_AT,
        "WAIT_LEFT": WAIT_LEFT, "WAIT_ACTIVE": WAIT_ACTIVE, "PIECE": PIECE,
    }  # fmt: skip
    return assemble(_SOURCE.format(stubs=stubs), 0, 16, constants)


def pieces(diskettes: int, hard_disks: int) -> list[Piece]:
    """What the BIOS has in memory when the CPU begins, where there are so many drives."""
    code = program()
    start = assemble(f"jmp {SEGMENT:#x}:{code.address('post'):#x}", RESET, 16).code
    rom = code.code.ljust(RESET, b"\0") + start
    vectors = [STUB_SIZE * number for number in range(256)]
    vectors[TIMER] = code.address("timer")
    vectors[CLOCK] = code.address("clock")
    vectors[DISKETTE_TABLE] = code.address("diskette")
    return [
        Piece(PAddr(0), b"".join(struct.pack("<HH", offset, SEGMENT) for offset in vectors), "vectors"),
        Piece(PAddr(0x400), data_area(diskettes, hard_disks), "data area"),
        Piece(PAddr(TEXT_BUFFER), b" \x07" * (TEXT_WINDOW // 2), "empty screen"),
        Piece(PAddr(ROM_AT), rom.ljust(ROM_SIZE, b"\0"), "BIOS"),
    ]


def data_area(diskettes: int, hard_disks: int) -> bytes:
    """The BIOS data area, to lie at 0x400, where there are so many drives."""
    area = bytearray(0x100)
    for address, form, value in (
        (
            EQUIPMENT,
            "<H",
            0x0222 | bool(diskettes),
        ),  # a serial port, colour text 80x25, a coprocessor, diskette drives?
        (MEMORY_KB, "<H", LOW_RAM_END >> 10),
        (0x400, "<H", 0x3F8),  # COM1
        (0x40E, "<H", LOW_RAM_END >> 4),  # the segment of the extended data area
        (KEYS_HEAD, "<H", KEYS - 0x400),
        (KEYS_TAIL, "<H", KEYS - 0x400),
        (0x480, "<H", KEYS - 0x400),
        (0x482, "<H", KEYS_END - 0x400),
        (VIDEO_MODE, "<B", TEXT_MODE),
        (COLUMNS, "<H", SCREEN.columns),
        (PAGE_SIZE, "<H", SCREEN.page),
        (CURSOR_SHAPE, "<H", 0x0607),  # its lines
        (CRTC_PORT, "<H", 0x3D4),
        (DISKS, "<B", hard_disks),
        (LAST_ROW, "<B", SCREEN.rows - 1),
        (CHARACTER_HEIGHT, "<H", SCREEN.character),
        (VIDEO_CONTROL, "<B", CONTROL),
        (KEYBOARD_STATE, "<B", KEYS_101),
    ):
        struct.pack_into(form, area, address - 0x400, value)
    return bytes(area)


def memory_map(memory: int) -> list[E820Region]:
    """What INT 15, E820 tells."""
    return [
        E820Region(PAddr(0), LOW_RAM_END, RegionKind.RAM),
        E820Region(LOW_RAM_END, PAddr(0xA0000), RegionKind.RESERVED),
        E820Region(PAddr(ROM_AT), HIGH_RAM, RegionKind.RESERVED),
        E820Region(HIGH_RAM, PAddr(memory), RegionKind.RAM),
    ]
