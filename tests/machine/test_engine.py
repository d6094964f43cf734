# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPU engine: every run is exact, however it is cut, and stores to code count.

Guest mode, ring 3 and paging over it are tested where they are used: `tests/kernel`, `tests/user/monitor`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.frame import EAX, EBX, ECX, EDX, EFLAGS, EIP, ESP
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine, new_unicorn
from l4lab.machine.memory import Memory
from l4lab.user.asm import assemble

FRAME, CODE, DATA, STACK, SIZE = 0x100, 0x1000, 0x3000, 0x6000, 0x8000
FOREVER = 1 << 40
PATTERN = bytes(n * 37 + 11 & 0xFF for n in range(STACK - 0x800 - DATA))  # what DATA holds


class Bench:
    """A CPU in ring 0 without paging, and a program."""

    def __init__(self, source: str, kind: str | None = None) -> None:
        self.memory = Memory(SIZE)
        self.engine = Engine(self.memory, kind)
        self.program = assemble(source, CODE)
        self.memory.write(CODE, self.program.code)
        self.memory.write(DATA, PATTERN)
        self.frame = self.memory.register_frame(FRAME)
        self.frame[EIP], self.frame[EFLAGS], self.frame[ESP] = CODE, 2, STACK

    def run(self, cycles: int = FOREVER) -> int:
        """Run for so many cycles at most; the event."""
        return int(self.engine.run(FRAME, self.engine.cycles + cycles))

    @property
    def state(self) -> tuple[int, list[int], bytes]:
        """The clock, the registers, and all memory."""
        return self.engine.cycles, self.frame.tolist(), bytes(self.memory.u8)

    def finish(self, lengths: Iterator[int]) -> int:
        """Run in pieces to the end; the event that was the end."""
        while (event := self.run(next(lengths))) == e.EVENT_BUDGET:
            pass
        return event


def counted_by_hooks(source: str) -> tuple[int, list[int], bytes]:
    """How many instructions the bare engine says begin until the trap that ends a program; registers and memory."""
    from unicorn import UC_HOOK_CODE, UC_HOOK_INSN_INVALID, UC_HOOK_INTR, x86_const

    uc = new_unicorn()
    uc.mem_map(0, SIZE)
    uc.mem_write(CODE, assemble(source, CODE).code)
    uc.mem_write(DATA, PATTERN)
    begun = [0]

    def count(*_: object) -> None:
        begun[0] += 1

    def stop(*_: object) -> bool:
        uc.emu_stop()
        return True

    uc.hook_add(UC_HOOK_CODE, count)
    uc.hook_add(UC_HOOK_INTR, stop)
    uc.hook_add(UC_HOOK_INSN_INVALID, stop)
    uc.reg_write(x86_const.UC_X86_REG_ESP, STACK)
    uc.emu_start(CODE, 0)
    names = ("EIP", "EDI", "ESI", "EBP", "ESP", "EBX", "EDX", "ECX", "EAX")
    registers = [uc.reg_read(getattr(x86_const, f"UC_X86_REG_{name}")) for name in names]
    return begun[0] - 1, registers, bytes(uc.mem_read(CODE, SIZE - CODE))


# -- random programs

small = st.integers(0, 5)
word = st.integers(0, 0xFFFF_FFFF)
at = st.integers(0, 63).map(lambda i: DATA + 4 * i)
PIECES = st.one_of(
    st.builds("add eax, {:#x}\n imul ebx, eax, 7\n adc edx, ebx".format, word),
    st.builds("mov dword ptr [{:#x}], eax\n xor ebx, [{:#x}]".format, at, at),
    st.builds("mov ecx, {}\n mov edi, {:#x}\n rep stosd".format, small, at),
    st.builds("mov ecx, {}\n mov esi, {:#x}\n mov edi, {:#x}\n rep movsb".format, small, at, at),
    st.builds("mov ecx, {}\n mov esi, {:#x}\n mov edi, {:#x}\n repe cmpsb".format, small, at, at),
    st.builds("mov ecx, {}\n mov edi, {:#x}\n cli\n sti\n rep stosb".format, small, at),
    st.builds("mov ecx, {} + 1\n L@: inc dword ptr [{:#x}]\n sub edx, ecx\n dec ecx\n jnz L@".format, small, at),
    st.builds("push eax\n call S@\n jmp E@\n S@: xchg eax, [esp + 4]\n ret\n E@: pop edx".format),
    st.just("test eax, 1\n jz L@\n add edx, 3\n L@: pushfd\n pop ebx"),
    st.just("cli\n sti\n nop\n cld"),
)
CHANGES = st.one_of(
    st.builds("mov dword ptr [P@ + 1], {:#x}\n P@: mov ebx, 1\n add edx, ebx".format, word),
    st.builds("mov ecx, 3\n L@: P@: mov ebx, 5\n add [P@ + 1], ecx\n dec ecx\n jnz L@\n xor ebx, {}".format, small),
)
ENDS = st.sampled_from(["ud2", "xor ecx, ecx\n div ecx", "hlt_ = 0\n int 0x40"])


def joined(pieces: list[str], end: str) -> str:
    """One program; labels of each piece made its own."""
    return "\n".join(piece.replace("@", str(i)) for i, piece in enumerate([*pieces, end]))


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=8), ENDS)
def test_the_clock_counts_what_retired(pieces: list[str], end: str) -> None:
    """For any program: is the clock the number of instructions that the bare engine's own hooks count?"""
    source = joined(pieces, end)
    bench = Bench(source)

    bench.run()
    count, registers, memory = counted_by_hooks(source)

    completed = 1 if end.endswith("0x40") else 0  # INT n retires, a fault does not
    assert count + completed == bench.engine.cycles
    assert registers == [value for i, value in enumerate(bench.frame) if i != EFLAGS]
    assert memory == bench.memory.read(CODE, SIZE - CODE)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            "{}\n mov edi, {:#x}\n {}\n mov ecx, {}\n {} {}".format,
            *(st.sampled_from(("cld", "cld", "cld", "std")), st.integers(DATA - 16, DATA + 0x1010)),
            st.integers(CODE, DATA + 0x1010).map("mov esi, {:#x}".format)
            | st.integers(-9, 9).map("lea esi, [edi + {}]".format),
            st.integers(0, 1000) | st.integers(0, 5),
            *(st.sampled_from(("rep", "rep", "repne")), st.sampled_from(("stosb", "stosw", "stosd", "movsb", "movsd"))),
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(1, 2000), min_size=1, max_size=4),
)
def test_repeated_stores_are_those_of_the_bare_engine(pieces: list[str], lengths: list[int]) -> None:
    """Whole pages at once, over page ends, onto themselves, backwards, cut anywhere: are clock and memory the same?"""
    from itertools import cycle

    source = joined(["mov eax, 0x12345678", *pieces], "ud2")
    bench = Bench(source)

    bench.finish(cycle(lengths))
    count, registers, memory = counted_by_hooks(source)

    assert count == bench.engine.cycles
    assert registers == [value for i, value in enumerate(bench.frame) if i != EFLAGS]
    assert memory == bench.memory.read(CODE, SIZE - CODE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(PIECES, CHANGES), min_size=1, max_size=8), ENDS, st.lists(st.integers(1, 40), min_size=1))
def test_a_run_can_be_cut_anywhere(pieces: list[str], end: str, lengths: list[int]) -> None:
    """For any program, also one that changes itself: do running through, in pieces, and by single steps agree?"""
    from itertools import cycle, repeat

    source = joined(pieces, end)
    whole, parts, steps = Bench(source), Bench(source), Bench(source)

    events = {whole.finish(repeat(FOREVER)), parts.finish(cycle(lengths)), steps.finish(repeat(1))}

    assert 1 == len(events)
    assert whole.state == parts.state == steps.state


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(PIECES, CHANGES), min_size=1, max_size=6), st.integers(1, 60))
def test_a_deadline_is_met_to_the_instruction(pieces: list[str], cycles: int) -> None:
    """Does a run stop exactly at its deadline, if the program lasts so long?"""
    bench = Bench(joined(pieces, "again@: jmp again@"))

    assert e.EVENT_BUDGET == bench.run(cycles)
    assert cycles == bench.engine.cycles


# -- ports


@pytest.mark.parametrize(
    ("source", "event", "port", "size", "value"),
    [
        ("mov eax, 0x11223344\n at: out 0x80, al", e.EVENT_OUT, 0x80, 1, 0x44),
        ("mov eax, 0x11223344\n mov edx, 0x3f8\n at: out dx, ax", e.EVENT_OUT, 0x3F8, 2, 0x3344),
        ("mov eax, 0x11223344\n at: out 0x80, eax", e.EVENT_OUT, 0x80, 4, 0x11223344),
        ("mov eax, 0x11223344\n at: in al, 0x60", e.EVENT_IN, 0x60, 1, None),
        ("mov eax, 0x11223344\n mov edx, 0x1234\n at: in eax, dx", e.EVENT_IN, 0x1234, 4, None),
    ],
)
def test_a_port_access_stops_before_it_happens(
    source: str, event: int, port: int, size: int, value: int | None
) -> None:
    """Is EIP at the instruction, EAX untouched, the instruction not counted, and are port, width and value told?"""
    bench = Bench(source + "\n ud2")

    assert event == bench.run()
    info = bench.engine.info
    assert (port, size) == (info[e.INFO_PORT], info[e.INFO_SIZE])
    assert value is None or value == info[e.INFO_VALUE]
    assert bench.program.address("at") == bench.frame[EIP]
    assert 0x11223344 == bench.frame[EAX]
    assert sum(line.is_instruction and line.address < bench.frame[EIP] for line in bench.program.lines) == (
        bench.engine.cycles
    )


@pytest.mark.parametrize("kind", ["native", "python"])
def test_cpuid_stops_before_it_happens(kind: str) -> None:
    """Is CPUID, which nothing else tells of, told by both cores, with EIP and registers as before and nothing behind it
    done?"""
    bench = Bench("mov eax, 0x11223344\n mov ebx, 5\n at: cpuid\n inc ebx\n ud2", kind)

    assert e.EVENT_CPUID == bench.run()
    assert [bench.program.address("at"), 5, 0x11223344] == [bench.frame[at] for at in (EIP, EBX, EAX)]
    assert 2 == bench.engine.cycles


# -- code that changes


def test_code_that_python_overwrote_is_executed_anew() -> None:
    """Is code that Python overwrote executed anew?"""
    bench = Bench("mov eax, 1\n int 0x40\n jmp 0x1000")
    bench.run()
    bench.memory.write(CODE + 1, struct.pack("<I", 2))

    bench.run()

    assert 2 == bench.frame[EAX]


def test_code_that_was_translated_and_did_not_run_is_no_exception() -> None:
    """Is code overwritten that the engine has translated already, when the run ended right before it?"""
    bench = Bench("jmp next\n .align 4096\n next: mov eax, 1\n int 0x40")
    bench.run(1)
    bench.memory.write(bench.program.address("next") + 1, struct.pack("<I", 2))

    bench.run()

    assert 2 == bench.frame[EAX]


@pytest.mark.parametrize("later", [False, True])
def test_a_program_that_overwrites_code_runs_the_new(later: bool) -> None:
    """Does a store to a page in which code has run, or is about to, change what runs?"""
    source = "call F\n mov byte ptr [F + 1], 9\n call F\n int 0x40\n F: mov ebx, 5\n add edx, ebx\n ret"
    bench = Bench(source if later else "mov dword ptr [G + 1], 9\n G: mov edx, 5\n int 0x40")

    bench.run()

    assert (14 if later else 9) == bench.frame[EDX]


# -- the TLB


def test_what_the_tlb_holds_stays_until_it_is_flushed() -> None:
    """After a page table entry changed: is the old page read until the TLB is flushed, and the new one from then on?"""
    bench = Bench("again: mov eax, [0x3000]\n int 0x40\n jmp again")
    directory, table = 0x4000, 0x5000
    bench.memory.set_word(directory >> 2, table | 7)
    for page in range(8):
        bench.memory.set_word((table >> 2) + page, page << 12 | 7)
    bench.memory.set_word(0x3000 >> 2, 1)
    bench.memory.set_word(0x6000 >> 2, 2)
    bench.engine.write_register("CR3", directory)
    bench.engine.write_register("CR0", 0x80000011)
    seen = []
    for change in (None, lambda: None, bench.engine.flush_tlb):
        bench.run()
        seen.append(bench.frame[EAX])
        if change is not None:
            bench.memory.set_word((table >> 2) + 3, 0x6000 | 7)
            change()
    bench.run()

    assert [1, 1, 1, 2] == [*seen, bench.frame[EAX]]


def test_states_can_be_exchanged() -> None:
    """Does a whole CPU state come back as it was swapped out?"""
    bench = Bench("mov ecx, 9\n fld1\n int 0x40\n fistp dword ptr [0x3000]\n int 0x40")
    bench.run()
    saved, other = bytearray(e.ENV_SIZE), bytearray(bench.engine.reset_state)
    bench.engine.swap(saved, other)
    bench.engine.swap(other, saved)
    bench.run()

    assert 1 == bench.memory.u32[0x3000 >> 2]
    assert (9, 0) == (bench.frame[ECX], bench.frame[EBX])
