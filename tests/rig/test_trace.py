# SPDX-License-Identifier: GPL-2.0-or-later
"""The event log: the same run gives the same bytes, however it was watched; kept, dropped, saved and read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import attrgetter
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


def test_each_event_has_its_number_and_its_instant() -> None:
    """Does no event share an instant with another, do instants go on, and do they count the kernel's entries?"""
    rig = Rig.for_flat_guest(tinyos.build())
    rig.run(3_000_000)
    trace, everything = rig.trace, list(rig.trace)
    instants = [trace.instant_of(number) for number in range(len(everything))]

    assert sorted(set(instants)) == instants
    assert instants[-1].entry + isinstance(everything[-1], events.KernelEntry) == rig.kernel.entries > 100
    for number in (0, 1, CHUNK - 1, CHUNK, trace.total // 2, trace.total - 1):
        event, instant = everything[number], instants[number]
        before = everything[:number]
        entries = [n for n, e in enumerate(before) if isinstance(e, events.KernelEntry)]
        assert event == trace.event(number)
        assert (event.at, len(entries), number - (entries[-1] + 1 if entries else 0)) == instant
        assert number >= trace.number_at(event.at)
        assert event.at == trace.event(trace.number_at(event.at)).at
    with pytest.raises(LabError, match=f"from 0 to {trace.total - 1}"):
        trace.instant_of(trace.total)


KINDS = (events.DeviceOutput, events.MessageSent, events.Switched, events.KernelEntry)


def made(kind: type[events.Event], at: int, thread: int) -> events.Event:
    """An event of one of the kinds above."""
    match kind:
        case events.MessageSent:
            return events.MessageSent(at, thread, thread + 1, (0,), events.MessageKind.CALL, thread + 1)
        case events.KernelEntry:
            return events.KernelEntry(at, thread, "ipc.sys_ipc", 200)
        case events.Switched:
            return events.Switched(at, thread)
        case _:
            return events.DeviceOutput(at, thread)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=60),
    times=st.integers(1, 40),
    limit=st.sampled_from([1 << 30, 9000, 3000]),
    questions=st.lists(
        st.tuples(
            st.sets(st.sampled_from(KINDS), max_size=2),
            st.none() | st.integers(1, 6),
            st.floats(0, 1),
            st.none() | st.floats(0, 1),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_question_is_answered_as_by_reading_all(
    steps: list[tuple[type[events.Event], int, int]],
    times: int,
    limit: int,
    questions: list[tuple[set[type[events.Event]], int | None, float, float | None]],
) -> None:
    """In chunks, dropped or fresh: do select, last, counts, between and instants agree with a plain search?"""
    trace, whole, at = Trace(limit), [], 0
    for turn in range(times):
        for kind, more, thread in steps:
            at += more
            event = made(kind, at, thread)
            whole.append(event)
            trace.append(event)
        if turn % 3 == 0:
            trace.settle()
    kept = list(enumerate(whole))[trace.dropped :]

    assert trace.total == len(whole)
    assert [event for _, event in kept] == list(trace)
    assert Counter(type(event).__name__ for _, event in kept) == trace.counts()
    for kinds, thread, since, until in questions:
        begin, end = int(since * at), None if until is None else int(until * at)
        found = [
            (number, e)
            for number, e in kept
            if (not kinds or type(e) in kinds) and e.at >= begin and (end is None or e.at < end) and concerns(e, thread)
        ]
        assert found == list(trace.numbered(*kinds, thread=thread, since=begin, until=end))
        latest = [e for _, e in kept if (not kinds or type(e) in kinds) and concerns(e, thread)]
        assert (latest[-1] if latest else None) == trace.last(*kinds, thread=thread)
        number = trace.dropped + int(since * (len(kept) - 1))
        assert [e for n, e in kept if number <= n < number + 3] == trace.between(number, number + 3)
        entries = [n for n, e in enumerate(whole[:number]) if type(e) is events.KernelEntry]
        behind = entries[-1] + 1 if entries else 0
        assert (whole[number].at, len(entries), number - behind) == trace.instant_of(number)


def concerns(event: events.Event, thread: int | None) -> bool:
    """Is the thread one of those that the event names?"""
    names = {getattr(event, name, None) for name in ("thread", "sender", "receiver")}
    return thread is None or thread in names


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


def test_a_trace_that_was_read_back_has_the_same_instants(tmp_path: Path) -> None:
    """Also where the beginning is gone: are kernel entries counted from the run's, not from the file's?"""
    rig = Rig.for_flat_guest(tinyos.build(), trace=Trace(limit=60_000))
    rig.run(20_000_000)
    rig.trace.save(tmp_path / "trace")
    loaded = Trace.load(tmp_path / "trace")
    numbers = (loaded.dropped, loaded.dropped + CHUNK + 7, loaded.total - 1)

    assert loaded.dropped > 0
    assert [rig.trace.instant_of(n) for n in numbers] == [loaded.instant_of(n) for n in numbers]
    assert rig.kernel.entries == loaded.instant_of(loaded.total - 1).entry + isinstance(
        loaded.event(loaded.total - 1), events.KernelEntry
    )


def anything(kind: type[events.Event]) -> st.SearchStrategy[events.Event]:
    """Events of a kind with any values that their types allow."""
    numbers, cycles = st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, (1 << 64) - 1)
    of = {int: numbers, str: st.text(), bool: st.booleans(), tuple[int, ...]: st.lists(numbers).map(tuple)}
    fields = msgspec.structs.fields(kind)
    of |= {field.type: st.integers(0, max(events.MessageKind)) for field in fields if field.name == "how"}
    return st.builds(kind, **{field.name: of[field.type] for field in fields if field.name != "at"}, at=cycles)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_trace_tells_can_be_counted(tmp_path: Path, data: st.DataObject) -> None:
    """Is a trace with any numbers in it refused in words, or counted, exit reasons that nobody has by their number?"""
    kinds = (
        events.VmExit,
        events.KernelExit,
        events.VcpuCreated,
        events.VcpuDeleted,
        events.VtlbFill,
        events.MessageSent,
    )
    trace = Trace()
    told = data.draw(st.lists(st.one_of(*map(anything, kinds)), max_size=8))
    told.append(msgspec.structs.replace(data.draw(anything(events.VmExit)), reason=NOBODYS))
    for event in sorted(told, key=attrgetter("at")):  # a clock that goes back is refused
        trace.append(event)
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
    bad.write_bytes(data.replace(b"l4lab trace 2", b"l4lab trace 1", 1))
    with pytest.raises(LabError, match="older"):
        Trace.load(bad)
    with pytest.raises(LabError, match="not a file"):
        Trace.load("/dev/zero")
    with pytest.raises(LabError, match="cannot write"):
        rig.trace.save(tmp_path / "none" / "trace")
