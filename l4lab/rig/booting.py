# SPDX-License-Identifier: GPL-2.0-or-later
"""From the contents of an image file to the program that runs it as a guest: what `l4lab boot` does.

Lives here: which kind of image takes which options, and who plans and runs it. How images are told apart and laid out
is in `images`; what a guest of each kind starts with, beside the monitor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from l4lab.devices.disk import Image
from l4lab.errors import LabError
from l4lab.images import bzimage, flat_image, linux, multiboot_kernel
from l4lab.images.kinds import Kind, is_linux, recognise, unpacked
from l4lab.rig.loader import Module
from l4lab.user.monitor import realmode, start_flat, start_linux, start_multiboot
from l4lab.user.monitor.monitor import GuestProgram


@dataclass(frozen=True, slots=True)
class Options:
    """What may be given along with an image; None is for what was not given."""

    initrd: bytes | None = None
    append: str | None = None  # the kernel's command line
    module: Sequence[Module] | None = None
    load: int | None = None  # the address of a flat image
    screen: bool = False  # whoever can is told that there is one

    def given(self) -> list[str]:
        """The names of those that were given."""
        return [
            field.name for field in fields(self) if field.name != "screen" and getattr(self, field.name) is not None
        ]


TAKES: Final[Mapping[Kind, frozenset[str]]] = {
    Kind.LINUX: frozenset({"initrd", "append"}),
    Kind.MULTIBOOT: frozenset({"append", "module"}),
    Kind.FLAT: frozenset({"load"}),
    Kind.BOOTSECTOR: frozenset(),
    Kind.DISKETTE: frozenset(),
    Kind.BIOS: frozenset(),
}


def guest_program(image: bytes, name: str, kind: Kind | None, options: Options, memory: int) -> GuestProgram:
    """A monitor program that boots an image, of a kind that is told by its contents unless it is given."""
    if kind is not Kind.FLAT:
        image = unpacked(image, name)
    kind = kind or recognise(image, name)
    _check_options(options, kind, name)
    match kind:
        case Kind.LINUX if is_linux(image) and not bzimage.has_payload(image):
            return realmode.setup_code(image, name, options.initrd, options.append or "", memory)
        case Kind.LINUX:
            plan = linux.plan(bzimage.parse(image, name), options.initrd, options.append or "", memory, options.screen)
            return start_linux.program(plan, memory)
        case Kind.MULTIBOOT:
            modules = [(unpacked(module.data, module.name), module.command_line) for module in options.module or ()]
            return start_multiboot.program(multiboot_kernel.plan(image, name, options.append, modules, memory), memory)
        case Kind.FLAT:
            load = flat_image.DEFAULT_LOAD if options.load is None else options.load
            return start_flat.image_program(flat_image.plan(image, name, load, memory), memory)
        case Kind.BOOTSECTOR:
            return realmode.boot_sector(image, name, memory)
        case Kind.DISKETTE:
            return realmode.diskette(image, name, memory)
        case Kind.BIOS:
            return realmode.bios_image(image, name, memory)


def disk_program(disk: Image, name: str, kind: Kind | None, options: Options, memory: int) -> GuestProgram:
    """A monitor program that boots the guest's own disk, of which only what is read takes memory."""
    if kind not in (None, Kind.BOOTSECTOR):
        raise LabError(f"{name} is the guest's disk, and --kind {kind.value} is for an image; give one, or no --kind")
    _check_options(options, Kind.BOOTSECTOR, name)
    return realmode.boot_sector(disk, name, memory)


def _check_options(options: Options, kind: Kind, name: str) -> None:
    for option in options.given():
        if option not in TAKES[kind]:
            takers = ", ".join(sorted(other.value for other in Kind if option in TAKES[other]))
            raise LabError(f"--{option} is for images of kind {takers}, and {name} is booted as {kind.value}")
