# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripts of IPCs, played by a native thread or by a hosted one: the same script must give the same results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from l4lab.abi import utcb as u
from l4lab.abi.calls import SystemCall
from l4lab.abi.fpage import Fpage
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, ESI
from l4lab.abi.ids import NIL_THREAD, ThreadId, global_id
from l4lab.abi.message import IpcErrorCode, MsgTag
from l4lab.abi.time import NEVER, timeouts
from l4lab.testing import Root, System
from l4lab.user.l4 import L4

A, B, C = global_id(200), global_id(201), global_id(202)
KINDS = ("native", "hosted")
PAIRS = [(a, b) for a in KINDS for b in KINDS]
_MR = u.MR0_FROM_LOCATION // 4
_RESULT_WORDS = 68  # EAX, ESI, EBX, EBP and the message registers


@dataclass(frozen=True)
class Ipc:
    """One Ipc: its arguments."""

    to: int = NIL_THREAD
    from_: int = NIL_THREAD
    words: Sequence[int] = (0,)
    send: int = NEVER
    receive: int = NEVER
    accept: int = 0

    @property
    def times(self) -> int:
        return timeouts(self.send, self.receive)


@dataclass(frozen=True)
class Result:
    """What an Ipc returned."""

    from_: int
    tag: MsgTag
    in_registers: tuple[int, int, int]  # MR0, MR1, MR2 as they travel
    mrs: list[int]
    error: int  # ErrorCode, if the tag's error bit is set

    @property
    def sender(self) -> ThreadId:
        return ThreadId.decode(self.from_)

    @property
    def untyped(self) -> list[int]:
        return self.mrs[1 : 1 + self.tag.untyped]


def error(code: IpcErrorCode, phase: int, offset: int = 0) -> int:
    """An ErrorCode; phase 0 is the send phase."""
    return offset << 4 | code << 1 | phase


def result(eax: int, esi: int, ebx: int, ebp: int, mrs: list[int], code: int) -> Result:
    tag = MsgTag.decode(esi)
    return Result(eax, tag, (esi, ebx, ebp), mrs, code if tag.error else 0)


class Player:
    """A thread that plays a script, and what it got."""

    def __init__(self, script: Sequence[Ipc]) -> None:
        self.script = script
        self.results: list[Result] = []
        self.times: list[int] = []

    def start(self, r: Root, kind: str, id_: int, space: ThreadId, kip: int, priority: int) -> None:
        if kind == "hosted":
            r.hosted(self._hosted, space=space, id_=id_, priority=priority)
            self._at = 0
        else:
            self._at = r.room(4 * _RESULT_WORDS * max(len(self.script), 1) + 4)
            r.native(self._assembly(), space=space, id_=id_, kip=kip, priority=priority, RESULTS=self._at)

    def finish(self, system: System) -> None:
        """After the run: collect what a native player wrote down."""
        if self._at:
            done = system.words(self._at)[0]
            for i in range(done):
                got = system.words(self._at + 4 + 4 * _RESULT_WORDS * i, _RESULT_WORDS)
                self.results.append(result(*got[:4], mrs=[got[1], *got[5:]], code=got[4]))

    def _hosted(self, l4: L4) -> None:
        regs, utcb = l4.cpu.registers, l4.cpu.utcb
        mr0 = regs[EDI]
        for step in self.script:
            l4.accept(step.accept)
            utcb.put(_MR, step.words)
            regs[EAX], regs[ECX], regs[EDX], regs[ESI], regs[EDI] = step.to, step.times, step.from_, step.words[0], mr0
            l4.cpu.trap(SystemCall.IPC)
            mrs = [regs[ESI], *utcb.words[_MR + 1 : _MR + 64].tolist()]
            self.results.append(result(regs[EAX], regs[ESI], regs[EBX], regs[EBP], mrs, l4.tcr(u.ERROR_CODE)))

    def _assembly(self) -> str:
        """Each result: EAX, ESI, EBX, EBP, then ErrorCode in the place of MR0, and MR1 to MR63."""
        text = ""
        for i, step in enumerate(self.script):
            stores = "".join(f"mov dword ptr [edi + {4 * j}], {w:#x}\n" for j, w in enumerate(step.words) if j)
            at = 4 + 4 * _RESULT_WORDS * i
            text += f"""
                mov edi, dword ptr gs:[0]
                mov dword ptr [edi - 64], {step.accept:#x}
                {stores}
                mov eax, {step.to:#x}
                mov ecx, {step.times:#x}
                mov edx, {step.from_:#x}
                mov esi, {step.words[0]:#x}
                call Ipc
                mov dword ptr [RESULTS + {at}], eax
                mov dword ptr [RESULTS + {at + 4}], esi
                mov dword ptr [RESULTS + {at + 8}], ebx
                mov dword ptr [RESULTS + {at + 12}], ebp
                mov eax, dword ptr [edi - 36]
                mov dword ptr [RESULTS + {at + 16}], eax
                lea esi, [edi + 4]
                mov edi, RESULTS + {at + 20}
                mov ecx, 63
                cld
                rep movsd
                inc dword ptr [RESULTS]
                """
        return text + "ud2"


OTHER_KIP, OTHER_UTCB = Fpage.at(0x00C0_0000), Fpage.at(0x0080_0000, 13)


def play(
    kinds: Sequence[str], *scripts: Sequence[Ipc], apart: bool = False, priorities: Sequence[int] = (100, 100, 100)
) -> tuple[System, list[list[Result]]]:
    """Play scripts as threads A, B, C, in this order of starting; `apart`: each in a space of its own.

    Every second space has its KIP and UTCBs at other addresses than the first.
    """
    players = [Player(script) for script in scripts]

    def root(r: Root) -> None:
        for i, player in enumerate(players):
            space, kip = NIL_THREAD, 0xBFF0_0000
            if apart and i % 2:
                space, kip = r.space(OTHER_KIP, OTHER_UTCB), OTHER_KIP.base
            elif apart:
                space = r.space()
            player.start(r, kinds[i % len(kinds)], (A, B, C)[i], space, kip, priorities[i])
        r.serve()

    system = System(root)
    system.run(20_000_000_000)
    for player in players:
        player.finish(system)
    return system, [player.results for player in players]
