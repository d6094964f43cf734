# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo guest's kernel. Read it from top to bottom; `tinyos` assembles it, its process is `tinyos_process`.

Capitals are constants: addresses and sizes are in `tinyos`, the rest is defined where it is used. Routines keep all
registers but those that they name. "SDM" is the Intel manual, volume 3.
"""

from __future__ import annotations

SOURCE = """
PRESENT  = 1                            ; bits of page-table and page-directory entries (SDM 4.3)
WRITABLE = 2
USER     = 4
KERNEL_CS = 0x08                        ; selectors: places in the table `gdt`, byte offsets
KERNEL_DS = 0x10
USER_CS   = 0x18 + 3                    ; the low two bits ask for ring 3
USER_DS   = 0x20 + 3
TSS       = 0x28

; ==== 1. Power-on: page tables, then up to high addresses ==========================================
; Labels are addresses above KERNEL_BASE, but paging is off and we run below: until `high`, take
; KERNEL_BASE off every label that is used as an address. (Jumps are relative: they work anywhere.)
start:
        cld
        mov     edi, PAGE_DIRECTORY     ; all tables, the clock page and the stack page: zeros
        mov     ecx, (FRAMES_END - PAGE_DIRECTORY) / 4
        mov     eax, 0
        rep stosd

        mov     edi, KERNEL_TABLE       ; one table maps the first 4 MiB of memory, page by page
        mov     eax, PRESENT | WRITABLE
.fill:  mov     [edi], eax
        add     edi, 4
        add     eax, 4096
        cmp     eax, 4 << 20
        jb      .fill

        ; The same table appears twice: at 0, since the very next instructions are there,
        ; and at KERNEL_BASE, where the kernel is going to live.
        mov     dword ptr [PAGE_DIRECTORY], KERNEL_TABLE | PRESENT | WRITABLE
        mov     dword ptr [PAGE_DIRECTORY + (KERNEL_BASE >> 22) * 4], KERNEL_TABLE | PRESENT | WRITABLE
        mov     dword ptr [PAGE_DIRECTORY + (USER_CODE >> 22) * 4], USER_TABLE | PRESENT | WRITABLE | USER
        mov     eax, PAGE_DIRECTORY
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80010000         ; PG: paging; WP: read-only pages are so for the kernel too
        mov     cr0, eax
        mov     eax, high
        jmp     eax                     ; not a relative jump: to the label's true address

; ==== 2. Segments, and the last of the low addresses ===============================================
high:   lgdt    [gdt_ptr]               ; the loader's table lies at a low address, if it still exists
        jmp     KERNEL_CS:.flat
.flat:  mov     eax, KERNEL_DS
        mov     ss, ax
        mov     esp, stack_top
        mov     eax, USER_DS            ; flat like the kernel's, and valid in both rings:
        mov     ds, ax                  ; so no handler below has to change DS and ES
        mov     es, ax
        mov     eax, TSS                ; where the CPU finds the kernel's stack when an interrupt
        ltr     ax                      ; comes in ring 3

        mov     dword ptr [PAGE_DIRECTORY + KERNEL_BASE], 0
        mov     eax, cr3                ; low addresses are the process's from now on;
        mov     cr3, eax                ; writing CR3 makes the CPU forget the old translations

; ==== 3. Say who we are ============================================================================
        mov     eax, 0                  ; CPUID leaf 0: the vendor's name is in EBX, EDX, ECX
        cpuid
        mov     [vendor + 0], ebx
        mov     [vendor + 4], edx
        mov     [vendor + 8], ecx
        mov     esi, text_on
        call    print
        mov     esi, vendor
        call    print
        mov     esi, text_paging
        call    print
        mov     eax, start
        call    print_hex

; ==== 4. Interrupts: the gates, then the devices that send them ====================================
        mov     ecx, 0                  ; every vector has a gate, most of them to `unexpected`
        mov     edx, 0x8E00             ; 32-bit interrupt gate: interrupts are off in the handler
.gates: mov     eax, unexpected
        call    set_gate
        inc     ecx
        cmp     ecx, 256
        jb      .gates
        mov     ecx, 14                 ; page fault
        mov     eax, on_page_fault
        call    set_gate
        mov     ecx, 0x20               ; IRQ 0, the timer
        mov     eax, on_timer
        call    set_gate
        mov     ecx, 0x24               ; IRQ 4, the serial port
        mov     eax, on_serial
        call    set_gate
        mov     ecx, 0x27               ; IRQ 7, which a controller also sends when in doubt
        mov     eax, on_nothing
        call    set_gate
        mov     ecx, 0x80               ; system calls: a gate that ring 3 may use
        mov     edx, 0xEE00
        mov     eax, on_system_call
        call    set_gate
        lidt    [idt_ptr]

        mov     esi, devices            ; a table of writes: port, value, port, value ...
.write: lodsw
        mov     edx, eax
        lodsw
        out     dx, al
        cmp     esi, devices_end
        jb      .write
        mov     esi, text_clock
        call    print

; ==== 5. A process: its pages, then down to ring 3 =================================================
        mov     ebx, USER_TABLE + KERNEL_BASE
        mov     dword ptr [ebx + (USER_CODE >> 12 & 1023) * 4], USER_FRAME | PRESENT | USER
        mov     dword ptr [ebx + (CLOCK >> 12 & 1023) * 4], CLOCK_FRAME | PRESENT | USER
        mov     dword ptr [ebx + (STACK_TOP - 1 >> 12 & 1023) * 4], STACK_FRAME | PRESENT | WRITABLE | USER
        push    USER_DS                 ; IRET to another ring takes five words: SS, ESP,
        push    STACK_TOP
        push    0x202                   ; EFLAGS: interrupts on,
        push    USER_CS                 ; CS, EIP
        push    USER_CODE
        iret

; ==== 6. After the process: wait a while, report, end ==============================================
process_done:
        mov     esp, stack_top          ; whatever was on the stack belonged to the process's last call
        mov     esi, text_ended
        call    print
        mov     dword ptr [idle_left], IDLE_TICKS
.wait:  sti                             ; takes effect after the next instruction, so no interrupt
        hlt                             ; can slip in between and leave us asleep
        cli
        cmp     dword ptr [idle_left], 0
        jne     .wait

        mov     esi, text_newline
        call    print
        mov     eax, [page_faults]
        call    print_decimal
        mov     esi, text_faults
        call    print
        mov     eax, [system_calls]
        call    print_decimal
        mov     esi, text_calls
        call    print
        mov     eax, INTERACTIVE
        test    eax, eax
        jnz     prompt

power_off:
        mov     esi, text_off
        call    print
        mov     edx, 0x604              ; the PC's power management control register as firmware of
        mov     eax, 0x2000             ; virtual machines places it; bit 13: go to sleep state 0, off
        out     dx, ax
halted: cli                             ; where nobody listens: halt for good
        hlt
        jmp     halted

; ==== 7. Commands, when built to be interactive ====================================================
prompt: mov     esi, text_prompt
        call    print
        mov     edi, line
.char:  call    read_char
        cmp     al, 13                  ; terminals send CR, files and pipes LF
        je      .enter
        cmp     al, 10
        je      .enter
        cmp     edi, line_end
        jae     .char                   ; the line is full
        stosb
        call    print_char              ; echo
        jmp     .char
.enter: mov     byte ptr [edi], 0
        mov     al, 10
        call    print_char
        cmp     edi, line
        je      prompt                  ; nothing typed
        mov     ebx, commands
.find:  mov     esi, [ebx]              ; pairs: the command's name, what to do
        test    esi, esi
        jz      .none
        mov     edi, line
.next:  lodsb                           ; compare up to and including the zero byte
        cmp     al, [edi]
        jne     .other
        inc     edi
        test    al, al
        jnz     .next
        jmp     dword ptr [ebx + 4]
.other: add     ebx, 8
        jmp     .find
.none:  mov     esi, text_unknown
        call    print
        jmp     prompt

do_help:
        mov     esi, text_help
        call    print
        jmp     prompt
do_ticks:
        mov     eax, [CLOCK_FRAME + KERNEL_BASE]
        call    print_decimal
        mov     esi, text_ticks
        call    print
        jmp     prompt

commands: .long word_help, do_help, word_ticks, do_ticks, word_halt, power_off, 0

; Wait for a character from the serial port: AL. Clobbers EAX and ECX.
read_char:
        cli                             ; look at the buffer while the handler cannot change it
        mov     ecx, [buffer_out]
        cmp     ecx, [buffer_in]
        jne     .some
        sti
        hlt
        jmp     read_char
.some:  movzx   eax, byte ptr [buffer + ecx]
        inc     byte ptr [buffer_out]   ; the buffer has 256 places: a byte wraps around by itself
        ret

; ==== 8. Handlers ==================================================================================
; The CPU has pushed EFLAGS, CS, EIP (and SS, ESP before them when it came from ring 3).

on_timer:
        pusha
        mov     al, 0x20                ; end of interrupt: the controller may send the next one
        out     0x20, al
        inc     dword ptr [CLOCK_FRAME + KERNEL_BASE]
        cmp     dword ptr [idle_left], 0
        je      .done                   ; not waiting
        dec     dword ptr [idle_left]
        mov     eax, [idle_left]
        mov     edx, 0
        mov     ecx, TICKS_PER_DOT
        div     ecx                     ; EDX = remainder
        test    edx, edx
        jnz     .done
        mov     al, '.'
        call    print_char
.done:  popa
        iret

on_serial:
        pusha
.more:  mov     edx, COM1_LSR
        in      al, dx
        test    al, 1                   ; has another character arrived?
        jz      .done
        mov     edx, COM1
        in      al, dx
        mov     ecx, [buffer_in]
        mov     [buffer + ecx], al
        inc     byte ptr [buffer_in]
        jmp     .more
.done:  mov     al, 0x20
        out     0x20, al
        popa
        iret

on_nothing:
        iret

; System call: EAX is its number. write: text at EBX, ECX characters; exit. EAX answers 0, or -1.
on_system_call:
        inc     dword ptr [system_calls]
        cmp     eax, SYS_EXIT
        je      process_done
        cmp     eax, SYS_WRITE
        jne     .refuse
        cmp     ebx, USER_CODE          ; all of the text must lie in the process's part of memory,
        jb      .refuse                 ; else it could have the kernel's secrets printed
        cmp     ebx, STACK_TOP
        jae     .refuse
        mov     eax, STACK_TOP
        sub     eax, ebx
        cmp     ecx, eax
        ja      .refuse
        pusha
        mov     esi, ebx
.next:  jecxz   .done
        lodsb                           ; may page-fault in ring 0: on_page_fault copes
        call    print_char
        dec     ecx
        jmp     .next
.done:  popa
        mov     eax, 0
        iret
.refuse: mov    eax, -1
        iret

; Page fault: an error code lies on top of the stack, the address is in CR2 (SDM 4.7).
; The heap gets its memory here, when a page of it is touched for the first time.
on_page_fault:
        pusha                           ; 32 bytes: error code at ESP + 32, EIP + 36, CS + 40
        mov     esi, text_fault
        call    print
        mov     eax, cr2
        call    print_hex
        mov     esi, text_ring
        call    print
        mov     al, [esp + 40]
        and     al, 3                   ; the low bits of the CS that was interrupted
        add     al, '0'
        call    print_char
        mov     ebx, cr2
        cmp     ebx, HEAP
        jb      .kill
        cmp     ebx, HEAP_END
        jae     .kill

        inc     dword ptr [page_faults]
        mov     edi, [next_frame]       ; a fresh page is zeroed: nobody shall read what another left
        add     edi, KERNEL_BASE
        mov     ecx, 1024
        mov     eax, 0
        rep stosd
        mov     eax, [next_frame]
        add     dword ptr [next_frame], 4096
        or      eax, PRESENT | WRITABLE | USER
        shr     ebx, 12
        and     ebx, 1023               ; the page's place in the table
        mov     [USER_TABLE + KERNEL_BASE + ebx*4], eax
        mov     esi, text_mapped
        call    print
        popa
        add     esp, 4                  ; IRET does not take the error code away
        iret                            ; and the instruction is tried again
.kill:  mov     esi, text_killed
        call    print
        jmp     process_done

unexpected:
        mov     esi, text_unexpected
        call    print
        jmp     halted

; ==== 9. Small helpers =============================================================================
; Gate ECX: handler EAX, kind EDX. The address goes into two halves (SDM 6.11).
set_gate:
        mov     [idt + ecx*8 + 0], ax
        mov     word ptr [idt + ecx*8 + 2], KERNEL_CS
        mov     [idt + ecx*8 + 4], dx
        shr     eax, 16
        mov     [idt + ecx*8 + 6], ax
        ret

; The text at ESI, up to its zero byte.
print:  pusha
.next:  lodsb
        test    al, al
        jz      .done
        call    print_char
        jmp     .next
.done:  popa
        ret

; EAX as 0x and eight digits.
print_hex:
        pusha
        mov     ebx, eax
        mov     esi, text_0x
        call    print
        mov     ecx, 8
.next:  rol     ebx, 4                  ; the highest digit becomes the lowest
        mov     eax, ebx
        and     eax, 15
        mov     al, [digits + eax]
        call    print_char
        dec     ecx
        jnz     .next
        popa
        ret

; EAX as a decimal number.
print_decimal:
        pusha
        mov     ebx, 10
        mov     ecx, 0
.split: mov     edx, 0
        div     ebx                     ; the digits come lowest first: pile them up
        push    edx
        inc     ecx
        test    eax, eax
        jnz     .split
.next:  pop     eax
        add     al, '0'
        call    print_char
        dec     ecx
        jnz     .next
        popa
        ret

; The character AL; a line feed becomes CR LF, as terminals want it.
print_char:
        pusha
        cmp     al, 10
        jne     .one
        mov     al, 13
        call    print_char
        mov     al, 10
.one:   mov     ecx, eax
        mov     edx, COM1_LSR
.wait:  in      al, dx                  ; may the next one be written?
        test    al, LSR_EMPTY
        jz      .wait
        mov     eax, ecx
        mov     edx, COM1
        out     dx, al
        popa
        ret

; ==== 10. Data =====================================================================================
; What the devices are told at the start, in this order.
DIVISOR = 11932                         ; 1193182 Hz / 100
devices:
        .word   0x20, 0x11, 0xA0, 0x11  ; both interrupt controllers: initialise, three more words follow
        .word   0x21, 0x20, 0xA1, 0x28  ; vectors from 0x20 and 0x28: away from the CPU's own exceptions
        .word   0x21, 0x04, 0xA1, 0x02  ; the second sits on line 2 of the first
        .word   0x21, 0x01, 0xA1, 0x01  ; 8086 mode
        .word   0x21, 0xEE, 0xA1, 0xFF  ; masks: only the timer (line 0) and the serial port (line 4)
        .word   0x43, 0x34              ; timer channel 0, low byte then high byte, mode 2: again and again
        .word   0x40, DIVISOR & 255, 0x40, DIVISOR >> 8
        .word   COM1 + 3, 0x03          ; serial port: 8 bits, no parity
        .word   COM1 + 2, 0x07          ; FIFOs on and empty
        .word   COM1 + 4, 0x0B          ; ready; the interrupt line is connected
        .word   COM1 + 1, 0x01          ; interrupt when a character arrives
devices_end:

text_on:      .asciz "tinyos on "
vendor:       .space 13
text_paging:  .asciz "\\npaging is on, the kernel is at "
text_clock:   .asciz "\\nthe clock ticks at 100 Hz\\n"
text_fault:   .asciz "page fault at "
text_ring:    .asciz " from ring "
text_mapped:  .asciz ": mapped a fresh page\\n"
text_killed:  .asciz ": the process is killed\\n"
text_ended:   .asciz "process has ended\\nidle "
text_faults:  .asciz " page faults, "
text_calls:   .asciz " system calls\\n"
text_off:     .asciz "powering off\\n"
text_unexpected: .asciz "\\nunexpected interrupt: halted\\n"
text_prompt:  .asciz "tiny> "
text_help:    .asciz "commands: help, ticks, halt\\n"
text_ticks:   .asciz " ticks\\n"
text_unknown: .asciz "no such command: try help\\n"
text_newline: .asciz "\\n"
text_0x:      .asciz "0x"
digits:       .ascii "0123456789abcdef"
word_help:    .asciz "help"
word_ticks:   .asciz "ticks"
word_halt:    .asciz "halt"

        .align  8, 0
; Segments (SDM 3.4.5): all start at 0 and reach to the end; they differ in ring, code or data.
gdt:    .quad   0                       ; the null selector
        .quad   0x00CF9B000000FFFF      ; KERNEL_CS
        .quad   0x00CF93000000FFFF      ; KERNEL_DS
        .quad   0x00CFFB000000FFFF      ; USER_CS
        .quad   0x00CFF3000000FFFF      ; USER_DS
        .word   103, tss & 0xFFFF       ; TSS: limit, and its address in three parts
        .byte   tss >> 16 & 255, 0x89, 0, tss >> 24
gdt_ptr: .word  $ - gdt - 1
        .long   gdt
idt_ptr: .word  256 * 8 - 1
        .long   idt
tss:    .long   0, stack_top, KERNEL_DS ; of the whole structure we use only this: stack for ring 0
        .space  88
        .word   0, 104                  ; no I/O permission map: ring 3 may use no port

        .align  4, 0
next_frame:   .long FREE_FRAMES
idle_left:    .long 0
page_faults:  .long 0
system_calls: .long 0
buffer_in:    .long 0                   ; characters typed: the handler puts in here,
buffer_out:   .long 0                   ; read_char takes out there
buffer:       .space 256
line:         .space 64
line_end:     .byte 0
        .align  8, 0
idt:    .space  256 * 8
        .space  4096
stack_top:
"""
