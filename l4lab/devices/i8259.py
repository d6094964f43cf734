# SPDX-License-Identifier: GPL-2.0-or-later
"""The two 8259A interrupt controllers of a PC, the second one cascaded behind input 2 of the first.

Lives here: priorities, masks, the command words, and the edge/level registers that PC chipsets added. Does not live
here: when the CPU takes an interrupt. Whoever runs the CPU asks `pending()`, and takes the vector by `acknowledge()`.
Source: Intel 8259A data sheet (231468), whose names (ICW, OCW, IRR, ISR, IMR) are used; 82371AB (PIIX4), section 4.2,
for what differs in a chipset: ELCR replaces the LTIM bit of ICW1, which is ignored.

An input requests for as long as it is high and, if it is edge triggered, has not been acknowledged since it rose (data
sheet, figure "Priority Cell"). So a request that falls before the CPU acknowledges it is gone; if the CPU does so all
the same, it gets the spurious one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from l4lab.devices.device import Device, Limits, Line, Saved, no_line

CASCADE = 2  # the input of the first controller to which the second is wired
INPUTS = frozenset(range(16)) - {CASCADE}  # those with a pin for a device
SPURIOUS = 7  # the input reported when a request went away before it was acknowledged


class Chip(Saved):
    """One 8259A."""

    saved = (
        "latched", "isr", "imr", "lines", "elcr", "base", "lowest", "output", "awaits", "needs_icw4", "single",
        "auto_eoi", "rotate_on_auto_eoi", "special_mask", "special_nested", "reads_isr", "poll",
    )  # fmt: skip
    may_be: ClassVar[Limits] = {"lowest": range(8)}

    def __init__(self, *, is_master: bool, elcr_mask: int, drive: Line) -> None:
        self.is_master = is_master
        self.elcr_mask = elcr_mask  # inputs that may be made level triggered
        self.drive = drive  # its INT pin
        self.elcr = 0  # inputs that are level triggered
        self.lines = 0  # levels of the inputs
        self.output = False
        self._initialise()

    def _initialise(self) -> None:
        """What ICW1 clears (data sheet, "Initialization Command Words 1 and 2")."""
        self.latched = 0  # inputs that rose and were not acknowledged: one that is high now must fall and rise again
        self.isr = 0  # interrupts in service: acknowledged, not yet ended
        self.imr = 0
        self.base = 0  # vector of input 0
        self.lowest = 7  # the input of lowest priority; the next one up, modulo 8, has the highest
        self.awaits = 0  # the ICW expected at the odd port, 0 if none
        self.needs_icw4 = self.single = False
        self.auto_eoi = self.rotate_on_auto_eoi = False
        self.special_mask = self.special_nested = False
        self.reads_isr = False
        self.poll = False

    @property
    def irr(self) -> int:
        """The interrupt request register: the inputs that request."""
        return self.lines & (self.latched | self.elcr)

    def set_line(self, number: int, level: bool) -> None:
        """Drive an input, as often as one likes."""
        bit = 1 << number
        if level == bool(self.lines & bit):
            return
        if level:
            self.latched |= bit
        self.lines ^= bit
        self.update()

    def _first(self, inputs: int) -> int | None:
        """The input of highest priority among a set."""
        if not inputs:
            return None
        highest = (self.lowest + 1) & 7
        turned = (inputs | inputs << 8) >> highest & 0xFF  # so that the highest priority is bit 0
        return ((turned & -turned).bit_length() - 1 + highest) & 7

    def requested(self) -> int | None:
        """The input that interrupts now: requested, not masked, and above all that are in service."""
        best = self._first(self.irr & ~self.imr)
        if best is None:
            return None
        blocking = self.isr
        if self.special_mask:
            blocking &= ~self.imr
        if self.special_nested and self.is_master:
            blocking &= ~(1 << CASCADE)  # so that the second controller's own priorities decide
        current = self._first(blocking)
        if current is None or (best - self.lowest - 1) & 7 < (current - self.lowest - 1) & 7:
            return best
        return None

    def update(self) -> None:
        """Drive INT as the registers say."""
        output = self.requested() is not None
        if output != self.output:
            self.output = output
            self.drive(output)

    def take(self, number: int) -> None:
        """The first INTA pulse: a request becomes an interrupt in service."""
        if not self.auto_eoi:
            self.isr |= 1 << number
        elif self.rotate_on_auto_eoi:
            self.lowest = number
        self.latched &= ~(1 << number)
        # INT falls with each INTA, so that what is still pending makes another edge at the first controller.
        if self.output:
            self.output = False
            self.drive(False)
        self.update()

    def read(self, odd: bool) -> int:
        """A read of either port. After a poll command it acknowledges, at whichever port it comes."""
        if self.poll:
            self.poll = False
            number = self.requested()
            if number is None:
                return 0
            self.take(number)
            return 0x80 | number
        if odd:
            return self.imr
        return self.isr if self.reads_isr else self.irr

    def write_even(self, value: int) -> None:
        """ICW1, OCW2 or OCW3: bits 4 and 3 tell them apart."""
        if value & 0x10:
            self._initialise()
            self.needs_icw4, self.single = bool(value & 1), bool(value & 2)
            self.awaits = 2
            self.update()
        elif value & 0x08:
            if value & 0x04:
                self.poll = True
            if value & 0x02:
                self.reads_isr = bool(value & 1)
            if value & 0x40:
                self.special_mask = bool(value & 0x20)
                self.update()
        else:
            self._ocw2(rotate=bool(value & 0x80), specific=bool(value & 0x40), eoi=bool(value & 0x20), number=value & 7)

    def _ocw2(self, *, rotate: bool, specific: bool, eoi: bool, number: int) -> None:
        """End of interrupt and rotation (data sheet, figure 8)."""
        target: int | None = number
        if not specific and not eoi:
            self.rotate_on_auto_eoi = rotate
            return
        if not specific:
            # "An IS bit that is masked by an IMR bit will not be cleared by a non-specific EOI" in special mask mode.
            target = self._first(self.isr & ~self.imr if self.special_mask else self.isr)
        if target is None:
            return
        if eoi:
            self.isr &= ~(1 << target)
        if rotate:
            self.lowest = target
        self.update()

    def write_odd(self, value: int) -> None:
        """ICW2 to ICW4 while initialisation awaits them, else OCW1, the mask."""
        match self.awaits:
            case 0:
                self.imr = value
                self.update()
            case 2:
                self.base = value & 0xF8
                self.awaits = 3 if not self.single else 4 if self.needs_icw4 else 0
            case 3:  # ICW3 describes the cascade, which is wired
                self.awaits = 4 if self.needs_icw4 else 0
            case _:
                self.special_nested = bool(value & 0x10)
                self.auto_eoi = bool(value & 0x02)
                self.awaits = 0
                self.update()


class I8259Pair(Device):
    """The interrupt controllers: 15 inputs by priority, one line to the CPU."""

    name = "pic"
    ports = (range(0x20, 0x22), range(0xA0, 0xA2), range(0x4D0, 0x4D2))
    saved = ("master", "slave")

    def __init__(self, on_change: Callable[[bool], None] = no_line) -> None:
        """`on_change` is the line to the CPU: called with its level whenever that changes."""
        self.settle: Callable[[], None] = _nothing  # asks who drives inputs to drive them as they are at this instant
        self.master = Chip(is_master=True, elcr_mask=0xF8, drive=on_change)
        self.slave = Chip(is_master=False, elcr_mask=0xDE, drive=partial(self.master.set_line, CASCADE))

    def set_irq(self, number: int, level: bool) -> None:
        """Drive input 0..15. Number 2 is the cascade and has no pin of its own."""
        assert number in INPUTS, f"there is no interrupt input {number}"
        chip = self.slave if number & 8 else self.master
        chip.set_line(number & 7, level)

    def raise_irq(self, number: int) -> None:
        """Drive an input high."""
        self.set_irq(number, True)

    def lower_irq(self, number: int) -> None:
        """Drive an input low."""
        self.set_irq(number, False)

    def line(self, number: int) -> Line:
        """The input as a callable, to hand to the device that drives it."""
        return partial(self.set_irq, number)

    def pending(self) -> bool:
        """Does the line to the CPU ask for an interrupt?"""
        return self.master.output

    def acknowledge(self) -> int:
        """The CPU's two INTA pulses: the vector. A request that went away is input 7 of its chip, not in service."""
        number = self.master.requested()
        if number is None:
            return self.master.base + SPURIOUS
        if number != CASCADE:
            self.master.take(number)
            return self.master.base + number
        inner = self.slave.requested()
        # The first chip goes first: an edge that the second makes afterwards is a new request.
        self.master.take(CASCADE)
        if inner is None:
            return self.slave.base + SPURIOUS
        self.slave.take(inner)
        return self.slave.base + inner

    def read(self, port: int, size: int) -> int:
        chip = self.slave if port in (0xA0, 0xA1, 0x4D1) else self.master
        if port >= 0x4D0:
            return chip.elcr
        if not port & 1 or chip.poll:
            self.settle()
        return chip.read(odd=bool(port & 1))

    def write(self, port: int, size: int, value: int) -> None:
        chip = self.slave if port in (0xA0, 0xA1, 0x4D1) else self.master
        if port >= 0x4D0:
            chip.elcr = value & chip.elcr_mask
            chip.update()
        elif port & 1:
            chip.write_odd(value)
        else:
            chip.write_even(value)


def _nothing() -> None:
    """Those who drive the inputs do so whenever these change."""
