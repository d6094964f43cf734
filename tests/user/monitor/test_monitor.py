# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor at work: whole guests, on the real kernel."""

from __future__ import annotations

import pytest

from l4lab.abi.cpuid import vendor_leaf
from l4lab.abi.frame import EAX, EBX, ECX, EDX
from l4lab.abi.vm import ExitReason
from l4lab.devices.device import no_line
from l4lab.devices.ide import Ide
from l4lab.devices.memory_bus import AtMemory
from l4lab.devices.uart16550 import Uart16550
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.guests import greeting, misbehave, tinyos
from l4lab.user.guests.flat import COM1, ORIGIN, RAM_SIZE, FlatGuest
from l4lab.user.l4 import L4
from l4lab.user.monitor import start_flat
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.monitor import Monitor
from l4lab.user.monitor.outcome import End, Outcome

SECOND = 10**9


def outcome(rig: Rig) -> Outcome:
    """How the guest ended; a guest that runs on, or a monitor that raised, fails the test."""
    assert rig.guest is not None
    assert rig.guest.outcome is not None, rig.last_stop
    return rig.guest.outcome


def run(guest: FlatGuest, seconds: float = 5) -> Rig:
    rig = Rig.for_flat_guest(guest)
    rig.run(int(seconds * SECOND))
    return rig


def guest_from(source: str) -> FlatGuest:
    """A guest from a few lines, which end in CLI, HLT."""
    return FlatGuest.of(assemble(source, ORIGIN, constants=COM1), "a test's own")


def test_a_guest_greets_and_halts() -> None:
    """Does the greeting come out of the machine's serial port, with the vendor that CPUID names?"""
    rig = run(greeting.build())

    assert greeting.expected_console("GenuineIntel").encode() == bytes(rig.console)
    assert End.HALTED is outcome(rig).end


def test_a_small_operating_system_runs_to_its_power_off() -> None:
    """Do paging, a ring-3 process, timer interrupts, HLT and the power port all work?"""
    rig = run(tinyos.build())

    assert tinyos.expected_console("GenuineIntel").encode() == bytes(rig.console)
    assert End.POWERED_OFF is outcome(rig).end


def test_typed_text_reaches_the_guest() -> None:
    """Does a guest that waits in HLT for the serial port's interrupt get what is typed, byte for byte?"""
    rig = Rig.for_flat_guest(tinyos.build(interactive=True))
    prompt = tinyos.expected_console("GenuineIntel", interactive=True).encode()
    rig.run_until(5 * SECOND, lambda: bytes(rig.console).endswith(prompt[-6:]))
    assert prompt == bytes(rig.console)

    rig.type(b"hello\r")
    rig.run(SECOND // 10)

    assert bytes(rig.console).startswith(prompt + b"hello\r\n")


@pytest.mark.parametrize(
    ("guest", "end", "word"),
    [
        (misbehave.triple_fault(), End.TRIPLE_FAULT, "exception"),
        (misbehave.jump_nowhere(), End.STOPPED, hex(misbehave.NOWHERE)),
        (misbehave.hammer(), End.HALTED, "interrupts off"),
    ],
    ids=["triple fault", "jump nowhere", "hammer"],
)
def test_a_guest_that_misbehaves_ends_with_an_explanation(guest: FlatGuest, end: End, word: str) -> None:
    """Does the outcome say how the guest ended, why and with which registers?"""
    how = outcome(run(guest))

    assert end is how.end
    assert word in how.why
    assert "EIP" in how.registers


@pytest.mark.parametrize("seed", range(12))
def test_noise_does_not_hurt_the_monitor(seed: int) -> None:
    """Whatever bytes the guest executes: does it end or run, and the monitor's program not raise?"""
    rig = run(misbehave.noise(seed), seconds=0.02)

    assert "died" != rig.last_stop.reason


def test_a_guest_that_loops_can_be_stopped_at_any_time() -> None:
    """Does a guest with interrupts off and no exits leave the lab at the end of the time it was given?"""
    rig = run(misbehave.spin(), seconds=0.01)

    assert not rig.last_stop.finished
    assert rig.guest is not None
    assert rig.guest.outcome is None


def test_an_interrupt_waits_until_the_guest_lets_it_in() -> None:
    """Is a timer interrupt that is due while IF is clear delivered right after STI, by way of the interrupt window?"""
    rig = run(
        guest_from(
            """
            mov esp, stack
            lgdt [gdtr]
            lidt [idtr]
            mov dword ptr [idt + 8 * 0x20], 0x00080000 + tick - 0x100000    ; selector 8, offset bits 15..0
            mov dword ptr [idt + 8 * 0x20 + 4], 0x00108E00                  ; offset bits 31..16, interrupt gate
            mov al, 0x11
            out 0x20, al
            mov al, 0x20
            out 0x21, al
            mov al, 4
            out 0x21, al
            mov al, 1
            out 0x21, al
            mov al, 0xFE
            out 0x21, al
            mov al, 0x34
            out 0x43, al
            mov al, 0
            out 0x40, al
            mov al, 4
            out 0x40, al                ; every 1024 ticks of 838 ns
            mov ecx, 2000000
    wait:   dec ecx
            jnz wait
            mov edi, 0
            sti
            nop
            inc edi                     ; STI holds interrupts back for one instruction, not for two
            jmp $
    tick:   cli
            hlt
            .align 8
    gdt:    .quad 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF
    gdtr:   .word 23
            .long gdt
    idtr:   .word 0x107
            .long idt
            .align 8
    idt:    .space 0x108
            .space 64
    stack:
            """
        ),
        seconds=0.1,
    )

    assert "EDI 0x00000000" in outcome(rig).registers
    assert 1 == rig.kernel.counters.vm_exits[ExitReason.INTERRUPT_WINDOW]
    assert 1 == rig.kernel.counters.injections


@pytest.mark.parametrize("size", [(5 << 20) + 0x1000, 4 << 20, 2 << 20])
def test_any_number_of_pages_makes_a_guests_memory(size: int) -> None:
    """Is the last word of memory the guest's, and the next one nobody's?"""
    guest = guest_from(
        f"""
        mov dword ptr [{size} - 4], 0x11223344
        mov eax, [{size} - 4]
        mov ebx, [{size}]
        cli
        hlt
        """
    )
    rig = Rig(start_flat.program(guest, size), 32 << 20)
    rig.run(SECOND)

    assert "EAX 0x11223344" in outcome(rig).registers
    assert "EBX 0xffffffff" in outcome(rig).registers


def test_more_memory_than_there_is_is_refused_with_advice() -> None:
    """Does a guest that does not fit end its monitor with a sentence that says what to do?"""
    rig = Rig(start_flat.program(greeting.build(), 64 << 20), 32 << 20)
    rig.run(SECOND)

    assert "less memory" in rig.last_stop.detail


def test_string_output_reaches_the_console() -> None:
    """Does REP OUTSB send a text?"""
    rig = run(
        guest_from(
            """
            mov esi, text
            mov ecx, 5
            mov dx, COM1
            cld
            rep outsb
            cli
            hlt
    text:   .ascii "String"
            """
        )
    )

    assert b"Strin" == bytes(rig.console)


def test_memory_that_is_not_there_is_ones_and_swallows_writes() -> None:
    """Beyond the guest's RAM, where pages can be mapped and where not: do loads give ones and stores do nothing?"""
    rig = run(
        guest_from(
            """
            mov dword ptr [0x08000000], 0x12345678
            mov eax, [0x08000000]
            mov dword ptr [0x08000000], 0x12345678
            mov ebx, [0x08000004]
            mov dword ptr [0xFEE00000], 0
            mov ecx, [0xFEE00000]
            movzx edx, byte ptr [0xFEE00001]
            cli
            hlt
            """
        )
    )
    assert rig.guest is not None
    assert rig.guest.monitor is not None
    registers = outcome(rig).registers
    for expected in ("EAX 0xffffffff", "EBX 0xffffffff", "ECX 0xffffffff", "EDX 0x000000ff"):
        assert expected in registers
    assert 2 == rig.guest.monitor.memory.unbacked[0x0800_0000, "write"]


@pytest.mark.parametrize(
    ("source", "end"),
    [
        ("mov dx, 0x604\nmov ax, 0x2000\nout dx, ax", End.POWERED_OFF),
        ("mov dx, 0xCF9\nmov al, 6\nout dx, al", End.RESET),
        ("mov al, 0xFE\nout 0x64, al", End.RESET),
        ("in al, 0x92\nor al, 1\nout 0x92, al", End.RESET),
        ("cli\nhlt", End.HALTED),
    ],
)
def test_the_ways_to_end_a_pc(source: str, end: End) -> None:
    """Is each way of turning a PC off or resetting it told from the others?"""
    assert end is outcome(run(guest_from(source + "\ncli\nhlt"))).end


def test_a_monitor_of_ones_own_replaces_a_handler() -> None:
    """Does an exercise's CPUID handler, put into the table, answer the guest instead of ours?"""
    guest = greeting.build()

    def cpuid(fault: Fault, reply: Reply) -> None:
        _, ebx, ecx, edx = vendor_leaf("a student of")
        for index, value in ((EAX, 0), (EBX, ebx), (ECX, ecx), (EDX, edx)):
            reply.gpr(index, value)
        reply.skip(fault)

    def main(l4: L4) -> None:
        monitor = Monitor(l4, RAM_SIZE)
        monitor.load(guest.pieces)
        monitor.handlers[ExitReason.CPUID] = cpuid
        monitor.run(start_flat.start_of(guest))

    rig = Rig(main, 64 << 20)
    rig.run(SECOND)

    assert greeting.expected_console("a student of").encode() == bytes(rig.console)


# Counts its lives at an address that nothing loads, says how many there were, and resets in the given way.
LIVES = """
        inc     dword ptr [0x200000]
        mov     al, byte ptr [0x200000]
        add     al, '0'
        out     0xE9, al
        cmp     byte ptr [0x200000], 3
        je      done
        mov     dx, 0x1F6               ; and writes a sector of the disk
        mov     al, 0xE0
        out     dx, al
        mov     dx, 0x1F2
        mov     al, 1
        out     dx, al
        mov     dx, 0x1F3
        mov     al, byte ptr [0x200000]
        out     dx, al
        mov     dx, 0x1F7
        mov     al, 0x30
        out     dx, al
        mov     dx, 0x1F0
        mov     ecx, 128
        mov     esi, 0x200000
        rep outsd
        {reset}
done:   cli
        hlt
"""


@pytest.mark.parametrize(
    "reset", ["mov al, 0xFE\nout 0x64, al", "in al, 0x92\nor al, 1\nout 0x92, al", "lidt [0]\nint3"]
)
def test_a_guest_that_resets_starts_again_with_memory_and_disk_as_they_are(reset: str) -> None:
    """By the keyboard controller, port 92, or a triple fault: three lives, and the writes of each on the disk?"""
    guest = guest_from(LIVES.format(reset=reset))
    rig = Rig.for_flat_guest(guest, hardware=Hardware(disk=bytes(5 * 512), restarts=5))
    rig.run(SECOND)

    assert b"123" == bytes(rig.console)
    assert End.HALTED is outcome(rig).end
    assert rig.guest is not None
    assert rig.guest.monitor is not None
    assert "3" == rig.stats()["debug_port"]
    ide = rig.guest.monitor.pc.ports.owner[0x1F0]
    assert isinstance(ide, Ide)
    assert [0, 1, 2, 0] == [ide.disk.read(sector, 1)[0] for sector in range(4)]


def test_a_reset_is_the_end_when_restarts_are_used_up() -> None:
    """With one restart: two lives, then the outcome says how it reset."""
    rig = Rig.for_flat_guest(
        guest_from(LIVES.format(reset="mov al, 0xFE\nout 0x64, al")), hardware=Hardware(restarts=1)
    )
    rig.run(SECOND)

    assert b"12" == bytes(rig.console)
    assert End.RESET is outcome(rig).end


def test_a_device_amid_memory_is_asked_and_memory_around_it_is_memory() -> None:
    """A serial port at 2 MiB, one register every four bytes: do stores to it go out, and those beside it stay?"""
    said = bytearray()
    guest = guest_from(
        """
        mov     dword ptr [0x1FFFFC], 0x1234
        mov     dword ptr [0x201000], 0x5678
        mov     esi, text
        mov     edi, 0x200000
.next:  movsb
        dec     edi
        cmp     byte ptr [esi], 0
        jne     .next
        mov     eax, [0x1FFFFC]
        add     eax, [0x201000]
        movzx   ebx, byte ptr [0x200014]        ; line status
        cli
        hlt
text:   .asciz  "by memory"
        """
    )
    found: list[Outcome] = []

    def main(l4: L4) -> None:
        port = AtMemory(Uart16550(l4.time_stamp, no_line, said.append), 0x20_0000, shift=2)
        monitor = Monitor(l4, RAM_SIZE, devices=[port])
        monitor.load(guest.pieces)
        found.append(monitor.run(start_flat.start_of(guest)))

    rig = Rig(main, 64 << 20)
    rig.run(SECOND)

    assert b"by memory" == bytes(said)
    assert End.HALTED is found[0].end
    assert "EAX 0x000068ac" in found[0].registers
    assert f"EBX {0x60:#010x}" in found[0].registers


def test_a_guest_that_sizes_memory_by_writing_is_told_of_once() -> None:
    """Does the console say, once, why a guest that writes far beyond its memory takes so long?"""
    rig = run(
        guest_from(
            """
            mov     ebx, 0x10000000
            mov     ecx, 11000
    .next:  mov     dword ptr [ebx], 0x55AA55AA
            add     ebx, 0x1000
            dec     ecx
            jnz     .next
            cli
            hlt
            """
        )
    )

    assert 1 == bytes(rig.console).count(b"l4lab: the guest writes where no memory is, at 0x11387000")


def test_what_a_guest_asks_for_in_vain_is_counted() -> None:
    """A port, an MSR, a CPUID leaf and memory that are not there: are all of them in the statistics?"""
    rig = run(
        guest_from(
            """
            mov     dx, 0x500
            in      eax, dx
            mov     ecx, 0x123
            rdmsr
            mov     eax, 0x12345678
            cpuid
            mov     dword ptr [0xFED00000], 1
            cli
            hlt
            """
        )
    )

    assert {
        "ports": {"in 0x500": 1},
        "msrs": {"read 0x123": 1},
        "cpuid_leaves": {"0x12345678": 1},
        "memory": {"write 0xfed00000": 1},
    } == rig.stats()["unknown"]
