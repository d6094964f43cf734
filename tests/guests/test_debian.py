# SPDX-License-Identifier: GPL-2.0-or-later
"""The sources of packages: derived from whatever the host is configured with, in either of apt's formats."""

from __future__ import annotations

from pathlib import Path

from l4lab.guests.debian import Source, deb822_sources, debian_only, host_sources, one_line_sources

ONE_LINE = """\
# deb http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian bookworm main contrib # ours
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian/ ./
"""

DEB822 = """\
Types: deb deb-src
# a comment within a stanza
URIs: http://mirror.example/debian
  http://other.example/debian
Suites: trixie trixie-updates
Components: main non-free
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/disabled
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
"""


def test_one_line_format() -> None:
    """Comments, sources of source code and flat archives are left out; the key stays, the architecture does not."""
    key = (("Signed-By", "/usr/share/keyrings/debian.gpg"),)
    expected = [Source("http://mirror.example/debian", ("bookworm",), ("main", "contrib"), key)]

    assert expected == list(one_line_sources(ONE_LINE))


def test_deb822_format() -> None:
    """Fields over several lines are read whole, a key in the file included; disabled stanzas are not read."""
    (source,) = deb822_sources(DEB822)

    assert "http://mirror.example/debian http://other.example/debian" == source.uris
    assert (("trixie", "trixie-updates"), ("main", "non-free")) == (source.suites, source.components)
    ((name, key),) = source.options
    assert ("Signed-By", 4) == (name, key.count("\n"))


def test_what_we_write_is_what_we_read() -> None:
    """A source comes back the same from the stanza made of it."""
    (source,) = deb822_sources(DEB822)

    assert [source] == list(deb822_sources(source.stanza()))


def test_only_debian_is_asked_and_for_one_release() -> None:
    """Other people's archives are left alone, and a host on another release of Debian asks for ours."""
    debian = Source("http://mirror.example/debian", ("trixie", "sid", "trixie-updates"), ("main", "contrib"))
    foreign = Source("http://packages.example/apt", ("cloud-sdk-bookworm",), ("main",))
    ubuntu = Source("http://mirror.example/ubuntu", ("noble",), ("main",))

    moved = debian_only([debian, foreign, ubuntu])

    assert [Source("http://mirror.example/debian", ("bookworm", "bookworm-updates"), ("main",))] == moved


def test_every_file_that_apt_reads_is_read(tmp_path: Path) -> None:
    """sources.list, and in sources.list.d what ends in .list or .sources; nothing else."""
    (tmp_path / "sources.list").write_text("deb http://a.example/debian bookworm main\n")
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "b.list").write_text("deb http://b.example/debian bookworm main\n")
    (parts / "c.sources").write_text("Types: deb\nURIs: http://c.example/debian\nSuites: bookworm\nComponents: main\n")
    (parts / "d.list.disabled").write_text("deb http://d.example/debian bookworm main\n")

    assert [f"http://{host}.example/debian" for host in "abc"] == [source.uris for source in host_sources(tmp_path)]
