# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain-text twins of all the pictures: for the terminal, for screen readers, and where a picture cannot be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from l4lab.abi import ids
from l4lab.rig.snapshot import DisasmLine, Ports, Region, Snapshot, SpaceView, ThreadView
from l4lab.views.example import example
from l4lab.words import hex32, size_text

CHANGED = "*"  # beside a register that differs from the last stop


def virtual_time(ns: int) -> str:
    """Virtual time in the unit that reads best: 850 ns, 184.467 µs, 12.5 ms, 3.2 s; never rounded."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if ns >= size:
            whole, rest = divmod(ns, size)
            return f"{whole}.{rest:0{len(str(size)) - 1}d}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{ns} ns"


def grouped(number: int) -> str:
    """A count with its digits in threes: 184 467."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def rough_size(size: int) -> str:
    """A size to be read at a glance: exact where that is short, otherwise to three digits and marked as such."""
    exact = size_text(size)
    if len(exact) <= len("1024K"):
        return exact
    unit, log2 = next((unit, log2) for unit, log2 in (("G", 30), ("M", 20), ("K", 10)) if size >> log2)
    return f"≈{size / (1 << log2):.{4 if size >> log2 > 999 else 3}g}{unit}"


def partner(snapshot: Snapshot, thread: int | None) -> str:
    """Whom a thread waits for: a thread's name, or the ABI's name for any of them."""
    match thread:
        case ids.ANY_THREAD:
            return "anyone"
        case ids.ANY_LOCAL_THREAD:
            return "anyone in its space"
        case _:
            return snapshot.thread_name(thread)


def waits(snapshot: Snapshot, view: ThreadView) -> str:
    """What a thread waits for, and from whom; a dash if it does not wait."""
    who = "" if not view.partner else partner(snapshot, view.partner)
    if view.waits:
        return f"{view.waits} ({who})" if who else view.waits
    if not who:
        return "–"
    return f"{who} to take its message" if view.state == "POLLING" else f"a message from {who}"


def time(view: ThreadView) -> str:
    """What a thread has left of its time slice, and of its total quantum if that ends; empty if neither does."""
    parts = []
    if view.time_slice is not None and view.slice_left is not None:
        parts.append(f"{virtual_time(view.slice_left)} of {virtual_time(view.time_slice)}")
    if view.quantum_left is not None:
        parts.append(f"{virtual_time(view.quantum_left)} in all")
    return ", ".join(parts)


def ports(snapshot: Snapshot, piece: Ports) -> str:
    """Some ports in words: which, and from whom."""
    last = f"–{piece.first + piece.count - 1:#x}" if piece.count > 1 else ""
    return f"port{'s' if last else ''} {piece.first:#x}{last} ← {snapshot.space_name(piece.parent)}"


def home(snapshot: Snapshot, space: int) -> str:
    """A thread's address space; that of interrupt threads is the kernel's."""
    return snapshot.space_name(space) if space >= 0 else "–"


def status_line(snapshot: Snapshot) -> str:
    """Where the run stands, and why it stopped, in one line."""
    runs = f"{snapshot.thread_name(snapshot.thread)} in {snapshot.mode} mode"
    who = "nobody runs" if snapshot.thread is None else runs
    reader = "the guest" if any(view.is_vm for view in snapshot.spaces) else "the program"
    waiting = f" · {reader} waits for input" if snapshot.input_expected else ""
    return (
        f"{snapshot.status} · {who} · cycle {grouped(snapshot.cycle)}"
        f" · virtual time {virtual_time(snapshot.virtual_ns)}{waiting}"
    )


def disassembly(lines: Iterable[DisasmLine]) -> str:
    """One line per instruction, an arrow at the next one."""
    return "".join(
        f"{'→' if line.current else ' '} {line.address:08x}  {line.code.hex(' '):<23}  {line.text}\n" for line in lines
    )


def registers(snapshot: Snapshot) -> str:
    """Three registers a line; a star at those that changed since the last stop."""
    changed = snapshot.changed()
    cells = [
        f"{CHANGED if name in changed else ' '}{name:<6} {hex32(value)}" for name, value in snapshot.registers.items()
    ]
    return "".join("  ".join(cells[start : start + 3]) + "\n" for start in range(0, len(cells), 3))


def threads(snapshot: Snapshot) -> str:
    """One line per thread, an arrow at the running one."""
    return columns(
        (
            "→" if view.id == snapshot.thread else "",
            view.name or f"{view.id:#x}",
            view.kind,
            view.state,
            f"prio {view.priority}",
            f"in {home(snapshot, view.space)}",
            "" if view.partner is None and not view.waits else f"waits for {waits(snapshot, view)}",
            "" if view.pager is None else f"pager {snapshot.thread_name(view.pager)}",
            time(view),
        )
        for view in snapshot.threads
    )


def region(snapshot: Snapshot, piece: Region) -> str:
    """One mapping in words: where, how much, with which rights, from whom."""
    origin = f"{hex32(piece.pa)} from {snapshot.space_name(piece.parent)}"
    return f"{hex32(piece.va)} {size_text(piece.size):>5} {piece.rights.text} ← {origin}  {piece.label}".rstrip()


def space(snapshot: Snapshot, view: SpaceView) -> str:
    """One address space: its kernel areas, then its mappings by address."""
    lines = [f"{view.name}{' (virtual machine)' if view.is_vm else ''}"]
    for name, area in (("KIP", view.kip), ("UTCBs", view.utcbs)):
        if area is not None:
            lines.append(f"  {hex32(area.va)} {size_text(area.size):>5}     {name}")
    lines += [f"  {region(snapshot, piece)}" for piece in view.regions]
    lines += [f"  {ports(snapshot, piece)}" for piece in view.ports]
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing is mapped"]) + "\n"


def spaces(snapshot: Snapshot) -> str:
    """All address spaces, one after the other."""
    return "".join(space(snapshot, view) for view in snapshot.spaces)


def ipc(snapshot: Snapshot) -> str:
    """One line per message, oldest first."""
    return columns(
        (
            grouped(message.cycle),
            snapshot.thread_name(message.sender),
            "→",
            snapshot.thread_name(message.receiver),
            f"{message.kind}: {message.label}",
            " ".join(f"{word:x}" for word in message.words),
        )
        for message in snapshot.ipc
    )


def exits(snapshot: Snapshot) -> str:
    """One line per VM exit, oldest first."""
    return columns(
        (grouped(each.cycle), snapshot.thread_name(each.vcpu), each.reason, hex32(each.guest_ip), each.detail)
        for each in snapshot.exits
    )


def exit_counts(counts: Mapping[str, int]) -> str:
    """How often each reason occurred, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    most = max(counts.values(), default=0)
    return columns((name, f"{grouped(count):>9}", "█" * round(30 * count / most)) for name, count in ranked if most)


def columns(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of cells, each column as wide as its widest cell; empty columns are left out."""
    table = list(rows)
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return "".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True) if width).rstrip() + "\n"
        for row in table
    )


def figures(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of a name and its numbers, which stand below each other."""
    table = list(rows)
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return columns(
        (name, *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)))
        for name, *numbers in table
    )


def everything(snapshot: Snapshot) -> str:
    """The whole snapshot, section by section."""
    sections = {
        "Disassembly": disassembly(snapshot.disassembly),
        "Registers": registers(snapshot),
        "Threads": threads(snapshot),
        "Address spaces": spaces(snapshot),
        "Messages": ipc(snapshot),
        "VM exits": exits(snapshot) + exit_counts(snapshot.exit_counts),
    }
    body = "".join(f"\n{title}\n{text or '  none' + chr(10)}" for title, text in sections.items())
    return f"{status_line(snapshot)}\n{body}"


if __name__ == "__main__":
    print(everything(example()), end="")
