# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages as a sequence chart: a lifeline per thread, an arrow per message, time going down.

Rows are equally far apart whatever the time between them, which is written at the left. Kinds of message differ by
dash pattern and by the word before the label; the colour only repeats that.
"""

from __future__ import annotations

from l4lab.rig.snapshot import IpcKind, IpcView, Snapshot
from l4lab.views import svg, text
from l4lab.views.example import example

MESSAGES = 30  # in one chart; older ones are counted, not drawn
LEFT = 125  # pixels: the time stamps, up to a quarter of an hour of nanoseconds
LANE, WIDE_LANE = 170, 260  # pixels between lifelines: at least; at most, where there are few
LANES = 780  # pixels that the lifelines share if they can
LOOP = 45  # pixels to the right of the last lifeline's lane, for a message that it sends to itself
ROW, TOP = 30, 34  # pixels: between messages, above the first
WIDE_LETTER = 7.4  # pixels: one character of the names' type, on average
WORDS = 2  # message words written beside a label; the others are in the tooltip

STYLES: dict[IpcKind, tuple[str, str | None]] = {  # colour, dash pattern
    "send": (svg.BLUE, None),
    "reply": (svg.GREEN, "7 4"),
    "fault": (svg.RED, "2 3"),
    "exit": (svg.VIOLET, "9 3 2 3"),
    "irq": (svg.ORANGE, "4 2"),
}


def sequence(snapshot: Snapshot) -> svg.Markup:
    """The latest messages between the threads that took part in them."""
    shown = snapshot.ipc[-MESSAGES:]
    involved = lifelines(snapshot, shown)
    lane = min(max(LANES / max(len(involved), 1), LANE), WIDE_LANE)
    at = {thread: LEFT + (index + 0.5) * lane for index, thread in enumerate(involved)}
    bottom = TOP + max(len(shown), 1) * ROW + 12
    width = LEFT + max(len(involved), 2) * lane + LOOP
    parts = []
    for thread, x in at.items():
        name = snapshot.thread_name(thread)
        parts += [
            svg.line(x, 24, x, bottom),
            svg.box(x - lane / 2 + 8, 2, lane - 16, 22),
            svg.group(
                svg.element("title", f"{name}, {thread:#x}"),
                svg.label(x, 17, svg.shorten(name, int((lane - 24) / WIDE_LETTER)), anchor="middle"),
            ),
        ]
    parts += [_arrow(snapshot, message, at, TOP + (row + 1) * ROW) for row, message in enumerate(shown)]
    earlier = len(snapshot.ipc) - len(shown)
    if earlier > 0:
        parts.append(svg.label(4, TOP + 4, f"{earlier} earlier", muted=True))
    if not shown:
        parts.append(svg.label(LEFT, TOP + 20, "No messages so far.", muted=True))
    parts.append(_legend(bottom + 14))
    spoken = text.ipc(snapshot) or "none so far"
    return svg.picture(max(width, LEFT + 460), bottom + 26, "Messages between threads", spoken, *parts)


def lifelines(snapshot: Snapshot, messages: tuple[IpcView, ...]) -> list[int]:
    """The threads that took part, in the snapshot's order; those that are gone come last."""
    involved = [thread for message in messages for thread in (message.sender, message.receiver)]
    alive = [view.id for view in snapshot.threads if view.id in involved]
    return list(dict.fromkeys(alive + involved))


def _arrow(snapshot: Snapshot, message: IpcView, at: dict[int, float], y: float) -> svg.Markup:
    """One message: its time, its line, its head, its label above the line. `at`: where each thread's lifeline is."""
    colour, dash = STYLES[message.kind]
    start, end = at[message.sender], at[message.receiver]
    stroke = f"stroke: {colour}; stroke-width: 1.6; fill: none"
    if start == end:  # a thread may send to itself through its own exception handler
        path, tip, back = f"M{start} {y - 12} h26 v12 h-20", end, 1
        left, room = start + 32, LANE / 2 + LOOP - 34
    else:
        back = -1 if end > start else 1
        path, tip = f"M{start} {y} H{end + 6 * back}", end
        left, room = min(start, end) + 8, abs(end - start) - 16
    head = f"M{tip} {y} l{8 * back} -4 v8 z"
    words = " ".join(f"{word:x}" for word in message.words)
    brief = " ".join(f"{word:x}" for word in message.words[:WORDS])
    caption = f"{message.kind}: {message.label}"
    if brief and len(caption) + len(brief) + len(" (…)") <= room / svg.LETTER:
        caption += f" ({brief}{'…' if len(message.words) > WORDS else ''})"
    who = f"{snapshot.thread_name(message.sender)} to {snapshot.thread_name(message.receiver)}"
    return svg.group(
        svg.element("title", f"cycle {message.cycle}, {who}: {message.kind} {message.label} {words}".rstrip()),
        svg.label(LEFT - 12, y + 4, text.grouped(message.cycle), anchor="end", mono=True, muted=True),
        svg.element("path", d=path, stroke_dasharray=dash, style=stroke),
        svg.element("path", d=head, style=f"fill: {colour}"),
        svg.label(left, y - 5, svg.shorten(caption, int(room / svg.LETTER)), mono=True),
        class_=f"l4-ipc-{message.kind}",
    )


def _legend(y: float) -> svg.Markup:
    """What the dash patterns mean."""
    parts = []
    for index, (kind, (colour, dash)) in enumerate(STYLES.items()):
        x = 12 + index * 100
        parts += [
            svg.element("path", d=f"M{x} {y} h34", stroke_dasharray=dash, style=f"stroke: {colour}; stroke-width: 1.6"),
            svg.label(x + 40, y + 4, kind),
        ]
    return svg.group(*parts)


if __name__ == "__main__":
    print(sequence(example()))
