# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab costs: figures as ratios measured in one run on one machine, medians of several rounds.

The two sides of a ratio are measured in turn, so that a machine that is busy for a while is busy for both.
"""

from l4lab.bench.figures import Figure, measure

__all__ = ["Figure", "measure"]
