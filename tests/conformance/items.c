/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sections 5.5, 8.3 and 9.5: register items of ordinary threads. */
#include "check.h"

#define ITEM(mask) (0xcUL | (L4_Word_t)(mask) << 12) /* of GPREGS */
#define EIP 1
#define EBX_EAX (1 << 6 | 1 << 9)
#define ACCEPT 2UL /* c of BR0 */
#define CONFIGURE (1 << 9)
#define READ (1 << 10)
#define WRITE (1 << 11)

static struct ipc sent, got;
static volatile L4_Word_t landed;

static void give(L4_Word_t accept)
{
    got = (struct ipc){.from = main_thread, .br = {accept}};
    begin_ipc(0, &got);
    sent.to = worker(0);
    sent.timeouts = NOT_WAITING;
    run(&sent);
    settle();
}

static void here(void)
{
    __asm__ volatile("movl %%ebx, %0" : "=m"(landed));
    L4_Sleep(L4_Never);
}

static L4_Word_t exchange(L4_Word_t control)
{
    L4_Word_t ip = 0;
    L4_ExchangeRegisters(worker(0), control, 0, 0, 0, 0, L4_nilthread, 0, 0, &ip, 0, 0, 0);
    return ip;
}

static void as_data(void)
{
    sent = (struct ipc){.mr = {1 | 3 << 6, 5, ITEM(EBX_EAX), 6, 7}};
    give(0);
    finish(0);
    CHECK("5.5", "a register item is data to who does not accept it",
          got.error == 0 && got.mr[1] == 5 && got.mr[2] == ITEM(EBX_EAX) && got.mr[3] == 6 && got.mr[4] == 7);
    sent = (struct ipc){.mr = {5 << 6, ITEM(EBX_EAX), 1, 2, ITEM(EIP), 3}};
    give(0);
    finish(0);
    CHECK("14", "Q5: several items do not overwrite each other",
          got.mr[1] == ITEM(EBX_EAX) && got.mr[2] == 1 && got.mr[3] == 2 && got.mr[4] == ITEM(EIP) && got.mr[5] == 3);
}

static void as_state(void)
{
    sent = (struct ipc){.mr = {1 | 2 << 6, 5, ITEM(EIP), (L4_Word_t)here}};
    landed = 0;
    give(ACCEPT);
    CHECK("5.5", "a register item is the state of who accepts it", sent.error == 0 && landed != 0);
    stop(0);
    start(0);
    settle();
}

static L4_Word_t accept_and_wait(L4_Word_t nothing)
{
    L4_LoadBR(0, ACCEPT);
    L4_Sleep(L4_Never);
    return nothing;
}

static void exchanged(void)
{
    L4_Word_t ip;
    begin(0, accept_and_wait, 0);
    L4_LoadMR(1, ITEM(EIP));
    L4_LoadMR(2, 0);
    ip = exchange(READ);
    CHECK("8.3", "ExchangeRegisters reads a register item", l4_utcb()[2] == ip && ip != 0);
    CHECK("8.3", "and leaves its header", l4_utcb()[1] == ITEM(EIP));
    L4_LoadMR(1, ITEM(EIP) | 1);
    L4_LoadMR(3, ITEM(EIP));
    L4_LoadMR(4, 0);
    exchange(READ);
    CHECK("8.3", "C: another item follows", l4_utcb()[2] == ip && l4_utcb()[4] == ip);
    L4_LoadMR(1, ITEM(EIP));
    L4_LoadMR(2, 0);
    L4_LoadMR(3, ITEM(EIP));
    L4_LoadMR(4, 0);
    exchange(READ);
    CHECK("8.3", "no C: nothing follows", l4_utcb()[2] == ip && l4_utcb()[4] == 0);
    landed = 0;
    L4_LoadMR(1, ITEM(EIP | 1 << 6));
    L4_LoadMR(2, (L4_Word_t)here);
    L4_LoadMR(3, 0x2468);
    exchange(WRITE | 1 << 1 | 1 << 2);
    settle();
    CHECK("8.3", "ExchangeRegisters writes a register item", landed == 0x2468);
    stop(0);
    start(0);
    settle();
}

static void with_page_faults(void)
{
    struct ipc hear = {.from = worker(0), .timeouts = L4_TimePeriod(10000).raw};
    L4_LoadMR(1, 0xcUL | 2UL << 4 | 1UL << 12);
    exchange(CONFIGURE);
    landed = 0;
    begin(0, peek, ROOM);
    run(&hear);
    CHECK("9.5", "register items with page faults", hear.mr[0] == (0xffe5UL << 16 | 11 << 6 | 2));
    CHECK("6.5", "behind address and IP", hear.mr[1] == ROOM && hear.mr[3] == ITEM(0x3ff) && hear.mr[4] == hear.mr[2]);
    sent = (struct ipc){.to = worker(0), .timeouts = NOT_WAITING};
    sent.mr[0] = 3 << 6;
    sent.mr[1] = ITEM(EIP | 1 << 6);
    sent.mr[2] = (L4_Word_t)here;
    sent.mr[3] = 0x1357;
    run(&sent);
    settle();
    CHECK("6.5", "a pager may answer with registers", sent.error == 0 && landed == 0x1357);
    stop(0);
}

int main(void)
{
    hello();
    start(0);
    settle();
    as_data();
    as_state();
    exchanged();
    with_page_faults();
    return goodbye();
}
