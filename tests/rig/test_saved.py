# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are saved and go on elsewhere: they must not notice, whenever it happens."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.rig import savefile
from l4lab.rig.rig import Rig
from l4lab.rig.session import Script, Session, Status
from l4lab.user.asm import assemble
from l4lab.user.guests import tinyos
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.outcome import End

SECOND = 10**9
WHOLE = tinyos.expected_console("GenuineIntel").encode()
PROMPT = tinyos.expected_console("GenuineIntel", interactive=True).encode()


def at(cycle: int) -> Rig:
    """The small operating system, after so much time."""
    rig = Rig.for_flat_guest(tinyos.build())
    rig.run_until(cycle)
    return rig


def guest_memory(rig: Rig, address: int, length: int) -> bytes:
    """What is in the memory of a guest, through its monitor's window."""
    assert rig.guest is not None
    assert rig.guest.monitor is not None
    return rig.guest.monitor.memory.read(address, length)


def moved(rig: Rig, file: Path) -> Rig:
    """The same guest in another machine."""
    rig.save(file)
    return Rig.restore(file)


@given(st.lists(st.integers(1_000, 200_000_000), min_size=1, max_size=3), st.booleans())
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_guest_goes_on_wherever_it_was_saved(tmp_path: Path, stretches: list[int], shadowed: bool) -> None:
    """Saved at any moment, and again in the machine it went on in: does it say the same, and end by itself?"""
    rig = Rig.for_flat_guest(tinyos.build(), hardware=Hardware(shadow_paging=shadowed))
    said = b""
    for stretch in stretches:
        rig.run(stretch)
        if rig.over():
            break
        carried = rig.carried
        following = moved(rig, tmp_path / "guest")
        said += bytes(rig.console[carried:])
        rig = following
    rig.run(5 * SECOND)
    said += bytes(rig.console[rig.carried :])

    assert WHOLE == said
    assert rig.outcome is not None
    assert End.POWERED_OFF is rig.outcome.end


def test_who_was_saved_goes_on_too(tmp_path: Path) -> None:
    """Does the guest that was saved run on as if nothing had been?"""
    rig = at(30_000_000)
    rig.save(tmp_path / "guest")
    rig.run(5 * SECOND)

    assert WHOLE == bytes(rig.console)


def test_time_stands_still_for_a_saved_guest(tmp_path: Path) -> None:
    """Are clock and time stamp counter where they stopped, although the new machine was just switched on?"""
    source = """
        start:  rdtsc
                mov     ebx, eax
                mov     ecx, 50000000
        again:  loop    again
                rdtsc
                sub     eax, ebx
                mov     [0x200000], eax
                hlt
    """
    guest = FlatGuest.of(assemble(source, ORIGIN, constants=COM1), "Measures.")
    rig = Rig.for_flat_guest(guest)
    rig.run_until(20_000_000)
    other = moved(rig, tmp_path / "guest")
    other.run(SECOND)
    took = guest_memory(other, 0x20_0000, 4)

    assert 50_000_000 <= int.from_bytes(took, "little") < 50_100_000


def test_the_fpu_is_saved(tmp_path: Path) -> None:
    """Do x87 and SSE registers go on with the guest?"""
    source = """
        start:  mov     eax, cr4
                or      eax, 0x200
                mov     cr4, eax
                fninit
                fldpi
                mov     eax, 0x12345678
                movd    xmm3, eax
                mov     ecx, 30000000
        again:  loop    again
                fstp    tbyte ptr [0x200000]
                movd    eax, xmm3
                mov     [0x20000c], eax
                cli
                hlt
    """
    rig = Rig.for_flat_guest(FlatGuest.of(assemble(source, ORIGIN, constants=COM1), "Calculates."))
    rig.run_until(10_000_000)
    other = moved(rig, tmp_path / "guest")
    other.run(SECOND)

    assert bytes.fromhex("35c26821a2da0fc90040 0000 78563412") == guest_memory(other, 0x20_0000, 16)


def test_what_was_typed_reaches_a_restored_guest(tmp_path: Path) -> None:
    """Does a guest that waited at its prompt take a line, and does a session see that prompt?"""
    rig = Rig.for_flat_guest(tinyos.build(interactive=True))
    rig.run_until(5 * SECOND, lambda: bytes(rig.console).endswith(PROMPT[-6:]))
    other = moved(rig, tmp_path / "guest")
    ending = Session(other, Script.parse(until="no such command", sends=["tiny> =>hello"], timeout=60)).run()

    assert Status.MATCHED is ending.status
    assert bytes(other.console).startswith(b"tiny> hello\r\nno such command")


def test_a_session_can_save_at_a_match(tmp_path: Path) -> None:
    """Does a script that saves leave a file from which another process goes on?"""
    rig = Rig.for_flat_guest(tinyos.build(interactive=True))
    file = tmp_path / "guest"
    assert Status.MATCHED is Session(rig, Script.parse(save_at=("tiny> ", file), timeout=60)).run().status
    line = [sys.executable, "-m", "l4lab", "boot", "--restore", str(file), "--timeout", "60"]
    done = subprocess.run([*line, "--send", "tiny> =>halt"], capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
    assert done.stdout.startswith("tiny> halt")
    assert "turned its power off" in done.stderr


def test_only_what_was_saved_can_be_restored(tmp_path: Path) -> None:
    """Is every other file refused, saying what to do?"""
    file = tmp_path / "guest"
    at(1_000_000).save(file)
    good = file.read_bytes()
    for bad, word in (
        (b"", "no saved guest"),
        (b"\x7fELF", "no saved guest"),
        (good.replace(b"version 2\n", b"version 77\n", 1), "version '77'"),
        (good[:-20], "damaged"),
        (good[:60] + b"x" + good[61:], "damaged"),
    ):
        file.write_bytes(bad)
        with pytest.raises(LabError, match=word):
            Rig.restore(file)
    with pytest.raises(LabError, match="cannot read"):
        savefile.read(tmp_path / "nowhere")


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    """Is a file of which any bit has changed no saved guest any more, whichever it is?"""
    file = tmp_path / "guest"
    at(1_000_000).save(file)
    good = file.read_bytes()
    everywhere = [*range(8 * 80), *range(8 * 80, 8 * len(good), 997), 8 * len(good) - 1]
    for place in everywhere:
        bad = bytearray(good)
        bad[place >> 3] ^= 1 << (place & 7)
        file.write_bytes(bad)
        with pytest.raises(LabError):
            savefile.read(file)


def leaves(of: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a record."""
    yield path
    if isinstance(of, dict | list):
        for key in of if isinstance(of, dict) else range(min(len(of), 40)):
            yield from leaves(of[key], (*path, key))


def altered(of: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value there."""
    if not path:
        return value
    changed = of.copy()
    changed[path[0]] = altered(of[path[0]], path[1:], value)
    return changed


@cache
def records() -> list[Any]:
    """Saved guests as plain values: with and without a disk, nested and shadow."""
    found = []
    for shadowed, disk in ((False, None), (True, bytes(1 << 20))):
        rig = Rig.for_flat_guest(tinyos.build(), hardware=Hardware(shadow_paging=shadowed, disk=disk))
        rig.run_until(60_000_000)
        with NamedTemporaryFile() as file:
            rig.save(file.name)
            found.append(msgspec.msgpack.decode(msgspec.msgpack.encode(savefile.read(file.name)), strict=False))
    return found


VALUES = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.sampled_from((0, 1, -1, 255, 256, 4096, 0xFFFF_FFFF, 1 << 62)),
    st.booleans(),
    st.none(),
    st.binary(max_size=600),
    st.lists(st.integers(0, 255), max_size=4),
    st.text(max_size=3),
    st.just({}),
)


@given(st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_record_whatever_it_says_breaks_the_lab(tmp_path: Path, data: st.DataObject) -> None:
    """Is a saved guest with any values changed refused in words, or does it go on without a program of ours dying?"""
    number = data.draw(st.integers(0, 1))
    record = records()[number]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(leaves(record))))
        record = altered(record, path, data.draw(VALUES))
    file = tmp_path / "guest"
    packed = zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(record))
    file.write_bytes(b"l4lab saved guest, version 2\n" + hashlib.sha256(packed).digest() + packed)
    try:
        rig = Rig.restore(file, disk=bytes(1 << 20) if number else None)
    except LabError:
        return
    with rig:
        rig.run(2_000_000)
        assert [] == rig.kernel.deaths
        rig.snapshot()


def test_a_guest_goes_on_with_its_disk_only(tmp_path: Path) -> None:
    """Is one that had a disk refused without it, in one line and with status 2, and one that had none with one?"""
    disk, file = tmp_path / "disk", tmp_path / "guest"
    disk.write_bytes(bytes(1 << 20))
    rig = Rig.for_flat_guest(tinyos.build(interactive=True), hardware=Hardware(disk=disk.read_bytes()))
    rig.run_until(5 * SECOND, lambda: bytes(rig.console).endswith(PROMPT[-6:]))
    rig.save(file)
    line = [sys.executable, "-m", "l4lab", "boot", "--restore", str(file), "--timeout", "60", "--send", "tiny> =>halt"]
    without = subprocess.run(line, capture_output=True, text=True, check=False)
    with_it = subprocess.run([*line, "--disk", str(disk)], capture_output=True, text=True, check=False)

    assert (2, 1) == (without.returncode, len(without.stderr.splitlines())), without.stderr
    assert "--disk FILE" in without.stderr
    assert 0 == with_it.returncode, with_it.stderr
    at(1_000_000).save(file)
    with pytest.raises(LabError, match="leave --disk out"):
        Rig.restore(file, disk=bytes(512))


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    """Are a machine without a guest, and a guest that has ended, refused?"""
    rig = at(5 * SECOND)
    with pytest.raises(LabError, match="not saved"):
        rig.save(tmp_path / "guest")
    with pytest.raises(LabError, match="no guest"):
        Rig(lambda l4: None, 32 << 20).save(tmp_path / "guest")
