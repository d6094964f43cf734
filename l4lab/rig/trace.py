# SPDX-License-Identifier: GPL-2.0-or-later
"""The ordered event log of a run, and questions to it.

The kernel appends records; the trace packs them by the thousand into MessagePack and keeps as many bytes as it may.
Two runs with the same inputs give the same bytes. What happened is read back as the same typed records.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from l4lab import files
from l4lab.errors import LabError
from l4lab.kernel import events
from l4lab.kernel.events import AnyEvent, Event

CHUNK = 1024  # events packed together
DEFAULT_LIMIT = 256 << 20  # bytes of packed events kept; a Linux boot takes some 20 MB
_MAGIC = b"l4lab trace 1\n"
_ENCODER = msgspec.msgpack.Encoder(enc_hook=int)  # thread identifiers and the like are words: ints in a subclass
_DECODER = msgspec.msgpack.Decoder(list[AnyEvent])


class Trace:
    """An event log of bounded size. When it is full the oldest events go, and `dropped` says how many went."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._chunks: deque[tuple[int, bytes]] = deque()  # (number of events, packed)
        self._bytes = 0
        self._recent: list[Event] = []
        # Take note of an event: the kernel does so several times in each entry.
        self.append: Callable[[Event], object] = self._recent.append
        self.dropped = 0

    def settle(self) -> None:
        """Pack what has come together. The kernel calls this now and then; chunks are of one size all the same."""
        while len(self._recent) >= CHUNK:
            packed = _ENCODER.encode(self._recent[:CHUNK])
            del self._recent[:CHUNK]
            self._keep(CHUNK, packed)

    def _keep(self, count: int, packed: bytes) -> None:
        self._chunks.append((count, packed))
        self._bytes += len(packed)
        while self._bytes > self._limit and len(self._chunks) > 1:
            count, oldest = self._chunks.popleft()
            self._bytes -= len(oldest)
            self.dropped += count

    def __len__(self) -> int:
        """Events in the log, dropped ones not counted."""
        return sum(count for count, _ in self._chunks) + len(self._recent)

    def __iter__(self) -> Iterator[AnyEvent]:
        """All events, oldest first, as typed records."""
        for _, packed in self._chunks:
            yield from _DECODER.decode(packed)
        yield from _DECODER.decode(_ENCODER.encode(self._recent))

    def latest(self, count: int) -> list[AnyEvent]:
        """The last `count` events, oldest first."""
        found: list[AnyEvent] = _DECODER.decode(_ENCODER.encode(self._recent))
        for _, packed in reversed(self._chunks):
            if len(found) >= count:
                break
            found = _DECODER.decode(packed) + found
        return found[-count:] if count else []

    def select(
        self, *kinds: type[Event], thread: int | None = None, since: int = 0, until: int | None = None
    ) -> Iterator[AnyEvent]:
        """Events of the given kinds (all if none is given), of one thread if wanted, in cycles [since, until)."""
        for event in self:
            if kinds and not isinstance(event, kinds):
                continue
            if event.at < since or (until is not None and event.at >= until):
                continue
            if thread is not None and thread not in _threads(event):
                continue
            yield event

    def counts(self) -> Counter[str]:
        """How many events of each kind there are."""
        return Counter(type(event).__name__ for event in self)

    def save(self, path: Path | str) -> None:
        """Write the log to a file."""
        self.settle()
        last = [(len(self._recent), _ENCODER.encode(self._recent))] if self._recent else []
        chunks = (
            count.to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
            for count, packed in [*self._chunks, *last]
        )
        files.write(path, itertools.chain([_MAGIC + self.dropped.to_bytes(8, "little")], chunks))

    @classmethod
    def load(cls, path: Path | str) -> Trace:
        """Read a log that `save` wrote."""
        data = files.read(path, "a file written by --trace", _MAGIC)
        if not data.startswith(_MAGIC):
            raise LabError(f"{path} is not a trace. Give a file written by --trace.")
        trace = cls()
        at = len(_MAGIC) + 8
        trace.dropped = int.from_bytes(data[len(_MAGIC) : at], "little")
        while at < len(data):
            count, size = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 4 : at + 8], "little")
            packed = data[at + 8 : at + 8 + size]
            try:
                if len(_DECODER.decode(packed)) != count:
                    raise ValueError("a chunk has the wrong number of events")
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise LabError(f"{path} is damaged at byte {at}: {error}. Record the trace again.") from error
            trace._keep(count, packed)
            at += 8 + size
        return trace


def _threads(event: Event) -> tuple[int, ...]:
    """The threads that an event concerns."""
    if isinstance(event, events.Message):
        return event.sender, event.receiver
    for name in ("thread", "vcpu"):
        found = getattr(event, name, None)
        if found is not None:
            return (found,)
    return ()
