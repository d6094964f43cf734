# SPDX-License-Identifier: GPL-2.0-or-later
"""Another page walk in the kernel's place: a right one changes nothing, wrong ones are found out and named."""

from __future__ import annotations

import ast
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import l4lab
from l4lab.errors import PartFailed
from l4lab.kernel.memory.walking import OutsideWalk
from l4lab.kernel.objects.outside import OutsidePart
from l4lab.kernel.parts import Found, NoTranslation, PageWalk, Parts
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import PS, RW, US, USER, WRITE, A, D, P, WalkFault, walk
from l4lab.rig.rig import Rig
from l4lab.user.l4 import L4

from .student_parts import SYSTEMS, Walker, mistaken

RAM = 8 << 20
DIRECTORY, TABLE = 0x1_0000, 0x2_3000
FLAGS = st.lists(st.sampled_from([P, P, P, RW, RW, US, US, A, D]), max_size=9).map(lambda bits: sum(set(bits)))


@dataclass(frozen=True)
class Scene:
    """Two entries, and an access that meets them."""

    va: int
    pde: int
    pte: int
    write: bool
    user: bool
    wp: bool

    def memory(self) -> Memory:
        """RAM with these tables."""
        memory = Memory(RAM)
        memory.set_word((DIRECTORY >> 2) + (self.va >> 22), self.pde)
        memory.set_word((TABLE >> 2) + (self.va >> 12 & 0x3FF), self.pte)
        return memory

    @property
    def access(self) -> int:
        """As the kernel's own walk has it."""
        return (WRITE if self.write else 0) | (USER if self.user else 0)


LARGE = st.sampled_from([0, 0x40_0000, 0x40_0000, 0x1000, 0x2000, 0x20_0000])
SCENES = st.builds(
    Scene,
    st.integers(0, 0xFFFF_FFFF),
    st.one_of(FLAGS.map(lambda f: TABLE | f), st.builds(lambda f, frame: frame | f | PS, FLAGS, LARGE)),
    st.builds(lambda f, frame: frame << 12 | f, FLAGS, st.integers(0, (RAM >> 12) - 1)),
    *[st.booleans()] * 3,
)


def own(scene: Scene) -> tuple[str, int, bytes]:
    """What the kernel's own walk does: how it ends, and memory then."""
    memory = scene.memory()
    try:
        end = "at", walk(memory, DIRECTORY, scene.va, scene.access, wp=scene.wp)
    except WalkFault as fault:
        end = "fault", fault.error_code
    return *end, memory.read(DIRECTORY, TABLE + 4096 - DIRECTORY)


def others(kind: Callable[[], PageWalk], scene: Scene) -> tuple[str, int, bytes]:
    """What another one does."""
    memory = scene.memory()

    def read(pa: int) -> int:
        return memory.u32[pa >> 2] if pa < RAM else 0

    ended = kind().walk(read, DIRECTORY, scene.va, scene.write, scene.user, scene.wp)
    marks = [(pa, A) for pa in ended.set_accessed]
    if isinstance(ended, Found) and ended.set_dirty is not None:
        marks.append((ended.set_dirty, D))
    for pa, flag in marks:
        memory.set_word(pa >> 2, memory.u32[pa >> 2] | flag)
    end = ("at", ended.pa) if isinstance(ended, Found) else ("fault", ended.error_code)
    return *end, memory.read(DIRECTORY, TABLE + 4096 - DIRECTORY)


@settings(max_examples=300, deadline=None)
@given(SCENES)
def test_it_walks_as_the_kernels_own(scene: Scene) -> None:
    """Whatever stands in the tables, both walks end alike and leave the same bytes behind."""
    assert own(scene) == others(Walker, scene)


@settings(max_examples=200, deadline=None)
@given(SCENES.filter(lambda scene: scene.user and scene.wp and (not scene.pde & PS or not scene.pde & 0x3FF000)))
def test_what_it_answers_is_done(scene: Scene) -> None:
    """Asked by the kernel, a right walk's address or fault arrives, and the bits that it named are set."""
    memory = scene.memory()
    asked = OutsideWalk(OutsidePart(PageWalk, ("walk",), Walker), memory)
    try:
        end = "at", asked.translate(DIRECTORY, scene.va, scene.access)
    except WalkFault as fault:
        end = "fault", fault.error_code

    assert own(scene) == (*end, memory.read(DIRECTORY, TABLE + 4096 - DIRECTORY))


LARGE_PAGE = "entry & 0xFFC0_0000 | (entry & 0x1F_E000) << 19 | va & 0x3F_FFFF"
MISTAKES = {
    "the table's rights only": ("rights &= entry", "rights = entry"),
    "US asked of ring 0 too": ("(user and not rights & US)", "(not rights & US)"),
    "WP taken as always set": ("(user or wp)", "True"),
    "WP taken as never set": ("(user or wp)", "user"),
    "a small page's offset in a large page": (LARGE_PAGE, "entry & 0xFFC0_0000 | va & 0xFFF"),
    "frame and offset added": (LARGE_PAGE, "(entry & ~0xFFF) + (va & 0x3F_FFFF)"),
    "P never in the code": ("code | 1", "code"),
    "P always in the code": ("code = (2", "code = 1 | (2"),
    "D when only read": ("at if write else None", "at"),
    "D in the directory of a small page": ("at if write else None", "(marked or [at])[0] if write else None"),
    "A not in the directory": ("marked.append(at)", "pass"),
    "A not in the directory when the page is missing": ("NoTranslation(code, marked)", "NoTranslation(code)"),
    "a table looked for in a large page": ("if entry & PS:", "if False:"),
    "a reserved bit taken as address": ("if entry & 0x20_0000:", "if False:"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_walk_is_told_apart(mistake: str) -> None:
    """Among the scenes of the test above is one for each mistake."""
    wrong = mistaken(Walker, MISTAKES[mistake])
    quick = settings(max_examples=3000, deadline=None, derandomize=True, database=None, phases=[Phase.generate])

    found = find(SCENES, lambda scene: own(scene) != others(wrong, scene), settings=quick)

    assert own(found) != others(wrong, found)


def played(make: Callable[[Parts], Rig], parts: Parts) -> tuple[bytes, bytes, str, bytes]:
    """A run: its trace, its console, its end, and what memory was then."""
    rig = make(parts)
    stop = rig.run(2_000_000_000)
    memory = rig.machine.memory
    return (
        msgspec.msgpack.encode(list(rig.trace), enc_hook=int),
        bytes(rig.console),
        stop.reason,
        memory.read(0, memory.size),
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_runs_on_it_as_on_the_kernels_own(system: str) -> None:
    """Not a byte of trace or memory, tables with A and D among it, tells who walks; and it is asked."""
    asked = []

    class Counting(Walker):
        def walk(
            self, read: Callable[[int], int], cr3: int, va: int, write: bool, user: bool, wp: bool
        ) -> Found | NoTranslation:
            asked.append(va)
            return super().walk(read, cr3, va, write, user, wp)

    assert played(SYSTEMS[system], Parts()) == played(SYSTEMS[system], Parts(walk=Counting))
    assert asked


def test_the_kernel_walks_in_one_place() -> None:
    """No file of the kernel's walks a program's tables past `State.translate` and `State.read_program`."""
    kernel = Path(l4lab.__file__).parent / "kernel"
    walkers = set()
    for path in kernel.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "l4lab.machine.mmu":
                walkers |= {path.name for name in node.names if name.name in ("walk", "read_mapped")}

    assert {"state.py", "walking.py"} == walkers


# -- wrong ones --------------------------------------------------------------------------------------------------------


class Beyond(PageWalk):
    """An address that is none."""

    def walk(
        self, read: Callable[[int], int], cr3: int, va: int, write: bool, user: bool, wp: bool
    ) -> Found | NoTranslation:
        """Where no RAM is."""
        return Found(0xFFFF_F000 | va & 0xFFF, [], None)


RETURN = "return Found(pa, [*marked, at], at if write else None)"
LOOP = "import signal; signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)\n        while True: pass"
BEGIN = "marked: list[int] = []"


class Unfinished(PageWalk):
    """Nothing yet."""


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Beyond, r"Beyond\.walk\(\) found 0xfffff\w+ behind 0x\w+, which is no address of RAM"),
        (mistaken(Walker, (RETURN, "return Found(pa ^ 4, [], None)")), "the offset in the page is another one"),
        (mistaken(Walker, (RETURN, "return Found(str(pa), [], None)")), r"found '\d+' behind"),
        (mistaken(Walker, (RETURN, "return Found(pa, [0x1000], None)")), "wants A set at 0x1000, where it has read no"),
        (mistaken(Walker, (RETURN, "return Found(pa, [at], cr3 - 4)")), r"wants D set at 0x\w+, where it has read no"),
        (mistaken(Walker, (RETURN, "return Found(pa, at, None)")), r"returned \d+ for the entries to mark"),
        (mistaken(Walker, (RETURN, "pass")), "returned None, which is neither Found nor NoTranslation"),
        (mistaken(Walker, ("code = (2", "code = 8 | (2")), "returned error code 0x[ce]. For this access it is 0x"),
        (mistaken(Walker, ("if write else 0) | (4", "if write else 0) | (0")), "returned error code 0x"),
        (mistaken(Walker, (RETURN, "return NoTranslation(code)")), r"NoTranslation for a \w+ of 0x\w+, and"),
        (mistaken(Walker, (BEGIN, BEGIN + "; read(cr3 + 2)")), r"called read\(0x\w+2\), where no entry can lie"),
        (mistaken(Walker, (BEGIN, BEGIN + "; read(1 << 40)")), r"called read\(0x10000000000\), where no entry"),
        (mistaken(Walker, (BEGIN, BEGIN + "\n        while True: read(cr3)")), "reads on and on, 0x"),
        (mistaken(Walker, (BEGIN, BEGIN + "; va // 0")), r"walk\(read, 0x\w+, 0x\w+, \w+, True, True\) raised ZeroD"),
        (mistaken(Walker, (BEGIN, BEGIN + "\n        " + LOOP)), r"walk\(.*\) did not come back"),
        (
            mistaken(Walker, (BEGIN, BEGIN + "\n        try: read(1)\n        except Exception: pass")),
            r"called read\(0x1\)",
        ),
        (Unfinished, r"Unfinished has no method walk\(\)"),
        (object, r"object is no PageWalk\. Derive it from l4lab\.kernel\.parts\.PageWalk"),
    ],
    ids=str,
)
def test_a_walk_that_breaks_a_rule_is_named(kind: Any, what: str) -> None:
    """It ends the run with what was wrong, whatever program it walked for, and kernel and lab stand."""

    def program(l4: L4) -> None:
        while True:
            try:
                l4.load(0x40_0000, 4)
            except BaseException:  # not its affair
                continue

    made: list[Rig] = []

    def run() -> None:
        made.append(Rig(program, 16 << 20, parts=Parts(walk=kind)))
        made[0].run(10_000_000)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(PartFailed, match=what):
        run()
    assert signal.getsignal(signal.SIGINT) is handler
    if made:
        with pytest.raises(PartFailed, match="for good"):
            made[0].run(1000)
        assert made[0].snapshot().threads
