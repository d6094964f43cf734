# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m l4lab` is the `l4lab` command."""

from l4lab.cli import main

main()
