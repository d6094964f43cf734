# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels, boot disks and firmware that Debian packages, unmodified, in the lab's virtual machines.

What each of them does, and what it does not, is told in docs/what-boots.md.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

from l4lab.guests import guest, packaged
from l4lab.images import cpio
from l4lab.rig.booting import Options, disk_program, guest_program
from l4lab.rig.rig import Rig
from l4lab.rig.session import Script, Session, Status
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.outcome import End
from tests.user.monitor.realmode import END, SECTOR, boot_disk, on_the_lab, report

pytestmark = pytest.mark.linux

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


SECTORS = """
        mov     ah, 0x42
        mov     si, packet
        int     0x13
        mov     ax, [0x2200]
        call    show
        mov     ax, 0x0301
        mov     bx, 0x2200
        mov     cx, 0x0021
        mov     dh, 0
        int     0x13
        mov     ax, 0x0201
        mov     bx, 0x3000
        mov     cx, 0x0021
        int     0x13
        mov     ax, [0x3000]
        call    show
        mov     ah, 8
        int     0x13
        mov     ax, cx
        and     ax, 63                      ; SeaBIOS keeps the last cylinder to itself
        call    show
        mov     ax, dx
        call    show
        jmp     ending
        .align  4
packet: .byte   16, 0
        .word   3, 0x2000, 0
        .quad   1234"""  # reads by number, writes and reads by cylinder and head, asks for the geometry


def test_seabios_boots_the_disk_as_the_labs_bios_does() -> None:
    """Does a BIOS of somebody else's find the disk behind its controller, and tell a boot sector the same of it?"""
    disk = boot_disk(SECTORS)
    image = packaged.get("seabios").file.read_bytes()
    program = guest_program(image, "bios.bin", None, Options(), 64 * MIB)
    program.hardware = Hardware(disk=disk)
    by_seabios = Rig.for_guest(program)

    assert Status.MATCHED is session(by_seabios, END)
    assert report(on_the_lab(disk).console.decode("latin-1")) == report(by_seabios.console.decode("latin-1"))
    assert "L4LAB DISK ATA-6 Hard-Disk" in by_seabios.console.decode("latin-1")


def test_grub_starts_linux_from_the_disk() -> None:
    """Does GRUB come up from the guest's only disk, read a kernel from its partition, and does Linux begin to run?"""
    archive = cpio.pack({"vmlinuz": cpio.File(guest.get("linux").kernel.read_bytes())})
    first, sectors = 4096, -(-len(archive) // SECTOR)
    disk = bytearray(packaged.get("grub").file.read_bytes().ljust(first * SECTOR, b"\0"))
    disk += archive.ljust(sectors * SECTOR, b"\0")
    struct.pack_into("<B3xB3xII", disk, 0x1CE, 0, 0x83, first, sectors)  # the partition table's second entry
    rig = Rig.for_guest(disk_program(bytes(disk), "disk", None, Options(), 64 * MIB))
    said = session(
        rig,
        "Probing EDD .*ok",  # so says its setup code, of what the BIOS tells about disks
        (
            "automatically in=>c",
            r"grub> =>insmod newc",
            r"newc\s+grub> =>linux16 (hd0,msdos2)/vmlinuz",
            "z\\s+grub> =>boot",
        ),
    )

    assert Status.MATCHED is said


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
    """Does iPXE come up by its setup code, and do what a script says that it finds as its initrd?

    In so little memory its scratch area is where an initrd would lie.
    """
    rig = booted("ipxe", initrd=b"#!ipxe\necho hello from a script\n")
    said = session(rig, "hello from a script")

    assert Status.MATCHED is said
    assert "Open Source Network Boot Firmware" in rig.console.decode(errors="replace")


@pytest.mark.parametrize("name", packaged.NAMES)
def test_a_guest_once_obtained_is_here(name: str) -> None:
    """Is the image in the cache, and obtained from there without the network the second time?"""
    first = packaged.get(name)

    assert first == packaged.get(name)
    assert first.file.is_file()
