/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The words of L4 X.2 on IA-32: thread identifiers, fpages, times. No system call is made here.
 *
 * Layouts: X.2 manual, sections ThreadId, Fpage, Time; what may be done with a word is named as the manual names it.
 */
#ifndef L4_TYPES_H
#define L4_TYPES_H

typedef unsigned char L4_Word8_t;
typedef unsigned short L4_Word16_t;
typedef unsigned int L4_Word32_t;
typedef unsigned long long L4_Word64_t;
typedef unsigned long L4_Word_t;
typedef L4_Word_t L4_Size_t;
typedef int L4_Bool_t;

#define L4_INLINE static inline __attribute__((unused))

/*
 * Thread identifiers.
 *
 *   global  31     thread number     14 13     version     0    the low six bits are not all zero
 *   local   31          address of the thread's MR0         0   the low six bits are zero
 */
typedef union {
    L4_Word_t raw;
} L4_ThreadId_t;

#define L4_nilthread ((L4_ThreadId_t){0})
#define L4_anythread ((L4_ThreadId_t){~0UL})
#define L4_anylocalthread ((L4_ThreadId_t){~0x3fUL})

L4_INLINE L4_ThreadId_t L4_GlobalId(L4_Word_t thread_no, L4_Word_t version)
{
    return (L4_ThreadId_t){thread_no << 14 | (version & 0x3fff)};
}

L4_INLINE L4_Word_t L4_ThreadNo(L4_ThreadId_t thread) { return thread.raw >> 14; }
L4_INLINE L4_Word_t L4_Version(L4_ThreadId_t thread) { return thread.raw & 0x3fff; }
L4_INLINE L4_Bool_t L4_IsNilThread(L4_ThreadId_t thread) { return thread.raw == 0; }
L4_INLINE L4_Bool_t L4_IsLocalId(L4_ThreadId_t thread) { return (thread.raw & 0x3f) == 0; }
L4_INLINE L4_Bool_t L4_IsGlobalId(L4_ThreadId_t thread) { return (thread.raw & 0x3f) != 0; }
L4_INLINE L4_Bool_t L4_IsThreadEqual(L4_ThreadId_t a, L4_ThreadId_t b) { return a.raw == b.raw; }
L4_INLINE L4_Bool_t L4_IsThreadNotEqual(L4_ThreadId_t a, L4_ThreadId_t b) { return a.raw != b.raw; }

/*
 * Fpages: pieces of an address space, a power of two in size.
 *
 *   31      base / 1024      10 9   log2 of size   4 3  2  1  0      log2 1 at base 0: the complete address space
 *                                                    0  r  w  x
 *   31      port      16 15 log2 10 9       2       4 3        0     ports in place of memory
 */
typedef union {
    L4_Word_t raw;
} L4_Fpage_t;

#define L4_eXecutable 1UL
#define L4_Writable 2UL
#define L4_Readable 4UL
#define L4_FullyAccessible 7UL
#define L4_ReadWriteOnly 6UL
#define L4_ReadeXecOnly 5UL
#define L4_NoAccess 0UL

#define L4_Nilpage ((L4_Fpage_t){0})
#define L4_CompleteAddressSpace ((L4_Fpage_t){1 << 4})
#define L4_CompleteIoSpace ((L4_Fpage_t){16 << 10 | 2 << 4})

L4_INLINE L4_Fpage_t L4_FpageLog2(L4_Word_t base, L4_Word_t log2)
{
    return (L4_Fpage_t){(base & ~0x3ffUL) | log2 << 4};
}

/* The piece at `base` of at least `size` bytes. */
L4_INLINE L4_Fpage_t L4_Fpage(L4_Word_t base, L4_Word_t size)
{
    L4_Word_t log2 = 0;
    while (log2 < 31 && 1UL << log2 < size)
        log2++;
    return L4_FpageLog2(base, log2);
}

L4_INLINE L4_Bool_t L4_IsNilFpage(L4_Fpage_t f) { return f.raw == 0; }
L4_INLINE L4_Word_t L4_Rights(L4_Fpage_t f) { return f.raw & 7; }
L4_INLINE void L4_Set_Rights(L4_Fpage_t *f, L4_Word_t rights) { f->raw = (f->raw & ~7UL) | rights; }
L4_INLINE L4_Fpage_t L4_FpageAddRights(L4_Fpage_t f, L4_Word_t rights) { return (L4_Fpage_t){f.raw | rights}; }
L4_INLINE L4_Fpage_t L4_FpageRemoveRights(L4_Fpage_t f, L4_Word_t rights) { return (L4_Fpage_t){f.raw & ~rights}; }
L4_INLINE L4_Bool_t L4_WasReferenced(L4_Fpage_t f) { return (f.raw & 4) != 0; }
L4_INLINE L4_Bool_t L4_WasWritten(L4_Fpage_t f) { return (f.raw & 2) != 0; }

L4_INLINE L4_Word_t L4_SizeLog2(L4_Fpage_t f)
{
    L4_Word_t log2 = f.raw >> 4 & 0x3f;
    return log2 == 1 ? 32 : log2;
}

L4_INLINE L4_Word_t L4_Size(L4_Fpage_t f)
{
    L4_Word_t log2 = L4_SizeLog2(f);
    return L4_IsNilFpage(f) || log2 > 31 ? 0 : 1UL << log2;
}

L4_INLINE L4_Word_t L4_Address(L4_Fpage_t f)
{
    L4_Word_t log2 = L4_SizeLog2(f);
    return log2 > 31 ? 0 : (f.raw & ~0x3ffUL) & (~0UL << log2);
}

L4_INLINE L4_Fpage_t L4_IoFpageLog2(L4_Word_t port, L4_Word_t log2)
{
    return (L4_Fpage_t){port << 16 | log2 << 10 | 2 << 4};
}

L4_INLINE L4_Bool_t L4_IsIoFpage(L4_Fpage_t f) { return (f.raw >> 4 & 0x3f) == 2; }
L4_INLINE L4_Word_t L4_IoFpagePort(L4_Fpage_t f) { return f.raw >> 16; }
L4_INLINE L4_Word_t L4_IoFpageSizeLog2(L4_Fpage_t f) { return f.raw >> 10 & 0x3f; }

/*
 * Times: 16 bits. A period is mantissa * 2^exponent microseconds.
 *
 *   15 14 exponent 10 9 mantissa 0
 *    0
 */
typedef union {
    L4_Word16_t raw;
} L4_Time_t;

typedef union {
    L4_Word64_t raw; /* microseconds */
} L4_Clock_t;

#define L4_Never ((L4_Time_t){0})
#define L4_ZeroTime ((L4_Time_t){1 << 10})

/* The shortest period that lasts at least so long. */
L4_INLINE L4_Time_t L4_TimePeriod(L4_Word64_t microseconds)
{
    L4_Word_t exponent = 0;
    if (microseconds == 0)
        return L4_ZeroTime;
    while (microseconds > 1023 && exponent < 31) {
        microseconds = (microseconds + 1) >> 1;
        exponent++;
    }
    return (L4_Time_t){(L4_Word16_t)(exponent << 10 | (microseconds > 1023 ? 1023 : microseconds))};
}

/* Both timeouts of an Ipc in a word. */
L4_INLINE L4_Word_t L4_Timeouts(L4_Time_t send, L4_Time_t receive)
{
    return (L4_Word_t)send.raw << 16 | receive.raw;
}

#endif
