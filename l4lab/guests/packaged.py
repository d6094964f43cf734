# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are one file of one Debian package: kernels, boot disks and firmware that are not Linux.

Each is kept in the cache under its package's version. What of them works in the lab's virtual machines, and what does
not, is told in `docs/what-boots.md`.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from l4lab import cache
from l4lab.errors import LabError
from l4lab.guests.debian import Archive, Report

ARCHITECTURE: Final = "i386"


@dataclass(frozen=True, slots=True)
class Packaged:
    """A guest, and where Debian has it."""

    name: str
    package: str  # a pattern for the whole name
    file: str  # inside of it
    description: str
    append: str | None = None  # the command line with which it uses the serial console


PACKAGED: Final = (
    Packaged(
        *("memtest86+", r"memtest86\+", "boot/memtest86+ia32.bin", "Memtest86+ 6, a memory tester"),
        append="console=ttyS0,115200",
    ),
    Packaged("ipxe", "ipxe", "boot/ipxe.lkrn", "iPXE, a network boot loader, with its shell"),
    Packaged(
        *("grub", "grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-floppy.img"),
        "GRUB 2 on a rescue diskette, with its shell",
    ),
    Packaged("seabios", "seabios", "usr/share/seabios/bios.bin", "SeaBIOS, a BIOS for emulated PCs"),
    Packaged("invaders", "grub-invaders", "boot/invaders.exec", "Invaders, a game that is a Multiboot kernel"),
    Packaged(
        *("gnumach", r"gnumach-image-[0-9]+\.[0-9]+-486", "boot/gnumach-*.gz", "GNU Mach, the Hurd's microkernel"),
        append="console=com0",
    ),
)
NAMES: Final = tuple(packaged.name for packaged in PACKAGED)


@dataclass(frozen=True, slots=True)
class Image:
    """A packaged guest that is here and ready to boot."""

    name: str
    version: str
    file: Path
    append: str | None


def here(packaged: Packaged) -> Image | None:
    """The newest version in the cache."""
    files = sorted(_directory(packaged).glob("[!.]*/image"), key=lambda file: _numbers(file.parent.name))
    if not files:
        return None
    return Image(packaged.name, files[-1].parent.name, files[-1], packaged.append)


def get(name: str, report: Report = lambda line: None) -> Image:
    """The guest of that name, from the cache or obtained now; `report` is told what is going on."""
    packaged = next(packaged for packaged in PACKAGED if packaged.name == name)
    try:
        return here(packaged) or _obtain(packaged, report)
    except OSError as error:
        raise cache.unwritable(error) from error


def _obtain(packaged: Packaged, report: Report) -> Image:
    archive = Archive(cache.root() / "apt", ARCHITECTURE, report)
    archive.update()
    package = archive.newest(packaged.package)
    version = archive.version(package)
    with cache.new_directory(_directory(packaged) / version) as draft:
        root = archive.download(package, draft)
        found = sorted(root.glob(packaged.file))
        if not found:
            raise LabError(f"{package} {version} has no {packaged.file}; tell the lab's authors")
        found[0].rename(draft / "image")
        shutil.rmtree(root)
    image = here(packaged)
    assert image is not None, "what was just put into the cache is not there"
    report(f"{packaged.name} {version} is ready in {image.file.parent}")
    return image


def _directory(packaged: Packaged) -> Path:
    return cache.root() / "guests" / packaged.name


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
