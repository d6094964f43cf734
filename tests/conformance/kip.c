/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chapters 1 to 3: thread identifiers, the UTCB, the kernel interface page. */
#include "check.h"

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static int feature(const char *name)
{
    const char *text;
    for (L4_Word_t i = 0; (text = L4_Feature(l4_kip, i)); i++)
        if (same(text, name))
            return 1;
    return 0;
}

static void identifiers(void)
{
    L4_Word_t user_base = L4_ThreadIdUserBase(l4_kip);
    CHECK("1", "the root server is thread UserBase + 2", L4_ThreadNo(main_thread) == user_base + 2);
    CHECK("1", "the root server has version 1", L4_Version(main_thread) == 1);
    CHECK("1", "16 interrupts with the 8259", L4_ThreadIdSystemBase(l4_kip) == 16);
    CHECK("1", "UserBase is SystemBase + 32", user_base == 48);
    CHECK("1", "a local id has six zero bits", (L4_MyLocalId().raw & 0x3f) == 0);
    CHECK("1", "a global id has not", (main_thread.raw & 0x3f) != 0);
    CHECK("1", "sigma0 is the root server's pager", L4_Pager().raw == L4_GlobalId(user_base, 1).raw);
    CHECK("1", "the root server is its own scheduler", state_of(main_thread) == 3);
}

static void utcb(void)
{
    L4_Word_t *mr = l4_utcb(), selector[4];
    CHECK("2", "the root server's first UTCB is at 0xbf000000", (L4_Word_t)mr == 0xbf000100);
    CHECK("2", "the local id is the address of MR0", L4_MyLocalId().raw == (L4_Word_t)mr);
    CHECK("2", "MyGlobalId is at -60",
          mr[-15] == L4_GlobalId(L4_ThreadIdUserBase(l4_kip) + 2, 1).raw);
    CHECK("2", "ProcessorNo is at -56", mr[-14] == 0);
    CHECK("2", "ExceptionHandler is at -44 and nil", mr[-11] == 0);
    CHECK("2", "no preemption flag is set", (mr[-10] & 0xff) == 0);
    __asm__("mov %%cs, %0\n\tmov %%ds, %1\n\tmov %%ss, %2\n\tmov %%gs, %3"
            : "=r"(selector[0]), "=r"(selector[1]), "=r"(selector[2]), "=r"(selector[3]));
    CHECK("2", "CS is 0x1b", (selector[0] & 0xffff) == 0x1b);
    CHECK("2", "DS is 0x23", (selector[1] & 0xffff) == 0x23);
    CHECK("2", "SS is 0x23", (selector[2] & 0xffff) == 0x23);
    CHECK("2", "GS is 0x2b", (selector[3] & 0xffff) == 0x2b);
}

static void of_another(void)
{
    L4_Word_t *mr = (L4_Word_t *)local_worker(0).raw, handle = 0;
    L4_ThreadId_t pager_of_it = L4_nilthread;
    start(0);
    settle();
    CHECK("2", "MyGlobalId of another thread", mr[-15] == worker(0).raw);
    CHECK("2", "Pager is at -48", mr[-12] == main_thread.raw);
    mr[-13] = 0x1234;
    mr[-12] = pager_thread.raw;
    L4_ExchangeRegisters(worker(0), 0, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, &handle, &pager_of_it);
    CHECK("2", "UserDefinedHandle is at -52", handle == 0x1234);
    CHECK("2", "a pager is changed by a store", pager_of_it.raw == pager_thread.raw);
    CHECK("2", "an unaligned UTCB is none",
          !L4_ThreadControl(worker(1), main_thread, main_thread, main_thread, (void *)(UTCB_AREA + 0x1080)) &&
              L4_ErrorCode() == L4_ErrUtcbArea);
    CHECK("2", "the UTCB area of the root server holds 256",
          L4_ThreadControl(worker(1), main_thread, main_thread, main_thread, (void *)(UTCB_AREA + 255 * 512)));
    stop(1);
    CHECK("2", "and not 257",
          !L4_ThreadControl(worker(1), main_thread, main_thread, main_thread, (void *)(UTCB_AREA + 256 * 512)) &&
              L4_ErrorCode() == L4_ErrUtcbArea);
    stop(0);
}

static void fields(void)
{
    const L4_Word_t *word = (const L4_Word_t *)l4_kip;
    int inside = 1, unset = 1;
    CHECK("3.1", "magic", word[0] == 0x4be6344c);
    CHECK("3.1", "API version X.2, 5", word[1] == 0x84050000);
    CHECK("3.1", "API flags: 32 bits, little endian", word[2] == 0);
    CHECK("3.1", "UtcbInfo", word[0xa8 / 4] == 0x000c2401);
    CHECK("3.1", "KipAreaInfo: one page", (word[0xac / 4] & 0x3f) == 12);
    CHECK("3.1", "processor descriptions at 0x120", word[0xbc / 4] == 0x120);
    CHECK("3.1", "kernel description behind them", word[3] == 0x120 + 16 * L4_NumProcessors(l4_kip));
    CHECK("3.1", "17 or 16 bits of thread number", L4_ThreadIdBits(l4_kip) == 17 || L4_ThreadIdBits(l4_kip) == 16);
    CHECK("3.1", "pages of 4 KB and 4 MB, r and w", word[0xc8 / 4] == 0x00401006);
    CHECK("3.1", "16 bytes for each processor", word[0xcc / 4] >> 28 == 4);
    CHECK("3.1", "a processor has a frequency", L4_ProcDesc(l4_kip, 0)->InternalFreq > 0);
    for (int i = 0xd0 / 4; i <= 0xf8 / 4; i++)
        inside &= word[i] > 0 && word[i] < PAGE;
    CHECK("3.1", "all entries are in the page", inside);
    for (int i = 0x110 / 4; i <= 0x11c / 4; i++)
        unset &= word[i] == 0;
    CHECK("3.1", "there are no other system calls", unset);
    CHECK("3.1", "the version is text", L4_KernelVersionString(l4_kip)[0] >= ' ');
    CHECK("3.1", "feature ctrlxfer", feature("ctrlxfer"));
    CHECK("3.1", "feature x86-hvm", feature("x86-hvm"));
    CHECK("3.1", "feature ioflexpages", feature("ioflexpages"));
    CHECK("3.1", "the root server's memory is where it is",
          l4_kip->root.low <= (L4_Word_t)__executable_start && l4_kip->root.high >= (L4_Word_t)_end - 1);
}

static void memory(void)
{
    L4_Word_t user_end = 0, conventional = 0, kernel = 0, sound = 1;
    for (L4_Word_t i = 0; i < L4_NumMemoryDescriptors(l4_kip); i++) {
        L4_MemoryDesc_t *d = L4_MemoryDesc(l4_kip, i);
        L4_Word_t type = L4_MemoryDescType(d), size = L4_MemoryDescHigh(d) - L4_MemoryDescLow(d) + 1;
        if ((L4_Word_t)d + sizeof *d > (L4_Word_t)l4_kip + PAGE || L4_MemoryDescLow(d) > L4_MemoryDescHigh(d))
            sound = 0;
        if (L4_IsMemoryDescVirtual(d)) {
            if (type == L4_ConventionalMemoryType && L4_MemoryDescLow(d) == 0)
                user_end = L4_MemoryDescHigh(d);
        } else if (type == L4_ConventionalMemoryType) {
            conventional += size;
        } else if (type == L4_ReservedMemoryType) {
            kernel += size;
        }
    }
    CHECK("3.1", "memory descriptors lie in the page and are in order", sound);
    CHECK("3.1", "the user area ends at 3 GB, or 3.5 GB", user_end == 0xbfffffff || user_end == 0xdfffffff);
    CHECK("3.1", "there is conventional memory", conventional >= 32 << 20);
    CHECK("3.1", "there is memory of the kernel's", kernel > 0);
}

struct interface {
    L4_Word_t eax, ecx, edx, ebx, ebp, esi, edi;
} answer;

/* The instruction with known words in all registers. */
__asm__("ask_kernel:\n"
        "    pushal\n"
        "    movl $0x11111111, %ebx\n"
        "    movl $0x22222222, %ebp\n"
        "    movl $0x33333333, %edi\n"
        "    .byte 0xf0, 0x90\n"
        "    movl %eax, answer\n"
        "    movl %ecx, answer + 4\n"
        "    movl %edx, answer + 8\n"
        "    movl %ebx, answer + 12\n"
        "    movl %ebp, answer + 16\n"
        "    movl %esi, answer + 20\n"
        "    movl %edi, answer + 24\n"
        "    popal\n"
        "    ret\n");
void ask_kernel(void);

static void kernel_interface(void)
{
    const L4_Word_t *word = (const L4_Word_t *)l4_kip;
    ask_kernel();
    CHECK("3.2", "EAX: the root server's KIP is at 0xbff00000", answer.eax == 0xbff00000);
    CHECK("3.2", "ECX: API version", answer.ecx == word[1]);
    CHECK("3.2", "EDX: API flags", answer.edx == word[2]);
    CHECK("3.2", "ESI: kernel id", answer.esi == word[word[3] / 4]);
    CHECK("3.2", "EBX, EBP and EDI stay",
          answer.ebx == 0x11111111 && answer.ebp == 0x22222222 && answer.edi == 0x33333333);
}

static L4_Word_t write_kip(L4_Word_t nothing)
{
    *(volatile L4_Word_t *)l4_kip = 0;
    return nothing;
}

static void read_only(void)
{
    L4_MsgTag_t tag;
    L4_Word_t address;
    start(0);
    begin(0, write_kip, 0);
    tag = L4_Receive_Timeout(worker(0), L4_TimePeriod(10000));
    L4_StoreMR(1, &address);
    CHECK("3.2", "the KIP cannot be written", tag.raw == (0xffe2UL << 16 | 2) && address == (L4_Word_t)l4_kip);
    stop(0);
}

/* What the boot loader says of the first programs, and what the machine's firmware has left. */
static void booted(void)
{
    L4_BootInfo_t *info = (L4_BootInfo_t *)L4_BootInfo(l4_kip);
    L4_BootRec_t *first = L4_BootInfo_FirstEntry(info), *second = L4_BootRec_Next(first);
    extern char _start[];
    CHECK("15", "BootInfo begins with two programs", L4_BootInfo_Valid(info) && L4_BootInfo_Entries(info) == 3 &&
          L4_BootRec_Type(first) == L4_BootInfo_SimpleExec && L4_BootRec_Type(second) == L4_BootInfo_SimpleExec &&
          L4_BootRec_Type(L4_BootRec_Next(second)) == L4_BootInfo_Multiboot);
    CHECK("15", "they are sigma0 and the root task",
          same(L4_SimpleExec_Cmdline(first), "sigma0") && same(L4_SimpleExec_Cmdline(second), "kip"));
    CHECK("15", "the root task's record says where it lies and begins",
          L4_SimpleExec_InitialIP(second) == (L4_Word_t)_start &&
          L4_SimpleExec_TextVstart(second) == L4_SimpleExec_TextPstart(second) &&
          (L4_Word_t)booted - L4_SimpleExec_TextPstart(second) < L4_SimpleExec_TextSize(second) &&
          L4_SimpleExec_BssVstart(second) + L4_SimpleExec_BssSize(second) == (L4_Word_t)_end);
    L4_Word_t *vectors = 0, leads = 1;
    __asm__ volatile("" : "+r"(vectors));
    for (int i = 0; i < 256; i++)
        leads &= vectors[i] == 0xf000ff53;
    CHECK("15", "page 0 has the vectors of a PC", leads);
    CHECK("15", "where they lead is an IRET", *(unsigned char *)0xfff53 == 0xcf);
    CHECK("15", "the BIOS data area has the first serial port and 639 KB or a little less of memory",
          *(unsigned short *)((char *)vectors + 0x400) == 0x3f8 &&
          *(unsigned short *)((char *)vectors + 0x413) - 600U < 41);
}

int main(void)
{
    hello();
    identifiers();
    utcb();
    of_another();
    fields();
    memory();
    kernel_interface();
    read_only();
    booted();
    return goodbye();
}
