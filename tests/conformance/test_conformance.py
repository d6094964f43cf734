# SPDX-License-Identifier: GPL-2.0-or-later
"""Does the kernel keep to the interface? Native programs say what holds of it, each sentence with the section it is of.

The programs are the C files beside this one. What each must say is read from its source, so that a program that ends
early, or says nothing, fails. Without a C compiler all of this fails: the interface has not been looked at then.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from l4lab.kernel.boot import Io
from l4lab.rig.rig import Rig
from l4lab.user import cc

HERE = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in HERE.glob("*.c"))
TYPED = b"k4"  # what waits at the console from the beginning
IOPL3 = {"iopl"}  # programs about a kernel that is built without I/O fpages
FEWEST = 150
LONGEST = 2 * 10**9  # cycles: seconds of virtual time; the longest program takes a third of one
_CHECK = re.compile(r'\bCHECK\(\s*"([0-9.]+)",\s*"([^"]+)",')


@cache
def sentences(program: str) -> tuple[str, ...]:
    """What a program claims, in the order of its source."""
    return tuple(" ".join(match) for match in _CHECK.findall((HERE / f"{program}.c").read_text()))


@cache
def said(program: str) -> tuple[str, ...]:
    """The lines that a program prints when it runs."""
    with TemporaryDirectory() as folder:
        image = Path(folder, program)
        cc.build(HERE / f"{program}.c", image)
        io = Io.IOPL3 if program in IOPL3 else Io.FPAGES
        rig = Rig.for_program(image.read_bytes(), program, io=io)
    rig.type(TYPED)
    rig.run_until(LONGEST)
    return tuple(rig.console.decode("latin-1").replace("\r", "").splitlines())


ALL = [(program, sentence) for program in PROGRAMS for sentence in sentences(program)]


@pytest.mark.parametrize(("program", "sentence"), ALL, ids=[f"{program}: {sentence}" for program, sentence in ALL])
def test_the_interface_is_kept(program: str, sentence: str) -> None:
    """Does the kernel do what the sentence says?"""
    lines = said(program)

    assert f"not ok {sentence}" not in lines
    assert 1 == lines.count(f"ok {sentence}"), "\n".join(lines)


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_ends(program: str) -> None:
    """Does a program come to its end, and does it say nothing but its sentences?"""
    *lines, last = said(program)

    assert "end" == last
    assert sorted(sentences(program)) == sorted(re.sub("^(not )?ok ", "", line) for line in lines)


def test_there_are_enough_sentences() -> None:
    """Are there as many as the suite promises, and no two the same?"""
    assert FEWEST <= len(set(ALL)) == len(ALL)
