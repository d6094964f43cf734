# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling images apart by their contents, and what is said of those that are none."""

from __future__ import annotations

import contextlib
import gzip
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.cli.boot import KINDS
from l4lab.errors import LabError
from l4lab.images import kinds
from l4lab.images.kinds import Kind, recognise
from l4lab.user.guests import greeting
from l4lab.user.guests.flat import multiboot_image

BOOT_SECTOR = bytes(510) + b"\x55\xaa"
BIOS = bytes(0xFFF0) + b"\xea\x5b\xe0\x00\xf0" + bytes(11)


def test_each_kind_is_recognised(make_bzimage: Callable[..., bytes]) -> None:
    """Are a bzImage, a Multiboot kernel, disks and a BIOS what they are, also where two signatures are there?"""
    multiboot = multiboot_image(greeting.build())

    assert Kind.LINUX is recognise(make_bzimage(), "it")
    assert Kind.MULTIBOOT is recognise(multiboot, "it")
    assert Kind.BOOTSECTOR is recognise(BOOT_SECTOR, "it")
    assert Kind.BOOTSECTOR is recognise(BOOT_SECTOR + bytes(65536 - 512), "it")
    assert Kind.BIOS is recognise(BIOS, "it")


def test_a_disk_with_a_kernel_on_it_is_a_disk(make_elf: Callable[..., bytes]) -> None:
    """Is an image with 55 AA a Multiboot kernel only if that kernel begins with the file, and not somewhere in it?"""
    header = struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    kernel = multiboot_image(greeting.build())
    signed = bytearray(make_elf(header.ljust(1024, b"\xf4")))
    signed[510:512] = b"\x55\xaa"
    raw = bytearray(kernel.ljust(512, b"\0"))
    raw[510:512] = b"\x55\xaa"

    assert [Kind.MULTIBOOT] * 2 == [recognise(bytes(image), "it") for image in (signed, raw)]
    for on_disk in (kernel, header, make_elf(header.ljust(1024, b"\xf4"))):
        assert Kind.BOOTSECTOR is recognise(BOOT_SECTOR + on_disk, "it")


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (b"", "empty"),
        (b"\x7fELF" + bytes(1000), "an ELF file without a Multiboot header.*l4lab exec"),
        (b"MZ" + bytes(1000), "a program for DOS, Windows or EFI"),
        (bytes(0x8001) + b"CD001" + bytes(1000), "the image of a CD"),
        (struct.pack("<I", 0xE85250D6) + bytes(1000), "a Multiboot 2 kernel"),
        (bytes(65536), "not a Linux kernel, nor any other kind"),
        (struct.pack("<3I", 0x1BADB002, 0, 1), "not a Linux kernel, nor any other kind"),  # a wrong checksum
        (bytes(8192) + struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF), "not a Linux kernel"),  # too late
    ],
)
def test_what_is_none_is_told(image: bytes, what: str) -> None:
    """Does the message say what it looks like, and what would boot?"""
    with pytest.raises(LabError, match=f"thing is {what}.*--kind flat"):
        recognise(image, "thing")


@given(st.binary(max_size=1024))
def test_any_bytes_are_told_or_refused(image: bytes) -> None:
    """Do random bytes, packed ones as well, never do more than raise a LabError?"""
    for data in (image, b"\x1f\x8b" + image, gzip.compress(image)[:-4]):
        with contextlib.suppress(LabError):
            recognise(kinds.unpacked(data, "noise"), "noise")


def test_a_gzip_file_is_unpacked() -> None:
    """Is a packed kernel what is in it, and a damaged or truncated one refused?"""
    packed = gzip.compress(BOOT_SECTOR)

    assert BOOT_SECTOR == kinds.unpacked(packed, "it")
    with pytest.raises(LabError, match="cut short"):
        kinds.unpacked(packed[:-9], "it")
    with pytest.raises(LabError, match="damaged"):
        kinds.unpacked(packed[:-8] + bytes(8), "it")


def test_kinds_have_names() -> None:
    """Is each kind known by its name, to the command line too, and no other?"""
    assert KINDS == kinds.NAMES
    assert [None, *Kind] == [kinds.parse(name) for name in kinds.NAMES]
    with pytest.raises(LabError, match="no kind of image 'floppy'; there is: auto, linux, multiboot"):
        kinds.parse("floppy")
