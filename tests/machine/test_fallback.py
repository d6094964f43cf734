# SPDX-License-Identifier: GPL-2.0-or-later
"""All cores give what the native core gives, to the cycle; so the engine's own delivery of events is the oracle for
`delivery.py`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.guestmode import GuestMode
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.rig.rig import Rig
from l4lab.user.guests import greeting, misbehave, tinyos

SIZE = 1 << 18
FRAME, REGION, BLOCK = 0x30000, 0x31000, 0x35000
HOST_DIRECTORY, HOST_TABLE, DIRECTORY, TABLE = 0x36000, 0x37000, 0x38000, 0x39000
IDT, GDT, TSS, CODE, HANDLERS, STACK_0, STACK_3, DATA = (0x1000 * n for n in (1, 2, 3, 4, 5, 6, 7, 8))
STATE = (
    *(slice(e.ENV_SEGS, e.ENV_SEGS + 144), slice(e.ENV_LDT, e.ENV_CR + 40), slice(e.ENV_HFLAGS, e.ENV_HFLAGS + 4)),
    slice(0, e.ENV_EFLAGS + 8),
)
CODE_0, DATA_0, CODE_3, DATA_3, TSS_32, CONFORMING, CODE_16, DATA_16, TSS_16, ABSENT_CODE, ABSENT_DATA = (
    8 * n for n in range(1, 12)
)
SEGMENTS = {  # access byte, flags
    CODE_0: (0x9B, 0xC),
    DATA_0: (0x93, 0xC),
    CODE_3: (0xFB, 0xC),
    DATA_3: (0xF3, 0xC),
    CONFORMING: (0x9F, 0xC),
    CODE_16: (0x9B, 0x0),
    DATA_16: (0x93, 0x0),
    ABSENT_CODE: (0x1B, 0xC),
    ABSENT_DATA: (0x13, 0xC),
}
VECTORS = (0, 3, 4, 6, 13, 14, 0x20, 0x21, 0x80)
PIECES = (
    *(b"\x90", b"\x41", b"\xcd\x20", b"\xcd\x21", b"\xcd\x80", b"\xcd\x03", b"\xcc", b"\xfb", b"\xfa", b"\x9c\x9d"),
    b"\xb0\x7f\x04\x7f",  # an addition that overflows
    b"\x31\xc9\xf7\xf1",  # division by zero
    b"\xa3\x00\x80\x00\x00",  # a store to DATA, in 32-bit code
    b"\xa1\x00\x00\x50\x00",  # a load from nowhere
    b"\xf3\xaa",  # rep stosb
    b"\xfb\xc3",  # sti; ret
    b"\xe4\x60",
    b"\xef",
    b"\x6c",
    b"\x0f\x31",
    b"\xf4",
    b"\x0f\xa2",
    b"\xc6\x05\x08\x40\x00\x00\x43",  # a store into this code
    b"\xce",
    b"\xcf",
)


@dataclass(frozen=True)
class Case:
    """A guest with its tables, what it executes, and how it is run."""

    mode: str  # real, v8086, ring0, ring3
    paging: bool
    code: bytes
    gates: dict[int, tuple[int, int, int]]  # vector: type and P and DPL, selector, offset within HANDLERS
    handler: bytes
    tss: tuple[int, int, int]  # selector, SS0, ESP0
    missing: frozenset[int]  # pages the guest's tables lack
    host_missing: frozenset[int]
    idt_limit: int
    eflags: int
    exceptions: int
    inject: tuple[int, int, int] | None
    window: bool
    deadlines: tuple[int, ...]


PAGES = st.frozensets(st.sampled_from((IDT, GDT, TSS, STACK_0, STACK_3, DATA, HANDLERS)), max_size=1)
GATES = st.dictionaries(
    st.sampled_from(VECTORS),
    st.tuples(
        st.sampled_from((0x8E, 0xEE, 0x8F, 0xEF, 0x86, 0xE6, 0xE7, 0x0E, 0x8C)),
        st.sampled_from(
            (CODE_0, CODE_0, CODE_0, CODE_3, CODE_3 | 3, CONFORMING, CODE_16, DATA_0, ABSENT_CODE, 0, 0x100)
        ),
        st.integers(0, 3).map(lambda n: 16 * n),
    ),
    max_size=len(VECTORS),
)
CASES = st.builds(
    Case,
    mode=st.sampled_from(("real", "v8086", "ring0", "ring3")),
    paging=st.booleans(),
    code=st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map(b"".join),
    gates=GATES,
    handler=st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join),
    tss=st.tuples(
        st.sampled_from((TSS_32, TSS_32, TSS_16, 0)),
        st.sampled_from((DATA_0, DATA_0, DATA_0, DATA_16, DATA_3, CODE_0, ABSENT_DATA, 0, 0x200)),
        st.sampled_from((STACK_0 + 0xF00, STACK_0 + 6, STACK_0 + 0x1002)),
    ),
    missing=PAGES,
    host_missing=PAGES,
    idt_limit=st.sampled_from((0x7FF, 0x7FF, 0x107, 0x1F)),
    eflags=st.sampled_from((0x3002, 0x3202, 0x3202, 0x0202)),
    exceptions=st.sampled_from((0, 0, 1 << 13, 1 << 14, 1 << 8)),
    inject=st.none() | st.tuples(st.sampled_from(VECTORS), st.integers(0, 2), st.integers(0, 2)),
    window=st.booleans(),
    deadlines=st.lists(st.integers(1, 30), min_size=2, max_size=6).map(tuple),
)


class Bench:
    """A machine with one core that runs cases."""

    def __init__(self, kind: str) -> None:
        self.memory = Memory(SIZE)
        self.engine = Engine(self.memory, kind)
        self.guest = GuestMode(self.memory, self.engine, REGION)
        self._tables()
        self.mould = bytes(self.guest.create(FRAME, BLOCK, HOST_DIRECTORY).context)

    def _tables(self, host_missing: frozenset[int] = frozenset(), missing: frozenset[int] = frozenset()) -> None:
        for directory, table, without in (
            (HOST_DIRECTORY, HOST_TABLE, host_missing),
            (DIRECTORY, TABLE, missing),
        ):
            self.memory.fill(directory, 2 * PAGE_SIZE)
            self.memory.set_word(directory >> 2, table | 7)
            for page in range(SIZE >> 12):
                self.memory.set_word((table >> 2) + page, 0 if page << 12 in without else page << 12 | 7)

    def _descriptor(self, selector: int, base: int, limit: int, access: int, flags: int) -> None:
        low = limit & 0xFFFF | (base & 0xFFFF) << 16
        high = base >> 16 & 0xFF | access << 8 | limit & 0xF0000 | flags << 20 | base & 0xFF000000
        self.memory.write(GDT + selector, struct.pack("<2I", low, high))

    def run(self, case: Case) -> list[object]:
        """Everything that can be seen of a run."""
        memory, engine = self.memory, self.engine
        memory.fill(0, FRAME)
        self._tables(case.host_missing, case.missing)
        vmcs = self.guest.create(FRAME, BLOCK, HOST_DIRECTORY)
        for selector, (access, flags) in SEGMENTS.items():
            self._descriptor(selector, 0, 0xFFFFF if flags & 8 else 0xFFFF, access, flags)
        self._descriptor(TSS_32, TSS, 0x67, 0x8B, 0)
        self._descriptor(TSS_16, TSS, 0x2B, 0x83, 0)
        tss, ss0, esp0 = case.tss
        memory.write(TSS, struct.pack("<3H", 0, esp0, ss0) if tss == TSS_16 else struct.pack("<3I", 0, esp0, ss0))
        protected = case.mode != "real"
        for vector in range(256):
            kind, selector, offset = case.gates.get(vector, (0xEE, CODE_0, 0))
            if protected:
                gate = struct.pack("<HHHH", HANDLERS + offset & 0xFFFF, selector, kind << 8, 0)
                memory.write(IDT + 8 * vector, gate)
            else:
                memory.write(IDT + 4 * vector, struct.pack("<HH", HANDLERS + offset, 0))
        for n in range(4):
            memory.write(HANDLERS + 16 * n, (case.handler[: 12 - n] + b"\xcf")[:16])
        memory.write(CODE, case.code + b"\xeb\xfe")
        self._state(vmcs, case)
        engine.swap(bytearray(e.ENV_SIZE), vmcs.context)
        engine.forget_all_code()
        engine.env32[e.ENV_INTERCEPT >> 2] |= 1 << 14 | 1 << 18 | 1 << 24  # RDTSC, CPUID, HLT
        engine.env32[e.ENV_INTERCEPT_EXCEPTIONS >> 2] = case.exceptions
        engine.set_window(case.window)
        engine.set_time(True, 1000)
        start, retired, deliveries = engine.cycles, engine.retired, engine.deliveries
        engine.charge(-start)  # so that both read the same clock
        if case.inject:
            vector, kind, length = case.inject
            engine.inject(vector, kind, 0x10, length)
        seen: list[object] = []
        for cycles in case.deadlines:
            event = engine.run(FRAME, engine.cycles + cycles)
            info = list(engine.info)[:6] if event >= 0 else []
            seen.append((event, info[:2], engine.cycles, engine.retired - retired, engine.deliveries - deliveries))
            seen.append(struct.unpack("<10I", memory.read(FRAME, 40)))
            if event != e.EVENT_BUDGET:
                break
        engine.set_window(False)
        engine.inject(-1, 0, 0, 0)
        engine.charge(start)
        seen += [bytes(engine.env[part]).hex() for part in STATE]
        seen.append(bytes(memory.u8))
        return seen

    def _state(self, vmcs: object, case: Case) -> None:
        from l4lab.machine.vmcs import Vmcs

        assert isinstance(vmcs, Vmcs)
        eflags = case.eflags
        if case.mode == "real":
            for name in ("es", "cs", "ss", "ds", "fs", "gs"):
                vmcs.set_segment(name, 0, 0, 0xFFFF, 0x93)
        elif case.mode == "v8086":
            eflags |= 1 << 17
            for name in ("es", "cs", "ss", "ds", "fs", "gs"):
                vmcs.set_segment(name, 0, 0, 0xFFFF, 0xF3)
        else:
            ring = 3 if case.mode == "ring3" else 0
            code, data = (CODE_3 | 3, DATA_3 | 3) if ring else (CODE_0, DATA_0)
            vmcs.set_segment("cs", code, 0, 0xFFFFFFFF, SEGMENTS[code & ~3][0] | 0xC000)
            for name in ("es", "ss", "ds", "fs", "gs"):
                vmcs.set_segment(name, data, 0, 0xFFFFFFFF, SEGMENTS[data & ~3][0] | 0xC000)
        tss = case.tss[0]
        wide = {TSS_32: 0x8B, TSS_16: 0x83}.get(tss, 1 << 16)
        vmcs.set_segment("tr", tss, TSS, 0x67 if tss == TSS_32 else 0x2B, wide)
        vmcs.set_table("gdtr", GDT, 0xFF)
        vmcs.set_table("idtr", IDT, case.idt_limit)
        vmcs.set_control_register(3, DIRECTORY)
        vmcs.set_control_register(4, 0)
        protected = case.mode != "real"
        vmcs.set_control_register(0, 0x10 | protected | (case.paging and protected) << 31)
        self.memory.write(FRAME, struct.pack("<10I", CODE, eflags, DATA, DATA, 0, STACK_3 + 0xF00, 0, 0x3F8, 2, 0x55))
        vmcs.derive_flags(eflags)


@pytest.fixture(scope="module")
def benches() -> tuple[Bench, ...]:
    """One machine of each kind."""
    return tuple(map(Bench, e.KINDS))


@settings(max_examples=300, deadline=None)
@given(case=CASES)
def test_all_cores_agree_on_any_guest(benches: tuple[Bench, ...], case: Case) -> None:
    """Do events, clock, registers, segments and memory agree, whatever gates, tables and missing pages a guest has?"""
    expected, *others = (bench.run(case) for bench in benches)

    for found in others:
        for one, other in zip(expected[:-1], found[:-1], strict=True):
            assert one == other
        differs = [hex(at) for at in range(SIZE) if expected[-1][at] != found[-1][at]] if expected != found else []
        assert [] == differs


@pytest.mark.parametrize("name", ["greeting", "tinyos", "triple_fault", "hammer", "noise"])
def test_traces_are_the_same_to_the_byte(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Does a whole system leave the same trace and the same console on all cores?"""
    builders = {
        "greeting": greeting.build,
        "tinyos": tinyos.build,
        "triple_fault": misbehave.triple_fault,
        "hammer": misbehave.hammer,
        "noise": misbehave.noise,
    }
    traces = {}
    for kind in e.KINDS:
        monkeypatch.setenv("L4LAB_ENGINE", kind)
        rig = Rig.for_flat_guest(builders[name]())
        rig.run(2_000_000_000)
        assert kind == rig.machine.engine.kind
        rig.trace.save(tmp_path / kind)
        traces[kind] = (tmp_path / kind).read_bytes(), bytes(rig.console), rig.machine.cycles

    assert traces["native"] == traces["callback"]
    assert traces["native"] == traces["python"]


def test_an_unknown_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a misspelt L4LAB_ENGINE an error that names the choices?"""
    monkeypatch.setenv("L4LAB_ENGINE", "fast")

    with pytest.raises(LabError, match="native or python"):
        Engine(Memory(PAGE_SIZE))
