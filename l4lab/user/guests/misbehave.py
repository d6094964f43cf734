# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that go wrong in a known way, so that one can see what the lab says about it and that it stays alive.

triple_fault    an exception with no handler, and none for that, and none for that either: the CPU shuts down
jump_nowhere    goes on where there is no memory
spin            an endless loop with interrupts off
hammer          reads and writes ports and model-specific registers that nobody has, then halts
noise           random bytes as code
"""

from __future__ import annotations

import random

from l4lab.user.asm import assemble
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest

NOWHERE = 0xF0000000  # far above RAM, below the ROM at the top of the address space

TRIPLE_FAULT_SOURCE = """
start:  lidt    [empty]                 ; an interrupt table without entries
        int3                            ; #BP -> no gate: #GP -> no gate: #DF -> no gate: shutdown
        hlt                             ; never reached
empty:  .word   0                       ; limit
        .long   0                       ; base
"""

JUMP_NOWHERE_SOURCE = """
start:  lidt    [empty]                 ; should the CPU find an instruction to fault on, it shall not go far
        mov     eax, NOWHERE
jump:   jmp     eax
empty:  .word   0
        .long   0
"""

SPIN_SOURCE = """
start:  cli
loop:   jmp     loop                    ; only the host's clock ends this
"""

# RDMSR and WRMSR of a register that does not exist raise #GP on a real CPU; some machines answer 0 instead. Both must
# be survivable, so the guest has a handler for #GP that counts and steps over the instruction: both are two bytes long.
HAMMER_SOURCE = """
start:  mov     esp, stack_top
        lgdt    [gdt_ptr]               ; own segments, since the handler's gate names one
        jmp     8:flat
flat:   mov     eax, 16
        mov     ds, ax
        mov     es, ax
        mov     ss, ax

        mov     eax, on_gp              ; the handler's address goes into the gate in two halves
        mov     [gate_gp + 0], ax
        shr     eax, 16
        mov     [gate_gp + 6], ax
        lidt    [idt_ptr]

        mov     eax, 0x1000             ; first something that faults on every machine, to see the handler work:
        mov     fs, ax                  ; a selector far beyond the end of the table (two bytes as well)

; --- ports: read, write, at each width ------------------------------------------------------------
        mov     esi, ports
        mov     ebx, (ports_end - ports) / 2
.port:  movzx   edx, word ptr [esi]
        in      al, dx
        in      ax, dx
        in      eax, dx
        out     dx, al
        out     dx, ax
        out     dx, eax
        add     esi, 2
        dec     ebx
        jnz     .port

; --- model-specific registers ---------------------------------------------------------------------
        mov     esi, msrs
        mov     ebx, (msrs_end - msrs) / 4
.msr:   mov     ecx, [esi]
        rdmsr
        mov     eax, 0x12345678
        mov     edx, 0
        wrmsr
        add     esi, 4
        dec     ebx
        jnz     .msr

        mov     esi, survived
.say:   lodsb
        test    al, al
        jz      .done
        mov     ah, al
        mov     dx, COM1_LSR
.wait:  in      al, dx
        test    al, LSR_EMPTY
        jz      .wait
        mov     al, ah
        mov     dx, COM1
        out     dx, al
        jmp     .say
.done:  cli
done:   hlt
        jmp     done

; #GP: the stack holds the error code, EIP, CS, EFLAGS.
on_gp:  add     dword ptr [esp + 4], 2  ; step over RDMSR or WRMSR
        inc     dword ptr [faults]
        add     esp, 4                  ; IRET does not take the error code away
        iret

faults: .long   0
survived: .asciz "survived\\r\\n"
        .align  8, 0
gdt:    .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF   ; nothing, flat code, flat data
gdt_ptr: .word  $ - gdt - 1
        .long   gdt
        .align  8, 0
idt:    .space  13 * 8                  ; vectors 0 to 12: no gate
gate_gp: .word  0, 8, 0x8E00, 0         ; offset low, selector, 32-bit interrupt gate, offset high
idt_ptr: .word  $ - idt - 1
        .long   idt
ports:  .word   PORTS
ports_end:
msrs:   .long   MSRS
msrs_end:
        .align  16
        .space  512
stack_top:
"""


def triple_fault() -> FlatGuest:
    """Shuts the CPU down by its third instruction at the latest."""
    return FlatGuest.of(assemble(TRIPLE_FAULT_SOURCE, ORIGIN), "Faults three times over: the CPU shuts down.")


def jump_nowhere() -> FlatGuest:
    """Jumps to NOWHERE."""
    program = assemble(JUMP_NOWHERE_SOURCE, ORIGIN, constants={"NOWHERE": NOWHERE})
    return FlatGuest.of(program, f"Jumps to {NOWHERE:#x}, where there is no memory.")


def spin() -> FlatGuest:
    """Never ends, never exits."""
    return FlatGuest.of(assemble(SPIN_SOURCE, ORIGIN), "Loops for ever with interrupts off.")


def hammer(seed: int = 0, count: int = 64) -> FlatGuest:
    """Uses `count` random ports and `count` random MSRs, says `survived` and halts."""
    rng = random.Random(seed)
    # Not below 0x1000, where a PC has real devices (one of them is the reset line), nor from 0xC000, where PCI has.
    ports = ", ".join(hex(rng.randrange(0x1000, 0xC000)) for _ in range(count))
    # Not the architectural ranges: writing EFER there would be a different experiment.
    msrs = ", ".join(hex(rng.randrange(0x10000, 0xC0000000)) for _ in range(count))
    source = HAMMER_SOURCE.replace("PORTS", ports).replace("MSRS", msrs)
    return FlatGuest.of(
        assemble(source, ORIGIN, constants=COM1), f"Uses {count} ports and {count} MSRs that nobody has, then halts."
    )


def noise(seed: int = 0, size: int = 4096) -> FlatGuest:
    """`size` random bytes, entered at the first one. What happens is anybody's guess."""
    contents = random.Random(seed).randbytes(size)
    return FlatGuest(
        ((ORIGIN, contents),), ORIGIN, {"start": ORIGIN}, f"Runs {size} random bytes (seed {seed}) as code."
    )
