# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine whose private layout is not the one we know is refused before anything runs on it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import sys
import l4lab.machine.engine as e
from l4lab.errors import LabError
from l4lab.machine.memory import Memory
for name in sys.argv[1:]:
    setattr(e, name, getattr(e, name) + 8)
try:
    e.Engine(Memory(1 << 20))
except LabError as error:
    sys.exit(str(error))
"""
_BOTH = (
    *("UC_CPU", "CPU_ENV", "CPU_CLASS", "CPU_CFLAGS", "ENV_EIP", "ENV_EFLAGS", "ENV_HFLAGS", "ENV_SEGS", "ENV_LDT"),
    *(
        "ENV_TR",
        "ENV_GDT",
        "ENV_IDT",
        "ENV_CR",
        "ENV_EFER",
        "ENV_SYSENTER_EIP",
        "ENV_ERROR_CODE",
        "ENV_IS_INT",
        "ENV_DR",
    ),
    *("ENV_OLD_EXCEPTION", "ENV_VM_VMCB", "ENV_TSC_OFFSET", "ENV_INTERCEPT", "ENV_INTERCEPT_CR", "ENV_NESTED_CR3"),
    *("ENV_NEXT_EIP", "ENV_INTERCEPT_DR", "ENV_INTERCEPT_EXCEPTIONS"),
)
_CASES = [
    *(("native", name) for name in (*_BOTH, "TB_ICOUNT", "TB_CODE_SIZE", "TLB_TABLES")),
    *(("python", name) for name in (*_BOTH, "UC_COUNTER", "ENV_RETURN_ADDRESS")),
]


def _start(kind: str, *wrong: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "L4LAB_ENGINE": kind}
    command = [sys.executable, "-c", _PROGRAM, *wrong]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("kind", ["native", "python"])
def test_the_engine_we_know_is_accepted(kind: str) -> None:
    """Does the pinned release pass?"""
    done = _start(kind)

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(("kind", "name"), _CASES)
def test_a_wrong_offset_is_refused(kind: str, name: str) -> None:
    """Is an offset that is 8 bytes off found out, and does the message say what to do?"""
    done = _start(kind, name)

    assert 1 == done.returncode
    assert "It relies on this" in done.stderr
    assert "pip install --force-reinstall unicorn==2.1.4" in done.stderr
