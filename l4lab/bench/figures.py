# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures: what is measured, against what, and what is wanted."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from l4lab.bench import operations, programs, virtualization
from l4lab.errors import LabError
from l4lab.machine import baseline
from l4lab.user.guests import loops

Report = Callable[[str], None]


class Figure(msgspec.Struct):
    """One measured figure. For a ratio, `value` is the median of ours / theirs over the rounds."""

    name: str
    value: float
    unit: str
    target: str  # empty: nothing is wanted of it
    met: bool
    ours: float = 0.0  # median, seconds or the unit
    theirs: float = 0.0
    rounds: int = 0
    per_second: float = 0.0  # calls per second, of an operation


def measure(rounds: int, with_linux: bool, report: Report) -> Iterator[Figure]:
    """Measure everything, saying what is being done; `rounds` pairs of runs a figure."""
    yield _ratio(
        "VM exit round trip / bare stop", 8, rounds, report, lambda: programs.vm_exit(3000), programs.bare_stop
    )
    yield _ratio(
        "IPC call and reply, native / two bare stops",
        6,
        rounds,
        report,
        lambda: programs.native_ipc(3000),
        lambda: 2 * programs.bare_stop(),
    )
    yield _ratio(
        "compute loop, bare engine / guest with virtual time",
        0.5,
        rounds,
        report,
        lambda: baseline.run_to_halt(*programs.compute_code()),
        programs.guest_compute,
        at_least=True,
    )
    yield from _operations(rounds, report)
    yield from _shadow_paging(rounds, report)
    yield _single("import l4lab, CPU", 0.3, "s", rounds, report, _import_cpu)
    yield _single("new machine with 64 MiB", 50, "ms", rounds, report, programs.new_machine_ms)
    yield _single("process with a dashboard over tinyos", 250, "MiB", 1, report, _notebook_rss)
    if with_linux:
        yield from _linux(max(3, rounds // 2), report)


def _operations(rounds: int, report: Report) -> Iterator[Figure]:
    """The kernel's operations over a bare stop; and over themselves, with much around that they do not touch."""
    stop = programs.bare_stop

    def empty(**how: bool) -> Callable[[], float]:
        return lambda: operations.message(**how)

    for words in (0, 4, 16, 63):
        for apart, place, most in ((False, "within a space", 4.0), (True, "between spaces", 5.0)):
            yield _ratio(
                f"IPC call with {words} words and reply, native, {place} / bare stop",
                most if words == 0 else None,
                rounds,
                report,
                lambda words=words, apart=apart: operations.message(words, apart=apart),  # type: ignore[misc]
                stop,
            )
    for size in (4096, 65536):
        yield _ratio(
            f"string of {size >> 10} KiB between spaces / empty message",
            2.0 if size == 4096 else None,
            rounds,
            report,
            lambda size=size: operations.message(string=size, apart=True),  # type: ignore[misc]
            empty(apart=True),
        )
    for log2, name in ((12, "4 KiB"), (22, "4 MiB")):
        yield _ratio(
            f"map and unmap {name} / bare stop",
            None,
            rounds,
            report,
            lambda log2=log2: operations.map_and_unmap(log2),  # type: ignore[misc]
            stop,
        )
    yield _ratio("create and delete a thread / bare stop", None, rounds, report, operations.create_and_delete, stop)
    for deep, name in ((True, "one behind the other"), (False, "side by side")):
        for count in (10, 100, 1000):
            yield _ratio(
                f"unmap {count} mappings {name}, each / bare stop",
                1.0 if count == 1000 else None,
                rounds,
                report,
                lambda count=count, deep=deep: operations.unmap_each(count, deep),  # type: ignore[misc]
                stop,
            )
    yield _ratio(
        "unmap 10 mappings beside 1000 others / without them",
        1.25,
        rounds,
        report,
        lambda: operations.unmap_each(10, deep=False, beside=1000),
        lambda: operations.unmap_each(10, deep=False),
    )
    for waiting in (10, 100, 1000):
        yield _ratio(
            f"IPC while {waiting} threads wait / without them",
            1.25,
            rounds,
            report,
            lambda waiting=waiting: operations.message(waiting=waiting),  # type: ignore[misc]
            empty(),
        )


def _shadow_paging(rounds: int, report: Report) -> Iterator[Figure]:
    """What shadow page tables cost, over a bare stop; what one more virtual machine costs, in memory."""
    for name, body, most in (
        ("vTLB fill", loops.TOUCH, 4.0),
        ("INVLPG", loops.INVALIDATE, None),
        ("load of CR3", loops.RELOAD, None),
    ):
        name = f"{name} under shadow paging / bare stop"
        yield _ratio(name, most, rounds, report, partial(virtualization.shadow, body), programs.bare_stop)
    for shadow_paging, kind in ((False, "nested"), (True, "shadow")):
        name = f"one more virtual machine beyond its RAM, {kind} paging"
        yield _single(name, 5, "MiB", 1, report, partial(virtualization.memory_of_a_vm, shadow_paging))


def _ratio(
    name: str,
    target: float | None,
    rounds: int,
    report: Report,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    at_least: bool = False,
) -> Figure:
    pairs = []
    for number in range(rounds):
        report(f"{name}: round {number + 1} of {rounds}")
        pairs.append((ours(), theirs()))
    value = statistics.median(a / b for a, b in pairs)
    ours_s, theirs_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    if target is None:
        wanted, met = "", True
    else:
        wanted = f"at {'least' if at_least else 'most'} {target}"
        met = value >= target if at_least else value <= target
    return Figure(name, round(value, 3), "ratio", wanted, met, ours_s, theirs_s, rounds, round(1 / ours_s, 1))


def _single(name: str, target: float, unit: str, rounds: int, report: Report, figure: Callable[[], float]) -> Figure:
    report(name)
    value = statistics.median(figure() for _ in range(rounds))
    return Figure(name, round(value, 3), unit, f"under {target} {unit}", value < target, rounds=rounds)


def _import_cpu() -> float:
    """CPU seconds of a process that imports l4lab, less those of one that imports nothing."""

    def cpu(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return cpu("import l4lab") - cpu("")


def _notebook_rss() -> float:
    """Peak memory in MiB of a process that runs what the tour does: a dashboard over a live tinyos."""
    code = (
        "from l4lab.rig.rig import Rig\nfrom l4lab.user.guests import tinyos\n"
        "from l4lab.widgets.dashboard import Dashboard\n"
        "import ipykernel.kernelapp\n"
        "rig = Rig.for_flat_guest(tinyos.build())\nboard = Dashboard(rig)\nrig.run()\nrig.snapshot()\n"
        # Not ru_maxrss, which begins with the peak of the process that started this one.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 1024


def _linux(rounds: int, report: Report) -> Iterator[Figure]:
    """Wall time of whole processes, from start to the shell prompt."""
    from l4lab.guests import guest

    found = guest.get("linux", report=report)
    if shutil.which("qemu-system-i386") is None:
        raise LabError(
            "qemu-system-i386 is not installed, to which the boot is compared. Try: --no-linux, or install it."
        )
    ours_command = [
        *(sys.executable, "-m", "l4lab", "boot", str(found.kernel), "--initrd", str(found.initrd)),
        *("--append", found.append, "--memory", "128", "--until", programs.PROMPT, "--timeout", "300"),
    ]
    qemu_command = [
        *("qemu-system-i386", "-accel", "tcg", "-m", "128", "-kernel", str(found.kernel), "-initrd", str(found.initrd)),
        *("-append", found.append, "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"),
    ]

    def ours(paging: str) -> float:
        start = time.perf_counter()
        subprocess.run(
            [*ours_command, "--paging", paging], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        return time.perf_counter() - start

    def theirs() -> float:
        start = time.perf_counter()
        with subprocess.Popen(qemu_command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as qemu:
            assert qemu.stdout is not None
            seen = b""
            while b"/ # " not in seen:
                chunk = os.read(qemu.stdout.fileno(), 4096)
                if not chunk:
                    raise LabError("qemu-system-i386 ended before the prompt. Try to run it by hand.")
                seen = (seen + chunk)[-256:]
            took = time.perf_counter() - start
            qemu.kill()
        return took

    for paging, most in (("nested", 1.5), ("shadow", 2.5)):
        name = f"Linux to the shell prompt, {paging} paging / qemu-system-i386 -accel tcg"
        yield _ratio(name, most, rounds, report, partial(ours, paging), theirs)
    yield _ratio(
        "fork-heavy shell loop, shadow / nested paging",
        3.0,
        rounds,
        report,
        lambda: virtualization.shell_loop(found, True),
        lambda: virtualization.shell_loop(found, False),
    )
