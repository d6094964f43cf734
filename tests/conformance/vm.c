/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chapter 9: a virtual CPU, its exits, its registers, events. Main is the monitor; the guest is in this program too. */
#include "check.h"

#define GUEST_PAGE 0x2000UL /* where the guest's memory is the monitor's to choose */
#define VM (1UL << 30)
#define ITEM(id, mask) (0xcUL | (L4_Word_t)(id) << 4 | (L4_Word_t)(mask) << 12)
#define FULL_GPREGS ITEM(0, 0x3ff)
enum { GPREGS, CREGS = 2, DREGS, CS, SS, DS, ES, TR = 10, LDTR, IDTR, GDTR, NONREGEXC, EXECCTRL };
enum { CPUID = 10, HLT = 12, INVLPG = 14, RDTSC = 16, CR = 28, IO = 30, RDMSR, WRMSR, PAUSE = 40, WINDOW = 7 };

#define CONFIGURE (1 << 9)
#define READ (1 << 10)
#define WRITE (1 << 11)

static struct ipc exit_, answer;
static L4_ThreadId_t vcpu;
static L4_Word_t count;
static char guest_stack[1024] __attribute__((aligned(16)));
static L4_Word64_t gdt[3] = {0, 0x00cf9b000000ffffULL, 0x00cf93000000ffffULL};
static L4_Word64_t idt[64];

/* The guest. Each label is behind an instruction that exits. */
__asm__("guest:\n"
        "    movl $0x1234, %eax\n"
        "    cpuid\n"
        "    outb %al, $0x80\n"
        "    movl $0x3f8, %edx\n"
        "    inb %dx, %al\n"
        "    movl %eax, %cr3\n"
        "    movl %cr3, %ebx\n"
        "    movl $0x1b, %ecx\n"
        "    rdmsr\n"
        "    wrmsr\n"
        "    rdtsc\n"
        "    invlpg 0x5000\n"
        "    pause\n"
        "    ud2\n"
        "    movl %cr0, %ebx\n"
        "    cpuid\n"
        "    movl 0x2004, %ebx\n"
        "    cpuid\n"
        "    sti\n"
        "    nop\n"
        "    nop\n"
        "    hlt\n"
        "    cpuid\n"
        "guest_handler:\n"
        "    movl $0x77, %ebx\n"
        "    cpuid\n"
        "    iret\n");
void guest(void);
void guest_handler(void);

/* The guest's registers as an exit brings them: behind three words and the item's header. */
static L4_Word_t gpreg(L4_Word_t index) { return exit_.mr[5 + index]; }
enum { EIP, EFLAGS, EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX };

/* The next exit. Pages of the program are given to the guest where they are. */
static void next(void)
{
    for (;;) {
        L4_Word_t page;
        exit_ = (struct ipc){.from = vcpu, .timeouts = L4_TimePeriod(20000).raw};
        run(&exit_);
        page = exit_.mr[1] & -PAGE; /* programs begin at a page's beginning */
        if (exit_.error || (exit_.mr[0] >> 20) != 0xffe || !is_program(page))
            return;
        count++;
        answer = (struct ipc){.to = vcpu, .timeouts = NOT_WAITING, .mr = {2 << 6, page | 8, page | 12 << 4 | ALL}};
        run(&answer);
    }
}

static void reply(void)
{
    answer.to = vcpu;
    answer.timeouts = NOT_WAITING;
    run(&answer);
}

/* On behind the instruction, and to the next exit. */
static void skip(void)
{
    answer = (struct ipc){.mr = {2 << 6, ITEM(GPREGS, 1), gpreg(EIP) + exit_.mr[2]}};
    reply();
    next();
}

static int is_exit(L4_Word_t reason, L4_Word_t length)
{
    return exit_.error == 0 && exit_.mr[0] == ((0xff70 - 16 * reason) << 16 | 11 << 6 | 3) && exit_.mr[2] == length &&
           exit_.mr[4] == FULL_GPREGS;
}

static L4_Word_t exchange(L4_Word_t control)
{
    return L4_ExchangeRegisters(vcpu, control, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0).raw;
}

static void create(void)
{
    L4_Fpage_t kip = L4_FpageLog2(0x00c00000, 12), utcbs = L4_FpageLog2(0x00800000, 12);
    L4_Word_t old = 0, at = 1;
    vcpu = worker(0);
    L4_ThreadControl(vcpu, vcpu, main_thread, L4_nilthread, (void *)0x00800000);
    CHECK("9.1", "a space becomes a virtual machine", L4_SpaceControl(vcpu, VM, kip, utcbs, L4_nilthread, &old) == 1);
    CHECK("8.2", "and SpaceControl says so", old == VM);
    old = 0;
    L4_SpaceControl(vcpu, 0, kip, utcbs, L4_nilthread, &old);
    CHECK("8.2", "it stays one", old == VM);
    CHECK("9.2", "its thread waits for the monitor",
          L4_ThreadControl(vcpu, vcpu, L4_nilthread, main_thread, L4_UTCB_UNCHANGED) == 1 && state_of(vcpu) == 6);
    L4_LoadMR(1, ITEM(EXECCTRL, 7));
    CHECK("9.2", "its registers can be read", exchange(READ) != 0);
    CHECK("9.9", "pin-based controls: external interrupts and NMIs exit", (l4_utcb()[2] & 9) == 9);
    CHECK("9.9", "CPU-based controls: HLT, INVLPG, MWAIT, RDPMC, RDTSC, MOV DR, I/O, MONITOR, PAUSE exit",
          (l4_utcb()[3] & 0x61801e80) == 0x61801e80);
    CHECK("9.9", "all exceptions exit", l4_utcb()[4] == ~0UL);
    L4_LoadMR(1, ITEM(CS, 0xf));
    exchange(READ);
    CHECK("9.9", "segments are those of real mode",
          l4_utcb()[2] == 0 && l4_utcb()[3] == 0 && l4_utcb()[4] == 0xffff && l4_utcb()[5] == 0xf3);
    L4_LoadMR(1, ITEM(CREGS, 2));
    exchange(READ);
    CHECK("9.9", "CR0's read shadow", l4_utcb()[2] == 0x60000010);
    L4_LoadMR(1, ITEM(TR, 0xf));
    exchange(READ);
    CHECK("9.9", "TR: a busy task segment of limit 0xffff",
          l4_utcb()[2] == 0 && l4_utcb()[3] == 0 && l4_utcb()[4] == 0xffff && l4_utcb()[5] == 0x808b);
    L4_LoadMR(1, ITEM(LDTR, 0xf));
    exchange(READ);
    CHECK("9.9", "LDTR: unusable", l4_utcb()[4] == 0xffff && l4_utcb()[5] >> 16 == 1);
    L4_LoadMR(1, ITEM(GDTR, 3));
    exchange(READ);
    CHECK("9.9", "GDTR: base 0, limit 0xffff", l4_utcb()[2] == 0 && l4_utcb()[3] == 0xffff);
    L4_LoadMR(1, ITEM(DREGS, 0x20));
    exchange(READ);
    CHECK("9.9", "DR7 is 0x400", l4_utcb()[2] == 0x400);
    L4_LoadMR(1, ITEM(NONREGEXC, 7));
    exchange(READ);
    CHECK("9.9", "activity, interruptibility, pending debug exceptions: none",
          l4_utcb()[2] == 0 && l4_utcb()[3] == 0 && l4_utcb()[4] == 0);
    L4_LoadMR(1, ITEM(CREGS, 4) | 1);
    L4_LoadMR(3, ITEM(CREGS, 0xc0));
    exchange(READ);
    CHECK("9.9", "all bits of CR0 and CR4 are masked",
          l4_utcb()[2] == ~0UL && l4_utcb()[5] == ~0UL && l4_utcb()[4] == 0);
    for (L4_Word_t reason = 0; reason <= 43; reason++)
        L4_LoadMR(at++, ITEM(9 + reason, 1 << GPREGS) | (reason < 43));
    CHECK("8.3", "items are configured for all exits", exchange(CONFIGURE) != 0);
}

static L4_Word_t *segment(L4_Word_t *at, L4_Word_t id, L4_Word_t selector, L4_Word_t attributes)
{
    at[0] = ITEM(id, 0xf);
    at[1] = selector;
    at[2] = 0;
    at[3] = ~0UL;
    at[4] = attributes;
    return at + 5;
}

static L4_Word_t *table(L4_Word_t *at, L4_Word_t id, void *base, L4_Word_t limit)
{
    at[0] = ITEM(id, 3);
    at[1] = (L4_Word_t)base;
    at[2] = limit;
    return at + 3;
}

/* Protected mode, flat, no paging. */
static void launch(void)
{
    L4_Word_t *at = answer.mr + 1;
    L4_Word_t handler = (L4_Word_t)guest_handler;
    idt[0x21] = (L4_Word64_t)(handler >> 16 << 16 | 0x8e00) << 32 | 8UL << 16 | (handler & 0xffff);
    *at++ = ITEM(GPREGS, 1 << EIP | 1 << EFLAGS | 1 << ESP);
    *at++ = (L4_Word_t)guest;
    *at++ = 2;
    *at++ = (L4_Word_t)guest_stack + sizeof guest_stack;
    at = segment(at, CS, 8, 0xc09b);
    at = segment(at, SS, 0x10, 0xc093);
    at = segment(at, DS, 0x10, 0xc093);
    at = segment(at, ES, 0x10, 0xc093);
    at = table(at, GDTR, gdt, sizeof gdt - 1);
    at = table(at, IDTR, idt, sizeof idt - 1);
    *at++ = ITEM(CREGS, 3);
    *at++ = 0x11; /* CR0, protected mode; and what the guest reads of it */
    *at++ = 0x11;
    answer.mr[0] = (L4_Word_t)(at - answer.mr - 1) << 6;
    reply();
    next();
    CHECK("9.2", "the first message launches the guest", answer.error == 0 && exit_.error == 0);
    CHECK("9.1", "its memory is asked for by page faults", count > 0);
}

static void exits(void)
{
    CHECK("9.3", "CPUID: label 0xfed0, three words, the registers", is_exit(CPUID, 2));
    CHECK("9.3", "CPUID: no qualification, nothing additional", exit_.mr[1] == 0 && exit_.mr[3] == 0);
    CHECK("9.3", "the guest's registers", gpreg(EAX) == 0x1234 && gpreg(EIP) == (L4_Word_t)guest + 5);
    skip();
    CHECK("11", "OUT to a port of the instruction's", is_exit(IO, 2) && exit_.mr[1] == 0x00800040);
    skip();
    CHECK("11", "IN from a port in DX", is_exit(IO, 1) && exit_.mr[1] == 0x03f80008);
    skip();
    CHECK("11", "MOV to CR3", is_exit(CR, 3) && exit_.mr[1] == 0x003);
    skip();
    CHECK("11", "MOV from CR3", is_exit(CR, 3) && exit_.mr[1] == 0x313);
    skip();
    CHECK("9.4", "RDMSR", is_exit(RDMSR, 2) && gpreg(ECX) == 0x1b);
    skip();
    CHECK("9.4", "WRMSR", is_exit(WRMSR, 2));
    skip();
    CHECK("9.4", "RDTSC", is_exit(RDTSC, 2));
    skip();
    CHECK("11", "INVLPG: its address", is_exit(INVLPG, 7) && exit_.mr[1] == 0x5000);
    skip();
    CHECK("9.4", "PAUSE", is_exit(PAUSE, 2));
    skip();
    L4_LoadMR(1, ITEM(NONREGEXC, 1 << 6));
    exchange(READ);
    CHECK("9.4", "UD2 is an exception", exit_.mr[0] >> 16 == 0xff70);
    CHECK("9.8", "exit_info: hardware exception 6, valid", (l4_utcb()[2] & 0x80000fff) == 0x80000306);
    answer = (struct ipc){.mr = {2 << 6, ITEM(GPREGS, 1), gpreg(EIP) + 2}};
    reply();
    next();
    CHECK("9.7", "the guest reads CR0's shadow", is_exit(CPUID, 2) && gpreg(EBX) == 0x11);
}

static void memory(void)
{
    answer = (struct ipc){.mr = {3 << 6, ITEM(GPREGS, 1 << EIP | 1 << EBX), gpreg(EIP) + 2, 0}};
    reply();
    next();
    CHECK("9.4", "missing memory is a page fault",
          exit_.mr[0] == (0xffe5UL << 16 | 2) && exit_.mr[1] == GUEST_PAGE + 4);
    filler[1] = 0xfeed;
    answer = (struct ipc){.mr = {2 << 6, GUEST_PAGE | 8, (L4_Word_t)filler | 12 << 4 | ALL}};
    reply();
    next();
    CHECK("9.1", "what is mapped is the guest's memory", is_exit(CPUID, 2) && gpreg(EBX) == 0xfeed);
}

static void events(void)
{
    L4_Word_t here, controls;
    L4_LoadMR(1, ITEM(EXECCTRL, 2));
    exchange(READ);
    controls = l4_utcb()[2];
    answer = (struct ipc){.mr = {4 << 6, ITEM(EXECCTRL, 2), controls | 4, ITEM(GPREGS, 1), gpreg(EIP) + 2}};
    reply();
    next();
    here = gpreg(EIP);
    CHECK("9.8", "an interrupt window: when the guest would take one",
          exit_.mr[0] >> 16 == 0xff70 - 16 * WINDOW && gpreg(EFLAGS) & 0x200);
    answer = (struct ipc){.mr = {4 << 6, ITEM(EXECCTRL, 2), controls & ~4UL, ITEM(NONREGEXC, 1 << 3), 0x80000021}};
    reply();
    next();
    CHECK("9.8", "an injected interrupt goes through the guest's IDT", is_exit(CPUID, 2) && gpreg(EBX) == 0x77);
    CHECK("9.8", "with interrupts off", (gpreg(EFLAGS) & 0x200) == 0);
    CHECK("9.8", "its frame is on the guest's stack", *(L4_Word_t *)gpreg(ESP) == here);
    L4_LoadMR(1, ITEM(NONREGEXC, 1 << 3));
    exchange(READ);
    CHECK("9.8", "it is injected once", (l4_utcb()[2] & 0x80000000) == 0);
    skip();
    CHECK("9.4", "HLT, after the guest has come back", is_exit(HLT, 1) && gpreg(EFLAGS) & 0x200);
    settle();
    CHECK("9.3", "without an answer it waits", state_of(vcpu) == 6);
    L4_LoadMR(1, ITEM(GPREGS, 1 << EAX));
    L4_LoadMR(2, 0x4321);
    exchange(WRITE);
    L4_LoadMR(1, ITEM(GPREGS, 1 << EAX));
    L4_LoadMR(2, 0);
    exchange(READ);
    CHECK("8.3", "ExchangeRegisters writes and reads its registers", l4_utcb()[2] == 0x4321);
    skip();
    CHECK("9.3", "what was written is what the guest has", is_exit(CPUID, 2) && gpreg(EAX) == 0x4321);
    CHECK("9.1", "a virtual CPU is deleted as any thread", delete(vcpu) == 1 && state_of(vcpu) == 0);
}

int main(void)
{
    hello();
    create();
    launch();
    exits();
    memory();
    events();
    return goodbye();
}
