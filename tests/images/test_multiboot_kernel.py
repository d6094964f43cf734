# SPDX-License-Identifier: GPL-2.0-or-later
"""Planning how Multiboot kernels and their modules come into memory: what holds for every plan, and each misfit."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.images.multiboot_kernel import MultibootPlan, find_header, plan

MIB = 1 << 20
MAGIC = 0x1BADB002
lenient = settings(max_examples=80, deadline=None)


def header(flags: int, *fields: int) -> bytes:
    """A Multiboot header."""
    return struct.pack(f"<{3 + len(fields)}I", MAGIC, flags, -(MAGIC + flags) & 0xFFFFFFFF, *fields)


def by_address(load: int = MIB, size: int = 0x1000, bss_end: int = 0, entry: int | None = None) -> bytes:
    """A kernel that says itself where it belongs."""
    return header(1 << 16, load, load, 0, bss_end, load + 32 if entry is None else entry).ljust(size, b"\xf4")


def planned(image: bytes, modules: list[tuple[bytes, str]] | None = None, memory: int = 16 * MIB) -> MultibootPlan:
    return plan(image, "kernel", None, modules or [], memory)


@given(
    load=st.integers(0, 17 * MIB),
    size=st.integers(64, 3 * MIB),
    bss=st.integers(0, 4 * MIB),
    modules=st.lists(st.tuples(st.integers(0, 2 * MIB), st.text("abc =", max_size=40)), max_size=5),
)
@lenient
def test_a_plan_fits_or_is_refused(load: int, size: int, bss: int, modules: list[tuple[int, str]]) -> None:
    """In every plan the pieces lie in RAM, apart from each other and from the kernel's zeros; else LabError."""
    image = by_address(load, size, load + size + bss)
    try:
        done = planned(image, [(bytes(length), text) for length, text in modules])
    except LabError:
        assume(False)
    areas = [(p.address, load + size + bss if p.what == "kernel" else p.end) for p in done.pieces]

    assert all(first[1] <= second[0] for first, second in itertools.pairwise(areas) if second[0] != second[1])
    assert all(end <= 0x9FC00 or (MIB <= begin and end <= 16 * MIB) for begin, end in areas)
    assert all(piece.address % 4096 == 0 for piece in done.pieces if piece.what == "module")


def test_the_information_says_what_is_there() -> None:
    """Memory, command line, modules with their texts, the map and the loader's name are where the fields point to."""
    done = plan(by_address(), "kernel", "quiet", [(b"one", "first x=1"), (b"two!", "second")], 32 * MIB)
    memory = bytearray(32 * MIB)
    for piece in done.pieces:
        memory[piece.address : piece.end] = piece.data

    def string(at: int) -> bytes:
        return bytes(memory[at : memory.index(0, at)])

    flags, lower, upper, _, line, count, mods = struct.unpack_from("<7I", memory, done.info)
    length, at = struct.unpack_from("<2I", memory, done.info + 44)
    regions = [struct.unpack_from("<IQQI", memory, at + 24 * i) for i in range(length // 24)]
    assert flags & 0b1001001101 == 0b1001001101
    assert (640, 31 * 1024, b"quiet") == (lower, upper, string(line))
    found = [struct.unpack_from("<3I", memory, mods + 16 * i) for i in range(count)]
    assert [b"one", b"two!"] == [bytes(memory[begin:end]) for begin, end, _ in found]
    assert [b"first x=1", b"second"] == [string(text) for _, _, text in found]
    assert [(20, 0, 640 << 10, 1), (20, MIB, 31 * MIB, 1)] == regions
    assert b"l4lab" == string(struct.unpack_from("<I", memory, done.info + 64)[0])


def test_an_elf_kernel_lies_and_is_entered_where_its_segments_say(make_elf: Callable[..., bytes]) -> None:
    """Is a kernel that is linked to high addresses put to its physical ones, and entered there?"""
    elf = bytearray(make_elf(header(0).ljust(64, b"\xf4"), paddr=0x200000))
    struct.pack_into("<I", elf, 24, 0xC0200000 + 12)  # e_entry, a virtual address
    done = planned(bytes(elf))

    assert 0x20000C == done.entry
    assert [0x200000] == [piece.address for piece in done.pieces if piece.what == "kernel"]


def test_an_entry_may_be_a_physical_address(make_elf: Callable[..., bytes]) -> None:
    """Is an entry that is in no segment by its virtual addresses, but in one by its physical ones, taken as it is?"""
    elf = bytearray(make_elf(header(0).ljust(64, b"\xf4"), paddr=0x200000))
    struct.pack_into("<I", elf, 24, 0x20000C)

    assert 0x20000C == planned(bytes(elf)).entry
    struct.pack_into("<I", elf, 24, 0x20000C + 64)
    with pytest.raises(LabError, match="entered at 0x20004c, where it has nothing"):
        planned(bytes(elf))


@pytest.mark.parametrize("before", [0, 4, 31, 4096, 8192 - 12])
def test_a_header_may_lie_anywhere_in_the_first_8_kib(before: int) -> None:
    """Wherever the header is, and behind a stray magic number: does the kernel lie and begin where it says?"""
    stray = struct.pack("<3I", MAGIC, 7, 7)[: before // 12 * 12]
    fields = (MIB + before, MIB, 0, 0, MIB + before + 32)
    image = stray.ljust(before, b"\x90") + header(1 << 16, *fields) + b"\xf4" * 64
    done = planned(image)

    assert MIB + before + 32 == done.entry
    assert [image] == [piece.data for piece in done.pieces if piece.what == "kernel"]
    if before == 8192 - 12:
        assert find_header(b"\x90" + image) is None


def test_a_header_need_not_be_loaded() -> None:
    """Does a kernel begin behind its header, as GRUB lets it; and is a header on a multiple of four preferred?"""
    image = header(1 << 16, MIB - 32, MIB, 0, 0, MIB) + b"\xf4" * 64
    done = planned(image)
    shifted = b"\x90" + header(1 << 16) + bytes(3) + image

    assert [b"\xf4" * 64] == [piece.data for piece in done.pieces if piece.what == "kernel"]
    found = find_header(shifted)
    assert found is not None
    assert 16 == found.offset


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (b"nothing", "no Multiboot header"),
        (header(1 << 3), "demands what no Multiboot loader knows .flags 0x8"),
        (header(1 << 16, MIB + 4, MIB, 0, 0, MIB), "outside of the file"),
        (header(1 << 16, MIB - 64, MIB, 0, 0, MIB), "outside of the file"),
        (header(1 << 16, MIB, MIB, 2 * MIB, 0, MIB), "outside of the file"),
        (by_address(entry=5), "an entry at 0x5, outside"),
        (by_address(load=0x9F000), "where a PC has its adapters"),
        (by_address(bss_end=64 * MIB), "such as --memory 128"),
        (by_address(bss_end=0xFFFFFFFF), "at most"),
        (header(0).ljust(64), "not an ELF executable"),
    ],
)
def test_a_misfit_is_told(image: bytes, told: str) -> None:
    """Does each kernel that cannot be booted say why?"""
    with pytest.raises(LabError, match=told):
        planned(image)


def test_modules_that_do_not_fit_are_told() -> None:
    """Is it said how much memory the modules take?"""
    with pytest.raises(LabError, match="kernel with its modules needs 18 MiB.*--memory 36"):
        planned(by_address(), [(bytes(16 * MIB), "large")])


@given(st.binary(min_size=20, max_size=200), st.integers(0, 0x10007))
@lenient
def test_any_header_is_planned_or_refused(noise: bytes, flags: int) -> None:
    """Does a kernel whose header is followed by noise raise nothing but a LabError?"""
    image = header(flags) + noise

    assert find_header(image) is not None
    with contextlib.suppress(LabError):
        planned(image)
