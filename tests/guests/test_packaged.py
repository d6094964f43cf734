# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels, boot disks and firmware that Debian packages, unmodified, in the lab's virtual machines.

What each of them does, and what it does not, is told in docs/what-boots.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from l4lab.guests import packaged
from l4lab.rig.booting import Options, guest_program
from l4lab.rig.rig import Rig
from l4lab.rig.session import Script, Session, Status
from l4lab.user.monitor.outcome import End

MIB = 1 << 20
PATIENCE = 200.0  # seconds; most need a few
SCREEN = 0xB8000


def booted(name: str, initrd: bytes | None = None, append: str | None = None, memory: int = 64 * MIB) -> Rig:
    """The guest of this name, obtained if need be, before its first instruction."""
    image = packaged.get(name)
    options = Options(initrd=initrd, append=append or image.append)
    return Rig.for_guest(guest_program(image.file.read_bytes(), image.file.name, None, options, memory))


def session(rig: Rig, until: str | None = None, sends: tuple[str, ...] = ()) -> Status:
    return Session(rig, Script.parse(until, sends, PATIENCE)).run().status


def run_until(rig: Rig, enough: Callable[[], bool]) -> None:
    """Run for a fiftieth of a second at a time."""
    deadline = time.monotonic() + PATIENCE
    while not enough():
        stop = rig.run(20_000_000)
        assert not stop.finished, stop
        assert time.monotonic() < deadline


def screen(rig: Rig) -> str:
    """The characters on the guest's text screen."""
    assert rig.guest is not None
    if rig.guest.monitor is None:
        return ""  # it has not begun
    return rig.guest.monitor.memory.read(SCREEN, 4000)[::2].decode("cp437")


def test_grub_shows_its_menu_has_a_shell_and_turns_the_machine_off() -> None:
    """Does GRUB come up from its diskette, take commands from the keyboard, read that disk, and end by the BIOS?"""
    rig = booted("grub")
    said = session(rig, sends=("automatically in=>c", "grub> =>ls", r"\(hd0\)[^>]*grub> =>halt"))

    assert Status.ENDED is said
    assert "GNU GRUB  version 2" in rig.console.decode(errors="replace")
    assert rig.outcome is not None
    assert End.POWERED_OFF is rig.outcome.end


def test_seabios_finds_a_machine_without_pci_and_nothing_to_boot() -> None:
    """Does SeaBIOS find memory, timer, keyboard and serial port, and try its boot devices?"""
    rig = booted("seabios")

    assert Status.MATCHED is session(rig, "No bootable device")
    said = rig.console.decode(errors="replace")
    for line in ("RamSize: 0x04000000", "Detected non-PCI system", "CPU Mhz=1000", "Found 1 serial ports"):
        assert line in said
    assert "PS2 keyboard initialized" in said


def test_gnu_mach_finds_its_memory_and_probes_for_devices() -> None:
    """Does a packed Multiboot kernel of thirty years' standing turn on paging and print to its serial console?"""
    rig = booted("gnumach")

    assert Status.MATCHED is session(rig, "pci_init: no BIOS32 detected")
    assert "000000000000100000:000000000004000000, available" in rig.console.decode()


def test_the_invaders_come() -> None:
    """Does the game draw its rows of invaders on the text screen?"""
    rig = booted("invaders")
    run_until(rig, lambda: screen(rig).count("-*-") >= 20)

    assert rig.outcome is None


def test_memtest_shows_its_screen() -> None:
    """Does Memtest86+ measure the clock, find the memory, and name the CPU?"""
    rig = booted("memtest86+", append="nosmp")
    run_until(rig, lambda: "<Enter> to start" in screen(rig))

    for text in ("Memtest86+ v6", "CLK/Temp: 1000MHz", "Memory  :   64MB", "virtual CPU"):
        assert text in screen(rig)


def test_ipxe_runs_a_script() -> None:
    """Does iPXE come up by its setup code, and do what a script says that it finds as its initrd?"""
    rig = booted("ipxe", initrd=b"#!ipxe\necho hello from a script\n", memory=128 * MIB)
    said = session(rig, "hello from a script")

    assert Status.MATCHED is said
    assert "Open Source Network Boot Firmware" in rig.console.decode(errors="replace")


@pytest.mark.parametrize("name", packaged.NAMES)
def test_a_guest_once_obtained_is_here(name: str) -> None:
    """Is the image in the cache, and obtained from there without the network the second time?"""
    first = packaged.get(name)

    assert first == packaged.get(name)
    assert first.file.is_file()
