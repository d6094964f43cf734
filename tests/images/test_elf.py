# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading ELF executables. The oracle is binutils' readelf on Debian's kernel."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.images import bzimage, elf

Make = Callable[..., bytes]


def test_segments_are_those_that_readelf_sees(debian_kernel: bytes, tmp_path: Path) -> None:
    """Addresses, sizes and entry of the kernel's segments are what readelf prints."""
    vmlinux = bzimage.parse(debian_kernel).unpack()
    (tmp_path / "vmlinux").write_bytes(vmlinux)
    shown = subprocess.run(["readelf", "-hlW", "vmlinux"], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = re.findall(r"LOAD\s+(\w+) (\w+) (\w+) (\w+) (\w+)", shown.stdout)
    expected = [tuple(int(number, 16) for number in line[1:]) for line in lines]
    entry = re.search(r"Entry point address:\s+(\w+)", shown.stdout)

    program = elf.load(vmlinux)

    assert expected == [(s.vaddr, s.paddr, len(s.data), s.memory_size) for s in program.segments]
    assert entry is not None
    assert int(entry[1], 16) == program.entry


def test_zeros_after_the_data_are_counted(make_elf: Make) -> None:
    """A segment is as long as it is in memory, not as it is in the file."""
    (segment,) = elf.load(make_elf(b"data", paddr=0x200000, memory_size=0x1000)).segments

    assert (segment.data, segment.end) == (b"data", 0x201000)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"machine": 62}, "EM_X86_64"), ({"kind": 3}, "ET_DYN"), ({"kind": 1}, "ET_REL"), ({"memory_size": 0}, "damaged")],
)
def test_what_cannot_be_loaded_is_said(change: dict[str, int], complaint: str, make_elf: Make) -> None:
    """An ELF file for another machine, a position-independent one, an object file: each is named."""
    with pytest.raises(LabError, match=complaint):
        elf.load(make_elf(**change))


def test_no_elf_at_all() -> None:
    """A file that is no ELF is refused with what to do."""
    with pytest.raises(LabError, match=r"hello\.c is not an ELF executable.*build it with"):
        elf.load(b"int main;", "hello.c")


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_never_escapes_as_another_error(data: st.DataObject, make_elf: Make) -> None:
    """Any byte may be wrong and any part missing: it loads or it is a LabError."""
    file = bytearray(make_elf())
    file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(file)))

    with contextlib.suppress(LabError):
        elf.load(bytes(file[:length]))
