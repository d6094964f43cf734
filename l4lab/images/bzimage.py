# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a Linux/x86 kernel image: its setup header, and the compressed ELF inside.

Source: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header". An image is, from its start,

    boot sector | rest of the setup code        | protected-mode code: unpacker, payload | padding
    512 bytes   | setup_sects sectors of 512 B  | syssize paragraphs of 16 bytes         |
         0x1f1 ^ the header begins                   payload_offset ^ counted from here

Of Linux we run neither the setup code nor the unpacker: the payload is unpacked on the host and entered directly, which
saves a guest some two thousand million instructions. Where it all goes in memory is for `linux.py`. Other programs in
this format, and old kernels, tell of no payload; they begin with their setup code, in real mode: `linux_realmode.py`.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import re
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import zstandard

from l4lab import cache
from l4lab.errors import LabError
from l4lab.words import PAddr

SECTOR = 512
HEADER_BEGIN = 0x1F1
HEADER_JUMP = 0x200  # `jmp short`: its displacement, counted from 0x202, says where the header ends
BOOT_FLAG = 0xAA55
MAGIC = b"HdrS"
OLDEST_PROTOCOL = 0x020A  # 2.10, Linux 2.6.31: the first to tell pref_address and init_size
LOADED_HIGH = 1 << 0  # loadflags: the protected-mode code belongs at 1 MiB; a bzImage, not a zImage
KERNEL_64 = 1 << 0  # xloadflags: the payload is a 64-bit kernel
KEPT = "unpacked"  # where in the cache unpacked kernels are: xz takes thirty times as long as zstd to unpack
SMALLEST_KEPT = 1 << 20  # bytes unpacked: less than that takes no time


@dataclass(frozen=True, slots=True)
class LinuxKernel:
    """A bzImage, as its header describes it. Field names are those of the boot protocol."""

    name: str  # the file's, for messages
    version: str  # such as "6.1.0-13-686 (debian-kernel@...) ..."
    protocol: int  # major in the high byte, minor in the low one
    setup_header: bytes  # verbatim, to be copied into the zero page from 0x1f1 on
    payload: bytes  # the compressed ELF; its last four bytes are the size of what it unpacks to
    pref_address: PAddr  # where the kernel was linked to run
    init_size: int  # bytes it needs from there before it has looked at the memory map
    relocatable: bool
    cmdline_size: int  # longest command line, without the final NUL
    initrd_addr_max: PAddr  # highest address that the initrd's last byte may have

    def unpack(self) -> bytes:
        """The ELF file inside."""
        ahead = _AHEAD.pop(self.payload, None)
        return self._unpack() if ahead is None else ahead.result()

    def unpack_ahead(self) -> None:
        """Begin in the background: `unpack` will wait for the result. It takes as long as importing the engine."""

        def work() -> None:
            try:
                future.set_result(self._unpack())
            except LabError as error:
                future.set_exception(error)

        future = _AHEAD[self.payload] = Future[bytes]()
        threading.Thread(target=work, daemon=True).start()

    def _unpack(self) -> bytes:
        if self.payload.startswith(b"\x7fELF"):
            return self.payload
        compressed, size = self.payload[:-4], int.from_bytes(self.payload[-4:], "little")
        found = next((format for format in _FORMATS if compressed.startswith(format[0])), None)
        if found is None:
            raise LabError(
                f"{self.name} holds a kernel compressed in an unknown way (it begins {self.payload[:4].hex(' ')}); "
                "try a kernel built with CONFIG_KERNEL_XZ or CONFIG_KERNEL_GZIP"
            )
        _, name, decompress = found
        if decompress is None:
            raise LabError(
                f"{self.name} holds a kernel compressed with {name}, which cannot be unpacked here; "
                "try one built with CONFIG_KERNEL_XZ, _GZIP or _ZSTD"
            )
        kept_as = f"{hashlib.sha256(self.payload).hexdigest()}.zst"
        slow = decompress is not _unzstd and size >= SMALLEST_KEPT
        if slow and (elf := _unpacked_before(kept_as, size)) is not None:
            return elf
        try:
            elf = decompress(compressed)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
            raise LabError(f"{self.name} is damaged: its {name} data does not unpack ({error}); {_AGAIN}") from error
        if len(elf) != size:
            raise LabError(f"{self.name} is damaged: it unpacks to {len(elf)} bytes instead of {size}; {_AGAIN}")
        if slow:
            cache.keep(KEPT, kept_as, zstandard.ZstdCompressor(level=1, write_checksum=True).compress(elf))
        return elf


_AHEAD: dict[bytes, Future[bytes]] = {}  # payloads that are being unpacked


def _unpacked_before(name: str, size: int) -> bytes | None:
    """The kernel as an earlier run unpacked it. A file that was damaged since is as if it were not there."""
    packed = cache.kept(KEPT, name)
    try:
        if packed is None or zstandard.frame_content_size(packed) != size:
            return None
        return zstandard.ZstdDecompressor().decompress(packed)  # checks the checksum at the end of the frame
    except zstandard.ZstdError:
        return None


def has_payload(image: bytes) -> bool:
    """Does the header, if it is one, tell of a kernel inside that can be unpacked?"""
    protocol, payload_length = (
        int.from_bytes(image[at : at + size], "little") for at, size in ((0x206, 2), (0x24C, 4))
    )
    return protocol >= OLDEST_PROTOCOL and payload_length > 0


def setup_size_of(image: bytes) -> int:
    """Bytes of the boot sector and the setup code."""
    return SECTOR * (1 + (image[HEADER_BEGIN] or 4))  # "if setup_sects is 0, the real value is 4"


def parse(image: bytes, name: str = "the kernel") -> LinuxKernel:
    """The kernel in these bytes of a file, checked as far as can be without unpacking it."""

    def field(offset: int, size: int) -> int:
        return int.from_bytes(image[offset : offset + size], "little")

    if field(0x1FE, 2) != BOOT_FLAG or image[0x202:0x206] != MAGIC:
        raise LabError(f"{name} is not a Linux kernel image for PCs; {_SUCH_AS}")
    protocol, loadflags = field(0x206, 2), field(0x211, 1)
    if protocol < OLDEST_PROTOCOL or not loadflags & LOADED_HIGH:
        told = f"{protocol >> 8}.{protocol & 0xFF:02}"
        raise LabError(f"{name} is too old a Linux kernel (boot protocol {told}, needed is 2.10); {_SUCH_AS}")
    setup_size = setup_size_of(image)
    whole_size = setup_size + 16 * field(0x1F4, 4)
    if len(image) < whole_size:
        raise LabError(f"{name} is cut short: {len(image)} of {whole_size} bytes are there; {_AGAIN}")
    if field(0x236, 2) & KERNEL_64:
        raise LabError(f"{name} is a 64-bit kernel and this PC has 32 bits; {_SUCH_AS}")
    version_begin = HEADER_JUMP + field(0x20E, 2)
    version = image[version_begin:setup_size].split(b"\0", 1)[0].decode("latin-1")
    if re.search(r"\bpae\b", version):  # the header has no field for this
        raise LabError(
            f"{name} is built for PAE ({version.split(' ')[0]}), and this PC's page tables have two levels; {_SUCH_AS}"
        )
    payload_begin = setup_size + field(0x248, 4)
    payload_end = payload_begin + field(0x24C, 4)
    if payload_end > whole_size or payload_end - payload_begin <= 4:
        raise LabError(f"{name} is damaged: its payload lies outside of the file; {_AGAIN}")
    header_end = HEADER_JUMP + 2 + field(HEADER_JUMP + 1, 1)
    return LinuxKernel(
        name=name,
        version=version,
        protocol=protocol,
        setup_header=image[HEADER_BEGIN:header_end],
        payload=image[payload_begin:payload_end],
        pref_address=PAddr(field(0x258, 8)),
        init_size=field(0x260, 4),
        relocatable=bool(field(0x234, 1)),
        cmdline_size=field(0x238, 4),
        initrd_addr_max=PAddr(field(0x22C, 4)),
    )


_SUCH_AS = "give a 32-bit bzImage, such as /boot/vmlinuz-*-686, or the one of: l4lab guest get linux"
_AGAIN = "get the file again"


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def _ungzip(data: bytes) -> bytes:
    return zlib.decompress(data, wbits=16 + zlib.MAX_WBITS)


_FORMATS: list[tuple[bytes, str, Callable[[bytes], bytes] | None]] = [
    # Linux, lib/decompress.c: what the payload begins with tells how it was compressed.
    (b"\x1f\x8b", "gzip", _ungzip),
    (b"BZh", "bzip2", bz2.decompress),
    (b"\x5d\x00\x00", "lzma", lzma.decompress),
    (b"\xfd7zXZ\x00", "xz", lzma.decompress),
    (b"\x28\xb5\x2f\xfd", "zstd", _unzstd),
    (b"\x89LZO", "lzo", None),
    (b"\x02\x21\x4c\x18", "lz4", None),
]
