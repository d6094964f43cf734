/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the engine's translator is made to do otherwise, by taking the places of functions that it calls.
 *
 * Where blocks end. The engine goes on translating into the next page, and when that page is missing, the fault is told
 * at the block's start; when it is there, its accessed bit is set before its code is reached. A CPU does neither. So here
 * a block lies in one page, or is one instruction. And it has MOST_INSTRUCTIONS at most, because the translator has room
 * for 512 temporaries in a block, does not look whether they are used up, and for some instructions forgets to give
 * theirs back (those that a guest's intercepts concern, x87 and SSE with an operand in the opcode). And CMPXCHG8B begins
 * a block: the engine computes the flags that it leaves alone from what is noted of them at the block's beginning.
 *
 * Counting inside blocks (see counting.c). Each block begins, where the engine would call a function to ask whether to go
 * on, with
 *
 *          credit -= cost; if (credit < 0) goto slow; last = block
 *      on: ...
 *
 * and ends, where the engine has a way out that nobody takes, with
 *
 *          slow: slow_block(block, cost); goto on
 *
 * The engine asks whether to go on after each access to memory, too; it need not, since none of our callbacks relies on it.
 */
#include "core.h"

#ifdef __linux__
#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_INSTRUCTIONS = 64 };
enum { TWO_BYTES = 0x0F, CMPXCHG8B = 0xC7 };    /* bytes of an opcode */

/* Operations of the intermediate code that we emit, conditions and types, by the translator's numbers. An operation is 24
 * bytes and its operands: its number, links to the next and the previous. engine.py checks the numbers by their names. */
enum { OP_SET_LABEL = 1, OP_CALL = 2, OP_MOVI_I32 = 6, OP_LD_I32 = 13, OP_ST_I32 = 16, OP_SUB_I32 = 18, OP_MOVI_I64 = 64,
       OP_ST_I64 = 77, COND_ALWAYS = 1, COND_LT = 2, I32 = 0, I64 = 1, EXIT_REQUESTED = 3, LABEL_PRESENT = 1 };
#define OP_CODE(op) (*(uint8_t *)(op))
#define OP_NEXT(op) (*(uint8_t **)((op) + 8))
#define OP_ARG(op, i) (*(uintptr_t *)((op) + 24 + 8 * (i)))

typedef void (*translate_fn)(void *, uint8_t *, int);
typedef void (*begin_translation_fn)(uint8_t *);
typedef uint32_t (*fetch_fn)(void *, uint64_t);
typedef int (*generate_fn)(uint8_t *, uint8_t *);
typedef void (*call_fn)(uint8_t *, void *, void *, int, void **);
typedef void (*check_fn)(uint8_t *);
typedef void (*exit_block_fn)(uint8_t *, uint8_t *, unsigned);
typedef uint8_t *(*emit_fn)(uint8_t *, int);
typedef void (*branch_fn)(uint8_t *, int, uintptr_t, int32_t, void *);
typedef void *(*new_label_fn)(uint8_t *);
typedef uint8_t *(*new_temporary_fn)(uint8_t *, int, bool);
typedef void (*free_temporary_fn)(uint8_t *, void *);

/* The engine's own functions; of those whose places we have taken, what was there before. */
static void *own[FUNCTIONS];
#define OWN(f, type) ((type)own[f])

/* The block in translation. A page fault may end it half-way; the next begins anew. */
static struct {
    Core *core;                 /* NULL: it is not of an engine of ours */
    uint64_t page;
    uint64_t instructions[MOST_INSTRUCTIONS];
    int count;                  /* of them; the last may not be complete */
    uint32_t byte;              /* of it, fetched last */
    jmp_buf again;              /* to translate it once more, and shorter */
    bool begun;
    void *slow, *on;            /* labels */
    uint8_t *cost[2], *block[2];    /* operations whose operand is known at the end */
} now;

/* -- where blocks end -------------------------------------------------------------------------------------------------- */

static void translate(void *cpu, uint8_t *tb, int most)
{
    Core *c = running && running->cpu == cpu ? running : NULL;
    now.core = c;
    now.begun = false;
    now.count = 0;
    if (c) {
        static int limit;       /* static: it is changed between setjmp() and longjmp() */
        limit = most < MOST_INSTRUCTIONS ? most : MOST_INSTRUCTIONS;
        now.page = TB(c, tb, TB_PC, uint64_t) >> 12;
        if (setjmp(now.again)) {
            OWN(F_BEGIN_TRANSLATION, begin_translation_fn)(c->translator);
            limit = now.count - 1;
            now.begun = false;
            now.count = 0;
        }
        most = limit;
    }
    OWN(F_TRANSLATE, translate_fn)(cpu, tb, most);
}

/* The translator is about to fetch `size` bytes of an instruction. */
static void look_at_fetch(uint64_t address, int size)
{
    if (!now.core)
        return;
    uint64_t start = TB(now.core, now.core->translator, TCG_PC_START, uint64_t);
    if (now.count == 0 || now.instructions[now.count - 1] != start) {
        now.instructions[now.count++] = start;
        now.byte = 0;
    }
    if (now.count > 1 && (address + size - 1) >> 12 != now.page)
        longjmp(now.again, 1);
}

static uint32_t fetch_8(void *env, uint64_t address)
{
    look_at_fetch(address, 1);
    uint32_t byte = OWN(F_FETCH_8, fetch_fn)(env, address);
    if (now.core) {
        if (now.count > 1 && now.byte == TWO_BYTES && byte == CMPXCHG8B)
            longjmp(now.again, 1);
        now.byte = byte;
    }
    return byte;
}

static uint32_t fetch_16(void *env, uint64_t address)
{
    look_at_fetch(address, 2);
    return OWN(F_FETCH_16, fetch_fn)(env, address);
}

static uint32_t fetch_32(void *env, uint64_t address)
{
    look_at_fetch(address, 4);
    return OWN(F_FETCH_32, fetch_fn)(env, address);
}

/* -- counting inside blocks -------------------------------------------------------------------------------------------- */

static Core *inlined_core(const uint8_t *translator)
{
    return running && running->inlined && running->translator == translator ? running : NULL;
}

static uint8_t *emit(uint8_t *translator, int code, uintptr_t a, uintptr_t b)
{
    uint8_t *op = OWN(F_EMIT, emit_fn)(translator, code);
    OP_ARG(op, 0) = a;
    OP_ARG(op, 1) = b;
    return op;
}

static void emit3(uint8_t *translator, int code, uintptr_t a, uintptr_t b, uintptr_t c)
{
    OP_ARG(emit(translator, code, a, b), 2) = c;
}

static void label_here(uint8_t *translator, void *label)
{
    *(uint8_t *)label |= LABEL_PRESENT;
    OP_ARG(OWN(F_EMIT, emit_fn)(translator, OP_SET_LABEL), 0) = (uintptr_t)label;
}

static uint8_t *temporary(uint8_t *translator, int type)
{
    return OWN(F_NEW_TEMPORARY, new_temporary_fn)(translator, type, false);
}

static void begin_block(Core *c, uint8_t *translator)
{
    uintptr_t env = (uintptr_t)translator + TB(c, translator, TCG_ENV, uintptr_t), at = (uintptr_t)-c->off[CREDIT_FIELD];
    uint8_t *credit = temporary(translator, I32), *cost = temporary(translator, I32), *block = temporary(translator, I64);
    now.slow = OWN(F_NEW_LABEL, new_label_fn)(translator);
    now.on = OWN(F_NEW_LABEL, new_label_fn)(translator);
    emit3(translator, OP_LD_I32, (uintptr_t)credit, env, at);
    now.cost[0] = emit(translator, OP_MOVI_I32, (uintptr_t)cost, 0);
    emit3(translator, OP_SUB_I32, (uintptr_t)credit, (uintptr_t)credit, (uintptr_t)cost);
    emit3(translator, OP_ST_I32, (uintptr_t)credit, env, at);
    OWN(F_BRANCH, branch_fn)(translator, COND_LT, (uintptr_t)(credit - translator), 0, now.slow);
    now.block[0] = emit(translator, OP_MOVI_I64, (uintptr_t)block, 0);
    emit3(translator, OP_ST_I64, (uintptr_t)block, env, (uintptr_t)((uint8_t *)c->last - c->env));
    label_here(translator, now.on);
    OWN(F_FREE_TEMPORARY, free_temporary_fn)(translator, credit);
    OWN(F_FREE_TEMPORARY, free_temporary_fn)(translator, cost);
    OWN(F_FREE_TEMPORARY, free_temporary_fn)(translator, block);
}

static void end_block(uint8_t *translator)
{
    uint8_t *block = temporary(translator, I64), *cost = temporary(translator, I32);
    void *arguments[] = {block, cost};
    label_here(translator, now.slow);
    now.block[1] = emit(translator, OP_MOVI_I64, (uintptr_t)block, 0);
    uint8_t *op = now.cost[1] = emit(translator, OP_MOVI_I32, (uintptr_t)cost, 0);
    /* The translator calls only functions that it knows, by their names. One of the same form is put there and exchanged. */
    OWN(F_CALL, call_fn)(translator, own[F_CHECK_HELPER], NULL, 2, arguments);
    while (OP_CODE(op) != OP_CALL)
        op = OP_NEXT(op);
    OP_ARG(op, 2) = (uintptr_t)slow_block;
    OWN(F_BRANCH, branch_fn)(translator, COND_ALWAYS, 0, 0, now.on);
    OWN(F_FREE_TEMPORARY, free_temporary_fn)(translator, block);
    OWN(F_FREE_TEMPORARY, free_temporary_fn)(translator, cost);
}

static void call(uint8_t *translator, void *function, void *result, int count, void **arguments)
{
    Core *c = inlined_core(translator);
    if (c && function == own[F_CHECK_HELPER] && !now.begun) {
        now.begun = true;
        begin_block(c, translator);
    } else
        OWN(F_CALL, call_fn)(translator, function, result, count, arguments);
}

static void check(uint8_t *translator)  /* after each access to memory */
{
    if (!inlined_core(translator))
        OWN(F_CHECK, check_fn)(translator);
}

static void exit_block(uint8_t *translator, uint8_t *tb, unsigned index)
{
    if (index == EXIT_REQUESTED && now.begun && inlined_core(translator))
        end_block(translator);
    else
        OWN(F_EXIT_BLOCK, exit_block_fn)(translator, tb, index);
}

static int generate(uint8_t *translator, uint8_t *tb)
{
    Core *c = inlined_core(translator);
    if (c && now.begun) {
        OP_ARG(now.cost[0], 1) = OP_ARG(now.cost[1], 1) = cost_of_block(c, tb, now.instructions, now.count);
        OP_ARG(now.block[0], 1) = OP_ARG(now.block[1], 1) = (uintptr_t)tb;
    }
    return OWN(F_GENERATE, generate_fn)(translator, tb);
}

/* -- taking places ----------------------------------------------------------------------------------------------------- */

/* The slot through which the library that `function` is in calls it: in its table of what it imports, itself included
 * (System V ABI, "Procedure Linkage Table"). NULL if there is none. */
static void **slot_of(void *function)
{
    Dl_info info;
    struct link_map *map;
    if (!dladdr1(function, &info, (void **)&map, RTLD_DL_LINKMAP) || !info.dli_sname)
        return NULL;
    const ElfW(Rela) *imports = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    size_t size = 0;
    for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++)
        switch (entry->d_tag) {
        case DT_JMPREL: imports = (const ElfW(Rela) *)entry->d_un.d_ptr; break;
        case DT_PLTRELSZ: size = entry->d_un.d_val; break;
        case DT_SYMTAB: symbols = (const ElfW(Sym) *)entry->d_un.d_ptr; break;
        case DT_STRTAB: names = (const char *)entry->d_un.d_ptr; break;
        }
    if (!imports || !symbols || !names)
        return NULL;
    for (size_t i = 0; i < size / sizeof *imports; i++)
        if (strcmp(names + symbols[imports[i].r_info >> 32].st_name, info.dli_sname) == 0)
            return (void **)(map->l_addr + imports[i].r_offset);
    return NULL;
}

static const struct { int function; void *instead; } places[] = {
    {F_TRANSLATE, translate}, {F_FETCH_8, fetch_8}, {F_FETCH_16, fetch_16}, {F_FETCH_32, fetch_32},
    {F_GENERATE, generate}, {F_CALL, call}, {F_CHECK, check}, {F_EXIT_BLOCK, exit_block}};
enum { PLACES = sizeof places / sizeof *places };

/* All of them or none. Done once; the functions find out themselves for whom they are called. */
bool take_over_translator(Core *c)
{
    static bool done;
    if (done)
        return true;
    void **slots[PLACES];
    uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < PLACES; i++) {
        slots[i] = slot_of(c->fn[places[i].function]);
        if (!slots[i] || mprotect((void *)((uintptr_t)slots[i] & ~(page_size - 1)), page_size, PROT_READ | PROT_WRITE))
            return false;
    }
    memcpy(own, c->fn, sizeof own);
    for (int i = 0; i < PLACES; i++) {
        own[places[i].function] = *slots[i];
        *slots[i] = places[i].instead;
    }
    return done = true;
}

#else
bool take_over_translator(Core *c) { return false; }
#endif
