# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo guest does on a bare PC what its listing says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from l4lab.user.asm import assemble
from l4lab.user.guests import tinyos
from l4lab.user.guests.flat import ORIGIN, RAM_SIZE

PowerOn = Callable[..., Any]


def test_it_runs_from_banner_to_power_off(power_on: PowerOn) -> None:
    """All of the console, to the character; then the PC is off."""
    assert tinyos.expected_console("GenuineIntel") == power_on(tinyos.build()).wait_for_end()


def test_it_takes_commands(power_on: PowerOn) -> None:
    """An interactive one answers help, ticks and nonsense, and obeys halt."""
    pc = power_on(tinyos.build(interactive=True), "athlon")
    greeting = pc.read_until("tiny> ")
    answers = {}
    for line in ("help", "ticks", "", "nosuch", "helpless"):
        pc.type(line + "\r")
        answers[line] = pc.read_until("\r\ntiny> ").removesuffix("\r\ntiny> ")
    pc.type("halt\n")
    console = pc.wait_for_end()

    assert tinyos.expected_console("AuthenticAMD", interactive=True) == greeting
    ticks = re.fullmatch(r"ticks\r\n(\d+) ticks", answers.pop("ticks"))
    assert ticks
    assert int(ticks.group(1)) >= tinyos.IDLE_TICKS
    assert {
        "help": "help\r\ncommands: help, ticks, halt",
        "": "",
        "nosuch": "nosuch\r\nno such command: try help",
        "helpless": "helpless\r\nno such command: try help",
    } == answers
    assert console.endswith("tiny> halt\r\npowering off\r\n")


def test_its_kernel_is_safe_from_its_process(power_on: PowerOn) -> None:
    """A process can neither print kernel memory nor write to its own code: refused the one, killed for the other."""
    bad = assemble(
        """
        mov     eax, SYS_WRITE
        mov     ebx, KERNEL_BASE + 0x101000
        mov     ecx, 16
        int     0x80
        cmp     eax, -1
        jne     $
        mov     dword ptr [USER_CODE], 0
        """,
        tinyos.USER_CODE,
        constants=tinyos.CONSTANTS,
    )
    guest = tinyos.build()
    guest = dataclasses.replace(guest, pieces=(guest.pieces[0], (tinyos.USER_FRAME, bad.code)))

    console = power_on(guest).wait_for_end()
    assert "100 Hz\r\npage fault at 0x00400000 from ring 3: the process is killed\r\nprocess has ended" in console
    assert "\r\n0 page faults, 1 system calls\r\npowering off\r\n" in console


def test_it_has_paging_rings_and_a_clock(power_on: PowerOn) -> None:
    """While it waits for a command: paging on, high addresses, own tables, the low half not the kernel's."""
    guest = tinyos.build(interactive=True)
    pc = power_on(guest)
    pc.read_until("tiny> ")

    assert 0x80010000 == pc.register("CR0") & 0x80010000
    assert 0x120000 == pc.register("CR3")
    assert pc.word(0x120000) & 1 == 0
    assert pc.word(0x123000) >= tinyos.IDLE_TICKS
    assert f"{guest.symbols['gdt']:08x}" in pc.ask("info registers")


def test_its_pieces_fit() -> None:
    """The pieces do not overlap, nor reach into the page tables, nor beyond memory; entry and symbols are in them."""
    guest = tinyos.build()
    (kernel_at, kernel), (process_at, process) = guest.pieces

    assert ORIGIN == kernel_at == guest.entry
    assert kernel_at + len(kernel) <= process_at
    assert len(process) <= 4096
    assert process_at + len(process) <= 0x120000 < RAM_SIZE
    assert ORIGIN + tinyos.KERNEL_BASE == guest.symbols["start"]
    assert tinyos.USER_CODE == guest.symbols["process"]
