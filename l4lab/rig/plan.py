# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a run: what it is made from, as data from which the same run can be made again any number of times.

A plan is small and can be written to a file: it names images and all other contents by their SHA-256, and programs
written in Python by their name and the SHA-256 of their source. With the contents (`Rig.images`) and the input
(`kernel/objects/instants.py`) it determines every byte of the trace.

What lives here: the record, making it of what a rig was made from, and the way back. `Rig` does both for its users.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec

from l4lab.abi.ids import ThreadId
from l4lab.abi.kip import MemoryDescriptor
from l4lab.devices.disk import Image
from l4lab.errors import LabError
from l4lab.kernel.boot import Io, Loaded
from l4lab.kernel.parts import Parts
from l4lab.rig.loader import ProgramPlan
from l4lab.user.host import Host, NativePlan, VmPlan
from l4lab.user.l4 import Program
from l4lab.user.monitor.hardware import Hardware
from l4lab.user.monitor.monitor import GuestProgram
from l4lab.user.monitor.monitor_parts import MonitorParts
from l4lab.user.monitor.realmode import LabBios
from l4lab.user.monitor.saved import SavedGuest
from l4lab.user.monitor.start import Start

VERSION: Final = 1
Root = Program | ProgramPlan | GuestProgram | Host
Contents = tuple[tuple[int, str], ...]  # address, SHA-256 of what lies there


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """What a rig was made from."""

    root: Root
    memory: int
    name: str
    programs: Mapping[ThreadId, Program]
    io: Io
    parts: Parts


class Code(msgspec.Struct, frozen=True, tag="python"):
    """Something written in Python: where it is, and what its source was."""

    name: str  # module:name
    source: str  # SHA-256; empty where no source can be found


class BiosPlan(msgspec.Struct, frozen=True, tag="bios"):
    """The lab's BIOS; see `realmode.LabBios`."""

    loaded: Start | None
    diskette: str | None
    hard_disk: str | None
    goes_on: bool


class GuestPlan(msgspec.Struct, frozen=True, tag="guest"):
    """A monitor and its guest: an image that boots, a system of ours, a saved guest."""

    contents: Contents
    start: Start | None
    saved: str | None  # of the record, packed; then neither contents nor start
    memory_size: int
    attach: BiosPlan | Code | None
    shadow_paging: bool
    disk: str | None
    restarts: int
    parts: tuple[tuple[str, Code], ...] = ()  # of the monitor, in the place of its own: which, and what


class VmOfHost(msgspec.Struct, frozen=True):
    """One of several virtual machines; see `VmPlan`."""

    name: str
    contents: Contents
    start: Start
    memory_size: int
    cpus: int
    shadow_paging: bool
    shares: bool
    time_slice_us: int | None


class HostPlan(msgspec.Struct, frozen=True, tag="host"):
    """Several virtual machines, and native programs; see `Host`."""

    monitors: tuple[tuple[VmOfHost, ...], ...]
    links: tuple[tuple[str, str], ...]
    natives: tuple[NativePlan, ...]


class ProgramsPlan(msgspec.Struct, frozen=True, tag="native"):
    """Native programs in memory; see `ProgramPlan`."""

    firmware: Contents
    pieces: Contents
    sigma0: Loaded | None
    root: Loaded
    descriptors: tuple[MemoryDescriptor, ...]
    boot_info: int


class Plan(msgspec.Struct, frozen=True):
    """What a run is made from."""

    root: GuestPlan | HostPlan | ProgramsPlan | Code
    memory: int  # bytes of RAM
    name: str
    io: Io
    programs: tuple[tuple[int, Code], ...] = ()  # what threads do that the root task is going to create
    parts: tuple[tuple[str, Code], ...] = ()  # of the kernel, as those of a monitor in `GuestPlan`
    version: int = VERSION

    def encode(self) -> bytes:
        """As MessagePack."""
        return msgspec.msgpack.encode(self, enc_hook=int)  # addresses are ints in a subclass

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """Read what `encode` wrote."""
        try:
            plan = msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise LabError(f"this is no plan of a run ({error}); give what Plan.encode wrote") from None
        if plan.version != VERSION:
            raise LabError(f"this plan has version {plan.version}, and this l4lab reads {VERSION}; make it again")
        return plan


# -- making a plan -----------------------------------------------------------------------------------------------------


class _Images:
    """Contents by their hash."""

    def __init__(self) -> None:
        self.by_hash: dict[str, Image] = {}

    def put(self, image: Image) -> str:
        digest = hashlib.sha256(image).hexdigest()
        self.by_hash[digest] = image
        return digest

    def optional(self, image: Image | None) -> str | None:
        return None if image is None else self.put(image)

    def contents(self, pieces: Sequence[tuple[int, bytes]]) -> Contents:
        return tuple((int(address), self.put(data)) for address, data in pieces)


def plan_of(made: MadeFrom) -> tuple[Plan, dict[str, Image]]:
    """The plan, and the contents that it names."""
    images = _Images()
    root: GuestPlan | HostPlan | ProgramsPlan | Code
    if isinstance(made.root, ProgramPlan):
        boot = made.root
        pieces = images.contents(boot.firmware), images.contents(boot.pieces)
        root = ProgramsPlan(*pieces, boot.sigma0, boot.root, boot.descriptors, boot.boot_info)
    elif isinstance(made.root, Host):
        host = made.root
        monitors = tuple(tuple(_machine(plan, images) for plan in plans) for plans in host.monitors)
        root = HostPlan(monitors, host.links, tuple(host.natives))
    elif type(made.root) is GuestProgram:
        root = _guest(made.root, images)
    else:
        root = code_of(made.root)
    programs = tuple((int(thread), code_of(program)) for thread, program in made.programs.items())
    return Plan(root, made.memory, made.name, made.io, programs, _exchanged(made.parts)), images.by_hash


def _exchanged(parts: Parts | MonitorParts) -> tuple[tuple[str, Code], ...]:
    """Which parts were given, and what they are."""
    given = {part.name: getattr(parts, part.name) for part in fields(parts)}
    return tuple((name, code_of(part)) for name, part in given.items() if part is not None)


def _machine(plan: VmPlan, images: _Images) -> VmOfHost:
    contents = images.contents(plan.contents)
    return VmOfHost(
        *(plan.name, contents, plan.start, plan.memory_size, plan.cpus),
        *(plan.shadow_paging, plan.shares, plan.time_slice_us),
    )


def _guest(program: GuestProgram, images: _Images) -> GuestPlan:
    hardware, start = program.hardware, program.start
    attach: BiosPlan | Code | None = None
    if isinstance(program.attach, LabBios):
        bios = program.attach
        attach = BiosPlan(bios.loaded, images.optional(bios.diskette), images.optional(bios.hard_disk), bios.goes_on)
    elif program.attach is not None:
        attach = code_of(program.attach)
    is_saved = isinstance(start, SavedGuest)
    return GuestPlan(
        contents=() if is_saved else images.contents(program.contents),
        start=None if isinstance(start, SavedGuest) else start,
        saved=images.put(msgspec.msgpack.encode(start)) if is_saved else None,
        memory_size=program.memory_size,
        attach=attach,
        shadow_paging=hardware.shadow_paging,
        disk=images.optional(hardware.disk),
        restarts=hardware.restarts,
        parts=_exchanged(program.parts),
    )


def code_of(code: Any) -> Code:
    """The name and the source of a function or class, or of what an object's class is."""
    named = code if hasattr(code, "__qualname__") else type(code)
    try:
        source = hashlib.sha256(inspect.getsource(named).encode()).hexdigest()
    except (OSError, TypeError):
        source = ""
    return Code(f"{named.__module__}:{named.__qualname__}", source)


# -- and the way back --------------------------------------------------------------------------------------------------


def made_from(plan: Plan, images: Mapping[str, Image], functions: Mapping[str, Any]) -> MadeFrom:
    """What a rig is made from by this plan, with these contents by hash and what cannot be imported by name."""

    def image(digest: str) -> Image:
        found = images.get(digest)
        if found is None:
            raise LabError(f"the plan needs contents with SHA-256 {digest}, which are not given; give rig.images")
        return found

    def contents(pieces: Contents) -> tuple[tuple[int, bytes], ...]:
        return tuple((address, bytes(image(digest))) for address, digest in pieces)

    def optional(digest: str | None) -> Image | None:
        return None if digest is None else image(digest)

    root: Root
    match plan.root:
        case ProgramsPlan(firmware, pieces, sigma0, first, descriptors, boot_info):
            root = ProgramPlan(contents(firmware), contents(pieces), sigma0, first, descriptors, boot_info)
        case HostPlan(monitors, links, natives):
            plans = [
                [
                    VmPlan(
                        *(m.name, contents(m.contents), m.start, m.memory_size, m.cpus),
                        *(m.shadow_paging, m.shares, m.time_slice_us),
                    )
                    for m in machines
                ]
                for machines in monitors
            ]
            root = Host(plans, links, natives)
        case GuestPlan() as guest:
            attach: Any = None
            if isinstance(guest.attach, BiosPlan):
                bios = guest.attach
                attach = LabBios(bios.loaded, optional(bios.diskette), optional(bios.hard_disk), bios.goes_on)
            elif guest.attach is not None:
                attach = _find(guest.attach, functions)
            if guest.saved is not None:
                saved = msgspec.msgpack.decode(image(guest.saved), type=SavedGuest)
                root = GuestProgram(saved.memory, saved, guest.memory_size, attach)
            else:
                assert guest.start is not None
                root = GuestProgram(contents(guest.contents), guest.start, guest.memory_size, attach)
            root.hardware = Hardware(guest.shadow_paging, optional(guest.disk), guest.restarts)
            root.parts = MonitorParts(**_parts(MonitorParts, guest.parts, functions))
        case Code() as code:
            root = _find(code, functions)
    programs = {ThreadId.decode(thread): _find(code, functions) for thread, code in plan.programs}
    parts = Parts(**_parts(Parts, plan.parts, functions))
    return MadeFrom(root, plan.memory, plan.name, programs, plan.io, parts)


def _parts(kind: type, given: Sequence[tuple[str, Code]], functions: Mapping[str, Any]) -> dict[str, Any]:
    """What to make the parts with, by their names."""
    known = {part.name for part in fields(kind)}
    if unknown := [name for name, _ in given if name not in known]:
        raise LabError(f"this plan exchanges {', '.join(unknown)}, of which this l4lab knows nothing; make it again")
    return {name: _find(code, functions) for name, code in given}


def _find(code: Code, functions: Mapping[str, Any]) -> Any:
    """What was written in Python, if it is still the same."""
    found = functions.get(code.name)
    if found is None:
        module, _, name = code.name.partition(":")
        try:
            found = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            raise LabError(
                f"the plan needs {code.name}, written in Python, which cannot be imported; "
                f"give it: functions={{{code.name!r}: ...}}"
            ) from None
    if code_of(found).source != code.source:
        raise LabError(
            f"{code.name} has changed since the plan was made; make the plan again, or go back to what it was"
        )
    return found
