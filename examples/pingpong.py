# SPDX-License-Identifier: GPL-2.0-or-later
"""Two threads in one address space that call each other: messages of several lengths there and back.

Shows: ThreadControl, starting a thread, Ipc with message registers. pingpong.c is the same in C.
"""

from __future__ import annotations

from l4lab.abi.ids import ROOT_TASK, global_id
from l4lab.abi.message import Message
from l4lab.abi.protocols import thread_start
from l4lab.rig.rig import Rig
from l4lab.user.console import say
from l4lab.user.l4 import L4

ROUNDS = 100
SIZES = (0, 1, 16, 63)
PONG = global_id(ROOT_TASK.thread_no + 1)
UTCB = 0xBF00_0200  # the one beside root's


def pong(l4: L4) -> None:
    """Adds one to each word and sends it back."""
    received = l4.wait()
    while True:
        received = l4.reply_wait(received.sender, Message(0, [word + 1 for word in received.untyped]))


def root(l4: L4) -> None:
    """Creates pong, starts it and calls it."""
    l4.thread_control(PONG, l4.my_id, l4.my_id, l4.my_id, UTCB)
    l4.send(PONG, thread_start(0, 0))  # a new thread waits for its pager's message; ours begins at its function
    for size in SIZES:
        words = [0] * size
        for _ in range(ROUNDS):
            words = l4.call(PONG, Message(0, words)).untyped
        say(l4, f"{ROUNDS} round trips with {size} words: the words add up to {sum(words)}")
    say(l4, "pingpong: done")


def system() -> Rig:
    """The machine on which it runs."""
    return Rig(root, 32 << 20, programs={PONG: pong})


if __name__ == "__main__":
    rig = system()
    rig.run()
    print(rig.console.decode(), end="")
