# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading kernel images: Debian's own, made-up ones in every compression, and damaged ones."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.images import bzimage

Make = Callable[..., bytes]


def test_debians_kernel_is_understood(debian_kernel: bytes) -> None:
    """Debian's image tells its version, and holds the 32-bit ELF that its own last bytes announce."""
    kernel = bzimage.parse(debian_kernel, "vmlinuz")

    assert kernel.version.startswith("6.1.0-")
    assert "-686 " in kernel.version
    assert kernel.unpack()[:5] == b"\x7fELF\x01"


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        bz2.compress,
        lzma.compress,
        lambda elf: lzma.compress(elf, lzma.FORMAT_ALONE),
        zstandard.ZstdCompressor().compress,
        zstandard.ZstdCompressor(write_content_size=False).compress,
    ],
    ids=["gzip", "bzip2", "xz", "lzma", "zstd", "zstd-streamed"],
)
def test_every_common_compression_is_unpacked(
    compress: Callable[[bytes], bytes], make_bzimage: Make, make_elf: Make
) -> None:
    """What a kernel was compressed with is told by the payload alone."""
    assert make_elf() == bzimage.parse(make_bzimage(compress=compress)).unpack()


@pytest.mark.parametrize(("magic", "name"), [(b"\x02\x21\x4c\x18", "lz4"), (b"\x89LZO\0\r\n\x1a\n", "lzo")])
def test_a_compression_we_lack_is_named(magic: bytes, name: str, make_bzimage: Make) -> None:
    """A kernel we cannot unpack is refused with the name of its compression and one that would do."""
    kernel = bzimage.parse(make_bzimage(compress=lambda elf: magic + elf))

    with pytest.raises(LabError, match=rf"compressed with {name}.*try one built with CONFIG_KERNEL_XZ"):
        kernel.unpack()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({0x202: (4, 0)}, "not a Linux kernel image"),
        ({0x1FE: (2, 0)}, "not a Linux kernel image"),
        ({0x206: (2, 0x0204)}, r"too old .*boot protocol 2\.04"),
        ({0x211: (1, 0)}, "too old"),
        ({0x236: (2, 1)}, "64-bit kernel"),
        ({0x1F4: (4, 0x10000)}, "cut short"),
        ({0x248: (4, 0x7FFFFFFF)}, "payload lies outside"),
        ({0x24C: (4, 0)}, "payload lies outside"),
    ],
)
def test_each_misfit_is_told_apart(change: dict[int, tuple[int, int]], complaint: str, make_bzimage: Make) -> None:
    """Every header we cannot boot from has a message of its own, and it names the file."""
    with pytest.raises(LabError, match=complaint) as refusal:
        bzimage.parse(make_bzimage(fields=change), "my-kernel")

    assert "my-kernel" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_cut_image_is_always_refused(data: st.DataObject, make_bzimage: Make) -> None:
    """However much of an image is missing, it is a LabError and nothing else."""
    image = make_bzimage()
    length = data.draw(st.integers(0, len(image) - 1))

    with pytest.raises(LabError):
        bzimage.parse(image[:length])


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_image_never_escapes_as_another_error(data: st.DataObject, make_bzimage: Make) -> None:
    """Any one byte may be wrong: the image is still readable or it is a LabError."""
    image = bytearray(make_bzimage())
    image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))

    try:
        elf = bzimage.parse(bytes(image)).unpack()
    except LabError:
        return
    assert elf == bzimage.parse(make_bzimage()).unpack()
