# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual machines: exits as messages, and shadow page tables."""
