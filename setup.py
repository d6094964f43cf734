# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the native half of the engine where a C compiler is at hand; everything else is in pyproject.toml.

Without `l4lab.machine._core` the lab runs the same instructions and writes the same trace, only several times slower.
So a missing compiler is a loud warning here and not the end of the installation.
"""

from __future__ import annotations

import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

WARNING = """
************************************************************************
l4lab: the native core was NOT built ({why}).
The lab works without it, several times slower. To have it, install a C
compiler and Python's headers (Debian: gcc python3-dev) and install again.
************************************************************************
"""


class BuildOptionalCore(build_ext):
    """`build_ext` that says what a missing compiler costs, and goes on."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:  # a compiler can fail to exist in many ways, each with its own exception
            print(WARNING.format(why=error), file=sys.stderr)


setup(
    cmdclass={"build_ext": BuildOptionalCore},
    ext_modules=[
        Extension(
            "l4lab.machine._core",
            sources=["l4lab/machine/_core.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],  # one binary for 3.11 and all that follow
            extra_compile_args=["-O2"] if sys.platform != "win32" else [],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
