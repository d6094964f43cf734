# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of any shape, with any text in them: what a view must draw without falling over."""

from __future__ import annotations

from hypothesis import strategies as st

from l4lab.rig.counting import Counts, CpuCounts, VmCounts
from l4lab.rig.snapshot import (
    Area,
    DisasmLine,
    ExitView,
    IpcView,
    Ports,
    Region,
    Snapshot,
    SpaceView,
    ThreadView,
)
from l4lab.words import Rights

texts = st.text(max_size=20)
words = st.integers(0, 0xFFFF_FFFF)
ids = st.integers(0, 9)
maybe = st.none() | ids
counts = st.dictionaries(texts, st.integers(0, 10**9), max_size=4)
few = {"max_size": 4}

regions = st.builds(
    Region, va=words, size=st.integers(1, 1 << 32), pa=words, rights=st.sampled_from(Rights), parent=maybe, label=texts
)
ports = st.builds(Ports, first=st.integers(0, 0xFFFF), count=st.integers(1, 0x10000), parent=maybe)
areas = st.none() | st.builds(Area, va=words, size=st.integers(1, 1 << 20))
spaces = st.builds(
    SpaceView,
    id=ids,
    name=texts,
    is_vm=st.booleans(),
    kip=areas,
    utcbs=areas,
    regions=st.lists(regions, **few).map(tuple),
    ports=st.lists(ports, max_size=12).map(tuple),
)
spans = st.none() | st.integers(0, 10**11)
threads = st.builds(
    ThreadView,
    id=ids,
    name=texts,
    kind=st.sampled_from(["native", "hosted", "vcpu"]),
    state=texts,
    priority=st.integers(0, 255),
    space=ids,
    partner=maybe,
    pager=maybe,
    time_slice=spans,
    slice_left=spans,
    quantum_left=spans,
)
messages = st.builds(
    IpcView,
    cycle=st.integers(0, 10**12),
    sender=ids,
    receiver=ids,
    label=texts,
    words=st.lists(words, max_size=6).map(tuple),
    kind=st.sampled_from(["send", "reply", "fault", "exit", "irq"]),
)
exits = st.builds(ExitView, cycle=st.integers(0, 10**12), vcpu=ids, reason=texts, guest_ip=words, detail=texts)
exit_counts = st.dictionaries(st.sampled_from(["IO_INSTRUCTION", "HLT", "CPUID"]), st.integers(0, 10**9))
costs = {
    "exits": exit_counts,
    "kernel_exits": exit_counts,
    **dict.fromkeys(("instructions", "nested_faults", "vtlb_fills", "vtlb_flushes"), st.integers(0, 10**12)),
    **dict.fromkeys(("injections", "messages"), st.integers(0, 10**9)),
}
totals = st.builds(Counts, **costs)
machines = st.builds(
    VmCounts,
    number=st.integers(1, 9),
    name=texts,
    paging=st.sampled_from(["nested", "shadow"]),
    total=totals,
    cpus=st.lists(st.builds(CpuCounts, thread=ids, **costs), max_size=3).map(tuple),
)
instructions = st.builds(
    DisasmLine, address=words, code=st.binary(min_size=1, max_size=15), text=texts, current=st.booleans()
)
registers = st.dictionaries(st.sampled_from(["EIP", "EFLAGS", "EAX", "CR3"]), words)

snapshots = st.builds(
    Snapshot,
    cycle=st.integers(0, 10**15),
    virtual_ns=st.integers(0, 10**15),
    retired=st.integers(0, 10**15),
    status=texts,
    thread=maybe,
    mode=st.sampled_from(["user", "guest", "kernel", "hosted", "idle"]),
    registers=registers,
    previous=registers,
    disassembly=st.lists(instructions, **few).map(tuple),
    threads=st.lists(threads, **few).map(tuple),
    spaces=st.lists(spaces, **few).map(tuple),
    ipc=st.lists(messages, max_size=40).map(tuple),
    exits=st.lists(exits, **few).map(tuple),
    exit_counts=counts,
    counters=counts,
    machines=st.lists(machines, max_size=3).map(tuple),
    console=texts,
    input_expected=st.booleans(),
)
