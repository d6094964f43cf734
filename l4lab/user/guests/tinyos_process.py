# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo guest's only process: three pages of arithmetic in ring 3. Its kernel is `tinyos_kernel`."""

from __future__ import annotations

USER_SOURCE = """
; The process. It lives in ring 3, on one read-only page; the kernel is reached by INT 0x80 only.
process:
        mov     ebx, hello
        mov     ecx, hello_end - hello
        call    write

; --- the sieve of Eratosthenes on the heap: a byte for each number, 0 as long as it may be prime ----
        mov     esi, 0                  ; primes found
        mov     ecx, 2
.number: cmp    byte ptr [HEAP + ecx], 0        ; the first touch of each page faults: see on_page_fault
        jne     .next
        inc     esi
        mov     edx, ecx
.strike: add    edx, ecx                ; strike out its multiples
        cmp     edx, PRIMES_BELOW
        jae     .next
        mov     byte ptr [HEAP + edx], 1
        jmp     .strike
.next:  inc     ecx
        cmp     ecx, PRIMES_BELOW
        jb      .number

        mov     ebx, there_are
        mov     ecx, there_are_end - there_are
        call    write
        mov     eax, esi                ; the number, digit by digit, downwards on the stack
        mov     ebp, esp
        mov     edi, 10
.digit: mov     edx, 0
        div     edi
        add     dl, '0'
        dec     esp
        mov     [esp], dl
        test    eax, eax
        jnz     .digit
        mov     ebx, esp
        mov     ecx, ebp
        sub     ecx, esp
        and     esp, -4                 ; the digits stay; the stack is even again
        call    write
        mov     esp, ebp

; --- watch the clock: the kernel's timer interrupts us, we never call it ----------------------------
        mov     eax, [CLOCK]
        add     eax, 2
.watch: cmp     [CLOCK], eax
        jb      .watch
        mov     ebx, ticked
        mov     ecx, ticked_end - ticked
        call    write

        mov     eax, SYS_EXIT
        int     0x80

; ECX characters at EBX. Clobbers EAX.
write:  mov     eax, SYS_WRITE
        int     0x80
        ret

hello:  .ascii  "process: hello from ring 3\\n"
hello_end:
there_are: .ascii "process: there are "
there_are_end:
ticked: .ascii  " primes below 10000\\nprocess: the clock has ticked\\n"
ticked_end:
"""
