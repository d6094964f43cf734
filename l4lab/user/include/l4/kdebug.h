/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel debugger's console: INT3, and behind it a harmless instruction that says what is wanted.
 * `print` is not of X.2: every example needs one.
 */
#ifndef L4_KDEBUG_H
#define L4_KDEBUG_H

#include <l4/types.h>

#define L4_KDB_TRAP(operation, eax) __asm__ volatile("int3\n\tcmpb $" #operation ", %%al" : "+a"(eax) : : "cc", "memory")

L4_INLINE void L4_KDB_PrintChar(char c)
{
    L4_Word_t eax = (L4_Word8_t)c;
    L4_KDB_TRAP(0, eax);
}

L4_INLINE void L4_KDB_PrintString(const char *text)
{
    L4_Word_t eax = (L4_Word_t)text;
    L4_KDB_TRAP(1, eax);
}

/* A character that has arrived, or -1. */
L4_INLINE int L4_KDB_ReadChar(void)
{
    L4_Word_t eax = 0;
    L4_KDB_TRAP(8, eax);
    return (int)eax;
}

/* The next character; this thread waits for it. */
L4_INLINE int L4_KDB_ReadChar_Blocked(void)
{
    L4_Word_t eax = 0;
    L4_KDB_TRAP(13, eax);
    return (int)eax;
}

/* Say something that must not be overlooked; `text` is a literal. */
#define L4_KDB_Enter(text)                                                                          \
    __asm__ volatile("int3\n\tjmp 1f\n\tmovl %0, %%eax\n1:" : : "i"((const char *)(text)) : "memory")

/* Prints text with %s, %c, %d, %u, %x and %%; %08lx has eight digits. A word is a long: %lu, %lx. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
