/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chapter 4: what each system call does to registers, how it takes identifiers, the kernel debugger's traps. */
#include "check.h"

enum { EAX, ECX, EDX, EBX, EBP, ESI, EDI, ESP };

/* Registers before and after a call, all of them; the stack pointer's own place too. */
L4_Word_t before[8], after[8], entry, stack_here;

__asm__("call_with:\n"
        "    pushal\n"
        "    movl %esp, stack_here\n"
        "    movl before, %eax\n"
        "    movl before + 4, %ecx\n"
        "    movl before + 8, %edx\n"
        "    movl before + 12, %ebx\n"
        "    movl before + 16, %ebp\n"
        "    movl before + 20, %esi\n"
        "    movl before + 24, %edi\n"
        "    movl %esp, before + 28\n"
        "    call *entry\n"
        "    movl %eax, after\n"
        "    movl %ecx, after + 4\n"
        "    movl %edx, after + 8\n"
        "    movl %ebx, after + 12\n"
        "    movl %ebp, after + 16\n"
        "    movl %esi, after + 20\n"
        "    movl %edi, after + 24\n"
        "    movl %esp, after + 28\n"
        "    movl stack_here, %esp\n"
        "    cld\n"
        "    popal\n"
        "    ret\n");
void call_with(void);

/* Arguments in the order of the manual's tables; registers that are no arguments have these words. */
#define MARK(n) (0x5a5a0001UL + ((n) << 8))

static void call(L4_Word_t where, L4_Word_t eax, L4_Word_t ecx, L4_Word_t edx, L4_Word_t esi, L4_Word_t edi)
{
    before[EAX] = eax;
    before[ECX] = ecx;
    before[EDX] = edx;
    before[EBX] = MARK(EBX);
    before[EBP] = MARK(EBP);
    before[ESI] = esi;
    before[EDI] = edi;
    entry = where;
    call_with();
}

static int kept(int reg) { return before[reg] == after[reg]; }
static int kept_all_but(unsigned int changed)
{
    int all = 1;
    for (int i = EAX; i <= ESP; i++)
        all &= changed >> i & 1 || kept(i);
    return all;
}

static void registers(void)
{
    L4_Word_t utcb = (L4_Word_t)l4_utcb(), zero = ZERO << 16 | ZERO;
    L4_Word_t id = worker(0).raw, none = nobody().raw, flags;

    call(L4_ENTRY(Ipc), 0, zero, id, 0, utcb);
    CHECK("4.2", "Ipc: a receive that fails keeps EDI and ESP", kept(EDI) && kept(ESP) && after[EAX] == 0);
    call(L4_ENTRY(Ipc), none, zero, 0, 0, utcb);
    CHECK("4.2", "Ipc: a send that fails keeps EDI and ESP", kept(EDI) && kept(ESP) && after[ESI] == 0x8000);
    call(L4_ENTRY(Lipc), none, zero, 0, 0, utcb);
    CHECK("4.2", "Lipc: a send that fails keeps EDI and ESP", kept(EDI) && kept(ESP) && after[ESI] == 0x8000);
    l4_utcb()[1] = MARK(1), l4_utcb()[2] = MARK(2);
    call(L4_ENTRY(Ipc), 0, zero, 0, 0, utcb);
    CHECK("4.2", "Ipc: neither phase keeps EDI and ESP", kept(EDI) && kept(ESP));

    call(L4_ENTRY(ExchangeRegisters), id, 0, MARK(2), MARK(5), MARK(6));
    CHECK("4.2", "ExchangeRegisters keeps ESP", kept(ESP) && after[EAX] == local_worker(0).raw);
    call(L4_ENTRY(ExchangeRegisters), none, 0, MARK(2), MARK(5), MARK(6));
    CHECK("4.2", "ExchangeRegisters, refused: nil, ErrorCode 2, and ESP kept",
          after[EAX] == 0 && L4_ErrorCode() == L4_ErrInvalidThread && kept(ESP));

    call(L4_ENTRY(ThreadControl), id, main_thread.raw, main_thread.raw, main_thread.raw, ~0UL);
    CHECK("4.2", "ThreadControl: global ids and all else stay", after[EAX] == 1 && kept_all_but(1 << EAX));
    call(L4_ENTRY(ThreadControl), id, L4_MyLocalId().raw, L4_MyLocalId().raw, L4_MyLocalId().raw, ~0UL);
    CHECK("4.2", "ThreadControl takes local ids",
          after[EAX] == 1 && kept_all_but(1 << EAX | 1 << ECX | 1 << EDX | 1 << ESI));
    call(L4_ENTRY(ThreadControl), main_thread.raw, 0, 0, 0, ~0UL);
    CHECK("4.2", "ThreadControl, refused: EAX 0 and all else stays", after[EAX] == 0 && kept_all_but(1 << EAX));

    call(L4_ENTRY(SystemClock), MARK(0), MARK(1), MARK(2), MARK(5), MARK(6));
    CHECK("4.2", "SystemClock keeps EBX, EBP and ESP", kept(EBX) && kept(EBP) && kept(ESP));
    call(L4_ENTRY(ThreadSwitch), 0, MARK(1), MARK(2), MARK(5), MARK(6));
    CHECK("4.2", "ThreadSwitch to nobody keeps all", kept_all_but(1 << EAX));
    call(L4_ENTRY(ThreadSwitch), local_worker(0).raw, MARK(1), MARK(2), MARK(5), MARK(6));
    CHECK("4.2", "ThreadSwitch takes a local id, and keeps all else", kept_all_but(1 << EAX));
    call(L4_ENTRY(Schedule), id, ~0UL, ~0UL, ~0UL, ~0UL);
    CHECK("4.2", "Schedule keeps all but EAX and EDX", after[EAX] && kept_all_but(1 << EAX | 1 << EDX));
    call(L4_ENTRY(Schedule), local_worker(0).raw, ~0UL, ~0UL, ~0UL, ~0UL);
    CHECK("4.2", "Schedule takes a local id", after[EAX] == 6);
    call(L4_ENTRY(Schedule), none, ~0UL, ~0UL, ~0UL, ~0UL);
    CHECK("4.2", "Schedule, refused: EAX 0, and ESP kept",
          after[EAX] == 0 && L4_ErrorCode() == L4_ErrInvalidThread && kept_all_but(1 << EAX | 1 << EDX));

    call(L4_ENTRY(Unmap), 0, MARK(1), MARK(2), 0, utcb);
    CHECK("4.2", "Unmap of nothing keeps all", kept_all_but(1 << ECX | 1 << EDX));
    CHECK("15", "Unmap keeps ECX and EDX too", kept(ECX) && kept(EDX));
    CHECK("15", "SystemClock keeps ECX", (call(L4_ENTRY(SystemClock), 0, MARK(1), 0, 0, 0), kept(ECX)));

    call(L4_ENTRY(SpaceControl), none, 0, 0, 0, 0);
    CHECK("4.2", "SpaceControl, refused: EAX 0, EDX, ESI and EDI stay",
          after[EAX] == 0 && kept_all_but(1 << EAX | 1 << ECX));
    call(L4_ENTRY(SpaceControl), id, 0, 0, 0, 0);
    CHECK("4.2", "SpaceControl keeps all but EAX and ECX", after[EAX] == 1 && kept_all_but(1 << EAX | 1 << ECX));
    call(L4_ENTRY(ProcessorControl), 0, 0, 0, 0, MARK(6));
    CHECK("4.2", "ProcessorControl keeps all but EAX", kept_all_but(1 << EAX));
    call(L4_ENTRY(MemoryControl), 0, 0, 0, 0, utcb);
    CHECK("4.2", "MemoryControl keeps all but EAX", after[EAX] == 1 && kept_all_but(1 << EAX));

    __asm__ volatile("pushfl\n\tpopl %0" : "=r"(flags));
    CHECK("4.4", "programs have interrupts on and no I/O privilege", (flags & 0x3200) == 0x200);
}

static void identifiers(void)
{
    CHECK("4.2", "ExchangeRegisters of a global id returns the local one",
          L4_ExchangeRegisters(worker(0), 0, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0).raw == local_worker(0).raw);
    CHECK("4.2", "ExchangeRegisters of a local id returns the global one",
          L4_ExchangeRegisters(local_worker(0), 0, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0).raw == worker(0).raw);
    CHECK("4.2", "ExchangeRegisters of oneself",
          L4_ExchangeRegisters(main_thread, 0, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0).raw == L4_MyLocalId().raw);
    CHECK("4.2", "SpaceControl takes no local id",
          !L4_SpaceControl(local_worker(0), 0, L4_Nilpage, L4_Nilpage, L4_nilthread, 0) &&
              L4_ErrorCode() == L4_ErrInvalidSpace);
    CHECK("4.2", "ThreadControl takes no local id as destination",
          !L4_ThreadControl(local_worker(0), main_thread, main_thread, main_thread, L4_UTCB_UNCHANGED) &&
              L4_ErrorCode() == L4_ErrInvalidSpace);
}

static void the_clock(void)
{
    L4_Word64_t first = L4_SystemClock().raw, second, third;
    second = L4_SystemClock().raw;
    L4_Sleep(L4_TimePeriod(10000));
    third = L4_SystemClock().raw;
    CHECK("4.2", "the clock does not run backwards", first <= second && second < third);
    CHECK("4.2", "the clock counts microseconds", third - second >= 10000 && third - second < 14000);
}

/* Say so character by character. */
static void spell(const char *text)
{
    while (*text)
        L4_KDB_PrintChar(*text++);
}

static void traps(void)
{
    L4_Word_t eax = 'o', string = (L4_Word_t) "";
    int typed;
    L4_KDB_TRAP(0, eax); /* the o of ok */
    spell(eax == 'o' ? "k 4.5 a character is printed, and EAX stays\n" : "?\n");
    L4_KDB_TRAP(1, string);
    CHECK("4.5", "an empty string is printed", string != 0);
    typed = L4_KDB_ReadChar_Blocked();
    CHECK("4.5", "a character is waited for", (typed & 0xff) == 'k');
    typed = L4_KDB_ReadChar();
    CHECK("4.5", "a character that is there is read", (typed & 0xff) == '4');
    eax = 1;
    __asm__ volatile("nop\n\tint3\n\tnop\n\tcmpb $3, %%al\n\tmovl $5, %0" : "+a"(eax) : : "cc");
    CHECK("4.5", "a trap goes on behind its marker", eax == 5);
}

/* Said by `traps` in its own way. */
#define SPELLED CHECK("4.5", "a character is printed, and EAX stays", 1)

int main(void)
{
    hello();
    start(0);
    settle();
    registers();
    identifiers();
    the_clock();
    traps();
    return goodbye();
}
