# SPDX-License-Identifier: GPL-2.0-or-later
"""Synchronous IPC: the send phase, the receive phase, and what ends a wait.

A thread that sends and a thread that receives meet here; then `transfer.py` moves the message. The kernel itself
sends for threads too: a page fault, an exception, an interrupt and a VM exit are calls that the kernel makes in the
thread's name. Such a message is not in the message registers but in `outgoing`, and `wait` says what its answer is for.

    RUNNING --send, partner not ready--> POLLING --partner receives--> RUNNING or WAITING
    RUNNING --receive, nobody sends----> WAITING --somebody sends----> RUNNING
    either  --a string meets a page that is missing--> TRANSFERRING --pager answers--> as above

Two that wait for each other do not stay apart: the send phase looks at the receiver, the receive phase at the queue.
And whoever changes what a blocked thread waits for, or what it is called, tells `State.unsettle`: before anybody runs,
`meet` looks whether a message can go now. `invariants.py` holds everybody to that.

Source: X.2 manual, section IPC; reference section 5.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDX, ESI
from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD, NIL_THREAD
from l4lab.abi.message import IpcErrorCode
from l4lab.abi.time import ZERO
from l4lab.abi.utcb import MESSAGE_REGISTERS, MR0_FROM_LOCATION, PAGER, WORDS
from l4lab.kernel import events
from l4lab.kernel.events import Blocked, MessageKind, MessageSent, Transferred
from l4lab.kernel.ipc import strings
from l4lab.kernel.ipc.propagation import address, may_send_to, named_sender
from l4lab.kernel.ipc.strings import SUSPENDED
from l4lab.kernel.ipc.transfer import continue_items, transfer
from l4lab.kernel.objects.copying import Copy
from l4lab.kernel.objects.thread import MR, Tcb, ThreadState
from l4lab.kernel.objects.waits import ACKNOWLEDGEMENT, OWN_IPC, START, Wait
from l4lab.kernel.state import State

SEND: Final = 0  # the phase, as a bit of an ErrorCode
RECEIVE: Final = 1
_ERROR: Final = 1 << 15  # of the tag
_NEVER: Final = 0
PROPAGATED: Final = 1 << 12  # of the tag
REDIRECTED: Final = 1 << 13
_BY_THE_SENDER: Final = 0xFFFF0FFF  # tag bits that arrive: label and counts. The flags are the kernel's to set
RUNNING: Final = ThreadState.RUNNING
WAITING: Final = ThreadState.WAITING
POLLING: Final = ThreadState.POLLING
ABORTED: Final = ThreadState.ABORTED
OWN_SEND: Final = int(MessageKind.SEND)
CALL: Final = int(MessageKind.CALL)
REPLY: Final = int(MessageKind.REPLY)
START_MESSAGE: Final = int(MessageKind.START)
ANSWER: Final = int(MessageKind.ANSWER)
MR1: Final = MR0_FROM_LOCATION + 4


def sys_ipc(k: State, caller: Tcb) -> None:
    """Ipc and Lipc: an optional send, then an optional receive."""
    regs = caller.regs
    to, times, from_ = regs[EAX], regs[ECX], regs[EDX]
    if to:
        if regs[ESI] & PROPAGATED or caller.space.redirector:
            to = address(k, caller, to)
        if k.ipc_path is None:
            send(k, caller, to, times >> 16, from_, times & 0xFFFF)
        else:
            k.ipc_path.send(caller, to, times >> 16, from_, times & 0xFFFF)
    elif from_:
        if k.ipc_path is None:
            receive(k, caller, from_, times & 0xFFFF)
        else:
            k.ipc_path.receive(caller, from_, times & 0xFFFF, 0)
    else:
        done(caller)


def call_for(k: State, thread: Tcb, partner: int, words: tuple[int, ...], wait: Wait) -> None:
    """The kernel calls `partner` in the thread's name, with both timeouts never; `wait` says what the answer is for."""
    assert thread.wait is OWN_IPC, f"{thread!r} is in a kernel-issued call already"
    thread.outgoing = words
    thread.wait = wait
    if k.ipc_path is None:
        send(k, thread, partner, _NEVER, partner, _NEVER)
    else:
        k.ipc_path.send(thread, partner, _NEVER, partner, _NEVER)


# -- the two phases. `k.ipc_path`, if there is one, is somebody else's, in the place of `send` and `receive` --------


def send(k: State, sender: Tcb, to: int, timeout: int, from_: int, then_timeout: int) -> None:
    """Send phase. On success the receive phase follows if there is one (`from_`), or the sender goes on."""
    receiver = k.threads.get(to >> 14)
    if receiver is None or receiver.word != to:
        receiver = k.find(to, sender)
    if receiver is None or receiver.state is ABORTED:
        fail(k, sender, IpcErrorCode.NO_PARTNER, SEND)
    elif receiver.state is WAITING and accepts(receiver, sender):
        then = receiver.word if from_ == to else from_
        if not deliver(k, sender, receiver, then):
            if sender.copying is not None:
                sender.copying.then_receive = from_, then_timeout
            return
        # A call: whoever has just taken our message sends none to us; but another one may, in its name.
        if from_ == to and then_timeout == _NEVER and not sender.senders:
            sender.wake_ticket += 1
            sender.wait_for = receiver.word
            sender.state = WAITING
        elif from_:
            receive(k, sender, from_, then_timeout, then)
        else:
            done(sender)
    elif timeout == ZERO:
        fail(k, sender, IpcErrorCode.TIMEOUT, SEND)
    else:
        enqueue(k, sender, receiver, timeout, (from_, then_timeout))


def receive(k: State, receiver: Tcb, from_: int, timeout: int, told: int = 0) -> None:
    """Receive phase: take the message of somebody who waits to send, or wait.

    Whose message was taken goes on to its own receive phase, where somebody may stand in its queue in turn: a loop,
    since such a chain can be of any length. `told`: from whom it receives, as the trace has it from the message that it
    has just sent.
    """
    while True:
        if from_ not in (ANY_THREAD, ANY_LOCAL_THREAD):
            partner = k.find(from_, receiver)
            if partner is None:
                fail(k, receiver, IpcErrorCode.NO_PARTNER, RECEIVE)
                return
            from_ = partner.word
        receiver.wait_for = from_
        sender = _accepted(receiver) if receiver.senders else None
        if sender is None:
            break
        receiver.state = WAITING
        leave_queue(sender)
        told = _then(sender)
        if not deliver(k, sender, receiver, told):
            return
        receiver = sender
        from_, timeout = sent(receiver)
        if not from_:
            done(receiver)
            k.go_first(receiver)
            return
    if timeout == ZERO:
        fail(k, receiver, IpcErrorCode.TIMEOUT, RECEIVE)
        return
    block(k, receiver, timeout, told)


def enqueue(k: State, sender: Tcb, receiver: Tcb, timeout: int, then: tuple[int, int]) -> None:
    """The sender stands in the receiver's queue now."""
    sender.then_receive = then
    sender.state = POLLING
    sender.send_to = receiver
    receiver.senders.append(sender)  # at the tail: priority does not reorder senders
    k.note(Blocked(k.now, sender.word, "POLLING", receiver.word, sender.wait.name))
    _set_timer(k, sender, timeout)


def block(k: State, receiver: Tcb, timeout: int, told: int) -> None:
    """The receiver waits for a message from `wait_for`. `told` as in `receive`."""
    receiver.state = WAITING
    if receiver.wait_for != told:
        k.note(Blocked(k.now, receiver.word, "WAITING", receiver.wait_for, receiver.wait.name))
    _set_timer(k, receiver, timeout)


def _then(sender: Tcb) -> int:
    """From whom a thread receives that has to wait for its send phase; 0: from nobody."""
    assert sender.then_receive is not None, f"{sender!r} was in nobody's queue"
    return sender.then_receive[0]


def sent(sender: Tcb) -> tuple[int, int]:
    """The message of a thread that had to wait is sent. The receive phase to come: from whom (0: none), timeout."""
    sender.state = RUNNING
    then = sender.then_receive
    assert then is not None, f"{sender!r} was in nobody's queue"
    sender.then_receive = None
    return then


def _go_on(k: State, sender: Tcb, told: int) -> None:
    """The message of a thread that had to wait is sent: its receive phase follows, or it is done."""
    from_, timeout = sent(sender)
    if from_ and k.ipc_path is not None:
        k.ipc_path.receive(sender, from_, timeout, told)
    elif from_:
        receive(k, sender, from_, timeout, told)
    else:
        done(sender)
        k.go_first(sender)


def _accepted(receiver: Tcb) -> Tcb | None:
    """The first in the receiver's queue of whom it would take a message."""
    for sender in receiver.senders:
        if accepts(receiver, sender):
            return sender
    return None


def meet(k: State, thread: Tcb) -> None:
    """What the thread waits for, or what it is called, has changed: a message may go now."""
    sender: Tcb | None = None
    receiver: Tcb | None = thread
    if thread.state is WAITING:
        sender = next((sender for sender in thread.senders if _takes(k, thread, sender)), None)
    elif thread.state is POLLING:
        receiver = thread.send_to
        assert receiver is not None, f"{thread!r} is polling nobody"
        sender = thread if _takes(k, receiver, thread) else None
    if sender is not None and receiver is not None:
        leave_queue(sender)
        then = _then(sender)
        if deliver(k, sender, receiver, then):
            _go_on(k, sender, then)


def set_pager(k: State, thread: Tcb, pager: int) -> None:
    """The thread has another pager. If it was not started yet, that one starts it."""
    thread.set_tcr(PAGER, pager)
    if thread.wait is START:
        thread.wait_for = k.global_id(pager, thread)
        k.note(Blocked(k.now, thread.word, "WAITING", thread.wait_for, START.name))
        k.unsettle(thread)


def _takes(k: State, receiver: Tcb, sender: Tcb) -> bool:
    """Does the receiver wait, and would it take a message of this sender? Asks the part, if there is one."""
    if k.ipc_path is not None:
        return k.ipc_path.takes(receiver, sender)
    return receiver.state is WAITING and accepts(receiver, sender)


def accepts(receiver: Tcb, sender: Tcb) -> bool:
    """Would the waiting receiver take a message of this sender?"""
    wanted = receiver.wait_for
    return receiver.wait.by_message and (
        wanted == ANY_THREAD
        or wanted == sender.word
        or (wanted == sender.virtual_sender and wanted != NIL_THREAD and sender.outgoing is None)
        or (wanted == ANY_LOCAL_THREAD and receiver.space is sender.space)
    )


def deliver(k: State, sender: Tcb, receiver: Tcb, then: int) -> bool:
    """Both are ready: move the message, and let the receiver go on. False: not now; see `copying`, or it failed.

    `then`: from whom the sender receives afterwards.
    """
    words, wait = sender.outgoing, receiver.wait
    if words is None:
        words = message_of(sender)
    elif sender.vcpu is not None:
        sender.vcpu.counters.messages += 1
    if sender.outgoing is not None:
        kind = sender.wait.kind
    elif wait is not OWN_IPC:
        kind = START_MESSAGE if wait is START else ANSWER
    elif then == receiver.word:
        kind = CALL
    else:
        kind = REPLY if receiver.wait_for == sender.word else OWN_SEND
    told = receiver.told if then == receiver.word else then
    k.note(MessageSent(k.now, sender.told, receiver.told, words, kind, told))
    k.counters.ipc_messages += 1
    if wait is OWN_IPC:
        error = transfer(k, sender, receiver, words)
        if error or (sender.copying is not None and sender.outgoing is None):
            return end_of_transfer(k, sender, receiver, error)
        complete(k, receiver, sender, words[0])
    else:  # the answer to a call that the kernel made for the receiver
        if receiver.vcpu is not None:
            receiver.vcpu.counters.messages += 1
        receiver.wait = OWN_IPC
        receiver.state = RUNNING
        if words[0] & (PROPAGATED | REDIRECTED):
            sender.virtual_sender = sender.intended_receiver = 0
        error = k.after[wait.number].answered(k, receiver, words, sender)
        if receiver.state is RUNNING:
            k.hand_over(receiver)
    sender.outgoing = None
    if error:
        fail(k, sender, error, SEND)
        return False
    return True


def end_of_transfer(k: State, sender: Tcb, receiver: Tcb, error: int) -> bool:
    """What follows a transfer with strings, or one that failed. True: the message has arrived."""
    if error == SUSPENDED:
        return False
    errors = error, error
    copy = sender.copying
    if copy is not None:
        errors = strings.end(copy, error)
        if not error:
            complete(k, receiver, sender, copy.words[0])
            return True
    for thread, code, phase in ((receiver, errors[1], RECEIVE), (sender, errors[0], SEND)):
        _leave_pager(thread)
        fail(k, thread, code, phase)
    return False


def go_on(k: State, unsettled: Tcb | Copy) -> None:
    """Before anybody runs: two may meet, or a message with strings is copied on."""
    if isinstance(unsettled, Copy):
        continue_transfer(k, unsettled)
    else:
        meet(k, unsettled)


def continue_transfer(k: State, copy: Copy) -> None:
    """A pager has answered in the midst of a message: copy on."""
    sender, receiver = copy.sender, copy.receiver
    if sender.copying is copy and end_of_transfer(k, sender, receiver, continue_items(k, copy)):
        then = _then(sender)
        k.trace.append(Transferred(k.now, sender.word, receiver.word, then))
        _go_on(k, sender, then)


def abort_transfer(k: State, copy: Copy, code: int) -> None:
    """The transfer timeout is over, or one of the two is cancelled in the midst of a message."""
    end_of_transfer(k, copy.sender, copy.receiver, code)


def message_of(sender: Tcb) -> tuple[int, ...]:
    """The message in a thread's registers: MR0 travels in ESI, the rest lies in the UTCB."""
    assert sender.utcb is not None, f"{sender!r} has no UTCB"
    tag = sender.regs[ESI] & _BY_THE_SENDER
    if sender.virtual_sender or sender.intended_receiver:
        tag |= (PROPAGATED if sender.virtual_sender else 0) | (REDIRECTED if sender.intended_receiver else 0)
    count = (tag & 0x3F) + (tag >> 6 & 0x3F)
    if count >= MESSAGE_REGISTERS:
        count = MESSAGE_REGISTERS - 1  # an overflow: see transfer()
    return tag, *WORDS[count].unpack_from(sender.utcb.words, MR1)


def complete(k: State, receiver: Tcb, sender: Tcb, tag: int) -> None:
    """The message is in the receiver's message registers: load the three that travel in registers; let it run."""
    utcb, regs = receiver.utcb, receiver.regs
    assert utcb is not None, f"{receiver!r} has no UTCB"
    words = utcb.words
    regs[ESI], regs[EBX], regs[EBP] = tag, words[MR + 1], words[MR + 2]
    who = named_sender(k, sender, receiver) if tag & (PROPAGATED | REDIRECTED) else sender
    regs[EAX] = who.local_id if who.space is receiver.space and who.local_id else who.word
    receiver.state = RUNNING
    k.hand_over(receiver)


def done(sender: Tcb) -> None:
    """A send without a receive phase is done. MR0 to MR2 travel in registers on every return, message or none:
    programs put them back into their UTCB without asking."""
    utcb, regs = sender.utcb, sender.regs
    assert utcb is not None, f"{sender!r} has no UTCB"
    regs[EAX] = NIL_THREAD
    utcb[MR] = regs[ESI] = regs[ESI] & _BY_THE_SENDER
    regs[EBX], regs[EBP] = utcb[MR + 1], utcb[MR + 2]


# -- what ends a wait ----------------------------------------------------------------------------------------------


def fail(k: State, thread: Tcb, code: IpcErrorCode | int, phase: int) -> None:
    """End a thread's IPC with an error. `code` may carry an offset in bits 4 and up, as ErrorCode does."""
    if thread.send_to is not None:
        leave_queue(thread)
    thread.state = RUNNING
    thread.then_receive = None
    thread.virtual_sender = thread.intended_receiver = 0
    error = (code & 7) << 1 | phase | code & ~15
    k.trace.append(events.IpcError(k.now, thread.word, error))
    wait = thread.wait
    if wait is not OWN_IPC:
        # A call that the kernel made for it: the thread resumes where it was, and what caused the call recurs.
        thread.outgoing = None
        thread.wait = OWN_IPC
        if thread.copying is not None:  # it was to bring a page for a message that is on its way
            abort_transfer(k, thread.copying, IpcErrorCode.ABORTED)
            return
        k.after[wait.number].failed(k, thread, error)
        if thread.state is not RUNNING:
            return
    else:
        if thread.utcb is not None:
            tag = thread.utcb[MR] if code & 7 > IpcErrorCode.CANCELLED else 0
            thread.utcb[MR] = thread.regs[ESI] = tag | _ERROR
            thread.regs[EBX], thread.regs[EBP] = thread.utcb[MR + 1], thread.utcb[MR + 2]
        thread.refuse(error)
        if phase == RECEIVE or code & 7 <= IpcErrorCode.CANCELLED:
            thread.regs[EAX] = NIL_THREAD  # else it goes on to name the receiver
    k.make_ready(thread)


def expire(k: State, sleeper: Tcb | Copy) -> None:
    """The timeout of a blocked thread, or of a transfer, is over."""
    if isinstance(sleeper, Copy):
        abort_transfer(k, sleeper, sleeper.timeout)
    else:
        fail(k, sleeper, IpcErrorCode.TIMEOUT, SEND if sleeper.state is POLLING else RECEIVE)


def cancel(k: State, thread: Tcb) -> None:
    """Somebody aborts the thread's IPC (ExchangeRegisters, deletion, migration)."""
    if thread.copying is not None:
        abort_transfer(k, thread.copying, IpcErrorCode.ABORTED)
    elif thread.state is POLLING:
        fail(k, thread, IpcErrorCode.CANCELLED, SEND)
    elif thread.state is WAITING:
        fail(k, thread, IpcErrorCode.CANCELLED, RECEIVE)


def confine(k: State) -> None:
    """A space has another redirector, or a thread another name or space: who sends to where it may not any more, or
    is in the midst of a message to there, is cancelled. Trying again, it learns who gets its messages now."""
    if not any(space.redirector for space in k.spaces):
        return
    for thread in k.threads.values():
        receiver = thread.send_to
        if thread.copying is not None:
            receiver = thread.copying.receiver if thread.copying.sender is thread else None
        elif thread.outgoing is not None:
            continue  # a message of the kernel's
        if receiver is not None and not may_send_to(k, thread, receiver):
            cancel(k, thread)


def drop_senders(k: State, receiver: Tcb) -> None:
    """The receiver goes away, or has another name: whoever stands in its queue has no partner any more (Q10: the
    reference forgets). But an interrupt is for a thread, whatever its name: it stays if that is still there."""
    gone = k.threads.get(receiver.id.thread_no) is not receiver
    for sender in list(receiver.senders):
        if gone or sender.wait is not ACKNOWLEDGEMENT:
            fail(k, sender, IpcErrorCode.NO_PARTNER, SEND)


def wait_in_vain(k: State, gone: int) -> None:
    """Nobody is called `gone` any more: abort who waits for it in particular; but a new thread's pager may yet come."""
    for other in k.threads.values():
        if other.state is WAITING and other.wait_for == gone and other.wait is not START:
            cancel(k, other)


def leave_queue(sender: Tcb) -> None:
    """The sender stands in nobody's queue any more."""
    assert sender.send_to is not None, f"{sender!r} is polling nobody"
    sender.send_to.senders.remove(sender)
    sender.send_to = None


def _leave_pager(thread: Tcb) -> None:
    """The transfer is over while the thread asks its pager for a page: it asks no more."""
    if thread.send_to is not None:
        leave_queue(thread)
    thread.outgoing = None
    thread.wait = OWN_IPC


def _set_timer(k: State, thread: Tcb, timeout: int) -> None:
    thread.wake_ticket += 1
    if timeout != _NEVER:
        k.wake_at(strings.moment(k.now, timeout), thread)
