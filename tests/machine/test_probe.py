# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine whose private layout is not the one we know is refused before anything runs on it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import pytest

import l4lab.machine.engine as e

# Each case in a process of its own, forked from one that has everything loaded: a crash ends the case only.
_PROGRAM = """
import json, os, sys
import l4lab.machine.engine as e
from l4lab.errors import LabError
from l4lab.machine.memory import Memory
outcomes = []
for name, delta in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        said = "accepted"
        try:
            if name:
                setattr(e, name, getattr(e, name) + delta)
            e.Engine(Memory(1 << 20))
        except LabError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes.append(said or f"crashed, status {status}")
print(json.dumps(outcomes))
"""
# Not offsets: how much of the state is copied, which may be more than needed.
_LENGTHS = {"ENV_SIZE"}
_NAMES = ("ENV_", "CPU_", "UC_", "TB_", "TLB_", "TCG_", "CREDIT")
_OFFSETS = {name for name in vars(e) if name.startswith(_NAMES)} - _LENGTHS
_OF_ONE_CORE = {
    "native": {name for name in _OFFSETS if name.startswith("TB_")}
    | {"CPU_EXCEPTION_INDEX", "CREDIT", "CPU_CREDIT_POINTER", "TCG_ENV", "TCG_DEFINITIONS"},
    "python": {"UC_COUNTER", "ENV_CC_SRC", "ENV_CC_OP", "TCG_OPERATIONS"},
}
_CASES = [
    (kind, name, delta)
    for kind, others in (("native", "python"), ("python", "native"))
    for name in sorted(_OFFSETS - _OF_ONE_CORE[others])
    for delta in (8, -8)
]


@functools.cache
def _outcomes(kind: str) -> dict[tuple[str, int], str]:
    """What making an engine came to, for no wrong offset (named "") and for each wrong one."""
    cases = [("", 0), *((name, delta) for of, name, delta in _CASES if of == kind)]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(cases)],
        env={**os.environ, "L4LAB_ENGINE": kind},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("kind", ["native", "python"])
def test_the_engine_we_know_is_accepted(kind: str) -> None:
    """Does the pinned release pass?"""
    assert "accepted" == _outcomes(kind)["", 0]


@pytest.mark.parametrize(("kind", "name", "delta"), _CASES)
def test_a_wrong_offset_is_refused(kind: str, name: str, delta: int) -> None:
    """Is an offset that is 8 bytes off found out without a crash, and does the message say what to do?"""
    said = _outcomes(kind)[name, delta]

    assert "It relies on this" in said
    assert "pip install --force-reinstall unicorn==2.1.4" in said
