# SPDX-License-Identifier: GPL-2.0-or-later
"""The yardstick: the bare engine, as anybody would use it through its Python binding, without a line of ours.

What the lab costs is told as a ratio over these figures, measured in the same run on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

_CODE, _MEMORY = 0x1000, 16 << 20
_LINE_READY = 0x20  # of a UART's line status: the next byte may be written


def _bare(code: bytes) -> Any:
    import unicorn
    from unicorn.x86_const import UC_CPU_X86_QEMU64

    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.ctl_set_cpu_model(UC_CPU_X86_QEMU64)
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])
    uc.mem_map(0, _MEMORY)
    uc.mem_write(_CODE, code)
    return uc


def stop_and_resume(count: int) -> float:
    """CPU seconds for one bare stop: INT in a loop, a Python INTR hook that calls emu_stop, emu_start again."""
    from unicorn import UC_HOOK_INTR

    uc = _bare(b"\xcd\x30\xeb\xfc")  # again: int 0x30; jmp again
    uc.hook_add(UC_HOOK_INTR, lambda engine, number, data: engine.emu_stop())
    uc.emu_start(_CODE, 0)
    start = time.process_time()
    for _ in range(count):
        uc.emu_start(_CODE, 0)
    return (time.process_time() - start) / count


def run_guest(pieces: Iterable[tuple[int, bytes]], entry: int, output: Callable[[int], None]) -> None:
    """Run a flat guest up to its HLT. It has a serial port that is always ready, and nothing else."""
    from unicorn import UC_HOOK_INSN
    from unicorn.x86_const import UC_X86_INS_IN, UC_X86_INS_OUT

    uc = _bare(b"")
    for address, contents in pieces:
        uc.mem_write(address, contents)
    uc.hook_add(UC_HOOK_INSN, lambda engine, port, size, data: _LINE_READY, aux1=UC_X86_INS_IN)
    uc.hook_add(UC_HOOK_INSN, lambda engine, port, size, value, data: output(value & 0xFF), aux1=UC_X86_INS_OUT)
    uc.emu_start(entry, 0)
