# SPDX-License-Identifier: GPL-2.0-or-later
"""A pager: whoever touches memory that is not mapped makes its pager receive a message, and the answer maps.

A thread in an address space of its own reads, writes and adds up a few words. Root answers its page faults: a page for
reading when it reads, for writing when it writes; in the midst of it all it takes the pages back.
Shows: SpaceControl, the page fault protocol, map items, Unmap. pager.c is the same in C.
"""

from __future__ import annotations

from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import ROOT_TASK, SIGMA0, global_id
from l4lab.abi.message import Acceptor, Message
from l4lab.abi.protocols import any_page, page_fault_rights, sigma0_request, thread_start
from l4lab.rig.rig import Rig
from l4lab.user.console import say
from l4lab.user.l4 import L4
from l4lab.words import Rights

PAGE = 4096
WINDOW = 0x1000_0000  # where the client has its pages, in its own space
PAGES = 3
OWN = Fpage.at(0x0040_0000, 14)  # where root has them
READY, RESULT = 1, 2  # labels of the client's messages: done with a round, done with everything
CLIENT = global_id(ROOT_TASK.thread_no + 1)
KIP, UTCBS = Fpage.at(0xBFF0_0000), Fpage.at(0xBF00_0000)


def client(l4: L4) -> None:
    """Touches its pages."""
    addresses = [WINDOW + i * PAGE for i in range(PAGES)]
    for i, address in enumerate(addresses):
        l4.store_word(address, l4.load_word(address) + i + 1)  # a read, then a write
    l4.call(l4.pager, Message(READY, [0]))
    l4.call(l4.pager, Message(RESULT, [sum(map(l4.load_word, addresses))]))


def own_page(address: int) -> int:
    """Where root has the page that the client has at an address."""
    return OWN.base + (address - WINDOW & -PAGE)


def take_back(l4: L4) -> None:
    """Unmap all pages; what was done with them is told."""
    say(l4, "the client has been through its pages: they go")
    for i in range(PAGES):
        (status,) = l4.unmap(Fpage.at(OWN.base + i * PAGE))
        say(l4, f"page {i} was {'written' if Rights.W in status.rights else 'not written'}")


def root(l4: L4) -> None:
    """Creates the client in its own space, and is its pager."""
    l4.accept(Acceptor.of(OWN))
    l4.call(SIGMA0, sigma0_request(any_page(OWN.log2)))
    # A thread in a space that does not exist yet; the space's areas; then the thread may live.
    l4.thread_control(CLIENT, CLIENT, l4.my_id, utcb_location=UTCBS.base)
    l4.space_control(CLIENT, 0, KIP, UTCBS)
    l4.thread_control(CLIENT, CLIENT, l4.my_id, l4.my_id)
    answer = thread_start(0, 0)
    while True:
        received = l4.call(CLIENT, answer)
        if received.label == RESULT:
            say(l4, f"the client's words add up to {received.untyped[0]}")
            break
        if received.label == READY:
            take_back(l4)
            answer = Message()
            continue
        address, rights = received.untyped[0], page_fault_rights(received.label)
        say(l4, f"page fault at {address:08x}: {'write' if Rights.W in rights else 'read'}")
        if not WINDOW <= address < WINDOW + PAGES * PAGE:
            say(l4, "pager: nobody has memory there")
            break
        # Who reads gets the page for reading, and faults again when it writes.
        page = Fpage.at(own_page(address), rights=rights | Rights.R | Rights.X)
        answer = Message().append_map(page, address & -PAGE)
    say(l4, "pager: done")


def system() -> Rig:
    """The machine on which it runs."""
    return Rig(root, 32 << 20, programs={CLIENT: client})


if __name__ == "__main__":
    rig = system()
    rig.run()
    print(rig.console.decode(), end="")
