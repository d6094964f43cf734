# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of real-mode guests share: boot disks made from assembly, and a PC of QEMU's to compare with."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path

from l4lab.rig.booting import Options, guest_program
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from tests.fragments import hexadecimal

MIB = 1 << 20
SECTOR = 512
PATIENCE = 60.0  # seconds that QEMU may take
REPORT, END = "|", "END"  # what a program says before and after its report

# The boot sector reads the 7 sectors behind it and goes on there. At the end it sends a report through the serial port.
_LOADER = f"""
        jmp     0:start
start:  xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     ax, 0x0207              ; read 7 sectors
        mov     bx, 0x7e00              ; behind this one
        mov     cx, 0x0002              ; from the second one on
        mov     dh, 0                   ; DL is as the BIOS left it
        int     0x13
        jnc     main
        hlt

; note AX, as four digits and a space, for the report at the end
show:   pushad
        mov     bx, ax
        mov     di, cs:[noted]{hexadecimal("bx", 4, "call    note")}
        mov     byte ptr cs:[di], 32
        inc     di
        mov     cs:[noted], di
        popad
        ret
note:   mov     cs:[di], al
        inc     di
        ret
noted:  .word   0x600
; all that flags say to callers of a BIOS: carry and zero
flags:  pushf
        pop     ax
        and     ax, 0x41
        jmp     show
send:   push    dx
        mov     dx, 0x3f8
        out     dx, al
        pop     dx
        ret
ending: mov     al, 0x7c
        call    send
        mov     si, 0x600
.next:  cmp     si, cs:[noted]
        je      .done
        mov     al, cs:[si]
        call    send
        inc     si
        jmp     .next
.done:  mov     al, 0x45
        call    send
        mov     al, 0x4e
        call    send
        mov     al, 0x44
        call    send
        cli
        hlt
        .org    0x7dfe
        .word   0xaa55
main:
"""


def boot_disk(source: str, size: int = MIB, first: str = "") -> bytes:
    """A disk that boots and then runs `source`; sector n is full of the number n. `first` runs before anything else."""
    code = assemble(first + _LOADER + source + "\n        jmp ending\n", 0x7C00, 16).code
    assert len(code) <= 8 * SECTOR, len(code)
    disk = b"".join((number & 0xFFFF).to_bytes(2, "little") * (SECTOR // 2) for number in range(size // SECTOR))
    return code.ljust(8 * SECTOR, b"\0") + disk[8 * SECTOR :]


def on_the_lab(image: bytes, seconds: float = 1.0, memory: int = 16 * MIB) -> Rig:
    """The disk booted by the lab's BIOS, up to its end or so many seconds of virtual time."""
    rig = Rig.for_guest(guest_program(image, "disk", None, Options(), memory))
    rig.run(int(seconds * 10**9))
    return rig


def on_qemu(image: bytes, directory: Path, diskette: bool = False) -> str:
    """What the serial port says when QEMU's PC with SeaBIOS boots the disk."""
    disk = directory / "disk"
    disk.write_bytes(image)
    command = ["qemu-system-i386", "-M", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-vga", "std"]
    command += [
        "-display",
        "none",
        "-no-reboot",
        "-drive",
        f"file={disk},format=raw,if={'floppy' if diskette else 'ide'}",
        "-serial",
        "stdio",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said, deadline = b"", time.monotonic() + PATIENCE
    try:
        while END.encode() not in said:
            ready, _, _ = select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0.0))
            assert ready, said
            said += os.read(process.stdout.fileno(), 4096)
    finally:
        process.kill()
        process.communicate()
    return said.decode("latin-1")


def report(said: str) -> str:
    """What a program has noted, without what came through the serial port before."""
    return said[said.rindex(REPORT) + 1 :]
