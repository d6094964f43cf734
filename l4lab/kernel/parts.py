# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the kernel that can be exchanged when it boots, and what each of them has to do.

A part is an object of a class that derives from the one here. It is given what it needs and no more; the kernel knows
it by these methods only. `boot(..., parts=Parts(...))` takes others in the place of the kernel's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from mypy_extensions import mypyc_attr

from l4lab.kernel.objects.space import Space
from l4lab.kernel.objects.thread import Tcb

# -- the scheduler -----------------------------------------------------------------------------------------------------


class Why(Enum):
    """Why a thread has become ready."""

    WOKE = auto()  # what it waited for is over; or it was started, or resumed
    HANDED = auto()  # a message came for it, but the processor was not handed to it at once
    PREEMPTED = auto()  # it had the processor or was to get it, and somebody else goes first: its turn is not over
    SLICE = auto()  # it ran to the end of its time slice
    YIELDED = auto()  # it gave up the rest of its slice, by ThreadSwitch
    PRIORITY = auto()  # it was ready, and has another priority now


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler(ABC):
    """Who is next. The scheduler holds all threads that are *ready*: that can run, and have not got the processor.

    The kernel says who becomes ready and why, and asks who is next; when a time slice ends and what a message does it
    finds out itself. Of a thread these matter: its `name`; its `priority`, from 0 to 255, the highest first; and the
    cycles that it `ran` in all. What else a scheduler wants to know of a thread, it keeps in a dictionary by thread. No
    method may change a thread, and answers depend on nothing but what was said: so equal runs schedule equally.

    A thread can also get the processor directly, from who sends it a message or switches to it; the scheduler is only
    asked whether somebody goes before it (`preempts`). So a thread may be new to the scheduler in any call of `ready`.
    """

    @abstractmethod
    def ready(self, thread: Tcb, why: Why) -> None:
        """The thread, which was not, is ready from now on."""

    @abstractmethod
    def gone(self, thread: Tcb) -> None:
        """The thread is not ready any more: it was halted or deleted, or got the processor directly. It may not even
        have been ready. What it has used should not be forgotten, since it may become ready again."""

    @abstractmethod
    def next(self) -> Tcb | None:
        """Take out the thread that is next: it gets the processor. None if nobody is ready."""

    @abstractmethod
    def preempts(self, thread: Tcb) -> bool:
        """Does somebody who is ready go before this thread, which has the processor, or is to get it?

        The priority with which it competes is its `level`: its own, or for a while a higher one that it was lent. Of
        the thread that runs, the question is asked when others have become ready, not at every moment.
        """

    def waiting(self) -> list[Tcb]:
        """For pictures and tests: who is ready, in the order in which they would run as things are, if it can tell."""
        return []


# -- shadow page tables ------------------------------------------------------------------------------------------------


class Miss(Enum):
    """How a page fault of a virtual CPU under shadow paging ends."""

    FILLED = 0  # the shadow tables lacked it: the guest goes on and will not know
    GUEST_FAULT = 1  # the guest's own tables miss or forbid it
    MISSING = 2  # guest-physical memory that is not mapped, or must not be written: the pager's affair


@mypyc_attr(allow_interpreted_subclasses=True)
class ShadowPaging(ABC):
    """Shadow page tables of one virtual CPU: from a guest's linear addresses straight to physical memory."""

    def __init__(self) -> None:
        self.generation = -1  # of the space's page tables, when they were last looked at
        # The last miss: where guest-physical memory was missing, and whether to write it; or the guest's error code.
        self.missing = 0
        self.missing_write = False
        self.error_code = 0
        self.dropped = 0  # entries that flushes have taken out so far

    @abstractmethod
    def activate(self) -> None:
        """CR0, CR3 or CR4 was loaded: have the CPU walk the right directory, and drop what a flush would drop that is
        no longer true. The caller flushes the TLB."""

    @abstractmethod
    def drop_all(self, generation: int) -> None:
        """The mappings of the space have changed: keep nothing that was derived from them."""

    @abstractmethod
    def drop_page(self, linear: int) -> None:
        """INVLPG: drop the translation of one linear address. The caller flushes the TLB."""

    @abstractmethod
    def miss(self, linear: int, error: int) -> Miss:
        """The CPU found no translation for `linear`, or one that forbids the access that `error` names."""

    @abstractmethod
    def release(self) -> None:
        """Give all frames back."""

    @abstractmethod
    def frames(self) -> Iterable[int]:
        """All frames in use, each once."""

    @abstractmethod
    def reached(self) -> Iterable[tuple[int, int, bool]]:
        """The physical memory that the tables lead to: address, size, and whether it can be written."""


# -- one function of shadow paging -------------------------------------------------------------------------------------


class Fill(NamedTuple):
    """The entry that the CPU needs: one page of 4 KB."""

    frame: int  # machine-physical address of the page
    writable: bool
    user: bool


class GuestFault(NamedTuple):
    """The guest's own tables miss or forbid the access: the error code of its page fault."""

    code: int  # bits P, W, U and RSVD, as the CPU would push it


class GuestTables(ABC):
    """What a fill may look at: the guest's page tables in guest-physical memory, and what the host has mapped there.

    Where guest-physical memory is missing, these end the fill by themselves: the pager has to bring it first.
    """

    cr3: int  # guest-physical address of the guest's page directory
    wp: bool  # the guest's CR0.WP

    @abstractmethod
    def read(self, gpa: int) -> int:
        """The 32-bit word at a guest-physical address."""

    @abstractmethod
    def write(self, gpa: int, word: int) -> None:
        """Store a 32-bit word there: A and D bits of the guest's entries."""

    @abstractmethod
    def host(self, gpa: int, write: bool) -> tuple[int, bool]:
        """The machine-physical address of the 4 KB page behind a guest-physical address; may it be written yet?"""


@mypyc_attr(allow_interpreted_subclasses=True)
class ShadowFill(ABC):
    """Makes one shadow entry of two tables. Linking it, dropping entries, and paging that is off are not its affair."""

    @abstractmethod
    def fill(self, guest: GuestTables, linear: int, write: bool, user: bool) -> Fill | GuestFault:
        """The entry for a linear address of the guest, for an access that the CPU could not make."""


# -- all of them -------------------------------------------------------------------------------------------------------


# -- who gave which page to whom ---------------------------------------------------------------------------------------


class PageHooks(ABC):
    """What a tree of pages may do to page tables. All addresses are those of pages of 4 KB; a status is made of the
    rights bits of an fpage: 5 (read, execute) if the page was used, 6 (read, write) if it was written to."""

    @abstractmethod
    def install(self, space: Space, va: int, pa: int, writable: bool) -> None:
        """Put the page at machine-physical `pa` into a space; if it is there already, with these rights now."""

    @abstractmethod
    def remove(self, space: Space, va: int) -> int:
        """Take the page out of a space. Its status."""

    @abstractmethod
    def writable(self, space: Space, va: int) -> bool:
        """May the space write to its page? sigma0 may write to all of its own."""

    @abstractmethod
    def take_write(self, space: Space, va: int) -> None:
        """Make the page read-only."""

    @abstractmethod
    def take_status(self, space: Space, va: int) -> int:
        """The status of the page, which is clear from now on."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PageTree(ABC):
    """Who gave which page to whom, in pages of 4 KB. It is made with the `PageHooks` by which it changes page tables;
    flexpages, receive windows, reserved areas and ports are not its affair."""

    @abstractmethod
    def own(self, space: Space, va: int, pa: int) -> None:
        """The space, sigma0, has this page by nature: a root. It may be said again."""

    @abstractmethod
    def map(self, src: Space, src_va: int, dst: Space, dst_va: int, writable: bool, grant: bool) -> bool:
        """Give `dst` the page that `src` has at `src_va`, if it has one; with `grant`, `src` has it no more, and who
        got it from there keeps it. What else was at `dst_va` goes first. Did anything change?"""

    @abstractmethod
    def unmap(self, space: Space, va: int, rights: int, flush: bool) -> int:
        """Take rights from everybody who has the page from `space`, directly or over others; with `flush`, from `space`
        too. Rights 7: the page goes; with 2 among them: it becomes read-only; 0: nothing. The status, which is told
        once."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What to make the parts of a kernel with; None: with the kernel's own."""

    scheduler: Callable[[], Scheduler] | None = None
    mappings: Callable[[PageHooks], PageTree] | None = None
    shadow: Callable[[], ShadowFill] | None = None
