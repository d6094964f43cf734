/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Reading the engine's description of a block of translated code, and the instructions in it to stop before.
 *
 * The engine keeps its description of a block (TranslationBlock) directly in front of the code, and stores behind the
 * code, for its own use, where each instruction of the block begins.
 */
#include "core.h"

/* The engine's table holds, per instruction, three differences to the row before in signed LEB128. */
typedef struct {
    const uint8_t *row;
    uint64_t at;                /* linear address of the instruction before */
} Walk;

static Walk walk_from(const Core *c, const uint8_t *tb)
{
    return (Walk){TB(c, tb, TB_CODE, const uint8_t *const) + TB(c, tb, TB_CODE_SIZE, const size_t),
                  TB(c, tb, TB_PC, const uint64_t)};
}

static uint64_t next_instruction(Walk *walk)
{
    for (int column = 0; column < 3; column++) {
        int64_t value = 0;
        int shift = 0;
        uint8_t byte;
        do {
            byte = *walk->row++;
            value |= (int64_t)(byte & 0x7f) << shift;
            shift += 7;
        } while (byte & 0x80);
        if (shift < 64 && (byte & 0x40))
            value |= -((int64_t)1 << shift);
        if (column == 0)
            walk->at += value;
    }
    return walk->at;
}

/* The number of the instruction at linear address `pc` among the first `count` of block `tb`, or `count` if none begins
 * there; the address of the last instruction looked at goes to `reached`. */
static int64_t walk_block(const Core *c, const uint8_t *tb, uint64_t pc, int64_t count, uint64_t *reached)
{
    Walk walk = walk_from(c, tb);
    for (int64_t i = 0; i < count; i++)
        if ((*reached = next_instruction(&walk)) == pc)
            return i;
    return count;
}

int64_t index_in_block(const Core *c, const uint8_t *tb, uint64_t pc, uint64_t *reached)
{
    return walk_block(c, tb, pc, TB(c, tb, TB_ICOUNT, const uint16_t), reached);
}

/* The address of the instruction that ends at `pc`, in the block or at its end. */
uint64_t instruction_before(const Core *c, const uint8_t *tb, uint64_t pc)
{
    uint64_t at = 0, reached;
    walk_block(c, tb, ~(uint64_t)0, index_in_block(c, tb, pc, &reached), &at);
    return at;
}

/* The address behind instruction number `index` of the block. */
uint64_t instruction_after(const Core *c, const uint8_t *tb, int64_t index)
{
    uint64_t end = TB(c, tb, TB_PC, const uint64_t) + TB(c, tb, TB_SIZE, const uint16_t);
    if (index + 1 >= TB(c, tb, TB_ICOUNT, const uint16_t))
        return end;
    uint64_t reached = end;
    walk_block(c, tb, ~(uint64_t)0, index + 2, &reached);
    return reached;
}

/* Instructions that the engine does not do as we need them: it switches tasks without a VM exit, INS has written its
 * destination before it asks for the port, and PUSHFD stores EFLAGS.VM. So we stop before INS in any guest, before a far
 * jump, call or return that may be a task switch, before PUSHFD in virtual-8086 mode, and let Python look. They are
 * looked for when a block is translated, or begins for the first time. (To a block in another mode another description
 * belongs.) */
enum { OPERAND_SIZE = 0x66, OF_REGISTER = 0xC0 };

uint8_t code_byte(const Core *c, const uint8_t *tb, uint64_t linear)
{
    int page = (linear ^ TB(c, tb, TB_PC, const uint64_t)) >> 12 != 0;
    uint64_t at = FIELD(tb, c->off[TB_PAGES] + 8 * page, const uint64_t) + (linear & 0xFFF);
    return at < c->ram_size ? c->ram[at] : 0;
}

int classify(const Core *c, const uint8_t *tb, uint64_t at)
{
    bool wide = false;          /* in virtual-8086 mode, where code is 16 bits wide */
    for (int i = 0; i < 15; i++, at++)
        switch (code_byte(c, tb, at)) {
        case OPERAND_SIZE:
            wide = true;
            continue;
        case 0x26: case 0x2E: case 0x36: case 0x3E: case 0x64: case 0x65: case 0x67: case 0xF0: case 0xF2: case 0xF3:
            continue;
        case 0x9C:
            return wide && ENV(c, O_EFLAGS, uint64_t) & VM_MASK ? PUSH_FLAGS : NOTHING;
        case 0x6C: case 0x6D:
            return PORT_INPUT;
        case 0x9A: case 0xEA:
            return FAR_TRANSFER;
        case 0xCF:
            return INTERRUPT_RETURN;
        case 0xFF: {
            int operand = code_byte(c, tb, at + 1), operation = operand >> 3 & 7;
            return (operation == 3 || operation == 5) && operand < OF_REGISTER ? FAR_TRANSFER : NOTHING;
        }
        default:
            return NOTHING;
        }
    return NOTHING;
}

/* The first such instruction of the block and, in `kind`, what it is. */
static int64_t special_instruction(const Core *c, const uint8_t *tb, int *kind)
{
    int64_t count = TB(c, tb, TB_ICOUNT, const uint16_t);
    Walk walk = walk_from(c, tb);
    for (int64_t i = 0; i < count; i++)
        if ((*kind = classify(c, tb, next_instruction(&walk))) != NOTHING)
            return i;
    return -1;
}

/* A block that has one, or is new. True if we have stopped: before the instruction, or to have the block cut there. */
bool stop_before(Core *c, uint8_t *tb)
{
    uint32_t *flags = &TB(c, tb, TB_CFLAGS, uint32_t);
    int kind = NOTHING;
    if (!(*flags & CF_SEEN)) {
        if (is_repeated(c, tb))
            *flags |= CF_REPEATS;
        bool resumes = ENV(c, O_EFLAGS, uint64_t) & RF_MASK;
        *flags |= special_instruction(c, tb, &kind) < 0 && !resumes ? CF_SEEN : CF_SEEN | CF_SPECIAL;
    }
    ENV(c, O_EFLAGS, uint32_t) &= ~RF_MASK; /* the engine would keep it, and PUSHF store it, to the end of some block */
    if (!(*flags & CF_SPECIAL) || !(ENV(c, O_HFLAGS, uint32_t) & HF_GUEST))
        return false;
    int64_t index = special_instruction(c, tb, &kind);
    uint64_t eflags = ENV(c, O_EFLAGS, uint64_t);
    if (kind == NOTHING)        /* overwritten since; the engine will notice */
        return false;
    bool may_switch_tasks = kind == FAR_TRANSFER || kind == INTERRUPT_RETURN;
    if (may_switch_tasks && (!(ENV(c, O_CR, uint64_t) & CR0_PE) || eflags & VM_MASK))
        return false;
    if (kind == INTERRUPT_RETURN && !(eflags & NT_MASK))
        return false;
    if (index == 0 && c->pass) {
        c->pass = false;
        return false;
    }
    LAST(c) = NULL;
    c->cut = index;
    stop(c, index == 0 ? EVENT_BEFORE : EVENT_BUDGET);
    return true;
}
