# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel debugger's traps: a console for native programs by INT3."""

from __future__ import annotations

import pytest

from l4lab.abi.calls import ExregsControl
from l4lab.abi.ids import NIL_THREAD, ThreadId
from l4lab.abi.protocols import ARCH_EXCEPTION
from l4lab.kernel import events, invariants
from l4lab.kernel.devices.debugtraps import LONGEST_TEXT, UNREADABLE
from l4lab.kernel.objects.instants import SERIAL, Input, Instant
from l4lab.kernel.objects.thread import ThreadState
from l4lab.testing import MEMORY, Root, System, run
from l4lab.user.l4 import Received

DATA = MEMORY.base + 0x1000
READ, READ_BLOCKING = "int3\n cmp al, 0x08\n", "int3\n cmp al, 0x0d\n"


def console(source: str, **constants: int) -> str:
    """What a native program prints."""
    return run(lambda r: [r.native(source + "\n ud2", **constants), None][1]).console.decode()


def type_(system: System, text: bytes) -> None:
    """Bytes arrive at the serial port."""
    system.kernel.give(Input(Instant(system.machine.cycles, system.kernel.entries), SERIAL, text))
    invariants.check(system.kernel)


@pytest.mark.parametrize("nop", ["", "nop\n "], ids=["", "leading NOP"])
def test_characters_and_texts_are_printed(nop: str) -> None:
    """Do the three ways to print reach the console, in order, and does the program go on behind each?"""
    source = f"""
        mov eax, 0x12340041
        int3
        {nop}cmp al, 0
        mov eax, text
        int3
        {nop}cmp al, 1
        int3
        {nop}jmp over
        mov eax, message
    over:
        mov eax, 0x21
        int3
        cmp al, 0
        ud2
    text: .asciz "BC\\n"
    message: .asciz "panic"
    """
    # `jmp over` is the short form, and `mov eax, message` is B8 with the address, as the convention wants
    assert "ABC\n--- panic ---\n!" == console(source)


def test_registers_are_left_alone() -> None:
    """Does printing change nothing but the flags that CMP changes?"""

    def root(r: Root) -> None:
        marks = "".join(f"mov {name}, {i + 1}\n" for i, name in enumerate(("ecx", "edx", "ebx", "ebp", "esi", "edi")))
        names = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")
        saves = "".join(f"mov [{DATA + 4 * i}], {name}\n" for i, name in enumerate(names))
        r.native(f"mov eax, 0x5541\n {marks} int3\n cmp al, 0\n {saves} ud2")

    assert [0x5541, 1, 2, 3, 4, 5, 6] == run(root).words(DATA, 7)


def test_a_text_may_reach_into_the_next_page_and_need_not_be_mapped() -> None:
    """Is a text read page by page, and is a missing page told in its place?"""

    def root(r: Root) -> None:
        r.store(DATA + 0xFFE, b"abcd\0")
        r.store(MEMORY.base + MEMORY.size - 2, b"xy")
        for address in (DATA + 0xFFE, MEMORY.base + MEMORY.size - 2, 0x2000_0000):
            r.native(f"mov eax, {address}\n int3\n cmp al, 1\n ud2")
            r.sleep(100)

    assert b"abcd" + b"xy" + UNREADABLE + UNREADABLE == bytes(run(root).console)


def test_a_text_without_end_is_cut() -> None:
    """Does a text of which nobody wrote the end come to one?"""

    def root(r: Root) -> None:
        r.store(DATA, b"a" * 0x3000)
        r.native(f"mov eax, {DATA}\n int3\n cmp al, 1\n ud2")

    assert LONGEST_TEXT == len(run(root).console)


@pytest.mark.parametrize("source", ["int3\n hlt", "int3\n cmp al, 2", "int3\n nop\n nop", "int3\n jmp $ + 2\n nop"])
def test_any_other_int3_is_an_exception(source: str) -> None:
    """Does a breakpoint that follows none of the conventions reach the exception handler?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        r.native(f"mov ebp, gs:[0]\n mov dword ptr [ebp - 44], {int(r.my_id)}\n {source}", r.space())
        got.append(r.serve())

    run(root)

    assert (ARCH_EXCEPTION, 3) == (got[0].label, got[0].untyped[2])


def test_what_toggles_the_debugger_does_nothing() -> None:
    """Does `cmp al, 3` pass without effect?"""
    assert "A" == console("mov eax, 0x41\n int3\n cmp al, 3\n int3\n cmp al, 0")


def test_reading_does_not_wait_unless_told_to() -> None:
    """Is -1 read where nothing has arrived, and the characters in order where some have?"""

    def root(r: Root) -> None:
        r.sleep(100)
        r.native(
            f"{READ} mov [{DATA}], eax\n {READ_BLOCKING} mov [{DATA + 4}], eax\n {READ} mov [{DATA + 8}], eax\n ud2"
        )
        r.sleep(100)
        r.native(f"{READ} mov [{DATA + 12}], eax\n ud2")

    system = System(root)
    type_(system, b"xy")
    system.run(1000)
    system.run()

    assert [ord("x"), ord("y"), 0xFFFF_FFFF, 0xFFFF_FFFF] == system.words(DATA, 4)


def test_who_waits_for_a_character_costs_nothing() -> None:
    """Is a system in which all wait for input idle, and does each byte wake one of the readers?"""
    readers: list[ThreadId] = []

    def root(r: Root) -> None:
        for i in range(2):
            source = f"{READ_BLOCKING} inc dword ptr [{DATA + 4 * i}]\n add [{DATA + 8}], eax\n ud2"
            readers.append(r.native(source).id)

    system = System(root)

    assert "idle" == system.run()
    assert [ThreadState.WAITING] * 2 == [system.thread(reader).state for reader in readers]
    before = system.kernel.entries
    assert "idle" == system.run()
    assert before == system.kernel.entries
    type_(system, b"\x01")
    assert "idle" == system.run()
    assert 1 == sum(system.words(DATA, 2))
    type_(system, b"\x02")
    system.run()
    assert [1, 1, 3] == system.words(DATA, 3)


def test_a_reader_can_be_aborted_and_deleted() -> None:
    """Does an aborted reader wait again with its registers as they were, does one given another IP go there, and can
    one be deleted?"""

    def root(r: Root) -> None:
        wait = f"mov esi, 0x55\n {READ_BLOCKING} mov [{DATA}], esi\n mov [{DATA + 4}], eax\n ud2"
        aborted, deleted = r.native(wait), r.native(wait)
        sent_on = r.native(f"{wait}\n other: mov dword ptr [{DATA + 8}], 7\n ud2")
        r.sleep(100)
        r.exchange_registers(aborted.id, ExregsControl.ABORT_RECEIVE)
        r.exchange_registers(sent_on.id, ExregsControl.ABORT_RECEIVE | ExregsControl.IP, ip=sent_on.at("other"))
        r.thread_control(deleted.id, NIL_THREAD)

    system = System(root)
    assert "idle" == system.run()
    type_(system, b"z")
    system.run()

    assert [0x55, ord("z"), 7] == system.words(DATA, 3)
    assert 2 == len([event for event in system.trace.of(events.ThreadHalted) if "exception 6" in event.why])


def test_nobody_can_send_to_a_reader() -> None:
    """Does a message to a thread that waits for input wait too?"""

    def root(r: Root) -> None:
        reader = r.native(f"{READ_BLOCKING} mov [{DATA}], eax\n ud2")
        r.hosted(lambda l4: l4.send(reader.id, [0]))

    system = System(root)
    assert "idle" == system.run()
    type_(system, b"a")
    system.run()

    assert [ord("a")] == system.words(DATA)


def test_a_reader_hears_of_bytes_that_were_held_up_in_the_port() -> None:
    """A byte arrives while a driver has the port in loopback, so that nobody can read it. Does it reach the thread that
    waits for one when the driver lets go, although nothing comes from outside then?"""

    def root(r: Root) -> None:
        r.native(f"{READ_BLOCKING} mov [{DATA}], eax\n ud2", priority=200)
        r.ports(0x3F8, 3)
        r.port_out(0x3FC, 1, 0x10)
        r.sleep(2000)
        r.port_out(0x3FC, 1, 0)
        r.sleep(2000)

    system = System(root)
    system.run(1_000_000)
    type_(system, b"x")
    system.run(10_000_000)

    assert [ord("x")] == system.words(DATA)
