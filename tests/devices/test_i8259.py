# SPDX-License-Identifier: GPL-2.0-or-later
"""The interrupt controllers against QEMU's, and what the CPU's side of them does.

Deliberate differences, which the common scripts avoid: in special mask mode a non-specific EOI spares masked inputs,
as the data sheet says (QEMU's does not); with automatic EOI the second chip makes a new edge for the next request
(in QEMU its line just stays high, and the request is forgotten); INT follows a change of special mask mode at once
(QEMU looks again only at the next command, line or mask that it thinks matters), so the scripts write the mask again
behind such a command, which makes QEMU look before anything else can happen.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4lab.devices.i8259 import INPUTS, I8259Pair

from .qemu import Lines


@pytest.fixture(scope="module")
def qemu() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


Op = tuple[str, int, int]  # ("in", port, 0), ("out", port, value), ("line", number, level)


KINDS = ("line", "line", "line", "mask", "read", "isr", "irr", "poll", "poll", "eoi", "other")
SPECIAL_MASK = (0x48, 0x68)  # OCW3: leave, enter


@st.composite
def scripts(draw: st.DrawFn) -> list[Op]:
    """Initialise both chips, then do anything."""
    ops: list[Op] = [("line", number, 0) for number in sorted(INPUTS)]
    ops += [("out", 0x4D0, 0), ("out", 0x4D1, 0), ("out", 0x20, 0x11), ("out", 0xA0, 0x11)]  # forgets earlier requests
    ops += [
        ("out", 0x4D0, draw(st.sampled_from((0, 0xF8, 0x28)))),
        ("out", 0x4D1, draw(st.sampled_from((0, 0xDE, 0x0E)))),
    ]
    modes, masks = {}, {}
    for port, vector, icw3 in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
        auto = 0x02 if port == 0x20 and draw(st.booleans()) else 0
        modes[port] = draw(st.booleans())  # uses special mask, so only specific EOIs
        words = [0x11, vector, icw3, 0x01 | auto | draw(st.sampled_from((0, 0x10)))]
        ops += [("out", port + (i > 0), word) for i, word in enumerate(words)]
        masks[port] = draw(st.sampled_from((0, 0, 0xA5, 0xFF)))
        ops.append(("out", port + 1, masks[port]))
    for _ in range(draw(st.integers(20, 80))):
        port = draw(st.sampled_from((0x20, 0xA0)))
        match draw(st.sampled_from(KINDS)):
            case "line":
                ops.append(("line", draw(st.sampled_from(sorted(INPUTS))), draw(st.integers(0, 1))))
            case "mask":
                masks[port] = draw(st.integers(0, 255))
                ops.append(("out", port + 1, masks[port]))
            case "read":
                ops.append(("in", port + draw(st.integers(0, 1)), 0))
            case "isr":
                ops += [("out", port, 0x0B), ("in", port, 0)]
            case "irr":
                ops += [("out", port, 0x0A), ("in", port, 0)]
            case "poll":
                ops += [("out", port, 0x0C), ("in", port, 0)]
            case "eoi":
                commands = (0x60, 0xE0) if modes[port] else (0x20, 0x20, 0x60, 0xA0, 0xE0)
                ops.append(("out", port, draw(st.sampled_from(commands)) | draw(st.integers(0, 7))))
            case _:
                commands = (0x00, 0x80, 0xC0 | draw(st.integers(0, 7)), *(SPECIAL_MASK if modes[port] else ()))
                ops.append(("out", port, draw(st.sampled_from(commands))))
                if ops[-1][2] in SPECIAL_MASK:
                    ops.append(("out", port + 1, masks[port]))
    for port in (0x20, 0xA0):
        ops += [("out", port, 0x0A), ("in", port, 0), ("out", port, 0x0B), ("in", port, 0), ("in", port + 1, 0)]
    return ops


def reads(qemu: Lines, script: list[Op]) -> tuple[list[int], list[int]]:
    """What a script reads from QEMU's chips and from ours."""
    pic, ours, commands = I8259Pair(), [], []
    for kind, where, value in script:
        match kind:
            case "in":
                ours.append(pic.read(where, 1))
                commands.append(f"inb {where:#x}")
            case "out":
                pic.write(where, 1, value)
                commands.append(f"outb {where:#x} {value:#x}")
            case _:
                pic.set_irq(where, bool(value))
                commands.append(qemu.line(where, bool(value)))
    return [int(answer.split()[1], 16) for answer in qemu.ask(commands) if answer != "OK"], ours


@given(script=scripts())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reads_are_those_of_qemu(qemu: Lines, script: list[Op]) -> None:
    """Do IRR, ISR, mask and polls read as QEMU's, whatever the commands and the lines?"""
    theirs, ours = reads(qemu, script)

    assert theirs == ours


def test_special_mask_mode_lets_lower_requests_through_at_once(qemu: Lines) -> None:
    """Does the second chip announce request 11 with the command that unblocks it, and QEMU's with the next mask?"""
    script: list[Op] = [("line", number, 0) for number in sorted(INPUTS)]
    script += [("out", 0x20, 0x11), ("out", 0xA0, 0x11)]
    for port, words in ((0x20, (0x11, 0x30, 4, 1, 0)), (0xA0, (0x11, 0x38, 2, 1, 0))):
        script += [("out", port + (i > 0), word) for i, word in enumerate(words)]
    script += [("line", 10, 1), ("line", 11, 1)]
    script += [("out", 0x20, 0x0C), ("in", 0x20, 0), ("out", 0xA0, 0x0C), ("in", 0xA0, 0)]  # 10 is in service
    script += [("out", 0xA1, 4), ("out", 0xA0, 0x68), ("in", 0x20, 0)]  # its priority no longer counts
    script += [("out", 0xA1, 4), ("in", 0x20, 0)]

    assert ([0x82, 0x82, 0, 4], [0x82, 0x82, 4, 4]) == reads(qemu, script)


@pytest.fixture
def pic() -> I8259Pair:
    """Initialised as Linux does: vectors 30 and 38, nothing masked."""
    pair = I8259Pair()
    for port, words in ((0x20, (0x11, 0x30, 4, 1, 0)), (0xA0, (0x11, 0x38, 2, 1, 0))):
        for i, word in enumerate(words):
            pair.write(port + (i > 0), 1, word)
    return pair


@given(st.sets(st.sampled_from(sorted(INPUTS))))
def test_requests_are_served_in_order_of_priority(numbers: set[int]) -> None:
    """Are 0, 1, 8 to 15, 3 to 7 acknowledged in this order, each with its own vector?"""
    pair = I8259Pair()
    for port, words in ((0x20, (0x11, 0x30, 4, 1, 0)), (0xA0, (0x11, 0x38, 2, 1, 0))):
        for i, word in enumerate(words):
            pair.write(port + (i > 0), 1, word)
    for number in numbers:
        pair.raise_irq(number)
    served = []
    while pair.pending():
        vector = pair.acknowledge()
        served.append(vector - 0x30)
        if vector >= 0x38:
            pair.write(0xA0, 1, 0x20)
        pair.write(0x20, 1, 0x20)

    assert [n for n in (0, 1, *range(8, 16), *range(3, 8)) if n in numbers] == served


def test_a_request_that_went_away_is_spurious(pic: I8259Pair) -> None:
    """A level that falls before it is acknowledged gives vector 7 or 15, and at most the cascade is in service."""
    pic.write(0x4D0, 1, 0x20)
    pic.write(0x4D1, 1, 0x02)
    pic.raise_irq(5)
    pic.lower_irq(5)
    assert (False, 0x37, 0) == (pic.pending(), pic.acknowledge(), pic.master.isr)
    pic.raise_irq(9)
    pic.lower_irq(9)

    assert (0x3F, 4, 0) == (pic.acknowledge(), pic.master.isr, pic.slave.isr)


def test_automatic_eoi_serves_both_requests_of_the_second_chip(pic: I8259Pair) -> None:
    """With automatic EOI, is a second request behind the cascade announced although the line never had to fall?"""
    for port, words in ((0x20, (0x11, 0x30, 4, 3, 0)), (0xA0, (0x11, 0x38, 2, 3, 0))):
        for i, word in enumerate(words):
            pic.write(port + (i > 0), 1, word)
    pic.raise_irq(12)
    pic.raise_irq(9)

    assert [0x39, 0x3C, False] == [pic.acknowledge(), pic.acknowledge(), pic.pending()]


def test_rotation_on_automatic_eoi_serves_each_in_turn(pic: I8259Pair) -> None:
    """With rotation, does the input just served come last, so that none starves the others?"""
    for i, word in enumerate((0x11, 0x30, 4, 3, 0)):
        pic.write(0x20 + (i > 0), 1, word)
    pic.write(0x20, 1, 0x80)
    pic.write(0x4D0, 1, 0xF8)
    for number in (3, 4, 6):  # levels that stay
        pic.raise_irq(number)

    assert [3, 4, 6, 3, 4, 6] == [pic.acknowledge() - 0x30 for _ in range(6)]


def test_the_line_to_the_cpu_is_reported_when_it_changes() -> None:
    """Is `on_change` called with the level that `pending` returns?"""
    seen: list[bool] = []
    pair = I8259Pair(seen.append)
    for i, word in enumerate((0x11, 0x30, 4, 1, 0)):
        pair.write(0x20 + (i > 0), 1, word)
    pair.raise_irq(3)
    pair.raise_irq(4)
    pair.acknowledge()

    assert [True, False] == seen
    assert not pair.pending()
