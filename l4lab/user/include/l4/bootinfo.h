/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the boot loader has loaded besides the first programs (X.2 manual, appendix Generic BootInfo). */
#ifndef L4_BOOTINFO_H
#define L4_BOOTINFO_H

#include <l4/types.h>

#define L4_BOOTINFO_MAGIC 0x14b0021dUL
#define L4_BootInfo_Module 0x0001
#define L4_BootInfo_SimpleExec 0x0002
#define L4_BootInfo_Multiboot 0x0102

typedef struct {
    L4_Word_t magic, version, size, first_entry, num_entries, reserved[3];
} L4_BootInfo_t;

typedef struct {
    L4_Word_t type, version, offset_next;
    L4_Word_t start, size, cmdline_offset; /* of a module; of Multiboot information, `start` is its address */
} L4_BootRec_t;

L4_INLINE L4_Bool_t L4_BootInfo_Valid(const void *info)
{
    const L4_BootInfo_t *b = info;
    return b->magic == L4_BOOTINFO_MAGIC && b->version == 1;
}

L4_INLINE L4_Word_t L4_BootInfo_Entries(const void *info) { return ((const L4_BootInfo_t *)info)->num_entries; }

L4_INLINE L4_BootRec_t *L4_BootInfo_FirstEntry(const void *info)
{
    return (L4_BootRec_t *)((L4_Word_t)info + ((const L4_BootInfo_t *)info)->first_entry);
}

L4_INLINE L4_BootRec_t *L4_BootRec_Next(const L4_BootRec_t *r)
{
    return (L4_BootRec_t *)((L4_Word_t)r + r->offset_next);
}

L4_INLINE L4_Word_t L4_BootRec_Type(const L4_BootRec_t *r) { return r->type; }
L4_INLINE L4_Word_t L4_Module_Start(const L4_BootRec_t *r) { return r->start; }
L4_INLINE L4_Word_t L4_Module_Size(const L4_BootRec_t *r) { return r->size; }
L4_INLINE L4_Word_t L4_MBI_Address(const L4_BootRec_t *r) { return r->start; }

L4_INLINE char *L4_Module_Cmdline(const L4_BootRec_t *r)
{
    return r->cmdline_offset ? (char *)((L4_Word_t)r + r->cmdline_offset) : 0;
}

#endif
