# SPDX-License-Identifier: GPL-2.0-or-later
"""Systems that have a name: for whoever wants one at hand and not to put it together."""

from __future__ import annotations

from l4lab.errors import LabError
from l4lab.guests import guest as guests
from l4lab.rig.rig import Rig
from l4lab.user.guests import greeting, tinyos
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.monitor_parts import THE_MONITORS_OWN, MonitorParts

NAMES = ("greeting", "tinyos", "linux")
PAGING = ("nested", "shadow")
LINUX_MEMORY_MIB = 64


def boot(
    name: str,
    interactive: bool = False,
    screen: bool = False,
    disk: bytes | None = None,
    paging: str = "nested",
    monitor: MonitorParts = THE_MONITORS_OWN,
) -> Rig:
    """A machine with our kernel, a monitor, and a guest: "greeting", "tinyos" or "linux". The guest has not run yet.

    An interactive tinyos takes commands before it switches itself off. Linux must have been obtained before; its
    console can be its screen, and what is on its disk can be given. `paging` is how its memory is translated: "nested"
    or "shadow". `monitor` takes the place of parts of the monitor.
    """
    if paging not in PAGING:
        raise LabError(f"there is no paging mode {paging!r}; there is: {', '.join(PAGING)}")
    hardware = Hardware(shadow_paging=paging == "shadow", disk=disk)
    match name:
        case "greeting":
            return Rig.for_flat_guest(greeting.build(), hardware=hardware, monitor=monitor)
        case "tinyos":
            return Rig.for_flat_guest(tinyos.build(interactive), hardware=hardware, monitor=monitor)
        case "linux":
            return _linux(screen, hardware, monitor)
    raise LabError(f"there is no guest named {name!r}; there are: {', '.join(NAMES)}")


def _linux(screen: bool, hardware: Hardware, monitor: MonitorParts) -> Rig:
    here = next(listed.here for listed in guests.listed() if listed.name == "linux")
    if here is None:
        raise LabError("Linux is not here yet; obtain it once, in a terminal: l4lab guest get linux")
    initrd = here.initrd.read_bytes()
    if hardware.disk is not None and here.drivers is not None:
        initrd += here.drivers.read_bytes()
    append = guests.LINUX_SCREEN_APPEND if screen else here.append
    image, name = here.kernel.read_bytes(), str(here.kernel)
    memory = LINUX_MEMORY_MIB
    return Rig.for_linux(image, name, initrd, append, memory, screen=screen, hardware=hardware, monitor=monitor)
