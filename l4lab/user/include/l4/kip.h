/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel interface page: what the kernel says of itself and of the machine (X.2 manual, section KIP).
 */
#ifndef L4_KIP_H
#define L4_KIP_H

#include <l4/types.h>

typedef struct {
    L4_Word_t sp, ip, low, high;
} L4_Server_t;

typedef struct {
    L4_Word_t magic, ApiVersion, ApiFlags, KernelDescriptionPtr; /* 0x00 */
    L4_Word_t kdebug[4];
    L4_Server_t sigma0, sigma1, root; /* 0x20 */
    L4_Word_t reserved_50, MemoryInfo, KdebugConfig[2];
    L4_Word_t reserved_60[18];
    L4_Word_t UtcbInfo, KipAreaInfo, reserved_b0[2]; /* 0xa8 */
    L4_Word_t BootInfo, ProcDescPtr, ClockInfo, ThreadInfo; /* 0xb8 */
    L4_Word_t PageInfo, ProcessorInfo;
    /* Offsets of the system calls' entries from the start of the page: 0xd0 */
    L4_Word_t SpaceControl, ThreadControl, ProcessorControl, MemoryControl;
    L4_Word_t Ipc, Lipc, Unmap, ExchangeRegisters;
    L4_Word_t SystemClock, ThreadSwitch, Schedule;
} L4_KernelInterfacePage_t;

typedef struct {
    L4_Word_t low, high;
} L4_MemoryDesc_t;

typedef struct {
    L4_Word_t ExternalFreq, InternalFreq, reserved[2]; /* kHz */
} L4_ProcDesc_t;

#define L4_UndefinedMemoryType 0
#define L4_ConventionalMemoryType 1
#define L4_ReservedMemoryType 2
#define L4_DedicatedMemoryType 3
#define L4_SharedMemoryType 4
#define L4_BootLoaderSpecificMemoryType 0xe
#define L4_ArchitectureSpecificMemoryType 0xf

/* Where this program's KIP is: set before main. A thread of another space finds it there if that space has it there. */
extern L4_KernelInterfacePage_t *l4_kip;

/* Ask the kernel where the KIP is: an instruction that no program needs otherwise. */
L4_INLINE L4_KernelInterfacePage_t *L4_KernelInterface(L4_Word_t *version, L4_Word_t *flags, L4_Word_t *id)
{
    L4_KernelInterfacePage_t *kip;
    L4_Word_t v, f, i;
    __asm__ volatile(".byte 0xf0, 0x90" : "=a"(kip), "=c"(v), "=d"(f), "=S"(i)); /* lock; nop */
    if (version)
        *version = v;
    if (flags)
        *flags = f;
    if (id)
        *id = i;
    return kip;
}

L4_INLINE L4_KernelInterfacePage_t *L4_GetKernelInterface(void) { return l4_kip; }
L4_INLINE L4_Word_t L4_NumProcessors(const L4_KernelInterfacePage_t *kip) { return (kip->ProcessorInfo & 0xffff) + 1; }

L4_INLINE L4_ProcDesc_t *L4_ProcDesc(L4_KernelInterfacePage_t *kip, L4_Word_t number)
{
    if (number >= L4_NumProcessors(kip))
        return 0;
    return (L4_ProcDesc_t *)((L4_Word_t)kip + kip->ProcDescPtr + (number << (kip->ProcessorInfo >> 28)));
}

L4_INLINE L4_Word_t L4_NumMemoryDescriptors(const L4_KernelInterfacePage_t *kip) { return kip->MemoryInfo & 0xffff; }

L4_INLINE L4_MemoryDesc_t *L4_MemoryDesc(L4_KernelInterfacePage_t *kip, L4_Word_t number)
{
    if (number >= L4_NumMemoryDescriptors(kip))
        return 0;
    return (L4_MemoryDesc_t *)((L4_Word_t)kip + (kip->MemoryInfo >> 16)) + number;
}

L4_INLINE L4_Bool_t L4_IsMemoryDescVirtual(const L4_MemoryDesc_t *m) { return (m->low & 1 << 9) != 0; }
L4_INLINE L4_Word_t L4_MemoryDescLow(const L4_MemoryDesc_t *m) { return m->low & ~0x3ffUL; }
L4_INLINE L4_Word_t L4_MemoryDescHigh(const L4_MemoryDesc_t *m) { return m->high | 0x3ff; }

/* The type; for the two specific ones, with the subtype in bits 4 to 7. */
L4_INLINE L4_Word_t L4_MemoryDescType(const L4_MemoryDesc_t *m)
{
    return (m->low & 0xf) >= L4_BootLoaderSpecificMemoryType ? m->low & 0xff : m->low & 0xf;
}

L4_INLINE L4_Word_t L4_BootInfo(const L4_KernelInterfacePage_t *kip) { return kip->BootInfo; }
L4_INLINE L4_Word_t L4_KipAreaSizeLog2(const L4_KernelInterfacePage_t *kip) { return kip->KipAreaInfo & 0x3f; }
L4_INLINE L4_Word_t L4_UtcbAreaSizeLog2(const L4_KernelInterfacePage_t *kip) { return kip->UtcbInfo >> 16 & 0x3f; }
L4_INLINE L4_Word_t L4_UtcbAlignmentLog2(const L4_KernelInterfacePage_t *kip) { return kip->UtcbInfo >> 10 & 0x3f; }

L4_INLINE L4_Word_t L4_UtcbSize(const L4_KernelInterfacePage_t *kip)
{
    return (kip->UtcbInfo & 0x3ff) << L4_UtcbAlignmentLog2(kip);
}

L4_INLINE L4_Word_t L4_ThreadIdBits(const L4_KernelInterfacePage_t *kip) { return kip->ThreadInfo & 0xff; }
L4_INLINE L4_Word_t L4_ThreadIdSystemBase(const L4_KernelInterfacePage_t *kip) { return kip->ThreadInfo >> 8 & 0xfff; }
L4_INLINE L4_Word_t L4_ThreadIdUserBase(const L4_KernelInterfacePage_t *kip) { return kip->ThreadInfo >> 20; }
L4_INLINE L4_Word_t L4_PageSizeMask(const L4_KernelInterfacePage_t *kip) { return kip->PageInfo & ~0x3ffUL; }
L4_INLINE L4_Word_t L4_PageRights(const L4_KernelInterfacePage_t *kip) { return kip->PageInfo & 7; }
L4_INLINE L4_Word_t L4_ReadPrecision(const L4_KernelInterfacePage_t *kip) { return kip->ClockInfo & 0xffff; }
L4_INLINE L4_Word_t L4_SchedulePrecision(const L4_KernelInterfacePage_t *kip) { return kip->ClockInfo >> 16; }

/* The kernel's name and version as text; the names of its features follow, up to an empty one. */
L4_INLINE char *L4_KernelVersionString(const L4_KernelInterfacePage_t *kip)
{
    return (char *)((L4_Word_t)kip + kip->KernelDescriptionPtr + 16);
}

L4_INLINE char *L4_Feature(const L4_KernelInterfacePage_t *kip, L4_Word_t number)
{
    char *text = L4_KernelVersionString(kip);
    do {
        while (*text)
            text++;
        text++;
        if (!*text)
            return 0;
    } while (number--);
    return text;
}

#endif
