# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that live by the lab's BIOS: what they show, at the console and on the screen, how they wait and take keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.images.kinds import Kind
from l4lab.rig.booting import Options, disk_program, guest_program
from l4lab.rig.rig import Rig
from l4lab.rig.session import Script, Session, Status
from tests.user.monitor.realmode import MIB, SECTOR, boot_disk, on_qemu, on_the_lab, report

# A system as beginners make them: it greets, prompts, echoes a line, and answers.
SHELL = """
        mov     si, hello
        call    print
prompt: mov     si, mark
        call    print
        mov     di, 0x3000
.key:   mov     ah, 0
        int     0x16
        mov     ah, 0x0e
        mov     bx, 7
        int     0x10
        stosb
        cmp     al, 13
        jne     .key
        mov     byte ptr [di - 1], 0
        mov     si, answer
        call    print
        mov     si, 0x3000
        call    print
        jmp     prompt
print:  lodsb
        test    al, al
        jz      .end
        mov     ah, 0x0e
        mov     bx, 7
        int     0x10
        jmp     print
.end:   ret
hello:  .byte   0x48, 0x45, 0x4c, 0x4c, 0x4f, 13, 10, 0
mark:   .byte   13, 10, 0x41, 0x3a, 0x5c, 0x3e, 0
answer: .byte   13, 10, 0x3d, 0
"""


@pytest.mark.parametrize("on_screen", [False, True], ids=["serial", "screen"])
def test_a_shell_by_bios_calls_is_shown_and_takes_lines(on_screen: bool) -> None:
    """At the serial console and on the screen alike: are lines typed at its prompts, and is what it says found?"""
    rig = Rig.for_guest(guest_program(boot_disk(SHELL), "disk", None, Options(), 16 * MIB))
    script = Script.parse("^=two", ["dir", r"A:\\>\Z=>two"], 60.0, on_screen=on_screen)

    ending = Session(rig, script).run()
    page = rig.screen()
    assert Status.MATCHED is ending.status
    assert page is not None
    assert ["HELLO", "", "A:\\>dir", "=dir", "A:\\>two", "=two"] == page.lines()[:6]
    assert {7} == set(page.attributes(0))


def test_a_saved_guest_goes_on_with_its_bios(tmp_path: Path) -> None:
    """Saved while it waits for a key by INT 16: does it take the rest of the line elsewhere, and answer?"""
    image = boot_disk(SHELL)
    rig = Rig.for_guest(guest_program(image, "disk", None, Options(), 16 * MIB))
    assert Status.MATCHED is Session(rig, Script.parse(r"A:\\>\Z", [], 60.0)).run().status
    rig.type(b"go")
    rig.run(10**8)
    rig.save(tmp_path / "saved")
    other = Rig.restore(tmp_path / "saved", disk=image)

    assert Status.MATCHED is Session(other, Script.parse("^=going", [r"go\Z=>ing"], 60.0)).run().status


def test_a_short_disk_that_was_written_behind_its_image_goes_on(tmp_path: Path) -> None:
    """Does a restored guest find the zeros that its image lacked, and what it wrote among them?"""
    source = """
        mov     ax, 0x0301
        mov     bx, 0x7c00
        mov     cx, 0x0020
        mov     dh, 0
        int     0x13
        mov     ax, 0x0e3e
        int     0x10
        mov     ah, 0
        int     0x16
        mov     ax, 0x0202
        mov     bx, 0x9000
        mov     dx, 0x0080
        int     0x13
        call    show
        mov     ax, [0x91fe]
        call    show
        mov     ax, [0x9200]
        call    show
    """
    image = boot_disk(source)[: 8 * SECTOR]
    rig = Rig.for_guest(guest_program(image, "disk", None, Options(), 16 * MIB))
    rig.run(10**8)
    assert b">" == bytes(rig.console)
    rig.save(tmp_path / "saved")
    other = Rig.restore(tmp_path / "saved", disk=image)
    other.type(b" ")
    other.run(10**9)

    assert "0002 AA55 0000 END" == report(other.console.decode())


@settings(max_examples=8)
@given(
    st.lists(st.tuples(st.integers(0, 24), st.integers(0, 79), st.sampled_from((1, 79, 81))), min_size=1, max_size=6)
)
def test_the_adapters_cursor_is_the_bioss(jumps: list[tuple[int, int, int]]) -> None:
    """Wherever a program goes and however much it writes there: is the cursor seen where the BIOS says that it is?"""
    source = "mov ax, 3\nint 0x10\n"
    for row, column, count in jumps:
        source += f"mov ah, 2\nmov bh, 0\nmov dx, {row << 8 | column}\nint 0x10\nmov cx, {count}\n"
        source += f".again{len(source)}: mov ax, 0x0e2e\nint 0x10\nloop .again{len(source)}\n"
    rig = on_the_lab(boot_disk(source + "mov ah, 3\nmov bh, 0\nint 0x10\nmov ax, dx\ncall show"))
    page = rig.screen()
    assert page is not None
    assert page.cursor is not None

    assert f"{page.cursor[0]:02X}{page.cursor[1]:02X}" == report(rig.console.decode("latin-1")).split()[0]


@pytest.mark.parametrize(
    "source",
    [
        "mov ax, 0x13\nint 0x10\nmov ax, 0x12\nint 0x10",
        "mov dx, 0x3ce\nmov ax, 0x0506\nout dx, ax",
    ],
    ids=["by the BIOS", "by ports"],
)
def test_a_graphics_mode_is_said_once_on_the_console(source: str) -> None:
    """However the guest sets it: does whoever sits there learn that there is more to see, and from the screen too?"""
    rig = on_the_lab(boot_disk(source))
    page = rig.screen()

    assert 1 == rig.console.count(b"[lab: the guest shows graphics of ")
    assert page is not None
    assert any("only text can be seen here" in line for line in page.lines())


CARRY_FLAG = """
carry:  pushf
        pop     ax
        and     ax, 1
        jmp     show
"""


@pytest.mark.parametrize("microseconds", [1, 976, 20_000, 1_000_000])
def test_int_15_86_waits_as_long_as_it_should(microseconds: int) -> None:
    """By the time stamp counter: is it that long, but for a piece between two of the clock's interrupts?"""
    source = f"""
        rdtsc
        mov     [0x3000], eax
        mov     [0x3004], edx
        mov     ah, 0x86
        mov     cx, {microseconds >> 16}
        mov     dx, {microseconds & 0xFFFF}
        int     0x15
        call    carry
        rdtsc
        sub     eax, [0x3000]
        sbb     edx, [0x3004]
        call    high
        jmp     ending
{CARRY_FLAG}
high:   push    eax
        shr     eax, 16
        call    show
        pop     eax
        jmp     show
    """
    flags, high, low, _ = report(on_the_lab(boot_disk(source), 3.0).console.decode()).split(" ")
    took = int(high + low, 16) / 1000
    pieces = -(-microseconds // 976)

    assert "0000" == flags
    assert (pieces - 1) * 976 < took <= pieces * 977 + 100


def test_a_wait_ends_while_the_guest_does_something_else() -> None:
    """INT 15, 83: is the bit set later, and is a second wait meanwhile refused?"""
    source = (
        """
        mov     ax, 0x8300
        mov     bx, 0x3000
        mov     cx, 0
        mov     dx, 50000
        int     0x15
        call    carry
        mov     ax, [0x3000]
        call    show
        mov     ax, 0x8600
        int     0x15
        call    carry
        xor     cx, cx
.wait:  inc     ecx
        test    byte ptr [0x3000], 0x80
        jz      .wait
        mov     ax, [0x3000]
        call    show
        jmp     ending
    """
        + CARRY_FLAG
    )
    assert "0000 0000 0001 0080 END" == report(
        on_the_lab(boot_disk("mov word ptr [0x3000], 0\n" + source)).console.decode()
    )


def test_typed_bytes_interrupt_a_guest_that_never_set_out2() -> None:
    """As xv6 and others set up their serial port: does each byte that is typed interrupt, and arrive?"""
    source = """
        cli
        mov     word ptr [0x30], typed           ; vector 0c
        mov     word ptr [0x32], 0
        mov     dx, 0x3fc               ; modem control: nothing is set
        mov     al, 0
        out     dx, al
        mov     dx, 0x3f9               ; an interrupt for each byte received
        mov     al, 1
        out     dx, al
        in      al, 0x21
        and     al, 0xef
        out     0x21, al
.wait:  sti
        hlt
        cmp     byte ptr [last], 0x2e
        jne     .wait
        jmp     ending
typed:  push    ax
        push    dx
        mov     dx, 0x3f8
        in      al, dx
        mov     [last], al
        out     dx, al
        mov     al, 0x20
        out     0x20, al
        pop     dx
        pop     ax
        iret
last:   .byte   0
    """
    rig = on_the_lab(boot_disk(source), 0.2)
    rig.type(b"typed.")
    rig.run(10**9)

    assert b"typed.|END" == bytes(rig.console)


# Types scan codes by the keyboard controller's command D2, and shows the key that comes of them, or FFFF for none.
TYPIST = """
        mov     si, codes
.next:  lodsb
        test    al, al
        jz      ending
        cmp     al, 0xff
        je      .look
        mov     bl, al
        call    ready
        mov     al, 0xd2
        out     0x64, al
        call    ready
        mov     al, bl
        out     0x60, al
.taken: in      al, 0x64                ; INT 09 takes it, before this goes on
        test    al, 1
        jnz     .taken
        jmp     .next
.look:  mov     ah, 0x11
        int     0x16
        mov     ax, 0xffff
        jz      .show
        mov     ah, 0x10
        int     0x16
.show:  call    show
        jmp     .next
ready:  in      al, 0x64
        test    al, 2
        jnz     ready
        ret
codes:  .byte   CODES, 0
"""
HELD = {"alone": (), "shift": (0x36,), "ctrl": (0x1D,), "alt": (0x38,), "right ctrl": (0xE0, 0x1D)}
LOCKED = {"caps lock": 0x3A, "num lock": 0x45}
# Keys that print, lock, shift or break are no characters, and what becomes of them is each BIOS's own affair.
KEYS = [
    code for code in range(0x01, 0x59) if code not in (0x1D, 0x2A, 0x36, 0x37, 0x38, 0x3A, 0x45, 0x46, 0x54, 0x55, 0x56)
]
GREY_KEYS = (0x1C, 0x35, 0x47, 0x48, 0x49, 0x4B, 0x4D, 0x4F, 0x50, 0x51, 0x52, 0x53)


def strokes(how: str, grey: bool) -> list[int]:
    """Each key once, looked at after it."""
    prefix = (0xE0,) if grey else ()
    held = HELD.get(how, ())
    codes: list[int] = []
    for key in GREY_KEYS if grey else KEYS:
        codes += [*held, *prefix, key, *prefix, key | 0x80, *held[:-1], *(code | 0x80 for code in held[-1:]), 0xFF]
    lock = [LOCKED[how], LOCKED[how] | 0x80] if how in LOCKED else []
    return [*lock, *codes, *lock]


@pytest.mark.parametrize("grey", [False, True], ids=["white", "grey"])
def test_keys_are_those_of_another_bios(grey: bool, tmp_path: Path) -> None:
    """Each key alone and with Shift, Ctrl, Alt and the locks: the same scan code and character as on QEMU?"""
    told = {}
    for how in (*HELD, *LOCKED):
        disk = boot_disk(TYPIST.replace("CODES", ", ".join(map(hex, strokes(how, grey)))))
        ours = report(on_the_lab(disk, 5.0).console.decode()).split()
        theirs = report(on_qemu(disk, tmp_path)).split()
        told[how] = [
            pair for pair in zip(GREY_KEYS if grey else KEYS, ours, theirs, strict=False) if pair[1] != pair[2]
        ]
        assert len(ours) == len(theirs), how

    assert {how: [] for how in told} == told


# What loaders of beginners' systems do: read the whole of a fixed number of sectors, however few the image has.
READER = """
        mov     ax, 0x1000
        mov     es, ax
        xor     bx, bx
        mov     ax, 0x021f
        mov     cx, 2
        mov     dh, 0
        int     0x13
        pushf
        call    show
        mov     ax, dx
        call    show
        pop     ax
        and     ax, 1
        call    show
        mov     ax, es:[0x2e00]             ; sector number 24: the last but one
        call    show
        mov     ax, es:[0x3200]
        call    show
"""


@pytest.mark.parametrize(("kind", "number"), [(None, "0080"), (Kind.BOOTSECTOR, "0080"), (Kind.DISKETTE, "0000")])
def test_behind_a_short_image_there_are_zeros(kind: Kind | None, number: str, tmp_path: Path) -> None:
    """Does a loader get what is in an image of 26 sectors, and zeros where it reads on; as on QEMU from a diskette?"""
    image = boot_disk(READER)[: 26 * SECTOR]
    rig = Rig.for_guest(guest_program(image, "disk", kind, Options(), 16 * MIB))
    rig.run(10**9)

    said = report(rig.console.decode())
    assert f"001F {number} 0000 0018 0000 END" == said
    if kind is Kind.DISKETTE:
        assert report(on_qemu(image, tmp_path, diskette=True)) == said


def test_a_diskette_by_name_may_have_any_contents() -> None:
    """Is a disk with a plain boot sector a diskette of 1440 KiB if one says so, with its geometry?"""
    source = "xor dx, dx\nmov ah, 8\nint 0x13\nmov ax, cx\ncall show\nmov ax, dx\ncall show\nmov ax, bx\ncall show"
    image = boot_disk(source)
    rig = Rig.for_guest(guest_program(image, "disk", Kind.DISKETTE, Options(), 16 * MIB))
    rig.run(10**9)

    assert "4F12 0101 0004 END" == report(rig.console.decode())


def test_a_disk_of_a_diskettes_size_is_a_disk_if_it_is_the_pcs() -> None:
    """Is what `--disk` names drive 80, whatever its size, and one disk only?"""
    source = "mov ax, dx\nand ax, 0xff\ncall show\nmov ah, 8\nmov dl, 0x80\nint 0x13\nmov ax, dx\ncall show"
    program = disk_program(boot_disk(source, 1440 << 10), "disk", None, Options(), 16 * MIB)
    rig = Rig.for_guest(program)
    rig.run(10**9)

    assert "0080 0F01 END" == report(rig.console.decode())
