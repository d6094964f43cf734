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

/* A program that lies where it runs. Of its pieces the physical address, the virtual one, and the size. */
typedef struct {
    L4_Word_t type, version, offset_next;
    L4_Word_t text_pstart, text_vstart, text_size, data_pstart, data_vstart, data_size;
    L4_Word_t bss_pstart, bss_vstart, bss_size;
    L4_Word_t initial_ip, flags, label, cmdline_offset;
} L4_Boot_SimpleExec_t;

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

L4_INLINE L4_Boot_SimpleExec_t *l4_simple_exec(const L4_BootRec_t *r) { return (L4_Boot_SimpleExec_t *)r; }
L4_INLINE L4_Word_t L4_SimpleExec_TextPstart(const L4_BootRec_t *r) { return l4_simple_exec(r)->text_pstart; }
L4_INLINE L4_Word_t L4_SimpleExec_TextVstart(const L4_BootRec_t *r) { return l4_simple_exec(r)->text_vstart; }
L4_INLINE L4_Word_t L4_SimpleExec_TextSize(const L4_BootRec_t *r) { return l4_simple_exec(r)->text_size; }
L4_INLINE L4_Word_t L4_SimpleExec_DataPstart(const L4_BootRec_t *r) { return l4_simple_exec(r)->data_pstart; }
L4_INLINE L4_Word_t L4_SimpleExec_DataVstart(const L4_BootRec_t *r) { return l4_simple_exec(r)->data_vstart; }
L4_INLINE L4_Word_t L4_SimpleExec_DataSize(const L4_BootRec_t *r) { return l4_simple_exec(r)->data_size; }
L4_INLINE L4_Word_t L4_SimpleExec_BssPstart(const L4_BootRec_t *r) { return l4_simple_exec(r)->bss_pstart; }
L4_INLINE L4_Word_t L4_SimpleExec_BssVstart(const L4_BootRec_t *r) { return l4_simple_exec(r)->bss_vstart; }
L4_INLINE L4_Word_t L4_SimpleExec_BssSize(const L4_BootRec_t *r) { return l4_simple_exec(r)->bss_size; }
L4_INLINE L4_Word_t L4_SimpleExec_InitialIP(const L4_BootRec_t *r) { return l4_simple_exec(r)->initial_ip; }
L4_INLINE L4_Word_t L4_SimpleExec_Flags(const L4_BootRec_t *r) { return l4_simple_exec(r)->flags; }
L4_INLINE L4_Word_t L4_SimpleExec_Label(const L4_BootRec_t *r) { return l4_simple_exec(r)->label; }

L4_INLINE char *L4_SimpleExec_Cmdline(const L4_BootRec_t *r)
{
    L4_Word_t offset = l4_simple_exec(r)->cmdline_offset;
    return offset ? (char *)((L4_Word_t)r + offset) : 0;
}

L4_INLINE char *L4_Module_Cmdline(const L4_BootRec_t *r)
{
    return r->cmdline_offset ? (char *)((L4_Word_t)r + r->cmdline_offset) : 0;
}

#endif
