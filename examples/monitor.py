# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual-machine monitor of the lab's parts: one guest, one device of our own, three kinds of exits.

The guest adds numbers by a device that it finds both at ports and in memory, and says what came out at the debug port.
`l4lab.user.monitor.monitor` is the same put together for a whole PC.
"""

from __future__ import annotations

from l4lab.abi.ids import global_id
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.vm import ExitReason
from l4lab.devices.debugport import DebugPort
from l4lab.devices.device import Device, PortBus
from l4lab.devices.memory_bus import MemoryBus
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.console import say
from l4lab.user.guests.flat import FlatGuest
from l4lab.user.l4 import L4
from l4lab.user.monitor.emulate import Emulator
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.guest_cpu import GuestCpu
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.guest_ports import PortIo
from l4lab.user.monitor.start import FAULT_ITEMS
from l4lab.user.monitor.start_flat import start_of

MEMORY, CONSOLE, SUM_PORT, SUM_ADDRESS = 4 << 20, 0x3F8, 0x300, 0xFEC0_0000
SOURCE = """
        mov     dx, 0x300
        mov     al, 20
        out     dx, al                  ; an exit for a port
        add     byte ptr [0xFEC00000], 22   ; an exit for a memory address: load, add, store
        in      al, dx
        out     0xE9, al                ; 20 + (20 + 22) = 62, the code of '>'
        hlt
"""


class Sum(Device):
    """A device that adds up what it is given."""

    name, ports, memory, saved = (
        "sum",
        (range(SUM_PORT, SUM_PORT + 1),),
        (range(SUM_ADDRESS, SUM_ADDRESS + 1),),
        ("sum",),
    )

    def __init__(self) -> None:
        self.sum = 0

    def read(self, port: int, size: int) -> int:
        return self.sum

    def write(self, port: int, size: int, value: int) -> None:
        self.sum = self.sum + value & 0xFF

    load, store = read, write


def monitor(l4: L4) -> None:
    """The monitor: gives the guest memory, and does for it what it cannot do by itself."""
    guest = FlatGuest.of(assemble(SOURCE, 0x101000), "Adds two numbers.")
    memory = GuestMemory.allocate(l4, MEMORY)
    vcpu = GuestCpu.create(l4, global_id(l4.my_id.thread_no + 1))
    devices = (Sum(), DebugPort(lambda byte: l4.port_out(CONSOLE, 1, byte)))
    io = PortIo(PortBus(devices), vcpu, memory)

    def handle(fault: Fault, reply: Reply) -> None:
        """What the guest waits for is done, and the reply says so."""
        if is_page_fault(fault.label) and fault.words[1] < MEMORY:
            reply.typed = memory.map_item(fault.words[1])
        elif is_page_fault(fault.label):
            emulator.handle(fault, reply)
        elif fault.reason == ExitReason.IO_INSTRUCTION:
            io.handle(fault, reply)

    emulator = Emulator(MemoryBus(devices), memory, vcpu, handle)
    for address, contents in guest.pieces:
        memory.write(address, contents)
    vcpu.configure(FAULT_ITEMS)
    answer = vcpu.launch(start_of(guest).registers())
    while True:
        fault, reply = Fault(l4.call(vcpu.id, answer).words), Reply()
        if fault.reason == ExitReason.HLT:
            break  # it is done
        handle(fault, reply)
        answer = reply.words()
    say(l4, f"\nmonitor: after exit {fault.reason_name} the sum is {devices[0].sum}")
    say(l4, "monitor: done")


def system() -> Rig:
    """The machine on which it runs."""
    return Rig(monitor, 32 << 20)


if __name__ == "__main__":
    rig = system()
    rig.run()
    print(rig.console.decode(), end="")
