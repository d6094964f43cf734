/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Section 6.5: messages of the kernel's own. Page faults, exceptions, interrupts, and how a thread starts. */
#include "check.h"

#define ABORT (1 << 1 | 1 << 2)
#define PAGE_FAULT(rights) ((0xffe0UL | (rights)) << 16 | 2)

static struct ipc got, answer;

static int hear(L4_ThreadId_t from)
{
    got = (struct ipc){.from = from, .timeouts = L4_TimePeriod(20000).raw};
    run(&got);
    return got.error == 0;
}

static void tell(L4_ThreadId_t to)
{
    answer.to = to;
    answer.timeouts = NOT_WAITING;
    run(&answer);
}

static void map_answer(L4_Word_t rights)
{
    answer = (struct ipc){.mr = {2 << 6, ROOM | 8, (L4_Word_t)filler | PAGE_LOG2 << 4 | rights}};
    tell(worker(0));
}

static void unmap_room(void) { L4_Flush(L4_FpageAddRights(L4_FpageLog2(ROOM, PAGE_LOG2), ALL)); }

/* Page faults. The worker's pager is main. */

static L4_Word_t poke(L4_Word_t address)
{
    *(volatile L4_Word_t *)address = 0x77;
    return 1;
}

static L4_Word_t jump(L4_Word_t address)
{
    ((void (*)(void))address)();
    return 5;
}

static L4_Word_t registers_kept(L4_Word_t address)
{
    L4_Word_t *mr = l4_utcb(), good = 1;
    for (L4_Word_t i = 0; i < 64; i++)
        mr[i] = i * 3 + 1;
    L4_LoadBR(0, 0x1230);
    L4_Set_VirtualSender(main_thread);
    *(volatile L4_Word_t *)address;
    for (L4_Word_t i = 0; i < 64; i++)
        good &= mr[i] == i * 3 + 1;
    good &= mr[-16] == 0x1230 && mr[-6] == main_thread.raw;
    L4_LoadBR(0, 0);
    return good;
}

static L4_Word_t with_pager(L4_Word_t id)
{
    L4_Word_t was = L4_Pager().raw, word;
    L4_Set_Pager((L4_ThreadId_t){id});
    word = peek(ROOM + 8);
    L4_Set_Pager((L4_ThreadId_t){was});
    return word;
}

static void page_faults(void)
{
    L4_Word_t count;
    filler[2] = 0x1234;
    begin(0, peek, ROOM + 8);
    hear(worker(0));
    CHECK("6.5", "a page fault of a read: label -2 with r and x, two words", got.mr[0] == PAGE_FAULT(5));
    CHECK("6.5", "it says where", got.mr[1] == ROOM + 8);
    CHECK("6.5", "it says at which instruction", got.mr[2] - (L4_Word_t)peek < 16);
    CHECK("6.5", "it comes from the thread itself", got.partner.raw == local_worker(0).raw);
    answer = (struct ipc){0};
    tell(worker(0));
    hear(worker(0));
    CHECK("6.5", "an answer without a page repeats the fault", got.mr[0] == PAGE_FAULT(5) && got.mr[1] == ROOM + 8);
    map_answer(4);
    CHECK("6.5", "an answer with a page ends it", finish(0) == 0x1234);
    begin(0, poke, ROOM + 12);
    hear(worker(0));
    CHECK("6.5", "a page fault of a write: label -2 with w", got.mr[0] == PAGE_FAULT(2) && got.mr[1] == ROOM + 12);
    map_answer(ALL);
    CHECK("6.5", "an answer with more rights ends it", finish(0) == 1 && filler[3] == 0x77);
    unmap_room();

    begin(0, jump, ROOM);
    hear(worker(0));
    CHECK("6.5", "a page fault of a fetch: its address is its IP",
          got.mr[0] == PAGE_FAULT(5) && got.mr[1] == ROOM && got.mr[2] == ROOM);
    filler[0] = 0xc3; /* ret */
    map_answer(ALL);
    CHECK("6.5", "what is mapped can be executed", finish(0) == 5);
    unmap_room();
    begin(0, registers_kept, ROOM);
    hear(worker(0));
    map_answer(ALL);
    CHECK("6.5", "a page fault keeps MRs, BR0 and VirtualSender", finish(0) == 1);
    unmap_room();

    begin(0, registers_kept, ROOM);
    hear(worker(0));
    L4_ExchangeRegisters(worker(0), ABORT, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    hear(worker(0));
    CHECK("5.3", "an aborted page fault recurs", got.mr[0] == PAGE_FAULT(5) && got.mr[1] == ROOM);
    map_answer(ALL);
    CHECK("5.3", "and message registers are as before", finish(0) == 1);
    unmap_room();
    count = fault.count;
    CHECK("2", "a pager of one's own choice",
          let(0, with_pager, pager_thread.raw) == filler[2] && fault.count == count + 1);
    CHECK("6.5", "it hears the same", fault.address == ROOM + 8 && fault.label == 0xffe5);
    unmap_room();
}

/* Exceptions. Each of these functions raises one, and stores EAX and EFLAGS behind it. */

L4_Word_t seen[3];

#define RAISER(name, instruction)             \
    __asm__(#name ": pushal\n"                \
                  "movl $0x11, %ebx\n"        \
                  "movl $0x22, %edx\n"        \
                  "movl $0x33, %esi\n"        \
                  "movl $0x44, %edi\n"        \
                  "movl $0x55, %ebp\n"        \
                  "movl $0x66, %eax\n"        \
                  "xorl %ecx, %ecx\n"         \
                  "movl %esp, seen + 8\n"     \
                  ".globl " #name "_at\n" #name "_at: " instruction "\n" \
                  ".globl " #name "_end\n" #name "_end: movl %eax, seen\n" \
                  "pushfl\n popl seen + 4\n"  \
                  "popal\n movl $1, %eax\n ret\n"); \
    L4_Word_t name(L4_Word_t);                \
    extern char name##_at[], name##_end[]

RAISER(divide, "divl %ecx");
RAISER(undefined, "ud2");
RAISER(trap, "int $0x80");
RAISER(privileged, "hlt");
RAISER(gate, "int $0x40");

static L4_Word_t set_handler(L4_Word_t id)
{
    L4_Set_ExceptionHandler((L4_ThreadId_t){id});
    return 0;
}

/* Raise it, hear of it, have it go on behind. */
static int raises(work_t function, char *at, char *behind, L4_Word_t number, L4_Word_t code)
{
    int good;
    begin(0, function, 0);
    good = hear(worker(0)) && got.mr[0] == (0xffb0UL << 16 | 12) && got.mr[1] == (L4_Word_t)at && got.mr[3] == number &&
           got.mr[4] == code;
    answer = (struct ipc){.mr = {1, (L4_Word_t)behind}};
    tell(worker(0));
    return good && finish(0) == 1;
}

static void exceptions(void)
{
    let(0, set_handler, main_thread.raw);
    begin(0, divide, 0);
    hear(worker(0));
    CHECK("6.5", "an exception: label -5, 12 words", got.mr[0] == (0xffb0UL << 16 | 12));
    CHECK("6.5", "MR1 is EIP", got.mr[1] == (L4_Word_t)divide_at);
    CHECK("6.5", "MR2 is EFLAGS", (got.mr[2] & 0x3202) == 0x202);
    CHECK("6.5", "MR3 and MR4 are number and error code", got.mr[3] == 0 && got.mr[4] == 0);
    CHECK("6.5", "MR5 to MR7 are EDI, ESI, EBP", got.mr[5] == 0x44 && got.mr[6] == 0x33 && got.mr[7] == 0x55);
    CHECK("6.5", "MR8 is ESP", got.mr[8] == seen[2]);
    CHECK("6.5", "MR9 to MR12 are EBX, EDX, ECX, EAX",
          got.mr[9] == 0x11 && got.mr[10] == 0x22 && got.mr[11] == 0 && got.mr[12] == 0x66);
    answer = got;
    answer.from = L4_nilthread;
    answer.mr[0] = 12;
    answer.mr[1] = (L4_Word_t)divide_end;
    answer.mr[2] = ~0UL & ~(1UL << 8);
    answer.mr[12] = 0x99;
    tell(worker(0));
    CHECK("6.5", "the answer's EIP and EAX are taken", finish(0) == 1 && seen[0] == 0x99);
    CHECK("4.4", "of the answer's EFLAGS, the arithmetic ones", (seen[1] & ~2UL) == (0x8d5 | 0x200));
    CHECK("14", "Q23: a short answer is taken as far as it goes",
          raises(divide, divide_at, divide_end, 0, 0) && seen[0] == 0x66);
    CHECK("6.5", "UD2 is exception 6", raises(undefined, undefined_at, undefined_end, 6, 0));
    CHECK("6.5", "HLT is exception 13", raises(privileged, privileged_at, privileged_end, 13, 0));
    CHECK("6.5", "INT 0x80 is exception 13, error code 8 * 0x80 + 2", raises(trap, trap_at, trap_end, 13, 0x402));
    CHECK("4.1", "there are no other gates", raises(gate, gate_at, gate_end, 13, 8 * 0x40 + 2));
}

#define GPREGS 0
#define CTRLXFER 0xcUL
#define CONFIGURE (1 << 9)
#define OF_EXCEPTIONS (5UL << 4)

static void with_items(void)
{
    L4_LoadMR(1, CTRLXFER | OF_EXCEPTIONS | 1UL << (12 + GPREGS));
    L4_ExchangeRegisters(worker(0), CONFIGURE, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    begin(0, divide, 0);
    hear(worker(0));
    CHECK("6.5", "with register items: two words, then items", got.mr[0] == (0xffb0UL << 16 | 11 << 6 | 2));
    CHECK("6.5", "with register items: number and error code", got.mr[1] == 0 && got.mr[2] == 0);
    CHECK("5.5", "the item: type 6, ten registers", got.mr[3] == (CTRLXFER | GPREGS << 4 | 0x3ffUL << 12));
    CHECK("9.6", "the first of them is EIP", got.mr[4] == (L4_Word_t)divide_at);
    answer = (struct ipc){.mr = {2 << 6, CTRLXFER | GPREGS << 4 | 1UL << 12, (L4_Word_t)divide_end}};
    tell(worker(0));
    CHECK("6.5", "an answer with a register item is taken", finish(0) == 1 && seen[0] == 0x66);
    L4_LoadMR(1, CTRLXFER | OF_EXCEPTIONS);
    L4_ExchangeRegisters(worker(0), CONFIGURE, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    CHECK("8.3", "without items again: 12 words", raises(divide, divide_at, divide_end, 0, 0));
    let(0, set_handler, 0);
    begin(0, divide, 0);
    CHECK("6.5", "an exception without a handler halts", state_of(worker(0)) == 2);
    stop(0);
}

/* Interrupts: the serial port's, which comes when its transmitter is empty and somebody wants to know. */

#define LINE 4
#define IER 0x3f9
#define IIR 0x3fa
#define MCR 0x3fc

static void interrupts(void)
{
    L4_ThreadId_t line = L4_GlobalId(LINE, 1);
    L4_Sigma0_GetPage(L4_nilthread, L4_IoFpageLog2(0x3f8, 3));
    CHECK("13", "an interrupt that nobody has is nobody to Schedule", state_of(line) == 0);
    CHECK("6.5", "attach an interrupt to nobody: error 2",
          !L4_AssociateInterrupt(line, nobody()) && L4_ErrorCode() == L4_ErrInvalidThread);
    CHECK("8.1", "an interrupt's version is 1",
          !L4_AssociateInterrupt(L4_GlobalId(LINE, 2), main_thread) && L4_ErrorCode() == L4_ErrInvalidThread);
    CHECK("6.5", "attach an interrupt", L4_AssociateInterrupt(line, main_thread) == 1);
    CHECK("13", "then its priority can be set", L4_Set_Priority(line, 255) != 0);
    l4_out8(MCR, 0x0b);
    l4_out8(IER, 2);
    hear(line);
    CHECK("6.5", "an interrupt: label -1, no words", got.mr[0] == 0xfff0UL << 16 && got.error == 0);
    CHECK("6.5", "it comes from the interrupt's thread", got.partner.raw == line.raw);
    l4_in8(IIR);
    l4_out8(IER, 0);
    l4_out8(IER, 2);
    CHECK("6.5", "until it is acknowledged there is no other", !hear(line) && got.error == 3);
    answer = (struct ipc){.mr = {0xfff10001UL, 5}};
    tell(line);
    CHECK("6.5", "any message acknowledges", answer.error == 0);
    CHECK("6.5", "then the next one comes", hear(line) && got.mr[0] == 0xfff0UL << 16);
    l4_in8(IIR);
    l4_out8(IER, 0);
    answer = (struct ipc){0};
    tell(line);
    l4_out8(IER, 2);
    settle();
    hear(L4_anythread);
    CHECK("6.5", "an interrupt waits until its handler receives", got.error == 0 && got.partner.raw == line.raw);
    l4_in8(IIR);
    l4_out8(IER, 0);
    tell(line);
    CHECK("6.5", "detach an interrupt", L4_DeassociateInterrupt(line) == 1 && state_of(line) == 0);
    l4_out8(IER, 2);
    hear(line);
    CHECK("6.5", "then there are none", got.error == 3 || got.error == 5);
    l4_in8(IIR);
    l4_out8(IER, 0);
}

static volatile L4_Word_t started;

static void begin_here(void)
{
    started = L4_Myself().raw;
    L4_Sleep(L4_Never);
}

static void beginnings(void)
{
    L4_Word_t sp = (L4_Word_t)stacks[3] + STACK;
    struct ipc early = {.to = worker(3), .timeouts = ZERO << 16, .mr = {2, (L4_Word_t)begin_here, sp}};
    L4_ThreadControl(worker(3), main_thread, main_thread, pager_thread, utcb_of(3));
    run(&early);
    CHECK("6.5", "only the pager starts a thread", early.error == 2);
    L4_ThreadControl(worker(3), main_thread, main_thread, main_thread, L4_UTCB_UNCHANGED);
    early = (struct ipc){.to = worker(3), .timeouts = ZERO << 16, .mr = {0xabcd0002, (L4_Word_t)begin_here, sp}};
    run(&early);
    settle();
    CHECK("6.5", "two words, whatever the label: IP and SP", early.error == 0 && started == worker(3).raw);
    stop(3);
    started = 0;
    L4_ThreadControl(worker(3), main_thread, main_thread, main_thread, utcb_of(3));
    L4_ExchangeRegisters(worker(3), 1 << 3 | 1 << 4, sp, (L4_Word_t)begin_here, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
    early = (struct ipc){.to = worker(3), .timeouts = ZERO << 16, .mr = {1, 0x666}};
    run(&early);
    settle();
    CHECK("6.5", "any other number of words leaves IP and SP as they are",
          early.error == 0 && started == worker(3).raw);
    stop(3);
}

int main(void)
{
    hello();
    start(0);
    settle();
    page_faults();
    exceptions();
    with_items();
    interrupts();
    beginnings();
    return goodbye();
}
