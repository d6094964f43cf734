# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts, ports and the console as programs have them."""
