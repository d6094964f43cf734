# SPDX-License-Identifier: GPL-2.0-or-later
"""What all devices have in common, and the bus that finds the device behind a port.

Lives here: the interface (`Device`), how state is saved and put back (`Saved`), and `PortBus`. Does not live here: any
particular device, and the clock: `now` is somebody else's callable that returns virtual nanoseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

Now = Callable[[], int]  # virtual time in nanoseconds; never runs backwards
Line = Callable[[bool], None]  # an interrupt line: called with its level, as often as one likes

NS_PER_SECOND = 1_000_000_000

BYTE: Final = range(0x100)
TIME: Final = range(1 << 62)  # nanoseconds
WAITING: Final = range(1 << 28)  # bytes that came from outside, and nobody has read yet
ANY_NUMBER: Final = range(-(1 << 62), 1 << 62)


@dataclass(frozen=True, slots=True)
class OrNone:
    """A number out of a range, or None."""

    number: range


def no_line(level: bool) -> None:
    """A line that is not connected."""


Limits = Mapping[str, range | OrNone]


class Saved:
    """Something whose state is the attributes named in `saved`; wiring (callables) is not state.

    `may_be` says what they can be, where that is not what the attribute's present value tells: a flag is a flag,
    a number is a byte, and bytes are as many as there are. A range is one of numbers, or of how many bytes.
    """

    saved: ClassVar[tuple[str, ...]] = ()
    may_be: ClassVar[Limits] = {}

    def save(self) -> dict[str, Any]:
        """A copy of the state in plain values: numbers, bytes, lists and dictionaries of them."""
        return {name: _plain(getattr(self, name)) for name in self.saved}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `save` returned. No line is driven: whoever hangs on it restores its own state.

        ValueError if it is not what `save` can have returned.
        """
        if not isinstance(state, dict) or state.keys() != self.save().keys():
            raise ValueError(f"not the state of a {type(self).__name__}")
        for name in self.saved:
            current, value = getattr(self, name), state[name]
            if not _fits(current, self.may_be.get(name), value):
                raise ValueError(f"{name} cannot be {value!r}"[:100])
            setattr(self, name, _put_back(current, value))


def _plain(value: Any) -> Any:
    match value:
        case Saved():
            return value.save()
        case list():
            return [_plain(item) for item in value]
        case bytearray():
            return bytes(value)
        case _:
            return value


def _fits(current: Any, allowed: range | OrNone | None, value: Any) -> bool:
    """May this be the saved value of an attribute that is now `current`?"""
    match current, allowed:
        case (Saved(), _):
            return True  # it looks at its own
        case (list() | bytearray(), _):
            numbers = isinstance(value, bytes) or (isinstance(value, list) and isinstance(current, list))
            if not numbers or not isinstance(allowed, range | None):
                return False
            if len(value) != len(current) if allowed is None else len(value) not in allowed:
                return False
            return any(isinstance(part, Saved) for part in current) or all(_is_number(item, BYTE) for item in value)
        case (_, OrNone(number)):
            return value is None or _is_number(value, number)
        case (bool(), None):
            return isinstance(value, bool)
        case (_, range()):
            return _is_number(value, allowed)
        case _:
            return _is_number(value, BYTE)


def _is_number(value: Any, allowed: range) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in allowed


def _put_back(current: Any, value: Any) -> Any:
    """What an attribute becomes: parts stay the objects they are, because others hold references to them."""
    match current:
        case Saved():
            current.restore(value)
            return current
        case [Saved(), *_]:
            for part, state in zip(current, value, strict=True):
                part.restore(state)
            return current
        case list():
            return list(value)
        case bytearray():
            return bytearray(value)
        case _:
            return value


class Device(Saved):
    """A device behind I/O ports, memory addresses or both. Its docstring's first line is its one-line documentation.

    A subclass that has `ports` defines `read` and `write`, one that has `memory` defines `load` and `store`: a bus
    calls them for what the device claims, and for nothing else.
    """

    name: str
    ports: tuple[range, ...] = ()
    memory: tuple[range, ...] = ()  # guest-physical addresses
    widest: ClassVar[int] = 1  # bytes the device takes in one access; the bus splits what is wider

    @property
    def about(self) -> str:
        """One line for lists and pictures."""
        return (type(self).__doc__ or "").partition("\n")[0]

    def read(self, port: int, size: int) -> int:
        """What IN returns. `size` is 1, 2 or 4 bytes, never more than `widest`."""
        raise NotImplementedError

    def write(self, port: int, size: int, value: int) -> None:
        """What OUT does. `size` is 1, 2 or 4 bytes, never more than `widest`."""
        raise NotImplementedError

    def load(self, address: int, size: int) -> int:
        """What a load from one of its addresses returns: `size` is as for `read`."""
        raise NotImplementedError

    def store(self, address: int, size: int, value: int) -> None:
        """What a store to one of its addresses does."""
        raise NotImplementedError

    def read_block(self, port: int, width: int, count: int) -> bytes:
        """What a repeated INS gets: `count` elements of `width` bytes. To be overridden by who has them faster."""
        return b"".join(self.read(port, width).to_bytes(width, "little") for _ in range(count))

    def write_block(self, port: int, width: int, data: bytes) -> None:
        """What a repeated OUTS does: whole elements of `width` bytes."""
        for at in range(0, len(data), width):
            self.write(port, width, int.from_bytes(data[at : at + width], "little"))

    def deadline(self) -> int | None:
        """When the device next does something of its own accord that matters (absolute ns), None if never.

        May be in the past until `advance` was called.
        """
        return None

    def advance(self) -> None:
        """Bring the state, and the interrupt line, up to `now`."""


class PortBus:
    """Finds the device behind a port. Nobody's ports read as all ones and swallow what is written.

    `unclaimed` counts accesses to nobody's ports by (port, "in" or "out"), for showing; when it has seen
    `UNCLAIMED_KINDS` different ones, the rest is counted under port `ELSEWHERE`.
    """

    UNCLAIMED_KINDS: ClassVar[int] = 256
    ELSEWHERE: ClassVar[int] = -1

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices: tuple[Device, ...] = ()
        self.unclaimed: Counter[tuple[int, str]] = Counter()
        self.owner: dict[int, Device] = {}
        # Bound methods, found once: a boot makes tens of thousands of accesses, nearly all of one byte.
        self._read: dict[int, Callable[[int, int], int]] = {}
        self._write: dict[int, Callable[[int, int, int], None]] = {}
        for device in devices:
            self.attach(device)

    def attach(self, device: Device) -> None:
        """Let a device answer at its ports; ValueError if one of them is taken."""
        ports = [port for ports in device.ports for port in ports]
        for port in ports:
            if port in self.owner:
                raise ValueError(f"{device.name} and {self.owner[port].name} both claim port {port:#x}")
        self.devices += (device,)
        self.owner |= dict.fromkeys(ports, device)
        self._read |= dict.fromkeys(ports, device.read)
        self._write |= dict.fromkeys(ports, device.write)

    def read(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""
        if size == 1 and (read := self._read.get(port)) is not None:
            return read(port, 1)
        return self._read_rare(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes."""
        if size == 1 and (write := self._write.get(port)) is not None:
            write(port, 1, value)
        else:
            self._write_rare(port, size, value)

    def read_block(self, port: int, width: int, count: int) -> bytes:
        """A repeated INS."""
        device = self.owner.get(port)
        if device is not None and width <= device.widest:
            return device.read_block(port, width, count)
        return b"".join(self.read(port, width).to_bytes(width, "little") for _ in range(count))

    def write_block(self, port: int, width: int, data: bytes) -> None:
        """A repeated OUTS."""
        device = self.owner.get(port)
        if device is not None and width <= device.widest:
            device.write_block(port, width, data)
            return
        for at in range(0, len(data), width):
            self.write(port, width, int.from_bytes(data[at : at + width], "little"))

    def deadline(self) -> int | None:
        """The earliest deadline of all devices."""
        return min((due for device in self.devices if (due := device.deadline()) is not None), default=None)

    def advance(self) -> None:
        """Bring all devices up to `now`, in the order in which they were given."""
        for device in self.devices:
            device.advance()

    def save(self) -> dict[str, Any]:
        """The state of all devices, by name."""
        return {device.name: device.save() for device in self.devices}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `save` returned."""
        for device in self.devices:
            device.restore(state[device.name])

    def _read_rare(self, port: int, size: int) -> int:
        device = self.owner.get(port)
        if device is not None and size <= device.widest:
            return device.read(port, size)
        span = [(port + i) & 0xFFFF for i in range(size)]
        if not any(p in self.owner for p in span):
            self._count(port, "in")
            return (1 << 8 * size) - 1
        return sum(self._read_byte(p) << 8 * i for i, p in enumerate(span))  # low byte first, as the bus does

    def _read_byte(self, port: int) -> int:
        if port in self._read:
            return self._read[port](port, 1)
        self._count(port, "in")
        return 0xFF

    def _write_rare(self, port: int, size: int, value: int) -> None:
        device = self.owner.get(port)
        if device is not None and size <= device.widest:
            device.write(port, size, value)
            return
        span = [(port + i) & 0xFFFF for i in range(size)]
        if not any(p in self.owner for p in span):
            self._count(port, "out")
            return
        for i, p in enumerate(span):
            if p in self._write:
                self._write[p](p, 1, value >> 8 * i & 0xFF)
            else:
                self._count(p, "out")

    def _count(self, port: int, direction: str) -> None:
        kind = (port, direction)
        if kind not in self.unclaimed and len(self.unclaimed) >= self.UNCLAIMED_KINDS:
            kind = (self.ELSEWHERE, direction)
        self.unclaimed[kind] += 1
