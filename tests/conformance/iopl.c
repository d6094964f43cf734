/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A kernel that is built without I/O fpages (section 15, Port access): every program may use every port. */
#include "check.h"

static L4_Word_t flags(L4_Word_t nothing)
{
    __asm__ volatile("pushfl\n\tpopl %0" : "=r"(nothing));
    return nothing & 0x3202;
}

static L4_Word_t scratch(L4_Word_t value)
{
    l4_out8(0x3ff, (L4_Word8_t)value);
    return l4_in8(0x3ff);
}

int main(void)
{
    int io_fpages = 0;
    hello();
    for (L4_Word_t i = 0; L4_Feature(l4_kip, i); i++)
        io_fpages |= L4_Feature(l4_kip, i)[0] == 'i';
    CHECK("3.1", "the feature ioflexpages is not there", !io_fpages);
    CHECK("4.4", "programs have I/O privilege", flags(0) == 0x3202);
    CHECK("15", "the root task uses a port without asking", scratch(0x5a) == 0x5a);
    start_apart(0);
    CHECK("4.4", "so have those of other spaces", let(0, flags, 0) == 0x3202);
    CHECK("15", "so do other spaces, and no pager hears of it", let(0, scratch, 0xa5) == 0xa5 && fault.count == 0);
    L4_Set_MsgTag((L4_MsgTag_t){0});
    L4_Word_t old_flags = 0;
    L4_ExchangeRegisters(worker(0), 1 << 5, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, &old_flags, 0, 0);
    CHECK("4.4", "a program's I/O privilege is not for others to take", (old_flags & 0x3000) == 0x3000 &&
          let(0, flags, 0) == 0x3202);
    return goodbye();
}
