# SPDX-License-Identifier: GPL-2.0-or-later
"""The event log: the same run gives the same bytes, however it was watched; kept, dropped, saved and read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.kernel import events
from l4lab.rig.counting import machines, recount
from l4lab.rig.rig import Rig
from l4lab.rig.trace import CHUNK, Trace
from l4lab.user.guests import tinyos
from l4lab.views import counters

TYPED = b"help\r"
INPUT_AT = 522_000_000  # cycles: the system waits at its prompt
END = 560_000_000

NOBODYS = 61  # an exit reason that no CPU has

Watch = Callable[[Rig, int], None]


def record(path: Path, watch: Watch) -> bytes:
    """The trace file of tinyos with the same thing typed at the same cycle; `watch` runs the rig up to a cycle."""
    rig = Rig.for_flat_guest(tinyos.build(interactive=True))
    watch(rig, INPUT_AT)
    assert rig.machine.cycles == INPUT_AT
    rig.type(TYPED)
    watch(rig, END)
    rig.trace.save(path)
    return path.read_bytes()


def straight(rig: Rig, end: int) -> None:
    """Run without looking."""
    rig.run_until(end)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The trace of a run that nobody disturbed."""
    return record(tmp_path_factory.mktemp("trace") / "reference", straight)


def test_the_same_inputs_give_the_same_bytes(reference: bytes, tmp_path: Path) -> None:
    """Are the trace files of two runs alike to the byte, with what was typed in them?"""
    again = record(tmp_path / "again", straight)

    assert reference == again
    assert TYPED in reference


PIECE = st.tuples(
    st.sampled_from(["pause", "steps", "events", "look", "stop"]),
    st.one_of(st.integers(1, 5000), st.integers(1, 30_000_000)),  # cycles to run before it
    st.integers(1, 40),  # how often
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECE, min_size=1, max_size=12))
def test_watching_changes_nothing(reference: bytes, tmp_path: Path, pieces: list[tuple[str, int, int]]) -> None:
    """Is the trace the same when the run was paused at random cycles, single-stepped in parts, and looked into?"""
    left = iter(pieces)

    def watch(rig: Rig, end: int) -> None:
        for kind, cycles, count in left:
            rig.run_until(min(rig.machine.cycles + cycles, end))
            for _ in range(count):
                if rig.machine.cycles + 10_000 >= end:  # a step may be as long as a kernel entry
                    break
                match kind:
                    case "steps":
                        rig.step()
                    case "events":
                        rig.step_event()
                    case "stop":
                        rig.stop()
                        rig.run_until(end)
                    case "look":
                        rig.snapshot()
            if rig.machine.cycles + 10_000 >= end:
                break
        rig.run_until(end)

    assert reference == record(tmp_path / "watched", watch)


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    """Does a loaded trace hold the same typed records, and the same when it is saved again?"""
    rig = Rig.for_flat_guest(tinyos.build())
    rig.run()
    first, second = tmp_path / "first", tmp_path / "second"
    rig.trace.save(first)
    loaded = Trace.load(first)
    loaded.save(second)

    assert list(rig.trace) == list(loaded)
    assert len(rig.trace) == len(loaded) > CHUNK
    assert rig.trace.counts() == loaded.counts()
    assert first.read_bytes() == second.read_bytes()


def test_events_can_be_selected() -> None:
    """By kind, thread and time, does `select` give what a plain search gives?"""
    rig = Rig.for_flat_guest(tinyos.build())
    rig.run(100_000_000)
    everything = list(rig.trace)
    exits = [event for event in everything if isinstance(event, events.VmExit)]
    vcpu, middle = exits[0].vcpu, exits[len(exits) // 2].at

    assert exits == list(rig.trace.select(events.VmExit))
    assert exits == list(rig.trace.select(events.VmExit, thread=vcpu))
    assert [] == list(rig.trace.select(events.VmExit, thread=vcpu + 1))
    assert everything == [*rig.trace.select(until=middle), *rig.trace.select(since=middle)]
    assert everything[-50:] == rig.trace.latest(50)
    assert everything[-3 * CHUNK :] == rig.trace.latest(3 * CHUNK)


def test_a_full_trace_drops_the_oldest_and_says_how_many(tmp_path: Path) -> None:
    """With room for a part only: are the latest events there, whole, and is every other one counted?"""
    whole, bounded = Trace(), Trace(limit=50_000)
    for cycle in range(20 * CHUNK + 100):
        for trace in (whole, bounded):
            trace.append(events.DeviceOutput(cycle, cycle & 0xFF))
            trace.settle()

    assert 0 == whole.dropped
    assert bounded.dropped > 0
    assert len(whole) == bounded.dropped + len(bounded)
    assert list(whole)[bounded.dropped :] == list(bounded)
    bounded.save(tmp_path / "bounded")
    assert (tmp_path / "bounded").stat().st_size < 80_000
    loaded = Trace.load(tmp_path / "bounded")
    assert (list(bounded), bounded.dropped) == (list(loaded), loaded.dropped)


def anything(kind: type[events.Event]) -> st.SearchStrategy[events.Event]:
    """Events of a kind with any values that their types allow."""
    numbers = st.integers(-(1 << 63), (1 << 64) - 1)
    of = {int: numbers, str: st.text(), bool: st.booleans(), tuple[int, ...]: st.lists(numbers).map(tuple)}
    return st.builds(kind, **{field.name: of[field.type] for field in msgspec.structs.fields(kind)})


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_trace_tells_can_be_counted(tmp_path: Path, data: st.DataObject) -> None:
    """Is a trace with any numbers in it refused in words, or counted, exit reasons that nobody has by their number?"""
    kinds = (events.VmExit, events.KernelExit, events.VcpuCreated, events.VcpuDeleted, events.VtlbFill, events.Message)
    trace = Trace()
    for event in data.draw(st.lists(st.one_of(*map(anything, kinds)), max_size=8)):
        trace.append(event)
    trace.append(msgspec.structs.replace(data.draw(anything(events.VmExit)), reason=NOBODYS))
    trace.save(tmp_path / "trace")
    found = machines(recount(Trace.load(tmp_path / "trace")))

    assert f"exit reason {NOBODYS}" in {name for machine in found for name in machine.total.exits}
    assert counters.as_text(found)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    """A missing file, another kind of file, a trace cut short, a trace with a changed byte."""
    rig = Rig.for_flat_guest(tinyos.build())
    rig.run(50_000_000)
    good = tmp_path / "good"
    rig.trace.save(good)
    data = good.read_bytes()
    bad = tmp_path / "bad"

    with pytest.raises(LabError, match="cannot read"):
        Trace.load(tmp_path / "none")
    bad.write_bytes(b"something else")
    with pytest.raises(LabError, match="not a trace"):
        Trace.load(bad)
    for damaged in (data[:-1], data[:24], data[:30] + b"\xc1" + data[31:]):
        bad.write_bytes(damaged)
        with pytest.raises(LabError, match="damaged"):
            Trace.load(bad)
    with pytest.raises(LabError, match="cannot write"):
        rig.trace.save(tmp_path / "none" / "trace")
