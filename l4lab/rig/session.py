# SPDX-License-Identifier: GPL-2.0-or-later
"""A session at a guest's console: somebody types, somebody reads, and somebody says when it is enough.

Lives here: what `--until`, `--send` and `--timeout` mean, the pace at which an idle guest's time goes by, and how the
session ended. Does not live here: the terminal itself (the command line's, or the notebook's), and how a rig runs.

What is typed because of a match arrives at an instant that depends on the guest alone, so such a run can be repeated
exactly. What a person types arrives when it is typed; the trace holds it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from l4lab.devices.keys import has_key
from l4lab.devices.vga import TextPage
from l4lab.errors import LabError
from l4lab.rig.rig import Rig, Stop
from l4lab.rig.screen import ScreenText
from l4lab.rig.stuck import Watch
from l4lab.user.monitor.outcome import End

# The prompt of a shell, of DOS, of a boot loader: the last that was said. BusyBox also asks where the cursor is.
PROMPT: Final = r"(?:[#$] |(?:^|\x1b\[\d+;1H)(?:[A-Z]:\\[^\r\n>]{0,66}>|\w{0,20}> ))(?:\x1b\[6n)?\Z"
PROMPT_LENGTH: Final = 84  # bytes of the longest match
QUIET: Final = 5_000_000  # nanoseconds of silence that tell a prompt from a line which is still being written
ENTER: Final = b"\r"  # what the key sends
ARROW: Final = "=>"
LOOK_BACK: Final = 2048  # bytes of output in which a match may lie

# Linux ends so when its parameters do not let it reset the machine; and so begins what it says in either case.
_PANIC_WORD: Final = b"Kernel panic"
_PANIC_FOR_EVER: Final = re.compile(rb"^(?:\[[ .\d]+\] )?---\[ end Kernel panic", re.MULTILINE)
_PANIC: Final = re.compile(rb"^(?:\[[ .\d]+\] )?Kernel panic - not syncing: ?(.*?)\r?$", re.MULTILINE)

_AWAKE: Final = 0.05  # seconds between two looks at keyboard and clock
_SHOW: Final = 0.02  # seconds after which output is shown although its line goes on
_SLICE: Final = 20_000_000  # nanoseconds that the guest may be ahead of the clock on the wall
_NEVER: Final = 1 << 62
SCREEN_PERIOD: Final = 20_000_000  # nanoseconds between two looks at a screen
_LONGEST: Final = 365 * 86400.0  # seconds that a session may be given


class Status(Enum):
    """How a session ended; `who` is what ran in it."""

    MATCHED = "the console matched"
    ENDED = "{who} ended"
    TIMEOUT = "it took too long"
    DIED = "{who} died"
    INTERRUPTED = "it was interrupted"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session ended, and why in a sentence."""

    status: Status
    why: str


@dataclass(frozen=True, slots=True)
class Send:
    """A line to be typed when new output matches."""

    pattern: re.Pattern[bytes]
    text: bytes
    at_prompt: bool  # only if silence follows

    @classmethod
    def parse(cls, argument: str) -> Send:
        """TEXT, to be typed at a shell's prompt; or REGEX=>TEXT."""
        pattern, arrow, text = argument.partition(ARROW)
        if not arrow:
            pattern, text = PROMPT, argument
        return cls(regex(pattern), _bytes(text) + ENTER, not arrow)


def regex(pattern: str) -> re.Pattern[bytes]:
    """A regular expression to search a console for; `^` and `$` are the ends of a line."""
    try:
        return re.compile(_bytes(pattern), re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise LabError(
            f"{pattern!r} is not a regular expression ({error}); put a backslash before characters meant literally"
        ) from None


def _bytes(text: str) -> bytes:
    """An argument's bytes, also if they are no UTF-8."""
    return text.encode("utf-8", "surrogateescape")


@cache
def _within_a_line(pattern: re.Pattern[bytes]) -> bool:
    """Can no match reach from one line into the next? Then the line being written is all that needs to be searched."""
    harmless = rb"\\(?:x1b|[Zdw.\\/(){}$#*+?|\[\]-])|\(\?:"
    return not re.search(rb"\\|\[\^|\(\?|\n", re.sub(harmless, b"", pattern.pattern))


@dataclass(frozen=True, slots=True)
class Script:
    """What a session is to do: which lines to type, and when it is enough."""

    until: re.Pattern[bytes] | None = None
    sends: tuple[Send, ...] = ()
    timeout: float | None = None  # seconds of wall time
    eager: bool = False  # input may come before a prompt: nobody throws it away
    on_screen: bool = False  # the console is the guest's screen and keyboard, not its serial line
    save_at: Path | None = None  # where to save the guest when `until` has matched

    @classmethod
    def parse(
        cls,
        until: str | None = None,
        sends: Sequence[str] = (),
        timeout: float | None = None,
        eager: bool = False,
        on_screen: bool = False,
        save_at: tuple[str, Path] | None = None,
    ) -> Script:
        """From the arguments that people write. `save_at`: what to wait for like `until`, and a file for the guest."""
        if save_at is not None:
            if until is not None:
                raise LabError("--save-at ends the run as --until does; give one of the two")
            until = save_at[0]
        if timeout is not None and not 0 <= timeout <= _LONGEST:
            raise LabError(f"a timeout of {timeout} s cannot be; give a number of seconds, such as --timeout 60")
        return cls(
            None if until is None else regex(until),
            tuple(map(Send.parse, sends)),
            timeout,
            eager,
            on_screen,
            save_at and save_at[1],
        )


class Terminal(Protocol):
    """Where a session's output goes and its input comes from."""

    person: bool  # does somebody sit there, or is it a file or a pipe?
    closed: bool  # nothing more will be typed
    left: bool  # whoever sits there wants to leave
    lost: str  # why output cannot be shown any more; empty while it can

    def read(self, seconds: float | None) -> bytes:
        """What has been typed, waiting for it at most so long (None: for ever); nothing if nothing was."""

    def write(self, data: bytes) -> None:
        """Show output."""

    def draw(self, page: TextPage | None) -> None:
        """Show a screen, to a person."""


class Session:
    """Runs a rig as a script says, until its console matches, the guest ends, or the time is over."""

    def __init__(
        self,
        rig: Rig,
        script: Script,
        terminal: Terminal | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`tell` gets what whoever sits there should know, beside the console."""
        self.rig = rig
        self.terminal = terminal
        self._until = script.until
        self._sends = list(script.sends)
        self._prompt = regex(PROMPT)
        self._timeout = script.timeout
        self._deadline: float | None = None
        self._person = terminal is not None and terminal.person
        # Without anything to reach, an idle guest would burn the host's CPU as fast as it can.
        self._paced = self._person or (terminal is not None and script.until is None and not script.sends)
        self._prompted = self._person or script.eager  # may input go to the guest?
        self._screen = ScreenText(rig) if script.on_screen else None
        self._console = rig.console if self._screen is None else self._screen.text
        self._save_at = script.save_at
        # Output shown; looked at; not to be matched again. The line that a restored guest stands at is news.
        self._shown = self._searched = self._read = len(self._console) - (rig.carried if self._screen is None else 0)
        rig.carried = 0
        self._found: Ending | None = None  # `until` matched
        self._settle = _NEVER  # the cycle at which to decide what the match was worth
        self._due: Send | None = None
        self._ending: Ending | None = None
        self.ending: Ending | None = None  # how it ended, when it has
        # Programs that are given their input when they look for it: how often they did in vain, and since when.
        self._polls_count = script.eager
        self._polls = 0
        self._polled_since: int | None = None
        self._tell = tell
        self._watch = Watch(rig.trace) if rig.guest is None else None
        self.waits = False  # for somebody to type, or for the time to pass: only then may a signal handler raise
        self._next_look = 0.0
        self._next_show = 0.0

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self) -> Ending:
        """To the end."""
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            while self._ending is None:
                self._turn()
        except KeyboardInterrupt:  # while the machine stood still
            self._ending = Ending(Status.INTERRUPTED, "interrupted")
        finally:
            self.waits = False
            self._show()
        self.ending = self._ending
        if self._save_at is not None and self._ending.status is Status.MATCHED:
            self.rig.save(self._save_at)
        return self._ending

    def _turn(self) -> None:
        """Let the machine run, and do what there is to do when it comes back."""
        rig, terminal = self.rig, self.terminal
        begin, begin_wall = rig.machine.cycles, time.monotonic()
        self._next_look = begin_wall + _AWAKE
        # A screen says nothing by itself: it is looked at as time goes by, the machine's own.
        look = _NEVER if self._screen is None else (begin // SCREEN_PERIOD + 1) * SCREEN_PERIOD
        limit = min(begin + _SLICE if self._paced else _NEVER, self._settle, look)
        stop = rig.run_until(limit, watch=self._enough)
        if self._screen is not None and (rig.machine.cycles >= look or stop.reason != "enough"):
            self._screen.look()
        self._search()  # what the last instant printed
        if rig.machine.cycles >= self._settle or stop.reason == "idle":
            self._decide(stop.reason == "idle")
        self._show()
        if self._watch is not None and (news := self._watch.look()):
            self._tell(news)
        if self._due is not None:
            due, self._due = self._due, None
            self._type(due.text)
        elif self._ending is None:
            self._judge(stop)
            if self._ending is None and terminal is not None:
                virtual, wall = (rig.machine.cycles - begin) / 1e9, time.monotonic() - begin_wall
                self._listen(terminal, stop, max(virtual - wall, 0.0) if self._paced else 0.0)

    def _enough(self) -> bool:
        """Is there anything to do? Asked after each byte of output, so it must not take long."""
        if len(self._console) > self._searched:
            settle = self._settle
            self._search()
            if self._due is not None or self._ending is not None or self._settle != settle:
                return True
        if self._polls_count and self._is_polled_for():
            self._type_next()
            return True
        now = time.monotonic()
        if now >= self._next_show and self._shown < self._searched:
            self._show()
            self._next_show = now + _SHOW
        if self.terminal is not None and self.terminal.lost:
            return True
        return now >= self._next_look and (self.terminal is not None or self._is_late(now))

    def _is_polled_for(self) -> bool:
        """Has the program looked for input for so long, in vain and saying nothing, that it must be waiting for it?"""
        if not self._sends or not self._sends[0].at_prompt or self._due is not None or self._ending is not None:
            return False
        machine = self.rig.machine
        polls = machine.uart.polls + machine.keyboard.polls
        if polls == self._polls:
            return False
        self._polls = polls
        if self._polled_since is None:
            self._polled_since = machine.cycles
        return machine.cycles - self._polled_since >= QUIET

    def _is_late(self, now: float) -> bool:
        return self._deadline is not None and now >= self._deadline

    def _search(self) -> None:
        """Look at new output: is it time to type, or to end?"""
        console = self._console
        if len(console) == self._searched or self._due is not None or self._ending is not None:
            return
        line = console.rfind(b"\n", 0, self._searched) + 1
        self._searched = len(console)
        self._polled_since = None
        start = max(self._read, len(console) - LOOK_BACK)
        line = max(start, line)  # where the line begins that was being written when we last looked
        if not self._prompted and self._prompt.search(console, max(start, len(console) - PROMPT_LENGTH)):
            self._prompted = True
        if (
            self._until is not None
            and self._found is None
            and (match := self._until.search(console, line if _within_a_line(self._until) else start))
        ):
            self._found = Ending(Status.MATCHED, f"the console says {match[0].decode(errors='replace')!r}")
        send = self._sends[0].pattern if self._sends else None
        if send is not None and send.search(console, line if _within_a_line(send) else start):
            if self._sends[0].at_prompt:
                self._settle = self.rig.machine.cycles + QUIET
            else:
                self._type_next()
        elif self._found is None:
            self._settle = _NEVER
            # Looking for the word first is forty times as fast, and a booting guest prints ten thousand bytes.
            if (
                not self._person
                and console.find(_PANIC_WORD, max(start, line - len(_PANIC_WORD))) >= 0
                and _PANIC_FOR_EVER.search(console, start)
            ):
                self._ending = self._died("it panicked")
        elif not self._sends:
            self._ending = self._found
        elif self._settle == _NEVER:  # the same line may be the prompt that a line of ours waits for
            self._settle = self.rig.machine.cycles + QUIET

    def _decide(self, idle: bool) -> None:
        """It has been quiet since the match, or there was no line to type: now it counts.

        Where nothing more will happen without input, everybody waits for the next line, prompt or none.
        """
        self._settle = _NEVER
        if self._due is not None or self._ending is not None:
            return
        start = max(self._read, len(self._console) - LOOK_BACK)
        next_ = self._sends[0] if self._sends else None
        waits = idle or self._polled_since is not None
        if next_ is not None and ((waits and next_.at_prompt) or next_.pattern.search(self._console, start)):
            self._type_next()
        elif self._found is not None:
            self._ending = self._found

    def _type_next(self) -> None:
        """The next line is due; what comes after it waits for new output."""
        self._due = self._sends.pop(0)
        self._read = len(self._console)
        self._found, self._settle, self._polled_since = None, _NEVER, None

    def _judge(self, stop: Stop) -> None:
        """The machine has come back: is this the end?"""
        if self.terminal is not None and self.terminal.lost:
            self._ending = Ending(Status.INTERRUPTED, self.terminal.lost)
        elif stop.finished:
            self._ending = self._ended(stop)
        elif stop.reason == "stopped":
            self._ending = Ending(Status.INTERRUPTED, "interrupted")
        elif self._is_late(time.monotonic()):
            self._ending = Ending(Status.TIMEOUT, f"{self._timeout:g} seconds are over")
        elif stop.reason == "idle" and (self.terminal is None or self.terminal.closed):
            waits = self._until is not None or self._sends
            self._ending = Ending(Status.TIMEOUT if waits else Status.ENDED, stop.detail)

    def _ended(self, stop: Stop) -> Ending:
        outcome = self.rig.outcome
        if outcome is None:
            return Ending(Status.DIED if stop.reason == "died" else Status.ENDED, stop.detail)
        if not outcome.end.is_clean or (outcome.end is End.RESET and _PANIC.search(self.rig.console)):
            return self._died(str(outcome))
        return Ending(Status.ENDED, str(outcome))

    def _died(self, why: str) -> Ending:
        said = _PANIC.search(self.rig.console)
        cause = f" (kernel panic: {said[1].decode(errors='replace')})" if said else ""
        return Ending(Status.DIED, why + cause)

    def _type(self, data: bytes) -> None:
        """To the serial port, or as keys; what a keyboard has no key for is left out."""
        if self._screen is None:
            self.rig.type(data)
        else:
            self.rig.press("".join(char for char in data.decode("ascii", "ignore") if has_key(char)))

    # -- the terminal --------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        console = self._console
        if self.terminal is not None and self._screen is not None and self._person:
            self.terminal.draw(self._screen.page)
        elif self.terminal is not None and self._shown < len(console):
            shown, self._shown = self._shown, len(console)
            self.terminal.write(bytes(console[shown:]))

    def _listen(self, terminal: Terminal, stop: Stop, ahead: float) -> None:
        """Type what was typed. A guest that is ahead of the wall's clock, or waits for somebody, lets us sleep."""
        seconds: float | None = None if stop.reason == "idle" else ahead
        if self._deadline is not None:
            left = max(self._deadline - time.monotonic(), 0.0)
            seconds = left if seconds is None else min(seconds, left)
        self._prompted = self._prompted or stop.reason == "idle"
        self.waits = True
        if terminal.closed or not self._prompted:  # a booting guest would throw away what comes before its prompt
            time.sleep(seconds or 0.0)
            self.waits = False
            return
        typed = terminal.read(seconds)
        self.waits = False
        self._type(typed)
        if terminal.left:
            self._ending = Ending(Status.INTERRUPTED, "left")
