# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's operations cost, in CPU seconds each, and whether that grows with what they do not touch.

Messages go between native threads, since the two traps are part of what a message costs. Mappings and threads are made
by the hosted root task, which looks at the clock around its system calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from l4lab.abi import utcb as u
from l4lab.abi.calls import SystemCall
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, SIGMA0, ThreadId, global_id
from l4lab.abi.message import ACCEPT_ALL_MAPPINGS, Acceptor, Message, StringItem
from l4lab.abi.protocols import any_page, is_page_fault, sigma0_request, thread_start
from l4lab.bench.programs import ANSWER
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.l4 import L4

MEMORY_MIB = 96
PAGE = 4096
CODE = Fpage.at(0x0040_0000, 20)  # code, stacks, and what strings are copied from and to
SOURCE, TARGET = CODE.base + 0x4_0000, CODE.base + 0x8_0000
WORK = Fpage.at(0x1000_0000, 22)  # what is mapped
KIP, UTCBS, CROWD = Fpage.at(0xBFF0_0000), Fpage.at(0xBF00_0000, 17), Fpage.at(0xBE00_0000, 20)
PING, PONG, CLIENT, CROWD_SPACE = global_id(100), global_id(101), global_id(102), global_id(1000)

# Each calls the other for ever, with the same message.
_PARTNERS = f"""
ping:
    mov edi, gs:[0]
.again:
    mov esi, TAG
    mov dword ptr [edi + 4], ITEM
    mov dword ptr [edi + 8], FROM
    mov eax, PONG
    mov edx, eax
    xor ecx, ecx
    call IPC
    jmp .again
pong:
    mov edi, gs:[0]
    mov dword ptr [edi - 64], 1
    mov dword ptr [edi - 68], BUFFER
    mov dword ptr [edi - 72], INTO
    xor eax, eax
    mov edx, PING
    xor ecx, ecx
    call IPC
{ANSWER}"""


def message(words: int = 0, string: int = 0, apart: bool = False, waiting: int = 0, count: int = 2000) -> float:
    """A call with so many words, or a string of so many bytes, and its empty answer.

    `apart`: between two spaces. `waiting`: so many other threads wait meanwhile.
    """

    def root(l4: L4) -> None:
        _memory(l4)
        _crowd(l4, waiting)
        kip = l4.kip()
        names = {
            "PING": PING,
            "PONG": PONG,
            "IPC": KIP.base + kip.entry(SystemCall.IPC),
            "FROM": SOURCE,
            "INTO": TARGET,
            "TAG": 2 << 6 if string else words,
            "ITEM": StringItem.make(length=string),
            "BUFFER": StringItem.make(length=max(string, 1)),
        }
        program = assemble(_PARTNERS, CODE.base, constants={name: int(value) for name, value in names.items()})
        l4.store(CODE.base, program.code)
        for number, (thread, label) in enumerate(((PONG, "pong"), (PING, "ping")), start=1):
            _thread(l4, thread, thread if apart else l4.my_id, number)
            stack = CODE.base + 0x1000 * (number + 1)
            l4.send(thread, thread_start(program.symbols[label], stack))
        _serve(l4)

    rig = Rig(root, MEMORY_MIB << 20)
    counters = rig.kernel.counters
    rig.run_until(1 << 60, lambda: rig.kernel.threads.get(PING.thread_no) is not None)
    begun = counters.ipc_messages + 300
    rig.run_until(1 << 60, watch=lambda: counters.ipc_messages > begun)
    before, start = counters.ipc_messages, time.process_time()
    rig.run_until(1 << 60, watch=lambda: counters.ipc_messages - before >= 2 * count)
    return (time.process_time() - start) / (counters.ipc_messages - before) * 2


def map_and_unmap(log2: int, count: int = 300) -> float:
    """Mapping a page of that size into another space by an answer, and unmapping it."""
    page = Fpage.at(WORK.base, log2)
    took: list[float] = []

    def root(l4: L4) -> None:
        _memory(l4)
        _start_client(l4)
        for _ in range(count):
            start = time.process_time()
            l4.call(CLIENT, Message().append_map(page, page.base))
            l4.unmap(page)
            took.append(time.process_time() - start)

    return _median_of(root, took, _take_mappings)


def create_and_delete(count: int = 300) -> float:
    """Creating an active thread in the caller's space, and deleting it."""
    took: list[float] = []

    def root(l4: L4) -> None:
        for _ in range(count):
            start = time.process_time()
            l4.thread_control(CLIENT, l4.my_id, l4.my_id, l4.my_id, UTCBS.base + u.SIZE)
            l4.thread_control(CLIENT, NIL_THREAD)
            took.append(time.process_time() - start)

    return _median_of(root, took, None)


def unmap_each(mappings: int, deep: bool, beside: int = 0) -> float:
    """Unmapping a page that was mapped on so often, per mapping removed: one behind the other, or side by side.

    `beside`: so many mappings of another page, which stay.
    """
    took: list[float] = []

    def root(l4: L4) -> None:
        _memory(l4)
        _start_client(l4)
        page, other = Fpage.at(WORK.base, 12), Fpage.at(WORK.base + PAGE, 12)
        for number in range(beside):
            l4.call(CLIENT, Message().append_map(other, 0x2000_0000 + number * PAGE))
        for _ in range(5):
            at: int = page.base
            for number in range(mappings):
                there = 0x3000_0000 + number * PAGE
                if not deep:
                    l4.call(CLIENT, Message().append_map(page, there))
                elif number % 2 == 0:  # to the client, which maps it back with its next answer
                    l4.call(CLIENT, Message().append_map(Fpage.at(at), there))
                else:
                    at = there + PAGE
                    l4.accept(Acceptor.of(Fpage.at(at)))
                    l4.call(CLIENT, Message(_MAP_BACK, [there - PAGE, at]))
                    l4.accept(0)
            start = time.process_time()
            l4.unmap(page)
            took.append((time.process_time() - start) / mappings)

    return _median_of(root, took, _take_mappings)


_MAP_BACK = 1  # label: map the page at MR1 to me, to MR2


def _take_mappings(l4: L4) -> None:
    """The client: takes all that is mapped to it, and maps back what is asked for."""
    l4.accept(ACCEPT_ALL_MAPPINGS)
    received = l4.wait()
    while True:
        answer = Message()
        if received.label == _MAP_BACK:
            answer.append_map(Fpage.at(received.untyped[0]), received.untyped[1])
        received = l4.reply_wait(received.sender, answer)


def _median_of(root: Callable[[L4], None], took: list[float], client: Callable[[L4], None] | None) -> float:
    rig = Rig(root, MEMORY_MIB << 20, programs={CLIENT: client} if client else {})
    rig.run()
    return sorted(took)[len(took) // 2]


def _memory(l4: L4) -> None:
    """Get the pages that the programs use from sigma0."""
    for piece in (CODE, WORK):
        l4.accept(Acceptor.of(piece))
        l4.call(SIGMA0, sigma0_request(any_page(piece.log2)))
    l4.accept(0)


def _thread(l4: L4, thread: ThreadId, space: ThreadId, number: int, utcbs: Fpage = UTCBS) -> None:
    """An active thread whose pager is root; in a new space if that is named after it."""
    me = l4.my_id
    if space == thread:
        l4.thread_control(thread, thread, me)
        l4.space_control(thread, 0, KIP, utcbs)
    l4.thread_control(thread, space, me, me, utcbs.base + u.SIZE * number)


def _start_client(l4: L4) -> None:
    _thread(l4, CLIENT, CLIENT, 0)
    l4.send(CLIENT, thread_start(0, 0))


def _crowd(l4: L4, count: int) -> None:
    """So many threads that wait for their start."""
    for number in range(count):
        thread = global_id(CROWD_SPACE.thread_no + number)
        _thread(l4, thread, CROWD_SPACE, number, CROWD)


def _serve(l4: L4) -> None:
    """Answer page faults with the page of the same address, for ever."""
    received = l4.wait()
    while True:
        if is_page_fault(received.label):
            page = Fpage.at(received.untyped[0] & -PAGE)
            received = l4.reply_wait(received.sender, Message().append_map(page, page.base))
        else:
            received = l4.wait()
