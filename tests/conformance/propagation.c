/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Section 5.2: messages in another's name, and messages that go elsewhere than they were sent to. */
#include "check.h"

#define P (1UL << 12) /* of the tag: propagated ... */
#define R (1UL << 13) /* ... and redirected */
#define SERVER 0
#define CLIENT 1
#define APART 2 /* two spaces beside main's */
#define BEYOND 3

static struct ipc sent, got;

/* One worker sends to main as if it were another. */
static void pretend(L4_Word_t n, L4_ThreadId_t as, L4_ThreadId_t from)
{
    sent = (struct ipc){.to = main_thread, .mr = {P | 1, 99}, .virtual_sender = as};
    got = (struct ipc){.from = from, .timeouts = ZERO};
    begin_ipc(n, &sent);
    run(&got);
}

static void names(void)
{
    pretend(SERVER, worker(CLIENT), L4_anythread);
    finish(SERVER);
    CHECK("5.2", "in the name of one of the sender's space", got.partner.raw == local_worker(CLIENT).raw);
    CHECK("5.1", "p tells that a message was propagated", got.mr[0] == (P | 1) && got.mr[1] == 99);
    CHECK("5.2", "ActualSender is who sent it", got.actual_sender.raw == worker(SERVER).raw);

    pretend(SERVER, worker(CLIENT), worker(CLIENT));
    finish(SERVER);
    CHECK("5.2", "who waits for the virtual sender takes it",
          got.error == 0 && got.partner.raw == local_worker(CLIENT).raw);
    pretend(SERVER, worker(CLIENT), worker(SERVER));
    finish(SERVER);
    CHECK("5.2", "who waits for the actual sender takes it too", got.error == 0);

    pretend(SERVER, worker(APART), L4_anythread);
    finish(SERVER);
    CHECK("5.2", "to one of the sender's space, in anybody's name",
          got.partner.raw == worker(APART).raw && got.mr[0] & P);
    pretend(APART, worker(BEYOND), L4_anythread);
    finish(APART);
    CHECK("5.2", "between spaces, not in a third one's name", got.partner.raw == worker(APART).raw);
    CHECK("5.2", "the message comes all the same, without p", got.mr[0] == 1 && got.mr[1] == 99);
    pretend(APART, worker(CLIENT), L4_anythread);
    finish(APART);
    CHECK("5.2", "not in the name of one of the receiver's space",
          got.partner.raw == worker(APART).raw && got.mr[0] == 1);
    pretend(SERVER, nobody(), L4_anythread);
    finish(SERVER);
    CHECK("5.2", "not in nobody's name", got.partner.raw == local_worker(SERVER).raw && got.mr[0] == 1);
    sent = (struct ipc){.to = main_thread, .mr = {1, 98}, .virtual_sender = worker(CLIENT)};
    got = (struct ipc){.from = L4_anythread, .timeouts = ZERO};
    begin_ipc(SERVER, &sent);
    run(&got);
    finish(SERVER);
    CHECK("5.2", "without p, VirtualSender is only a word",
          got.partner.raw == local_worker(SERVER).raw && got.mr[1] == 98);
}

static void forwarding(void)
{
    struct ipc call = {.to = worker(SERVER), .from = worker(SERVER), .mr = {1, 5}};
    struct ipc take = {.from = L4_anythread}, answer = {.timeouts = NOT_WAITING, .mr = {1, 6}};
    begin_ipc(SERVER, &take);
    begin_ipc(CLIENT, &call);
    finish(SERVER);
    CHECK("5.2", "a client's call arrives", take.mr[1] == 5 && take.partner.raw == local_worker(CLIENT).raw);
    pretend(SERVER, worker(CLIENT), L4_anythread);
    finish(SERVER);
    answer.to = got.partner;
    run(&answer);
    finish(CLIENT);
    CHECK("5.2", "who was forwarded to answers in the server's place",
          answer.error == 0 && call.error == 0 && call.mr[1] == 6);
    CHECK("5.2", "and the client hears who it was", call.partner.raw == L4_MyLocalId().raw);
}

static void redirection(void)
{
    struct ipc take = {.from = L4_anythread}, pass = {.to = worker(BEYOND), .timeouts = NOT_WAITING};
    struct ipc answer;
    L4_SpaceControl(worker(APART), 0, L4_Nilpage, L4_Nilpage, main_thread, 0);
    sent = (struct ipc){.to = worker(BEYOND), .from = worker(BEYOND), .mr = {1, 44}};
    got = (struct ipc){.from = L4_anythread, .timeouts = ZERO};
    begin_ipc(BEYOND, &take);
    begin_ipc(APART, &sent);
    run(&got);
    CHECK("14", "Q3: what leaves a space goes to its redirector", got.error == 0 && got.mr[1] == 44);
    CHECK("5.1", "r tells that it was redirected", got.mr[0] == (R | 1));
    CHECK("2", "IntendedReceiver is who it was for", got.intended_receiver.raw == worker(BEYOND).raw);
    CHECK("5.2", "From is who sent it", got.partner.raw == worker(APART).raw);
    pass.virtual_sender = got.partner;
    pass.mr[0] = P | 1;
    pass.mr[1] = got.mr[1];
    run(&pass);
    finish(BEYOND);
    CHECK("14", "Q3: a redirector passes messages on in their sender's name",
          take.error == 0 && take.partner.raw == worker(APART).raw && take.mr[1] == 44);
    answer = (struct ipc){.to = worker(APART), .timeouts = NOT_WAITING, .mr = {1, 47}};
    begin_ipc(BEYOND, &answer);
    finish(BEYOND);
    finish(APART);
    CHECK("14", "Q3: a redirected call is answered", sent.error == 0 && sent.mr[1] == 47);

    sent = (struct ipc){.to = worker(CLIENT), .mr = {1, 45}};
    take = (struct ipc){.from = L4_anythread};
    begin_ipc(CLIENT, &take);
    begin_ipc(APART, &sent);
    finish(APART);
    finish(CLIENT);
    CHECK("14", "Q3: what goes to the redirector's space goes straight",
          take.error == 0 && take.mr[0] == 1 && take.mr[1] == 45);
    L4_SpaceControl(worker(APART), 0, L4_Nilpage, L4_Nilpage, L4_anythread, 0);
    sent = (struct ipc){.to = worker(BEYOND), .mr = {1, 46}};
    take = (struct ipc){.from = L4_anythread};
    begin_ipc(BEYOND, &take);
    begin_ipc(APART, &sent);
    finish(APART);
    finish(BEYOND);
    CHECK("14", "Q3: without a redirector any more, all goes straight",
          take.error == 0 && take.mr[0] == 1 && take.mr[1] == 46);
}

int main(void)
{
    hello();
    start(SERVER);
    start(CLIENT);
    start_apart(APART);
    start_apart(BEYOND);
    settle();
    names();
    forwarding();
    redirection();
    return goodbye();
}
