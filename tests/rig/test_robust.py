# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests and programs that go wrong: the lab stays alive, says what happened and where, and can be looked into."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from l4lab.abi.ids import ROOT_TASK, global_id
from l4lab.abi.protocols import thread_start
from l4lab.errors import LabError
from l4lab.kernel.boot import UTCB_AREA
from l4lab.kernel.objects.program import HostedThread
from l4lab.kernel.objects.thread import ThreadState
from l4lab.rig.rig import Rig
from l4lab.user.guests import greeting, misbehave
from l4lab.user.guests.flat import ORIGIN, FlatGuest
from l4lab.user.l4 import L4
from l4lab.user.monitor.outcome import End
from l4lab.views import text

MS = 1_000_000  # cycles
SLOW_NOISE = 164  # runs through memory full of zeros, whose instructions overwrite the page that they are in
UTCB_SIZE = 512


def ended(guest: FlatGuest) -> tuple[Rig, End, str]:
    """The rig after its guest has ended; how, and why."""
    rig = Rig.for_flat_guest(guest)
    stop = rig.run(1000 * MS)
    assert stop.finished
    assert rig.outcome is not None
    assert rig.outcome.why == stop.detail == rig.status()
    return rig, rig.outcome.end, rig.outcome.why


@contextmanager
def ctrl_c(*after: float) -> Iterator[None]:
    """SIGINT arrives so many seconds later."""
    timers = [threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)) for seconds in after]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.join()


def test_a_triple_fault_is_told_with_its_place() -> None:
    """Does the outcome name the instruction, and do the registers stand in it?"""
    rig, end, why = ended(misbehave.triple_fault())

    assert end is End.TRIPLE_FAULT
    assert f"{ORIGIN:#010x}"[:-2] in why
    assert rig.outcome is not None
    assert "EIP" in rig.outcome.registers
    assert why in text.everything(rig.snapshot())


def test_a_jump_into_nowhere_is_told_with_its_target() -> None:
    """Does the outcome name the address where there is no memory?"""
    rig, end, why = ended(misbehave.jump_nowhere())

    assert end is End.STOPPED
    assert hex(misbehave.NOWHERE) in why
    assert why in text.everything(rig.snapshot())


@pytest.mark.parametrize("seed", range(3))
def test_ports_and_registers_that_nobody_has_hurt_nobody(seed: int) -> None:
    """Does a guest that hammers them survive, and does the monitor know which they were?"""
    rig, end, _ = ended(misbehave.hammer(seed))

    assert end is End.HALTED
    assert b"survived\r\n" == bytes(rig.console)
    assert rig.guest is not None
    assert rig.guest.monitor is not None
    assert sum(rig.guest.monitor.pc.ports.unclaimed.values()) >= 64


@pytest.mark.parametrize("seed", range(24))
def test_noise_is_survived(seed: int) -> None:
    """Random bytes as code: does the lab say what became of them, without a program of ours dying?"""
    rig = Rig.for_flat_guest(misbehave.noise(seed))
    stop = rig.run(MS)

    assert [] == rig.kernel.deaths
    assert stop.reason in ("finished", "deadline", "idle")
    assert text.everything(rig.snapshot())


@pytest.mark.parametrize("guest", [misbehave.spin(), misbehave.noise(SLOW_NOISE)], ids=["spin", "slow"])
def test_ctrl_c_stops_a_spinning_guest_within_a_second_and_it_can_go_on(guest: FlatGuest) -> None:
    """Also one that the engine executes a thousand times slower than others; with a picture of where it is."""
    rig = Rig.for_flat_guest(guest)
    rig.run(MS // 50)
    begin = time.monotonic()
    with ctrl_c(0.3):
        stop = rig.run()
        took = time.monotonic() - begin

    assert ("stopped", False) == (stop.reason, stop.finished)
    assert took < 1.3
    snapshot = rig.snapshot()
    assert "guest" == snapshot.mode
    assert [line.address for line in snapshot.disassembly if line.current] == [snapshot.registers["EIP"]]
    before = rig.machine.engine.retired
    assert "deadline" == rig.run(1000).reason
    assert 0 < rig.machine.engine.retired - before <= 1000


def test_a_run_that_was_stopped_by_ctrl_c_is_the_same_run() -> None:
    """Does a guest that was stopped in its midst end at the same cycle, with the same trace, as one that was not?"""

    def run(stops: int) -> tuple[int, list[object]]:
        rig = Rig.for_flat_guest(greeting.build())
        for _ in range(stops):
            rig.stop()
            assert "stopped" == rig.run().reason
            rig.step_event()
        assert rig.run().finished
        return rig.machine.cycles, list(rig.trace)

    assert run(0) == run(7)


def rig_with(program: Callable[[L4], None], rest: Callable[[L4], None]) -> Rig:
    """A root task that starts a thread with a program in its own space, and goes on with the rest."""
    child = global_id(ROOT_TASK.thread_no + 10)

    def root(l4: L4) -> None:
        l4.thread_control(child, l4.my_id, l4.my_id, l4.my_id, UTCB_AREA.base + UTCB_SIZE)
        l4.send(child, thread_start(0, 0))
        rest(l4)

    rig = Rig(root, 32 << 20)
    rig.kernel.programs[child] = HostedThread(lambda cpu: program(L4(cpu)), "child")
    return rig


def say_and_wait(l4: L4) -> None:
    """Show a sign of life, after a while."""
    l4.sleep(1000)
    l4.port_out(0x3F8, 1, ord("!"))
    l4.wait()


@pytest.mark.parametrize("raised", [ZeroDivisionError("nothing divides by it"), SystemExit(3), LabError("try harder")])
def test_a_program_that_raises_halts_alone(raised: BaseException) -> None:
    """Is the traceback kept, and do the others go on?"""

    def program(l4: L4) -> None:
        raise raised

    rig = rig_with(program, say_and_wait)
    stop = rig.run()

    assert ("idle", False) == (stop.reason, stop.finished)
    assert b"!" == bytes(rig.console)
    ((thread, died),) = rig.kernel.deaths
    assert ThreadState.HALTED is thread.state
    assert "child" == thread.name
    assert "Traceback" in died.text
    assert str(raised) in died.summary
    assert text.everything(rig.snapshot())


def test_a_program_that_never_comes_back_is_ended_by_the_second_ctrl_c() -> None:
    """Does its thread halt, with a traceback into the loop, and do the others go on?"""

    def endless(l4: L4) -> None:
        while True:
            pass

    rig = rig_with(endless, say_and_wait)
    begin = time.monotonic()
    with ctrl_c(0.2, 0.5):
        stop = rig.run()
        took = time.monotonic() - begin

    assert "stopped" == stop.reason
    assert took < 1.5
    ((thread, died),) = rig.kernel.deaths
    assert "child" == thread.name
    assert "KeyboardInterrupt" == died.summary
    assert "in endless" in died.text
    assert "idle" == rig.run().reason
    assert b"!" == bytes(rig.console)


def test_two_ctrl_c_in_the_kernel_break_nothing() -> None:
    """Does a second SIGINT that finds no program running, but the kernel, leave it alone?"""
    rig = Rig.for_flat_guest(greeting.build())

    def enough() -> bool:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        return False

    assert "stopped" == rig.run_until(1000 * MS, enough).reason
    assert rig.run().finished
    assert b"guest!" in rig.console
