# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own devices as an oracle, in two ways.

`run` makes a BIOS image of a list of port accesses and delays and lets QEMU's CPU execute it. Instructions take a fixed
time there (`-icount`), so the virtual time of each access is known. `Lines` speaks the qtest protocol, which can drive
interrupt lines; not every build of QEMU offers its `clock_step`, so nothing that depends on time is tested that way.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MACHINE = ["qemu-system-i386", "-M", "isapc", "-display", "none", "-nodefaults", "-serial", "null"]
RTC_BASE = "2023-12-30T23:58:30"
DONE_PORT = 0xF4


class In(NamedTuple):
    """Read a byte."""

    port: int


class Out(NamedTuple):
    """Write a byte."""

    port: int
    value: int


class Wait(NamedTuple):
    """Let so many instructions pass."""

    instructions: int


class InWords(NamedTuple):
    """Read words from one port: REP INSW."""

    port: int
    count: int
    shown: bool = True  # are they compared?


class OutWords(NamedTuple):
    """Write words to one port: their count, and then counting down to 1."""

    port: int
    count: int


class Until(NamedTuple):
    """Read a port until these bits are clear: QEMU's disk takes its time."""

    port: int
    bits: int


Script = list[In | Out | Wait | InWords | OutWords | Until]


def assemble(script: Script) -> bytes:
    """A 64 KiB BIOS that performs the script; each byte read goes to the debug port."""
    code = bytearray()
    for op in script:
        match op:
            case In(port):
                code += b"\xba" + port.to_bytes(2, "little") + b"\xec\xe6\xe9"  # mov dx, port; in al, dx; out 0xe9, al
            case Out(port, value):
                code += b"\xba" + port.to_bytes(2, "little") + bytes((0xB0, value, 0xEE))  # mov al, value; out dx, al
            case InWords(port, count, shown):
                show = b"\xe6\xe9\x88\xe0\xe6\xe9" if shown else b""  # out 0xe9, al; mov al, ah; out 0xe9, al
                code += b"\xba" + port.to_bytes(2, "little") + b"\xb9" + count.to_bytes(2, "little")  # mov dx; mov cx
                code += b"\xed" + show + b"\xe2" + bytes((253 - len(show),))  # in ax, dx; show; loop
            case OutWords(port, count):
                code += b"\xba" + port.to_bytes(2, "little") + b"\xb9" + count.to_bytes(2, "little")
                code += b"\x89\xc8\xef\xe2\xfb"  # mov ax, cx; out dx, ax; loop
            case Until(port, bits):
                code += b"\xba" + port.to_bytes(2, "little") + b"\xec\xa8" + bytes((bits,)) + b"\x75\xfb"
            case Wait(instructions):
                code += b"\x66\xb9" + (instructions - 1).to_bytes(4, "little") + b"\x67\xe2\xfd"  # mov ecx; loop
    code += bytes((0xE6, DONE_PORT, 0xFA, 0xF4))
    assert len(code) <= 0xFFF0, f"the script makes {len(code)} bytes of code, a BIOS holds {0xFFF0}"
    return code.ljust(0xFFF0, b"\x90") + b"\xe9\x0d\x00" + bytes(13)  # at reset: jump to the first byte


def times(script: Script, shift: int) -> list[int]:
    """When each operation's port access happens, in ns: the access counts as its instruction's end."""
    clock, result = 1, []  # the jump at reset
    for op in script:
        match op:
            case In():
                result.append(clock + 2 << shift)
                clock += 3
            case Out():
                result.append(clock + 3 << shift)
                clock += 3
            case Wait(instructions):
                result.append(clock << shift)
                clock += instructions
            case _:
                raise ValueError(f"how long {op} takes is not known")
    return result


def run(script: Script, shift: int, devices: Sequence[str] = ()) -> bytes:
    """What the reads of a script return, at 2**shift ns per instruction. `devices`: more of QEMU's arguments."""
    with tempfile.TemporaryDirectory() as directory:
        bios, log = Path(directory, "bios"), Path(directory, "log")
        bios.write_bytes(assemble(script))
        subprocess.run(
            [
                *MACHINE,
                *devices,
                *("-accel", "tcg", "-icount", f"shift={shift},sleep=off", "-bios", str(bios)),
                *("-rtc", f"base={RTC_BASE},clock=vm", "-debugcon", f"file:{log}"),
                *("-device", f"isa-debug-exit,iobase={DONE_PORT:#x},iosize=1"),
            ],
            timeout=60,
            check=False,  # the exit device always ends with an odd code
            stdin=subprocess.DEVNULL,
        )
        return log.read_bytes()


class Lines:
    """QEMU with its CPU stopped: port accesses and interrupt lines by qtest."""

    CHIPS = ("/machine/unattached/device[4]", "/machine/unattached/device[5]")  # of `-M isapc`

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [*MACHINE, "-S", "-qtest", "stdio", "-qtest-log", "none"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End QEMU."""
        self.process.kill()
        self.process.communicate()

    def ask(self, commands: list[str]) -> list[str]:
        """Send commands together, return their answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("".join(f"{command}\n" for command in commands))
        self.process.stdin.flush()
        answers = [self.process.stdout.readline().strip() for _ in commands]
        assert all(answer.startswith("OK") for answer in answers), answers
        return answers

    def line(self, number: int, level: bool) -> str:
        """The command that drives an input of the interrupt controllers."""
        return f"set_irq_in {self.CHIPS[number >> 3]} unnamed-gpio-in {number & 7} {int(level)}"
