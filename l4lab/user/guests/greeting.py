# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest of the first exercise: it asks the CPU its name and greets by the serial port.

Forty instructions that cause two kinds of VM exit, CPUID and port I/O; a monitor that answers both correctly makes
the greeting appear. The exercise itself lives in `exercises/`.
"""

from __future__ import annotations

from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest

SOURCE = """
start:
        mov     esp, stack_top          ; nobody promised us a stack

; --- ask the CPU who made it ----------------------------------------------------------------------
        mov     eax, 0                  ; CPUID leaf 0: the highest leaf in EAX,
        cpuid                           ; and the vendor's name, 12 characters, in EBX, EDX, ECX
        mov     [vendor + 0], ebx       ; in this order: it really is B, D, C
        mov     [vendor + 4], edx
        mov     [vendor + 8], ecx

; --- say hello ------------------------------------------------------------------------------------
        mov     esi, hello
        call    print
        mov     esi, vendor
        call    print
        mov     esi, guest
        call    print

; --- the end --------------------------------------------------------------------------------------
        cli                             ; with interrupts off nothing can wake
halted: hlt                             ; a CPU that halts: this machine is done
        jmp     halted

; Send the text at ESI, up to its zero byte, to the serial port.
print:
        lodsb                           ; AL = [ESI], ESI = ESI + 1
        test    al, al
        jz      .done
        mov     ah, al                  ; keep the character: IN needs AL
        mov     dx, COM1_LSR
.wait:  in      al, dx                  ; line status register:
        test    al, LSR_EMPTY           ; may the next character be written?
        jz      .wait
        mov     al, ah
        mov     dx, COM1
        out     dx, al
        jmp     print
.done:  ret

hello:  .asciz  "Hello from "
vendor: .space  13                      ; twelve characters and a zero
guest:  .asciz  ", guest!\\r\\n"
        .align  16
        .space  256
stack_top:
"""


def build() -> FlatGuest:
    """The guest, at the usual place."""
    return FlatGuest.of(
        assemble(SOURCE, ORIGIN, constants=COM1), "Greets by the serial port with the CPU's vendor name."
    )


def expected_console(vendor: str) -> str:
    """What it sends when CPUID leaf 0 names this vendor."""
    return f"Hello from {vendor}, guest!\r\n"
