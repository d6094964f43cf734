# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: all the figures there are, in the order in which they are taken and shown."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Final, NamedTuple

from l4lab.bench import engines, operations, programs, virtualization
from l4lab.bench.figures import Figure, Measurement, Report, ratio, ratio_of, single
from l4lab.errors import LabError
from l4lab.guests import guest
from l4lab.user.guests import loops
from l4lab.user.guests.workloads import WORKLOADS, Workload

OVER_QEMU, OVER_BARE, EXITS, OPERATIONS, SHADOW, START, LINUX = (
    *(
        "Workloads, over QEMU",
        "Workloads, over the bare engine",
        "Virtual machines and messages",
        "Operations of the kernel",
        "Shadow paging",
    ),
    *("Start and memory", "Linux"),
)
PROMPT: Final = b"/ # "
LAB: Final = (sys.executable, "-m", "l4lab")
# What the lab may cost over QEMU. Nothing is wanted where QEMU has the advantage by design: after each operation of
# SSE2 the lab's engine calls the C library to classify the result, which QEMU's build does inline.
MOST_OVER_QEMU: Final = 1.3
SLOWER_BY_DESIGN: Final = ("SSE2 floating point",)


def measure(rounds: int, with_linux: bool, report: Report, only: Sequence[str] = ()) -> Iterator[Figure]:
    """Measure everything, or what has one of these texts in its name, saying what is being done.

    `rounds`: runs of each side for a figure.
    """
    chosen = [
        measurement
        for measurement in measurements(with_linux, report)
        if not only or any(text.lower() in name.lower() for text in only for name in measurement.names)
    ]
    if not chosen:
        raise LabError(f"no figure has {' or '.join(map(repr, only))} in its name; the names are in docs/bench.md")
    for measurement in chosen:
        measurement.prepare()
    for measurement in chosen:
        yield from measurement.take(rounds, report)


def measurements(with_linux: bool, report: Report) -> Iterator[Measurement]:
    """All there are, with the names of what they give; nothing is measured before it is asked for."""
    yield from map(_workload, WORKLOADS)
    yield ratio(EXITS, "VM exit round trip / bare stop", 4, lambda: programs.vm_exit(3000), programs.bare_stop)
    yield ratio(
        EXITS,
        "IPC call and reply, native / two bare stops",
        6,
        lambda: programs.native_ipc(3000),
        lambda: 2 * programs.bare_stop(),
    )
    yield from _operations()
    yield from _shadow_paging()
    yield single(START, "import l4lab, CPU", 0.05, "s", _import_cpu)
    yield single(START, "l4lab demo to its first line, CPU", 0.5, "s", lambda: _until((*LAB, "demo"), b"\n").cpu)
    yield single(START, "new machine with 64 MiB", 50, "ms", programs.new_machine_ms)
    yield single(START, "process with a dashboard over tinyos", 250, "MiB", _notebook_rss, lambda rounds: 1)
    if with_linux:
        yield from _linux(report)


def _workload(workload: Workload) -> Measurement:
    """What the lab takes for it over what QEMU and the bare engine take. All have to come to the same checksum."""
    ours = f"{workload.name}: "
    names = (f"{ours}lab / QEMU", f"{ours}lab / bare engine")
    wanted = (None if workload.name in SLOWER_BY_DESIGN else MOST_OVER_QEMU, None)

    def take(rounds: int, report: Report) -> Iterator[Figure]:
        program = workload.build()
        others: dict[str, Callable[[], engines.Timed]] = {names[1]: lambda: engines.on_the_bare_engine(program)}
        if engines.have_qemu():
            others = {names[0]: lambda: engines.in_qemu(program)} | others
        else:
            report(f"{engines.QEMU} is not installed: {names[0]} is left out")
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
        checksums = set()
        for number in range(rounds):
            report(f"{workload.name}: round {number + 1} of {rounds}")
            lab = engines.in_the_lab(program)
            checksums.add(lab.checksum)
            for name, run in others.items():
                other = run()
                pairs[name].append((lab.seconds, other.seconds))
                checksums.add(other.checksum)
        if len(checksums) != 1:
            raise LabError(
                f"{workload.name} came to different results ({', '.join(sorted(checksums))}): one engine computes "
                "wrongly. Please report it; to measure the rest, name it by --only"
            )
        (checksum,) = checksums
        for group, name, target in zip((OVER_QEMU, OVER_BARE), names, wanted, strict=True):
            if name in pairs:
                yield ratio_of(group, name, target, pairs[name], checksum=checksum)

    return Measurement(names, take)


def _operations() -> Iterator[Measurement]:
    """The kernel's operations over a bare stop; and over themselves, with much around that they do not touch."""
    stop = programs.bare_stop
    for words in (0, 4, 16, 63):
        for apart, place, most in ((False, "within a space", 2.4), (True, "between spaces", 3.2)):
            yield ratio(
                OPERATIONS,
                f"IPC call with {words} words and reply, native, {place} / bare stop",
                most if words == 0 else None,
                partial(operations.message, words, apart=apart),
                stop,
            )
    for size in (4096, 65536):
        yield ratio(
            OPERATIONS,
            f"string of {size >> 10} KiB between spaces / empty message",
            2.0 if size == 4096 else None,
            partial(operations.message, string=size, apart=True),
            partial(operations.message, apart=True),
        )
    for log2, size_name in ((12, "4 KiB"), (22, "4 MiB")):
        yield ratio(
            OPERATIONS,
            f"map and unmap {size_name} / bare stop",
            12.0 if log2 == 12 else None,
            partial(operations.map_and_unmap, log2),
            stop,
        )
    yield ratio(OPERATIONS, "create and delete a thread / bare stop", 6.0, operations.create_and_delete, stop)
    for deep, order in ((True, "one behind the other"), (False, "side by side")):
        for count in (10, 100, 1000):
            yield ratio(
                OPERATIONS,
                f"unmap {count} mappings {order}, each / bare stop",
                0.6 if count == 1000 else None,
                partial(operations.unmap_each, count, deep),
                stop,
            )
    yield ratio(
        OPERATIONS,
        "unmap 10 mappings beside 1000 others / without them",
        1.25,
        partial(operations.unmap_each, 10, deep=False, beside=1000),
        partial(operations.unmap_each, 10, deep=False),
    )
    for waiting in (10, 100, 1000):
        yield ratio(
            OPERATIONS,
            f"IPC while {waiting} threads wait / without them",
            1.25,
            partial(operations.message, waiting=waiting),
            operations.message,
        )


def _shadow_paging() -> Iterator[Measurement]:
    """What shadow page tables cost, over a bare stop; what one more virtual machine costs, in memory."""
    for what, body, most in (
        ("vTLB fill", loops.TOUCH, 4.0),
        ("INVLPG", loops.INVALIDATE, None),
        ("load of CR3", loops.RELOAD, None),
    ):
        name = f"{what} under shadow paging / bare stop"
        yield ratio(SHADOW, name, most, partial(virtualization.shadow, body), programs.bare_stop)
    for shadow_paging, kind in ((False, "nested"), (True, "shadow")):
        name = f"one more virtual machine beyond its RAM, {kind} paging"
        yield single(SHADOW, name, 5, "MiB", partial(virtualization.memory_of_a_vm, shadow_paging), lambda rounds: 1)


def _linux(report: Report) -> Iterator[Measurement]:
    """Whole processes: CPU time to Linux's first message, wall and CPU time to the shell prompt."""

    @cache
    def linux() -> guest.Guest:
        return guest.get("linux", report=report)

    def boot(*options: str, append: str = "") -> list[str]:
        here = linux()
        files = ("boot", str(here.kernel), "--initrd", str(here.initrd), "--append", here.append + append)
        return [*LAB, *files, "--memory", "128", *options]

    first_message = single(
        LINUX,
        "l4lab boot of Linux to its first message, CPU",
        0.6,
        "s",
        lambda: _until(boot(append=" earlyprintk=ttyS0"), b"Linux version").cpu,
    )
    to_the_prompt = [
        _to_the_prompt(paging, most, partial(boot, "--paging", paging), lambda: _qemu_command(linux()))
        for paging, most in (("nested", 1.0), ("shadow", 1.25))
    ]
    shell_loop = ratio(
        LINUX,
        "fork-heavy shell loop, shadow / nested paging",
        3.0,
        lambda: virtualization.shell_loop(linux(), True),
        lambda: virtualization.shell_loop(linux(), False),
        fewer=_few,
    )
    for measurement in (first_message, *to_the_prompt, shell_loop):
        yield replace(measurement, prepare=linux)


def _to_the_prompt(
    paging: str, most: float, ours: Callable[[], list[str]], theirs: Callable[[], list[str]]
) -> Measurement:
    """From the start of a process to the prompt of Linux's shell, in the lab and in QEMU."""
    name = f"Linux to the shell prompt, {paging} paging / QEMU"
    names = (name, f"{name}, CPU")

    def take(rounds: int, report: Report) -> Iterator[Figure]:
        if not engines.have_qemu():
            report(f"{engines.QEMU} is not installed: {name} is left out")
            return
        pairs = []
        for number in range(_few(rounds)):
            report(f"{name}: round {number + 1} of {_few(rounds)}")
            pairs.append((_until(ours(), PROMPT), _until(theirs(), PROMPT)))
        yield ratio_of(LINUX, names[0], most, [(one.wall, other.wall) for one, other in pairs])
        yield ratio_of(LINUX, names[1], most, [(one.cpu, other.cpu) for one, other in pairs])

    return Measurement(names, take)


def _few(rounds: int) -> int:
    """How often what takes seconds is done."""
    return rounds if rounds < 3 else max(3, rounds // 2)


def _qemu_command(linux: guest.Guest) -> list[str]:
    if not engines.have_qemu():
        raise LabError(
            f"{engines.QEMU} is not installed, to which the boot is compared. Try: --no-linux, or install it"
        )
    return [
        *(engines.QEMU, "-accel", "tcg", "-m", "128", "-kernel", str(linux.kernel), "-initrd", str(linux.initrd)),
        *("-append", linux.append, "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"),
    ]


class _Took(NamedTuple):
    """Seconds since a process was started."""

    wall: float
    cpu: float


def _until(command: Sequence[str], text: bytes) -> _Took:
    """What a process takes from its start to this text in its output. Its input stays open, and nothing comes by it."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            seen = b""
            while text not in seen:
                piece = os.read(process.stdout.fileno(), 4096)
                if not piece:
                    raise LabError(f"{' '.join(command)} ended before it said {text.decode()!r}. Try it by hand")
                seen = (seen + piece)[-8192:]
            return _Took(time.perf_counter() - start, engines.cpu_of(process.pid))
        finally:
            process.kill()


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
