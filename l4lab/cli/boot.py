# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab boot`: boots an image as a guest, its serial console on the terminal.

Lives here: its arguments. What it has in common with `l4lab exec` is in `console`; how a session at a console goes is
in `rig.session`, and what is done with an image in `rig.booting`.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from l4lab.cli.console import Records, at_console, map_disk, read_image, read_module
from l4lab.cli.streams import say
from l4lab.errors import LabError
from l4lab.files import check_writable

NESTED, SHADOW = PAGING = ("nested", "shadow")
DEFAULT_MEMORY: Final = 128  # MiB
HOW_TO_GET_ONE: Final = "a kernel image, or get one: l4lab guest get linux"
KINDS: Final = ("auto", "linux", "multiboot", "flat", "bootsector", "diskette", "bios")


def boot(
    image: Annotated[
        Path | None,
        typer.Argument(help="A Linux or Multiboot kernel, a disk, a BIOS, or flat code; without it, --disk is booted."),
    ] = None,
    kind: Annotated[str, typer.Option(help=f"What the image is: {', '.join(KINDS)}.")] = KINDS[0],
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Linux: its initial root file system.")] = None,
    append: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The kernel's command line; without it, Linux gets one for this machine."),
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=CMDLINE]", help="Multiboot: a file for the kernel to find; repeatable."),
    ] = None,
    load: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Flat: where it lies and is entered; else at 1 MiB.")
    ] = None,
    memory: Annotated[int, typer.Option(metavar="MIB", help="The guest's memory in MiB.")] = DEFAULT_MEMORY,
    paging: Annotated[str, typer.Option(help=f"How guest memory is translated: {', '.join(PAGING)}.")] = NESTED,
    disk: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What is on its disk, an IDE one that its BIOS knows too; what it writes is lost at the end.",
        ),
    ] = None,
    screen: Annotated[
        bool, typer.Option("--screen", help="The console is its text screen and keyboard, not its serial port.")
    ] = False,
    restarts: Annotated[int, typer.Option(metavar="N", help="Start it again when it resets, so many times.")] = 0,
    until: Annotated[str | None, typer.Option(metavar="REGEX", help="End when the console matches.")] = None,
    save_at: Annotated[
        tuple[str, Path] | None,
        typer.Option(metavar="REGEX FILE", help="When the console matches, save the guest to a file, and end."),
    ] = None,
    restore: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with a guest that --save-at saved.")
    ] = None,
    send: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Type a line at a shell prompt, or REGEX=>TEXT at a match; repeatable."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Give up after so many seconds.")] = None,
    stats: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what it took, as JSON.")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the event log.")] = None,
) -> None:
    """Boot an image in a virtual machine; its console, a serial line or a screen, is this terminal.

    The image is recognised by its contents: a 32-bit Linux bzImage, a Multiboot 1 kernel, a disk that begins with a
    boot sector (its BIOS is the lab's), or a BIOS that the CPU enters as after a reset. --kind diskette takes a boot
    disk of any size for a diskette. --kind flat takes any code, and enters it at its first byte in protected mode.
    Without an image, --disk is booted by its boot sector.

    In a terminal all keys go to the guest, and Ctrl-] leaves. Piped input is typed once the guest shows a prompt.
    Lines of --send are typed in their order, each when new output matches. A kernel that `l4lab guest get` obtained
    gets drivers for its disk behind the initrd.

    A saved guest goes on where it was, in any number of runs; its memory, paging and devices come with it.

    Exit status: 0 matched, or the guest powered off or halted; 2 unusable arguments or image; 3 timeout;
    4 the guest died; 130 interrupted, 143 and 129 by SIGTERM and SIGHUP, 141 when nobody reads its output any more.
    """
    if paging not in PAGING:
        raise LabError(f"there is no paging mode {paging!r}; there is: {', '.join(PAGING)}")
    check_writable(stats, trace, save_at and save_at[1])
    if image is not None and restore is None:
        _unpack_ahead(image)
    # The engine and all that is above it; help and completion do without.
    from l4lab.cli.terminal import Tty
    from l4lab.guests.guest import LINUX_APPEND, LINUX_SCREEN_APPEND, drivers_of
    from l4lab.images import bzimage, kinds
    from l4lab.rig.booting import Options, disk_program, guest_program
    from l4lab.rig.rig import Rig
    from l4lab.rig.session import Script
    from l4lab.user.monitor.hardware import Hardware

    script = Script.parse(until, send or (), timeout, on_screen=screen, save_at=save_at)
    wanted = kinds.parse(kind)
    started = time.monotonic()
    on_disk = None if disk is None else map_disk(disk)
    if restore is not None:
        if any(given is not None for given in (image, initrd, append, module, load)):
            raise LabError("a saved guest has its image in its memory; give --restore without image and its options")
        rig = Rig.restore(restore, disk=on_disk)
        at_console(rig, script, Tty(), "the guest", Records(stats, trace, started))
    source = image or disk
    if source is None:
        raise LabError(
            f"nothing to boot: give {HOW_TO_GET_ONE}; or a disk that boots, by --disk; or go on with a saved guest by "
            "--restore FILE"
        )
    contents = b"" if image is None else read_image(image, HOW_TO_GET_ONE)
    is_linux = wanted in (None, kinds.Kind.LINUX) and kinds.is_linux(contents) and bzimage.has_payload(contents)
    if is_linux:
        say(f"l4lab: unpacking {source.name}")
        if append is None:
            append = LINUX_SCREEN_APPEND if screen else LINUX_APPEND
    ramdisk = None if initrd is None else read_image(initrd, HOW_TO_GET_ONE)
    if on_disk is not None and ramdisk is not None and (drivers := drivers_of(source.parent)) is not None:
        ramdisk += drivers.read_bytes()
    options = Options(
        initrd=ramdisk,
        append=append,
        module=None if module is None else [read_module(argument) for argument in module],
        load=None if load is None else _address(load),
        screen=screen,
    )
    if image is None and on_disk is not None:
        program = disk_program(on_disk, source.name, wanted, options, memory << 20)
    else:
        program = guest_program(contents, source.name, wanted, options, memory << 20)
    in_pc = program.hardware.disk if image is None or on_disk is None else on_disk
    program.hardware = Hardware(paging == SHADOW, in_pc, max(restarts, 0))
    rig = Rig.for_guest(program)
    at_console(rig, script, Tty(), "the guest", Records(stats, trace, started))


def _unpack_ahead(image: Path) -> None:
    """Unpacking Linux takes as long as importing the engine: begin with it. What is wrong with a file is told later."""
    from l4lab.images import bzimage, kinds

    with contextlib.suppress(OSError, LabError):
        if not image.is_file():
            return
        if kinds.is_linux(contents := read_image(image, HOW_TO_GET_ONE)) and bzimage.has_payload(contents):
            bzimage.parse(contents, image.name).unpack_ahead()


def _address(text: str) -> int:
    """A number as C has them: 0x100000, or 1048576."""
    try:
        return int(text, 0)
    except ValueError:
        raise LabError(f"{text!r} is not an address; give a number, such as --load 0x100000") from None
