# SPDX-License-Identifier: GPL-2.0-or-later
"""Random code, run to random deadlines in every mode of paging: what a test of all cores shares with a campaign.

A case is a program of pieces, laid out so that it crosses the end of a page, and orders for the run: deadlines,
windows, events to deliver, where to go on after each stop. A bench is a machine with one kind of core. What it has to
tell is all that can be seen at each stop, and the state in the end, page tables with their accessed bits included.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.guestmode import GuestMode
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.vmcs import CR0_PG, CR0_WP
from l4lab.machine.vtx import HLT_EXITING

SIZE = 1 << 18
FRAME, REGION, BLOCK = 0x30000, 0x31000, 0x35000
HOST_DIRECTORY, HOST_TABLE, DIRECTORY, TABLE = 0x36000, 0x37000, 0x12000, 0x13000
IDT, GDT, CODE, HANDLERS, STACK, DATA, COPY = 0x1000, 0x2000, 0x4000, 0x7000, 0x8000, 0x9000, 0xC000
PAGES = 0x20  # of the guest's memory, mapped to themselves
ABSENT = 0x3FF000  # no page there, and no RAM
CODE_0, DATA_0, USER_CODE, USER_DATA = 8, 16, 0x18 | 3, 0x20 | 3
MODES = ("flat", "paged", "nested", "nested paged", "real", "shadow")  # the first two: a program in ring 3
STATE = (slice(0, e.ENV_EFLAGS), slice(e.ENV_HFLAGS, e.ENV_HFLAGS + 4), slice(e.ENV_SEGS, e.ENV_CR + 40))
CR4_TSD = 1 << 2


@dataclass(frozen=True)
class Case:
    """What is executed, and how."""

    mode: str
    at: int  # where the code begins
    code: bytes
    handler: bytes
    missing: tuple[int, ...]  # pages that the program's own tables lack
    host_missing: tuple[int, ...]  # pages that the second level lacks
    eflags: int
    registers: tuple[int, ...]
    orders: tuple[
        tuple[int, bool, tuple[int, int] | None, int], ...
    ]  # cycles, window, event to deliver, where to go on


def little(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


inside = st.integers(0, 0x7F).map(lambda n: CODE + 0xFC0 + n)  # an address in the code
somewhere = st.one_of(
    *(st.integers(0, 0x3FF).map(lambda n, page=page: page + 4 * n) for page in (DATA, COPY)),
    st.sampled_from((DATA + 0xFFE, ABSENT, SIZE - 2, SIZE + 8, STACK + 0x800)),
    inside,
)
# No instruction here names a width, so that it is the same program in 16-bit code, if another one.
PIECES = st.one_of(
    st.sampled_from(
        (
            *(b"\x40", b"\x43", b"\x4a", b"\x90", b"\x01\xd8", b"\x31\xc3", b"\x11\xd1", b"\xd1\xe0", b"\x0f\xaf\xc3"),
            *(
                b"\x50",
                b"\x58",
                b"\x9c",
                b"\x9d",
                b"\x9c\x58\x50\x9d",
                b"\xe8\0\0\0\0",
                b"\xc3",
                b"\xf5",
                b"\xfc",
                b"\xfd",
            ),
            *(
                b"\xfb",
                b"\xfa",
                b"\xfb\x90",
                b"\xcc",
                b"\xcd\x30",
                b"\xcd\x06",
                b"\xce",
                b"\x0f\x0b",
                b"\xf7\xf1",
                b"\xf4",
            ),
            *(b"\xe4\x20", b"\xe6\x20", b"\xed", b"\x6c", b"\xcf", b"\x0f\xa2", b"\x0f\x31", b"\xf3\x90", b"\x8e\xd0"),
            *(b"\xf3\xaa", b"\xf3\xab", b"\xf3\xa4", b"\xf3\xa5", b"\xf3\xa6", b"\xf2\xae", b"\xaa", b"\xa5", b"\x6e"),
            *(b"\xd9\xe8", b"\xd9\xc9", b"\xde\xc1", b"\xdd\xd8", b"\x0f\x28\xc1", b"\x0f\x58\xc1", b"\xdb\xe3"),
            *(
                b"\x0f\x20\xd8\x0f\x22\xd8",
                b"\x0f\x01\x38",
                b"\xf0\xff\x07",
                b"\x0f\xc7\x0f",
                b"\x66\x40",
                b"\x67\x8b\x00",
            ),
            *(b"\x66" * 14 + b"\x90", b"\x66" * 15 + b"\x90", b"\x2e" * 13 + b"\xb8\1\0\0\0", b"\x90" * 70),
        )
    ),
    st.builds(lambda a: b"\xa3" + little(a), somewhere),
    st.builds(lambda a: b"\xa1" + little(a), somewhere),
    st.builds(lambda a: b"\xff\x05" + little(a), somewhere),
    st.builds(lambda a: b"\x0f\xae\x05" + little(a & ~15), somewhere),  # fxsave
    st.builds(lambda a, b: b"\xc6\x05" + little(a) + bytes([b]), inside, st.sampled_from(b"\x90\x40\x43\xf4\xeb\xc3")),
    st.builds(lambda a: b"\xbf" + little(a), somewhere),
    st.builds(lambda a: b"\xbe" + little(a), somewhere),
    st.builds(lambda n: b"\xb9" + little(n), st.sampled_from((0, 1, 2, 7, 40, 1100))),
    st.builds(lambda c, d: bytes([0x70 + c, d & 0xFF]), st.integers(0, 15), st.integers(-40, 40)),
    st.builds(lambda d: bytes([0xEB, d & 0xFF]), st.integers(-40, 40)),
    st.builds(lambda d: bytes([0xE2, d & 0xFF]), st.integers(-20, -2)),
    st.builds(lambda a: b"\xe9" + little(a), st.integers(-0x1100, 0x1100)),
    st.binary(min_size=1, max_size=6),
)
PROGRAMS = st.lists(PIECES, min_size=1, max_size=30).map(b"".join)
CASES = st.builds(
    Case,
    mode=st.sampled_from(MODES),
    at=st.one_of(st.integers(CODE + 0xFC0, CODE + 0xFFF), st.just(CODE)),
    code=PROGRAMS,
    handler=st.lists(PIECES, max_size=2).map(b"".join),
    missing=st.sampled_from(((), (), (CODE + 0x1000,), (DATA,), (STACK - 0x1000,), (CODE,))),
    host_missing=st.sampled_from(((), (), (CODE + 0x1000,), (DATA,), (COPY,))),
    eflags=st.sampled_from((2, 0x202, 0x202, 0x102, 0x10202, 0x3202)),
    registers=st.tuples(*(st.integers(DATA, DATA + 0xFF0) for _ in range(8))),
    orders=st.lists(
        st.tuples(
            st.sampled_from((1, 1, 2, 3, 5, 7, 11)) | st.integers(1, 60) | st.integers(1, 3000),
            st.sampled_from((False, False, False, True)),
            st.none() | st.none() | st.tuples(st.sampled_from((0x20, 13, 0x30, 3)), st.integers(0, 2)),
            st.integers(0, 255),
        ),
        min_size=3,
        max_size=25,
    ).map(tuple),
)


class Bench:
    """A machine with one kind of core that runs cases."""

    def __init__(self, kind: str) -> None:
        self.memory = Memory(SIZE)
        self.engine = Engine(self.memory, kind)
        self.guest = GuestMode(self.memory, self.engine, REGION)
        self._tables((), ())
        self.bare = self.engine.reset_state
        self.guest.create(FRAME, BLOCK, HOST_DIRECTORY)

    def _tables(self, missing: tuple[int, ...], host_missing: tuple[int, ...]) -> None:
        for directory, table, without in ((DIRECTORY, TABLE, missing), (HOST_DIRECTORY, HOST_TABLE, host_missing)):
            self.memory.fill(directory, 2 * PAGE_SIZE)
            self.memory.set_word(directory >> 2, table | 7)
            for page in range(PAGES):
                self.memory.set_word((table >> 2) + page, 0 if page << 12 in without else page << 12 | 7)
            for address in (SIZE - PAGE_SIZE, SIZE):  # the last page of RAM, and the first that is none
                self.memory.set_word((table >> 2) + (address >> 12), address | 7)

    def run(self, case: Case) -> list[object]:
        """Everything that can be seen of a run."""
        memory, engine = self.memory, self.engine
        memory.fill(0, FRAME)
        memory.fill(BLOCK + 0x70, 0x40)  # what exits have told
        self._tables(case.missing, case.host_missing)
        real = case.mode == "real"
        memory.fill(HANDLERS, 256, 0xF4)
        for vector in range(256):
            if real:
                memory.write(IDT + 4 * vector, struct.pack("<2H", HANDLERS, 0))
            else:
                memory.write(IDT + 8 * vector, struct.pack("<4H", HANDLERS, CODE_0, 0x8E00, 0))
        descriptors = (0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF)
        memory.write(GDT + 8, struct.pack("<4Q", *descriptors))
        memory.write(HANDLERS, case.handler + b"\xcf")
        memory.write(DATA, bytes(n * 37 & 0xFF for n in range(256)))
        memory.write(case.at, case.code)
        memory.write(case.at + len(case.code), b"\xe9" + little(-len(case.code) - 5))
        engine.swap(bytearray(e.ENV_SIZE), self._context(case))
        engine.forget_all_code()
        env = engine.env32
        guest = case.mode not in ("flat", "paged")
        if guest:
            env[e.ENV_INTERCEPT >> 2] |= 1 << 14 | 1 << 18 | 1 << 24  # RDTSC, CPUID, HLT
            env[e.ENV_INTERCEPT_DR >> 2] = 0xFFFFFFFF  # the engine keeps breakpoints outside of its state
            env[e.ENV_INTERCEPT_CR >> 2] = 0xFFFFFFFF if case.mode == "shadow" else 0
            env[e.ENV_INTERCEPT_EXCEPTIONS >> 2] = 1 << 14 if case.mode == "shadow" else 0
        engine.set_time(True, 1000)
        memory.write(FRAME, struct.pack("<10I", case.at, case.eflags, *case.registers))
        memory.set_word((FRAME >> 2) + 5, STACK)
        start, retired, deliveries = engine.cycles, engine.retired, engine.deliveries
        engine.charge(-start)  # so that all read the same clock
        seen: list[object] = []
        for cycles, window, event, onwards in case.orders:
            engine.set_window(window)
            if guest and event:
                engine.inject(event[0], event[1], 0, 2 if event[1] else 0)
            seen.append(self._stop(engine.cycles + cycles, retired, deliveries))
            happened = seen[-1][0]  # type: ignore[index]
            engine.inject(-1, 0, 0, 0)
            if onwards & 4:
                self._change_tables(onwards >> 3)
            if happened not in (e.EVENT_BUDGET, e.EVENT_WINDOW):
                frame = memory.register_frame(FRAME)
                if happened == e.EVENT_BEFORE and onwards & 1:
                    engine.go_on()
                else:
                    frame[0] = case.at + onwards % (len(case.code) + 5) if onwards & 2 else frame[0] + 1
                    frame[1] = frame[1] & ~0x100 | 2
        engine.set_window(False)
        engine.charge(start)
        seen += [bytes(engine.env[part]).hex() for part in STATE]
        seen.append(bytes(memory.u8))
        return seen

    def _change_tables(self, onwards: int) -> None:
        """As a kernel would between two runs: no page is accessed, one goes or comes, and the TLB knows of it."""
        memory = self.memory
        for table in (TABLE, HOST_TABLE):
            for at in range(table >> 2, (table >> 2) + PAGES):
                memory.set_word(at, memory.u32[at] & ~0x60)
        at = ((TABLE, HOST_TABLE)[onwards & 1] >> 2) + (CODE + 0x1000, DATA)[onwards >> 1 & 1] // PAGE_SIZE
        memory.set_word(at, memory.u32[at] ^ (onwards >> 2 & 1))
        self.engine.flush_tlb()

    def _stop(self, deadline: int, retired: int, deliveries: int) -> tuple[object, ...]:
        """Run to the next stop; what can be seen there."""
        engine = self.engine
        event = engine.run(FRAME, deadline)
        while event == e.EVENT_BUDGET and engine.cycles < deadline:  # it took long by the host's clock
            event = engine.run(FRAME, deadline)
        info = list(engine.info)[:6] if event >= 0 else []
        if event == e.EVENT_ERROR:
            info = [engine.info[e.INFO_UC_ERROR]]
        frame = struct.unpack("<10I", self.memory.read(FRAME, 40))
        cr2 = engine.env32[(e.ENV_CR >> 2) + 4]
        counts = engine.cycles, engine.retired - retired, engine.deliveries - deliveries
        return event, info[:2], counts, [hex(word) for word in frame], hex(cr2)

    def _context(self, case: Case) -> bytes:
        """The CPU's state before the first instruction."""
        if case.mode in ("flat", "paged"):
            state = memoryview(bytearray(self.bare)).cast("I")
            if case.mode == "paged":
                state[e.ENV_CR >> 2] |= CR0_PG | CR0_WP
            state[(e.ENV_CR >> 2) + 6] = DIRECTORY
            state[(e.ENV_CR >> 2) + 8] |= CR4_TSD  # or RDTSC would read the host's clock
            state[(e.ENV_GDT >> 2) + 2], state[(e.ENV_GDT >> 2) + 4] = GDT, 0xFF
            state[e.ENV_HFLAGS >> 2] |= e.HF_CPL
            for segment in range(6):
                at = (e.ENV_SEGS >> 2) + 6 * segment
                state[at] = USER_CODE if segment == 1 else USER_DATA
                state[at + 2], state[at + 4] = 0, 0xFFFFFFFF
                state[at + 5] = 0x00CFFB00 if segment == 1 else 0x00CFF300
            return bytes(state)
        vmcs = self.guest.create(FRAME, BLOCK, HOST_DIRECTORY)
        real = case.mode == "real"
        limit, wide = (0xFFFF, 0) if real else (0xFFFFFFFF, 0xC000)
        vmcs.set_segment("cs", 0 if real else CODE_0, 0, limit, 0x9B | wide)
        for name in ("es", "ss", "ds", "fs", "gs"):
            vmcs.set_segment(name, 0 if real else DATA_0, 0, limit, 0x93 | wide)
        vmcs.set_table("gdtr", GDT, 0xFF)
        vmcs.set_table("idtr", IDT, 0x7FF)
        vmcs.set_control_register(3, DIRECTORY)
        vmcs.set_control_register(4, 0)
        vmcs.cpu_controls = HLT_EXITING
        if case.mode == "shadow":
            vmcs.shadow_paging()
            vmcs.set_control_register(0, 0x11)
            vmcs.set_shadow_root(DIRECTORY)
        else:
            vmcs.set_control_register(0, 0x10 | (not real) | (case.mode == "nested paged") << 31)
        vmcs.derive_flags(case.eflags)
        return bytes(vmcs.context)


def differences(expected: list[object], found: list[object]) -> list[object]:
    """What two runs have seen differently: the first stop, or parts of the final state."""
    for at, (one, other) in enumerate(zip(expected[:-1], found[:-1], strict=True)):
        if one != other:
            return [at, one, other]
    before, after = expected[-1], found[-1]
    assert isinstance(before, bytes)
    assert isinstance(after, bytes)
    return (
        [(hex(at), before[at], after[at]) for at in range(SIZE) if before[at] != after[at]] if before != after else []
    )
