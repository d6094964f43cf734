/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Address spaces: SpaceControl; Unmap and Flush (X.2 manual, sections of these names). */
#ifndef L4_SPACE_H
#define L4_SPACE_H

#include <l4/message.h>

#define L4_SPACE_IS_VM (1UL << 30) /* control: the space is a virtual machine, its threads virtual CPUs */

/* Give a new space its KIP and UTCB areas. Zero if it was refused: then L4_ErrorCode says why. */
L4_INLINE L4_Word_t L4_SpaceControl(L4_ThreadId_t space, L4_Word_t control, L4_Fpage_t kip_area, L4_Fpage_t utcb_area,
                                    L4_ThreadId_t redirector, L4_Word_t *old_control)
{
    L4_Registers_t r = {.eax = space.raw,
                        .ecx = control,
                        .edx = kip_area.raw,
                        .esi = utcb_area.raw,
                        .edi = redirector.raw};
    l4_system_call(L4_ENTRY(SpaceControl), &r);
    if (old_control)
        *old_control = r.ecx;
    return r.eax;
}

/*
 * Take back from all who got it from me the rights that each fpage in MR0 to MRk names; with bit 6 of the control word
 * from me, too. What was done with the pages comes back in the rights fields of the same registers.
 */
L4_INLINE void L4_Unmap(L4_Word_t control)
{
    L4_Word_t *mr = l4_utcb();
    L4_Registers_t r = {.eax = control, .esi = mr[0], .edi = (L4_Word_t)mr};
    l4_system_call(L4_ENTRY(Unmap), &r);
    mr[0] = r.esi;
}

L4_INLINE void l4_unmap(L4_Word_t count, L4_Fpage_t *fpages, L4_Word_t flush)
{
    for (L4_Word_t i = 0; i < count; i++)
        L4_LoadMR(i, fpages[i].raw);
    L4_Unmap(flush | (count - 1));
    for (L4_Word_t i = 0; i < count; i++)
        L4_StoreMR(i, &fpages[i].raw);
}

L4_INLINE void L4_UnmapFpages(L4_Word_t count, L4_Fpage_t *fpages) { l4_unmap(count, fpages, 0); }
L4_INLINE void L4_FlushFpages(L4_Word_t count, L4_Fpage_t *fpages) { l4_unmap(count, fpages, 1 << 6); }

L4_INLINE L4_Fpage_t L4_UnmapFpage(L4_Fpage_t f)
{
    L4_UnmapFpages(1, &f);
    return f;
}

L4_INLINE L4_Fpage_t L4_Flush(L4_Fpage_t f)
{
    L4_FlushFpages(1, &f);
    return f;
}

/* What was done with a page since somebody asked last; nothing is revoked. */
L4_INLINE L4_Fpage_t L4_GetStatus(L4_Fpage_t f) { return L4_UnmapFpage(L4_FpageRemoveRights(f, 7)); }

#endif
