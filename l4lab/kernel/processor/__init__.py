# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the processor, and for how long."""
