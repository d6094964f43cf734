# SPDX-License-Identifier: GPL-2.0-or-later
"""The three kinds of error, each with its own reader. They are never mixed.

Refused       the guest program's mistake: becomes an X.2 error code, the kernel goes on
KernelPanic   ours: an invariant broke; the machine stays put, to be looked at
LabError      the student's or the instructor's: the message ends with what to try next
"""

from __future__ import annotations


class Refused(Exception):
    """The caller's fault. `code` is the X.2 error code that the caller finds in its UTCB; the kernel goes on."""

    def __init__(self, code: int, why: str = "") -> None:
        super().__init__(why or f"error {code}")
        self.code = code


class KernelPanic(Exception):
    """Our fault. An invariant broke; the machine stays as it is, to be looked at."""


class LabError(Exception):
    """The student's fault. The message ends with what to try next."""


class PartFailed(LabError):
    """A part that somebody put in the place of one of the kernel's, or of a monitor's, does what no such part may."""
