# SPDX-License-Identifier: GPL-2.0-or-later
"""KIP and UTCB areas of a space that has had others: when they can move, and what becomes of what was there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from l4lab.abi import utcb as u
from l4lab.abi.calls import ErrorCode, SpaceControlBits
from l4lab.abi.fpage import NILPAGE, Fpage
from l4lab.abi.ids import NIL_THREAD, ThreadId
from l4lab.abi.message import Acceptor, Message
from l4lab.kernel.objects.space import Space
from l4lab.testing import MEMORY, Root, run
from l4lab.user.l4 import L4, CallRefused

DATA = MEMORY.base + 0x1000
OLD_KIP, OLD_UTCBS = Fpage.at(0x0100_0000), Fpage.at(0x0101_0000, 14)
KIP, UTCBS = Fpage.at(0x0180_0000), Fpage.at(0x0180_2000, 13)
REPORT = f"call SystemClock\n mov [{DATA}], eax\n mov eax, gs:[0]\n mov [{DATA + 4}], eax\n ud2"


def refusal(call: Callable[[], object]) -> int:
    try:
        call()
    except CallRefused as refused:
        return refused.code
    return 0


def space_of(r: Root, id_: int) -> Space:
    return r.system.thread(id_).space


def test_while_a_thread_is_active_areas_stay() -> None:
    """Are areas of a space with an active thread left as they are, without an error, whatever is asked?"""

    def root(r: Root) -> None:
        name = r.space(OLD_KIP, OLD_UTCBS)
        r.create(name)
        for kip, utcbs in ((KIP, UTCBS), (NILPAGE, UTCBS), (KIP, NILPAGE), (NILPAGE, NILPAGE), (KIP, KIP)):
            r.space_control(name, 0, kip, utcbs)
            assert (OLD_KIP, OLD_UTCBS) == (space_of(r, name).kip_area, space_of(r, name).utcb_area)

    run(root)


def test_wrong_areas_are_refused_where_they_would_count() -> None:
    """Must areas of a space without active threads be as legal as the first ones; and do two nilpages leave it?"""

    def root(r: Root) -> None:
        name = r.space(OLD_KIP, OLD_UTCBS)
        assert ErrorCode.UTCB_AREA == refusal(lambda: r.space_control(name, 0, KIP, NILPAGE))
        assert ErrorCode.KIP_AREA == refusal(lambda: r.space_control(name, 0, NILPAGE, UTCBS))
        assert ErrorCode.KIP_AREA == refusal(lambda: r.space_control(name, 0, Fpage.at(UTCBS.base + 4096), UTCBS))
        r.space_control(name, 0, NILPAGE, NILPAGE)
        assert (OLD_KIP, OLD_UTCBS) == (space_of(r, name).kip_area, space_of(r, name).utcb_area)

    run(root)


def holder(r: Root, name: ThreadId, at: Fpage) -> tuple[ThreadId, ThreadId]:
    """A thread in the space that has received a mapping there, and one beyond that holds it from him."""
    beyond = r.space()

    def take(l4: L4) -> None:
        l4.accept(Acceptor.of(at))
        l4.receive(r.my_id)
        l4.send(second, Message().append_map(at, 0x0090_0000))
        l4.receive(l4.my_id)

    def take_further(l4: L4) -> None:
        l4.accept(Acceptor.of(Fpage.at(0x0090_0000)))
        l4.wait()
        l4.receive(l4.my_id)

    second = r.hosted(take_further, beyond)
    first = r.hosted(take, name)
    r.send(first, Message().append_map(Fpage.at(r.room()), at.base))
    r.sleep(100)
    return first, beyond


def test_areas_move_when_nobody_is_active() -> None:
    """After the last active thread is gone: do the areas move, does what was mapped there go, also from those who had
    it from here, are the old UTCBs' frames given back, and does a program run with the new ones?"""

    def root(r: Root) -> None:
        k, name = r.system.kernel, r.space(OLD_KIP, OLD_UTCBS)
        first, beyond = holder(r, name, Fpage.at(UTCBS.base))
        assert k.mappings.node(space_of(r, name), UTCBS.base)
        assert k.mappings.node(space_of(r, beyond), 0x0090_0000)
        r.thread_control(first, NIL_THREAD)
        used = k.frames.used
        r.space_control(name, 0, KIP, UTCBS)
        assert not k.mappings.nodes(space_of(r, name))
        assert not k.mappings.nodes(space_of(r, beyond))
        # Given back: the UTCBs, and the tables of the old areas, of the mapping, of the one beyond. Taken: a table.
        assert used - 4 + 1 == k.frames.used
        r.system.areas[name] = UTCBS
        r.native(REPORT, name, kip=KIP.base)
        r.serve()

    clock, local = run(root, 20_000_000).words(DATA, 2)

    assert clock > 0
    assert UTCBS.base <= local - u.MR0_FROM_LOCATION < UTCBS.base + UTCBS.size


@pytest.mark.parametrize("when", ["before", "with", "after"])
def test_a_machine_s_areas_move_too(when: str) -> None:
    """Do areas of a virtual machine move, whether it becomes one before, in the same call, or afterwards?"""

    def root(r: Root) -> None:
        name = r.space(OLD_KIP, OLD_UTCBS, control=SpaceControlBits.VM if when == "before" else 0)
        r.space_control(name, SpaceControlBits.VM if when == "with" else 0, KIP, UTCBS)
        r.space_control(name, SpaceControlBits.VM, NILPAGE, NILPAGE)
        r.system.areas[name] = UTCBS
        vcpu = r.create(name)
        assert UTCBS.base <= r.system.thread(vcpu).utcb_location < UTCBS.base + UTCBS.size
        for thread in (vcpu, name):
            r.thread_control(thread, NIL_THREAD)

    run(root)
