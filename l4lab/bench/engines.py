# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs a workload: the lab, the bare engine, QEMU. Each tells the CPU time of the work, and the checksum.

The clock is that of the process that does the work, with all its threads: what else the computer does is not counted.
It is read when the guest's first character comes and when its last one does, so nobody's start is counted either. The
first of another process comes to us a little after it was written: what QEMU does meanwhile counts as nothing, which
makes QEMU's time shorter, never ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from l4lab.errors import LabError
from l4lab.machine import baseline
from l4lab.rig.rig import Rig
from l4lab.user.guests.flat import FlatGuest, multiboot_image
from l4lab.user.guests.workloads import BEGIN, END

QEMU: Final = "qemu-system-i386"


class Timed(NamedTuple):
    """What one run of a workload took, and what came out of it."""

    seconds: float
    checksum: str


class _Line:
    """The serial line of a guest: notes when the work began and ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = self._ended = 0.0
        self._text = b""

    @property
    def done(self) -> bool:
        return self._text.endswith(END)

    def __call__(self, byte: int) -> None:
        self._text += bytes([byte])
        if self._text == BEGIN:
            self._began = self._clock()
        elif self.done:
            self._ended = self._clock()

    def run(self, who: str) -> Timed:
        """What there is to tell when it is over."""
        if not self.done:
            raise LabError(f"{who} ended before its work: it printed {self._text!r}. Try to run it by hand")
        return Timed(self._ended - self._began, self._text.decode("latin-1").strip(">\r\n"))


def in_the_lab(guest: FlatGuest) -> Timed:
    """As a guest of our kernel, in a virtual machine with nested paging."""
    line = _Line(time.process_time)
    with Rig.for_flat_guest(guest) as rig:
        rig.on_output = line
        rig.run()
    return line.run("the lab's guest")


def on_the_bare_engine(guest: FlatGuest) -> Timed:
    """In Unicorn, without a line of ours: it counts nothing, and nobody could stop it."""
    line = _Line(time.process_time)
    baseline.run_guest(guest.pieces, guest.entry, line)
    return line.run("the bare engine")


def in_qemu(guest: FlatGuest) -> Timed:
    """On QEMU's PC, whose CPU is emulated as well."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "guest"
        image.write_bytes(multiboot_image(guest))
        command = [
            *(QEMU, "-accel", "tcg", "-m", "64", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-serial", "stdio", "-kernel", str(image)),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as qemu:
            try:
                line = _Line(lambda: cpu_of(qemu.pid))
                assert qemu.stdout is not None
                while not line.done and (piece := os.read(qemu.stdout.fileno(), 1)):
                    line(piece[0])
            finally:
                qemu.kill()
    return line.run(QEMU)


def have_qemu() -> bool:
    """Is it installed?"""
    return shutil.which(QEMU) is not None


def cpu_of(process: int) -> float:
    """CPU seconds of another process up to now, all its threads together."""
    return time.clock_gettime(~process << 3 | 2)  # Linux's number for that clock; clock_getcpuclockid(3)
