# SPDX-License-Identifier: GPL-2.0-or-later
"""The other system calls: SpaceControl, Unmap, SystemClock, KernelInterface, MemoryControl, ProcessorControl.

Each reads its arguments, refuses before it changes anything, and then acts. Source: X.2 manual, sections of the same
names; reference sections 4 and 8.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.calls import ErrorCode, MemoryAttribute, UnmapControl
from l4lab.abi.fpage import Fpage, IoFpage
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, ESI
from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId
from l4lab.abi.kip import API_FLAGS, API_VERSION, KERNEL_DESC_POINTER
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.errors import Refused
from l4lab.kernel.calls.schedule import PROCESSORS
from l4lab.kernel.events import SpaceBecameVm, SpaceConfigured
from l4lab.kernel.ipc import ipc
from l4lab.kernel.memory.mapping import ALL_RIGHTS, RIGHT_W
from l4lab.kernel.objects.space import USER_LIMIT, Space
from l4lab.kernel.objects.thread import MR, Tcb
from l4lab.kernel.objects.waits import START
from l4lab.kernel.state import State
from l4lab.kernel.virtual import vmthread

VM: Final = 1 << 30  # SpaceControl: this space is a virtual machine
SHADOW: Final = 1 << 28  # with shadow page tables rather than nested paging: an addition of ours
MIN_AREA_LOG2: Final = 12
MIN_FRAMES: Final = 2  # page tables of the KIP; and the blocks of virtual CPUs


def sys_space_control(k: State, caller: Tcb) -> None:
    """Give a space its KIP and UTCB areas, set its redirector; with the v bit, make it a virtual machine.

    The areas can be changed while no thread of the space is active; later ones, and nilpages, are ignored.
    """
    regs = caller.regs
    space_id, control, redirector = ThreadId.decode(regs[EAX]), regs[ECX], k.global_id(regs[EDI], caller)
    kip_area, utcb_area = Fpage.decode(regs[EDX]), Fpage.decode(regs[ESI])
    if not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    thread = k.threads.get(space_id.thread_no)
    if space_id.is_local or thread is None or thread.id != space_id or thread.id.is_interrupt:
        raise Refused(ErrorCode.INVALID_SPACE)
    space = thread.space
    becomes_vm = bool(control & VM) and not space.is_vm
    if becomes_vm and any(member.program is not None for member in space.threads):
        raise Refused(ErrorCode.INVALID_SPACE)  # a Python function cannot become a guest
    active = any(member.utcb is not None for member in space.threads)
    configures = not space.initialised or not (active or (kip_area.is_nil and utcb_area.is_nil))
    if configures:
        if not _is_area(utcb_area):
            raise Refused(ErrorCode.UTCB_AREA)
        if not _is_area(kip_area) or _overlap(kip_area, utcb_area):
            raise Refused(ErrorCode.KIP_AREA)
    if not redirector.is_nil and redirector != ANY_THREAD and k.find(redirector, None) is None:
        raise Refused(ErrorCode.INVALID_THREAD)
    k.frames.require(MIN_FRAMES + len(space.threads) * vmthread.FRAMES)
    if becomes_vm:
        space.become_vm(bool(control & SHADOW))
        k.trace.append(SpaceBecameVm(k.now, space.number, space.name, space.shadow_paging))
        for member in space.threads:
            if member.wait is not START:  # as when it moves there: what it has under way is a program's, not a guest's
                ipc.cancel(k, member)
            vmthread.create(k, member)
    if configures:
        for area in (kip_area, utcb_area):
            _revoke(k, space, area, ALL_RIGHTS, True)
        space.configure(kip_area, utcb_area, k.kip_frame)
        k.trace.append(SpaceConfigured(k.now, space.number, int(kip_area), int(utcb_area)))
    if not redirector.is_nil:
        space.redirector = NIL_THREAD if redirector == ANY_THREAD else redirector
        ipc.confine(k)
    regs[EAX] = 1
    regs[ECX] = (VM if space.is_vm else 0) | (SHADOW if space.shadow_paging else 0)


def _is_area(area: Fpage) -> bool:
    return not area.is_nil and area.log2 >= MIN_AREA_LOG2 and area.base + area.size <= USER_LIMIT


def _overlap(a: Fpage, b: Fpage) -> bool:
    return a.base < b.base + b.size and b.base < a.base + a.size


# -- memory, time, kernel interface ----------------------------------------------------------------------------------


def sys_unmap(k: State, caller: Tcb) -> None:
    """Revoke rights to pages that others got from the caller, and with the flush bit to its own."""
    regs, utcb = caller.regs, caller.utcb
    assert utcb is not None
    control = UnmapControl.decode(regs[EAX] & 0x7F)
    utcb[MR] = regs[ESI]
    for i in range(control.k + 1):
        fpage = Fpage.decode(utcb[MR + i])
        if fpage.is_nil:
            continue
        if fpage.is_io:  # has no rights to choose from: they go as a whole
            k.report_lost_ports(k.ports.unmap(caller.space, IoFpage(fpage), control.flush))
            continue
        utcb[MR + i] = fpage & ~7 | _revoke(k, caller.space, fpage, fpage.rights, control.flush)
    regs[ESI] = utcb[MR]


def _revoke(k: State, space: Space, fpage: Fpage, rights: int, flush: bool) -> int:
    """Take these rights to an fpage away, as Unmap does; the status found."""
    found = k.mappings.unmap(space, fpage.base, fpage.log2, rights, flush)
    k.report_taken(found.pages, ALL_RIGHTS if rights == ALL_RIGHTS else RIGHT_W)
    return found.status


def sys_system_clock(k: State, caller: Tcb) -> None:
    """Microseconds since power-on, for hosted programs: native ones divide the time stamp without coming here."""
    us = k.now // 1000
    caller.regs[EAX], caller.regs[EDX] = us & 0xFFFFFFFF, us >> 32


def sys_kernel_interface(k: State, caller: Tcb) -> None:
    """Where the KIP is in the caller's space, and which kernel this is."""
    regs = caller.regs
    regs[EAX] = caller.space.kip_area.base
    regs[ECX], regs[EDX] = API_VERSION, API_FLAGS
    words = k.machine.memory.u32
    regs[ESI] = words[(k.kip_frame + words[k.kip_frame + KERNEL_DESC_POINTER >> 2]) >> 2]


_ATTRIBUTES: Final = frozenset(range(6)) | {MemoryAttribute.WRITE_PROTECTED}  # those that an IA-32 page can have


def sys_memory_control(k: State, caller: Tcb) -> None:
    """Cache attributes: the emulated machine has no caches, so a legal request is a done one."""
    regs, utcb = caller.regs, caller.utcb
    assert utcb is not None
    if not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    last, attributes = regs[EAX], (regs[ECX], regs[EDX], regs[EBX], regs[EBP])
    if last >= MESSAGE_REGISTERS:
        raise Refused(ErrorCode.INVALID_PARAMETER)
    fpages = [regs[ESI], *utcb.words[MR + 1 : MR + 1 + last]]
    if any(fpage and attributes[fpage & 3] not in _ATTRIBUTES for fpage in fpages):
        raise Refused(ErrorCode.INVALID_PARAMETER)
    regs[EAX] = 1


def sys_processor_control(k: State, caller: Tcb) -> None:
    """Frequencies and voltage cannot be changed here (quirk Q1: the reference does not even dispatch the call)."""
    if not caller.space.privileged:
        raise Refused(ErrorCode.NO_PRIVILEGE)
    if caller.regs[EAX] >= PROCESSORS:
        raise Refused(ErrorCode.INVALID_PARAMETER)
    caller.regs[EAX] = 1
