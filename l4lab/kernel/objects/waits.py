# SPDX-License-Identifier: GPL-2.0-or-later
"""What a thread waits for in the kernel, beyond a message of its own Ipc: a closed list.

The kernel calls somebody in a thread's name for many reasons: a page is missing, a guest has exited, time is over.
Until the answer comes the thread has one of these waits, which says what the answer is for. What happens with the
answer, or when none can come, is the table in `calls/answers.py`.
"""

from __future__ import annotations

from typing import Final

from l4lab.kernel.events import MessageKind, WaitName


class Wait:
    """One reason to wait. Those below are all there are; the kernel compares them by identity."""

    def __init__(
        self, number: int, name: WaitName, text: str, kind: int = MessageKind.SEND, by_message: bool = True
    ) -> None:
        self.number = number  # its place in the table of what happens next
        self.name = name
        self.text = text  # for people
        self.kind = int(kind)  # of the message by which the kernel calls
        self.by_message = by_message  # does a message end it?

    def __repr__(self) -> str:
        return f"<wait {self.name}>"


OWN_IPC: Final = Wait(0, "own-ipc", "a message")  # nothing of the kernel's: the thread's own Ipc, if it waits at all
START: Final = Wait(1, "start", "its pager's start message")
PAGE: Final = Wait(2, "page", "its pager to bring a page", MessageKind.PAGE_FAULT)
PORTS: Final = Wait(3, "ports", "its pager to give it ports", MessageKind.PORT_FAULT)
EXCEPTION: Final = Wait(4, "exception", "its exception handler, who has its registers", MessageKind.EXCEPTION)
EXCEPTION_ITEMS: Final = Wait(
    5, "exception-items", "its exception handler, who has register items", MessageKind.EXCEPTION_ITEMS
)
MONITOR: Final = Wait(6, "monitor", "its monitor, who was told of a VM exit", MessageKind.VM_EXIT)
QUANTUM: Final = Wait(7, "quantum", "its scheduler, since its total quantum is used up", MessageKind.QUANTUM)
PREEMPTED: Final = Wait(8, "preempted", "its exception handler, who was told of a preemption", MessageKind.PREEMPTION)
STRING_PAGE: Final = Wait(9, "string-page", "its pager to bring a page for a string item", MessageKind.STRING_FAULT)
ACKNOWLEDGEMENT: Final = Wait(10, "acknowledgement", "the interrupt's handler", MessageKind.INTERRUPT)
CONSOLE: Final = Wait(11, "console", "a character from the console", by_message=False)

WAITS: Final = (
    *(OWN_IPC, START, PAGE, PORTS, EXCEPTION, EXCEPTION_ITEMS, MONITOR, QUANTUM, PREEMPTED, STRING_PAGE),
    *(ACKNOWLEDGEMENT, CONSOLE),
)
