# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8254 interval timer of a PC, with port 0x61, which gates its third channel and shows its output.

Lives here: three counters whose state is computed from the time that went by, never counted down. Does not live here:
what happens at an interrupt, and the speaker's sound.
Source: Intel 8254 data sheet (231164), whose words are used: a count is *loaded*, a rising gate is a *trigger*.
One liberty: the clock pulse that loads a count coincides with the write. The data sheet has it up to one period later.
"""

from __future__ import annotations

from typing import ClassVar

from l4lab.devices.device import ANY_NUMBER, BYTE, NS_PER_SECOND, TIME, Device, Limits, Line, Now, OrNone, Saved

FREQUENCY = 1_193_182  # of the input clock: 14.31818 MHz / 12
REFRESH_TICKS = 18  # clock ticks between two toggles of the memory refresh bit, about 15 us

COUNTS = range(1, 0x10001)

LOW, HIGH, BOTH = 1, 2, 3  # which bytes of the count a channel reads and writes


class Channel(Saved):
    """One counter. *Elapsed* ticks are counted from the last load or trigger; everything else follows from them."""

    saved = (
        "mode", "access", "bcd", "gate", "initial", "origin", "start", "running", "held", "loaded", "reload",
        "reload_at", "delivered", "low_byte", "high_next", "latched", "status",
    )  # fmt: skip
    may_be: ClassVar[Limits] = {
        "mode": range(6), "access": range(4), "initial": COUNTS, "origin": TIME, "start": ANY_NUMBER,
        "held": ANY_NUMBER, "reload": OrNone(COUNTS), "reload_at": OrNone(ANY_NUMBER), "delivered": ANY_NUMBER,
        "low_byte": OrNone(BYTE), "latched": range(3), "status": OrNone(BYTE),
    }  # fmt: skip

    def __init__(self, *, gate: bool) -> None:
        self.mode, self.access, self.bcd = 3, BOTH, False  # as a BIOS leaves it
        self.gate = gate
        self.initial = 0x10000  # N of the data sheet, in ticks
        self.origin = 0  # time of the last load, from which ticks are derived: so nothing drifts
        self.start = 0  # ticks after `origin` at which elapsed was 0
        self.running = gate
        self.held = 0  # elapsed, while not running
        self.loaded = True  # a count was written since the last control word
        self.reload: int | None = None  # a count that waits for the end of the period, or for a trigger
        self.reload_at: int | None = None  # elapsed at which it takes over
        self.delivered = 0  # elapsed up to which rising edges of OUT were reported
        self.low_byte: int | None = None  # written first, waiting for the high one
        self.high_next = False  # the next read returns the high byte
        self.latched: list[int] = []  # bytes of a latched count, still to be read
        self.status: int | None = None  # latched by a read-back command

    # Time

    def elapsed(self, now: int) -> int:
        """Clock ticks counted since the load or trigger."""
        if not self.running:
            return self.held
        return (now - self.origin) * FREQUENCY // NS_PER_SECOND - self.start

    def time_of(self, elapsed: int) -> int:
        """The first nanosecond at which so many ticks have elapsed."""
        return self.origin - (elapsed + self.start) * NS_PER_SECOND // -FREQUENCY  # minus floor of minus: rounds up

    def _begin(self, now: int, elapsed: int = 0) -> None:
        self.origin, self.start, self.running = now, -elapsed, True
        self.delivered = elapsed

    def _hold(self, now: int) -> None:
        self.held, self.running = self.elapsed(now), False

    # What the counter shows

    def high_ticks(self, count: int) -> int:
        """How long the square wave of mode 3 is high: an odd count gives the odd tick to the high half."""
        return (count + 1) // 2

    def value(self, now: int) -> int:
        """The counting element, as reading it gives it."""
        ticks = self.elapsed(now)
        match self.mode:
            case 2:
                count = self.initial - ticks % self.initial
            case 3:
                place, half = ticks % self.initial, self.high_ticks(self.initial)
                count = (self.initial & ~1) - 2 * (place if place < half else place - half)
            case _:
                count = self.initial - ticks  # goes on below zero
        return _to_bcd(count % 10_000) if self.bcd else count & 0xFFFF

    def out(self, now: int) -> bool:
        """The level of OUT."""
        if not self.loaded:
            return self.mode != 0
        ticks = self.elapsed(now)
        match self.mode:
            case 0:
                return ticks >= self.initial
            case 1:
                return not self.running or ticks >= self.initial
            case 2:
                return not self.running or ticks % self.initial != self.initial - 1
            case 3:
                return not self.running or ticks % self.initial < self.high_ticks(self.initial)
            case _:
                return not self.running or ticks != self.initial

    def next_rise(self, after: int) -> int | None:
        """Elapsed ticks of the first rising edge of OUT later than `after`, None if there is none."""
        if not self.running or not self.loaded:
            return None
        if self.mode in (2, 3):
            rise = (after // self.initial + 1) * self.initial
            if self.reload is not None and self.reload_at is not None and rise > self.reload_at:
                # The new count takes over in the middle of the square wave: its own low half comes first.
                rise = self.reload_at + self.reload - self.high_ticks(self.reload)
            return rise
        rise = self.initial if self.mode in (0, 1) else self.initial + 1
        return rise if rise > after else None

    def settle(self, now: int) -> bool:
        """Let what happened up to `now` take effect; did OUT rise meanwhile?"""
        rose = False
        if (
            self.running
            and self.reload is not None
            and self.reload_at is not None
            and self.elapsed(now) >= self.reload_at
        ):
            rose = self._deliver(self.reload_at)
            low_half = self.mode == 3 and self.reload_at % self.initial != 0
            place = self.high_ticks(self.reload) if low_half else 0
            self.start += self.reload_at - place
            self.initial, self.delivered = self.reload, place
            self.reload = self.reload_at = None
        return self._deliver(self.elapsed(now)) or rose

    def _deliver(self, ticks: int) -> bool:
        rise = self.next_rise(self.delivered)
        self.delivered = ticks
        return rise is not None and rise <= ticks

    # What programs do; `settle` was called before

    def set_gate(self, gate: bool, now: int) -> None:
        """Drive GATE: it holds the count in modes 0 and 4, triggers in modes 1 and 5, and does both in 2 and 3."""
        if gate == self.gate:
            return
        self.gate = gate
        if not self.loaded or (self.low_byte is not None and self.mode == 0):
            return
        if not gate:
            if self.mode not in (1, 5):
                self._hold(now)
        elif self.mode in (0, 4):
            self._begin(now, self.held)
        else:
            if self.reload is not None:
                self.initial, self.reload, self.reload_at = self.reload, None, None
            self._begin(now)

    def control(self, word: int, now: int) -> None:
        """A control word: the channel stops, OUT goes to where its mode starts, and a count is awaited."""
        self._hold(now)
        self.access, self.bcd = word >> 4 & 3, bool(word & 1)
        self.mode = word >> 1 & 7
        if self.mode > 5:
            self.mode -= 4  # bit 2 of the mode is "don't care" in modes 2 and 3
        self.loaded = self.high_next = False
        self.reload = self.reload_at = self.low_byte = self.status = None
        self.latched = []

    def write(self, byte: int, now: int) -> None:
        """A byte of the count; the last one loads it."""
        match self.access:
            case 1:
                self._load(byte, now)
            case 2:
                self._load(byte << 8, now)
            case _ if self.low_byte is None:
                self.low_byte = byte
                if self.mode == 0:  # "Writing the first byte disables counting. OUT is set low immediately."
                    self._hold(now)
                    self.loaded = False
            case _:
                word, self.low_byte = byte << 8 | self.low_byte, None
                self._load(word, now)

    def _load(self, word: int, now: int) -> None:
        count = _from_bcd(word) or 10_000 if self.bcd else word or 0x10000
        if self.loaded and self.mode in (2, 3) and self.running:
            ticks, half = self.elapsed(now), self.high_ticks(self.initial)
            period_end = (ticks // self.initial + 1) * self.initial
            in_high_half = self.mode == 3 and ticks % self.initial < half
            self.reload, self.reload_at = count, period_end - self.initial + half if in_high_half else period_end
        elif self.loaded and self.mode in (1, 5) and self.running:
            self.reload = count
        else:
            self.initial, self.loaded = count, True
            self.held = 0
            if self.gate and self.mode not in (1, 5):
                self._begin(now)

    def latch_count(self, now: int) -> None:
        """Keep the count for reading; a second latch before that is ignored."""
        if not self.latched:
            word = self.value(now)
            both = [word & 0xFF, word >> 8]
            self.latched = both if self.access == BOTH else both[self.access - 1 : self.access]

    def latch_status(self, now: int) -> None:
        """Keep the status byte: OUT, null count, and the control word's bits 5..0."""
        if self.status is None:
            null_count = not self.loaded or self.reload is not None
            self.status = self.out(now) << 7 | null_count << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def read(self, now: int) -> int:
        """Latched status first, then a latched count, else the count as it is."""
        if self.status is not None:
            status, self.status = self.status, None
            return status
        if self.latched:
            return self.latched.pop(0)
        word = self.value(now)
        high = self.access == HIGH or (self.access == BOTH and self.high_next)
        if self.access == BOTH:
            self.high_next = not self.high_next
        return word >> 8 if high else word & 0xFF


def _from_bcd(word: int) -> int:
    """Four decimal digits to a number."""
    return sum((word >> 4 * i & 0xF) * 10**i for i in range(4))


def _to_bcd(number: int) -> int:
    """A number below 10000 to four decimal digits."""
    return int(f"{number:04}", 16)


class I8254(Device):
    """The interval timer: channel 0 interrupts, channel 2 measures and beeps."""

    name = "pit"
    ports = (range(0x40, 0x44), range(0x61, 0x62))
    saved = ("channels", "level", "port61")

    def __init__(self, now: Now, irq: Line) -> None:
        self.now, self.irq = now, irq
        self.channels = [Channel(gate=True), Channel(gate=True), Channel(gate=False)]
        self.level = True  # of IRQ0, as last driven
        self.port61 = 0  # gate of channel 2, speaker, and two parity checks nobody has

    def deadline(self) -> int | None:
        """The next rising edge of IRQ0."""
        timer = self.channels[0]
        rise = timer.next_rise(timer.delivered)
        return None if rise is None else timer.time_of(rise)

    def advance(self) -> None:
        """OUT drives IRQ0. A rise since the last time is a request even if OUT has fallen again.

        Who comes late, because others had the processor, has not kept the program from taking it in time.
        """
        now = self.now()
        self._drive(self._let_count(now) or self.channels[0].out(now))

    def settle(self) -> None:
        """The program itself looks, or changes something: IRQ0 is as OUT is now."""
        now = self.now()
        self._let_count(now)
        self._drive(self.channels[0].out(now))

    def _let_count(self, now: int) -> bool:
        """Bring all channels up to now; did OUT of the first one rise meanwhile? Several times count as one."""
        timer, *others = self.channels
        rose = timer.settle(now)
        for channel in others:
            channel.settle(now)
        if rose:
            self._drive(False)
            self._drive(True)
        return rose

    def _drive(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self.irq(level)

    def read(self, port: int, size: int) -> int:
        self.settle()
        now = self.now()
        if port == 0x61:
            # Derived from time, like all else: programs wait for this bit to change.
            refresh = now * FREQUENCY // NS_PER_SECOND // REFRESH_TICKS & 1
            return self.port61 | refresh << 4 | self.channels[2].out(now) << 5
        if port == 0x43:
            return 0xFF  # write-only: the chip does not drive the bus
        return self.channels[port & 3].read(now)

    def write(self, port: int, size: int, value: int) -> None:
        self.settle()
        now = self.now()
        if port == 0x61:
            self.port61 = value & 0x0F
            self.channels[2].set_gate(bool(value & 1), now)
        elif port == 0x43:
            self._control(value, now)
        else:
            self.channels[port & 3].write(value, now)
        self._drive(self.channels[0].out(now))

    def _control(self, word: int, now: int) -> None:
        select = word >> 6
        if select == 3:  # read-back: bits 5 and 4 are active low
            for number, channel in enumerate(self.channels):
                if word >> (number + 1) & 1:
                    if not word & 0x20:
                        channel.latch_count(now)
                    if not word & 0x10:
                        channel.latch_status(now)
        elif word & 0x30:
            self.channels[select].control(word, now)
        else:
            self.channels[select].latch_count(now)
