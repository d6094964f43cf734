# SPDX-License-Identifier: GPL-2.0-or-later
"""The interrupt controllers against QEMU's and against the data sheet, and what the CPU's side of them does.

Deliberate differences, which the scripts for QEMU avoid: a request of an edge-triggered input that falls is gone, as
the data sheet says (QEMU's stays); in special mask mode a non-specific EOI spares masked inputs, likewise; with
automatic EOI the second chip makes a new edge for the next request (in QEMU its line just stays high, the request is
forgotten); an input that is high at ICW1 and is driven high again makes no edge (in QEMU it does); INT follows a change
of special mask mode at once (QEMU looks again only at the next command, line or mask that it thinks matters), so the
scripts write the mask again behind such a command, which makes QEMU look before anything else can happen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.devices.i8254 import FREQUENCY, I8254
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


def initialisation(rng: random.Random, special_mask: dict[int, bool], masks: dict[int, int]) -> list[Op]:
    """Both chips from the beginning, with everything forgotten that was before."""
    ops: list[Op] = [("line", number, 0) for number in sorted(INPUTS)]
    ops += [("out", 0x4D0, 0), ("out", 0x4D1, 0), ("out", 0x20, 0x11), ("out", 0xA0, 0x11)]  # forgets earlier requests
    ops += [("out", 0x4D0, rng.choice((0, 0xF8, 0x28))), ("out", 0x4D1, rng.choice((0, 0xDE, 0x0E)))]
    for port, vector, icw3 in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
        auto = 0x02 if port == 0x20 and rng.random() < 0.5 else 0
        special_mask[port] = rng.random() < 0.5  # then there are only specific EOIs
        words = [0x11, vector, icw3, 0x01 | auto | rng.choice((0, 0x10))]
        ops += [("out", port + (i > 0), word) for i, word in enumerate(words)]
        masks[port] = rng.choice((0, 0, 0xA5, 0xFF))
        ops.append(("out", port + 1, masks[port]))
    return ops


def step(rng: random.Random, special_mask: dict[int, bool], masks: dict[int, int]) -> list[Op]:
    """Anything that can be done to the chips."""
    port = rng.choice((0x20, 0xA0))
    match rng.choice(KINDS):
        case "line":
            return [("line", rng.choice(sorted(INPUTS)), rng.randrange(2))]
        case "mask":
            masks[port] = rng.randrange(256)
            return [("out", port + 1, masks[port])]
        case "read":
            return [("in", port + rng.randrange(2), 0)]
        case "isr":
            return [("out", port, 0x0B), ("in", port, 0)]
        case "irr":
            return [("out", port, 0x0A), ("in", port, 0)]
        case "poll":
            return [("out", port, 0x0C), ("in", port, 0)]
        case "eoi":
            commands = (0x60, 0xE0) if special_mask[port] else (0x20, 0x20, 0x60, 0xA0, 0xE0)
            return [("out", port, rng.choice(commands) | rng.randrange(8))]
        case _:
            commands = (0x00, 0x80, 0xC0 | rng.randrange(8), *(SPECIAL_MASK if special_mask[port] else ()))
            command = rng.choice(commands)
            again: list[Op] = [("out", port + 1, masks[port])] if command in SPECIAL_MASK else []
            return [("out", port, command), *again]


def withdrawn(pic: I8259Pair) -> bool:
    """Is there a request that has fallen, and that QEMU therefore still has?"""
    return any(chip.latched & ~chip.lines & ~chip.elcr for chip in (pic.master, pic.slave))


def script_for_qemu(rng: random.Random, length: int) -> list[Op]:
    """Initialise both chips now and then, and do anything in which QEMU is right."""
    pic, script = I8259Pair(), []
    special_mask: dict[int, bool] = {}
    masks: dict[int, int] = {}
    while len(script) < length:
        if not script or rng.random() < 0.01:
            ops = initialisation(rng, special_mask, masks)
        else:
            ops = step(rng, special_mask, kept := dict(masks))
            before = pic.save()
            perform(pic, ops)
            fell = withdrawn(pic)
            pic.restore(before)
            if fell:
                continue
            masks = kept
        perform(pic, ops)
        script += ops
    return script


def perform(pic: I8259Pair, script: list[Op]) -> list[int]:
    """Do it all; what was read."""
    found = []
    for kind, where, value in script:
        match kind:
            case "in":
                found.append(pic.read(where, 1))
            case "out":
                pic.write(where, 1, value)
            case _:
                pic.set_irq(where, bool(value))
    return found


def reads(qemu: Lines, script: list[Op]) -> tuple[list[int], list[int]]:
    """What a script reads from QEMU's chips and from ours."""
    commands = []
    for kind, where, value in script:
        match kind:
            case "in":
                commands.append(f"inb {where:#x}")
            case "out":
                commands.append(f"outb {where:#x} {value:#x}")
            case _:
                commands.append(qemu.line(where, bool(value)))
    theirs = [int(answer.split()[1], 16) for answer in qemu.ask(commands) if answer != "OK"]
    return theirs, perform(I8259Pair(), script)


@pytest.mark.parametrize("seed", range(20))
def test_reads_are_those_of_qemu(qemu: Lines, seed: int) -> None:
    """Do IRR, ISR, mask and polls read as QEMU's, whatever the commands and the lines?"""
    script = script_for_qemu(random.Random(seed), 3000)
    theirs, ours = reads(qemu, script)

    assert theirs == ours


# -- the data sheet


@dataclass
class Cell:
    """One input of the data sheet's figure "Priority Cell": an edge sense latch, a request, an in-service latch."""

    level: bool = False
    edge: bool = False
    served: bool = False


@dataclass
class Sheet:
    """A chip in fully nested mode, with edge-triggered inputs, put together from its figure."""

    cells: list[Cell] = field(default_factory=lambda: [Cell() for _ in range(8)])
    mask: int = 0

    def requests(self) -> list[int]:
        """The inputs that request: high, and not acknowledged since they rose."""
        return [n for n, cell in enumerate(self.cells) if cell.level and cell.edge]

    def interrupts(self) -> int | None:
        """The input for which INT is high: the first that may, if it comes before all that are in service."""
        for number, cell in enumerate(self.cells):
            if number in self.requests() and not self.mask >> number & 1:
                return number
            if cell.served:
                return None
        return None

    def drive(self, number: int, level: bool) -> None:
        cell = self.cells[number]
        cell.edge = cell.edge or (level and not cell.level)
        cell.level = level

    def acknowledge(self) -> int:
        """INTA: the input, or the eighth where none requests any more."""
        number = self.interrupts()
        if number is None:
            return 7
        self.cells[number].edge, self.cells[number].served = False, True
        return number

    def end(self) -> None:
        """A non-specific EOI."""
        served = next((cell for cell in self.cells if cell.served), None)
        if served is not None:
            served.served = False

    def register(self, in_service: bool) -> int:
        """ISR or IRR."""
        numbers = [n for n, cell in enumerate(self.cells) if cell.served] if in_service else self.requests()
        return sum(1 << n for n in numbers)


class TwoSheets:
    """Both of them, the second one's INT at input 2 of the first."""

    def __init__(self) -> None:
        self.master, self.slave = Sheet(), Sheet()

    def wire(self) -> None:
        self.master.drive(2, self.slave.interrupts() is not None)

    def set_irq(self, number: int, level: bool) -> None:
        (self.slave if number & 8 else self.master).drive(number & 7, level)

    def acknowledge(self) -> int:
        number = self.master.acknowledge()
        if number != 2:
            return 0x30 + number
        inner = self.slave.acknowledge()
        self.master.drive(2, False)  # INT falls with INTA
        return 0x38 + inner


NESTED = st.one_of(
    st.tuples(st.just("line"), st.sampled_from(sorted(INPUTS)), st.booleans()),
    st.tuples(st.just("mask"), st.sampled_from((0x20, 0xA0)), st.sampled_from((0, 0xFF, 0x5A, 4, 0xFB))),
    st.tuples(st.sampled_from(("end", "acknowledge", "initialise")), st.sampled_from((0x20, 0xA0)), st.just(0)),
    st.tuples(st.sampled_from(("end", "acknowledge")), st.sampled_from((0x20, 0xA0)), st.just(0)),
)


@given(st.lists(NESTED, max_size=60))
def test_requests_are_those_of_the_data_sheet(steps: list[tuple[str, int, int]]) -> None:
    """Are INT, the vectors, IRR and ISR those of the priority cells, also where a request falls again?"""
    pic, sheets = I8259Pair(), TwoSheets()
    start(pic)
    for kind, where, value in steps:
        chip = sheets.slave if where >= 0xA0 else sheets.master
        match kind:
            case "line":
                pic.set_irq(where, bool(value))
                sheets.set_irq(where, bool(value))
            case "mask":
                pic.write(where + 1, 1, value)
                chip.mask = value
            case "end":
                pic.write(where, 1, 0x20)
                chip.end()
            case "initialise":
                start(pic)
                for sheet in (sheets.master, sheets.slave):
                    sheet.mask = 0
                    for cell in sheet.cells:
                        cell.edge = cell.served = False
            case _:
                assert sheets.acknowledge() == pic.acknowledge()
        sheets.wire()
        assert (sheets.master.interrupts() is not None) == pic.pending()
        for port, sheet in ((0x20, sheets.master), (0xA0, sheets.slave)):
            for command, in_service in ((0x0A, False), (0x0B, True)):
                pic.write(port, 1, command)
                assert sheet.register(in_service) == pic.read(port, 1), (hex(port), in_service)


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


def start(pair: I8259Pair) -> None:
    """Initialise both as Linux does: vectors 30 and 38, nothing masked."""
    for port, words in ((0x20, (0x11, 0x30, 4, 1, 0)), (0xA0, (0x11, 0x38, 2, 1, 0))):
        for i, word in enumerate(words):
            pair.write(port + (i > 0), 1, word)


@pytest.fixture
def pic() -> I8259Pair:
    """Both, initialised."""
    pair = I8259Pair()
    start(pair)
    return pair


@given(st.sets(st.sampled_from(sorted(INPUTS))))
def test_requests_are_served_in_order_of_priority(numbers: set[int]) -> None:
    """Are 0, 1, 8 to 15, 3 to 7 acknowledged in this order, each with its own vector?"""
    pair = I8259Pair()
    start(pair)
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


@pytest.mark.parametrize("elcr", [0, 0x20])
def test_a_request_that_went_away_is_spurious(pic: I8259Pair, elcr: int) -> None:
    """Is a request, by level or by edge, that falls before it is acknowledged vector 7, and nothing in service?"""
    pic.write(0x4D0, 1, elcr)
    pic.write(0x4D1, 1, elcr)
    for number in (5, 13):
        pic.raise_irq(number)
        assert pic.pending()
        pic.lower_irq(number)

        assert (False, 0x37, 0, 0) == (pic.pending(), pic.acknowledge(), pic.master.isr, pic.slave.isr)


def test_irr_follows_a_square_wave() -> None:
    """Does the bit of the timer read as its output is, and the edge count only while that is high?"""
    time = [0]
    pair = I8259Pair()
    pit = I8254(lambda: time[0], pair.line(0))
    pair.settle = pit.settle
    start(pair)
    for port, value in ((0x43, 0x36), (0x40, 100), (0x40, 0)):  # mode 3
        pit.write(port, 1, value)
    seen = []
    for tick in range(110, 400, 20):
        time[0] = -(-tick * 10**9 // FREQUENCY)
        pair.write(0x20, 1, 0x0A)
        seen.append(pair.read(0x20, 1) & 1)

    assert [1, 1, 0, 0, 0] * 3 == seen


def test_a_tick_is_not_lost_because_its_controller_was_asked_late() -> None:
    """Is a rise that nobody looked at in time, because others had the processor, a request all the same?"""
    time = [0]
    pair = I8259Pair()
    pit = I8254(lambda: time[0], pair.line(0))
    start(pair)
    for port, value in ((0x43, 0x36), (0x40, 100), (0x40, 0)):
        pit.write(port, 1, value)
    time[0] = -(-370 * 10**9 // FREQUENCY)  # where the output is low again
    pit.advance()

    assert (True, 0x30, False) == (pair.pending(), pair.acknowledge(), pair.pending())


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
