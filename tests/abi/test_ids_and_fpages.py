# SPDX-License-Identifier: GPL-2.0-or-later
"""Thread identifiers and fpages: the values that programs know by heart, and the questions asked of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4lab.abi.fpage import COMPLETE_ADDRESS_SPACE, COMPLETE_IO_SPACE, NILPAGE, Fpage, IoFpage
from l4lab.abi.ids import (
    ANY_LOCAL_THREAD,
    ANY_THREAD,
    NIL_THREAD,
    ROOT_TASK,
    SIGMA0,
    ThreadId,
    global_id,
    interrupt_id,
    local_id,
)
from l4lab.errors import LabError
from l4lab.words import Rights


def test_the_first_threads_have_the_ids_that_programs_expect() -> None:
    """sigma0 is 0xc0001, the root task 0xc8001."""
    assert (SIGMA0, ROOT_TASK) == (0xC0001, 0xC8001)
    assert interrupt_id(3) == 0xC001
    assert interrupt_id(3).is_interrupt
    assert not ROOT_TASK.is_interrupt


def test_local_and_global_are_told_apart_by_the_low_bits() -> None:
    """The root task's local id is its MR0; special ids have the form the manual gives them."""
    assert local_id(0xBF00_0100).is_local
    assert ROOT_TASK.is_global
    assert not ROOT_TASK.is_local
    assert NIL_THREAD.is_nil
    assert ANY_THREAD.is_global
    assert ANY_LOCAL_THREAD.is_local


def test_ids_that_would_be_misread_cannot_be_made() -> None:
    """A version without low bits, a misaligned UTCB and interrupt 16 are refused."""
    with pytest.raises(ValueError, match="low six bits zero"):
        global_id(50, version=64)
    with pytest.raises(ValueError, match="not aligned"):
        local_id(0xBF00_0104)
    with pytest.raises(ValueError, match="there are 16"):
        interrupt_id(16)


def test_ids_print_as_what_they_are() -> None:
    """A person sees number and version, not a hex word."""
    shown = [repr(t) for t in (NIL_THREAD, ANY_THREAD, ROOT_TASK, interrupt_id(1), ThreadId(0xBF00_0100))]

    expected = ["NIL_THREAD", "ANY_THREAD", "ThreadId(thread_no=50, version=1)", "ThreadId(irq 1)"]
    assert [*expected, "ThreadId(local 0xbf000100)"] == shown


@given(st.integers(12, 31), st.integers(0, 0xFFFF_FFFF), st.sampled_from([Rights(n) for n in range(8)]))
def test_an_fpage_covers_its_size_from_its_base(log2: int, address: int, rights: Rights) -> None:
    """What `at` is given can be read back, and `covers` agrees with base and size."""
    base = address & -(1 << log2)
    page = Fpage.at(base, log2, rights)

    assert (base, log2, 1 << log2, rights) == (page.base, page.log2, page.size, page.rights)
    assert page.covers(address)
    assert page.covers(base + page.size - 1)
    assert not page.covers(base + page.size)
    assert not page.covers(base - 1)


def test_special_fpages_have_their_words() -> None:
    """Complete is 0x10 and rights, complete I/O is 0x4020, nil is 0."""
    assert (COMPLETE_ADDRESS_SPACE, COMPLETE_IO_SPACE, NILPAGE) == (0x17, 0x4020, 0)
    assert COMPLETE_ADDRESS_SPACE.size == 1 << 32
    assert COMPLETE_ADDRESS_SPACE.covers(0xFFFF_FFFF)
    assert NILPAGE.size == 0
    assert not NILPAGE.covers(0)


def test_fpages_print_as_ranges() -> None:
    """Range, size and rights, for memory and for ports."""
    assert repr(Fpage.at(0x4000, log2=14, rights="rw-")) == "Fpage(0x4000..0x7fff, 16K, rw-)"
    assert repr(Fpage(IoFpage.at(0x3F8, log2=3))) == "IoFpage(0x3f8..0x3ff, 8 ports)"
    assert (repr(NILPAGE), repr(COMPLETE_ADDRESS_SPACE)) == ("Fpage(nil)", "Fpage(complete, rwx)")


def test_an_io_fpage_covers_its_ports() -> None:
    """Eight ports of a UART, and no ninth."""
    uart = IoFpage.at(0x3F8, log2=3)

    assert uart.covers(0x3F8)
    assert uart.covers(0x3FF)
    assert not uart.covers(0x400)
    assert Fpage(uart).is_io


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: Fpage.at(0x4400), "for example 0x4000"),
        (lambda: Fpage.at(0, log2=3), "log2 from 12"),
        (lambda: Fpage.at(0, rights="rq"), "letters of 'rwx'"),
        (lambda: IoFpage.at(0x3F9, log2=3), "for example 0x3f8"),
        (lambda: IoFpage.at(0, log2=17), "log2 from 0"),
    ],
)
def test_a_wrong_fpage_says_what_would_be_right(make: object, hint: str) -> None:
    """The error ends with something to try."""
    assert callable(make)
    with pytest.raises(LabError, match=hint):
        make()
