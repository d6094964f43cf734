# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory server: it has a few pages from sigma0 and lends them to clients in address spaces of their own.

A client asks for a page to be mapped where it likes, uses it, and gives it back or does not. What it has at its end is
taken back. Root is the server, and starts one client after the other.
Shows: asking sigma0, map items in answers, receive windows, Unmap, deleting a space. memserver.c is the same in C.
"""

from __future__ import annotations

from l4lab.abi.fpage import NILPAGE, Fpage, IoFpage
from l4lab.abi.ids import NIL_THREAD, ROOT_TASK, SIGMA0, ThreadId, global_id
from l4lab.abi.message import Acceptor, Message
from l4lab.abi.protocols import IO_PAGE_FAULT, any_page, sigma0_request, thread_start
from l4lab.rig.rig import Rig
from l4lab.user.console import say
from l4lab.user.l4 import L4, Received

PAGE = 4096
POOL = Fpage.at(0x3000_0000, 13)  # where the pages are that there are: two
WINDOW = 0x2000_0000  # where clients want their pages
ALLOCATE, RELEASE, FINISHED = 1, 2, 3  # labels of requests; a page's number goes with RELEASE
CLIENTS = [global_id(ROOT_TASK.thread_no + i) for i in (1, 2)]
KIP, UTCBS = Fpage.at(0xBFF0_0000), Fpage.at(0xBF00_0000)


def request(l4: L4, label: int, word: int = 0, window: Fpage = NILPAGE) -> Received:
    """Ask the server. No typed words in the answer, if the request was refused."""
    l4.accept(Acceptor.of(window))
    return l4.call(l4.pager, Message(label, [word]))


def client(l4: L4) -> None:
    """Takes pages until there are no more, writes to each, gives the first one back and takes it once more."""
    numbers: list[int] = []
    while True:
        address = WINDOW + len(numbers) * PAGE
        answer = request(l4, ALLOCATE, window=Fpage.at(address))
        if not answer.tag.typed:
            break
        l4.store_word(address, 0x1000 + len(numbers))
        numbers.append(answer.untyped[0])
    say(l4, f"client: {len(numbers)} pages, and no more")
    request(l4, RELEASE, numbers[0])
    again = request(l4, ALLOCATE, window=Fpage.at(WINDOW))
    say(l4, f"client: again, {'yes' if again.tag.typed else 'no'}")
    say(l4, f"client: the page is {'as it was' if l4.load_word(WINDOW) else 'clean'}")
    request(l4, FINISHED)


class Server:
    """Who has which page."""

    def __init__(self, l4: L4) -> None:
        self.l4 = l4
        self.pages = [Fpage.at(address) for address in range(POOL.base, POOL.base + POOL.size, PAGE)]
        self.owners = [NIL_THREAD] * len(self.pages)

    def release(self, number: int) -> None:
        """The page is free again, and nobody has it."""
        self.l4.unmap(self.pages[number])
        self.owners[number] = NIL_THREAD

    def serve(self, received: Received) -> Message:
        """What to answer."""
        l4, number = self.l4, received.untyped[0]
        if received.label == IO_PAGE_FAULT:  # to print, a client needs the console's port
            return Message().append_map(IoFpage.decode(number))
        if received.label == ALLOCATE:
            if NIL_THREAD not in self.owners:
                say(l4, "server: nothing is left")
                return Message()
            number = self.owners.index(NIL_THREAD)
            self.owners[number] = received.sender
            l4.store(self.pages[number].base, bytes(PAGE))
            say(l4, f"server: page {number} is lent")
            return Message(0, [number]).append_map(self.pages[number])
        if received.label == RELEASE and number < len(self.owners) and self.owners[number] == received.sender:
            say(l4, f"server: page {number} comes back")
            self.release(number)
        return Message()

    def run_client(self, thread: ThreadId) -> None:
        """Start a client, serve it to its end, and take back what it has."""
        l4 = self.l4
        l4.thread_control(thread, thread, l4.my_id, utcb_location=UTCBS.base)
        l4.space_control(thread, 0, KIP, UTCBS)
        l4.thread_control(thread, thread, l4.my_id, l4.my_id)
        received = l4.call(thread, thread_start(0, 0))
        while received.label != FINISHED:
            received = l4.call(thread, self.serve(received))
        for number, owner in enumerate(self.owners):
            if owner == thread:
                say(l4, f"server: page {number} is taken back")
                self.release(number)
        l4.thread_control(thread, NIL_THREAD)


def root(l4: L4) -> None:
    """The server, and who starts the clients."""
    l4.accept(Acceptor.of(POOL))
    l4.call(SIGMA0, sigma0_request(any_page(POOL.log2)))
    l4.accept(0)
    server = Server(l4)
    for number, thread in enumerate(CLIENTS, start=1):
        say(l4, f"server: client {number} begins")
        server.run_client(thread)
    say(l4, "memserver: done")


def system() -> Rig:
    """The machine on which it runs."""
    return Rig(root, 32 << 20, programs=dict.fromkeys(CLIENTS, client))


if __name__ == "__main__":
    rig = system()
    rig.run()
    print(rig.console.decode(), end="")
