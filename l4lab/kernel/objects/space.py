# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces: page tables, and where KIP and UTCBs lie in them.

A virtual machine is an address space with `is_vm` set: its guest-physical memory is what was mapped into it, and its
page tables are the second level of the CPU's nested paging. KIP and UTCB areas are never reachable from the guest.

        0 ............................ user area: mappings, KIP area, UTCB area ............... E000'0000
        E600'0000  one page for all spaces, user-writable: %gs:0 is the running thread's MR0
        FF00'0000  one page for all spaces, supervisor only: descriptor tables
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from l4lab.abi import utcb as u
from l4lab.abi.fpage import NILPAGE, Fpage
from l4lab.abi.ids import NIL_THREAD
from l4lab.kernel.objects.frames import FrameAllocator
from l4lab.machine.memory import PAGE_SIZE, Memory, SharedWords
from l4lab.machine.pagetables import PageTables

if TYPE_CHECKING:
    from l4lab.kernel.objects.thread import Tcb

USER_LIMIT: Final = 0xE000_0000  # reference section 9.1: in a kernel with virtual machines
UTCB_SLOT: Final = 0xE600_0000
DESCRIPTORS: Final = 0xFF00_0000


class KernelArea:
    """What is mapped in every address space above the user area: two page tables, made once."""

    def __init__(self, memory: Memory, frames: FrameAllocator) -> None:
        self.slot_frame = frames.allocate()
        self.descriptor_frame = frames.allocate()
        self._entries: dict[int, int] = {}
        for va, frame, flags in ((UTCB_SLOT, self.slot_frame, 7), (DESCRIPTORS, self.descriptor_frame, 3)):
            table = frames.allocate()
            memory.set_word((table >> 2) + (va >> 12 & 0x3FF), frame | flags)
            self._entries[va >> 22] = table | flags
        self.frames = [
            self.slot_frame,
            self.descriptor_frame,
            *(entry & -PAGE_SIZE for entry in self._entries.values()),
        ]

    def install(self, memory: Memory, directory: int) -> None:
        """Enter the area into a page directory."""
        for index, entry in self._entries.items():
            memory.set_word((directory >> 2) + index, entry)

    def remove(self, memory: Memory, directory: int) -> None:
        """Take the area out again, before the directory's own tables are freed."""
        for index in self._entries:
            memory.set_word((directory >> 2) + index, 0)


@mypyc_attr(allow_interpreted_subclasses=True)
class MappedSpace:
    """As much of an address space as the mapping database looks at."""

    def __init__(self, number: int, name: str, tables: PageTables) -> None:
        self.number = number  # by which the trace knows it; never used again in a run
        self.name = name
        self.tables = tables
        self.is_sigma0 = False
        self.user_limit = USER_LIMIT  # the first address that users cannot map to; a multiple of 4 MB
        # May its tables hold pages of 4 MB? Also under a guest: guestmode.py keeps the real CR4.PSE set, on which the
        # engine's walk relies.
        self.large_pages = True

    def __repr__(self) -> str:
        return f"<space {self.name}>"

    def is_reserved(self, va: int, size: int) -> bool:
        """Is some of `va .. va + size` kept from mappings?"""
        return False


class Space(MappedSpace):
    """One address space."""

    def __init__(self, number: int, name: str, memory: Memory, frames: FrameAllocator, area: KernelArea) -> None:
        super().__init__(number, name, PageTables(memory, frames.allocate, frames.free))
        self._memory = memory
        self._frames = frames
        self._area = area
        area.install(memory, self.tables.cr3)
        self.kip_area: Fpage = NILPAGE  # nil: not initialised by SpaceControl yet
        self.utcb_area: Fpage = NILPAGE
        self._kip = self._utcbs = (0, 0)  # the same: where they begin and end
        self.is_vm = False
        self.shadow_paging = False  # of a virtual machine: the CPU does not walk the space's tables itself
        self.machine = 0  # its number among the virtual machines, once it has had a virtual CPU; vmthread.py writes it
        self.privileged = False
        self.ports: dict[int, Space] = {}  # I/O ports that its programs may use -> from whom; written by ports.py only
        self.io_privileged = False  # its programs run at I/O privilege level 3: all ports are theirs, without asking
        self.redirector = NIL_THREAD  # who gets messages that would leave the space; nobody: whoever they are for
        self.threads: list[Tcb] = []
        self._utcb_frames: dict[int, int] = {}  # page in the UTCB area -> frame

    @property
    def initialised(self) -> bool:
        """Has SpaceControl given it its areas?"""
        return not self.utcb_area.is_nil

    def configure(self, kip_area: Fpage, utcb_area: Fpage, kip_frame: int) -> None:
        """Give a space without active threads its KIP and UTCB areas, in the place of those that it had.

        The KIP is readable for everybody but a guest.
        """
        if self.initialised and not self.is_vm:
            self.tables.unmap(self.kip_area.base, 12)
            for va in self._utcb_frames:
                self.tables.unmap(va, 12)
        self._free_utcbs()
        self.kip_area, self.utcb_area = kip_area, utcb_area
        self._kip = kip_area.base, kip_area.base + kip_area.size
        self._utcbs = utcb_area.base, utcb_area.base + utcb_area.size
        if not self.is_vm:
            self.tables.map(kip_area.base, kip_frame, 12, writable=False)

    def become_vm(self, shadow_paging: bool) -> None:
        """From now on this is a virtual machine: the guest must see neither KIP nor UTCBs, nor the kernel's area."""
        self.is_vm = True
        self.shadow_paging = shadow_paging
        self.name = self.name.replace("space", "VM")
        for va in (self.kip_area.base, *self._utcb_frames):
            if self.initialised and self.tables.lookup(va):
                self.tables.unmap(va, 12)
        self._area.remove(self._memory, self.tables.cr3)
        if not shadow_paging:
            self.tables.track()

    def is_reserved(self, va: int, size: int) -> bool:
        """Does some of `va .. va + size` belong to the KIP or UTCB area?"""
        end = va + size
        return (self._kip[0] < end and va < self._kip[1]) or (self._utcbs[0] < end and va < self._utcbs[1])

    def holds_utcb(self, location: int) -> bool:
        """Is this a legal place for a UTCB?"""
        area = self.utcb_area
        return location % u.SIZE == 0 and area.base <= location and location + u.SIZE <= area.base + area.size

    def utcb_words(self, location: int) -> SharedWords:
        """The words of the UTCB at this address; its page is made when first needed, and writable for the user."""
        page = location & -PAGE_SIZE
        frame = self._utcb_frames.get(page)
        if frame is None:
            frame = self._utcb_frames[page] = self._frames.allocate()
            if not self.is_vm:
                self.tables.map(page, frame, 12, writable=True)
        return self._memory.shared_words(frame + location % PAGE_SIZE, u.SIZE)

    def utcb_physical(self, location: int) -> int:
        """Physical address of the UTCB at this address, whose page exists."""
        return self._utcb_frames[location & -PAGE_SIZE] + location % PAGE_SIZE

    def own_frames(self) -> list[int]:
        """The kernel's frames that exist for this space: page tables and UTCBs."""
        tables = [frame for frame in self.tables.frames() if frame not in self._area.frames]
        return tables + list(self._utcb_frames.values())

    def release(self) -> None:
        """Give all frames back. The mapping database has forgotten the space before."""
        if not self.is_vm:
            self._area.remove(self._memory, self.tables.cr3)
        self.tables.release()
        self._free_utcbs()

    def _free_utcbs(self) -> None:
        for frame in self._utcb_frames.values():
            self._frames.free(frame)
        self._utcb_frames.clear()
