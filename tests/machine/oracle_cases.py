# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: E501 - a program is a line, so that the table can be read
"""Programs on which guest mode is compared with QEMU's CPU, by name. Each ends in a handler, which is a HLT."""

from __future__ import annotations

import struct

from .oracle import (
    ABSENT,
    CALL_GATE,
    CALL_GATE_16,
    CODE,
    CODE_0,
    CODE_3,
    CODE_16,
    CONFORMING,
    DATA,
    DATA_0,
    DATA_3,
    DATA_16,
    DIRECTORY,
    GDT,
    HANDLERS,
    HIGH,
    IDT,
    LOCAL,
    MISSING,
    READ_ONLY,
    SMALL,
    STACK_0,
    STACK_3,
    TABLE,
    TASK_GATE,
    TSS_A,
    TSS_B,
    B,
    Case,
    descriptor,
    gate,
    tss,
)

END = "int 0x40"
LTR = "mov ax, 0x28\n ltr ax"
PAGING = f"mov eax, {DIRECTORY}\n mov cr3, eax\n mov eax, cr0\n or eax, 0x80010000\n mov cr0, eax"
LARGE = "mov eax, 0x10\n mov cr4, eax\n "
NO_CACHE = "mov eax, cr0\n or eax, 0x40000000\n mov cr0, eax\n "
VM, IOPL_3, TF, NT, AC, IF, RF = 1 << 17, 3 << 12, 1 << 8, 1 << 14, 1 << 18, 1 << 9, 1 << 16


def ring_3(body: str, flags: int = 2, data: int = DATA_3) -> str:
    """The program goes to ring 3 for `body`."""
    return f"""
        {LTR}
        push {DATA_3}
        push {STACK_3 + 0xFF0}
        push {flags}
        push {CODE_3}
        push user
        mov eax, {data}
        mov ds, eax
        mov es, eax
        iretd
    user:
        {body}"""


def v8086(body: str, flags: int = VM | IOPL_3 | 2) -> str:
    """The program goes to virtual-8086 mode for `body`."""
    return f"""
        {LTR}
        push 0x710
        push 0x720
        push 0x730
        push 0x740
        push {STACK_3 >> 4}
        push 0xff0
        push {flags}
        push {CODE >> 4}
        push user - {CODE}
        iretd
        .code16
    user:
        {body}"""


def idt(vector: int, entry: bytes) -> dict[int, bytes]:
    """One gate is another."""
    return {IDT + 8 * vector: entry}


CASES: dict[str, Case] = {
    # exceptions and their error codes
    "divide": Case("xor ecx, ecx\n div ecx"),
    "divide overflow": Case("mov edx, 5\n mov ecx, 2\n div ecx"),
    "bound": Case(f"mov eax, 9\n .byte 0x62, 0x05\n .long {HIGH}", memory={HIGH: struct.pack("<2I", 1, 8)}),
    "into": Case("mov al, 127\n add al, 127\n into"),
    "into not": Case(f"into\n {END}"),
    "int3": Case("nop\n int3"),
    "undefined": Case("ud2"),
    "lock": Case(".byte 0xf0, 0x90"),
    "long instruction": Case(".byte 0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x90"),
    "selector beyond": Case("mov eax, 0x1234\n mov ds, eax"),
    "selector not present": Case(f"mov eax, {ABSENT}\n mov es, eax"),
    "stack not present": Case(f"mov eax, {ABSENT}\n mov ss, eax"),
    "null stack": Case("xor eax, eax\n mov ss, eax"),
    "code as stack": Case(f"mov eax, {CODE_0}\n mov ss, eax"),
    "read only stack": Case(f"mov eax, {READ_ONLY}\n mov ss, eax"),
    "system segment": Case(f"mov eax, {CALL_GATE}\n mov ds, eax"),
    "null data": Case(f"xor eax, eax\n mov ds, eax\n {END}"),
    "ldt": Case(f"mov ax, {LOCAL}\n lldt ax\n mov eax, 0xf\n mov ds, eax\n {END}"),
    "ldt beyond": Case(f"mov ax, {LOCAL}\n lldt ax\n mov eax, 0x47\n mov ds, eax"),
    "no ldt": Case("xor eax, eax\n lldt ax\n mov eax, 0xf\n mov ds, eax"),
    "lldt of data": Case(f"mov ax, {DATA_0}\n lldt ax"),
    "ltr of data": Case(f"mov ax, {DATA_0}\n ltr ax"),
    "ltr": Case(f"{LTR}\n str ebx\n {END}"),
    "ltr twice": Case(f"{LTR}\n {LTR}"),
    "lar lsl": Case(f"mov eax, {SMALL}\n lar ebx, eax\n lsl ecx, eax\n verr ax\n pushfd\n verw ax\n pushfd\n {END}"),
    "sgdt": Case(f"sgdt [{DATA}]\n sidt [{DATA + 8}]\n sldt eax\n smsw ebx\n {END}"),
    "general detect free": Case(f"mov eax, 0x1234\n mov dr0, eax\n mov eax, 0x400\n mov dr7, eax\n mov ebx, dr6\n {END}"),
    # privilege
    "ring 3": Case(ring_3(END)),
    "ring 3 with interrupts": Case(ring_3("pushfd\n pop eax\n int 0x41", IF | 2)),
    "ring 3 cli": Case(ring_3("cli")),
    "ring 3 cli with iopl": Case(ring_3(f"cli\n {END}", IOPL_3 | IF | 2)),
    "ring 3 hlt": Case(ring_3("hlt")),
    "ring 3 cr0": Case(ring_3("mov eax, cr0")),
    "ring 3 dr7": Case(ring_3("mov eax, dr7")),
    "ring 3 lgdt": Case(ring_3(f"lgdt [{DATA}]")),
    "ring 3 ltr": Case(ring_3("ltr ax")),
    "ring 3 lmsw": Case(ring_3("lmsw ax")),
    "ring 3 clts": Case(ring_3("clts")),
    "ring 3 invd": Case(ring_3("invd")),
    "ring 3 gate of ring 0": Case(ring_3("int 0x0d")),
    "ring 3 gate not present": Case(ring_3("int 0x42"), memory=idt(0x42, gate(CODE_0, HANDLERS + 0x42, 0x6E))),
    "ring 3 ring 0 data": Case(ring_3(f"mov eax, {DATA_0}\n mov ds, eax")),
    "ring 3 popfd": Case(ring_3(f"push -1\n popfd\n pushfd\n pop ebx\n {END}".replace("-1", f"{0xFFFFFFFF ^ TF ^ VM:#x}"))),
    "ring 3 divide": Case(ring_3("xor ecx, ecx\n idiv ecx")),
    "ring 3 int3": Case(ring_3("int3")),
    "ring 3 int3 gate of ring 0": Case(ring_3("int3"), memory=idt(3, gate(CODE_0, HANDLERS + 3, 0x8E))),
    "ring 3 call gate": Case(ring_3(f"push 0x77\n push 0x78\n .byte 0x9a\n .long 0\n .word {CALL_GATE | 3}")),
    "ring 3 call gate of 16 bits": Case(ring_3(f"push 0x77\n push 0x78\n .byte 0x9a\n .long 0\n .word {CALL_GATE_16 | 3}")),
    "ring 3 jump through call gate": Case(ring_3(f".byte 0xea\n .long 0\n .word {CALL_GATE | 3}")),
    "ring 3 sysexit": Case(ring_3("sysexit")),
    "ring 3 wrmsr": Case(ring_3(f"mov eax, [{DATA}]\n mov ebx, [{SMALL}]\n {END}")),
    "call gate": Case(f"push 0x77\n .byte 0x9a\n .long 0\n .word {CALL_GATE}"),
    "retf to ring 3": Case(f"{LTR}\n push {DATA_3}\n push {STACK_3}\n push {CODE_3}\n push user\n mov eax, {DATA_0}\n mov ds, eax\n retf\n user: {END}"),
    "retf to absent": Case(f"push {ABSENT}\n push 0\n retf"),
    "iret to nowhere": Case("push 2\n push 0x200\n push 0\n iretd"),
    "iret to data": Case(f"push 2\n push {DATA_0}\n push 0\n iretd"),
    "iret 16": Case(f".byte 0x66\n push 0x246\n .byte 0x66\n push {CODE_0}\n .byte 0x66\n push there\n .byte 0x66\n iretd\n there: {END}"),
    "conforming": Case(f".byte 0xea\n .long there\n .word {CONFORMING}\n there: {END}"),
    "ring 3 conforming": Case(ring_3(f".byte 0xea\n .long there\n .word {CONFORMING}\n there: mov eax, cs\n {END}")),
    "far jump to data": Case(f".byte 0xea\n .long 0\n .word {DATA_0}"),
    "far jump to absent": Case(f".byte 0xea\n .long 0\n .word {ABSENT}"),
    "far call": Case(f".byte 0x9a\n .long there\n .word {CODE_0}\n nop\n there: {END}"),
    "far call 16": Case(f".byte 0xea\n .long there\n .word {CODE_16}\n .code16\n there: push 5\n .byte 0x0e\n .byte 0xcd, 0x40"),
    "16-bit stack": Case(f"mov eax, {DATA_16}\n mov ss, eax\n mov esp, 0x12349008\n push 5\n push 6\n {END}"),
    "stack of 16 bits wraps": Case(f"mov eax, {DATA_16}\n mov ss, eax\n mov esp, 0x12340004\n mov ebx, esp\n int 0x43"),
    # gates
    "trap gate": Case("sti\n int 0x42", memory=idt(0x42, gate(CODE_0, HANDLERS + 0x42, 0x8F))),
    "interrupt gate of 16 bits": Case("sti\n int 0x42", memory=idt(0x42, gate(CODE_0, HANDLERS + 0x42, 0x86))),
    "trap gate of 16 bits": Case("mov esp, 0x9ffe\n int 0x42", memory=idt(0x42, gate(CODE_0, HANDLERS + 0x42, 0x87))),
    "error code through 16 bits": Case("mov eax, 0x300\n mov ds, eax", memory=idt(13, gate(CODE_0, HANDLERS + 13, 0x86))),
    "ring 3 gate of 16 bits": Case(ring_3("int 0x42"), memory=idt(0x42, gate(CODE_0, HANDLERS + 0x42, 0xE6))),
    "gate to conforming": Case(ring_3("int 0x42"), memory=idt(0x42, gate(CONFORMING, CODE + 0x400, 0xEE)) | {CODE + 0x400: b"\xcd\x40"}),
    "gate to null": Case("int 0x42", memory=idt(0x42, gate(0, 0, 0x8E))),
    "gate to data": Case("int 0x42", memory=idt(0x42, gate(DATA_0, 0, 0x8E))),
    "gate to absent": Case("int 0x42", memory=idt(0x42, gate(ABSENT, 0, 0x8E))),
    "gate to outer": Case("int 0x42", memory=idt(0x42, gate(CODE_3, 0, 0x8E))),
    "gate of another kind": Case("int 0x42", memory=idt(0x42, gate(CODE_0, 0, 0x8C))),
    "gate beyond": Case("int 0xf0"),
    # faults in deliveries
    "double fault by gates": Case("xor ecx, ecx\n div ecx", memory=idt(0, gate(DATA_0, 0, 0x8E))),
    "double fault by absent gates": Case("mov eax, 0x300\n mov ds, eax", memory=idt(13, gate(CODE_0, 0, 0x0E))),
    "page fault without gate": Case(f"{PAGING}\n mov eax, [{MISSING}]", memory=idt(14, gate(0, 0, 0x8E))),
    "page fault on the stack": Case(f"{PAGING}\n mov esp, {MISSING + 8}\n push 1", memory=idt(8, gate(TASK_GATE, 0, 0x8E))),
    "benign then fault": Case("ud2", memory=idt(6, gate(0x300, 0, 0x8E)), manual={0x9FE0: 0x301}),
    "ring 3 stack not writable": Case(ring_3(END), memory={TSS_A: tss(ss0=READ_ONLY)}),
    "ring 3 stack null": Case(ring_3(END), memory={TSS_A: tss(ss0=0)}),
    "ring 3 stack of ring 3": Case(ring_3(END), memory={TSS_A: tss(ss0=DATA_3)}),
    "ring 3 stack beyond": Case(ring_3(END), memory={TSS_A: tss(ss0=0x300)}),
    "ring 3 tss too small": Case(ring_3(END), memory={GDT + 0x28: descriptor(TSS_A, 8, 0x89)}),
    "triple fault": Case("ud2", memory={IDT + 8 * 6: bytes(8), IDT + 8 * 13: bytes(8), IDT + 8 * 8: bytes(8)}),
    "no idt": Case(f"lidt [{HIGH}]\n ud2", memory={HIGH: bytes(8)}),
    # paging
    "paging": Case(f"{PAGING}\n mov [{HIGH}], eax\n mov ebx, [{DATA}]\n {END}"),
    "page not present": Case(f"{PAGING}\n mov eax, [{MISSING + 0x123}]"),
    "page not present, write": Case(f"{PAGING}\n mov [{MISSING + 0x123}], eax"),
    "page not present, execute": Case(f"{PAGING}\n mov eax, {MISSING}\n jmp eax"),
    "page read only": Case(f"{PAGING}\n mov [{HIGH}], eax", memory={TABLE + 4 * 14: struct.pack("<I", HIGH | 5)}),
    "ring 3 page of ring 0": Case(PAGING + ring_3(f"mov eax, [{HIGH}]"), memory={TABLE + 4 * 14: struct.pack("<I", HIGH | 3)}),
    "ring 3 page read only": Case(PAGING + ring_3(f"mov [{HIGH}], eax"), memory={TABLE + 4 * 14: struct.pack("<I", HIGH | 5)}),
    "page of 4 MB": Case(f"{LARGE}{PAGING}\n mov [{HIGH + 0x400000}], eax\n mov ebx, [{DATA + 0x400000}]\n {END}", memory={DIRECTORY + 4: struct.pack("<I", 0x83)}),
    "page of 4 MB with a reserved bit": Case(
        f"{LARGE}{PAGING}\n mov [0x400000], eax",
        memory={DIRECTORY + 4: struct.pack("<I", 0x200083)},
        manual={STACK_0 + 0xFE0: 0xB},  # QEMU leaves out the P of the error code, without which there is no RSVD
    ),
    "directory shown by itself": Case(f"{PAGING}\n mov eax, [0xfffff000]\n mov ebx, [0xffc00000 + 4 * {DATA >> 12}]\n mov [0xfffff004], eax\n {END}", memory={DIRECTORY + 0xFFC: struct.pack("<I", DIRECTORY | 7)}),
    "page table missing": Case(f"{PAGING}\n mov eax, [0x400000]"),
    "across two pages": Case(f"{PAGING}\n mov eax, [{MISSING - 2}]"),
    "movs into a missing page": Case(f"{PAGING}\n mov esi, {DATA}\n mov edi, {MISSING - 10}\n mov ecx, 7\n rep movsd"),
    "stos into a missing page": Case(f"{PAGING}\n mov edi, {MISSING - 10}\n mov ecx, 17\n rep stosb"),
    "cmps across": Case(f"{PAGING}\n mov esi, {DATA + 0xFF0}\n mov edi, {DATA + 0xFF0}\n mov ecx, 40\n repe cmpsb\n {END}"),
    "scas backwards": Case(f"std\n mov edi, {DATA + 0x20}\n mov al, [{DATA + 7}]\n mov ecx, 40\n repne scasb\n {END}"),
    "movs backwards": Case(f"std\n mov esi, {DATA + 0x1008}\n mov edi, {HIGH + 0x20}\n mov ecx, 5\n rep movsd\n {END}"),
    "cr2 and cr3": Case(f"mov eax, 0x12345678\n mov cr2, eax\n mov ebx, cr2\n mov ecx, cr3\n {END}"),
    "invlpg": Case(f"{PAGING}\n mov dword ptr [{TABLE + 4 * 14}], {DATA | 7}\n invlpg [{HIGH}]\n mov eax, [{HIGH}]\n {END}"),
    "page fault in a delivery": Case(PAGING + ring_3("mov eax, [0x400000]"), memory={TSS_A: tss(esp0=MISSING + 8)}),
    # control registers
    "cr0 bits": Case(f"mov eax, cr0\n or eax, 0x2e\n mov cr0, eax\n mov ebx, cr0\n clts\n mov ecx, cr0\n {END}"),
    "lmsw": Case(f"mov eax, 0xe\n lmsw ax\n smsw ebx\n mov eax, 0\n lmsw ax\n smsw ecx\n {END}"),
    "lmsw and smsw of other registers": Case(f"mov esi, 0x1234000f\n lmsw si\n mov ebx, -1\n smsw bx\n smsw edi\n smsw [{DATA}]\n {END}"),
    "smsw into a missing page": Case(f"{PAGING}\n smsw [{MISSING - 1}]"),
    "smsw into a page of ring 0": Case(PAGING + ring_3(f"smsw [{HIGH}]"), memory={TABLE + 4 * 14: struct.pack("<I", HIGH | 3)}),
    "lmsw from a missing page": Case(f"{PAGING}\n lmsw [{MISSING + 1}]"),
    "lmsw from memory": Case(f"mov byte ptr [{DATA}], 0xf\n {PAGING}\n lmsw [{DATA}]\n mov eax, cr0\n {END}"),
    "smsw stores all of cr0": Case(f"{NO_CACHE}\n mov ebx, 0x12345678\n smsw ebx\n mov ecx, 0x12345678\n smsw cx\n {END}"),
    "smsw in real mode": Case(f"{NO_CACHE}\n mov ebx, 0x12345678\n smsw ebx\n mov ecx, 0x12345678\n smsw cx\n int 0x40", bits=16),
    "smsw in v8086 mode": Case(NO_CACHE + v8086("mov ebx, 0x12345678\n smsw ebx\n smsw cx\n .byte 0xcd, 0x40")),
    "smsw in ring 3": Case(NO_CACHE + ring_3(f"smsw ebx\n smsw cx\n {END}")),
    "rsm": Case("rsm"),
    "ring 3 rsm": Case(ring_3("rsm")),
    "cr0 without et": Case(f"mov eax, 1\n mov cr0, eax\n mov ebx, cr0\n {END}"),
    "no such control register": Case("mov eax, cr1"),
    "device not available": Case("mov eax, cr0\n or eax, 8\n mov cr0, eax\n fninit"),
    "emulated fpu": Case("mov eax, cr0\n or eax, 4\n mov cr0, eax\n fninit"),
    # virtual-8086 mode
    "v8086": Case(v8086("mov ax, 0x1234\n push ax\n push cs\n .byte 0xcd, 0x40")),
    "v8086 int without iopl": Case(v8086(".byte 0xcd, 0x40", VM | 2)),
    "v8086 segments": Case(v8086("mov ax, 0x700\n mov ds, ax\n mov word ptr [0x10], 0x55aa\n push ds\n pop es\n .byte 0xcd, 0x40")),
    "v8086 cli without iopl": Case(v8086("cli", VM | 2)),
    "v8086 pushf without iopl": Case(v8086("pushf", VM | 2)),
    "v8086 iret without iopl": Case(v8086("iret", VM | 2)),
    "v8086 iret": Case(v8086(".byte 0x68, 0x02, 0x32\n push cs\n .byte 0x68\n .word there - 0x5000\n iret\n there: .byte 0xcd, 0x40")),
    "v8086 far call": Case(v8086(f".byte 0x9a\n .word there - {CODE}, {CODE >> 4}\n there: .byte 0xcd, 0x40")),
    "v8086 hlt": Case(v8086("hlt")),
    "v8086 fault": Case(v8086("xor cx, cx\n div cx")),
    "v8086 int3": Case(v8086("int3")),
    "v8086 lldt": Case(v8086(".byte 0x0f, 0x00, 0xd0")),
    "v8086 gate not in ring 0": Case(v8086(".byte 0xcd, 0x42"), memory=idt(0x42, gate(CONFORMING, 0, 0xEE))),
    "v8086 gate of 16 bits": Case(v8086(".byte 0xcd, 0x42"), memory=idt(0x42, gate(CODE_0, HANDLERS + 0x42, 0xE6))),
    # real mode
    "real": Case("mov ax, 0x700\n mov ds, ax\n mov word ptr [0x10], 0x55aa\n int 0x40", bits=16),
    "real divide": Case("xor cx, cx\n div cx", bits=16),
    "real undefined": Case("ud2", bits=16),
    "real iret": Case("pushf\n push cs\n .byte 0x68\n .word there\n iret\n there: int 0x40", bits=16),
    "real lldt": Case(".byte 0x0f, 0x00, 0xd0", bits=16),
    "real arpl": Case(".byte 0x63, 0xc0", bits=16),
    "real to protected": Case(
        f"mov eax, cr0\n or al, 1\n mov cr0, eax\n .byte 0x66, 0xea\n .long there\n .word {CODE_0}\n .code32\n there: mov eax, {DATA_0}\n mov ds, eax\n mov ss, eax\n mov eax, [{DATA}]\n mov ebx, {HANDLERS + 5}\n jmp ebx",
        bits=16,
    ),
    "real far call": Case(".byte 0x9a\n .word there - 0x100, 0x10\n there: mov bp, sp\n int 0x40", bits=16),
    "real int with wrapping stack": Case("mov sp, 4\n int 0x40", bits=16),
    "real popf": Case("push 0x7fd5\n popf\n pushf\n pop ax\n int 0x40".replace("0x7fd5", "0x6ed5"), bits=16),
    # single stepping
    "step": Case(f"pushfd\n or dword ptr [esp], {TF}\n popfd\n nop\n nop"),
    "step by iret": Case(f"push {TF | 2}\n push {CODE_0}\n push there\n iretd\n there: inc eax\n inc eax"),
    "step over int": Case(f"pushfd\n or dword ptr [esp], {TF}\n popfd\n int 0x40"),
    "step into a fault": Case(f"xor ecx, ecx\n pushfd\n or dword ptr [esp], {TF}\n popfd\n div ecx"),
    "step a string": Case(f"mov ecx, 3\n mov edi, {HIGH}\n pushfd\n or dword ptr [esp], {TF}\n popfd\n rep stosd"),
    "step a jump": Case(f"pushfd\n or dword ptr [esp], {TF}\n popfd\n jmp there\n nop\n there: nop"),
    "step mov from cr0": Case(f"pushfd\n or dword ptr [esp], {TF}\n popfd\n mov eax, cr0\n nop"),
    "step mov ss": Case(f"mov ecx, ss\n pushfd\n or dword ptr [esp], {TF}\n popfd\n mov ss, ecx\n inc eax\n inc eax"),
    "step in ring 3": Case(ring_3("inc eax\n inc eax", TF | 2)),
    "step in v8086": Case(v8086("inc ax\n inc ax", VM | IOPL_3 | TF | 2)),
    "step clears": Case(f"pushfd\n or dword ptr [esp], {TF}\n popfd\n pushfd\n {END}", memory=idt(1, gate(CODE_0, CODE + 0x400, 0x8E)) | {CODE + 0x400: b"\x40\xcf"}),
    "step rdtsc": Case(f"pushfd\n or dword ptr [esp], {TF}\n popfd\n mov ebx, dr6\n inc eax"),
    "step lmsw": Case(f"mov eax, 0xe\n pushfd\n or dword ptr [esp], {TF}\n popfd\n lmsw ax\n inc eax"),
    "step in real mode": Case(f"pushf\n pop ax\n or ax, {TF}\n push ax\n popf\n inc cx\n inc cx", bits=16),
    # hardware breakpoints
    "break on execution": Case(f"mov eax, at\n mov dr0, eax\n mov eax, 0x402\n mov dr7, eax\n inc ebx\n at: inc ebx\n {END}"),
    "break locally": Case(f"mov eax, at\n mov dr3, eax\n mov eax, 0x440\n mov dr7, eax\n inc ebx\n at: inc ebx\n {END}"),
    "break on a write": Case(f"mov eax, {DATA + 4}\n mov dr1, eax\n mov eax, 0xd00408\n mov dr7, eax\n mov ebx, [{DATA + 4}]\n mov [{DATA + 5}], bl\n nop\n {END}"),
    "break on an access": Case(f"mov eax, {DATA + 4}\n mov dr2, eax\n mov eax, 0xf000420\n mov dr7, eax\n mov ebx, [{DATA + 2}]\n nop\n {END}"),
    "break beside": Case(f"mov eax, {DATA + 4}\n mov dr2, eax\n mov eax, 0x3000420\n mov dr7, eax\n mov bl, [{DATA + 5}]\n nop\n {END}"),
    "break on a push": Case(f"mov eax, {STACK_0 + 0xFEC}\n mov dr0, eax\n mov eax, 0xd0402\n mov dr7, eax\n push 5\n nop\n {END}"),
    "break, go on with rf": Case(
        f"mov eax, at\n mov dr0, eax\n mov eax, 0x402\n mov dr7, eax\n at: inc ebx\n {END}",
        memory=idt(1, gate(CODE_0, CODE + 0x400, 0x8E)) | {CODE + 0x400: b"\x81\x4c\x24\x08\x00\x00\x01\x00\xcf"},
        manual={0x9FEC: 2},  # INC has cleared RF before INT pushes it; QEMU clears it when the translated block ends
    ),
    # flags that PUSHF does not show
    "rf by iret": Case(
        f"push {RF | 2}\n push {CODE_0}\n push there\n iretd\n there: pushfd\n pop eax\n pushfd\n pop ebx\n {END}",
        manual={STACK_0 + 0xFEC: 2},  # as above
    ),
    "rf by iret, then a jump": Case(f"push {RF | 2}\n push {CODE_0}\n push there\n iretd\n there: inc ecx\n jmp on\n on: pushfd\n pop eax\n {END}"),
    "rf by iret in real mode": Case(
        f".byte 0x66, 0x68\n .long {RF | 2}\n .byte 0x66, 0x68\n .long 0\n .byte 0x66, 0x68\n .long there\n .byte 0x66, 0xcf\n there: pushfd\n pop eax\n int 0x40", bits=16
    ),
    "rf by iret in ring 3": Case(ring_3(f"pushfd\n pop eax\n {END}", RF | 2), manual={STACK_0 + 0xEF4: 2}),
    "v8086 pushfd": Case(v8086("pushfd\n pop eax\n .byte 0xcd, 0x40")),
    "v8086 pushfd after rf": Case(v8086("pushfd\n pop eax\n .byte 0xcd, 0x40", VM | IOPL_3 | RF | 2)),
    "v8086 pushfd without iopl": Case(v8086("pushfd", VM | 2)),
    "v8086 pushfd into a missing page": Case(PAGING + "\n" + v8086(f"mov ax, {MISSING >> 4}\n mov ss, ax\n mov sp, 6\n pushfd\n pushfd")),
    "v8086 pushfd and more": Case(v8086("mov si, 5\n pushfd\n inc si\n pushfd\n pop eax\n pop ebx\n pushf\n pop cx\n .byte 0xcd, 0x40")),
    "step v8086 pushfd": Case(v8086("pushfd\n inc ax", VM | IOPL_3 | TF | 2)),
    # task switches
    "jump to a task": Case(f"{LTR}\n .byte 0xea\n .long 0\n .word {B}"),
    "call a task": Case(f"{LTR}\n mov ecx, 77\n stc\n .byte 0x9a\n .long 0\n .word {B}"),
    "call a task through memory": Case(f"{LTR}\n mov word ptr [{HIGH + 4}], {B}\n .byte 0xff, 0x1d\n .long {HIGH}"),
    "jump to a task through memory, 16 bits": Case(f"{LTR}\n mov word ptr [{HIGH + 2}], {B}\n .byte 0x66, 0xff, 0x2d\n .long {HIGH}"),
    "call through a task gate": Case(f"{LTR}\n .byte 0x9a\n .long 0\n .word {TASK_GATE}"),
    "jump through a task gate in ring 3": Case(ring_3(f".byte 0xea\n .long 0\n .word {TASK_GATE | 3}")),
    "call a task in ring 3 that is not for it": Case(ring_3(f".byte 0x9a\n .long 0\n .word {B | 3}")),
    "interrupt through a task gate": Case(f"{LTR}\n int 0x42", memory=idt(0x42, gate(B, 0, 0xE5))),
    "interrupt of ring 3 through a task gate": Case(ring_3("int 0x42"), memory=idt(0x42, gate(B, 0, 0xE5))),
    "interrupt through a task gate not for ring 3": Case(ring_3("int 0x42"), memory=idt(0x42, gate(B, 0, 0x85))),
    "fault through a task gate": Case(f"{LTR}\n ud2", memory=idt(6, gate(B, 0, 0x85))),
    "fault with a code through a task gate": Case(f"{LTR}\n mov eax, 0x300\n mov ds, eax", memory=idt(13, gate(B, 0, 0x85))),
    "double fault through a task gate": Case(f"{PAGING}\n {LTR}\n mov esp, 0x400000\n push 1", memory=idt(8, gate(B, 0, 0x85))),
    "task gate to a busy task": Case(f"{LTR}\n int 0x42", memory=idt(0x42, gate(0x28, 0, 0xE5))),
    "task gate to nothing": Case(f"{LTR}\n int 0x42", memory=idt(0x42, gate(0x300, 0, 0xE5))),
    "jump to a busy task": Case(f"{LTR}\n .byte 0xea\n .long 0\n .word 0x28"),
    "jump to a task not present": Case(f"{LTR}\n .byte 0xea\n .long 0\n .word {B}", memory={GDT + B: descriptor(0, 0x67, 9)}),
    "jump to a task too small": Case(f"{LTR}\n .byte 0xea\n .long 0\n .word {B}", memory={GDT + B: descriptor(TSS_B, 0x66, 0x89)}),
    "call a task and return": Case(
        f"{LTR}\n mov ecx, 77\n .byte 0x9a\n .long 0\n .word {B}\n inc ecx\n {END}",
        memory={TSS_B: tss(es=DATA_0, cs=CODE_0, ss=DATA_0, ds=DATA_0, eip=CODE + 0x400, esp=STACK_0 + 0x800), CODE + 0x400: b"\x40\xcf"},
    ),
    "call a task twice": Case(
        f"{LTR}\n .byte 0x9a\n .long 0\n .word {B}\n .byte 0x9a\n .long 0\n .word {B}\n {END}",
        memory={TSS_B: tss(es=DATA_0, cs=CODE_0, ss=DATA_0, ds=DATA_0, eip=CODE + 0x400, esp=STACK_0 + 0x800), CODE + 0x400: b"\x40\xcf\x43\xcf"},
    ),
    "call a task of ring 3": Case(
        f"{LTR}\n .byte 0x9a\n .long 0\n .word {B}",
        memory={TSS_B: tss(es=DATA_3, cs=CODE_3, ss=DATA_3, ds=DATA_3, eip=CODE + 0x400, esp=STACK_3 + 0x800), CODE + 0x400: b"\xcd\x41"},
    ),
    "call a task of virtual-8086 mode": Case(
        f"{LTR}\n .byte 0x9a\n .long 0\n .word {B}",
        memory={TSS_B: tss(es=0x700, cs=0x500, ss=0xA00, ds=0x700, eip=0x400, esp=0x800, eflags=VM | IOPL_3 | 2), CODE + 0x400: b"\xcd\x41"},
    ),
    "call a task with paging": Case(f"{PAGING}\n {LTR}\n .byte 0x9a\n .long 0\n .word {B}"),
    "iret with nt and no task": Case(f"push {NT | 2}\n popfd\n {LTR}\n iretd"),
    "a task's bad stack": Case(
        f"{LTR}\n .byte 0xea\n .long 0\n .word {B}",
        memory={TSS_B: tss(es=DATA_0, cs=CODE_0, ss=DATA_3, ds=DATA_0, eip=CODE + 0x400, esp=STACK_0 + 0x800)} | idt(10, gate(TASK_GATE, 0, 0x8E)),
        manual={0x97F4: 0x5400},  # the fault is the new task's; QEMU pushes where the old one was
    ),
    "iret from v8086 with nt": Case(v8086("iret", VM | IOPL_3 | NT | 2)),
    # flags and arithmetic that traps depend on
    "ac without am": Case(f"push {AC | 2}\n popfd\n pushfd\n pop eax\n {END}"),
    "rf in frames": Case("sti\n ud2"),
}  # fmt: skip
