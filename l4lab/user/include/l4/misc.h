/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ProcessorControl and MemoryControl, and IA-32's ports (X.2 manual, sections of these names; appendix IA-32). */
#ifndef L4_MISC_H
#define L4_MISC_H

#include <l4/message.h>

L4_INLINE L4_Word_t L4_ProcessorControl(L4_Word_t processor, L4_Word_t internal_khz, L4_Word_t external_khz,
                                        L4_Word_t voltage)
{
    L4_Registers_t r = {.eax = processor, .ecx = internal_khz, .edx = external_khz, .esi = voltage};
    l4_system_call(L4_ENTRY(ProcessorControl), &r);
    return r.eax;
}

/* How the fpages in MR0 to MRk are to be cached; bits 0 and 1 of each choose one of the four attributes. */
L4_INLINE L4_Word_t L4_MemoryControl(L4_Word_t control, const L4_Word_t attributes[4])
{
    L4_Word_t *mr = l4_utcb();
    L4_Registers_t r = {.eax = control,
                        .ecx = attributes[0],
                        .edx = attributes[1],
                        .ebx = attributes[2],
                        .ebp = attributes[3],
                        .esi = mr[0],
                        .edi = (L4_Word_t)mr};
    l4_system_call(L4_ENTRY(MemoryControl), &r);
    return r.eax;
}

L4_INLINE L4_Word8_t l4_in8(L4_Word16_t port)
{
    L4_Word8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

L4_INLINE void l4_out8(L4_Word16_t port, L4_Word8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

#endif
