# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that each do one kind of work, to be run by several engines: by the lab, by others' emulators.

Each prints `>`, works, prints the eight hexadecimal digits of a checksum and a newline by the first serial port, and
halts with interrupts off. So anybody who hears the serial port can tell when the work began and ended, and whether it
was the same work. `python -m l4lab.user.guests.workloads FOLDER` writes them as files for any Multiboot loader.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from l4lab.errors import LabError
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest, multiboot_image

BEGIN: Final = b">"
END: Final = b"\n"

# The work stands where BODY is: it has its number of turns in ECX, and leaves its checksum in EAX. It lies in a page of
# its own, and so do TABLE and OTHER, 64 KiB each.
_FRAME = """
start:  mov     esp, stack
        cld
        mov     al, '>'
        call    put
        mov     ecx, TURNS
        call    work
        mov     ebx, eax
        mov     ecx, 8
.digit: rol     ebx, 4
        mov     al, bl
        and     al, 15
        add     al, '0'
        cmp     al, '9'
        jbe     .put
        add     al, 39                  ; from the character behind '9' to 'a'
.put:   call    put
        dec     ecx
        jnz     .digit
        mov     al, 10
        call    put
        cli
halted: hlt
        jmp     halted

put:    mov     ah, al
        mov     dx, COM1_LSR
.wait:  in      al, dx
        test    al, LSR_EMPTY
        jz      .wait
        mov     al, ah
        mov     dx, COM1
        out     dx, al
        ret
        .align  4096
work:
BODY
        ret
"""

# Fills TABLE with 16384 words that follow no pattern.
_FILL = """
        xor     ebx, ebx
.fill:  imul    eax, ebx, 0x9E3779B1
        mov     [TABLE + ebx*4], eax
        inc     ebx
        cmp     ebx, 16384
        jb      .fill
        xor     ebx, ebx
        mov     eax, 1
"""

_REGISTERS = """
        mov     eax, 1                  ; a xorshift generator: Marsaglia, "Xorshift RNGs", 2003
.next:  mov     edx, eax
        shl     edx, 13
        xor     eax, edx
        mov     edx, eax
        shr     edx, 17
        xor     eax, edx
        mov     edx, eax
        shl     edx, 5
        xor     eax, edx
        dec     ecx
        jnz     .next
"""

_LOADS = f"""{_FILL}
.next:  add     eax, [TABLE + ebx*4]
        movzx   edx, byte ptr [TABLE + ebx*4 + 1]
        xor     eax, edx
        movzx   edx, word ptr [TABLE + ebx*4 + 2]
        add     eax, edx
        add     ebx, 7
        and     ebx, 16383
        dec     ecx
        jnz     .next
"""

_STORES = f"""{_FILL}
.next:  mov     [TABLE + ebx*4], eax
        mov     [OTHER + ebx*2], ax
        mov     [OTHER + ebx + 32768], al
        add     eax, 0x9E3779B1
        add     ebx, 7
        and     ebx, 16383
        dec     ecx
        jnz     .next
        mov     ecx, 16384
.sum:   add     eax, [TABLE + ecx*4 - 4]
        add     eax, [OTHER + ecx*4 - 4]
        rol     eax, 1
        dec     ecx
        jnz     .sum
"""

_BRANCHES = """
        mov     eax, 1                  ; a linear congruential generator decides which way to go
        xor     ebx, ebx
.next:  imul    eax, eax, 1664525
        add     eax, 1013904223
        test    eax, 0x10000
        jz      .a
        add     ebx, 3
.a:     test    eax, 0x2000000
        jnz     .b
        xor     ebx, eax
.b:     mov     edx, eax
        shr     edx, 30
        jmp     [.ways + edx*4]
.way0:  inc     ebx
        jmp     .on
.way1:  rol     ebx, 3
        jmp     .on
.way2:  not     ebx
        jmp     .on
.way3:  sub     ebx, eax
.on:    cmp     eax, ebx
        ja      .more
        xor     ebx, 0x5555
.more:  dec     ecx
        jnz     .next
        mov     eax, ebx
        ret
        .align  4
.ways:  .long   .way0, .way1, .way2, .way3
"""

_CALLS = """
        xor     esi, esi                ; Fibonacci numbers the slow way, so many times
.next:  mov     eax, 16
        call    fibonacci
        add     esi, eax
        rol     esi, 1
        dec     ecx
        jnz     .next
        mov     eax, esi
        ret
fibonacci:
        cmp     eax, 2
        jb      .done
        push    ebx
        push    eax
        dec     eax
        call    fibonacci
        mov     ebx, eax
        pop     eax
        sub     eax, 2
        call    fibonacci
        add     eax, ebx
        pop     ebx
.done:  ret
"""

_STRINGS = f"""{_FILL}
        mov     ebp, ecx
        xor     ebx, ebx
.next:  mov     esi, TABLE
        mov     edi, OTHER
        mov     ecx, 4096
        rep     movsd
        mov     edi, OTHER + 1024
        mov     ecx, 3000
        mov     eax, ebp
        rep     stosb
        mov     esi, TABLE
        mov     edi, OTHER
        mov     ecx, 16384
        repe    cmpsb
        add     ebx, ecx                ; how much of it is left
        mov     edi, OTHER
        mov     ecx, 16384
        mov     al, 0x77
        repne   scasb
        rol     ebx, 1
        add     ebx, ecx
        mov     esi, OTHER
        mov     ecx, 256
.one:   lodsd
        add     ebx, eax
        dec     ecx
        jnz     .one
        dec     ebp
        jnz     .next
        mov     eax, ebx
"""

# Both compute x := x * (1 - x) * 3.75 over and over, which is sensitive to each bit, and add up what comes.
_X87 = """
        fninit
        fld     qword ptr [.zero]       ; the sum
        fld     qword ptr [.first]
.next:  fld     qword ptr [.one]
        fsub    st(0), st(1)
        fmulp   st(1), st(0)
        fmul    qword ptr [.rate]
        fadd    st(1), st(0)
        dec     ecx
        jnz     .next
        fstp    qword ptr [OTHER]
        fstp    qword ptr [OTHER + 8]
        mov     eax, [OTHER]
        add     eax, [OTHER + 8]
        xor     eax, [OTHER + 12]
        ret
        .align  8
.zero:  .quad   0
.first: .quad   0x3FD3333333333333      ; 0.3
.one:   .quad   0x3FF0000000000000      ; 1
.rate:  .quad   0x400E000000000000      ; 3.75
"""

_SSE = """
        mov     eax, cr4
        or      eax, 0x200              ; OSFXSR: the system saves SSE's registers, or has none to save them for
        mov     cr4, eax
        xorps   xmm3, xmm3              ; the sum
        movsd   xmm0, qword ptr [.first]
        movsd   xmm4, qword ptr [.one]
        movsd   xmm5, qword ptr [.rate]
.next:  movapd  xmm1, xmm4
        subsd   xmm1, xmm0
        mulsd   xmm0, xmm1
        mulsd   xmm0, xmm5
        addsd   xmm3, xmm0
        dec     ecx
        jnz     .next
        movsd   qword ptr [OTHER], xmm0
        movsd   qword ptr [OTHER + 8], xmm3
        mov     eax, [OTHER]
        add     eax, [OTHER + 8]
        xor     eax, [OTHER + 12]
        ret
        .align  8
.first: .quad   0x3FD3333333333333      ; 0.3
.one:   .quad   0x3FF0000000000000      ; 1
.rate:  .quad   0x400E000000000000      ; 3.75
"""

_SELF_MODIFYING = """
        mov     eax, 1
.next:  imul    edx, ecx, 0x9E3779B1
        mov     [.patched + 1], edx     ; the immediate operand of the next instruction but one
        rol     eax, 3
.patched:
        add     eax, 0x11111111
        dec     ecx
        jnz     .next
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work; the turns make it about a third of a second in QEMU."""

    name: str
    body: str
    turns: int

    def build(self, turns: int | None = None) -> FlatGuest:
        """The guest that does it; by default as often as the bench has it."""
        turns = self.turns if turns is None else turns
        if not 1 <= turns < 1 << 32:
            raise LabError(f"{turns} turns do not fit in a register. Try a number from 1 to 4294967295.")
        names = {"TURNS": turns, "TABLE": 0x20_0000, "OTHER": 0x21_0000, "stack": 0x23_0000, **COM1}
        program = assemble(_FRAME.replace("BODY", self.body), ORIGIN, constants=names)
        return FlatGuest.of(program, f"Does {self.name} in {turns} turns, prints a checksum and halts.")


WORKLOADS: Final = (
    Workload("registers", _REGISTERS, 150_000_000),
    Workload("loads", _LOADS, 60_000_000),
    Workload("stores", _STORES, 40_000_000),
    Workload("branches", _BRANCHES, 8_000_000),
    Workload("calls", _CALLS, 6_000),
    Workload("string instructions", _STRINGS, 10_000),
    Workload("x87 floating point", _X87, 2_000_000),
    Workload("SSE2 floating point", _SSE, 12_000_000),
    Workload("self-modifying code", _SELF_MODIFYING, 20_000),
)


def main() -> None:
    """Write them all into a folder."""
    folder = Path(sys.argv[1] if len(sys.argv) == 2 else sys.exit("give a folder to write the images to"))
    folder.mkdir(parents=True, exist_ok=True)
    for workload in WORKLOADS:
        (folder / f"{workload.name.replace(' ', '-')}.bin").write_bytes(multiboot_image(workload.build()))


if __name__ == "__main__":
    main()
