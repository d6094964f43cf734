# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores to RAM: there is one way, and it is told to the engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import l4lab
from l4lab.machine.memory import Memory

SOURCES = Path(l4lab.__file__).parent
DOOR = "machine/memory.py"
# Who gets at the bytes of RAM beside the door, and why that needs no notice.
ADDRESS = {
    "machine/engine.py": "hands RAM to the engine, which sees what it stores itself",
}
REGISTER_FRAMES = {
    "kernel/calls/threadcontrol.py": "a thread's registers",
    "kernel/devices/interrupts.py": "a thread's registers",
    "machine/guestmode.py": "a virtual CPU's registers",
    "machine/usermode.py": "a thread's registers",
    "machine/pycore.py": "a thread's registers, as the native core stores them",
}
# Writers through raw addresses or foreign buffers, none of which is RAM.
RAW = {
    "_compiled.py": "seals the classes of compiled modules",
    "machine/pycore.py": "the engine's own structures",
    "machine/blockends.py": "the engine's own structures",
    "machine/probebench.py": "the engine's own structures",
    "machine/probechecks.py": "the engine's own structures",
    "abi/kip_build.py": "a page that is built in a bytearray",
    "images/multiboot.py": "a table that is built in a bytearray",
    "user/monitor/rom.py": "a table that is built in a bytearray",
}
HIDDEN = {"_u8", "_u32", "_host"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """All our modules, by their path in the package."""
    for path in sorted(SOURCES.rglob("*.py")):
        yield path.relative_to(SOURCES).as_posix(), ast.parse(path.read_text())


def stored_to(tree: ast.Module) -> Iterator[ast.expr]:
    """What is assigned to by index: `x` of `x[i] = 1`, `x[i] += 1` and `del x[i]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield node.value


def aliases(tree: ast.Module) -> set[str]:
    """Names and attributes that are bound to a view of memory: `x` of `x = memory.u32` or `u32 = self._u32`."""
    found = {"u8", "u32", "_u8", "_u32"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr in found:
            found |= {last_name(target) for target in node.targets}
    return found


def last_name(node: ast.expr) -> str:
    """`c` of `a.b.c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.Module, *names: str) -> bool:
    """Is a function or method of one of these names used?"""
    return any(isinstance(node, ast.Attribute | ast.Name) and last_name(node) in names for node in ast.walk(tree))


def test_no_other_file_stores_to_a_view_of_memory() -> None:
    """Does no module but the door assign to an element of a view of RAM?"""
    offenders = {
        f"{path}:{view.lineno}"
        for path, tree in sources()
        if path != DOOR
        for view in stored_to(tree)
        if last_name(view) in aliases(tree)
    }

    assert set() == offenders


def test_no_other_file_gets_at_the_bytes() -> None:
    """Are the writable views and the address of RAM, and register frames, used only where the reason is known?"""
    users = {path for path, tree in sources() if path != DOOR and calls(tree, "register_frame")}
    hosts = {
        f"{path}:{node.lineno}"
        for path, tree in sources()
        if path != DOOR
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in HIDDEN and "memory" in last_name(node.value)
    }
    addresses = {
        path
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("address", "code_address")
        and last_name(node.value) in ("ram", "memory", "_memory", "_ram")
    }

    assert set(REGISTER_FRAMES) == users
    assert set() == hosts
    assert set(ADDRESS) == addresses


def test_no_other_file_writes_through_addresses_or_buffers() -> None:
    """Is no other module able to write foreign memory: by ctypes, pack_into or readinto?"""
    raw = {
        path
        for path, tree in sources()
        if path != DOOR
        and calls(tree, "pack_into", "readinto", "from_address", "from_buffer", "memmove", "memset", "string_at")
    }

    assert set(RAW) == raw


def test_views_for_reading_cannot_be_written() -> None:
    """Does a store through any view that is given out for reading fail?"""
    memory = Memory(1 << 20)
    shared = memory.shared_words(0x1000, 512)

    for view in (memory.u8, memory.u32, shared.words):
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1


def test_a_forked_process_has_ram_of_its_own() -> None:
    """Does a store of a child not show in its parent, nor one of the parent in the child?"""
    script = """
import os
from l4lab.machine.memory import Memory
memory = Memory(1 << 20)
memory.set_word(1, 7)
to_child, to_parent = os.pipe(), os.pipe()
if os.fork() == 0:
    memory.set_word(1, 8)
    os.write(to_parent[1], b"x")
    os.read(to_child[0], 1)
    os._exit(memory.u32[1])
os.read(to_parent[0], 1)
seen = memory.u32[1]
memory.set_word(1, 9)
os.write(to_child[1], b"x")
print(seen, os.waitstatus_to_exitcode(os.wait()[1]))
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "7 8" == done.stdout.strip()
