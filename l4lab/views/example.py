# SPDX-License-Identifier: GPL-2.0-or-later
"""The built-in example: a small system in the midst of a VM exit, made up by hand so that every view has work to do."""

from __future__ import annotations

from l4lab.devices.vga import TEXT_BUFFER, TextPage, Vga
from l4lab.rig.counting import Counts, CpuCounts, VmCounts
from l4lab.rig.snapshot import (
    Area,
    DisasmLine,
    ExitView,
    IpcView,
    Ports,
    Region,
    Snapshot,
    SpaceView,
    ThreadView,
)
from l4lab.words import Rights

SIGMA0, ROOT, MONITOR, CPU0 = 0xC0001, 0xC8001, 0xCC001, 0xD0001

_NEXT = (
    DisasmLine(0x0010_002A, b"\xba\xf8\x03\x00\x00", "mov edx, 0x3f8"),
    DisasmLine(0x0010_002F, b"\xac", "lodsb"),
    DisasmLine(0x0010_0030, b"\xee", "out dx, al", current=True),
    DisasmLine(0x0010_0031, b"\x84\xc0", "test al, al"),
    DisasmLine(0x0010_0033, b"\x75\xfa", "jne 0x10002f"),
    DisasmLine(0x0010_0035, b"\xf4", "hlt"),
)

_REGISTERS = {
    "EIP": 0x0010_0030,
    "EFLAGS": 0x0000_0202,
    "EDI": 0,
    "ESI": 0x0010_0048,
    "EBP": 0,
    "ESP": 0x0009_0000,
    "EBX": 0,
    "EDX": 0x3F8,
    "ECX": 0,
    "EAX": 0x68,
    "CR0": 0x0000_0011,
    "CR3": 0,
    "CR4": 0,
    "CS": 0x10,
    "DS": 0x18,
}

_MONITOR_REGIONS = (
    Region(0x0040_0000, 0x4000, 0x0020_0000, Rights.RWX, 1, "program"),
    Region(0x1000_0000, 0x0040_0000, 0x0100_0000, Rights.RWX, 1, "guest memory"),
)


_MACHINES = (
    VmCounts(
        number=1,
        name="guest",
        paging="nested",
        total=Counts(instructions=150_000, exits={"IO": 41, "CPUID": 3}, nested_faults=12, messages=112),
        cpus=(
            CpuCounts(thread=CPU0, instructions=150_000, exits={"IO": 41, "CPUID": 3}, nested_faults=12, messages=112),
        ),
    ),
    VmCounts(
        number=2,
        name="an earlier guest",
        paging="shadow",
        total=Counts(instructions=3_000, kernel_exits={"INVLPG": 7}, vtlb_fills=20, vtlb_flushes=9),
        cpus=(
            CpuCounts(thread=CPU0, instructions=1_000, vtlb_fills=20, vtlb_flushes=2),
            CpuCounts(thread=CPU0 + 0x4000, instructions=2_000, kernel_exits={"INVLPG": 7}, vtlb_flushes=7),
        ),
    ),
)


def _screen() -> TextPage | None:
    """A boot loader's, with a line chosen from its menu."""
    rows = {
        0: (0x0F, "The boot loader"),
        2: (0x70, " Linux     "),
        3: (0x07, " Memory test"),
        24: (0x9E, "Press a key"),
    }
    buffer = bytearray(b" \x07" * (80 * 25))
    for row, (attribute, text) in rows.items():
        cells = b"".join(bytes((ord(char), attribute)) for char in text)
        buffer[160 * row : 160 * row + len(cells)] = cells
    return Vga(lambda: 0).page(lambda address, length: bytes(buffer[address - TEXT_BUFFER :]).ljust(length, b"\0"))


def example() -> Snapshot:
    """The example: the guest is about to write a character to its serial port."""
    return Snapshot(
        cycle=184_467,
        virtual_ns=184_467,
        retired=150_211,
        status="stopped before a VM exit: out dx, al",
        thread=CPU0,
        mode="guest",
        registers=_REGISTERS,
        previous={**_REGISTERS, "EIP": 0x0010_002F, "ESI": 0x0010_0047, "EAX": 0x65},
        disassembly=_NEXT,
        threads=(
            ThreadView(SIGMA0, "sigma0", "hosted", "WAITING", 255, 1),
            ThreadView(ROOT, "root", "hosted", "WAITING", 255, 2, pager=SIGMA0),
            ThreadView(MONITOR, "monitor", "hosted", "WAITING", 120, 3, pager=SIGMA0),
            ThreadView(
                *(CPU0, "cpu0", "vcpu", "RUNNING", 100, 4),
                pager=MONITOR,
                time_slice=10_000_000,
                slice_left=9_850_000,
                quantum_left=50_000_000,
            ),
        ),
        spaces=(
            SpaceView(1, "sigma0", regions=(Region(0, 0x0400_0000, 0, Rights.RWX, None, "all memory"),)),
            SpaceView(
                2,
                "root",
                kip=Area(0xC000_0000, 0x1000),
                utcbs=Area(0xC001_0000, 0x1000),
                regions=(Region(0x0040_0000, 0x8000, 0x0030_0000, Rights.R | Rights.X, 1, "program"),),
            ),
            SpaceView(
                3,
                "monitor",
                kip=Area(0xC000_0000, 0x1000),
                utcbs=Area(0xC001_0000, 0x1000),
                regions=_MONITOR_REGIONS,
                ports=(Ports(0x3F8, 8, 2),),
            ),
            SpaceView(
                4,
                "guest",
                is_vm=True,
                regions=(
                    Region(0, 0x000A_0000, 0x0100_0000, Rights.RWX, 3, "low memory"),
                    Region(0x0010_0000, 0x0030_0000, 0x0110_0000, Rights.RWX, 3, "kernel"),
                ),
            ),
        ),
        ipc=(
            IpcView(120_000, ROOT, MONITOR, "start", (0x0100_0000,)),
            IpcView(121_210, CPU0, MONITOR, "page fault x", (0x0010_0000, 0x0010_0000), "fault"),
            IpcView(122_960, MONITOR, CPU0, "map 4M rwx", (0x1000_0208, 0x0100_0167), "reply"),
            IpcView(183_000, CPU0, MONITOR, "IO out 0x3f8", (0x1E, 0x03F8_0000), "exit"),
            IpcView(184_400, MONITOR, CPU0, "resume", (), "reply"),
        ),
        exits=(
            ExitView(150_010, CPU0, "CPUID", 0x0010_0008, "leaf 0"),
            ExitView(183_000, CPU0, "IO", 0x0010_0030, "out 0x3f8 ← 0x65 'e'"),
        ),
        exit_counts={"IO": 41, "CPUID": 3, "HLT": 1, "CR_ACCESS": 2},
        counters={"ipc_messages": 97, "vm_exits": 47, "page_faults": 12, "injections": 0},
        machines=_MACHINES,
        screen=_screen(),
        console="Loading...\r\n\x1b[1mhe",
        input_expected=False,
    )
