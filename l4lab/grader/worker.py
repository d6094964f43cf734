# SPDX-License-Identifier: GPL-2.0-or-later
"""The process in which a student's file runs: `python -m l4lab.grader.worker NAME FILE DESCRIPTOR`.

It makes the lab ready, limits itself, lets the student's functions play their part, asks the checks, and writes one
`Result` as JSON to the given file descriptor. What it cannot survive, the runner finds out.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

from l4lab.grader import checks
from l4lab.grader.exercise import Exercise, find
from l4lab.grader.result import Answer, Result, Trouble
from l4lab.grader.scene import Run, Scene
from l4lab.grader.student import OutOfTime, Student, Troubled
from l4lab.views import pictures
from l4lab.views.console import as_text
from l4lab.views.pictures import Picture
from l4lab.views.svg import element

WALL = 4  # a file that waits instead of computing may take so many times its CPU time
FILE_SIZE = 16 << 20  # bytes that the student's file may write to any file
MESSAGES = 8  # in the picture


def main() -> NoReturn:
    """Run, report, and be gone: without waiting for threads that the student's file may have left behind."""
    exercise, path, descriptor = find(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    student = Student(path, exercise.seconds, exercise.memory_mib)
    try:
        result = _examine(exercise, student)
    except Troubled as troubled:
        result = Result(trouble=troubled.trouble)
    except MemoryError as error:  # the file's doing, but it struck us
        result = Result(trouble=student.trouble(error))
    except Exception:  # whatever it is, the student has to hear that it was not the file
        traceback.print_exc()
        result = Result(trouble=Trouble("The lab itself failed, and not your file. Please report this:"))
    with open(descriptor, "wb") as out:
        out.write(msgspec.json.encode(result, enc_hook=str))  # markup is a text
    sys.stdout.flush()
    os._exit(0)


def _examine(exercise: Exercise, student: Student) -> Result:
    """Everything between loading the file and the last check."""
    main_scene, probe_scene = Scene(exercise.guest, student), Scene("probe", student)
    _limit(exercise)
    functions = student.load(exercise.functions)
    run = main_scene.play(functions)
    went_well = run.trouble is None and not run.stuck
    probe = probe_scene.play(functions) if went_well else run  # what is wrong is to be seen in one of them already
    _unlimit()
    evidence = checks.Evidence(run, probe, getattr(student.module, "VENDOR", None))
    trouble = run.trouble or probe.trouble
    answers = [] if trouble else _ask(exercise, evidence)
    return Result(tuple(answers), trouble, as_text(run.console.decode("latin-1")), _pictures(run))


def _ask(exercise: Exercise, evidence: checks.Evidence) -> list[Answer]:
    """The answers, up to the first that is not well: what follows from a mistake would only distract from it."""
    answers: list[Answer] = []
    failed = False
    for name in exercise.checks:
        check = checks.named(name)
        question = (check.__doc__ or name).strip()
        finding = None if failed else check(evidence)
        if failed:
            answers.append(Answer(question, None))
        elif finding is None:
            answers.append(Answer(question, True))
        else:
            failed = True
            answers.append(Answer(question, False, finding.message, finding.picture))
    return answers


def _pictures(run: Run) -> dict[str, Picture]:
    """What there is to see of a run."""
    snapshot = run.rig.snapshot()
    console = as_text(run.console.decode("latin-1")) or "(nothing)"
    return {
        "messages": pictures.messages(snapshot, MESSAGES),
        "guest": pictures.exits(snapshot, MESSAGES),
        "console": Picture(element("pre", console), console + "\n"),
    }


# -- limits -----------------------------------------------------------------------------------------------------------


def _limit(exercise: Exercise) -> None:
    """From here on the student's file is running, and may not take more than it is allowed.

    First a signal that is raised as an exception in the student's code, so that the place can be told; a file that
    does not heed it is killed by the kernel a second later, or by the runner.
    """
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, exercise.seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL * exercise.seconds)
    cpu = int(time.process_time() + exercise.seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    taken = _address_space()
    if taken is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = taken + (exercise.memory_mib << 20)
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _unlimit() -> None:
    """The student's file has done its part."""
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _out_of_time(number: int, frame: object) -> NoReturn:
    raise OutOfTime


def _address_space() -> int | None:
    """Bytes of address space this process has; None where the system does not tell in Linux' way."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return None


if __name__ == "__main__":
    main()
