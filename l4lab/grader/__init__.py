# SPDX-License-Identifier: GPL-2.0-or-later
"""Exercises, run and checked. In a notebook: `show("first_exit")` first, then `check("first_exit")`.

The student's file runs in a process of its own, with limits, so that whatever it does the lab goes on. That keeps
accidents away, not malice: a file that wants to cheat its own check can. In the order of a check:

    exercise    what the exercises are: reads exercises.toml
    runner      starts the process, and takes what it has to say
    worker      that process: student, scene and checks put together
    student     the student's file: loading it, calling it, telling what went wrong in it
    scene       the systems in which the student's functions are tried; probe is a guest made for that
    exchange    what guest and monitor said to each other, read from the trace
    checks      questions asked of all this, one function each
    report      the answers, as text and as HTML
    strip       makes the student's copy from the solution
"""

from l4lab.grader.report import Report, Showing, check, show

__all__ = ["Report", "Showing", "check", "show"]
