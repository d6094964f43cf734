# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine: memory, CPU and PC devices on one board.

One `Machine` is one computer. What lives here: putting the parts together, the clock, which CPU state the engine
holds, and the interrupt lines. What does not: any decision about who runs; that is the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from l4lab.abi.vm import ExitReason
from l4lab.devices.device import PortBus
from l4lab.devices.i8042 import I8042
from l4lab.devices.i8254 import I8254
from l4lab.devices.i8259 import I8259Pair
from l4lab.devices.mc146818 import Mc146818
from l4lab.devices.uart16550 import Uart16550
from l4lab.devices.vga import Vga
from l4lab.machine.engine import Engine
from l4lab.machine.guestmode import GuestMode, Pause
from l4lab.machine.identity import IdentityMsrs
from l4lab.machine.memory import Memory
from l4lab.machine.usermode import UserMode
from l4lab.machine.vmcs import Vmcs

FREQUENCY_KHZ: Final = 1_000_000  # one cycle is one nanosecond
TIMER_LINE: Final = 0
KEYBOARD_LINE: Final = 1
UART_LINE: Final = 4
CLOCK_LINE: Final = 8
BUTTON_LINE: Final = 9


class _World(Protocol):
    """A CPU state that can be loaded into the engine: ring 3 of the host, or a virtual CPU."""

    context: bytearray
    state: memoryview


class Machine:
    """A PC with `memory_size` bytes of RAM. `transmit` gets each byte that leaves the serial port."""

    def __init__(self, memory_size: int, transmit: Callable[[int], None]) -> None:
        self.memory = Memory(memory_size)
        self.engine = Engine(self.memory)
        self.clock = self.engine.clock
        self.charge = self.engine.charge
        self.user: UserMode
        self.guest: GuestMode
        self._loaded: _World
        self.msrs = IdentityMsrs(self._now)
        self.pics = I8259Pair()
        self.pit = I8254(self._now, self._line(TIMER_LINE))
        self.pics.settle = self.pit.settle  # the only one whose line also falls as time goes by
        self.uart = Uart16550(self._now, self._line(UART_LINE), transmit)
        self.rtc = Mc146818(self._now, self._line(CLOCK_LINE), memory_size)
        self.keyboard = I8042(self._line(KEYBOARD_LINE), _nothing)
        self.vga = Vga(self._now)  # its text buffer is memory that everybody may have
        self.ports = PortBus((self.pics, self.pit, self.uart, self.rtc, self.keyboard, self.vga))
        self._timed = {TIMER_LINE: self.pit, UART_LINE: self.uart, CLOCK_LINE: self.rtc}

    @property
    def cycles(self) -> int:
        """The clock: the address of this instant. One cycle is one nanosecond."""
        return self.engine.cycles

    def _now(self) -> int:
        return self.engine.cycles

    def _line(self, number: int) -> Callable[[bool], None]:
        return lambda level: self.pics.set_irq(number, level)

    def power_on(self, descriptors: int, linear: int, utcb_slot: int, region: int) -> None:
        """Give the CPU the frames it needs: descriptor tables (mapped at `linear`) and guest mode's region."""
        self.user = UserMode(self.memory, self.engine, descriptors, linear, utcb_slot)
        self.guest = GuestMode(self.memory, self.engine, region)
        self._loaded = self.user

    def close(self) -> None:
        """The machine is gone: CPU and RAM are freed. The clock can still be read."""
        self.engine.close()
        self.memory.close()

    def _load(self, world: _World) -> None:
        """Make `world` the CPU state in the engine."""
        old = self._loaded
        self.engine.swap(old.context, world.context)
        self.guest.withdraw()
        old.state = memoryview(old.context).cast("I")
        world.state = self.engine.env32
        self._loaded = world

    def run_user(self, frame: int, cr3: int, generation: int, deadline: int) -> int:
        """Run ring 3 until a trap or `deadline`; the engine's event. See `UserMode.enter`."""
        if self._loaded is not self.user:
            self._load(self.user)
            self.user.forget_translations()
        return self.user.enter(frame, cr3, generation, deadline)

    def run_guest(self, vmcs: Vmcs, generation: int, deadline: int) -> ExitReason | Pause:
        """Run a virtual CPU until an exit, a pause, or `deadline`. See `GuestMode.enter`.

        `generation` is that of the page tables that hold guest-physical memory.
        """
        if self._loaded is not vmcs:
            self._load(vmcs)
        elif vmcs.generation != generation:
            self.engine.flush_tlb()
        vmcs.generation = generation
        return self.guest.enter(vmcs, deadline)

    def unload(self, vmcs: Vmcs) -> None:
        """The virtual CPU is about to be deleted: the engine must not hold it."""
        if self._loaded is vmcs:
            self._load(self.user)
            self.user.forget_translations()

    def receive(self, device: str, data: bytes) -> None:
        """Input from outside, for one of the devices that take some: "serial", "keyboard" (scan codes) or "button"."""
        if device == "serial":
            self.uart.receive(data)
        elif device == "keyboard":
            self.keyboard.press(data)
        else:
            self.press_button()

    def press_button(self) -> None:
        """Somebody in front of the machine presses its button: an interrupt, and nothing else.

        What it is for is up to who listens; a guest's monitor saves the guest. The line stays high until the button is
        pressed again: a request that fell before it was acknowledged would be none.
        """
        self.pics.set_irq(BUTTON_LINE, False)
        self.pics.set_irq(BUTTON_LINE, True)

    def device_deadline(self, listens: Callable[[int], bool]) -> int | None:
        """When the next device does something of its own accord on a line that somebody listens to; None if never."""
        times = [device.deadline() for line, device in self._timed.items() if listens(line)]
        return min((time for time in times if time is not None), default=None)

    def advance_devices(self) -> None:
        """Bring all devices up to now."""
        for device in self._timed.values():
            device.advance()


def _nothing() -> None:
    """The keyboard controller's reset line is not connected: no program resets the machine under its kernel."""
