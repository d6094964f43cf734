# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has which memory and which ports, and from whom."""
