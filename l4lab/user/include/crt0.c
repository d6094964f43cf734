/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What every program in C begins with: its first instructions and its stack, the one function that makes system
 * calls, and what a C compiler takes for granted (memcpy and its like, division of 64-bit numbers).
 *
 * The kernel starts the root task at _start with no stack. If main returns, the program waits for ever. Before, all of
 * the program is touched: sigma0 gives its pages to this thread only, so no other thread must be the first to need one.
 */
#include <l4/l4.h>

#define STACK_SIZE 16384

int main(void);
extern char __executable_start[], _end[]; /* the linker's: where the program begins and ends */

L4_KernelInterfacePage_t *l4_kip;
char l4_stack[STACK_SIZE] __attribute__((aligned(16)));

__asm__(".globl _start\n"
        "_start:\n"
        "    movl $l4_stack + 16384, %esp\n"
        "    xorl %ebp, %ebp\n"
        "    call l4_start\n");

__attribute__((noreturn, used)) void l4_start(void)
{
    l4_kip = L4_KernelInterface(0, 0, 0);
    for (volatile char *page = __executable_start; page < _end; page += 4096)
        *page;
    main();
    for (;;)
        L4_Sleep(L4_Never);
}

/* void l4_system_call(L4_Word_t entry, L4_Registers_t *registers) */
__asm__(".globl l4_system_call\n"
        "l4_system_call:\n"
        "    pushl %ebp\n"
        "    pushl %ebx\n"
        "    pushl %esi\n"
        "    pushl %edi\n"
        "    movl 24(%esp), %eax\n" /* registers */
        "    movl 4(%eax), %ecx\n"
        "    movl 8(%eax), %edx\n"
        "    movl 12(%eax), %ebx\n"
        "    movl 16(%eax), %ebp\n"
        "    movl 20(%eax), %esi\n"
        "    movl 24(%eax), %edi\n"
        "    movl (%eax), %eax\n"
        "    call *20(%esp)\n" /* entry */
        "    pushl %eax\n"
        "    movl 28(%esp), %eax\n"
        "    movl %ecx, 4(%eax)\n"
        "    movl %edx, 8(%eax)\n"
        "    movl %ebx, 12(%eax)\n"
        "    movl %ebp, 16(%eax)\n"
        "    movl %esi, 20(%eax)\n"
        "    movl %edi, 24(%eax)\n"
        "    popl (%eax)\n"
        "    popl %edi\n"
        "    popl %esi\n"
        "    popl %ebx\n"
        "    popl %ebp\n"
        "    ret\n");

/* Printing */

static void print_number(L4_Word_t number, L4_Word_t base, int digits)
{
    if (number >= base || digits > 1)
        print_number(number / base, base, digits - 1);
    L4_KDB_PrintChar("0123456789abcdef"[number % base]);
}

void print(const char *format, ...)
{
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    for (; *format; format++) {
        long number;
        int digits = 1;
        if (*format != '%') {
            L4_KDB_PrintChar(*format);
            continue;
        }
        format++;
        for (; *format >= '0' && *format <= '9'; format++)
            digits = *format - '0';
        if (*format == 'l')
            format++; /* a long is as long as an int */
        switch (*format) {
        case 's':
            for (const char *text = __builtin_va_arg(arguments, const char *); *text; text++)
                L4_KDB_PrintChar(*text);
            break;
        case 'c':
            L4_KDB_PrintChar((char)__builtin_va_arg(arguments, int));
            break;
        case 'd':
            number = __builtin_va_arg(arguments, long);
            if (number < 0)
                L4_KDB_PrintChar('-');
            print_number(number < 0 ? -(L4_Word_t)number : (L4_Word_t)number, 10, digits);
            break;
        case 'u':
            print_number(__builtin_va_arg(arguments, L4_Word_t), 10, digits);
            break;
        case 'x':
            print_number(__builtin_va_arg(arguments, L4_Word_t), 16, digits);
            break;
        default:
            L4_KDB_PrintChar(*format);
        }
    }
    __builtin_va_end(arguments);
}

/* What a compiler may call of its own accord */

void *memcpy(void *to, const void *from, L4_Size_t size);
void *memmove(void *to, const void *from, L4_Size_t size);
void *memset(void *at, int byte, L4_Size_t size);
int memcmp(const void *a, const void *b, L4_Size_t size);
L4_Word64_t __udivdi3(L4_Word64_t number, L4_Word64_t divisor);
L4_Word64_t __umoddi3(L4_Word64_t number, L4_Word64_t divisor);

/* Each step goes through a volatile pointer, lest the compiler turn the loop into a call of the function it is in. */
void *memcpy(void *to, const void *from, L4_Size_t size)
{
    volatile char *t = to;
    const char *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memmove(void *to, const void *from, L4_Size_t size)
{
    volatile char *t = to;
    const char *f = from;
    if ((L4_Word_t)to <= (L4_Word_t)from)
        return memcpy(to, from, size);
    while (size--)
        t[size] = f[size];
    return to;
}

void *memset(void *at, int byte, L4_Size_t size)
{
    volatile char *t = at;
    while (size--)
        *t++ = (char)byte;
    return at;
}

int memcmp(const void *a, const void *b, L4_Size_t size)
{
    const unsigned char *x = a, *y = b;
    for (; size--; x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

L4_Word64_t __umoddi3(L4_Word64_t number, L4_Word64_t divisor)
{
    L4_Word64_t rest = 0;
    for (int i = 63; i >= 0; i--) {
        rest = rest << 1 | (number >> i & 1);
        if (rest >= divisor)
            rest -= divisor;
    }
    return rest;
}

L4_Word64_t __udivdi3(L4_Word64_t number, L4_Word64_t divisor)
{
    L4_Word64_t quotient = 0, rest = 0;
    for (int i = 63; i >= 0; i--) {
        rest = rest << 1 | (number >> i & 1);
        if (rest >= divisor) {
            rest -= divisor;
            quotient |= 1ULL << i;
        }
    }
    return quotient;
}
