# SPDX-License-Identifier: GPL-2.0-or-later
"""A running system: machine, kernel and programs put together; its trace; its snapshots."""
