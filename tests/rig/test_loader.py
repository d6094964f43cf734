# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot loader: whatever the files say, nothing lies over anything else, and no file breaks it."""

from __future__ import annotations

import contextlib
import struct
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.kip import MemoryType
from l4lab.errors import LabError
from l4lab.kernel.boot import KERNEL_MEMORY
from l4lab.rig.loader import MIB, Module, plan

MEMORY = 16 * MIB
END = MEMORY - KERNEL_MEMORY


def elf(*segments: tuple[int, bytes, int]) -> bytes:
    """An ELF file of segments: address, contents, size in memory; entered where the first one begins."""
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, segments[0][0], 52, 0, 0, 52, 32, len(segments), 40, 0, 0)
    at, contents = 52 + 32 * len(segments), b""
    for address, data, size in segments:
        header += struct.pack("<8I", 1, at + len(contents), address, address, len(data), size, 7, 0x1000)
        contents += data
    return header + contents


@given(
    root=st.integers(0, END // 4096 - 16).map(lambda page: page * 4096),
    sigma0=st.integers(0, END // 4096 - 16).map(lambda page: page * 4096),
    sizes=st.lists(st.integers(0, 3 * MIB), max_size=5),
)
@settings(deadline=None, max_examples=60)
def test_nothing_lies_over_anything_else(root: int, sigma0: int, sizes: list[int]) -> None:
    """Wherever the programs lie: do they, the modules and the tables lie apart, below the kernel, as described?"""
    modules = [Module(f"m{i}", bytes((i,)) * size, f"module {i}") for i, size in enumerate(sizes)]
    images = [elf((at, b"code", 0x8000)) for at in (root, sigma0)]
    told, ready = "", None
    try:
        ready = plan(images[0], "root", MEMORY, (images[1], "sigma0"), modules)
    except LabError as refused:
        told = str(refused)
    if ready is None:
        assert "same memory" in told or "do not fit" in told
        return
    taken = sorted((at, at + max(len(data), 1)) for at, data in ready.pieces if data)

    assert ready.root.region.low == root
    assert ready.sigma0 is not None
    assert ready.sigma0.region.high == sigma0 + 0x8000
    assert all(end <= begin for (_, end), (begin, _) in pairwise(taken))
    assert taken[-1][1] <= END
    assert all(at + len(data) <= begin or end <= at for at, data in ready.firmware for begin, end in taken)
    assert len(ready.firmware) == 2 or min(begin for begin, _ in taken) < 1 * MIB
    described = sorted((d.low, d.high) for d in ready.descriptors if d.type is MemoryType.BOOT_LOADER)
    assert all(high < low for (_, high), (low, _) in pairwise(described))
    assert all(any(low <= begin and end - 1 <= high for low, high in described) for begin, end in taken)
    assert 0x14B0021D == int.from_bytes(dict(ready.pieces)[ready.boot_info][:4], "little")


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_file_is_refused_or_loaded(data: st.DataObject) -> None:
    """Any byte may be wrong and any part missing: it is loaded or it is a LabError."""
    image = bytearray(elf((0x400000, b"code", 0x1000), (0x402000, b"data", 0x2000)))
    for _ in range(data.draw(st.integers(1, 3))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(LabError):
        plan(bytes(image[: data.draw(st.integers(0, len(image)))]), "root", MEMORY)
