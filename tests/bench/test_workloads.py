# SPDX-License-Identifier: GPL-2.0-or-later
"""The workloads are the same work wherever they run. What time that takes is not looked at here."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from l4lab.bench import engines
from l4lab.errors import LabError
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import ORIGIN, FlatGuest
from l4lab.user.guests.workloads import WORKLOADS, Workload

BY_NAME = {workload.name: workload for workload in WORKLOADS}


def xorshift(turns: int) -> int:
    """What `registers` computes."""
    x = 1
    for _ in range(turns):
        x ^= x << 13 & 0xFFFF_FFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFF_FFFF
    return x


def fibonacci(turns: int) -> int:
    """What `calls` computes."""
    total = 0
    for _ in range(turns):
        total = total + 987 & 0xFFFF_FFFF  # the sixteenth Fibonacci number
        total = (total << 1 | total >> 31) & 0xFFFF_FFFF
    return total


def patched(turns: int) -> int:
    """What `self-modifying code` computes if each instruction is executed as it was last written."""
    total = 1
    for turn in range(turns, 0, -1):
        total = (total << 3 | total >> 29) & 0xFFFF_FFFF
        total = total + turn * 0x9E3779B1 & 0xFFFF_FFFF
    return total


def logistic(turns: int) -> int:
    """What `SSE2 floating point` computes: Python's floats are doubles as well."""
    x, total = 0.3, 0.0
    for _ in range(turns):
        x = x * (1 - x) * 3.75
        total += x
    last, _, low, high = struct.unpack("<4I", struct.pack("<2d", x, total))
    return (last + low & 0xFFFF_FFFF) ^ high


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_everybody_comes_to_the_same(workload: Workload) -> None:
    """The lab, the bare engine and QEMU print the same checksum."""
    program = workload.build(max(workload.turns // 1000, 3))
    runs = [run(program) for run in (engines.in_the_lab, engines.on_the_bare_engine, engines.in_qemu)]

    assert 1 == len({run.checksum for run in runs})
    assert 8 == len(runs[0].checksum)


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("registers", xorshift),
        ("calls", fibonacci),
        ("self-modifying code", patched),
        ("SSE2 floating point", logistic),
    ],
)
@pytest.mark.parametrize("turns", [1, 2, 777])
def test_it_is_the_work_that_it_says(name: str, compute: object, turns: int) -> None:
    """What Python computes by the same rule is what the guest prints: no turn is left out."""
    assert f"{compute(turns):08x}" == engines.in_the_lab(BY_NAME[name].build(turns)).checksum  # type: ignore[operator]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_each_turn_counts(workload: Workload) -> None:
    """A turn more comes to another checksum, so an engine that skips work is found out."""
    few, more = (engines.on_the_bare_engine(workload.build(turns)).checksum for turns in (7, 8))

    assert few != more


@pytest.mark.parametrize("turns", [0, -1, 1 << 32])
def test_turns_that_no_register_holds(turns: int) -> None:
    """A number of turns that does not fit in a register is refused."""
    with pytest.raises(LabError, match="do not fit"):
        WORKLOADS[0].build(turns)


@pytest.mark.parametrize("run", [engines.in_the_lab, engines.on_the_bare_engine], ids=["lab", "bare"])
def test_a_guest_that_ends_early_is_told(run: object) -> None:
    """A guest that halts before its checksum gives no time, but a line that names who ran it."""
    guest = FlatGuest.of(assemble("cli\nagain: hlt\njmp again", ORIGIN), "")
    with pytest.raises(LabError, match="ended before its work"):
        run(guest)  # type: ignore[operator]


def test_the_images_boot(tmp_path: Path) -> None:
    """The files for other emulators are there for every workload, and boot as Multiboot kernels."""
    made = subprocess.run([sys.executable, "-m", "l4lab.user.guests.workloads", tmp_path], check=True)

    assert 0 == made.returncode
    assert len(WORKLOADS) == len(list(tmp_path.iterdir()))
    command = [sys.executable, "-m", "l4lab", "boot", str(tmp_path / "x87-floating-point.bin"), "--timeout", "60"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert engines.in_the_lab(BY_NAME["x87 floating point"].build()).checksum == said[1:9]
