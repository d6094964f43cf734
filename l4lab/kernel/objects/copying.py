# SPDX-License-Identifier: GPL-2.0-or-later
"""A message with strings that is on its way: what the kernel knows of it while a pager is asked for a page.

What lives here: the record. Copying, and what ends it, is `ipc/strings.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from l4lab.abi.message import IpcErrorCode
from l4lab.kernel.objects.thread import ThreadState

if TYPE_CHECKING:
    from l4lab.kernel.objects.thread import Tcb

Piece = tuple[int, int]  # address, bytes


class Copy:
    """A message with strings on its way. Both threads have it as `copying`; its timer is the transfer timeout."""

    def __init__(self, sender: Tcb, receiver: Tcb, words: Sequence[int]) -> None:
        self.sender = sender
        self.receiver = receiver
        self.words = words
        self.then_receive: tuple[int, int] | None = None  # the sender's; its own serves the calls to its pager
        self.at = 0  # the next typed item
        self.done = 0  # bytes copied so far, all strings together
        self.source: deque[Piece] = deque()  # what is left of this string,
        self.target: deque[Piece] = deque()  # and of its buffer
        self.buffer = 1  # the next buffer register; 0: there is no further buffer
        self.timed = False  # has the transfer timeout begun?
        # What the timer queue asks of whoever has a timer.
        self.state = ThreadState.WAITING
        self.wake_ticket = 0
        self.timeout = IpcErrorCode.OWN_XFER_TIMEOUT  # what the sender is told when the timer expires
