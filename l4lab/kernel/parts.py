# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the kernel that can be exchanged when it boots, and what each of them has to do.

A part is an object of a class that derives from the one here. It is given what it needs and no more; the kernel knows
it by these methods only. `boot(..., parts=Parts(...))` takes others in the place of the kernel's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
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


# -- the page walk -----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A walk that ended at an address."""

    pa: int  # the physical address
    set_accessed: Sequence[int]  # physical addresses of the entries whose A bit has to be set
    set_dirty: int | None  # that of the entry whose D bit has to be set; None: of none


class NoTranslation(NamedTuple):
    """A walk that ended in a page fault."""

    error_code: int  # bits P, W, U and RSVD, as the CPU would push it
    set_accessed: Sequence[int] = ()  # the CPU marks a directory's entry even if the table then misses the page


@mypyc_attr(allow_interpreted_subclasses=True)
class PageWalk(ABC):
    """From a program's virtual address to a physical one, as the CPU does it: two levels of tables, in 32-bit paging
    with pages of 4 KB and of 4 MB. The kernel asks for each access that it makes in the place of a program."""

    @abstractmethod
    def walk(
        self, read: Callable[[int], int], cr3: int, va: int, write: bool, user: bool, wp: bool
    ) -> Found | NoTranslation:
        """What is behind `va`. `read` gives the 32-bit word at a physical address; `cr3` is the physical address of the
        page directory; `user`: the access is made in ring 3; `wp`: CR0.WP. It stores nothing: its answer says which A
        and D bits have to be set, and it may name those that are set already."""


# -- the IPC path ------------------------------------------------------------------------------------------------------


class IpcHooks(ABC):
    """What the two phases of an IPC may do. Times are the manual's, of 16 bits: `abi.time.NEVER`, `ZERO`, or others.

    A thread that the part was asked about, or that it took out of a queue, is in its hands. It leaves them by `deliver`
    as the receiver, `poll`, `wait`, `fail` or `done`, and has to before the part comes back.
    """

    @abstractmethod
    def find(self, identifier: int, asker: Tcb) -> Tcb | None:
        """The thread that an identifier names; a local one, within the asker's space. None: there is none."""

    @abstractmethod
    def takes(self, receiver: Tcb, sender: Tcb) -> bool:
        """Is the receiver WAITING, and would it take a message of this sender? Asks `accepts`, and knows besides who
        sends in whose name, and of waits that no message ends."""

    @abstractmethod
    def senders(self, receiver: Tcb) -> Sequence[Tcb]:
        """Who stands in the receiver's queue, oldest first."""

    @abstractmethod
    def deliver(self, sender: Tcb, receiver: Tcb) -> bool:
        """Move the message to a receiver that is WAITING, and let that one go on. True: the sender has sent, and its
        receive phase follows, or it is `done`. False: it is in nobody's hands any more; the kernel does the rest."""

    @abstractmethod
    def poll(self, sender: Tcb, receiver: Tcb, timeout: int) -> None:
        """The sender is POLLING now, at the end of the receiver's queue. Its receive phase is kept for later."""

    @abstractmethod
    def leave_queue(self, sender: Tcb) -> tuple[int, int]:
        """Take a sender out of the queue of who expects a message, to deliver its own next. Its receive phase that is
        to follow: from whom (0: there is none), and the timeout."""

    @abstractmethod
    def expect(self, receiver: Tcb, from_: int) -> None:
        """The receiver's `wait_for` is this from now on: ANY_THREAD, ANY_LOCAL_THREAD or a thread's `word`. It is
        WAITING, so that `takes` can be asked about it."""

    @abstractmethod
    def wait(self, receiver: Tcb, timeout: int) -> None:
        """Nobody has sent what the receiver expects: it blocks."""

    @abstractmethod
    def fail(self, thread: Tcb, code: int, in_receive: bool) -> None:
        """End the thread's IPC with an `IpcErrorCode`, in its receive phase or in its send phase. It goes on."""

    @abstractmethod
    def done(self, sender: Tcb) -> None:
        """The sender has sent, and has no receive phase. It goes on."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Rendezvous(ABC):
    """Where a sender and a receiver meet. It is made with the `IpcHooks` by which it changes threads; of a thread it
    reads `word` (its global identifier), `space`, `state` and, of one that is WAITING, `wait_for`.

    Strings, messages in another's name, cancelling and timers that expire are not its affair. The kernel sends in the
    name of threads too, a page fault for example: that looks like any other call.
    """

    @abstractmethod
    def accepts(self, receiver: Tcb, sender: Tcb) -> bool:
        """Would the receiver, which is WAITING, take a message of this sender?"""

    @abstractmethod
    def send(self, sender: Tcb, to: int, timeout: int, from_: int, then_timeout: int) -> None:
        """The send phase, and then the receive phase unless `from_` is 0. To a thread that is ABORTED nobody sends: it
        was not started yet, and is no partner."""

    @abstractmethod
    def receive(self, receiver: Tcb, from_: int, timeout: int) -> None:
        """The receive phase: take the message of the first in the queue of whom it would take one, or wait. Whose
        message was taken goes on to its own receive phase, where somebody may stand in its queue in turn: such a chain
        can be of any length."""


# -- all of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """What to make the parts of a kernel with; None: with the kernel's own."""

    scheduler: Callable[[], Scheduler] | None = None
    mappings: Callable[[PageHooks], PageTree] | None = None
    shadow: Callable[[], ShadowFill] | None = None
    walk: Callable[[], PageWalk] | None = None
    ipc: Callable[[IpcHooks], Rendezvous] | None = None
