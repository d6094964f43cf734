# SPDX-License-Identifier: GPL-2.0-or-later
"""What the worker process tells the one that started it: plain records, sent as JSON."""

from __future__ import annotations

import msgspec

from l4lab.views.pictures import Picture


class Answer(msgspec.Struct, frozen=True):
    """What became of one question."""

    question: str
    passed: bool | None  # None: not asked, because an earlier answer makes it pointless
    message: str = ""  # if not passed: what was found, and what to try
    picture: str = ""  # the one in `Result.pictures` where it can be seen


class Trouble(msgspec.Struct, frozen=True):
    """The student's file did not come through."""

    message: str  # what happened, and what to try
    where: str = ""  # lines of the student's file, as a traceback shows them


class Result(msgspec.Struct, frozen=True):
    """All that is known after a run."""

    answers: tuple[Answer, ...] = ()
    trouble: Trouble | None = None
    console: str = ""  # what the guest said
    pictures: dict[str, Picture] = {}
