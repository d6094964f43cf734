# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with two CPUs, which count to a number together: paging on, one counter, one lock.

CPU 0 builds the page tables and starts CPU 1, which gets a directory of its own; both lead to the same page tables.
Each CPU adds one to the counter, again and again, in three instructions of which no two belong together: load, add,
store. Only the lock around them makes the sum exact; without it, what one CPU adds in the midst of it is lost.
"""

from __future__ import annotations

from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest
from l4lab.user.monitor.together import START_PORT

SOURCE = """
DIRECTORY_0 = 0x120000
DIRECTORY_1 = 0x121000
TABLE       = 0x122000
STACK_0     = 0x124000
STACK_1     = 0x125000
HIGH        = 0x40000000                ; where the shared page is seen, besides at its own address

start:  mov     esp, STACK_0
        cld
        mov     edi, DIRECTORY_0        ; both directories and the table: zeros
        mov     ecx, 3 * 1024
        mov     eax, 0
        rep     stosd
        mov     edi, TABLE              ; the table maps the first 4 MiB as they are,
        mov     eax, 3                  ; present, writable
.fill:  mov     [edi], eax
        add     edi, 4
        add     eax, 4096
        cmp     eax, 4 << 20
        jb      .fill
        mov     eax, TABLE + 3
        mov     [DIRECTORY_0], eax
        mov     [DIRECTORY_1], eax
        mov     [DIRECTORY_0 + (HIGH >> 22) * 4], eax   ; and HIGH leads to the same memory
        mov     [DIRECTORY_1 + (HIGH >> 22) * 4], eax

        mov     eax, second             ; CPU 1 begins there
        mov     edx, START_PORT + 4
        out     dx, eax
        mov     eax, DIRECTORY_0
        call    paging_on
        mov     ebx, HIGH
        call    count
.wait:  cmp     dword ptr [ready], 0
        jne     .both
        pause
        jmp     .wait
.both:  mov     eax, [counter]
        call    print_decimal
        cli
done:   hlt
        jmp     done

second: mov     esp, STACK_1
        mov     eax, DIRECTORY_1
        call    paging_on
        mov     ebx, 0
        call    count
        mov     dword ptr [ready], 1
parked: hlt
        jmp     parked

; EAX: the page directory.
paging_on:
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        ret

; Add TURNS to the counter, which is seen at [EBX + counter].
count:  mov     ecx, TURNS
.turn:  mov     eax, LOCKING
.lock:  xchg    eax, [ebx + lock_]      ; a CPU does it undivided: nobody comes between load and store
        test    eax, LOCKING
        jz      .mine
        pause
        jmp     .lock
.mine:  mov     eax, [ebx + counter]
        add     eax, 1
        mov     [ebx + counter], eax
        mov     dword ptr [ebx + lock_], 0
        nop                             ; with eleven instructions, time slices end at each of them in turn
        dec     ecx
        jnz     .turn
        ret

; Print EAX in decimal, and a new line.
print_decimal:
        mov     esi, digits_end
.digit: mov     edx, 0
        mov     ecx, 10
        div     ecx
        add     dl, '0'
        dec     esi
        mov     [esi], dl
        test    eax, eax
        jnz     .digit
.print: lodsb
        mov     edx, COM1
        out     dx, al
        cmp     al, 10
        jne     .print
        ret

        .align  4
digits: .space  10
digits_end: .byte 10
        .align  4096
counter: .long  0
lock_:  .long   0
ready:  .long   0
"""


def build(turns: int, locking: bool = True) -> FlatGuest:
    """Both CPUs add one `turns` times."""
    constants = {**COM1, "START_PORT": START_PORT, "TURNS": turns, "LOCKING": int(locking)}
    return FlatGuest.of(assemble(SOURCE, ORIGIN, constants=constants), f"Two CPUs count to {2 * turns} together.")
