/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Section 6.5: what a program executes that the kernel does for it, without an exception message; and section 15: what
 * the CPU says that it is. */
#include "check.h"

#define WORKER 1 /* in a space of its own */

static volatile L4_Word_t exceptions, vector; /* of a worker apart, as its handler sees them */

/* A handler of exceptions: it notes them, and has the thread go on behind two bytes. */
static void handler(void)
{
    L4_ThreadId_t from;
    L4_Wait(&from);
    for (;;) {
        L4_Word_t mr[13];
        L4_StoreMRs(0, 13, mr);
        exceptions++;
        vector = mr[3];
        mr[0] = 12;
        mr[1] += 2;
        L4_LoadMRs(0, 13, mr);
        L4_ReplyWait(from, &from);
    }
}

static L4_Word64_t rdmsr(L4_Word_t number)
{
    L4_Word_t low = 0, high = 0;
    __asm__ volatile("rdmsr" : "+a"(low), "+d"(high) : "c"(number));
    return (L4_Word64_t)high << 32 | low;
}

static void wrmsr(L4_Word_t number, L4_Word64_t value)
{
    __asm__ volatile("wrmsr" : : "a"((L4_Word_t)value), "d"((L4_Word_t)(value >> 32)), "c"(number));
}

static L4_Word_t msr_apart(L4_Word_t number)
{
    L4_Set_ExceptionHandler(worker(2));
    rdmsr(number);
    wrmsr(number, 0);
    return exceptions;
}

static void msrs(void)
{
    L4_Word64_t before = rdmsr(0x10);
    CHECK("6.5", "RDMSR in a privileged space reads the time", rdmsr(0x10) > before);
    CHECK("6.5", "with prefixes it is the same instruction", ({
              L4_Word_t low, high;
              __asm__ volatile(".byte 0x66, 0x2e\n\trdmsr" : "=a"(low), "=d"(high) : "c"(0x3a));
              low == 5 && high == 0;
          }));
    wrmsr(0x176, 0x123456789abcdef0);
    CHECK("6.5", "WRMSR in a privileged space writes", rdmsr(0x176) == 0x123456789abcdef0);
    CHECK("6.5", "elsewhere both are exceptions", let(WORKER, msr_apart, 0x10) == 2 && vector == 13);
    exceptions = 0;
    wrmsr(0x3f0, 7); /* of another model */
    CHECK("6.5", "a register that is not there reads as 0 whatever is written", rdmsr(0x3f0) == 0);
    exceptions = 0;
}

static L4_Word_t selector(const char *name)
{
    L4_Word_t value = 0;
    switch (*name) {
    case 'd': __asm__ volatile("movl %%ds, %0" : "=r"(value)); break;
    case 'e': __asm__ volatile("movl %%es, %0" : "=r"(value)); break;
    case 'f': __asm__ volatile("movl %%fs, %0" : "=r"(value)); break;
    case 'g': __asm__ volatile("movl %%gs, %0" : "=r"(value)); break;
    case 's': __asm__ volatile("movl %%ss, %0" : "=r"(value)); break;
    }
    return value & 0xffff;
}

static int as_ever(void)
{
    return selector("ds") == 0x23 && selector("es") == 0x23 && selector("fs") == 0x23 && selector("gs") == 0x2b &&
           selector("ss") == 0x23 && l4_utcb()[-15] == main_thread.raw;
}

static L4_Word16_t bad = 0x53;

static void selectors(void)
{
    L4_Word_t before, after;
    __asm__ volatile("movw %w0, %%ds" : : "r"(0x53));
    __asm__ volatile("movw %w0, %%es" : : "r"(0x08)); /* the kernel's */
    __asm__ volatile("movw %w0, %%ss" : : "r"(0));
    __asm__ volatile("movw %w0, %%fs" : : "r"(0x10));
    __asm__ volatile("movw %w0, %%gs" : : "r"(0xfffc)); /* of a table that there is not */
    CHECK("6.5", "MOV of a selector that is not there is passed over, with all segments as ever", as_ever());
    __asm__ volatile("movw %0, %%gs" : : "m"(bad));
    __asm__ volatile("movw %%cs:(%0), %%fs" : : "r"(&bad));
    __asm__ volatile(".byte 0x66\n\tmovw %0, %%ds" : : "m"(bad));
    CHECK("6.5", "so is one from memory, however long", as_ever());
    __asm__ volatile("movl %%esp, %0\n\t"
                     "pushl $0x53\n\tpopl %%ds\n\tpopl %%es\n\tpopl %%fs\n\tpopl %%gs\n\tpopl %%ss\n\t"
                     "movl %%esp, %1\n\taddl $4, %%esp"
                     : "=&r"(before), "=&r"(after));
    CHECK("6.5", "so is POP, whose stack pointer stays", as_ever() && after == before - 4);
    __asm__ volatile("movw %w0, %%es" : : "r"(0x23));
    CHECK("6.5", "a selector that one may have is loaded", as_ever());
}

static void cpuid(L4_Word_t leaf, L4_Word_t words[4])
{
    __asm__ volatile("cpuid" : "=a"(words[0]), "=b"(words[1]), "=c"(words[2]), "=d"(words[3]) : "a"(leaf));
}

static void identity(void)
{
    L4_Word_t words[4], more[4];
    cpuid(0, words);
    CHECK("15", "CPUID names the vendor whose virtualization it is",
          words[1] == 0x756e6547 && words[3] == 0x49656e69 && words[2] == 0x6c65746e);
    cpuid(1, words);
    cpuid(0x80000001, more);
    CHECK("15", "it has VMX, and not SVM", (words[2] >> 5 & 1) == 1 && (more[2] >> 2 & 1) == 0);
    CHECK("15", "the MSRs say so too", (rdmsr(0x3a) & 5) == 5 && (rdmsr(0x480) >> 32 & 0x1fff) == 4096);
    CHECK("15", "what must be one of a virtual CPU's controls can be one", ({
              int good = 1;
              for (L4_Word_t msr = 0x481; msr <= 0x484; msr++)
                  good &= ((L4_Word_t)rdmsr(msr) & ~(L4_Word_t)(rdmsr(msr) >> 32)) == 0;
              good &= ((L4_Word_t)rdmsr(0x486) & ~(L4_Word_t)rdmsr(0x487)) == 0;
              good && ((L4_Word_t)rdmsr(0x488) & ~(L4_Word_t)rdmsr(0x489)) == 0;
          }));
    CHECK("15", "what it offers can be executed", ({
              static char area[512] __attribute__((aligned(64)));
              L4_Word64_t wide = 1;
              L4_Word_t offered = 1 << 0 | 1 << 4 | 1 << 8 | 1 << 15 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26;
              __asm__ volatile("rdtsc\n\tcmpxchg8b %0\n\tcmovz %%ecx, %%ebx\n\tfxsave %1\n\tclflush %1\n\t"
                               "fninit\n\tpxor %%mm0, %%mm0\n\temms\n\txorps %%xmm0, %%xmm0\n\t"
                               "pxor %%xmm1, %%xmm1\n\thaddps %%xmm0, %%xmm1"
                               : "+m"(wide), "=m"(area) : : "eax", "ebx", "ecx", "edx");
              (words[3] & offered) == offered && (words[2] & 1) == 1;
          }));
    CHECK("15", "it offers no SYSENTER, which the kernel has no entry for", (words[3] >> 11 & 1) == 0);
}

int main(void)
{
    hello();
    start_apart(WORKER);
    L4_ThreadControl(worker(2), main_thread, main_thread, main_thread, utcb_of(2));
    start_at(worker(2), handler, stacks[2] + STACK);
    settle();
    msrs();
    selectors();
    identity();
    return goodbye();
}
