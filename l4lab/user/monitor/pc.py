# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's PC: which devices it has, and how they are wired.

Lives here: the wiring. What each device does is in `devices`; how an interrupt reaches the guest is in
`guest_interrupts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from l4lab.devices import ide
from l4lab.devices.debugport import DebugPort
from l4lab.devices.device import Device, PortBus
from l4lab.devices.disk import Disk
from l4lab.devices.i8042 import I8042
from l4lab.devices.i8254 import I8254
from l4lab.devices.i8259 import I8259Pair
from l4lab.devices.ide import EmptyIde, Ide
from l4lab.devices.mc146818 import Mc146818
from l4lab.devices.memory_bus import MemoryBus
from l4lab.devices.port92 import Port92
from l4lab.devices.uart16550 import Uart16550
from l4lab.devices.vga import Vga
from l4lab.user.monitor.outcome import End
from l4lab.user.monitor.power import Power

TIMER_IRQ, KEYBOARD_IRQ, SERIAL_IRQ, CLOCK_IRQ, DISK_IRQ = 0, 1, 4, 8, 14


class Pc:
    """The devices of one guest. `transmit` takes the bytes of its console, `stop` is told how it ends.

    `more` are devices beside those that every PC has.

    A20 is always open: software reads its gate back as it set it, at both places, and memory does not wrap.
    """

    def __init__(
        self,
        now: Callable[[], int],
        memory_size: int,
        transmit: Callable[[int], None],
        stop: Callable[[End, str], None],
        disk: Disk | None = None,
        more: Sequence[Device] = (),
    ) -> None:
        self._transmit = transmit
        self._told_of_graphics = False
        self.pic = I8259Pair()
        self.pit = I8254(now, self.pic.line(TIMER_IRQ))
        self.pic.settle = self.pit.settle  # the only one whose line also falls as time goes by
        self.rtc = Mc146818(now, self.pic.line(CLOCK_IRQ), memory_size)
        self.uart = Uart16550(now, self.pic.line(SERIAL_IRQ), transmit)
        self.keyboard = I8042(
            self.pic.line(KEYBOARD_IRQ),
            partial(stop, End.RESET, "the guest pulsed the keyboard controller's reset line"),
            self._set_a20,
        )
        self.port92 = Port92(partial(stop, End.RESET, "the guest reset itself by port 0x92"), self._set_a20)
        self.vga = Vga(now, self._tell_of_graphics)
        self.debug = DebugPort(transmit)
        devices: list[Device] = [
            *(self.pic, self.pit, self.rtc, self.uart, self.keyboard, self.port92, self.vga, self.debug),
            Power(
                partial(stop, End.POWERED_OFF, "the guest turned its power off"),
                partial(stop, End.RESET, "the guest reset itself by port 0xcf9"),
            ),
        ]
        no_drive = EmptyIde("ide without a drive", ide.DATA, ide.CONTROL)
        devices.append(no_drive if disk is None else Ide(disk, self.pic.line(DISK_IRQ)))
        devices.append(EmptyIde("second ide", ide.SECOND_DATA, ide.SECOND_CONTROL))
        devices += more
        self.ports = PortBus(devices)
        self.addresses = MemoryBus(devices)
        # The only ones that do anything of their own accord, and when each of them next does.
        timed: tuple[Device, ...] = (self.pit, self.rtc, self.uart, *more)
        self._due: dict[Device, int | None] = {device: device.deadline() for device in timed}

    def _tell_of_graphics(self, sentence: str) -> None:
        """Whoever looks at the console is told once that there is more to see than the lab can show."""
        if not self._told_of_graphics:
            self._told_of_graphics = True
            for byte in f"\r\n[lab: the guest shows {sentence}]\r\n".encode():
                self._transmit(byte)

    def _set_a20(self, level: bool) -> None:
        """The one gate has two controls."""
        self.keyboard.set_a20(level)
        self.port92.set_a20(level)

    def attach(self, device: Device) -> None:
        """Put one more device in."""
        self.ports.attach(device)
        self._due[device] = device.deadline()

    def deadline(self, port: int | None = None) -> int | None:
        """When a device next does something of its own accord, in nanoseconds; None for never.

        With a port: what can have changed that since the last time is an access to this port.
        """
        if port is None:
            for device in self._due:
                self._due[device] = device.deadline()
        else:
            owner = self.ports.owner.get(port)
            if owner in self._due:
                self._due[owner] = owner.deadline()
        return min((due for due in self._due.values() if due is not None), default=None)

    def advance(self) -> None:
        """Let the devices do what is due."""
        for device in self._due:
            device.advance()
