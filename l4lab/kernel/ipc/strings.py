# SPDX-License-Identifier: GPL-2.0-or-later
"""String items: copying memory from one address space to another in the midst of a message.

A string item names pieces of the sender's memory, a buffer (BR1 and on) pieces of the receiver's; bytes go from the
one to the other until the sender's run out. Either side may touch a page that is not there. Then that thread calls its
pager, the other waits for it, and the transfer goes on when the pager has answered, so a message can be on its way for
a long time: `Copy` is what the kernel knows of it. (X.2 manual, section String items; reference sections 5.5 and 5.6.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi.message import IpcErrorCode, ItemType, StringItem
from l4lab.abi.time import NEVER, ZERO, instant, microseconds
from l4lab.abi.utcb import BUFFER_REGISTERS
from l4lab.kernel.events import Suspended
from l4lab.kernel.objects.copying import Copy, Piece
from l4lab.kernel.objects.space import USER_LIMIT
from l4lab.kernel.objects.thread import MR, NEVER_ENDS, Tcb, ThreadState
from l4lab.kernel.objects.waits import STRING_PAGE
from l4lab.kernel.state import State
from l4lab.machine.memory import PAGE_SIZE
from l4lab.machine.mmu import USER, WRITE, WalkFault

# In the place of an error code: a pager has been asked, and the transfer goes on when it has answered.
SUSPENDED: Final = -1
CYCLES_PER_US: Final = 1000
BYTES_PER_CYCLE: Final = 4  # what copying takes
# Instead of an instruction pointer: the receiver's program did not touch the page itself.
TUNNELLED_IP: Final = 0xFFFF_FFFF
_STRING_TYPES: Final = range(ItemType.MAP)
_BR0: Final = MR + u.BR0 // 4
_XFER_TIMEOUTS: Final = MR + u.XFER_TIMEOUTS // 4


def begin(sender: Tcb, receiver: Tcb, words: Sequence[int]) -> Copy:
    """The first string item of a message has been met."""
    copy = sender.copying = receiver.copying = Copy(sender, receiver, words)
    copy.then_receive, sender.then_receive = sender.then_receive, None
    return copy


def end(copy: Copy, error: int) -> tuple[int, int]:
    """The transfer is over, one way or the other. The codes for sender and receiver: 0, or with the bytes copied."""
    copy.sender.copying = copy.receiver.copying = None
    copy.sender.then_receive = copy.then_receive
    copy.state = ThreadState.RUNNING
    if not error:
        return 0, 0
    partner = {
        IpcErrorCode.OWN_XFER_TIMEOUT: IpcErrorCode.PARTNER_XFER_TIMEOUT,
        IpcErrorCode.PARTNER_XFER_TIMEOUT: IpcErrorCode.OWN_XFER_TIMEOUT,
    }
    return error | copy.done << 4, partner.get(IpcErrorCode(error), error) | copy.done << 4


def take_up(copy: Copy, at: int) -> int:
    """The next string, whose header is word `at`, and its buffer. 0, or the code of an overflow."""
    receiver = copy.receiver
    assert receiver.utcb is not None, f"{receiver!r} has no UTCB"
    buffers = [receiver.utcb[_BR0 - i] for i in range(BUFFER_REGISTERS)]
    source, after = _pieces(copy.words, at)
    if source is None or not copy.buffer:
        return IpcErrorCode.MESSAGE_OVERFLOW
    more = StringItem.decode(buffers[copy.buffer]).more  # of the first header: does another buffer follow?
    target, following = _pieces(buffers, copy.buffer)
    if target is None:
        return IpcErrorCode.MESSAGE_OVERFLOW
    copy.source, copy.target, copy.at = source, target, after
    copy.buffer = following if more and following < BUFFER_REGISTERS else 0
    return 0


def _pieces(words: Sequence[int], at: int) -> tuple[deque[Piece] | None, int]:
    """The pieces of a string, all its compounds, from word `at` on; None if it is cut short. And the word behind it."""
    pieces: deque[Piece] = deque()
    while at < len(words):
        header = StringItem.decode(words[at])
        behind = at + header.words
        if header.type not in _STRING_TYPES or behind > len(words):
            break
        pieces.extend((address, header.length) for address in words[at + 1 : behind])
        at = behind
        if not header.compound:
            return pieces, at
    return None, at


def advance(k: State, copy: Copy) -> int:
    """Copy what is left of the present string. 0, an error code, or SUSPENDED."""
    memory, source, target = k.machine.memory, copy.source, copy.target
    from_cr3, to_cr3 = copy.sender.space.tables.cr3, copy.receiver.space.tables.cr3
    before = copy.done
    result = 0
    while source:
        from_, from_left = source[0]
        if not from_left:
            source.popleft()
            continue
        if not target or from_ >= USER_LIMIT:
            result = IpcErrorCode.MESSAGE_OVERFLOW
            break
        to, to_left = target[0]
        if not to_left:
            target.popleft()
            continue
        if to >= USER_LIMIT:
            result = IpcErrorCode.MESSAGE_OVERFLOW
            break
        size = min(from_left, to_left, PAGE_SIZE - from_ % PAGE_SIZE, PAGE_SIZE - to % PAGE_SIZE)
        thread = copy.sender
        try:
            read = k.translate(from_cr3, from_, USER)
            thread = copy.receiver
            written = k.translate(to_cr3, to, USER | WRITE)
        except WalkFault as fault:
            result = _fault(k, copy, thread, fault.address)
            if result:
                break
            continue
        memory.write(written, memory.u8[read : read + size])
        source[0] = from_ + size, from_left - size
        target[0] = to + size, to_left - size
        copy.done += size
    k.machine.charge((copy.done - before) // BYTES_PER_CYCLE)
    return result


def _fault(k: State, copy: Copy, thread: Tcb, address: int) -> int:
    """One side's page is missing: ask its pager, the other side waits. SUSPENDED, or 0 if the page is there already."""
    from l4lab.kernel.ipc import faults  # only now: a fault is a message, and messages may hold strings

    if not copy.timed:
        code = _begin_timeout(k, copy)
        if code:
            return code
    states = copy.sender.state, copy.receiver.state
    copy.sender.state = copy.receiver.state = ThreadState.TRANSFERRING
    thread.state = ThreadState.RUNNING
    if not (thread.space.is_sigma0 and address < k.kernel_memory):  # it has what it touches
        k.trace.append(Suspended(k.now, copy.sender.word, copy.receiver.word))
    is_write = thread is copy.receiver
    if not faults.ask_pager(k, thread, address, TUNNELLED_IP if is_write else None, is_write, STRING_PAGE):
        copy.sender.state, copy.receiver.state = states
        return 0
    return SUSPENDED


def _begin_timeout(k: State, copy: Copy) -> int:
    """The transfer timeouts count from the first page fault. 0, or the code if one of them is zero."""
    sender, receiver = copy.sender, copy.receiver
    assert sender.utcb is not None, f"{sender!r} has no UTCB"
    assert receiver.utcb is not None, f"{receiver!r} has no UTCB"
    send, receive = sender.utcb[_XFER_TIMEOUTS] >> 16, receiver.utcb[_XFER_TIMEOUTS] & 0xFFFF
    if send == ZERO:
        return IpcErrorCode.OWN_XFER_TIMEOUT
    if receive == ZERO:
        return IpcErrorCode.PARTNER_XFER_TIMEOUT
    copy.timed = True
    mine, theirs = moment(k.now, send), moment(k.now, receive)
    if theirs < mine:  # equal ones count as the sender's
        copy.timeout = IpcErrorCode.PARTNER_XFER_TIMEOUT
    if min(mine, theirs) < NEVER_ENDS:
        k.wake_at(min(mine, theirs), copy)
    return 0


def moment(now: int, timeout: int) -> int:
    """The cycle at which a 16-bit time that is read now is over."""
    if timeout == NEVER:
        return NEVER_ENDS
    if timeout & 0x8000:
        return instant(timeout, now // CYCLES_PER_US) * CYCLES_PER_US
    return now + (microseconds(timeout) or 0) * CYCLES_PER_US


def page_brought(k: State, thread: Tcb, words: tuple[int, ...], pager: Tcb) -> int:
    """The pager has answered: take its mappings. The copying goes on when the kernel has finished with the pager."""
    from l4lab.kernel.ipc import faults

    error = faults.resolved(k, thread, words, pager)
    assert thread.copying is not None, f"{thread!r} copies nothing"
    thread.state = ThreadState.TRANSFERRING
    k.unsettle(thread.copying)
    return error
