# SPDX-License-Identifier: GPL-2.0-or-later
"""First exit: do for the guest what its CPU would not.

A guest runs at full speed until it does something that only its monitor may decide: then it *exits*. The kernel
stops it in front of that instruction and sends the monitor a message, the fault. The monitor does the instruction's
work, and says in its reply which registers of the guest change. The kernel writes them and enters the guest again.

The guest of this exercise (l4lab/user/guests/greeting.py) causes two kinds of exit:

    CPUID       asks what kind of CPU this is. EAX holds the question, called leaf. Leaf 0 asks for the highest leaf,
                answered in EAX, and for the vendor's name: 12 characters, 4 each in EBX, EDX, ECX. In this order.
    IN, OUT     talk to the serial port: OUT to port 0x3F8 sends the byte in AL, the lowest 8 bits of EAX; IN from port
                0x3FD, the line status, reads into AL whether it may send: bit 5 (0x20) says yes.

What you can use:

    fault.eax, fault.eip ...          the guest's registers when it stopped
    fault.instruction_length          how many bytes the instruction has
    IoAccess.decode(fault.qualification)    for IN and OUT: .port, and .is_in (else it is OUT)
    reply.gpr(frame.EAX, value)       the guest goes on with this value in EAX; also EBX, ECX, EDX, EIP ...
    console.send(byte)                the byte appears on the guest's console

A register that the reply does not name keeps its value. That goes for EIP, too!

Try it: l4lab check first_exit
"""

from __future__ import annotations

from typing import Protocol

from l4lab import Fault, IoAccess, Reply, frame

VENDOR = "YourNameHere"  # exactly 12 characters; choose your own

DATA = 0x3F8  # port: a byte written here is sent
LINE_STATUS = 0x3FD  # port: may a byte be written?
READY = 0x20  # yes, it may


class Console(Protocol):
    """Where the guest's bytes go."""

    def send(self, byte: int) -> None:
        """One byte, 0 to 255."""


def cpuid(fault: Fault, reply: Reply) -> None:
    """The guest executes CPUID: answer in EAX, EBX, ECX and EDX. A leaf that you do not know is answered by zeros."""
    # BEGIN SOLUTION: answer leaf 0 by VENDOR, other leaves by zeros; send the guest on behind its instruction.
    name = VENDOR.encode("ascii") if fault.eax == 0 else bytes(12)
    reply.gpr(frame.EAX, 0)  # leaf 0 is the highest
    reply.gpr(frame.EBX, int.from_bytes(name[0:4], "little"))
    reply.gpr(frame.EDX, int.from_bytes(name[4:8], "little"))
    reply.gpr(frame.ECX, int.from_bytes(name[8:12], "little"))
    reply.gpr(frame.EIP, fault.eip + fault.instruction_length)
    # END SOLUTION


def serial(fault: Fault, reply: Reply, console: Console) -> None:
    """The guest executes IN or OUT, one byte wide, at a port of its serial line (0x3F8 to 0x3FF)."""
    # BEGIN SOLUTION: OUT to DATA sends AL, IN from LINE_STATUS reads READY, other ports read 0 and ignore what is sent.
    access = IoAccess.decode(fault.qualification)
    if access.is_in:
        value = READY if access.port == LINE_STATUS else 0
        reply.gpr(frame.EAX, fault.eax & ~0xFF | value)  # IN fills AL; the rest of EAX stays
    elif access.port == DATA:
        console.send(fault.eax & 0xFF)
    reply.gpr(frame.EIP, fault.eip + fault.instruction_length)
    # END SOLUTION
