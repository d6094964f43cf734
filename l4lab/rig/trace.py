# SPDX-License-Identifier: GPL-2.0-or-later
"""The ordered event log of a run, and questions to it.

The kernel appends records; the trace packs them by the hundred into MessagePack and keeps as many bytes as it may.
Two runs with the same inputs give the same bytes. What happened is read back as the same typed records.

Events are numbered from 0, the first of the run, whether or not it is still there. Of each chunk of packed events the
trace knows without unpacking it where it begins, in numbers, cycles and kernel entries, and how many events of each
kind are in it. So a question unpacks the chunks that may hold an answer, and no others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import get_args
from zlib import crc32

import msgspec

from l4lab import files
from l4lab.errors import LabError
from l4lab.kernel import events
from l4lab.kernel.events import AnyEvent, Event, KernelEntry
from l4lab.kernel.objects.instants import Instant

CHUNK = 512  # events packed together
DEFAULT_LIMIT = 256 << 20  # bytes of packed events kept; a Linux boot takes some 30 MB
UNPACKED = 8  # chunks that are kept unpacked, those that were asked for last
CHUNK_BYTES = 1000  # what a chunk takes beside its packed events
_MAGIC, _OLD_MAGIC = b"l4lab trace 2\n", b"l4lab trace 1\n"
_HEAD = Struct("<QQQ")  # of a file: events dropped, kernel entries among them, events since the last of those
_CHUNK_HEAD = Struct("<II")  # of each chunk: events, bytes
_SUM = 4  # bytes of a checksum, which follows each head, and each chunk
_ENCODER = msgspec.msgpack.Encoder(enc_hook=int)  # thread identifiers and the like are words: ints in a subclass
_DECODER = msgspec.msgpack.Decoder(list[AnyEvent])
_KINDS: tuple[type[Event], ...] = get_args(AnyEvent)
# The fields of each kind that name threads whose business the event is.
_THREADS = {
    kind: tuple(name for name in ("thread", "vcpu", "sender", "receiver") if name in kind.__struct_fields__)
    for kind in _KINDS
} | {events.ThreadRenamed: ("thread", "name")}


class Tag(msgspec.Struct, array_like=True, gc=False):
    """As much of a packed event as the index needs."""

    tag: int


_TAGS = msgspec.msgpack.Decoder(list[Tag])
_BY_TAG: dict[int, type[Event]] = {int(kind.__struct_config__.tag or 0): kind for kind in _KINDS}
_ENTRY = int(KernelEntry.__struct_config__.tag or 0)


class Chunk:
    """Packed events, and what is known of them without unpacking. The index is made when somebody asks: a run in which
    nobody does is not to pay for it."""

    __slots__ = ("at", "behind", "counts", "entries", "first", "packed", "since", "size", "threads")

    def __init__(self, first: int, size: int, at: int, behind: int, packed: bytes) -> None:
        self.first = first  # number of the first event
        self.size = size
        self.at = at  # cycle of the first event
        self.behind = behind  # cycle of the last event
        self.packed = packed
        # The index.
        self.counts: Counter[type[Event]] = Counter()
        self.entries = 0  # kernel entries before it
        self.since = 0  # events since the last of them
        self.threads: frozenset[int] | None = None  # whose business the events are; made when a thread is asked for


class Trace:
    """An event log of bounded size. When it is full the oldest events go, and `dropped` says how many went."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._chunks: list[Chunk] = []
        self._bytes = 0
        self._indexed = 0  # chunks that have their index, oldest first; of them:
        self._counts: Counter[type[Event]] = Counter()  # events of each kind
        self._last: dict[type[Event], Chunk] = {}  # where the last event of a kind is
        self._entries = 0  # kernel entries up to their end, those that were dropped included
        self._since = 0  # events since the last of them
        self._recent: list[Event] = []
        self._buffer = bytearray()  # where a chunk is packed
        self._unpacked: OrderedDict[int, list[AnyEvent]] = OrderedDict()
        # Take note of an event: the kernel does so several times in each entry.
        self.append: Callable[[Event], object] = self._recent.append
        self.dropped = 0

    def settle(self) -> None:
        """Pack what has come together. The kernel calls this now and then; chunks are of one size all the same."""
        while len(self._recent) >= CHUNK:
            oldest = self._recent[:CHUNK]
            del self._recent[:CHUNK]
            # Packed into a buffer first: what `encode` returns occupies up to half as much again as it holds.
            _ENCODER.encode_into(oldest, self._buffer)
            self._keep(Chunk(self._packed_end, CHUNK, oldest[0].at, oldest[-1].at, bytes(self._buffer)))

    def _keep(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._bytes += len(chunk.packed) + CHUNK_BYTES
        while self._bytes > self._limit and len(self._chunks) > 1:
            if not self._indexed:
                self._index(self._chunks[0])  # how many kernel entries it had is not to be forgotten
            gone = self._chunks.pop(0)
            self._indexed -= 1
            self._bytes -= len(gone.packed) + CHUNK_BYTES
            self._counts.subtract(gone.counts)
            self._unpacked.pop(gone.first, None)
            self.dropped += gone.size

    def _settle_and_index(self) -> None:
        """What a question begins with."""
        self.settle()
        for chunk in self._chunks[self._indexed :]:
            self._index(chunk)

    def _index(self, chunk: Chunk) -> None:
        tags = [event.tag for event in _TAGS.decode(chunk.packed)]
        chunk.counts = Counter({_BY_TAG[tag]: count for tag, count in Counter(tags).items()})
        chunk.entries, chunk.since = self._entries, self._since
        self._indexed += 1
        self._counts.update(chunk.counts)
        self._last.update(dict.fromkeys(chunk.counts, chunk))
        self._entries += chunk.counts[KernelEntry]
        self._since = tags[::-1].index(_ENTRY) if _ENTRY in tags else self._since + chunk.size

    # -- all events --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Events in the log, dropped ones not counted."""
        return self.total - self.dropped

    @property
    def total(self) -> int:
        """Events of the run so far: the number of the next one."""
        return self._packed_end + len(self._recent)

    @property
    def _packed_end(self) -> int:
        """The number of the first event that is not packed yet."""
        return self._chunks[-1].first + self._chunks[-1].size if self._chunks else self.dropped

    def __iter__(self) -> Iterator[AnyEvent]:
        """All events, oldest first, as typed records."""
        self.settle()
        chunks, recent = list(self._chunks), list(self._recent)
        for chunk in chunks:
            yield from _DECODER.decode(chunk.packed)
        yield from _typed(recent)

    # -- one event, or a few -----------------------------------------------------------------------------------------

    def event(self, number: int) -> AnyEvent:
        """The event of this number."""
        found = self.between(number, number + 1)
        if not found:
            raise LabError(f"there is no event {number}. There are those from {self.dropped} to {self.total - 1}.")
        return found[0]

    def between(self, first: int, behind: int) -> list[AnyEvent]:
        """The events with numbers from `first` on and below `behind`, as many of them as there are."""
        self.settle()
        first = max(first, self.dropped)
        found: list[AnyEvent] = []
        for chunk in self._chunks[max(bisect_right(self._chunks, first, key=_first) - 1, 0) :]:
            if chunk.first >= behind:
                return found
            found += self._unpack(chunk)[max(first - chunk.first, 0) : behind - chunk.first]
        start = self._packed_end
        found += _typed(self._recent[max(first - start, 0) : max(behind - start, 0)])
        return found

    def latest(self, count: int) -> list[AnyEvent]:
        """The last `count` events, oldest first."""
        return self.between(self.total - count, self.total)

    def last(self, *kinds: type[Event], thread: int | None = None) -> AnyEvent | None:
        """The last event of these kinds (any, if none is given), of one thread if wanted; None if there is none."""
        wanted = _concrete(kinds)
        self._settle_and_index()
        for recent in reversed(self._recent):
            if type(recent) in wanted and (thread is None or thread in _threads(recent)):
                return _typed([recent])[0]
        begin = max((self._last[kind].first for kind in wanted if kind in self._last), default=-1)
        for chunk in reversed(self._chunks[: bisect_right(self._chunks, begin, key=_first)]):
            if self._may_hold(chunk, wanted, thread):
                for packed in reversed(self._unpack(chunk)):
                    if type(packed) in wanted and (thread is None or thread in _threads(packed)):
                        return packed
        return None

    # -- searching ---------------------------------------------------------------------------------------------------

    def select(
        self, *kinds: type[Event], thread: int | None = None, since: int = 0, until: int | None = None
    ) -> Iterator[AnyEvent]:
        """Events of the given kinds (all if none is given), of one thread if wanted, in cycles [since, until)."""
        return (event for _, event in self.numbered(*kinds, thread=thread, since=since, until=until))

    def numbered(
        self, *kinds: type[Event], thread: int | None = None, since: int = 0, until: int | None = None
    ) -> Iterator[tuple[int, AnyEvent]]:
        """The same with the number of each."""
        self._settle_and_index()
        wanted = _concrete(kinds)
        start, recent = self._packed_end, list(self._recent)
        for chunk in self._chunks[max(bisect_left(self._chunks, since, key=_behind), 0) :]:
            if until is not None and chunk.at >= until:
                return
            if self._may_hold(chunk, wanted, thread):
                for number, event in enumerate(self._unpack(chunk), chunk.first):
                    if _is_wanted(event, wanted, thread, since, until):
                        yield number, event
        for number, latest in enumerate(recent, start):
            if _is_wanted(latest, wanted, thread, since, until):
                yield number, _typed([latest])[0]

    def counts(self) -> Counter[str]:
        """How many events of each kind there are."""
        self._settle_and_index()
        found = self._counts + Counter(map(type, self._recent))
        return Counter({kind.__name__: count for kind, count in found.items()})

    # -- exact instants ----------------------------------------------------------------------------------------------

    def instant_of(self, number: int) -> Instant:
        """When the event of this number happened. The state there is that behind its effect, before the next event."""
        if not self.dropped <= number < self.total:
            self.event(number)  # says which there are
        self._settle_and_index()
        around: Sequence[Event] = self._recent
        start, entries, since = self._packed_end, self._entries, self._since
        if number < start:
            chunk = self._chunks[bisect_right(self._chunks, number, key=_first) - 1]
            start, entries, since, around = chunk.first, chunk.entries, chunk.since, self._unpack(chunk)
        before = number - start
        entries += sum(type(event) is KernelEntry for event in around[:before])
        return Instant(around[before].at, entries, _behind_entry(around, before, since))

    def number_at(self, cycle: int) -> int:
        """The number of the first event at or behind this cycle; `total` if there is none."""
        return next((number for number, _ in self.numbered(since=cycle)), self.total)

    # -- chunks ------------------------------------------------------------------------------------------------------

    def _unpack(self, chunk: Chunk) -> list[AnyEvent]:
        """The events of a chunk; those that were asked for last are at hand."""
        found = self._unpacked.get(chunk.first)
        if found is None:
            found = self._unpacked[chunk.first] = _DECODER.decode(chunk.packed)
            if len(self._unpacked) > UNPACKED:
                self._unpacked.popitem(last=False)
        else:
            self._unpacked.move_to_end(chunk.first)
        return found

    def _may_hold(self, chunk: Chunk, wanted: frozenset[type[Event]], thread: int | None) -> bool:
        """Can an event of these kinds, and of this thread, be in the chunk?"""
        if wanted.isdisjoint(chunk.counts):
            return False
        if thread is not None and chunk.threads is None:
            chunk.threads = frozenset(one for event in self._unpack(chunk) for one in _threads(event))
        return thread is None or chunk.threads is None or thread in chunk.threads

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write the log to a file."""
        files.write(path, self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        """What a file holds: a head, then each chunk with a head of its own, all with checksums."""
        self._settle_and_index()
        oldest = self._chunks[0] if self._chunks else None
        head = self.dropped, oldest.entries if oldest else self._entries, oldest.since if oldest else self._since
        yield _MAGIC + _checked(_HEAD.pack(*head))
        last = [(len(self._recent), _ENCODER.encode(self._recent))] if self._recent else []
        for count, packed in [*((chunk.size, chunk.packed) for chunk in self._chunks), *last]:
            yield _checked(_CHUNK_HEAD.pack(count, len(packed))) + _checked(packed)

    @classmethod
    def load(cls, path: Path | str) -> Trace:
        """Read a log that `save` wrote. Whatever is wrong with the file is found here."""
        data = files.read(path, "a file written by --trace", _MAGIC)
        if data.startswith(_OLD_MAGIC):
            raise LabError(f"{path} is a trace of an older l4lab, which told less. Record the trace again.")
        if not data.startswith(_MAGIC):
            raise LabError(f"{path} is not a trace. Give a file written by --trace.")
        trace, cycle, file = cls(), 0, BytesIO(data)
        at = file.seek(len(_MAGIC))
        try:
            trace.dropped, trace._entries, trace._since = _HEAD.unpack(_read_checked(file, _HEAD.size))
            at = file.tell()
            while head := file.read(1):
                count, size = _CHUNK_HEAD.unpack(_read_checked(file, _CHUNK_HEAD.size, head))
                unpacked = _DECODER.decode(packed := _read_checked(file, size))
                _require(unpacked and len(unpacked) == count, "a chunk has the wrong number of events")
                for event in unpacked:
                    _require(event.at >= cycle, f"its clock goes back from cycle {cycle} to {event.at}")
                    cycle = event.at
                trace._keep(Chunk(trace._packed_end, count, unpacked[0].at, cycle, packed))
                at = file.tell()
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise LabError(f"{path} is damaged behind byte {at}: {error}. Record the trace again.") from error
        return trace


def _checked(data: bytes) -> bytes:
    """These bytes and their checksum."""
    return data + crc32(data).to_bytes(_SUM, "little")


def _read_checked(file: BytesIO, size: int, begun: bytes = b"") -> bytes:
    """So many bytes with a checksum behind them; `begun`: those that were read already."""
    data = begun + file.read(size + _SUM - len(begun))
    _require(len(data) == size + _SUM, "it ends in the midst")
    _require(crc32(data[:size]) == int.from_bytes(data[size:], "little"), "its checksum is wrong")
    return data[:size]


def _require(condition: object, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _first(chunk: Chunk) -> int:
    return chunk.first


def _behind(chunk: Chunk) -> int:
    return chunk.behind


def _typed(recent: list[Event]) -> list[AnyEvent]:
    """Events as they are read back: the kernel's identifiers and enumerations are in a class of their own."""
    found: list[AnyEvent] = _DECODER.decode(_ENCODER.encode(recent))
    return found


def _concrete(kinds: tuple[type[Event], ...]) -> frozenset[type[Event]]:
    """The kinds of events that a question names; all if it names none."""
    return frozenset(kind for kind in _KINDS if issubclass(kind, kinds)) if kinds else frozenset(_KINDS)


def _is_wanted(event: Event, wanted: frozenset[type[Event]], thread: int | None, since: int, until: int | None) -> bool:
    return (
        type(event) in wanted
        and event.at >= since
        and (until is None or event.at < until)
        and (thread is None or thread in _threads(event))
    )


def _threads(event: Event) -> tuple[int, ...]:
    """The threads that an event concerns."""
    return tuple(getattr(event, name) for name in _THREADS[type(event)])


def _behind_entry(around: Sequence[Event], before: int, since: int) -> int:
    """How many events come before number `before` of these and behind the last kernel entry; `since` did before all."""
    for index in range(before - 1, -1, -1):
        if type(around[index]) is KernelEntry:
            return before - 1 - index
    return since + before
