# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O fpages: ports are handed on by messages, and a program reaches no other."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi import utcb as u
from l4lab.abi.fpage import NILPAGE, Fpage, IoFpage
from l4lab.abi.ids import NIL_THREAD, SIGMA0
from l4lab.abi.message import Acceptor, IpcErrorCode, Message
from l4lab.abi.protocols import ARCH_EXCEPTION, IO_PAGE_FAULT, is_page_fault, sigma0_granted, sigma0_request
from l4lab.abi.time import period
from l4lab.kernel import events
from l4lab.testing import MEMORY, PAGE, Root, System, run
from l4lab.user.l4 import L4, IpcFailed, Received

DATA = MEMORY.base + 0x1000
UART = 0x3F8  # scratch register at + 7: what is written there can be read back
SCRATCH = UART + 7
KINDS = ["native", "hosted"]


def serve_ports(r: Root, only: IoFpage | None = None) -> list[Received]:
    """Be pager for memory, and for ports as far as they are in `only`; the messages about ports and all others."""
    got: list[Received] = []
    received = r.wait()
    with suppress(IpcFailed):
        while True:
            if is_page_fault(received.label):
                page = Fpage.at(received.untyped[0] & -PAGE)
                reply = Message().append_map(page, page.base)
            else:
                got.append(received)
                wanted = IoFpage.decode(received.untyped[0])
                if received.label != IO_PAGE_FAULT or (only is not None and not only.covers(wanted.port)):
                    received = r.wait(period(1000))
                    continue
                reply = Message().append_map(wanted)
            received = r.ipc(received.sender, 0xFFFF_FFFF, reply, period(1000))  # type: ignore[arg-type]
    return got


# -- faults


@pytest.mark.parametrize(
    ("source", "port", "log2"),
    [
        ("in al, 0x60", 0x60, 0),
        ("in ax, 0x60", 0x60, 1),
        ("in eax, 0x60", 0x60, 2),
        ("mov dx, 0x3fe\n at: in ax, dx", 0x3FE, 1),
        ("mov dx, 0x3f9\n at: in ax, dx", 0x3F9, 0),  # no I/O fpage is so large and begins there
        ("mov dx, 0xffff\n at: in al, dx", 0xFFFF, 0),
        ("out 0x80, al", 0x80, 0),
        ("mov dx, 0x1000\n at: out dx, eax", 0x1000, 2),
        ("mov dx, 0x60\n mov esi, DATA\n at: outsb", 0x60, 0),
        ("mov dx, 0x60\n mov edi, DATA\n at: insw", 0x60, 1),
        ("mov dx, 0x60\n mov edi, DATA\n mov ecx, 3\n at: rep insd", 0x60, 2),
    ],
)
def test_a_port_that_is_not_mapped_is_a_fault(source: str, port: int, log2: int) -> None:
    """Does the pager learn the ports and the instruction, and does the fault recur if the answer brings nothing?"""
    got: list[Received] = []
    at: list[int] = []

    def root(r: Root) -> None:
        text = source if "at:" in source else f"at: {source}"
        n = r.native(text + "\n ud2", r.space(), DATA=DATA)
        at.append(n.at("at"))
        received = r.wait()
        while len(got) < 2:
            if is_page_fault(received.label):
                page = Fpage.at(received.untyped[0] & -PAGE)
                received = r.reply_wait(received.sender, Message().append_map(page, page.base))
            else:
                got.append(received)
                received = r.reply_wait(received.sender, Message(), period(1000)) if len(got) < 2 else received

    run(root)

    assert [(IO_PAGE_FAULT, 2, 0)] * 2 == [(m.label, m.tag.untyped, m.tag.typed) for m in got]
    assert [[IoFpage.at(port, log2), at[0]]] * 2 == [m.untyped for m in got]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_pager_maps_can_be_used(kind: str) -> None:
    """Is each port asked for once, with its size, and does the device then see what the program does?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        r.ports(UART, 3)
        if kind == "native":
            source = f"mov dx, {SCRATCH}\n mov al, 0x5a\n out dx, al\n xor eax, eax\n in al, dx\n mov [{DATA}], eax\n"
            r.native(source + "ud2", r.space())
        else:

            def main(l4: L4) -> None:
                l4.port_out(SCRATCH, 1, 0x5A)
                l4.store_word(DATA, l4.port_in(SCRATCH, 1))

            r.hosted(main, r.space())
        got.extend(serve_ports(r))

    system = run(root)

    assert [0x5A] == system.words(DATA)
    assert [[IoFpage.at(SCRATCH)]] == [m.untyped[:1] for m in got]
    assert [SCRATCH] == [e.port for e in system.trace.of(events.IoPageFault) if e.size == 1]


@pytest.mark.parametrize("kind", KINDS)
def test_sigma0_answers_port_faults_of_its_own_clients(kind: str) -> None:
    """Does a program whose pager is sigma0 get the ports that it touches, until somebody else has them?"""

    def root(r: Root) -> None:
        if kind == "native":
            source = f"mov dx, {SCRATCH}\n mov al, 0x5a\n out dx, al\n xor eax, eax\n in al, dx\n mov [{DATA}], eax\n"
            r.native(f"{source} mov edi, gs:[0]\n mov dword ptr [edi + {u.PAGER}], ROOT\n ud2", ROOT=int(SIGMA0))
            return
        r.port_out(SCRATCH, 1, 0x5A)
        r.store_word(DATA, r.port_in(SCRATCH, 1))

    def native(r: Root) -> None:
        text = f"mov edi, gs:[0]\n mov dword ptr [edi + {u.PAGER}], {int(SIGMA0)}\n mov dx, {SCRATCH}\n mov al, 0x5a\n"
        r.native(f"{text} out dx, al\n xor eax, eax\n in al, dx\n mov [{DATA}], eax\n ud2")

    system = run(native if kind == "native" else root)

    assert [0x5A] == system.words(DATA)
    assert [((SCRATCH, 1),)] == [e.ranges for e in system.trace.of(events.PortsMapped)]


def test_an_unaligned_access_asks_port_by_port() -> None:
    """Does an access over two fpages ask for one port after the other, and happen then?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        r.ports(UART, 3)
        r.native(f"mov dx, {UART + 1}\n in ax, dx\n mov dword ptr [{DATA}], 1\n ud2", r.space())
        got.extend(serve_ports(r))

    system = run(root)

    assert [IoFpage.at(UART + 1), IoFpage.at(UART + 2)] == [m.untyped[0] for m in got]
    assert [1] == system.words(DATA)


def test_a_port_fault_takes_ports_and_nothing_else() -> None:
    """Is a memory item in the answer to an I/O page fault an overflow for who sends it?"""
    codes: list[int] = []

    def root(r: Root) -> None:
        r.native("in al, 0x60\n ud2", r.space())
        received = r.serve()
        try:
            r.send(received.sender, Message().append_map(Fpage.at(DATA & -PAGE), 0x0050_0000))
        except IpcFailed as failed:
            codes.append(failed.error.code)

    run(root)

    assert [IpcErrorCode.MESSAGE_OVERFLOW] == codes


# -- string instructions


def _uart_bytes(text: bytes) -> tuple[str, int]:
    data = ", ".join(f"0x{byte:02x}" for byte in text)
    return data, len(text)


@pytest.mark.parametrize("direction", ["cld", "std"])
def test_outs_sends_element_by_element(direction: str) -> None:
    """Does REP OUTSB send each byte in order, with the page faults that reading them takes, and leave ECX 0?"""
    text = bytes(range(0x41, 0x41 + 20))

    def root(r: Root) -> None:
        r.ports(UART, 3)
        at = DATA + PAGE - 10  # over a page boundary
        r.store(at, text if direction == "cld" else text[::-1])
        start = at if direction == "cld" else at + len(text) - 1
        source = f"""
            {direction}
            mov dx, {UART}
            mov esi, {start}
            mov ecx, {len(text)}
            rep outsb
            mov [{DATA}], esi
            mov [{DATA + 4}], ecx
            cld
            ud2
        """
        r.native(source, r.space())
        serve_ports(r)

    system = run(root)
    at = DATA + PAGE - 10

    assert text == bytes(system.console)
    assert [at + 20 if direction == "cld" else at - 1, 0] == system.words(DATA, 2)
    pages = [e.address & -PAGE for e in system.trace.of(events.PageFault) if e.address >= DATA & -PAGE]
    assert {DATA & -PAGE, DATA + PAGE & -PAGE} <= set(pages)


@pytest.mark.parametrize("engine_size", [("insb", 1), ("insw", 2), ("insd", 4)], ids=lambda pair: pair[0])
def test_ins_receives_element_by_element(engine_size: tuple[str, int]) -> None:
    """Does REP INS store what the port says into fresh pages, element by element, losing nothing at page faults?"""
    name, size = engine_size

    def root(r: Root) -> None:
        r.ports(UART, 3)
        at = DATA + PAGE - 4
        source = f"""
            mov dx, {UART}
            mov edi, {at}
            mov ecx, 4
            rep {name}
            mov [{DATA}], edi
            mov [{DATA + 4}], ecx
            ud2
        """
        r.native(source, r.space())
        serve_ports(r)

    system = System(root)
    system.machine.ports.write(UART + 2, 1, 1)  # a FIFO, so that four bytes can wait
    system.machine.uart.receive(b"wxyz")
    system.run()
    at = DATA + PAGE - 4
    got = b"".join(word.to_bytes(4, "little") for word in system.words(at, size))

    assert b"wxyz" == got[::size][:4] if size == 1 else got[0] == ord("w")
    assert [at + 4 * size, 0] == system.words(DATA, 2)


def test_ins_with_short_addresses_and_nothing_to_do() -> None:
    """Does a 16-bit INS change DI alone, and REP with ECX 0 nothing and ask for no port?"""

    def root(r: Root) -> None:
        r.ports(UART, 3)
        source = f"""
            mov dx, {UART}
            mov edi, {DATA + 64}
            xor ecx, ecx
            rep insb
            mov [{DATA}], edi
            mov edi, 0x12340010
            .byte 0x67
            insb
            mov [{DATA + 4}], edi
            ud2
        """
        r.native(source, r.space(), pager=r.my_id)
        received = r.wait()
        while True:
            if received.label == IO_PAGE_FAULT:
                reply = Message().append_map(IoFpage.decode(received.untyped[0]))
            elif is_page_fault(received.label):
                low = received.untyped[0] < PAGE
                base = DATA & -PAGE if low else received.untyped[0] & -PAGE
                reply = Message().append_map(Fpage.at(base), received.untyped[0] & -PAGE)
            else:
                return
            received = r.reply_wait(received.sender, reply)

    system = run(root)

    assert [DATA + 64, 0x12340011] == system.words(DATA, 2)
    assert [UART] == [e.port for e in system.trace.of(events.IoPageFault) if e.port >= UART and e.size == 1]


# -- map, grant, unmap


def test_ports_need_no_window_and_only_what_one_has_is_given() -> None:
    """Does an I/O fpage arrive without receive window, and does the receiver get only ports that the sender has?"""
    got: list[list[int]] = []

    def root(r: Root) -> None:
        r.ports(0x100, 2)
        space = r.space()
        client = r.hosted(lambda l4: [l4.wait() for _ in range(2)] and None, space)
        r.send(client, Message().append_map(IoFpage.at(0x100, 4)))
        got.append(sorted(r.system.thread(client).space.ports))

    run(root)

    assert [[0x100, 0x101, 0x102, 0x103]] == got


def test_unmap_takes_ports_from_all_who_have_them_from_me() -> None:
    """Does Unmap take ports from clients and clients' clients, and with flush from the caller; and only those named?"""
    had: list[list[int]] = []

    def root(r: Root) -> None:
        r.ports(0x100, 3)
        first, second = r.space(), r.space()
        other = r.hosted(lambda l4: l4.receive(l4.my_id), second, start=False)

        def client(l4: L4) -> None:
            l4.receive(r.my_id)
            l4.send(other, Message(0, [0, 0]).append_map(IoFpage.at(0x100, 3)))
            l4.receive(r.my_id)

        thread = r.hosted(client, first)
        r.thread_control(other, second, pager=thread)
        r.send(thread, Message().append_map(IoFpage.at(0x100, 3)))
        r.sleep(1000)

        def note() -> None:
            had.extend(sorted(r.system.thread(t).space.ports) for t in (r.my_id, thread, other))

        note()
        (status,) = r.unmap(Fpage(IoFpage.at(0x102, 1)))
        note()
        r.unmap(Fpage(IoFpage.at(0x100, 1)), flush=True)
        note()
        assert status == IoFpage.at(0x102, 1)
        r.thread_control(thread, NIL_THREAD)
        r.thread_control(first, NIL_THREAD)  # the last of its space: what it gave is taken back too
        had.append(sorted(r.system.thread(other).space.ports))

    run(root)
    all_, rest = list(range(0x100, 0x108)), [0x100, 0x101, *range(0x104, 0x108)]

    assert [all_, all_, all_, all_, rest, rest, list(range(0x102, 0x108)), *[rest[2:]] * 2, []] == had


def test_unmap_takes_effect_on_a_running_program() -> None:
    """Does a program that reads a port in a loop fault again after its pager has unmapped it?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        r.ports(UART, 3)
        n = r.native(f"mov dx, {SCRATCH}\n again: in al, dx\n jmp again", r.space())
        got.append(r.serve())
        r.send(n.id, Message().append_map(IoFpage.at(SCRATCH)))
        r.sleep(100)
        r.unmap(Fpage(IoFpage.at(UART, 3)))
        got.append(r.wait(period(1000)))

    run(root)

    assert [IO_PAGE_FAULT] * 2 == [m.label for m in got]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["map", "grant", "unmap", "flush", "forget"]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_ports_follow_a_tree_for_each_port(operations: list[tuple[str, int, int, int, int]]) -> None:
    """For any sequence of map, grant, unmap: do the spaces have what a model with explicit trees says?"""
    system = System(lambda r: None)
    k = system.kernel
    sigma0 = system.thread(SIGMA0).space
    spaces = [sigma0, *(k.new_space(str(i)) for i in range(3))]
    # the model: for each port, the children of each holder
    model: list[dict[int, set[int]]] = [{0: set()} for _ in range(4)]

    def parent(tree: dict[int, set[int]], node: int) -> int:
        return next(p for p, children in tree.items() if node in children)

    def below(tree: dict[int, set[int]], node: int) -> set[int]:
        return {node}.union(*(below(tree, child) for child in tree[node]))

    def cut(tree: dict[int, set[int]], node: int) -> None:
        gone = below(tree, node)
        tree[parent(tree, node)].discard(node)
        for one in gone:
            del tree[one]

    for name, a, b, port, log2 in operations:
        fpage = IoFpage.at(port & -(1 << log2), log2)
        ports = range(fpage.port, fpage.port + fpage.size)
        if name in ("map", "grant"):
            k.ports.map(spaces[a], spaces[b], fpage, name == "grant")
        elif name == "forget":
            if a:
                k.ports.forget(spaces[a])
            ports = range(4)
        else:
            k.ports.unmap(spaces[a], fpage, name == "flush")
        for number in ports:
            tree = model[number]
            if a not in tree or (name == "forget" and not a):
                continue
            if name == "map" or (name == "grant" and a == 0):
                if b not in tree and b != a:
                    tree[a].add(b)
                    tree[b] = set()
            elif name == "grant":
                if b == 0 or b == a:
                    continue
                up = parent(tree, a)
                children = tree.pop(a)
                tree[up].discard(a)
                if b not in tree:
                    tree[up].add(b)
                    tree[b] = children
                else:
                    inside = next((p for p, c in tree.items() if b in c), None)
                    if inside is None or b in children or _under(tree, children, b):
                        if inside is not None:
                            tree[inside].discard(b)
                        children.discard(b)
                        tree[up].add(b)
                    tree[b] |= children
            else:
                for child in list(tree[a]):
                    if child in tree[a]:
                        cut(tree, child)
                if name in ("flush", "forget") and a != 0:
                    cut(tree, a)

    for number, tree in enumerate(model):
        expected = {spaces[n]: spaces[parent(tree, n)] for n in tree if n}
        assert expected == {space: space.ports[number] for space in spaces if number in space.ports}


def _under(tree: dict[int, set[int]], roots: set[int], node: int) -> bool:
    return any(root == node or _under(tree, tree[root], node) for root in roots)


# -- privilege


@pytest.mark.parametrize("instruction", ["cli", "sti", "hlt", "invd", "mov cr0, eax", "lidt [esp]"])
def test_programs_run_at_privilege_level_0_of_io(instruction: str) -> None:
    """Are instructions that need I/O privilege or more an exception 13, and is EFLAGS 0x202 at the start?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        handler = f"mov edi, gs:[0]\n mov dword ptr [edi + {u.EXCEPTION_HANDLER}], ROOT\n"
        text = f"pushfd\n pop dword ptr [{DATA}]\n {handler} {instruction}\n"
        r.native(text, ROOT=int(r.my_id))
        got.append(r.serve())

    system = run(root)

    assert (ARCH_EXCEPTION, 13) == (got[0].label, got[0].untyped[2])
    assert [0x202] == system.words(DATA)


def test_popf_cannot_raise_privilege() -> None:
    """Do POPF and an exception handler's answer leave IOPL and the interrupt flag alone?"""

    def root(r: Root) -> None:
        r.native(f"push 0x3000\n popfd\n pushfd\n pop dword ptr [{DATA}]\n ud2")

    assert [0x202] == run(root).words(DATA)


# -- sigma0


def test_sigma0_gives_ports_to_the_first_who_asks() -> None:
    """Does sigma0 map ports once, and answer the next who asks with nilpage?"""
    got: list[Fpage] = []

    def root(r: Root) -> None:
        wanted = IoFpage.at(0x200, 4)

        def ask(l4: L4) -> None:
            l4.accept(Acceptor.of(MEMORY))
            got.append(sigma0_granted(l4.call(SIGMA0, sigma0_request(wanted)).words))

        ask(r)
        ask(r)
        r.hosted(ask, r.space())
        r.serve()

    system = run(root)

    assert [IoFpage.at(0x200, 4), IoFpage.at(0x200, 4), NILPAGE] == got
    assert [((0x200, 16),)] == [e.ranges for e in system.trace.of(events.PortsMapped)][:1]
