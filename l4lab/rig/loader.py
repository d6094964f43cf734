# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot loader's work: how native programs and their modules come into memory before the kernel starts.

What lives here: what goes where, and what the KIP and the boot information say of it. `Rig` carries it out. A misfit
is a `LabError` that says what to change.

The first programs lie at the addresses at which they run: sigma0 maps each physical page to the same virtual address.
The kernel keeps the top of RAM, so everything below is theirs. Modules and tables come right below the kernel, out of
the way of whoever looks for memory from below.

    0 .... 640 KB | adapters, firmware | 1 MB ... programs ... free ... | modules | tables | kernel's own | end of RAM
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from l4lab.abi import bootinfo
from l4lab.abi.bootinfo import LoadedModule, LoadedProgram, build_boot_info
from l4lab.abi.kip import MemoryDescriptor, MemoryType, ServerRegion
from l4lab.errors import LabError
from l4lab.images import elf, multiboot
from l4lab.kernel.boot import KERNEL_MEMORY, Loaded
from l4lab.rig import firmware
from l4lab.words import size_text

PAGE = 4096
MIB = 1 << 20
SMALLEST_MIB, LARGEST_MIB, USUAL_MIB = 8, 2048, 64
LONGEST_COMMAND_LINE = 4096
NOWHERE = (0, 0)  # a piece of a program that has none such
ADAPTERS = (0xA0000, 0xFFFFF)  # where a PC has its screen and its firmware


@dataclass(frozen=True, slots=True)
class Module:
    """A file for the root task to find in memory."""

    name: str
    data: bytes
    command_line: str


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """What lies in memory when the kernel starts, and what the KIP says of it."""

    firmware: tuple[tuple[int, bytes], ...]  # what was there before; physical address, contents
    pieces: tuple[tuple[int, bytes], ...]  # what was loaded, likewise
    sigma0: Loaded | None  # None: the hosted one
    root: Loaded
    descriptors: tuple[MemoryDescriptor, ...]
    boot_info: int


def memory_size(mib: int) -> int:
    """Bytes of RAM for a machine with so many MiB."""
    if not SMALLEST_MIB <= mib <= LARGEST_MIB:
        raise LabError(
            f"a machine cannot have {mib} MiB of memory: it takes {SMALLEST_MIB} to {LARGEST_MIB}; "
            f"try --memory {USUAL_MIB}"
        )
    return mib * MIB


def plan(
    root: bytes,
    name: str,
    memory: int,
    sigma0: tuple[bytes, str] | None = None,
    modules: Sequence[Module] = (),
    command_line: str | None = None,
) -> ProgramPlan:
    """How these programs and modules come into so many bytes of memory; `sigma0` is a file and its name.

    `command_line`: of the root task; without it, its name.
    """
    end = memory - KERNEL_MEMORY
    servers = [_Server.read(root, name, end, command_line)]
    if sigma0 is not None:
        servers.append(_Server.read(*sigma0, end))
        first, second = sorted(servers, key=lambda server: server.low)
        if second.low < first.high:
            raise LabError(
                f"{first.name} ({first.low:#x} to {first.high:#x}) and {second.name} (from {second.low:#x}) need the "
                f"same memory; link one of them elsewhere: gcc -Wl,-Ttext-segment=0x800000"
            )
    for what, text in [(server.name, server.command_line) for server in servers] + [
        (module.name, module.command_line) for module in modules
    ]:
        if len(text.encode("utf-8", "surrogateescape")) > LONGEST_COMMAND_LINE or "\0" in text:
            raise LabError(f"the command line of {what} has no end within {LONGEST_COMMAND_LINE} bytes; shorten it")
    of_modules = sum(_whole_pages(len(module.data)) for module in modules)
    of_tables = _whole_pages(len(_tables(0, end, servers, [LoadedModule(0, 0, m.command_line) for m in modules])))
    at = _highest_gap(of_modules + of_tables, servers, end)

    pieces = [piece for server in servers for piece in server.pieces]
    loaded = []
    for module in modules:
        loaded.append(LoadedModule(at, len(module.data), module.command_line))
        pieces.append((at, module.data))
        at += _whole_pages(len(module.data))
    pieces.append((at, _tables(at, end, servers, loaded)))
    return ProgramPlan(
        firmware=tuple(_firmware(servers)),
        pieces=tuple(pieces),
        sigma0=servers[1].loaded if sigma0 is not None else None,
        root=servers[0].loaded,
        descriptors=tuple(_descriptors(servers, at - of_modules, at, at + of_tables)),
        boot_info=at,
    )


@dataclass(frozen=True, slots=True)
class _Server:
    """One of the first programs."""

    name: str
    entry: int
    low: int
    high: int  # first address after it, zeros included
    pieces: tuple[tuple[int, bytes], ...]
    command_line: str
    text: tuple[int, int]  # address and size, as the boot information has it
    data: tuple[int, int]
    zeros: tuple[int, int]

    @classmethod
    def read(cls, image: bytes, name: str, end: int, command_line: str | None = None) -> _Server:
        """From an ELF file; it must lie in memory below `end`, and in one place only."""
        program = elf.load(image, name)
        # The virtual addresses are the physical ones, whatever the file says of these.
        segments = sorted((s for s in program.segments if s.memory_size), key=lambda segment: segment.vaddr)
        last = 0
        for segment in segments:
            begin, after = int(segment.vaddr), segment.vaddr + segment.memory_size
            if begin < last:
                raise LabError(f"{name} has two segments at {begin:#x}; link it again, without addresses of your own")
            if after > end:
                raise LabError(
                    f"{name} needs memory up to {after:#x}, and programs have it up to {end:#x}; "
                    + (
                        f"give the machine more, such as --memory {-(-after // MIB) + 2 * (KERNEL_MEMORY // MIB)}"
                        if after <= LARGEST_MIB * MIB - KERNEL_MEMORY
                        else "link it to a lower address: gcc -Wl,-Ttext-segment=0x400000"
                    )
                )
            last = after
        if not any(s.vaddr <= program.entry < s.vaddr + s.memory_size for s in segments):
            raise LabError(f"{name} is to be entered at {program.entry:#x}, where it has nothing; define _start in it")
        pieces = tuple((int(s.vaddr), s.data) for s in segments)  # behind each is zero: nobody has used the RAM
        return cls(
            name,
            int(program.entry),
            low=int(segments[0].vaddr) & -PAGE,
            high=_whole_pages(last),
            pieces=pieces,
            command_line=name if command_line is None else command_line,
            text=_hull((int(s.vaddr), len(s.data)) for s in segments if s.text),
            data=_hull((int(s.vaddr), len(s.data)) for s in segments if not s.text),
            zeros=_hull((s.vaddr + len(s.data), s.memory_size - len(s.data)) for s in segments),
        )

    @property
    def loaded(self) -> Loaded:
        """As the kernel wants to know it. Programs make a stack of their own."""
        return Loaded(self.name, ServerRegion(sp=0, ip=self.entry, low=self.low, high=self.high))


def _hull(pieces: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Address and size of what reaches from the first of these to the end of the last."""
    there = [(at, at + size) for at, size in pieces if size]
    if not there:
        return NOWHERE
    begin = min(at for at, _ in there)
    return begin, max(end for _, end in there) - begin


def _firmware(servers: Sequence[_Server]) -> Iterator[tuple[int, bytes]]:
    """What a PC has in memory before anything is loaded, where nothing is."""
    for at, data in ((0, firmware.FIRST_PAGE), firmware.IRET):
        if all(at + len(data) <= server.low or server.high <= at for server in servers):
            yield at, data


def _highest_gap(size: int, servers: Sequence[_Server], end: int) -> int:
    """Where so many bytes fit below `end` beside the programs, above 1 MB."""
    above = end
    for server in sorted(servers, key=lambda server: -server.low):
        if above - size >= max(server.high, MIB):
            return above - size
        above = min(above, server.low)
    if above - size >= MIB:
        return above - size
    raise LabError(
        f"the modules ({size_text(size)}) do not fit beside the programs into the machine's memory; "
        f"give it more, such as --memory {min(-(-(end + size) // MIB) + KERNEL_MEMORY // MIB, LARGEST_MIB)}"
    )


def _descriptors(servers: Sequence[_Server], modules: int, tables: int, end: int) -> Iterator[MemoryDescriptor]:
    """What the KIP says of memory beyond what there is and what is the kernel's."""
    yield MemoryDescriptor(MemoryType.SHARED, *ADAPTERS)
    for server in servers:
        yield MemoryDescriptor(MemoryType.BOOT_LOADER, server.low, server.high - 1, subtype=bootinfo.SERVER)
    if modules < tables:
        yield MemoryDescriptor(MemoryType.BOOT_LOADER, modules, tables - 1, subtype=bootinfo.MODULES)
    yield MemoryDescriptor(MemoryType.BOOT_LOADER, tables, end - 1, subtype=bootinfo.TABLES)


def _tables(at: int, end: int, servers: Sequence[_Server], modules: Sequence[LoadedModule]) -> bytes:
    """What tells the root task of its modules, to be put at an address: in the generic format, then in Multiboot's.

    Multiboot's list begins as loaders of L4 systems have it: kernel, sigma0, root task.
    """
    root, *others = servers
    sigma0 = others[0] if others else _Server("sigma0", 0, end, end, (), "sigma0", NOWHERE, NOWHERE, NOWHERE)
    listed = [multiboot.MultibootModule(end, end, "kernel")]
    listed += [multiboot.MultibootModule(server.low, server.high, server.command_line) for server in (sigma0, root)]
    listed += [multiboot.MultibootModule(m.start, m.start + m.size, m.command_line) for m in modules]
    programs = [LoadedProgram(s.text, s.data, s.zeros, s.entry, s.command_line) for s in (sigma0, root)]
    multiboot_at = at + (len(build_boot_info(programs, modules, 0)) + 15 & ~15)
    generic = build_boot_info(programs, modules, multiboot_at)
    return generic.ljust(multiboot_at - at, b"\0") + multiboot.build_info(multiboot_at, end, listed)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
