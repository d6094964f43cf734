# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare PC to run guests on: QEMU without a screen, the serial port on pipes, its monitor on a socket."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from l4lab.user.guests.flat import FlatGuest, multiboot_image

PATIENCE = 60.0  # seconds; a guest takes about one


class BarePc:
    """One guest in QEMU, from power-on to its end."""

    def __init__(self, guest: FlatGuest, directory: Path, cpu: str) -> None:
        (directory / "image").write_bytes(multiboot_image(guest))
        monitor = str(directory / "monitor")
        command = ["qemu-system-i386", "-M", "pc", "-accel", "tcg", "-cpu", cpu, "-m", "16", "-nodefaults"]
        command += ["-display", "none", "-no-reboot", "-kernel", str(directory / "image")]
        command += ["-serial", "stdio", "-monitor", f"unix:{monitor},server=on,wait=off"]
        self._deadline = time.monotonic() + PATIENCE
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._monitor_path = monitor
        self.console = ""
        self._seen = 0  # how much of it read_until has handed out

    def read_until(self, text: str) -> str:
        """Let it run until it writes this text; what it wrote since the last call."""
        while (found := self.console.find(text, self._seen)) < 0:
            assert self._read(), f"the guest ended; its console: {self.console!r}"
        start, self._seen = self._seen, found + len(text)
        return self.console[start : self._seen]

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def wait_for_end(self) -> str:
        """Let it run until QEMU exits; everything it wrote."""
        while self._read():
            pass
        self._process.wait(PATIENCE)
        return self.console

    def wait_for_halt(self) -> str:
        """Let it run until it halts with interrupts off; everything it wrote."""
        while not self._is_halted():
            time.sleep(0.02)
            assert time.monotonic() < self._deadline, f"it never halted; its console: {self.console!r}"
        while select.select([self._process.stdout], [], [], 0.1)[0]:
            self._read()
        return self.console

    def register(self, name: str) -> int:
        found = re.search(rf"\b{name}=([0-9a-f]+)", self.ask("info registers"))
        assert found, name
        return int(found.group(1), 16)

    def word(self, address: int) -> int:
        return int(self.ask(f"xp /1wx {address:#x}").split(":")[1].split()[0], 16)

    def ask(self, command: str) -> str:
        """One command to QEMU's monitor."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(PATIENCE)
            while s.connect_ex(self._monitor_path):
                time.sleep(0.01)
                assert time.monotonic() < self._deadline, "no monitor"
            self._answer(s)
            s.sendall(command.encode() + b"\n")
            answer = self._answer(s).replace("\r", "")
        return answer[answer.index("\n") + 1 :]  # the first line is our own command, echoed

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.communicate()

    def _is_halted(self) -> bool:
        registers = self.ask("info registers")
        flags = re.search(r"EFL=([0-9a-f]+)", registers)
        return "HLT=1" in registers and flags is not None and not int(flags.group(1), 16) & 1 << 9

    def _answer(self, s: socket.socket) -> str:
        text = b""
        while not text.endswith(b"(qemu) "):
            text += s.recv(4096)
        return text.decode()

    def _read(self) -> bool:
        """Read what has come, waiting for something to come; False when QEMU has ended."""
        assert self._process.stdout is not None
        left = max(0.0, self._deadline - time.monotonic())
        assert select.select([self._process.stdout], [], [], left)[0], f"nothing more came after {self.console!r}"
        got = os.read(self._process.stdout.fileno(), 4096)
        self.console += got.decode("latin-1")
        return bool(got)


@pytest.fixture
def power_on(tmp_path: Path) -> Iterator[Callable[..., BarePc]]:
    """Starts a guest on a bare PC; every PC started is gone after the test."""
    started: list[BarePc] = []

    def start(guest: FlatGuest, cpu: str = "qemu32") -> BarePc:
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(BarePc(guest, directory, cpu))
        return started[-1]

    yield start
    for pc in started:
        pc.stop()
