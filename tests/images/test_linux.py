# SPDX-License-Identifier: GPL-2.0-or-later
"""Planning how Linux comes into memory: what must hold for every plan, and what each misfit says."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.images import bzimage, linux
from l4lab.images.boot_params import RegionKind

MIB = 1 << 20
Make = Callable[..., bytes]
lenient = settings(max_examples=60, deadline=None)


@given(memory=st.integers(0, 3 * 2048 * MIB // 4096), initrd_size=st.integers(0, 5 * MIB))
@lenient
def test_a_plan_fits_or_is_refused(memory: int, initrd_size: int, make_bzimage: Make) -> None:
    """In every plan the pieces lie in RAM, apart from each other, above the kernel's own needs; else LabError."""
    kernel = bzimage.parse(make_bzimage())
    try:
        plan = linux.plan(kernel, bytes(initrd_size), "console=ttyS0", memory * 4096)
    except LabError:
        assume(False)
    ram = [(region.begin, region.end) for region in plan.memory_map if region.kind is RegionKind.RAM]

    assert all(first.end <= second.address for first, second in zip(plan.pieces, plan.pieces[1:], strict=False))
    assert all(any(begin <= piece.address and piece.end <= end for begin, end in ram) for piece in plan.pieces)
    for piece in plan.pieces:
        if piece.what == "initrd":
            assert piece.address >= kernel.pref_address + kernel.init_size
            assert piece.end <= kernel.initrd_addr_max + 1


def test_the_zero_page_points_to_what_is_there(make_bzimage: Make) -> None:
    """Linux finds its command line, its initrd, the memory map and its own header in the zero page."""
    kernel = bzimage.parse(make_bzimage())
    plan = linux.plan(kernel, b"an initrd", "quiet", 64 * MIB)
    pieces = {piece.what: piece for piece in plan.pieces}
    page = pieces["boot_params"].data

    assert pieces["boot_params"].address == plan.boot_params == plan.registers()["esi"]
    assert len(page) == 4096
    assert (pieces["initrd"].address, 9) == struct.unpack_from("<2I", page, 0x218)
    assert (pieces["command line"].address,) == struct.unpack_from("<I", page, 0x228)
    assert pieces["command line"].data == b"quiet\0"
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x1EF] == 0, "a sentinel other than zero makes Linux distrust the whole page"
    table = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    assert [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (MIB, 63 * MIB, 1)] == table


def test_the_first_registers_are_those_of_the_protocol(make_bzimage: Make) -> None:
    """Flat segments from our GDT, protected mode without paging, interrupts off, EBX, EBP and EDI zero."""
    plan = linux.plan(bzimage.parse(make_bzimage()), None, "", 64 * MIB)
    registers = plan.registers()
    (gdt,) = [piece for piece in plan.pieces if piece.what == "GDT"]
    code, data = struct.unpack_from("<2Q", gdt.data, registers["cs"])

    assert (registers["cs"], registers["ds"], registers["ss"], registers["es"]) == (0x10, 0x18, 0x18, 0x18)
    assert (registers["cr0"] & 0x8000_0001, registers["eflags"] & 0x200) == (1, 0)
    assert not {"ebx", "ebp", "edi"} & {name for name, value in registers.items() if value}
    assert (plan.gdt, plan.gdt_limit) == (gdt.address, len(gdt.data) - 1)
    for descriptor in (code, data):
        assert (descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16, descriptor >> 55 & 1) == (0xFFFFF, 1)


def test_debians_kernel_is_planned(debian_kernel: bytes) -> None:
    """The real kernel is entered at the address it was linked to run at."""
    kernel = bzimage.parse(debian_kernel)

    assert kernel.pref_address == linux.plan(kernel, None, "console=ttyS0", 128 * MIB).entry


@pytest.mark.parametrize("memory", [0, -MIB, MIB, 64 * MIB + 1, 2049 * MIB, 1 << 40])
def test_absurd_memory_is_refused(memory: int, make_bzimage: Make) -> None:
    """No memory, half a page too much, more than a PC has: each is refused with a size that works."""
    with pytest.raises(LabError, match="try --memory 128"):
        linux.plan(bzimage.parse(make_bzimage()), None, "", memory)


def test_a_kernel_larger_than_memory(make_bzimage: Make) -> None:
    """A kernel that needs more than there is says how much would do."""
    kernel = bzimage.parse(make_bzimage(fields={0x260: (4, 40 * MIB)}), "big")

    with pytest.raises(LabError, match="big needs 41 MiB of memory and the guest has 16; .*--memory 82"):
        linux.plan(kernel, None, "", 16 * MIB)


def test_an_initrd_that_does_not_fit(make_bzimage: Make) -> None:
    """An initrd beside which the kernel has no room says how much memory would do; and that much does."""
    kernel = bzimage.parse(make_bzimage())

    with pytest.raises(LabError, match=r"initrd \(6 MiB\) does not fit .* into 8 MiB.*--memory 20"):
        linux.plan(kernel, bytes(6 * MIB), "", 8 * MIB)
    assert linux.plan(kernel, bytes(6 * MIB), "", 20 * MIB)


def test_a_command_line_that_is_too_long(make_bzimage: Make) -> None:
    """The kernel's own limit counts, and is named; at the limit it fits."""
    kernel = bzimage.parse(make_bzimage())

    assert linux.plan(kernel, None, "x" * 2047, 64 * MIB)
    with pytest.raises(LabError, match="2048 characters and .* takes 2047; shorten"):
        linux.plan(kernel, None, "x" * 2048, 64 * MIB)
    with pytest.raises(LabError, match="ASCII"):
        linux.plan(kernel, None, "größe=1", 64 * MIB)


def test_a_program_that_wants_to_lie_below_one_megabyte(make_bzimage: Make, make_elf: Make) -> None:
    """What would overwrite the boot parameters is refused."""
    kernel = bzimage.parse(make_bzimage(make_elf(paddr=0x10000)))

    with pytest.raises(LabError, match="below 1 MiB"):
        linux.plan(kernel, None, "", 64 * MIB)
