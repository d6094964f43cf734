/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a system call is made: all registers are loaded, the entry that the KIP names is called, all are stored again.
 *
 * Which registers mean what is told where each call is (X.2 manual, appendix IA-32). The function is in crt0.c.
 */
#ifndef L4_SYSCALL_H
#define L4_SYSCALL_H

#include <l4/kip.h>

typedef struct {
    L4_Word_t eax, ecx, edx, ebx, ebp, esi, edi;
} L4_Registers_t;

void l4_system_call(L4_Word_t entry, L4_Registers_t *registers);

/* The address of MR0, from which all message, buffer and control registers are counted. It is the local identifier. */
L4_INLINE L4_Word_t *l4_utcb(void)
{
    L4_Word_t *mr0;
    __asm__ volatile("movl %%gs:0, %0" : "=r"(mr0));
    return mr0;
}

#define L4_ENTRY(call) ((L4_Word_t)l4_kip + l4_kip->call)

#endif
