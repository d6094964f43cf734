# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux guest as obtained. The oracle is QEMU: kernel and initrd boot there, so they are what we say they are."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from l4lab.guests import guest, initrd
from l4lab.guests.guest import Guest
from l4lab.images import bzimage

PROMPT = "/ # "
PATIENCE = 120.0  # seconds; some 5 are needed


class Console:
    """QEMU's serial line on a pipe."""

    def __init__(self, linux: Guest) -> None:
        machine = ["qemu-system-i386", "-accel", "tcg", "-nographic", "-nic", "none", "-m", "128"]
        image = ["-kernel", str(linux.kernel), "-initrd", str(linux.initrd), "-append", linux.append]
        self.process = subprocess.Popen([*machine, *image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.deadline = time.monotonic() + PATIENCE

    def read_until(self, text: str) -> str:
        """All that comes up to and including this text."""
        assert self.process.stdout is not None
        seen = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while text.encode() not in seen:
                left = max(0.0, self.deadline - time.monotonic())
                assert selector.select(left), f"no {text!r} in {seen.decode(errors='replace')[-2000:]}"
                seen += os.read(self.process.stdout.fileno(), 4096)
        return seen.decode(errors="replace")

    def type(self, line: str) -> None:
        """Type a line and Enter."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")


@pytest.fixture
def console(linux: Guest) -> Iterator[Console]:
    """The guest in QEMU, switched on."""
    console = Console(linux)
    yield console
    console.process.kill()
    console.process.wait()


def test_the_guest_boots_to_a_usable_shell_and_halts(console: Console) -> None:
    """One banner, then a prompt; commands, /proc, /sys and devices work; `exit` ends in an orderly halt."""
    boot = console.read_until(PROMPT)
    assert boot.count(initrd.BANNER) == 1

    console.type("echo $((6 * 7)) `uname -m` `ls /sys/class/tty | grep -c S0` `tty` && cat /proc/1/comm")
    answer = console.read_until(PROMPT)
    console.type("exit")

    assert "42 i686 1 /dev/ttyS0\r\ninit\r\n" in answer
    assert console.read_until("reboot: System halted")


def test_control_c_and_poweroff_work(console: Console) -> None:
    """The shell has the serial line as its own terminal, so Ctrl-C reaches what runs; `poweroff -f` ends it."""
    console.read_until(PROMPT)
    console.type("sh -c 'echo sleeping; exec sleep 1000'")  # who says so is in the foreground by then
    console.read_until("sleeping\r\n")
    console.type("\x03")
    console.read_until(PROMPT)
    console.type("poweroff -f")

    assert console.read_until("reboot: System halted")


def test_the_kernel_is_the_one_without_pae(linux: Guest) -> None:
    """Its page tables have two levels, as the machine's nested ones."""
    version = bzimage.parse(linux.kernel.read_bytes()).version

    assert "-686 " in version
    assert "pae" not in version


def test_a_second_time_nothing_is_fetched(linux: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache needs neither apt nor a network."""
    monkeypatch.setenv("PATH", "/nonexistent")
    said: list[str] = []

    assert linux == guest.get("linux", said.append)
    assert not said


def test_only_complete_versions_remain(linux: Guest) -> None:
    """No draft, package or unpacked tree is left beside the guest's files."""
    directory = linux.kernel.parent

    assert [directory] == list(directory.parent.iterdir())
    assert {"busybox", "vmlinuz", guest.DRIVERS, linux.initrd.name} == {file.name for file in directory.iterdir()}


def test_the_initrd_is_the_same_each_time(linux: Guest) -> None:
    """The same BusyBox makes the same bytes, so two people boot the same guest."""
    busybox = (linux.kernel.parent / "busybox").read_bytes()

    assert linux.initrd.read_bytes() == initrd.linux_initrd(busybox)


def test_an_outdated_initrd_is_made_anew(linux: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After our recipe changed, the initrd is rebuilt from the BusyBox that is there."""
    version = tmp_path / "guests" / "linux" / linux.version
    version.mkdir(parents=True)
    for name in ("vmlinuz", "busybox", guest.DRIVERS):
        (version / name).symlink_to(linux.kernel.parent / name)
    monkeypatch.setenv("L4LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(initrd, "INIT", initrd.INIT + "# changed\n")

    changed = guest.get("linux")

    assert linux.initrd.name != changed.initrd.name
    assert linux.initrd.read_bytes() != changed.initrd.read_bytes()
