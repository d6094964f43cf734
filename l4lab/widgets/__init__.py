# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebook's front end: one widget over a live machine. The only home of anywidget; what it shows is `views`'."""
