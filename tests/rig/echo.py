# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with nothing but a screen and a keyboard."""

from __future__ import annotations

from l4lab.user.asm import assemble
from l4lab.user.guests.flat import ORIGIN, FlatGuest

# Echoes keys on the screen, by polling: letters a to f only, and Enter, which begins a line with a prompt.
_SOURCE = """
        mov     edi, 0xB8000
        mov     ebx, edi
prompt: mov     word ptr [edi], 0x0F00 + '>'
        mov     word ptr [edi + 2], 0x0720
        add     edi, 4
.key:   mov     ecx, edi
        sub     ecx, 0xB8000
        shr     ecx, 1
        mov     edx, CRTC               ; the cursor goes where the next letter will be
        mov     al, 15
        mov     ah, cl
        out     dx, ax
        mov     al, 14
        mov     ah, ch
        out     dx, ax
.wait:  mov     ecx, 4000               ; two fifths of a millisecond
.rest:  .space  99, 0x90
        loop    .rest
        in      al, 0x64
        test    al, 1
        jz      .wait
        in      al, 0x60
        cmp     al, 0x1C                ; Enter
        je      .line
        mov     esi, keys
        movzx   eax, al
        cmp     eax, 0x39
        jae     .wait                   ; released
        mov     al, byte ptr [esi + eax]
        test    al, al
        jz      .wait
        mov     ah, 7
        stosw
        jmp     .key
.line:  add     ebx, 160
        mov     edi, ebx
        jmp     prompt
keys:   .space  0x1E
        .ascii  "a"
        .space  1
        .ascii  "df"
        .space  0x2E - 0x22
        .ascii  "c"
        .space  1
        .ascii  "b"
        .space  0x40
"""


def echo(crtc: int) -> FlatGuest:
    """The guest, which moves the cursor by this port."""
    return FlatGuest.of(assemble(_SOURCE, ORIGIN, constants={"CRTC": crtc}), "Echoes keys on its screen.")


ECHO = echo(0x3D4)
ECHO_WITHOUT_CURSOR = echo(0x3B4)  # where a monochrome adapter would have it, and nobody is
