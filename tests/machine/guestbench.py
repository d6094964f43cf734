# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with one guest on it, as bare as guest mode allows: no kernel, no monitor.

Guest-physical memory is the first 128 KiB, mapped to itself but for one page that is missing and one that may only be
read. Each handler of the guest is one HLT, at an address that tells its vector.
"""

from __future__ import annotations

import struct

from l4lab.abi.frame import EFLAGS, EIP, ESP
from l4lab.abi.vm import ExitReason
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.guestmode import GuestMode, Pause
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.vtx import HLT_EXITING
from l4lab.user.asm import assemble

SIZE, GUEST_SIZE = 1 << 18, 1 << 17
IDT, GDT, CODE, HANDLERS, STACK, MISSING, READ_ONLY, DATA = (0x1000 * n for n in range(1, 9))
DIRECTORY, TABLE, ALIAS = 0xA000, 0xB000, 0x1F000  # the guest's own paging; where it maps the code's page again
FRAME, REGION, BLOCK, HOST_DIRECTORY, HOST_TABLE = 0x30000, 0x31000, 0x35000, 0x36000, 0x37000
CODE_0, DATA_0 = 8, 16
PE, PG = 1, 1 << 31
ENOUGH = 100_000


class Guest:
    """A guest of 32-bit protected mode, or of real mode, that is about to execute `source`."""

    def __init__(self, kind: str, source: str, *, bits: int = 32, paging: bool = False) -> None:
        self.memory = memory = Memory(SIZE)
        self.engine = Engine(memory, kind)
        self.mode = GuestMode(memory, self.engine, REGION)
        self.program = assemble(source, CODE, bits)
        for directory, table in ((HOST_DIRECTORY, HOST_TABLE), (DIRECTORY, TABLE)):
            memory.set_word(directory >> 2, table | 7)
            for page in range(GUEST_SIZE >> 12):
                memory.set_word((table >> 2) + page, page << 12 | 7)
        memory.set_word((TABLE >> 2) + (ALIAS >> 12), CODE | 7)
        self.map(MISSING, 0)
        self.map(READ_ONLY, READ_ONLY | 5)
        memory.write(CODE, self.program.code)
        memory.fill(HANDLERS, 256, 0xF4)
        for vector in range(256):
            if bits == 32:
                memory.write(IDT + 8 * vector, struct.pack("<4H", HANDLERS + vector, CODE_0, 0x8E00, 0))
            else:
                memory.write(IDT + 4 * vector, struct.pack("<2H", HANDLERS + vector, 0))
        memory.write(GDT + CODE_0, struct.pack("<2Q", 0x00CF9B000000FFFF, 0x00CF93000000FFFF))
        self.vmcs = vmcs = self.mode.create(FRAME, BLOCK, HOST_DIRECTORY)
        limit, wide = (0xFFFFFFFF, 0xC000) if bits == 32 else (0xFFFF, 0)
        vmcs.set_segment("cs", CODE_0 if bits == 32 else 0, 0, limit, 0x9B | wide)
        for name in ("es", "ss", "ds", "fs", "gs"):
            vmcs.set_segment(name, DATA_0 if bits == 32 else 0, 0, limit, 0x93 | wide)
        vmcs.set_table("gdtr", GDT, 0xFF)
        vmcs.set_table("idtr", IDT, 0x7FF)
        vmcs.set_control_register(3, DIRECTORY)
        vmcs.set_control_register(4, 0)
        vmcs.set_control_register(0, 0x10 | (PE if bits == 32 else 0) | (PG if paging else 0))
        vmcs.cpu_controls = HLT_EXITING
        vmcs.exception_bitmap = vmcs.cr0_mask = vmcs.cr4_mask = 0
        self.frame = memory.register_frame(FRAME)
        self.frame[EIP], self.frame[EFLAGS], self.frame[ESP] = CODE, 2, STACK + PAGE_SIZE
        self.engine.swap(bytearray(e.ENV_SIZE), vmcs.context)
        vmcs.state = self.engine.env32
        self.begin = self.engine.cycles

    def map(self, address: int, entry: int) -> None:
        """Set the second level's entry for a guest-physical page."""
        self.memory.set_word((HOST_TABLE >> 2) + (address >> 12), entry)
        self.engine.flush_tlb()

    def enter(self, cycles: int = ENOUGH) -> ExitReason | Pause:
        """Run to an exit, or for so many cycles at most."""
        return self.mode.enter(self.vmcs, self.engine.cycles + cycles)

    @property
    def at(self) -> int:
        """The address of the label `at`."""
        return self.program.address("at")

    @property
    def state(self) -> tuple[int, list[int], bytes]:
        """The time since the beginning, the registers, and all of the guest's memory."""
        return self.engine.cycles - self.begin, self.frame.tolist(), bytes(self.memory.u8[:GUEST_SIZE])
