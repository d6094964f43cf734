# SPDX-License-Identifier: GPL-2.0-or-later
"""Each thread has FPU and SSE registers of its own, whoever else uses them meanwhile."""

from __future__ import annotations

import pytest

from l4lab.abi.calls import TimeControl
from l4lab.abi.ids import NIL_THREAD
from l4lab.abi.time import NEVER, period
from l4lab.testing import Root, run

COUNTED = 40_000
# Counts in an x87 register and in an SSE register, in steps of its own, then stores both.
SOURCE = """
    fninit
    fild dword ptr [step]
    fldz
    movd xmm3, dword ptr [step]
    pxor xmm2, xmm2
    mov ecx, COUNT
again:
    fadd st(0), st(1)
    paddd xmm2, xmm3
    dec ecx
    jnz again
    fistp dword ptr [RESULT]
    movd dword ptr [RESULT + 4], xmm2
    mov dword ptr [RESULT + 8], 1
done:
    jmp done
step:
    .long STEP
"""


@pytest.mark.parametrize("apart", [False, True], ids=["one space", "two spaces"])
def test_counting_in_registers_survives_preemption(apart: bool) -> None:
    """Three threads that count in the FPU with slices of a few hundred instructions: is every sum right?"""
    steps = (1, 3, 7)

    results: list[int] = []

    def main(r: Root) -> None:
        for step in steps:
            result = r.room()
            results.append(result)
            r.store(result, bytes(16))
            space = r.space() if apart else NIL_THREAD
            thread = r.native(SOURCE, space, COUNT=COUNTED, RESULT=result, STEP=step).id
            r.schedule(thread, 100, TimeControl.make(time_slice=period(1), total_quantum=NEVER))
        r.serve()

    system = run(main, 40_000_000, check=False)

    sums = [system.words(result, 3) for result in results]
    assert [[step * COUNTED, step * COUNTED, 1] for step in steps] == sums


def test_a_new_thread_finds_a_fresh_fpu() -> None:
    """Is the control word as after reset although another thread has changed its own?"""
    found: list[int] = []

    def main(r: Root) -> None:
        at = r.room()
        r.store(at, b"\xff" * 8)
        found.append(at)
        r.native("fninit\n fldcw word ptr [control]\ndone:\n jmp done\ncontrol:\n .word 0x027f", priority=110)
        r.native("fnstcw word ptr [AT]\ndone:\n jmp done", priority=110, AT=at)
        r.serve()

    system = run(main, 40_000_000)

    assert 0xFFFF_037F == system.words(found[0])[0]
