# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kind of image a file holds, told by its contents. What is done with each kind is in the modules beside.

A flat image is any bytes at all, so nothing tells it: it has to be named.
"""

from __future__ import annotations

import zlib
from enum import Enum
from typing import Final

from l4lab.errors import LabError
from l4lab.images import bzimage, diskette, elf, multiboot_kernel
from l4lab.images.diskette import SECTOR


class Kind(Enum):
    """The kinds of image that a guest can begin with."""

    LINUX = "linux"
    MULTIBOOT = "multiboot"
    FLAT = "flat"
    BOOTSECTOR = "bootsector"
    DISKETTE = "diskette"
    BIOS = "bios"


AUTO: Final = "auto"
NAMES: Final = (AUTO, *(kind.value for kind in Kind))

BOOT_SIGNATURE: Final = b"\x55\xaa"  # the last two bytes of a boot sector
BIOS_SIZES: Final = (64 << 10, 128 << 10, 256 << 10)
RESET_OFFSET: Final = 16  # bytes before the end of a BIOS, where the CPU begins: room for a jump
_JUMPS: Final = (b"\xea", b"\xe9", b"\xeb")  # JMP far, near, short

_GZIP: Final = b"\x1f\x8b"
_LARGEST_UNPACKED: Final = 256 << 20


def parse(name: str) -> Kind | None:
    """The kind of this name; None is for `auto`."""
    if name not in NAMES:
        raise LabError(f"there is no kind of image {name!r}; there is: {', '.join(NAMES)}")
    return None if name == AUTO else Kind(name)


def recognise(image: bytes, name: str) -> Kind:
    """The kind of an image; a LabError for what fits none says what it is instead, as far as that can be told.

    A disk is a disk, even if a Multiboot kernel lies among its first sectors: that one its own loader will find.
    """
    if is_linux(image):
        return Kind.LINUX
    if multiboot_kernel.is_whole_kernel(image):
        return Kind.MULTIBOOT
    if image[SECTOR - 2 : SECTOR] == BOOT_SIGNATURE:
        geometry = diskette.told_by_contents(image[:SECTOR], len(image))
        return Kind.BOOTSECTOR if geometry is None else Kind.DISKETTE
    if multiboot_kernel.find_header(image) is not None:
        return Kind.MULTIBOOT
    if is_bios(image):
        return Kind.BIOS
    raise LabError(f"{name} is {_what_else(image)}; {_WHAT_BOOTS}")


def unpacked(image: bytes, name: str) -> bytes:
    """The image; if it is a gzip file, as boot loaders take kernels, then what is in it."""
    if not image.startswith(_GZIP):
        return image
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        data = decompressor.decompress(image, _LARGEST_UNPACKED)
    except zlib.error as error:
        raise LabError(f"{name} is damaged: its gzip data does not unpack ({error}); get the file again") from error
    if not decompressor.eof:
        raise LabError(f"{name} is cut short, or unpacks to more than {_LARGEST_UNPACKED >> 20} MiB; get it again")
    return data


def is_linux(image: bytes) -> bool:
    """Does it have the header of a Linux kernel for PCs?"""
    return image[SECTOR - 2 : SECTOR] == BOOT_SIGNATURE and image[0x202:0x206] == bzimage.MAGIC


def is_bios(image: bytes) -> bool:
    """Is it as large as a BIOS, with a jump where the CPU begins?"""
    return len(image) in BIOS_SIZES and image[-RESET_OFFSET:][:1] in _JUMPS


_WHAT_BOOTS: Final = (
    "what boots is a 32-bit bzImage, a Multiboot 1 kernel, a disk with a boot sector, a BIOS, "
    "or any code with --kind flat"
)


def _what_else(image: bytes) -> str:
    if not image:
        return "empty"
    if image.startswith(elf.MAGIC):
        return "an ELF file without a Multiboot header (for a native L4 program: l4lab exec)"
    if image.startswith(b"MZ"):
        return "a program for DOS, Windows or EFI"
    if image[0x8001:0x8006] == b"CD001":
        return "the image of a CD that has no boot sector for disks"
    if b"\xd6\x50\x52\xe8" in image[:32768]:
        return "a Multiboot 2 kernel"
    return "not a Linux kernel, nor any other kind of image that can be told by its contents"
