# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's BIOS: what its services tell boot sectors, compared with those of SeaBIOS on a PC of QEMU's."""

from __future__ import annotations

from pathlib import Path

import pytest

from l4lab.rig.booting import Options, guest_program
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.outcome import End
from tests.user.monitor.realmode import END, MIB, SECTOR, boot_disk, on_qemu, on_the_lab, report

PROGRAMS = {
    "what the boot sector is given": "mov ax, dx\nand ax, 0xff\ncall show",
    "whether interrupts are on": "pushf\npop ax\nand ax, 0x200\ncall show",
    "conventional memory": "int 0x12\ncall show",
    "sectors by number": """
        mov     ah, 0x41
        mov     bx, 0x55aa
        int     0x13
        pushf
        mov     ax, bx
        call    show
        popf
        call    flags
        mov     si, packet
        mov     ah, 0x42
        int     0x13
        call    flags
        mov     ax, [0x2000]
        call    show
        mov     ax, [0x2400]
        call    show
        mov     ax, [0x2600]
        call    show
        jmp     ending
        .align  4
packet: .byte   16, 0
        .word   3, 0x2000, 0
        .quad   1234""",
    "sectors by cylinder and head": """
        mov     ax, 0x0202
        mov     bx, 0x2000
        mov     cx, 0x0106                  ; cylinder 1, sector 6
        mov     dh, 3
        int     0x13
        pushf
        call    show
        popf
        call    flags
        mov     ax, [0x2000]
        call    show
        mov     ax, [0x2200]
        call    show""",
    "a write can be read back, and the rest stays": """
        mov     di, 0x2000
        mov     ax, 0x4711
        mov     cx, 256
        rep stosw
        mov     ax, 0x0301
        mov     bx, 0x2000
        mov     cx, 0x0020
        mov     dh, 0
        int     0x13
        call    flags
        mov     ax, 0x0203
        mov     bx, 0x3000
        mov     cx, 0x001f
        int     0x13
        mov     ax, [0x3000]
        call    show
        mov     ax, [0x3200]
        call    show
        mov     ax, [0x3400]
        call    show""",
    "the controller shows what the BIOS has written, and the BIOS what was written through the controller": """
        mov     byte ptr [0x2000], 0x47
        mov     ax, 0x0301
        mov     bx, 0x2000
        mov     cx, 0x0020                  ; cylinder 0, head 0, sector 32: number 31
        mov     dh, 0
        int     0x13
        call    flags
        mov     si, 0x20                    ; READ SECTORS
        call    ask
        mov     di, 0x3000
        mov     cx, 256
        mov     dx, 0x1f0
        rep insw
        mov     ax, [0x3000]
        call    show
        mov     word ptr [0x3000], 0x1234
        mov     si, 0x30                    ; WRITE SECTORS
        call    ask
        mov     si, 0x3000
        mov     cx, 256
        mov     dx, 0x1f0
        rep outsw
        call    wait
        mov     ax, 0x0201
        mov     bx, 0x2000
        mov     cx, 0x0020
        mov     dx, 0x0080
        int     0x13
        call    flags
        mov     ax, [0x2000]
        call    show
        jmp     ending
ask:    mov     dx, 0x3f6
        mov     al, 2                       ; no interrupts: the BIOS need not know
        out     dx, al
        mov     dx, 0x1f2
        mov     al, 1
        out     dx, al
        inc     dx
        mov     al, 31
        out     dx, al
        inc     dx
        mov     al, 0
        out     dx, al
        inc     dx
        out     dx, al
        inc     dx
        mov     al, 0xe0
        out     dx, al
        inc     dx
        mov     ax, si
        out     dx, al
wait:   mov     dx, 0x3f6
.busy:  in      al, dx
        test    al, 0x80
        jnz     .busy
        ret""",
    "a sector that is not there": """
        mov     ax, 0x0201
        mov     bx, 0x2000
        mov     cx, 0xff3f
        mov     dh, 0
        int     0x13
        call    flags""",
    "a drive that is not there": "mov dl, 0x81\nmov ah, 2\nint 0x13\ncall flags",
    "the disk's geometry": """
        mov     ah, 8
        int     0x13
        mov     ax, cx
        and     ax, 63
        call    show
        mov     ax, dx
        call    show""",
    "the map of memory": """
        mov     di, 0x2000
        mov     edx, 0x534d4150
        mov     eax, 0xe820
        mov     ecx, 20
        xor     ebx, ebx
        int     0x15
        call    flags
        ror     eax, 16
        call    show
        mov     ax, cx
        call    show
        mov     bx, 0
.next:  mov     ax, [0x2000 + bx]
        call    show
        add     bx, 2
        cmp     bx, 20
        jb      .next""",
    "a function that nobody has": "mov ax, 0xfe00\nint 0x15\npushf\nmov al, 0\ncall show\npopf\ncall flags",
    "no key was pressed": "mov ah, 1\nint 0x16\ncall flags",
    "a key put into the buffer": """
        mov     cx, 0x1e61
        mov     ah, 5
        int     0x16
        mov     ah, 1
        int     0x16
        pushf
        call    show
        popf
        call    flags
        mov     ah, 0
        int     0x16
        call    show
        mov     ah, 1
        int     0x16
        call    flags""",
    "the cursor, and what stands there": """
        mov     ax, 3
        int     0x10
        mov     ah, 0x0f
        int     0x10
        call    show
        mov     ah, 2
        mov     bh, 0
        mov     dx, 0x0507
        int     0x10
        mov     ax, 0x0941
        mov     bx, 0x001e
        mov     cx, 3
        int     0x10
        mov     ah, 0x0e
        mov     al, 0x42
        int     0x10
        mov     ah, 3
        mov     bh, 0
        int     0x10
        mov     ax, dx
        call    show
        mov     ah, 8
        int     0x10
        call    show
        mov     ax, 0xb800
        mov     ds, ax
        mov     ax, [0x32e]
        call    show""",
    "a teletype scrolls": """
        mov     ax, 3
        int     0x10
        mov     cx, 30
.line:  mov     ax, 0x0e0a
        int     0x10
        mov     ax, 0x0e0d
        int     0x10
        mov     ax, 0x0e21
        add     al, cl
        mov     bx, 7
        int     0x10
        loop    .line
        mov     ah, 3
        int     0x10
        mov     ax, dx
        call    show
        mov     ax, 0xb800
        mov     ds, ax
        mov     al, [0]
        mov     ah, [0xf00]
        call    show""",
    "a string with colours": """
        mov     ax, 3
        int     0x10
        mov     ax, 0x1303
        mov     bx, 0
        mov     cx, 3
        mov     dx, 0x024e                  ; the last two columns: the third one goes to the next row
        mov     bp, text
        int     0x10
        mov     ah, 3
        mov     bh, 0
        int     0x10
        mov     ax, dx
        call    show
        mov     ax, 0xb800
        mov     ds, ax
        mov     ax, [0x1de]
        call    show
        mov     ax, [0x1e0]
        call    show
        jmp     ending
text:   .byte   0x61, 1, 0x62, 2, 0x63, 3""",
    "time goes on, and whoever wants to know is told": """
        cli
        mov     word ptr [0x70], tick
        mov     word ptr [0x72], 0
        mov     ah, 0
        sti
        int     0x1a
        mov     si, dx
.wait:  hlt
        cmp     byte ptr [ticks], 3
        jb      .wait
        mov     ah, 0
        int     0x1a
        mov     ax, dx
        sub     ax, si
        cmp     ax, 3
        je      .right
        cmp     ax, 4
        jne     ending
.right: mov     ax, 1
        call    show
        jmp     ending
tick:   inc     byte ptr cs:[ticks]
        iret
ticks:  .byte   0""",
}


@pytest.mark.parametrize("source", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_boot_sector_is_told_what_seabios_tells(source: str, tmp_path: Path) -> None:
    """Do registers, flags and memory come back from each service as they do on another PC?"""
    disk = boot_disk(source)
    rig = on_the_lab(disk)

    said = rig.console.decode("latin-1")
    assert said.endswith(END), (rig.status(), rig.outcome)
    assert report(on_qemu(disk, tmp_path)) == report(said)


def test_a_boot_sector_begins_as_on_a_pc(tmp_path: Path) -> None:
    """Has it the general and control registers, segments and flags that SeaBIOS gives it, but for stack and EAX?"""
    registers = ("ebx", "ecx", "edx", "esi", "edi", "ebp")
    keep = "".join(f"mov cs:[{0x500 + 4 * n:#x}], {name}\n" for n, name in enumerate(registers))
    keep += "".join(f"mov eax, {name}\nmov cs:[{at:#x}], eax\n" for name, at in (("cr0", 0x518), ("cr4", 0x51C)))
    keep += "".join(f"mov ax, {name}\nmov cs:[{0x520 + 2 * n:#x}], ax\n" for n, name in enumerate(("cs", "ds", "es")))
    keep += "pushf\npop ax\nand ax, 0x7700\nmov cs:[0x526], ax\n"  # all but the status flags
    show = "mov cx, 20\nmov si, 0x500\n.next: mov ax, [si]\ncall show\nadd si, 2\nloop .next"
    disk = boot_disk(show, first=keep)

    assert report(on_qemu(disk, tmp_path)) == report(on_the_lab(disk).console.decode("latin-1"))


def test_what_is_written_to_the_screen_goes_to_the_console() -> None:
    """Is a text shown once on the serial console, whether by a teletype or by characters put where the cursor is?"""
    hello = "\n".join(
        f"mov ax, 0x0900 + {ord(char)}\nmov bx, 7\nmov cx, 1\nint 0x10\nmov ah, 0x0e\nint 0x10" for char in "hello"
    )
    rig = on_the_lab(boot_disk(hello))

    assert b"hello|END" == bytes(rig.console)


def test_typed_text_arrives_as_keys() -> None:
    """Does INT 16 wait until something is typed at the serial port, and return its scan codes and characters?"""
    rig = on_the_lab(boot_disk(".next: mov ah, 0\nint 0x16\ncall show\ncmp al, 0x1b\njne .next"), 0.2)
    assert b"" == bytes(rig.console)
    rig.type(b"aB\r\x7f\x1b[A\x03\x1b")
    rig.run(10**9)

    assert "|1E61 3042 1C0D 0E08 4800 2E03 011B END" == rig.console.decode()


def test_no_typed_key_is_lost_when_there_are_more_than_the_bios_keeps() -> None:
    """Does a line of more characters than the BIOS's buffer has places reach a program that takes its time?"""
    rig = on_the_lab(boot_disk(".next: hlt\nmov ah, 0\nint 0x16\ncall send\ncmp al, 0x2e\njne .next"), 0.2)
    line = b"a line that is longer than fifteen keys."
    rig.type(line)
    rig.run(5 * 10**9)

    assert line + b"|END" == bytes(rig.console)


def test_setup_code_finds_the_disk_too_and_can_boot_it() -> None:
    """Does a program that a boot loader would start reach the guest's disk by INT 13, and INT 19 boot that disk?"""
    code = assemble(
        """
        mov     ax, 0x0801                  ; sees whether the disk is there: AH 08 returns the number of disks in DL
        mov     dl, 0x80
        int     0x13
        mov     al, dl
        add     al, 0x30
        mov     dx, 0x3f8
        out     dx, al
        int     0x19""",
        0x80,
        16,
    ).code
    image = bytearray(3 * SECTOR)
    image[0x1F1] = 1  # sectors of setup code; header of protocol 2.02, loaded high
    image[0x1FE:0x208] = b"\x55\xaa\xeb\x7eHdrS\x02\x02"
    image[0x211] = 1
    image[0x280 : 0x280 + len(code)] = code
    program = guest_program(bytes(image), "setup", None, Options(), 16 * MIB)
    program.hardware = Hardware(disk=boot_disk("mov al, 0x2a\ncall send"))
    rig = Rig.for_guest(program)
    rig.run(10**9)

    assert b"1*|END" == bytes(rig.console)


def test_keys_of_the_keyboard_arrive_too() -> None:
    """Are scan codes of the PC's keyboard translated, shift included?"""
    rig = on_the_lab(boot_disk(".next: mov ah, 0\nint 0x16\ncall show\ncmp al, 0x21\njne .next"), 0.2)
    assert rig.guest is not None
    assert rig.guest.monitor is not None
    rig.guest.monitor.pc.keyboard.type_keys("aA!")
    rig.run(10**9)

    assert "|1E61 1E41 0221 END" == rig.console.decode()


@pytest.mark.parametrize(
    ("source", "end", "why"),
    [
        ("mov ax, 0x5307\nmov bx, 1\nmov cx, 3\nint 0x15", End.POWERED_OFF, "turned its power off"),
        ("int 0x18", End.STOPPED, "nothing to boot"),
        ("xor cx, cx\ndiv cx", End.STOPPED, "divided by zero at 0000:7e02"),
        (".byte 0x0f, 0x0b", End.STOPPED, "executed what is no instruction at 0000:7e00"),
        ("vmcall", End.STOPPED, "executed what is no instruction at 0000:7e00"),
        ("sti\nhlt\ncli\nhlt", End.HALTED, "interrupts off"),
    ],
    ids=["power off", "nothing to boot", "divide error", "no instruction", "a hypercall of its own", "halt"],
)
def test_how_a_boot_sector_ends(source: str, end: End, why: str) -> None:
    """Is the end told, with the place where the guest was?"""
    outcome = on_the_lab(boot_disk(source)).outcome

    assert outcome is not None
    assert end is outcome.end
    assert why in outcome.why


@pytest.mark.parametrize(
    ("size", "number", "geometry"),
    [(360 << 10, 0x00, "0009 0101"), (1440 << 10, 0x00, "0012 0101"), (MIB, 0x80, "003F 0F01")],
    ids=["360K", "1440K", "1M"],
)
def test_a_diskette_is_told_by_its_size(size: int, number: int, geometry: str) -> None:
    """Has a disk with the size of a diskette the number and the geometry of one?"""
    source = f"xor dh, dh\nmov ax, dx\ncall show\n{PROGRAMS['the disk' + chr(39) + 's geometry']}"
    rig = on_the_lab(boot_disk(source, size))

    assert f"|{number:04X} {geometry} END" == rig.console.decode()


def test_a_boot_sector_is_started_again_by_int_19() -> None:
    """Does INT 19 read the disk's first sector again and start it, as if nothing had been?"""
    source = "mov al, 0x2e\ncall send\ninc word ptr [0x500]\ncmp word ptr [0x500], 3\nje ending\n"
    rig = on_the_lab(boot_disk(source + "mov word ptr [0x7c00], 0\nint 0x19"))

    assert b"...|END" == bytes(rig.console)
