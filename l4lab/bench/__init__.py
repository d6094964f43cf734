# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab costs: figures as ratios measured in one run on one machine, medians of several rounds.

The sides of a ratio are measured in turn, so that a machine that is busy for a while is busy for all of them. What is
measured is in `everything`, who runs the workloads in `engines`; `runs` writes, reads and compares runs, and `page`
draws one.
"""
