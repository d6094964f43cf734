/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The engine's TLB: stores that need not be looked at, and repeated stores done at once.
 *
 * The engine sends each store to a page that may be executed the slow way, to find out whether it changes code that it has
 * translated; without NX that is every store. We let it do so only where there is translated code in fact: such pages are
 * noted, and now and then we clear the flag in the TLB entries of all others. Python's stores go by the same notes (see
 * memory.py).
 */
#include "core.h"

typedef void (*reset_dirty_fn)(void *, uint64_t, uint64_t);
enum { LEAST_SWEEP = 20000 };   /* instructions between two sweeps */

/* The entry of a mode's TLB in which a linear address is looked for. */
uint8_t *tlb_entry(const Core *c, int mode, uint64_t linear)
{
    uint8_t *description = c->env - c->off[TLB_TABLES] + 16 * mode;
    return FIELD(description, 8, uint8_t *) + (linear >> 12 << 6 & FIELD(description, 0, uint64_t));
}

/* The page of RAM that a linear address is executed from, as the TLB has it, or all ones. */
uint64_t code_page(const Core *c, uint64_t linear)
{
    for (int mode = 0; mode < TLB_MODES; mode++) {
        uint8_t *entry = tlb_entry(c, mode, linear);
        if (FIELD(entry, TLB_EXECUTE, uint64_t) == (linear & ~(uint64_t)0xFFF))
            return FIELD(entry, TLB_PADDR, uint64_t) & ~(uint64_t)0xFFF;
    }
    return ~(uint64_t)0;
}

/* Code of this page was translated. (The engine looks through its TLB after each translation; once a page is enough.) */
void note_code(Core *c, uint64_t page_address)
{
    uint64_t page = page_address >> 12;
    if (page_address < c->ram_size && !c->has_code[page]) {
        c->has_code[page] = 1;
        ((reset_dirty_fn)c->fn[F_RESET_DIRTY])(c->cpu, (uintptr_t)c->ram + (page << 12), 4096);
    }
}

static void sweep_entry(const Core *c, uint8_t *entry)
{
    uint64_t write = FIELD(entry, TLB_WRITE, uint64_t), page = FIELD(entry, TLB_PADDR, uint64_t);
    if ((write & 0xFFF) == TLB_NOTDIRTY && page < c->ram_size && !c->has_code[page >> 12])
        FIELD(entry, TLB_WRITE, uint64_t) = write & ~(uint64_t)TLB_NOTDIRTY;
}

void sweep_tlb(Core *c)
{
    int64_t entries = 0;
    for (int mode = 0; mode < TLB_MODES; mode++) {
        uint8_t *description = c->env - c->off[TLB_TABLES] + 16 * mode;
        uint8_t *entry = FIELD(description, 8, uint8_t *), *end = entry + FIELD(description, 0, uint64_t) + TLB_ENTRY;
        entries += (end - entry) / TLB_ENTRY;
        for (; entry < end; entry += TLB_ENTRY)
            sweep_entry(c, entry);
    }
    c->until_sweep = entries * 20 > LEAST_SWEEP ? entries * 20 : LEAST_SWEEP;
}

/* Repeated stores. The engine makes each repetition of REP STOS and REP MOVS a block of its own, and a system that clears
 * or copies pages executes little else. So where such a block begins, we do at once all repetitions but the last which
 * stay in pages of plain memory that the TLB has. They retire one by one as ever; nothing but the time it takes differs. */
enum { REPEAT = 0xF3, MOVS_BYTE = 0xA4, MOVS = 0xA5, STOS_BYTE = 0xAA, STOS = 0xAB };
enum { ECX = 8, ESI = 48, EDI = 56, ES = 0, DS = 72 };  /* where the engine has them: registers, segments */

bool is_repeated(const Core *c, const uint8_t *tb)
{
    uint64_t pc = TB(c, tb, TB_PC, const uint64_t);
    int code = code_byte(c, tb, pc + 1);
    return TB(c, tb, TB_SIZE, const uint16_t) == 2 && TB(c, tb, TB_ICOUNT, const uint16_t) == 1
           && code_byte(c, tb, pc) == REPEAT && (code == MOVS_BYTE || code == MOVS || code == STOS_BYTE || code == STOS);
}

/* The host's address of a linear one, if the TLB has its page for such an access and it is plain memory; or NULL. */
static uint8_t *host_address(const Core *c, uint32_t linear, int access)
{
    int mode = (ENV(c, O_HFLAGS, uint32_t) & HF_CPL) == 3 ? USER_ACCESS : KERNEL_ACCESS;
    uint64_t page = linear & ~(uint64_t)0xFFF;
    uint8_t *entry = tlb_entry(c, mode, linear);
    sweep_entry(c, entry);
    if (FIELD(entry, access, uint64_t) != page)
        return NULL;
    return (uint8_t *)(uintptr_t)(linear + FIELD(entry, TLB_ADDEND, uint64_t));
}

/* How many elements of `size` bytes lie between a linear address and the end of its page. */
static int64_t left_in_page(uint32_t linear, int size)
{
    return (4096 - (linear & 0xFFF)) / size;
}

void repeat(Core *c, int code)
{
    uint32_t hflags = ENV(c, O_HFLAGS, uint32_t);
    bool stepped = ENV(c, O_EFLAGS, uint64_t) & TF_MASK;
    if (!(hflags & HF_CS32) || hflags & HF_INHIBIT_IRQ || stepped || ENV(c, O_DIRECTION, int32_t) != 1)
        return;
    uint64_t *ecx = &FIELD(c->env, ECX, uint64_t), *esi = &FIELD(c->env, ESI, uint64_t), *edi = &FIELD(c->env, EDI, uint64_t);
    const uint8_t *segments = c->env + c->off[O_SEGS] + 8;
    int size = code & 1 ? 4 : 1;
    uint32_t to = (uint32_t)(*edi + FIELD(segments, ES, const uint64_t));
    int64_t count = (int64_t)(uint32_t)*ecx - 1;
    if (count > c->left - 1)
        count = c->left - 1;
    if (count > left_in_page(to, size))
        count = left_in_page(to, size);
    uint8_t *target = host_address(c, to, TLB_WRITE);
    if (count <= 0 || !target)
        return;
    if (code == STOS_BYTE)
        memset(target, FIELD(c->env, 0, uint8_t), count);
    else if (code == STOS) {
        uint32_t eax = FIELD(c->env, 0, uint32_t);
        for (int64_t i = 0; i < count; i++)
            memcpy(target + 4 * i, &eax, 4);
    } else {
        uint32_t from = (uint32_t)(*esi + FIELD(segments, DS, const uint64_t));
        if (count > left_in_page(from, size))
            count = left_in_page(from, size);
        uint8_t *source = host_address(c, from, TLB_READ);
        if (count <= 0 || !source)
            return;
        for (int64_t i = 0; i < count; i++) /* one by one: what was just written may be read next */
            memmove(target + i * size, source + i * size, size);
        *esi = (uint32_t)(*esi + count * size);
    }
    *edi = (uint32_t)(*edi + count * size);
    *ecx = (uint32_t)(*ecx - count);
    c->left -= count;
    c->retired += count;
}
