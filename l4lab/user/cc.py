# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds programs in C: finds a compiler that makes 32-bit x86 code, and calls it as our headers want it.

The headers and what a program begins with are in `include/`. Any gcc or clang for x86 will do; no C library is used.
Who has none writes assembly text: `asm.py` needs nothing installed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from l4lab import files
from l4lab.errors import LabError

INCLUDE = Path(__file__).parent / "include"
BASE = 0x0040_0000  # where programs are linked to
COMPILERS = ("gcc", "clang", "i686-linux-gnu-gcc", "cc")
_PATIENCE = 60.0  # seconds
# No library, no position independence, no vector unit: a program has what is in its file, at the address that it says.
_OPTIONS = (
    *("-m32", "-march=i686", "-mno-sse", "-std=gnu99", "-O2", "-g0", "-Wall"),
    *("-ffreestanding", "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    *("-static", "-nostdlib"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,noseparate-code"),
)


def build(source: Path, out: Path, base: int = BASE, options: Sequence[str] = ()) -> str:
    """Build one C file into an executable linked to `base`. What the compiler had to say, warnings perhaps."""
    if not os.path.isfile(source):
        raise LabError(f"there is no file {source}; give a program in C")
    compiler = _compiler(os.environ.get("CC"))
    with TemporaryDirectory() as folder:
        made = Path(folder, "made")
        done = _compile(compiler, source, made, base, options)
        if done.returncode:
            raise LabError(f"{source.name} does not compile; correct it:\n{done.stderr.strip()}")
        files.write(out, [made.read_bytes()])
    return done.stderr


@cache
def _compiler(wanted: str | None) -> tuple[str, ...]:
    """The command of a compiler that can do it. `wanted`: the only one to try."""
    candidates = [shlex.split(wanted)] if wanted else [[name] for name in COMPILERS]
    with TemporaryDirectory() as folder:
        source, out = Path(folder, "empty.c"), Path(folder, "empty")
        source.write_text("int main(void) { return 0; }\n")
        for command in candidates:
            if _compile(tuple(command), source, out, BASE, ()).returncode == 0:
                return tuple(command)
    raise LabError(
        f"no C compiler here makes 32-bit x86 programs (tried {', '.join(map(shlex.join, candidates))}); "
        "on Debian: sudo apt install gcc; or name one: CC=clang"
    )


def _compile(
    command: tuple[str, ...], source: Path, out: Path, base: int, options: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    arguments = [*_OPTIONS, f"-Wl,-Ttext-segment={base:#x}", "-I", str(INCLUDE), *options]
    line = [*command, *arguments, str(INCLUDE / "crt0.c"), str(source), "-o", str(out)]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=False, errors="replace", timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(line, 127, "", str(error))
