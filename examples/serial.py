# SPDX-License-Identifier: GPL-2.0-or-later
"""A device driver: a thread that hears of the serial port's interrupts as messages, and sends each line to root.

Shows: ports, interrupts by ThreadControl and Ipc, a string in message registers. serial.c is the same in C.
"""

from __future__ import annotations

from l4lab.abi.fpage import IoFpage
from l4lab.abi.ids import ROOT_TASK, SIGMA0, global_id, interrupt_id
from l4lab.abi.message import ACCEPT_ALL_MAPPINGS, Message
from l4lab.abi.protocols import sigma0_request, thread_start
from l4lab.abi.time import NEVER
from l4lab.rig.rig import Rig
from l4lab.user.console import COM1, say
from l4lab.user.l4 import L4

DATA, INTERRUPTS, FIFO, MODEM, STATUS = COM1, COM1 + 1, COM1 + 2, COM1 + 4, COM1 + 5
INTERRUPT = interrupt_id(4)
LONGEST = 200  # characters of a line that are kept; they fit into a message
DRIVER = global_id(ROOT_TASK.thread_no + 1)
UTCB = 0xBF00_0200  # the one beside root's


def driver(l4: L4) -> None:
    """Collects characters to lines."""
    line = bytearray()
    l4.port_out(FIFO, 1, 0x01)  # 16 bytes each way
    l4.port_out(INTERRUPTS, 1, 0x01)  # one when something was received
    l4.port_out(MODEM, 1, 0x0B)  # ready; OUT2 lets interrupts through to the controller
    l4.receive(INTERRUPT)
    while True:
        while l4.port_in(STATUS, 1) & 1:
            byte = l4.port_in(DATA, 1)
            if byte not in b"\r\n":
                if len(line) < LONGEST:
                    line.append(byte)
                continue
            text = bytes(line) + bytes(4 - len(line) % 4)
            l4.call(l4.pager, Message(0, memoryview(text).cast("I").tolist()))
            line.clear()
        l4.call(INTERRUPT, [0])  # whatever it says: the line may interrupt again


def root(l4: L4) -> None:
    """Starts the driver and prints the lines."""
    l4.accept(ACCEPT_ALL_MAPPINGS)  # where ports are given out like memory, they are sigma0's, too
    l4.call(SIGMA0, sigma0_request(IoFpage.at(COM1, 3)))
    l4.accept(0)
    l4.thread_control(DRIVER, l4.my_id, l4.my_id, l4.my_id, UTCB)
    l4.thread_control(INTERRUPT, INTERRUPT, pager=DRIVER)
    l4.send(DRIVER, thread_start(0, 0))
    say(l4, "say something, or quit")
    received = l4.wait(NEVER)
    while True:
        line = b"".join(word.to_bytes(4, "little") for word in received.untyped).partition(b"\0")[0].decode()
        if line == "quit":
            break
        say(l4, f"{len(line)} characters: {line}")
        received = l4.reply_wait(received.sender, [0])
    l4.thread_control(INTERRUPT, INTERRUPT, pager=INTERRUPT)
    say(l4, "serial: done")


def system() -> Rig:
    """The machine on which it runs."""
    return Rig(root, 32 << 20, programs={DRIVER: driver})


if __name__ == "__main__":
    rig = system()
    for line in ("hello there", "", "quit"):
        rig.run()
        rig.type(line.encode() + b"\r")
    rig.run()
    print(rig.console.decode(), end="")
