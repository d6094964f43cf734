# SPDX-License-Identifier: GPL-2.0-or-later
"""What the probe of the engine is made with: a small machine, a look at this process's memory, and how to say what is
not as expected."""

from __future__ import annotations

import ctypes
import os
import struct

from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.memory import Memory

CODE, FRAME, STACK, GDT, DIRECTORY, TABLE = 0x1000, 0x2000, 0x2F00, 0x3000, 0x4000, 0x5000
SAVE_AREA, BLOCK, MAP, GUEST_CODE, HANDLER = 0x6000, 0x7000, 0x8000, 0xC000, 0xD000  # the map takes 3 pages
SIZE = 0x10000
GENERAL = ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI")  # the engine's order


OWN_MEMORY = "/proc/self/mem"


class Wrong(Exception):
    """Something is not as expected."""


def expect(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise Wrong(f"{what} is {found!r} and should be {expected!r}")


def peek(address: int, size: int) -> bytes:
    """Memory of this process, at an address that may be wrong."""
    try:
        handle = os.open(OWN_MEMORY, os.O_RDONLY)
    except OSError:  # not Linux: the pinned version has to be enough
        return ctypes.string_at(address, size)
    try:
        found = os.pread(handle, size, address)
    except (OSError, OverflowError):
        found = b""
    finally:
        os.close(handle)
    if len(found) < size:
        raise Wrong(f"there is no memory at {address + len(found):#x}")
    return found


class Bench:
    """A small machine in flat protected mode, to run a few instructions on."""

    def __init__(self, kind: str) -> None:
        self.memory = Memory(SIZE)
        self.engine = Engine(self.memory, kind)
        self.retired = 0

    def renew(self) -> None:
        """As it was in the beginning, but for the clock."""
        self.memory.fill(0, SIZE)
        self.engine.swap(bytearray(e.ENV_SIZE), self.engine.reset_state)
        self.engine.forget_all_code()
        self.engine.set_window(False)
        self.retired = self.engine.retired

    def load(self, code: bytes, eax: int = 0, eflags: int = 2, eip: int = CODE) -> None:
        """Put code into memory and start values into the register frame."""
        self.memory.write(eip, code)
        self.memory.write(FRAME, struct.pack("<10I", eip, eflags, 7, 6, 5, STACK, 3, 2, 1, eax))

    def run(self, cycles: int) -> int:
        """Go on for so many cycles; the event."""
        event: int = self.engine.run(FRAME, self.engine.cycles + cycles)
        return event

    def word(self, offset: int) -> int:
        """A word of the CPU state."""
        if offset >= e.ENV_SIZE:
            raise Wrong(f"the CPU state ends before {offset}")
        return self.engine.env32[offset >> 2]

    def frame(self, index: int) -> int:
        """A word of the register frame."""
        return self.memory.u32[(FRAME >> 2) + index]

    def expect(self, eip: int, retired: int) -> None:
        """Where the last run ended, and how many instructions have retired since the machine was made new."""
        expect("EIP", hex(eip), hex(self.frame(0)))
        expect("the number of instructions", retired, self.engine.retired - self.retired)

    def enter_guest(self, code: bytes) -> None:
        """VMRUN to a guest in real mode at GUEST_CODE, over tables that map each page to itself."""
        memory, engine = self.memory, self.engine
        memory.write(DIRECTORY, struct.pack("<I", TABLE | 7))
        memory.write(TABLE, struct.pack("<16I", *(page << 12 | 7 for page in range(16))))
        memory.fill(MAP, 3 * 4096, 0xFF)
        engine.write_msr(0xC0000080, 1 << 12)  # EFER.SVME
        engine.write_msr(0xC0010117, SAVE_AREA)
        for offset, form, value in (
            *((0x00, "<I", 0x00080001), (0x04, "<I", 0x00040002), (0x08, "<I", 0x01000000)),  # CR, DR, exceptions
            *((0x0C, "<Q", 0x21_0004_0000), (0x40, "<Q", MAP), (0x48, "<Q", MAP), (0x50, "<Q", 0x123456789)),
            *((0x58, "<I", 1), (0x90, "<Q", 1), (0xB0, "<Q", DIRECTORY)),
            *((0x400 + 0xD0, "<Q", 1 << 12), (0x400 + 0x158, "<Q", 0x10), (0x400 + 0x170, "<Q", 2)),
            *((0x400 + 0x178, "<Q", GUEST_CODE), (0x400 + 0x1D8, "<Q", STACK), (0x400 + 0x84, "<I", 0x3FF)),  # IDTR
            *((0x400 + 0x168, "<Q", 0xFFFF0FF0), (0x400 + 0x160, "<Q", 0x400)),
        ):
            memory.write(BLOCK + offset, struct.pack(form, value))
        for segment in (0x00, 0x10, 0x20, 0x30):
            memory.write(BLOCK + 0x400 + segment, struct.pack("<HHIQ", 0, 0x93, 0xFFFF, 0))
        for vector in range(64):  # each handler is one HLT
            memory.write(4 * vector, struct.pack("<HH", HANDLER + vector, 0))
        memory.fill(HANDLER, 64, 0xF4)
        memory.write(GUEST_CODE, code)
        self.load(b"\x0f\x01\xd8", eax=BLOCK)
        expect("what VMRUN ends in", e.EVENT_BUDGET, self.run(1))
