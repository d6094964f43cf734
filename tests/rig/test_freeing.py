# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that are closed or dropped: what they took of the host comes back, and nobody can reach into it any more."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from l4lab.errors import LabError
from l4lab.machine.engine import Engine
from l4lab.machine.memory import Memory
from l4lab.rig.named import boot
from l4lab.rig.rig import Rig
from l4lab.user.l4 import L4

RAM = 8 << 10  # kB: less than any machine has
MANY, WARM = 200, 40  # machines; those after which everything that is loaded or kept once is there
ROOM = (
    8 << 10
)  # kB by which the process may grow meanwhile; a machine takes a gigabyte of address space, 3 MB of memory

MAKES_MANY = f"""
import json
from l4lab import boot
from l4lab.rig.rig import Rig
from l4lab.user.guests import greeting
from l4lab.user.host import Host, VmPlan

def figures():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    maps = sum(1 for line in open("/proc/self/maps"))
    return [int(status[name].split()[0]) for name in ("VmSize", "VmRSS")] + [maps]

def clings(l4):
    try:
        l4.wait()
    finally:
        l4.port_out(0x3F8, 1, 33)
        l4.sleep(10)

MAKERS = (
    lambda: boot("greeting"),
    lambda: boot("tinyos", interactive=True, paging="shadow"),
    lambda: Rig.for_host(Host([[VmPlan.flat("a", greeting.build())], [VmPlan.flat("b", greeting.build())]])),
    lambda: Rig(clings, 32 << 20),
)
for number in range({MANY}):
    rig = MAKERS[number % len(MAKERS)]()
    rig.run(100_000)
    if number % 3 == 0:
        rig.close()
    if number == {WARM}:
        before = figures()
del rig
print(json.dumps([before, figures()]))
"""


def test_hundreds_of_machines_take_no_more_than_a_few() -> None:
    """Do address space, memory and mappings of a process stay as they are, however many machines it has made?"""
    done = subprocess.run([sys.executable, "-c", MAKES_MANY], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)

    assert after[0] - before[0] < ROOM, (before, after)
    assert after[1] - before[1] < ROOM, (before, after)
    assert after[2] - before[2] < 16, (before, after)


def clings(times: int) -> Callable[[L4], None]:
    """A program that makes so many system calls after it was told to end."""

    def program(l4: L4) -> None:
        for _ in range(times):
            try:
                l4.wait()
            except BaseException:
                continue
        l4.wait()

    return program


@pytest.mark.parametrize("times", [0, 1, 20])
def test_who_drops_a_rig_frees_it_at_once(times: int) -> None:
    """Is all of it gone without a collector, although a program makes system calls on its way out?"""
    program = clings(times)
    rig = Rig(program, 32 << 20)
    rig.run(1_000_000)
    machine, there, program_there = rig.machine, weakref.ref(rig), weakref.ref(program)
    words, state = machine.memory.u32, machine.engine.env32
    gc.disable()
    try:
        del rig, program
        assert (None, None) == (there(), program_there())
    finally:
        gc.enable()
    for view in (words, state):
        with pytest.raises(ValueError, match="released"):
            view[0]


def address_space() -> int:
    """kB that this process has mapped."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmSize:")[2].split()[0])


@pytest.mark.parametrize("paging", ["nested", "shadow"])
def test_neither_memory_nor_trace_waits_for_a_collector(paging: str) -> None:
    """Are RAM, CPU and the trace gone with the rig, although objects of the kernel hold each other?"""
    boot("greeting", paging=paging).run()  # what is kept once is there
    gc.collect()
    gc.disable()
    try:
        before = address_space()
        rig = boot("greeting", paging=paging)
        rig.run()
        trace = weakref.ref(rig.trace)
        assert address_space() - before > RAM
        del rig
        assert trace() is None
        assert address_space() - before < RAM // 2
    finally:
        gc.enable()


def test_a_closed_rig_tells_what_happened_and_does_no_more() -> None:
    """Are console, trace, verdict and figures there after `close`, and is everything else refused in words?"""
    with boot("greeting") as rig:
        rig.run()
        figures, events = rig.stats(), len(rig.trace)
    rig.close()

    assert b"guest!" in rig.console
    assert rig.outcome is not None
    assert (figures, events) == (rig.stats(), len(rig.trace))
    for call in (rig.run, rig.step, rig.step_event, rig.snapshot, lambda: rig.type(b"x"), lambda: rig.press("x")):
        with pytest.raises(LabError, match="Boot another"):
            call()


def test_a_rig_belongs_to_the_thread_that_made_it() -> None:
    """Is every call from a second thread a LabError, `stop` excepted, and does the rig go on in its own?"""
    rig = boot("tinyos", interactive=True)
    rig.run(100_000)
    calls: list[Callable[[], object]] = [
        *(rig.run, rig.step, rig.step_event, rig.snapshot, rig.screen, rig.close),
        *(lambda: rig.type(b"x"), lambda: rig.press("x"), lambda: rig.save("nowhere")),
    ]
    heard: list[str] = []

    def elsewhere() -> None:
        for call in calls:
            try:
                call()
            except LabError as error:
                heard.append(str(error))
        rig.stop()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()

    assert len(calls) == len([words for words in heard if "another thread" in words])
    assert "stopped" == rig.run().reason
    assert "deadline" == rig.run(1000).reason


def test_a_rig_that_is_dropped_in_another_thread_is_freed() -> None:
    """Does the machine go, and do its programs end in the thread that they belong to?"""
    ended_in: list[threading.Thread] = []

    def program(l4: L4) -> None:
        try:
            l4.wait()
        finally:
            ended_in.append(threading.current_thread())

    rigs = [Rig(program, 32 << 20)]
    rigs[0].run(1_000_000)
    there, words = weakref.ref(rigs[0]), rigs[0].machine.memory.u32
    thread = threading.Thread(target=rigs.clear)
    thread.start()
    thread.join()

    assert there() is None
    with pytest.raises(ValueError, match="released"):
        words[0]
    boot("greeting").run(1000)  # greenlets of this thread are switched to and fro again
    assert [threading.main_thread()] == ended_in


def test_a_machine_is_not_closed_under_its_own_run() -> None:
    """Is `close` refused while the rig runs, and does the run go on?"""
    rig = boot("greeting")
    refused: list[LabError] = []

    def enough() -> bool:
        try:
            rig.close()
        except LabError as error:
            refused.append(error)
        return len(refused) > 3

    assert "enough" == rig.run_until(1_000_000_000, enough).reason
    assert "is running" in str(refused[0])
    assert rig.run().finished


@pytest.mark.parametrize("kind", ["native", "python"])
def test_whoever_has_a_view_of_the_cpu_keeps_it(kind: str) -> None:
    """Is a closed engine's state readable through an older view until that goes, and does nothing run any more?"""
    memory = Memory(1 << 16)
    engine = Engine(memory, kind)
    piece, before = engine.env32[:8], engine.env32[:8].tolist()
    engine.close()

    assert before == piece.tolist()
    with pytest.raises((RuntimeError, ValueError), match="closed|released"):
        engine.run(0, 1000)
    with pytest.raises(RuntimeError, match="closed"):
        engine.flush_tlb()
    piece.release()
    memory.close()
