# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of every kind, from file contents to a guest that runs; Multiboot kernels compared with QEMU's loader."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from l4lab.errors import LabError
from l4lab.images.kinds import BIOS_SIZES, Kind
from l4lab.images.multiboot_kernel import MAGIC
from l4lab.rig.booting import TAKES, Options, guest_program
from l4lab.rig.loader import Module
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.guests import greeting
from l4lab.user.guests.flat import ORIGIN, FlatGuest, multiboot_image
from l4lab.user.monitor.outcome import End
from tests.fragments import hexadecimal

MIB = 1 << 20

# Reports what the specification promises a kernel, through the serial port, and ends with '!'. The addresses at which
# a loader puts things are its own affair; what lies there is not.
MULTIBOOT = f"""
        mov     esp, stack
        mov     ebp, ebx
        call    tell                    ; EAX: the magic number
        smsw    ax
        and     eax, 0x1                ; protected mode
        call    tell
        mov     eax, cr0
        shr     eax, 31                 ; no paging
        call    tell
        pushfd
        pop     eax
        and     eax, 0x20200            ; no interrupts, no virtual 8086 mode
        call    tell
        mov     eax, [ebp]
        and     eax, 0x4d               ; memory, command line, modules, map
        call    tell
        mov     eax, [ebp + 20]         ; modules
        call    tell
        mov     ebx, [ebp + 24]
        mov     edi, [ebp + 20]
next:   test    edi, edi
        jz      line
        mov     eax, [ebx]
        and     eax, 0xfff              ; modules begin on pages
        call    tell
        mov     eax, [ebx + 4]
        sub     eax, [ebx]
        call    tell
        mov     esi, [ebx]
        mov     eax, [esi]              ; what the module begins with
        call    tell
        mov     esi, [ebx + 8]
        call    last
        add     ebx, 16
        dec     edi
        jmp     next
line:   mov     esi, [ebp + 16]
        call    last
        mov     al, 33
        call    send
        cli
        hlt

; EAX in hexadecimal, and a space
tell:   pushad
        mov     ebx, eax{hexadecimal("ebx", 8, "call    send")}
        mov     al, 32
        call    send
        popad
        ret
; the last word of the string at ESI: loaders differ in whether a file's name goes before
last:   mov     edx, esi
.find:  lodsb
        cmp     al, 32
        jne     .same
        mov     edx, esi
.same:  test    al, al
        jnz     .find
        mov     esi, edx
.next:  lodsb
        test    al, al
        jz      .end
        call    send
        jmp     .next
.end:   ret
send:   push    edx
        mov     dx, 0x3f8
        out     dx, al
        pop     edx
        ret
        .align  16
        .space  256
stack:
"""


def boot(image: bytes, kind: Kind | None = None, options: Options = Options(), seconds: float = 1) -> Rig:  # noqa: B008
    rig = Rig.for_guest(guest_program(image, "image", kind, options, 16 * MIB))
    rig.run(int(seconds * 10**9))
    return rig


def test_a_multiboot_kernel_finds_what_qemus_loader_gives_it(tmp_path: Path) -> None:
    """Are registers, memory, command line and modules as the specification says, and as another loader has them?"""
    # The header lies 32 bytes before, on a page: relative to it QEMU's loader aligns modules.
    guest = FlatGuest.of(assemble(MULTIBOOT, ORIGIN + 32), "reports")
    demands = 0x10003  # modules on pages, memory; the addresses are in the header
    image = struct.pack("<3I", MAGIC, demands, -(MAGIC + demands) & 0xFFFFFFFF) + multiboot_image(guest)[12:]
    (tmp_path / "kernel").write_bytes(image)
    (tmp_path / "one").write_bytes(b"first module")
    (tmp_path / "two").write_bytes(b"second")
    command = ["qemu-system-i386", "-M", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none"]
    command += ["-kernel", "kernel", "-append", "quiet splash", "-initrd", "one an=argument,two another"]
    with subprocess.Popen([*command, "-serial", "stdio"], cwd=tmp_path, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        said = b""
        while not said.endswith(b"!"):
            byte = qemu.stdout.read(1)
            assert byte, said
            said += byte
        qemu.kill()
    modules = [Module("one", b"first module", "one an=argument"), Module("two", b"second", "two another")]
    rig = boot(image, options=Options(append="quiet splash", module=modules))

    assert said == bytes(rig.console)
    assert b"2BADB002 " == said[:9]


# What kernels do at their entry before they have anything of their own: they use the stack, load each segment register
# with what another one holds, and reload CS by a far return.
ENTRY = """
        push    ebx
        mov     ax, ds
        mov     es, ax
        mov     ax, ss
        mov     ds, ax
        mov     ax, es
        mov     fs, ax
        mov     ax, fs
        mov     gs, ax
        mov     ss, ax
        mov     eax, cs
        push    eax
        call    .here
.here:  add     dword ptr [esp], .there - .here
        retf
.there: pop     ecx
        mov     al, 0x4b
        cmp     ecx, ebx
        je      .same
        mov     al, 0x3f
.same:  mov     dx, 0x3f8
        out     dx, al
        cli
        hlt
"""


def multiboot_at(address: int, source: str) -> bytes:
    """A Multiboot kernel that lies and is entered at an address."""
    guest = FlatGuest.of(assemble(source, address), "a kernel")
    return multiboot_image(guest)


@pytest.mark.parametrize("address", [0x1000, 0x5000, 0x8000, 0x90000, ORIGIN])
def test_a_kernel_has_a_stack_and_selectors_that_can_be_loaded(address: int) -> None:
    """Wherever a Multiboot kernel or flat code lies: can it push, and load again what its segment registers hold?"""
    for image, kind in ((multiboot_at(address, ENTRY), None), (assemble(ENTRY, address).code, Kind.FLAT)):
        rig = boot(image, kind, Options(load=address) if kind else Options())

        assert (b"K", End.HALTED) == (bytes(rig.console), rig.outcome and rig.outcome.end)


def test_a_flat_image_runs_where_it_was_put() -> None:
    """Is flat code entered at its first byte, at 1 MiB or at another address, below 1 MiB too?"""
    for address in (None, 0x8000, 0x30_0000):
        code = assemble(greeting.SOURCE, MIB if address is None else address, constants=_COM1).code
        rig = boot(code, Kind.FLAT, Options(load=address))

        assert greeting.expected_console("GenuineIntel").encode() == bytes(rig.console)


_COM1 = {"COM1": 0x3F8, "COM1_LSR": 0x3FD, "LSR_EMPTY": 0x20}


@pytest.mark.parametrize("size", BIOS_SIZES)
def test_a_bios_begins_as_after_a_reset(size: int) -> None:
    """Is the first instruction the one at F000:FFF0, in real mode, and is the whole image below 1 MiB?"""
    at = MIB - size
    source = f"""
        .org    0x100
        mov     ax, cs                  ; the far jump has loaded it
        cmp     ax, 0xf000
        jne     $
        smsw    ax
        test    al, 1
        jnz     $
        mov     ax, {at >> 4}
        mov     ds, ax
        mov     al, [0]                 ; the first byte of the image
        mov     dx, 0x3f8
        out     dx, al
        cli
        hlt
    """
    code = assemble(source, 0x100, 16).code
    reset = assemble("jmp 0xf000:0x100", 0, 16).code
    image = bytearray(size)
    image[0] = ord("B")
    image[size - 0x10000 + 0x100 : size - 0x10000 + 0x100 + len(code)] = code
    image[size - 16 : size - 16 + len(reset)] = reset
    rig = boot(bytes(image))

    assert b"B" == bytes(rig.console)
    assert rig.outcome is not None
    assert End.HALTED is rig.outcome.end


def test_a_program_in_linuxs_format_begins_with_its_setup_code() -> None:
    """Are the setup code, its segments, its stack, and what it is told of initrd and command line as Linux has it?"""
    setup = f"""
        mov     ax, cs                  ; entered behind the boot sector
        call    tell
        mov     ax, ds
        call    tell
        mov     ax, ss
        call    tell
        mov     ax, sp
        call    tell
        mov     eax, [0x21c]            ; how long the initrd is
        call    tell
        mov     esi, [0x228]            ; where the command line is, as a linear address
        sub     esi, 0x10000
.line:  lodsb
        test    al, al
        jz      .done
        call    send
        jmp     .line
.done:  int     0x12                    ; the BIOS is there
        call    tell
        cli
        hlt
tell:   mov     bx, ax{hexadecimal("bx", 4, "call    send")}
        ret
send:   mov     dx, 0x3f8
        out     dx, al
        ret
    """
    image = bytearray(512 * 3 + 64)
    image[0x1F1] = 2  # setup_sects
    image[0x1FE:0x208] = b"\x55\xaa\xeb\x40HdrS" + (0x0207).to_bytes(2, "little")
    image[0x211] = 1  # loaded high
    image[0x238:0x23C] = (255).to_bytes(4, "little")
    image[0x22C:0x230] = (0x37FFFFFF).to_bytes(4, "little")
    code = assemble(setup, 0x80, 16).code
    image[0x200:0x202] = b"\xeb\x7e"  # to offset 80 of the setup segment
    image[0x280 : 0x280 + len(code)] = code
    rig = boot(bytes(image), options=Options(initrd=b"four", append="quiet"))

    assert b"1020 1000 1000 E000 0004 quiet 027F".replace(b" ", b"") == bytes(rig.console)


@pytest.mark.parametrize("option", ["initrd", "append", "module", "load"])
@pytest.mark.parametrize("kind", list(Kind))
def test_an_option_that_a_kind_does_not_take_is_refused(kind: Kind, option: str) -> None:
    """Does the message name the option, and the kinds that take it?"""
    value = {"initrd": b"", "append": "", "module": [], "load": 0}[option]
    takers = [taker.value for taker in Kind if option in TAKES[taker]]
    if option not in TAKES[kind]:
        with pytest.raises(LabError, match=f"--{option} is for images of kind {takers[0]}.*booted as {kind.value}"):
            guest_program(bytes(100), "image", kind, Options(**{option: value}), 16 * MIB)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Kind.LINUX, "not a Linux kernel"),
        (Kind.MULTIBOOT, "no Multiboot header"),
        (Kind.BOOTSECTOR, "no boot sector"),
        (Kind.BIOS, "a BIOS has 64, 128, 256 KiB"),
    ],
)
def test_what_is_not_of_the_kind_is_refused(kind: Kind, told: str) -> None:
    """Does naming a kind that the image is not of say what is missing?"""
    with pytest.raises(LabError, match=told):
        guest_program(bytes(100), "image", kind, Options(), 16 * MIB)


@pytest.mark.parametrize(
    ("load", "size", "told"),
    [
        (-1, 10, "try --load 0x100000"),
        (0x9F000, 8192, "try --load"),
        (15 * MIB, 2 * MIB, "--memory 34"),
        (0, 0, "empty"),
    ],
)
def test_a_flat_image_that_does_not_fit_is_refused(load: int, size: int, told: str) -> None:
    """Does an address where there is no RAM, or an image that is too large or empty, say what to change?"""
    with pytest.raises(LabError, match=told):
        guest_program(bytes(size), "image", Kind.FLAT, Options(load=load), 16 * MIB)
