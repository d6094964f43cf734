# SPDX-License-Identifier: GPL-2.0-or-later
"""The dashboard: one widget over a live machine. The truth stays in the rig; the browser shows strings.

Lives here: running the machine in slices between which the notebook stays alive, what the buttons and keys do, and how
often the browser hears of it. Does not live here: what a panel contains (`panels.py`), and how it looks (`dashboard.js`
and `dashboard.css`).

All of the machine's work is done in the main thread. Messages from the browser may arrive in another one (Jupyter's
subshells) while a cell blocks the main thread: so `pause` and typed bytes are notes that the next slice reads, and
everything else is handed to the main thread's event loop.
"""

from __future__ import annotations

import asyncio
import signal
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anywidget
import msgspec
import traitlets

from l4lab.devices.keys import has_key
from l4lab.errors import LabError
from l4lab.rig.rig import Rig, Stop
from l4lab.rig.snapshot import Snapshot
from l4lab.views import text
from l4lab.widgets import cells, panels

HERE: Final = Path(__file__).parent
VIZ: Final = HERE / "static" / "viz.js"  # Graphviz for the browser; tools/fetch_viz.py puts it there

SLICE: Final = 0.05  # seconds on the wall that the machine may keep the notebook waiting
AHEAD: Final = 50_000_000  # nanoseconds of virtual time in a slice: a guest that only idles keeps the wall's time
PERIOD: Final = 0.1  # seconds between two updates of the browser
SHARE: Final = 8  # an update may take one part in so many of the time; else they come less often

_PAUSED: Final = "paused"


_open: weakref.WeakSet[Dashboard] = weakref.WeakSet()


class Dashboard(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget is imported without its types
    """A machine with buttons to run, pause and step it, a console to type at, and pictures of what happens in it.

    In a notebook, `Dashboard(rig)` as a cell's last line shows it. Its buttons are methods as well: `run()`, `pause()`,
    `step()`, `step_event()`, `type(text)`, `press(text)`; `run_for(seconds)` runs the machine within the cell.
    """

    _esm = HERE / "dashboard.js"
    _css = HERE / "dashboard.css"

    title = traitlets.Unicode().tag(sync=True)
    state = traitlets.Enum(["paused", "running", "ended", "failed"], "paused").tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    trouble = traitlets.Unicode().tag(sync=True)  # tracebacks of what failed, for whoever wants to know
    console = traitlets.Unicode().tag(sync=True)
    screen = traitlets.Unicode().tag(sync=True)
    who = traitlets.Unicode().tag(sync=True)
    disassembly = traitlets.Unicode().tag(sync=True)
    registers = traitlets.Unicode().tag(sync=True)
    threads = traitlets.Unicode().tag(sync=True)
    graph_svg = traitlets.Unicode().tag(sync=True)  # empty where there is no `dot`:
    graph_dot = traitlets.Unicode().tag(sync=True)  # then the browser draws this, or shows
    graph_text = traitlets.Unicode().tag(sync=True)  # this
    mappings = traitlets.Unicode().tag(sync=True)
    ipc = traitlets.Unicode().tag(sync=True)
    counters = traitlets.Unicode().tag(sync=True)
    kernel_exits = traitlets.Unicode().tag(sync=True)
    exit_counts = traitlets.Unicode().tag(sync=True)
    exits = traitlets.Unicode().tag(sync=True)

    def __init__(self, rig: Rig, title: str = "") -> None:
        super().__init__(title=title)
        self._rig: Rig | None = rig
        self.place = cells.here()
        for older in cells.replaced(_open, self.place):  # their cell has been run again: nobody sees them any more
            older.close()
        _open.add(self)
        self.error: BaseException | None = None  # what the machine raised, if it did
        self._said = rig.status() if rig.last_stop.detail else _PAUSED  # why it stands still
        self._input: deque[bytes | str] = deque()  # for the serial port, or to be pressed on the keyboard
        self._pausing = False
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._next_show = 0.0
        self._shown: Snapshot | None = None
        self._seen: dict[int | None, dict[str, int]] = {}  # thread: its registers when it was last shown
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # not in a notebook
            self._loop = None
        self.on_msg(self._received)
        self._show()

    def __repr__(self) -> str:
        return f"Dashboard({self.status})"

    # -- what the buttons do -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run in the background until paused; cells can be executed meanwhile."""
        if self._loop is None:
            raise LabError("only a notebook can run a machine in the background; here, use run_for(seconds)")
        self._pausing, self.error = False, None
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._run())

    def pause(self) -> None:
        """Stop running, after this slice at the latest."""
        self._pausing = True
        self._rouse()

    def step(self) -> None:
        """One instruction; of a hosted program, up to its next system call. If nobody runs, the next event."""
        idle = self.rig.kernel.current is None
        self._once(self.rig.step_event if idle else self.rig.step, "after one instruction")

    def step_event(self) -> None:
        """Up to the next kernel entry: a trap, a system call, a VM exit, an interrupt."""
        self._once(self.rig.step_event, "at a kernel event")

    def type(self, typed: str | bytes) -> None:
        """Bytes arrive at the machine's serial port as soon as it runs. Enter is a carriage return."""
        self._input.append(typed.encode(errors="replace") if isinstance(typed, str) else typed)
        self._rouse()

    def press(self, text: str) -> None:
        """The keys of a text are pressed on the machine's keyboard as soon as it runs. Enter is a newline."""
        for char in text:
            if not has_key(char):
                raise LabError(f"there is no key for {char!r} on a US keyboard; type what it has")
        self._input.append(text)
        self._rouse()

    def run_for(self, seconds: float, until: str = "") -> Stop:
        """Run here and now, as fast as it goes: for so many seconds of virtual time, or until the console says so."""
        self._pausing, self._said, self.error = False, _PAUSED, None
        wanted, console = until.encode(), self.rig.console
        searched = max(len(console) - max(len(wanted) - 1, 0), 0)

        def found() -> bool:
            """Asked after each byte, so that the machine stops at the instant of the last one wanted."""
            return bool(wanted) and console.find(wanted, searched) >= 0

        deadline = self.rig.machine.cycles + int(seconds * 1e9)
        self.state = "running"
        try:
            while True:
                stop = self._slice(deadline, found)
                if found() or stop.reason not in ("deadline", "enough") or self._pausing:
                    return stop
                if self.rig.machine.cycles >= deadline:
                    return stop
                self._show_now_and_then()
        except Exception as error:
            self._failed(error)
            raise
        finally:
            self.pause()  # a run in the background that was going on ends here too
            self._show(running=False)

    @property
    def rig(self) -> Rig:
        """The machine."""
        if self._rig is None:
            raise LabError("this dashboard was closed, and has no machine any more. Make another one: Dashboard(rig)")
        return self._rig

    def close(self) -> None:
        """Take the widget off the page; the machine pauses, and ends if nobody else has the rig."""
        self.pause()
        _open.discard(self)
        super().close()
        if self._task is None or self._task.done() or self._task.get_loop().is_closed():
            self._let_go()
        else:
            self._task.add_done_callback(lambda _: self._let_go())

    def _let_go(self) -> None:
        self._rig = self.error = self._task = None

    # -- running ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Slice after slice; in between the notebook has its turn."""
        self.state, self._said = "running", _PAUSED
        try:
            with self._heeding_interrupts():
                while not self._pausing:
                    self._wake.clear()
                    begin, began = self.rig.machine.cycles, time.monotonic()
                    stop = self._slice(begin + AHEAD)
                    if stop.finished or stop.reason == "stopped":
                        self._said = stop.detail
                        break
                    if stop.reason == "idle":
                        self._show(running=True)
                        await self._wake.wait()
                    else:
                        self._show_now_and_then()
                        virtual, wall = (self.rig.machine.cycles - begin) / 1e9, time.monotonic() - began
                        await self._rest(max(virtual - wall, 0.001))
        except (Exception, KeyboardInterrupt) as error:
            self._failed(error)
        finally:
            self._show(running=False)

    async def _rest(self, seconds: float) -> None:
        """Leave the processor to others, until something is typed or a button pressed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def _slice(self, deadline: int, found: Callable[[], bool] = lambda: False) -> Stop:
        """Type what was typed, and run for a short while, or until what was waited for is there."""
        self._take_input()
        late = time.monotonic() + SLICE
        return self.rig.run_until(deadline, watch=lambda: self._pausing or found() or time.monotonic() >= late)

    def _take_input(self) -> None:
        while self._input:
            match self._input.popleft():
                case bytes(typed):
                    self.rig.type(typed)
                case pressed:
                    self.rig.press(pressed)

    def _once(self, action: Callable[[], Stop], said: str) -> None:
        """A step of some kind, from standstill."""
        self.pause()
        self.error = None
        self._take_input()
        try:
            stop = action()
            self._said = stop.detail or said
        except Exception as error:
            self._failed(error)
        self._show(running=False)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self._said = f"{type(error).__name__}: {error}"

    def _rouse(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    @contextmanager
    def _heeding_interrupts(self) -> Iterator[None]:
        """The notebook's stop button pauses the machine also while it rests: Jupyter heeds it within cells only."""

        def interrupt(*_: Any) -> None:
            self.pause()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) is interrupt:  # else a cell is running, and it is the cell's now
                signal.signal(signal.SIGINT, before)

    # -- showing ------------------------------------------------------------------------------------------------------

    def _show_now_and_then(self) -> None:
        if time.monotonic() >= self._next_show:
            self._show(running=True)

    def _show(self, running: bool = False) -> None:
        """Send the browser what has changed."""
        began = time.monotonic()
        over = self.rig.over()
        if running:
            state, said = "running", "running"
        elif self.error is not None:
            state, said = "failed", self._said
        elif over is not None:
            state, said = "ended", over.detail
        else:
            state, said = "paused", self._said
        snapshot = msgspec.structs.replace(self._look(), status=said)
        with self.hold_sync():
            self.state = state
            self.status = text.status_line(snapshot)
            self.trouble = self._tracebacks()
            for name, shown in panels.contents(snapshot).items():
                setattr(self, name, shown)
        now = time.monotonic()
        self._next_show = now + max(PERIOD, SHARE * (now - began))

    def _look(self) -> Snapshot:
        """The system now; a register has changed if it is not what it was when its thread was last shown."""
        snapshot, before = self.rig.snapshot(), self._shown
        if before is not None and before.cycle == snapshot.cycle and before.thread == snapshot.thread:
            previous = before.previous  # the same instant once more
        else:
            if before is not None:
                self._seen[before.thread] = before.registers
            previous = self._seen.get(snapshot.thread, {})
        self._shown = msgspec.structs.replace(snapshot, previous=previous)
        return self._shown

    def _tracebacks(self) -> str:
        """Of hosted programs that raised, whose threads are halted now; then of the machine itself."""
        told = [f"{thread.name} raised, and halted:\n{died.text}" for thread, died in self.rig.kernel.deaths]
        if self.error is not None:
            told.append("".join(traceback.format_exception(self.error)))
        return "\n".join(told)

    # -- the browser ---------------------------------------------------------------------------------------------------

    def _received(self, _: Any, message: dict[str, Any], __: Any) -> None:
        """A button was pressed, or something typed. Runs in any thread."""
        if self._rig is None:
            return
        match message:
            case {"type": str(typed)}:
                self.type(typed)
            case {"press": str(typed)}:
                self.press("".join(filter(has_key, typed)))
            case {"command": "pause"}:
                self.pause()
            case {"command": "run" | "step" | "step_event" as command}:
                action: Callable[[], None] = getattr(self, command)
                if self._loop is None:
                    action()
                else:
                    self._loop.call_soon_threadsafe(action)
            case {"command": "viz"}:
                source = VIZ.read_bytes() if VIZ.exists() else b""
                self.send({"viz": bool(source)}, buffers=[source])
