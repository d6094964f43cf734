# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans how Linux comes into a guest's memory by the 32-bit boot protocol: what goes where, and the first registers.

Source: Linux, Documentation/arch/x86/boot.rst, "32-bit Boot Protocol". The plan is pure data; whoever owns the guest's
memory carries it out. A misfit is a `LabError` that says what to change.

    0x6000   GDT: flat code at selector 0x10, flat data at 0x18      0x9fc00   what a BIOS keeps to itself,
    0x10000  boot_params                                                       up to 1 MiB
    0x20000  command line                                            0x100000  RAM: the kernel where it was
                                                                               linked to, the initrd at the top
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from l4lab.errors import LabError
from l4lab.images import boot_params, elf
from l4lab.images.boot_params import E820Region, RegionKind
from l4lab.images.bzimage import LinuxKernel
from l4lab.images.loader_area import FLAT_CODE, FLAT_DATA
from l4lab.images.pieces import (
    HIGH_RAM,
    LARGEST_MEMORY,
    LOW_RAM_END,
    MIB,
    PAGE,
    Piece,
    check_command_line,
    check_fits,
    check_memory,
    mib,
)
from l4lab.words import PAddr

GDT_AT = PAddr(0x6000)
BOOT_PARAMS_AT = PAddr(0x10000)
COMMAND_LINE_AT = PAddr(0x20000)

CODE_SELECTOR = 0x10  # __BOOT_CS
DATA_SELECTOR = 0x18  # __BOOT_DS
CR0_PROTECTED = 0x11  # PE, and ET, which is always set; no paging
EFLAGS_RESERVED = 0x2  # the bit that is always 1; interrupts are off


@dataclass(frozen=True, slots=True)
class LinuxPlan:
    """Everything that has to be so when the guest executes its first instruction. No two pieces overlap."""

    pieces: tuple[Piece, ...]
    memory_map: tuple[E820Region, ...]
    entry: PAddr  # EIP
    boot_params: PAddr  # ESI
    gdt: PAddr
    gdt_limit: int

    def registers(self) -> dict[str, int]:
        """The registers that the protocol prescribes, by name; all others are zero."""
        data = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), DATA_SELECTOR)
        control = {"cr0": CR0_PROTECTED, "eflags": EFLAGS_RESERVED}
        return {"eip": self.entry, "esi": self.boot_params, "cs": CODE_SELECTOR} | data | control


def plan(kernel: LinuxKernel, initrd: bytes | None, cmdline: str, memory: int, screen: bool = False) -> LinuxPlan:
    """How this kernel starts on a guest with so many bytes of memory; `screen`: is it told of a VGA?"""
    memory_map = _memory_map(memory)
    program = elf.load(kernel.unpack(), f"the kernel in {kernel.name}")
    kernel_begin = min(segment.paddr for segment in program.segments)
    kernel_end = max(kernel.pref_address + kernel.init_size, *(segment.end for segment in program.segments))
    if kernel_begin < HIGH_RAM:
        raise LabError(f"{kernel.name} wants to be loaded below 1 MiB, as no Linux does; is it a Linux kernel?")
    check_fits(kernel.name, kernel_end, memory)
    pieces = [Piece(segment.paddr, segment.data, "kernel") for segment in program.segments if segment.data]
    ramdisk = PAddr(0)
    if initrd:
        ramdisk = _place_initrd(len(initrd), kernel, PAddr(kernel_end), memory)
        pieces.append(Piece(ramdisk, initrd, "initrd"))
    gdt = struct.pack("<4Q", 0, 0, FLAT_CODE, FLAT_DATA)
    zero_page = boot_params.build(kernel.setup_header, memory_map, COMMAND_LINE_AT, ramdisk, len(initrd or b""), screen)
    pieces += [
        Piece(COMMAND_LINE_AT, check_command_line(cmdline, kernel.cmdline_size, kernel.name), "command line"),
        Piece(BOOT_PARAMS_AT, zero_page, "boot_params"),
        Piece(GDT_AT, gdt, "GDT"),
    ]
    return LinuxPlan(
        pieces=tuple(sorted(pieces, key=lambda piece: piece.address)),
        memory_map=tuple(memory_map),
        entry=PAddr(program.entry),  # for vmlinux a physical address, though its segments are linked to high ones
        boot_params=BOOT_PARAMS_AT,
        gdt=GDT_AT,
        gdt_limit=len(gdt) - 1,
    )


def _memory_map(memory: int) -> list[E820Region]:
    check_memory(memory)
    return [
        E820Region(PAddr(0), LOW_RAM_END, RegionKind.RAM),
        E820Region(LOW_RAM_END, HIGH_RAM, RegionKind.RESERVED),
        E820Region(HIGH_RAM, PAddr(memory), RegionKind.RAM),
    ]


def _place_initrd(size: int, kernel: LinuxKernel, kernel_end: PAddr, memory: int) -> PAddr:
    # As high as may be: the kernel takes the memory behind itself for its first page tables.
    highest_end = min(memory, kernel.initrd_addr_max + 1)
    begin = (highest_end - size) & ~(PAGE - 1)
    if begin < kernel_end:
        needed = mib(kernel_end + size + PAGE)
        if needed * MIB > min(LARGEST_MEMORY, kernel.initrd_addr_max + 1):
            raise LabError(f"the initrd ({mib(size)} MiB) is too large for {kernel.name}; make it smaller")
        raise LabError(
            f"the initrd ({mib(size)} MiB) does not fit beside the kernel into {memory // MIB} MiB of memory; "
            f"give the guest more, such as --memory {2 * needed}"
        )
    return PAddr(begin)
