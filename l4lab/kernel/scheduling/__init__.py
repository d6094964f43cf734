# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs next, among those who can; and who is woken when."""
