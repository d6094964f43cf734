# SPDX-License-Identifier: GPL-2.0-or-later
"""Device interrupts as messages, and sigma0 asked by real programs."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest

from l4lab.abi.calls import ErrorCode
from l4lab.abi.fpage import NILPAGE, Fpage
from l4lab.abi.ids import NIL_THREAD, SIGMA0, ThreadId, global_id, interrupt_id
from l4lab.abi.message import Acceptor, Message
from l4lab.abi.protocols import INTERRUPT, any_page, sigma0_granted, sigma0_request
from l4lab.abi.time import ZERO, period
from l4lab.kernel import events
from l4lab.kernel.boot import KERNEL_MEMORY
from l4lab.testing import MEMORY, Root, System
from l4lab.user.l4 import L4, CallRefused, IpcFailed, Received

UART = interrupt_id(4)
DATA = int(MEMORY.base) + 0x1000

NATIVE_DRIVER = f"""
    mov edx, 0x3f9
    mov al, 1
    out dx, al                      ; an interrupt for each byte that arrives ...
    mov edx, 0x3fc
    mov al, 8
    out dx, al                      ; ... let through to the controller
    mov ebx, {DATA}
    xor eax, eax
 next:
    mov edi, gs:[0]
    mov edx, {int(UART)}
    xor ecx, ecx
    xor esi, esi
    mov [{DATA + 0x100}], ebx
    call Ipc
    mov ebx, [{DATA + 0x100}]
    mov [{DATA + 0x104}], esi
    mov edx, 0x3f8
    in al, dx
    mov [ebx], al
    inc ebx
    mov eax, {int(UART)}
    jmp next
"""


def hosted_driver(l4: L4) -> None:
    """The same in Python."""
    l4.port_out(0x3F9, 1, 1)
    l4.port_out(0x3FC, 1, 8)
    at = DATA
    received = l4.receive(UART)
    while True:
        l4.store_word(DATA + 0x104, received.tag)
        l4.store(at, bytes((l4.port_in(0x3F8, 1),)))
        at += 1
        received = l4.call(UART, [0])


@pytest.mark.parametrize("kind", ["native", "hosted"])
def test_a_driver_hears_of_each_byte(kind: str) -> None:
    """Does an interrupt come as a message from the line's thread, and again after it was acknowledged?"""

    def root(r: Root) -> None:
        r.ports(0x3F8, 3)
        driver = r.native(NATIVE_DRIVER, priority=200).id if kind == "native" else r.hosted(hosted_driver, priority=200)
        r.thread_control(UART, UART, pager=driver)

    system = System(root)
    system.run(1_000_000)
    for byte in b"abc":
        system.machine.uart.receive(bytes((byte,)))
        system.kernel.look_at_devices()
        system.run(1_000_000)

    assert b"abc" == b"".join(word.to_bytes(4, "little") for word in system.words(DATA))[:3]
    assert [INTERRUPT << 16] == system.words(DATA + 0x104)
    assert [4, 4, 4] == [event.line for event in system.trace.of(events.Interrupt)]


def test_a_line_can_change_hands_in_the_midst_of_an_interrupt() -> None:
    """When the line is given away before its handler has answered: does the next interrupt reach the other?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        def other(l4: L4) -> None:
            got.append(l4.receive(UART))

        r.port_out(0x3F9, 1, 1)
        r.port_out(0x3FC, 1, 8)
        r.thread_control(UART, UART, pager=r.my_id)
        got.append(r.receive(UART))
        r.port_in(0x3F8, 1)
        r.thread_control(UART, UART, pager=r.hosted(other, priority=200))
        r.sleep(5000)
        r.thread_control(UART, UART, pager=UART)
        r.sleep(5000)

    system = System(root)
    for _ in range(4):
        system.run(2_000_000)
        system.machine.uart.receive(b"x")
        system.kernel.look_at_devices()
    system.run()

    assert [UART, UART] == [received.sender for received in got]
    assert UART.thread_no not in system.kernel.threads


def test_a_driver_that_goes_away_leaves_its_line_masked() -> None:
    """When the handler is deleted while the line waits for its answer, does everything go on without interrupts?"""

    def root(r: Root) -> None:
        r.ports(0x3F8, 3)
        driver = r.hosted(
            lambda l4: (l4.port_out(0x3F9, 1, 1), l4.port_out(0x3FC, 1, 8), l4.receive(UART), l4.sleep(10**6))[0]
        )
        r.thread_control(UART, UART, pager=driver)
        r.sleep(3000)
        r.thread_control(driver, NIL_THREAD)
        r.sleep(3000)

    system = System(root)
    for _ in range(3):
        system.run(2_000_000)
        system.machine.uart.receive(b"x")
        system.kernel.look_at_devices()

    assert "idle" == system.run()
    assert 1 == len(system.trace.of(events.Interrupt))


@pytest.mark.parametrize("line", [global_id(4, 2), global_id(2), global_id(20)], ids=["version", "cascade", "kernel's"])
def test_what_is_no_line_is_refused(line: ThreadId) -> None:
    """Are a wrong version, the cascade, and the kernel's thread numbers refused?"""
    codes: list[int] = []

    def root(r: Root) -> None:
        with suppress(CallRefused):
            r.thread_control(line, line, pager=r.my_id)
        codes.append(r.tcr(-36))

    System(root).run()

    assert [ErrorCode.INVALID_THREAD] == codes


@pytest.mark.parametrize("kind", ["native", "hosted"])
def test_sigma0_gives_a_page_to_the_first_who_asks(kind: str) -> None:
    """Does a request give the page, usable at once, and nilpage to the next; and not what is the kernel's?"""
    got: list[int] = []
    page, window = Fpage.at(0x80_0000), Fpage.at(0x1000_0000)

    def root(r: Root) -> None:
        def ask(l4: L4, wanted: Fpage) -> Fpage:
            l4.accept(Acceptor.of(window))
            return sigma0_granted(l4.call(SIGMA0, sigma0_request(wanted)).words)

        if kind == "native":
            r.native(
                f"""
                mov edi, gs:[0]
                mov dword ptr [edi - 64], {int(Acceptor.of(window)):#x}
                mov dword ptr [edi + 4], {int(page):#x}
                mov dword ptr [edi + 8], 0
                mov eax, {int(SIGMA0)}
                mov edx, eax
                xor ecx, ecx
                mov esi, {int(sigma0_request(page).tag):#x}
                call Ipc
                mov dword ptr [{int(window.base)}], 0x1234
                ud2""",
                r.space(),
            )
        else:
            r.hosted(lambda l4: (ask(l4, page), l4.store_word(window.base, 0x1234))[1], r.space())
        with suppress(IpcFailed):
            while True:
                received = r.wait(period(1000))
                at = Fpage.at(received.untyped[0] & -4096)
                r.send(received.sender, Message().append_map(at, at.base))
        got.append(ask(r, page))
        got.append(ask(r, Fpage.at(r.system.machine.memory.size - KERNEL_MEMORY)))
        got.append(ask(r, any_page(12)) & ~0xFFF)

    system = System(root)
    system.run()

    assert 0x1234 == system.machine.memory.u32[page.base >> 2]
    assert [NILPAGE, NILPAGE] == got[:2]
    assert got[2] not in (NILPAGE, page.base)


def test_who_has_the_controllers_ports_cannot_break_the_kernel() -> None:
    """A program opens at the controller a line that the kernel has masked, while its handler has not answered yet. Is
    that no interrupt, and does the next one come when the handler has answered?"""
    heard: list[str] = []

    def root(r: Root) -> None:
        r.ports(0x20, 1)
        r.ports(0x40, 2)
        r.thread_control(interrupt_id(0), interrupt_id(0), pager=r.my_id)
        for port, value in ((0x43, 0x34), (0x40, 0xA0), (0x40, 0x20)):  # a timer of 143 Hz
            r.port_out(port, 1, value)
        r.receive(interrupt_id(0))
        for _ in range(10):
            r.port_out(0x21, 1, 0)
            r.sleep(5000)
        with pytest.raises(IpcFailed):
            r.receive(interrupt_id(0), ZERO)
        r.call(interrupt_id(0), [0])
        heard.append("again")

    system = System(root)
    system.run(1_000_000_000)

    assert ["again"] == heard
    assert len(system.trace.of(events.Interrupt)) == 2


def test_a_periodic_timer_is_heard_for_ever() -> None:
    """Does a driver that only answers, and touches no port any more, hear of each period of the timer?"""
    heard: list[int] = []

    def root(r: Root) -> None:
        r.ports(0x40, 2)
        r.thread_control(interrupt_id(0), interrupt_id(0), pager=r.my_id)
        for port, value in ((0x43, 0x34), (0x40, 0xA0), (0x40, 0x20)):
            r.port_out(port, 1, value)
        r.receive(interrupt_id(0))
        for _ in range(6):
            r.call(interrupt_id(0), [0])
            heard.append(r.time_stamp())

    assert System(root).run(1_000_000_000) == "idle"
    assert {7} == {round((after - before) / 1_000_000) for before, after in itertools.pairwise(heard)}


@pytest.mark.parametrize("listens", [True, False], ids=["before the answer", "before the message"])
def test_a_handler_that_gets_another_name_goes_on_handling(listens: bool) -> None:
    """When the handler is renamed before it has answered an interrupt, or before it has heard of it: does that go on,
    and does the next one come?"""
    heard: list[ThreadId] = []
    handler = global_id(300, 1)

    def handle(l4: L4) -> None:
        for _ in range(2):
            if not listens:
                l4.sleep(5000)
            heard.append(l4.receive(interrupt_id(9)).sender)
            if listens:
                l4.sleep(5000)
            l4.send(interrupt_id(9), [0])

    def root(r: Root) -> None:
        r.hosted(handle, id_=handler, priority=200)
        r.thread_control(interrupt_id(9), interrupt_id(9), pager=handler)
        for version in (2, 3):
            r.system.machine.press_button()
            r.system.kernel.look_at_devices()
            r.sleep(1000)
            r.thread_control(global_id(300, version), global_id(300, version - 1))
            r.sleep(10_000)

    System(root).run()

    assert [interrupt_id(9)] * 2 == heard


def test_who_waits_for_a_line_that_is_detached_waits_no_more() -> None:
    """Is the wait of a driver cancelled when its line is detached, and the call of a line whose handler is that one?"""
    log: list[str] = []

    def drive(l4: L4) -> None:
        with pytest.raises(IpcFailed, match="cancelled"):
            l4.receive(interrupt_id(4))
        log.append("cancelled")

    def root(r: Root) -> None:
        r.thread_control(interrupt_id(4), interrupt_id(4), pager=r.my_id)
        r.thread_control(interrupt_id(9), interrupt_id(9), pager=interrupt_id(4))
        r.hosted(drive)
        r.system.machine.press_button()
        r.system.kernel.look_at_devices()
        r.sleep(1000)
        assert r.system.kernel.threads[9].send_to is r.system.kernel.threads[4]
        r.thread_control(interrupt_id(4), interrupt_id(4), pager=interrupt_id(4))
        r.sleep(1000)
        log.append(r.system.kernel.threads[9].state.name)

    System(root).run()

    assert ["cancelled", "HALTED"] == log
