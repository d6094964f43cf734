# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions are counted the same whoever counts them, and nothing shows where the engine's blocks of code end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from l4lab.abi.exceptions import DEBUG, PAGE_FAULT
from l4lab.abi.frame import EBX, ECX, EDI, EFLAGS, EIP
from l4lab.machine import engine as e

from .counting import CASES, Bench, Case, differences
from .test_engine import Bench as Program

DIRECTORY, TABLE, OUTSIDE = 0x4000, 0x5000, 0x100000
ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF


@pytest.fixture(scope="module")
def benches() -> tuple[Bench, ...]:
    """One machine with each kind of core."""
    return tuple(map(Bench, e.KINDS))


@settings(max_examples=120, deadline=None)
@given(case=CASES)
def test_no_run_depends_on_the_core(benches: tuple[Bench, ...], case: Case) -> None:
    """For any code in any mode of paging: do all cores show the same at each stop, and the same state in the end?"""
    expected, *others = (bench.run(case) for bench in benches)

    for found in others:
        assert [] == differences(expected, found)


def into_the_next_page(kind: str, missing: int) -> Program:
    """Straight-line code from 0x1ff0 on, with paging; one page is missing."""
    bench = Program(".space 0xff0\n" + "inc ebx\n" * 32, kind)
    bench.memory.set_word(DIRECTORY >> 2, TABLE | 7)
    for page in range(8):
        bench.memory.set_word((TABLE >> 2) + page, 0 if page == missing else page << 12 | 7)
    bench.engine.write_register("CR3", DIRECTORY)
    bench.engine.write_register("CR0", 0x80000011)
    bench.frame[EIP] = 0x1FF0
    return bench


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize("kind", e.KINDS)
def test_a_fetch_from_a_missing_page_is_told_there(kind: str, step: int) -> None:
    """Where straight-line code runs into a missing page: have all instructions before it retired, and no more?"""
    bench = into_the_next_page(kind, missing=2)

    while (event := bench.run(step)) == e.EVENT_BUDGET:
        pass

    assert (PAGE_FAULT, 0x2000, 16, 16) == (event, bench.frame[EIP], bench.frame[EBX], bench.engine.retired)


@pytest.mark.parametrize("kind", e.KINDS)
def test_a_page_is_accessed_when_its_code_is_reached(kind: str) -> None:
    """Is the accessed bit of the next page clear before the last instruction of this one, and set behind it?"""
    bench = into_the_next_page(kind, missing=7)
    accessed = []
    for cycles in (15, 1):
        bench.run(cycles)
        accessed.append(bench.memory.u32[(TABLE >> 2) + 2] >> 5 & 1)

    assert [0, 1] == accessed


@pytest.mark.parametrize(
    ("access", "error", "at"),
    [
        (f"mov dword ptr [{OUTSIDE}], eax", 7, 0x1005),
        (f"mov eax, [{OUTSIDE}]", 6, 0x1005),
        (f"fxsave [{OUTSIDE}]", 7, 0x1005),
        (f"mov edi, {OUTSIDE}\n stosd", 7, 0x100A),
        (f"jmp {OUTSIDE}", 8, OUTSIDE),
    ],
)
@pytest.mark.parametrize("kind", e.KINDS)
def test_an_access_outside_of_ram_is_told_at_its_instruction(kind: str, access: str, error: int, at: int) -> None:
    """Has what is behind a load, store or jump to where no RAM is not happened, and is the clock exact?"""
    bench = Program(f"mov ebx, 1\n {access}\n mov ebx, 2\n int 0x40", kind)

    event = bench.run()

    assert (e.EVENT_ERROR, error) == (event, bench.engine.info[e.INFO_UC_ERROR])
    assert (1 if at == 0x1005 else 2, at, 1) == (bench.engine.retired, bench.frame[EIP], bench.frame[EBX])


@pytest.mark.parametrize("kind", e.KINDS)
def test_cmpxchg8b_leaves_other_flags_alone(kind: str) -> None:
    """Behind an addition that overflows, and CMPXCHG8B with another value in memory: are the flags the addition's?"""
    bench = Program("mov eax, 0x7fffffff\n add eax, 1\n cmpxchg8b [0x3000]\n int 0x40", kind)

    bench.run()

    assert 0x894 == bench.frame[EFLAGS] & ARITHMETIC  # OF SF AF PF


@pytest.mark.parametrize("kind", e.KINDS)
def test_a_repeated_store_is_stepped_one_by_one(kind: str) -> None:
    """Does REP STOSB trap after each repetition when TF is set?"""
    bench = Program("rep stosb", kind)
    bench.frame[EFLAGS], bench.frame[EDI], bench.frame[ECX] = 0x102, 0x3000, 5

    events = [bench.run() for _ in range(3)]

    assert [DEBUG] * 3 == events
    assert (2, 3) == (bench.frame[ECX], bench.engine.retired)
