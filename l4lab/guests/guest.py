# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests the lab knows by name: which there are, whether they are here, and how one is obtained.

To obtain one takes a network and some minutes the first time, and nothing afterwards: what `debian.py` and
`initrd.py` make is kept under the package's version. Nothing here looks into a kernel image.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from l4lab import cache
from l4lab.errors import LabError
from l4lab.guests import packaged
from l4lab.guests.debian import Archive, Report
from l4lab.guests.drivers import disk_archive
from l4lab.guests.initrd import linux_initrd, recipe

ARCHITECTURE = "i386"
KERNEL_PACKAGE = r"linux-image-6\.1\.0-[0-9]+-686-unsigned"  # the one without PAE: its page tables have two levels

LINUX_APPEND = (
    "console=ttyS0 nokaslr noapic nolapic nosmp mitigations=off acpi=off pci=off lpj=400000 tsc=reliable "
    "cryptomgr.notests=1 i8042.noaux i8042.nokbd panic=-1"
)
"""Kernel parameters for the machine the monitor emulates: a serial line, one processor, and neither PCI nor ACPI."""

LINUX_SCREEN_APPEND = LINUX_APPEND.replace("console=ttyS0", "console=ttyS0 console=tty0").replace(" i8042.nokbd", "")
"""The same for a guest whose console is its screen and keyboard; what the kernel says is on the serial line as well."""

DRIVERS = "disk-drivers.cpio.gz"

BY_HAND = "by-hand"
"""The version under which files that someone put into the cache themselves are found, before any other."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that is here and ready to boot."""

    name: str
    version: str
    kernel: Path
    initrd: Path
    append: str
    drivers: Path | None  # an archive to go behind the initrd, with what the guest needs for a disk


@dataclass(frozen=True, slots=True)
class Listed:
    """A guest the lab knows, whether it is here or not."""

    name: str
    description: str
    here: Guest | None


def listed() -> list[Listed]:
    """Every guest that `get` knows; those that are a single file are in `packaged`."""
    return [Listed("linux", "Debian's Linux 6.1 for 32-bit PCs with a BusyBox shell", _linux_here())]


def get(name: str, report: Report = lambda line: None) -> Guest:
    """The guest of that name, from the cache or obtained now; `report` is told what is going on."""
    if name not in (names := [guest.name for guest in listed()]):
        raise LabError(f"there is no guest named {name!r}; there is: {', '.join((*names, *packaged.NAMES))}")
    try:
        return _linux_here() or _obtain_linux(report)
    except OSError as error:
        raise cache.unwritable(error) from error


def _linux_directory() -> Path:
    return cache.root() / "guests" / "linux"


def _linux_here() -> Guest | None:
    """The newest complete version in the cache, its initrd brought up to date with our recipe."""
    by_hand = _linux_directory() / BY_HAND
    if (by_hand / "vmlinuz").is_file() and (by_hand / "initrd").is_file():
        return Guest("linux", BY_HAND, by_hand / "vmlinuz", by_hand / "initrd", LINUX_APPEND, drivers_of(by_hand))
    versions = sorted(_linux_directory().glob(f"[!.]*/{DRIVERS}"), key=lambda file: _numbers(file.parent.name))
    if not versions:
        return None
    directory = versions[-1].parent
    initrd = directory / f"initrd-{recipe()}.cpio.gz"
    if not initrd.is_file():
        for outdated in directory.glob("initrd-*"):
            outdated.unlink()
        cache.write(initrd, linux_initrd((directory / "busybox").read_bytes()))
    return Guest("linux", directory.name, directory / "vmlinuz", initrd, LINUX_APPEND, drivers_of(directory))


def drivers_of(directory: Path) -> Path | None:
    """The drivers that lie beside a kernel."""
    file = directory / DRIVERS
    return file if file.is_file() else None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _obtain_linux(report: Report) -> Guest:
    by_hand = _linux_directory() / BY_HAND
    try:
        archive = Archive(cache.root() / "apt", ARCHITECTURE, report)
        archive.update()
        package = archive.newest(KERNEL_PACKAGE)
        version = archive.version(package)
        final = _linux_directory() / version
        with cache.new_directory(final) as draft:
            kernel = archive.download(package, draft)
            (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
            vmlinuz.rename(draft / "vmlinuz")
            cache.write(draft / DRIVERS, disk_archive(kernel))
            shutil.rmtree(kernel)
            busybox = archive.download("busybox-static", draft)
            (busybox / "bin" / "busybox").rename(draft / "busybox")
            shutil.rmtree(busybox)
            for file in draft.iterdir() if final.is_dir() else ():  # obtained by a lab that had no use for drivers
                cache.write(final / file.name, file.read_bytes())
    except LabError as error:
        raise LabError(
            f"cannot obtain Linux: {error}. To do without apt, put a 32-bit kernel and an initrd there as "
            f"{by_hand / 'vmlinuz'} and {by_hand / 'initrd'}, or name yours: l4lab boot KERNEL --initrd FILE"
        ) from error
    guest = _linux_here()
    assert guest is not None, "what was just put into the cache is not there"
    report(f"linux {guest.version} is ready in {guest.kernel.parent}")
    return guest
