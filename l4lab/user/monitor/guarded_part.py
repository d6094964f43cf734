# SPDX-License-Identifier: GPL-2.0-or-later
"""A part of a monitor that somebody else wrote, asked with care.

A part that raises, or does what it must not, ends its guest's run with a sentence that names the part and the rule. The
kernel and the monitors of other guests are not concerned. What lives here: making the part, asking it, and saying what
went wrong. What an answer must be like is checked in `outside_pager`, `outside_interrupts`, `outside_devices` and
`outside_loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from l4lab.abi.vm import ITEM_REGISTERS
from l4lab.errors import LabError, PartFailed
from l4lab.user.monitor.fault import MASK, Reply

RULES: Final = "What each method has to do is in {}, in l4lab/user/monitor/monitor_parts.py."
MOST_STEPS: Final = 10_000  # uses of what it was given, that a part makes before it comes back
STEPS_OF_REPETITION: Final = 4

Tell = Callable[[str], None]


class GuardedPart:
    """The part, and its failure if it had one."""

    def __init__(
        self, kind: type, methods: Sequence[str], tell: Tell, make: Callable[..., object], arguments: Sequence[object]
    ) -> None:
        """`kind`: the class from which the part has to derive; `methods`: those that it must have. `tell` ends the
        guest's run with a sentence. `make`, as a rule a class, makes the part from the arguments.
        """
        self._kind = kind
        self._methods = methods
        self._tell = tell
        self._failure: PartFailed | None = None
        self._steps, self._most = 0, MOST_STEPS
        self.name: str = getattr(make, "__name__", "the part")
        self._part: Any = None
        if isinstance(make, type):
            self._complete(make)
        self._part = self._guarded("", make, tuple(arguments))
        self._complete(type(self._part))
        self.name = type(self._part).__name__

    def has(self, method: str) -> bool:
        """Has the part a method of its own?"""
        return getattr(type(self._part), method) is not getattr(self._kind, method)

    def ask(self, method: str, *arguments: object, repetitions: int = 0) -> None:
        """Have the part do something; for more repetitions it may take more steps."""
        self._most = MOST_STEPS + STEPS_OF_REPETITION * repetitions
        self._guarded(f".{method}()", getattr(self._part, method), arguments)

    def failed(self, what: str) -> PartFailed:
        """The part has done something wrong: `what` follows its name."""
        self._failure = PartFailed(f"{self.name}{what} {RULES.format(self._kind.__name__)}")
        self._tell(str(self._failure))
        return self._failure

    def restart(self) -> None:
        """Time has gone by for the guest: its steps are counted anew."""
        self._steps = 0

    def step(self, method: str) -> None:
        """The part makes use of something that it was given."""
        self._heed_failure()
        self._steps += 1
        if self._steps > self._most:
            raise self.failed(f".{method}() is stuck: it has taken {self._most} steps, and does not come back.")

    def check(self, method: str, reply: Reply) -> None:
        """Can the reply be sent?"""
        items: Any = reply.items  # of whatever types: somebody else has written them
        for number, registers in items.items():
            names = ITEM_REGISTERS.get(number, ())
            for index, value in registers.items():
                if not (isinstance(index, int) and 0 <= index < len(names)):
                    raise self.failed(
                        f".{method}() writes register {index!r} of {getattr(number, 'name', number)}, which is none."
                    )
                if not (isinstance(value, int) and 0 <= value <= MASK):
                    raise self.failed(f".{method}() writes {value!r} to {names[index]}, which is no word.")
        try:
            reply.words()
        except (LabError, TypeError) as error:
            raise self.failed(f".{method}() made a reply that cannot be sent: {error}.") from None

    def _guarded(self, name: str, function: Callable[..., object], arguments: tuple[object, ...]) -> object:
        self._steps = 0
        self._heed_failure()
        try:
            answer = function(*arguments)
        except PartFailed:
            raise
        except KeyboardInterrupt:
            raise self.failed(f"{name} did not come back. Is there a loop in it that never ends?") from None
        except Exception as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise self.failed(f"{name} raised {what}.") from error
        self._heed_failure()
        return answer

    def _heed_failure(self) -> None:
        """A part that has failed is not asked again, nor does it go on by catching all exceptions."""
        if self._failure is not None:
            raise self._failure

    def _complete(self, kind: type) -> None:
        """Is this a class of such parts that can do all that they must?"""
        name = self._kind.__name__
        if self._kind not in kind.__mro__:
            raise self.failed(f" is no {name}. Derive it from that class.")
        for method in self._methods:
            if getattr(kind, method) is getattr(self._kind, method):
                raise self.failed(f" has no method {method}().")
