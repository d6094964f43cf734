# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of BIOS calls as a boot disk that makes them one after the other and reports all registers after each."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.user.monitor.realmode import END, boot_disk, report

REGISTERS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "es")
REPORTED = (*REGISTERS, "flags")  # carry and zero
LOOK = 0xFE  # no vector: looks at the adapter, the data area and the text buffer, and shows them as registers

_PROGRAM = """
        mov     word ptr [row], table
again:  mov     si, [row]
        cmp     byte ptr [si], 0
        je      ending
        mov     al, [si]
        cmp     al, LOOK
        je      look
        mov     [vector + 1], al
        jmp     .load                   ; the instruction was changed
.load:  mov     bx, [si + 4]
        mov     cx, [si + 6]
        mov     dx, [si + 8]
        mov     di, [si + 12]
        mov     bp, [si + 14]
        mov     ax, [si + 16]
        mov     es, ax
        mov     ax, [si + 2]
        mov     si, [si + 10]
        test    sp, sp                  ; carry and zero are clear
vector: int     0x10
        mov     cs:[out], ax
        mov     cs:[out + 2], bx
        mov     cs:[out + 4], cx
        mov     cs:[out + 6], dx
        mov     cs:[out + 8], si
        mov     cs:[out + 10], di
        mov     cs:[out + 12], bp
        mov     ax, es
        mov     cs:[out + 14], ax
        pushf
        pop     ax
        and     ax, 0x41
        mov     cs:[out + 16], ax
told:   xor     ax, ax
        mov     ds, ax
        mov     es, ax
        cld
        mov     si, out
        mov     cx, 9
.each:  lodsw
        call    show
        loop    .each
        add     word ptr [row], 18
        jmp     again

; what there is to see of INT 10: cursor and its shape, start, height of letters, what is in the data area, the text
look:   mov     bl, 14
        call    crtc
        mov     [out], ax
        mov     bl, 12
        call    crtc
        mov     [out + 2], ax
        mov     bl, 10
        call    crtc
        mov     [out + 4], ax
        mov     ax, [0x450]             ; the first page's cursor
        mov     [out + 8], ax
        mov     ax, [0x44c]             ; bytes of a page
        mov     [out + 10], ax
        mov     ax, [0x484]             ; the last row, lines of a character
        mov     [out + 12], ax
        mov     ax, [0x449]             ; mode, columns
        mov     [out + 14], ax
        mov     bl, 8
        call    crtc
        and     ax, 0x1f                ; of register 9
        mov     [out + 16], ax
        mov     ax, 0xb800
        mov     es, ax
        xor     di, di
        xor     bx, bx
.sum:   rol     bx, 1
        add     bx, es:[di]
        add     di, 2
        cmp     di, 0x7000              ; all pages of 80 by 25
        jb      .sum
        mov     [out + 6], bx
        jmp     told
crtc:   mov     dx, 0x3d4               ; two registers from BL on, the first one in AH
        mov     al, bl
        out     dx, al
        inc     dx
        in      al, dx
        mov     ah, al
        dec     dx
        mov     al, bl
        inc     al
        out     dx, al
        inc     dx
        in      al, dx
        ret
row:    .word   0
out:    .word   0, 0, 0, 0, 0, 0, 0, 0, 0
table:
"""


@dataclass(frozen=True)
class Call:
    """One call: vector and registers, zero where not given. `apart`: registers in which two BIOSes may differ."""

    vector: int
    registers: dict[str, int] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"INT {self.vector:02X} " + " ".join(f"{name}={value:04x}" for name, value in self.registers.items())


def disk_of(calls: list[Call], size: int, data: dict[int, bytes] | None = None) -> bytes:
    """A boot disk with the program, and with data at addresses behind it."""
    source = _PROGRAM.replace("LOOK", hex(LOOK))
    for call in calls:
        values = (call.vector, *(call.registers.get(name, 0) for name in REGISTERS))
        source += f"        .word   {', '.join(map(hex, values))}\n"
    source += "        .word   0\n"
    for address, contents in (data or {}).items():
        source += f"        .org    {address:#x}\n        .byte   {', '.join(map(hex, contents))}\n"
    return boot_disk(source, size)


def rows(calls: list[Call], said: str) -> list[str]:
    """What was reported after each call, in lines."""
    words = report(said).removesuffix(END).split()
    lines = []
    for number, call in enumerate(calls):
        values = dict(zip(REPORTED, words[9 * number : 9 * number + 9], strict=True))
        shown = " ".join(f"{name}={value}" for name, value in values.items() if name not in call.apart)
        lines.append(f"{call}: {shown}")
    return lines
