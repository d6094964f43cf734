# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guests that talk: one sends lines over its second serial port, the other sends each back in reverse.

Each prints on its own console what it got. An empty line ends both. Where they share a page of memory, the caller
leaves a note there before its first line, and the answerer reads it aloud.
"""

from __future__ import annotations

from collections.abc import Iterable

from l4lab.errors import LabError
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest
from l4lab.user.monitor.link import COM2, SHARED_PAGE

LONGEST = 60  # characters of a line
NOTE = "this page is yours and mine"

_CALLER = """
start:  mov     esp, STACK
        call    prepare
        mov     eax, SHARES
        test    eax, eax
        jz      .talk
        mov     esi, note
        mov     edi, SHARED_PAGE
        mov     ecx, NOTE_SIZE
        rep     movsb
.talk:  mov     ebx, lines
.next:  mov     edx, COM2
        mov     esi, ebx
        call    send                    ; up to and including the new line
        mov     ebx, esi
        cmp     byte ptr [ebx - 2], 10  ; was the line empty?
        je      halt
        call    receive
        mov     esi, heard
        mov     edx, COM1
        call    send
        mov     esi, line
        call    send
        jmp     .next
heard:  .ascii  "back came: "
        .byte   0
        .byte   10                      ; in front of the lines: before an empty one there are two new lines
lines:  LINES
        .byte   10
note:   .ascii  "NOTE"
        .byte   10
"""

_ANSWERER = """
start:  mov     esp, STACK
        call    prepare
.next:  call    receive
        cmp     byte ptr [line], 10
        je      halt
        mov     eax, SHARES
        test    eax, eax
        jz      .say
        cmp     byte ptr [read_aloud], 0
        jne     .say
        mov     byte ptr [read_aloud], 1
        mov     edx, COM1
        mov     esi, reads
        call    send
        mov     esi, SHARED_PAGE
        call    send
.say:   mov     edx, COM1
        mov     esi, got
        call    send
        mov     esi, line
        call    send
        mov     esi, edi                ; behind the new line
        dec     esi
        mov     edx, COM2
.back:  cmp     esi, line
        je      .end
        dec     esi
        mov     al, [esi]
        out     dx, al
        jmp     .back
.end:   mov     al, 10
        out     dx, al
        jmp     .next
got:    .ascii  "there came: "
        .byte   0
reads:  .ascii  "the page says: "
        .byte   0
read_aloud: .byte 0
"""

_COMMON = """
; Interrupts: only the second serial port's, and all that its handler does is to have HLT end.
prepare:
        cld
        lgdt    [gdt_pointer]           ; gates need a table that is really there
        mov     eax, on_serial
        mov     [gate], ax
        shr     eax, 16
        mov     [gate + 6], ax
        lidt    [idt_pointer]
        mov     esi, devices
.write: lodsw
        mov     edx, eax
        lodsw
        out     dx, al
        cmp     esi, devices_end
        jb      .write
        ret

on_serial:
        push    eax
        mov     al, 0x20
        out     0x20, al
        pop     eax
        iretd

; A line from the second serial port to `line`, the new line included, a zero behind it; EDI: behind the new line.
receive:
        mov     edi, line
.byte:  cli
        mov     edx, COM2 + 5
        in      al, dx
        test    al, 1
        jnz     .take
        sti                             ; takes effect after the next instruction: no interrupt is slept through
        hlt
        jmp     .byte
.take:  mov     edx, COM2
        in      al, dx
        stosb
        cmp     al, 10
        je      .done
        cmp     edi, line_end
        jb      .byte
.done:  mov     byte ptr [edi], 0
        ret

; The text at ESI, up to a zero or a new line, to the serial port EDX; ESI: behind it.
send:   lodsb
        test    al, al
        jz      .done
        out     dx, al
        cmp     al, 10
        jne     send
.done:  ret

halt:   cli
        hlt
        jmp     halt

devices:
        .word   0x20, 0x11, 0x21, 0x20, 0x21, 0x04, 0x21, 0x01, 0x21, 0xF7   ; vectors from 0x20, all masked but line 3
        .word   0xA0, 0x11, 0xA1, 0x28, 0xA1, 0x02, 0xA1, 0x01, 0xA1, 0xFF
        .word   COM2 + 1, 0x01, COM2 + 4, 0x0B                               ; announce what arrives
devices_end:
        .align  8
gdt:    .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
gdt_pointer: .word 23
        .long   gdt
idt_pointer: .word 0x23 * 8 + 7
        .long   gate - 0x23 * 8
        .align  8
gate:   .word   0, 0x08, 0x8E00, 0
line:   .space  LONGEST + 1
line_end: .space 2
"""


def caller(lines: Iterable[str], shares: bool = False) -> FlatGuest:
    """Sends lines, and prints the answers."""
    lines = tuple(lines)
    for line in lines:
        if not 0 < len(line) <= LONGEST or not line.isascii() or not line.isprintable() or set(line) & {'"', "\\"}:
            raise LabError(f"{line!r} cannot be sent. Take 1 to {LONGEST} plain characters, no quotes.")
    text = "\n        ".join(f'.ascii "{line}"\n        .byte 10' for line in lines)
    source = _CALLER.replace("LINES\n", text + "\n").replace('"NOTE"', f'"{NOTE}"')
    return _build(source + _COMMON, shares, "Sends lines to another guest, which sends them back in reverse.")


def answerer(shares: bool = False) -> FlatGuest:
    """Sends each line that it gets back in reverse."""
    return _build(_ANSWERER + _COMMON, shares, "Sends each line that it gets back in reverse.")


def _build(source: str, shares: bool, description: str) -> FlatGuest:
    constants = {
        **COM1,
        "COM2": COM2,
        "STACK": 0x120000,
        "SHARED_PAGE": SHARED_PAGE,
        "SHARES": int(shares),
        "LONGEST": LONGEST,
    }
    return FlatGuest.of(assemble(source, ORIGIN, constants=constants | {"NOTE_SIZE": len(NOTE) + 1}), description)
